"""The oracle with functions replaced: the replaced one is used everywhere, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llama_ckpt.diagnose.bugs import catalogue, reached_from
from llama_ckpt.diagnose.patched_oracle import RIGHT, PatchedOracle, answers
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle import run_oracle
from llama_ckpt.points import Case
from tests.comparing.prompts import prompt, rope_case


def whole_run(weights: Any = None) -> Case:
    given = prompt()
    arguments = {"token_ids": given.token_ids, "weights": given.weights, "config": given.config}
    taps = {name: name for name in ("embd", "blk.0.q_rope", "blk.1.attn_out", "output_norm")}
    return Case("logits", {**arguments, "positions": given.positions}, ("logits",), taps)


def doubled_rope(
    right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None
) -> Any:
    return tuple(2 * x for x in right.rope(q, k, positions, frequencies))


def test_unpatched_it_is_the_oracle_bit_for_bit() -> None:
    case = whole_run()
    ours, theirs = RIGHT.answers(case), answers(oracle.logits, case)
    assert list(ours) == list(theirs) == [*case.taps, "logits"]
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_patch_is_used_by_whatever_calls_it() -> None:
    case = whole_run()
    right, wrong = RIGHT.answers(case), PatchedOracle({"rope": doubled_rope}).answers(case)
    assert np.array_equal(wrong["blk.0.q_rope"], 2 * right["blk.0.q_rope"])
    assert np.array_equal(wrong["embd"], right["embd"])
    assert not np.allclose(wrong["logits"], right["logits"])


def test_a_patch_over_a_patch_gets_the_lower_one_as_right() -> None:
    case = rope_case()
    twice = PatchedOracle({"rope": doubled_rope}, PatchedOracle({"rope": doubled_rope}))
    assert np.array_equal(twice.answers(case)["blk.0.k_rope"], 4 * RIGHT.answers(case)["blk.0.k_rope"])


def test_helpers_are_patched_without_their_underscore() -> None:
    negative = PatchedOracle({"linear": lambda right, x, w: -right.linear(x, w)})
    x, w = np.ones((1, 2)), np.eye(2)
    assert np.array_equal(negative.linear(x, w), -x)
    q, k, v = negative.qkv(x, w, w, w, n_heads=1, n_kv_heads=1)
    assert np.array_equal(q, -np.ones((1, 1, 2))) and np.array_equal(k, v)


def test_the_oracle_itself_stays_as_it_is() -> None:
    before = {name: id(value) for name, value in vars(oracle).items()}
    PatchedOracle({"rope": doubled_rope}).answers(whole_run())
    assert {name: id(value) for name, value in vars(oracle).items()} == before
    assert all(function.__globals__ is vars(oracle) for function in (oracle.rope, oracle.block))


def test_what_the_oracle_lacks_is_said() -> None:
    with pytest.raises(AttributeError, match="no function 'roep'"):
        RIGHT.roep  # noqa: B018 - the access is the test
    with pytest.raises(AssertionError, match="no function 'roep'"):
        PatchedOracle({"roep": doubled_rope})


def test_continuation_follows_the_patched_choice() -> None:
    model = prompt().model
    arguments = {"model": model, "prompt_or_token_ids": [1, 5], "max_tokens": 3}
    seven = PatchedOracle({"argmax": lambda right, logits: np.int64(7)})
    assert seven.generate(**arguments).tolist() == [7, 7, 7]
    assert RIGHT.generate(**arguments).tolist() == run_oracle.generate(**arguments).tolist()


def test_continuation_ends_with_an_end_token() -> None:
    model = prompt().model
    first = int(run_oracle.generate(model, [1, 5], max_tokens=1)[0])
    ended = type(model)(**{**vars(model), "eog_ids": frozenset({first})})
    assert run_oracle.generate(ended, [1, 5], max_tokens=3).tolist() == [first]


OF_EXPERTS = {"routed", "weighted_sum", "by_experts", "experts"}
"""What a dense model never comes to."""


class Reached(Exception):
    """A function that was replaced has been called."""


def calls_it(case: Case, name: str) -> bool:
    """Whether a call of the case's function comes to the one of that name."""

    def stop(right: PatchedOracle, *args: Any, **options: Any) -> Any:
        raise Reached

    try:
        PatchedOracle({name: stop}).answers(case)
    except Reached:
        return True
    return False


def test_what_is_reached_is_what_runs() -> None:
    """`candidates` stands on it: a bug of a function left out would never be tried."""
    model = prompt().model
    arguments = {"model": model, "prompt_or_token_ids": [1, 5], "max_tokens": 1}
    generates = Case("generate", arguments, ("continuation",))
    replaced = {bug.function for bug in catalogue()} | {"rope_frequencies", "visible", "sigmoid"}
    for case in (whole_run(), rope_case(), generates):
        ran = {name for name in replaced if calls_it(case, name)}
        assert ran == replaced & {*reached_from(case.function)} - OF_EXPERTS, case.function
    assert len(replaced & {*reached_from("generate")}) > 10


def test_what_runs_first_is_reached_first() -> None:
    """Bugs are tried in this order: an argument's function runs before the one that it is given to."""
    assert reached_from("generate")[:4] == ("generate", "logits", "last_logits", "argmax")
    assert reached_from("argmax") == ("argmax", "float64")  # its parameter `logits` is no call
    assert reached_from("unknown") == ("unknown",)
