"""Programs that are not of the catalogue: what is named explains them, or is said to be a part only.

Each is a small port of a layer in numpy, as its author writes it, with a fault reported in public.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama_ckpt.diagnose.diagnosis import diagnose_point
from llama_ckpt.diagnose.patched_oracle import RIGHT
from llama_ckpt.diagnose.records import Diagnosis
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.judging.to_precision import to_bfloat16, to_float16
from llama_ckpt.points import Case
from tests.comparing.prompts import bench

Array = NDArray[Any]

ROUNDED: dict[str, Callable[[Array], Array]] = {
    "float32": lambda x: x.astype(np.float32),
    "float16": to_float16,
    "bfloat16": to_bfloat16,
}


def rope_call(n: int = 8, head_dim: int = 64) -> Case:
    generator = np.random.default_rng(3)
    q, k = (generator.standard_normal((n, 4, head_dim)) for _ in range(2))
    frequencies = 1e4 ** (-np.arange(head_dim // 2) / (head_dim // 2))
    arguments = {"q": q, "k": k, "positions": np.arange(n), "frequencies": frequencies}
    return Case("rope", arguments, ("blk.0.q_rope", "blk.0.k_rope"))


def partial_rotary(case: Case, rotary: int) -> Array:
    """Pairs (i, i + d/2), of which only the first `rotary` / 2, the fast ones, are turned."""
    given = case.arguments
    turning = np.arange(len(given["frequencies"])) < rotary // 2
    angle = given["positions"][:, None] * np.where(turning, given["frequencies"], 0.0)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    low, high = np.split(given["q"], 2, axis=-1)
    return np.concatenate([low * cos - high * sin, low * sin + high * cos], axis=-1)


def in_parts(case: Case) -> Array:
    """Halves turned, all features, and beside that the last token's values 30% too large."""
    x = partial_rotary(case, case.arguments["q"].shape[-1])
    x[-1] *= 1.3
    return x


def diagnosed(x: Array, case: Case, point: str, dtype: str) -> Diagnosis:
    o = RIGHT.answers(case)[point]
    return diagnose_point(point, ROUNDED[dtype](x), o, limit=limit_for(point, dtype, "own"), case=case)


def holds(found: Diagnosis, dtype: str) -> None:
    """Nothing is called explained beyond what rounding leaves; what is left is said."""
    limit = limit_for(found.point, dtype, "own")
    for one in (*found.named, *found.structure):
        assert one.remaining_error <= limit.err or not one.explained
        assert one.explained or one.said().endswith("something else as well"), one
        assert one.share < 1 or one.explained


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("rotary", [20, 24, 28])
def test_partial_rotary_is_not_called_half_split_pairs_alone(rotary: int, dtype: str) -> None:
    case = rope_call()
    found = diagnosed(partial_rotary(case, rotary), case, "blk.0.q_rope", dtype)
    assert next(bug for bug in found.named if bug.name == "rope-half-split").explained is False
    whole = "with the whole head's frequencies: remaining error"
    pairs = f"RoPE turns only the first {rotary // 2} of a head's 32 pairs (i, i+32), {whole}"
    assert found.sentence().startswith(pairs)
    holds(found, dtype)


@pytest.mark.parametrize("dtype", ROUNDED)
def test_the_whole_rotary_is_explained_in_every_precision(dtype: str) -> None:
    case = rope_call()
    found = diagnosed(partial_rotary(case, 64), case, "blk.0.q_rope", dtype)
    assert [bug.name for bug in found.named if bug.explained] == ["rope-half-split"]
    assert found.sentence().startswith("RoPE turns pairs") and "else" not in found.sentence()


@pytest.mark.parametrize("dtype", ROUNDED)
def test_two_faults_at_once_are_a_part_and_something_else(dtype: str) -> None:
    case = rope_call(n=600)
    found = diagnosed(in_parts(case), case, "blk.0.q_rope", dtype)
    best = found.named[0]
    assert (best.name, best.explained) == ("rope-half-split", False)
    share = 1 - best.remaining_error / found.err
    assert best.share == pytest.approx(share, rel=1e-6) and 0.9 < share < 1
    assert best.beyond == pytest.approx(1 / 600, rel=0.25)  # the last token's
    assert found.sentence().endswith("something else as well")


def block_call() -> Case:
    """A block deep in a model: its input is large beside what attention adds."""
    case = next(case for case in bench().cases["7"] if case.function == "block")
    return replace(case, arguments={**case.arguments, "x": 10 * np.asarray(case.arguments["x"])})


def by_every_rank(case: Case, ranks: int) -> Array:
    """Each rank adds the feed-forward's residual before all of them are summed (mirage#722)."""
    right = RIGHT.answers(case)
    return np.asarray(right["blk.0.out"] + (ranks - 1) * right["blk.0.ffn_inp"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_residual_added_by_every_rank_is_not_the_blocks_input_added_twice(dtype: str) -> None:
    case = block_call()
    found = diagnosed(by_every_rank(case, 2), case, "blk.0.out", dtype)
    twice = next(bug for bug in found.named if bug.name == "block-residual-twice")
    assert not twice.explained and twice.allowed < twice.remaining_error < 0.1
    assert found.sentence().startswith("out: ffn_inp is added twice: remaining error ")
    assert [one.explained for one in found.identified[:1]] == [True]


def test_what_explains_a_tensor_whole_goes_before_a_bug_that_explains_a_part() -> None:
    case = rope_call(n=600)
    found = diagnosed(in_parts(case), case, "blk.0.q_rope", "float32")
    whole = replace(found.structure[0], explained=True) if found.structure else None
    if whole is None:
        simple = diagnosed(-RIGHT.answers(case)["blk.0.q_rope"], case, "blk.0.q_rope", "float32")
        whole = simple.structure[0]
    assert replace(found, structure=[whole]).sentence() == whole.said()
