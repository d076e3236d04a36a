"""Dumps of mixtures of experts: right ones pass whichever way a near tie fell, wrong ones are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reference_dumps
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.diagnose.bugs import catalogue
from llama_ckpt.diagnose.patched_oracle import RIGHT, PatchedOracle
from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.judging.near_ties import as_right, followed, is_choice
from tests.comparing.mixture import (
    OTHER_TWIN,
    STREAM,
    TOKENS,
    compared,
    mixture_with_twins,
    only,
    opened,
    run,
)

EXPERTS = {bug.name: bug for bug in catalogue() if bug.checkpoint == "6B"}
FIRST = {
    "ffn_chosen": ("order-by-number", "off-by-one", "least-likely", "largest-scores"),
    "ffn_expert_out": ("rows-by-turns", "weighted-inputs"),
    "ffn_out": ("unweighted",),
}
"""The bugs that do not show first in the experts' weights."""


def test_a_right_one_passes_at_every_point(tmp_path: Path) -> None:
    found = compared(run(), tmp_path)
    assert (found.verdict, found.compared, found.of) == ("pass", 57, 57), found.reason
    assert {"ffn_router", "ffn_chosen", "ffn_weights", "ffn_expert_out"} <= {
        name.partition(".")[2].partition(".")[2] for name in (point.name for point in found.points)
    }


@pytest.mark.parametrize("name", EXPERTS)
def test_every_bug_is_named_whole_and_between(name: str, tmp_path: Path) -> None:
    tensors = run(EXPERTS[name].oracle)
    found = compared(tensors, tmp_path)
    short = name.removeprefix("experts-")
    point = next((point for point, bugs in FIRST.items() if short in bugs), "ffn_weights")
    assert found.first_wrong is not None and found.first_wrong.made == "here"
    assert found.first_wrong.name == f"blk.0.{point}"
    assert found.diagnoses[0].named[0].name == name and found.diagnoses[0].named[0].explained
    sparse = compared(only(tensors, STREAM), tmp_path)
    assert sparse.first_wrong is not None and sparse.first_wrong.made == "between"
    assert sparse.first_wrong.name == "blk.0.out" and sparse.record_next == "blk.0.ffn_weights"
    assert sparse.diagnoses[0].named[0].name == name and sparse.diagnoses[0].named[0].explained


def test_a_tie_that_fell_the_other_way_is_no_error(tmp_path: Path) -> None:
    twins = mixture_with_twins()
    tensors = run(OTHER_TWIN, twins)
    own = run(RIGHT, twins)
    assert np.abs(own["logits"] - tensors["logits"]).max() > 0.1  # another expert computed, and it shows
    found = compared(tensors, tmp_path, twins)
    assert (found.verdict, found.compared, found.of) == ("pass", 57, 57), found.reason
    assert not found.cannot_tell[1:]
    assert any("near ties of the router" in note and "follows them" in note for note in found.notes)
    for points in (STREAM, ("logits",), ("ffn_out", "out"), ("ffn_weights", "ffn_router", "ffn_norm")):
        sparse = compared(only(tensors, points), tmp_path, twins, partial=True)
        assert sparse.verdict == "pass", (points, sparse.reason)
        assert "record ffn_chosen to judge all" in sparse.cannot_tell[-1]


@pytest.mark.parametrize("name", ["least-likely", "off-by-one", "softmax-twice", "top-one"])
def test_a_bug_beside_ties_is_named_all_the_same(name: str, tmp_path: Path) -> None:
    twins, bug = mixture_with_twins(), EXPERTS[f"experts-{name}"]
    patches: Any = bug.oracle._layers[0][0]
    tensors = run(PatchedOracle(patches, base=OTHER_TWIN), twins)
    for theirs in (tensors, only(tensors, STREAM)):
        found = compared(theirs, tmp_path, twins)
        assert found.verdict == "fail"
        assert found.diagnoses[0].named[0].name == bug.name, found.reason


def test_a_wrong_choice_is_found_whatever_it_makes_of_what_follows(tmp_path: Path) -> None:
    """One token of one block goes through an expert that no rounding chooses; all else follows from that."""

    def once(right: PatchedOracle, router: Any, n_used: int) -> Any:
        chosen, weights = right.routed(router, n_used)
        chosen[7, 1] = np.argsort(-router[7], kind="stable")[n_used + 2]
        return chosen, weights

    found = compared(run(PatchedOracle({"routed": once}, base=OTHER_TWIN), mixture_with_twins()), tmp_path,
                     mixture_with_twins())  # fmt: skip
    assert found.first_wrong is not None and found.first_wrong.name == "blk.0.ffn_chosen"
    assert found.wrong_rows == (7,)


def test_experts_listed_by_their_numbers_are_read_as_meant(tmp_path: Path) -> None:
    tensors = run()
    for block in range(3):
        at = f"blk.{block}.ffn_"
        order = np.argsort(tensors[f"{at}chosen"], axis=1)
        for point in ("chosen", "weights"):
            tensors[at + point] = np.take_along_axis(tensors[at + point], order, 1)
        tensors[f"{at}expert_out"] = np.take_along_axis(tensors[f"{at}expert_out"], order[..., None], 1)
    found = compared(tensors, tmp_path)
    assert found.verdict == "pass", found.reason
    assert any("listed by their numbers" in note for note in found.notes)


@pytest.mark.parametrize("wrong", [-1.0, 8.0, 1.5, np.nan])
def test_what_is_no_expert_is_found(wrong: float, tmp_path: Path) -> None:
    tensors = run()
    tensors["blk.1.ffn_chosen"][3, 1] = wrong
    found = compared(tensors, tmp_path)
    assert found.first_wrong is not None and found.first_wrong.name == "blk.1.ffn_chosen"
    assert all(point.made != "here" for point in found.points if point.name != "blk.1.ffn_chosen")


def test_one_expert_for_two_is_said(tmp_path: Path) -> None:
    tensors = run()
    for name in [name for name in tensors if name.endswith(("ffn_chosen", "ffn_weights"))]:
        tensors[name] = np.ascontiguousarray(tensors[name][:, :1])
    found = compared(tensors, tmp_path)
    assert any("1 experts a token, the model has 2" in one.message for one in found.findings)


def test_the_committed_one_beside_llama_cpp(tmp_path: Path) -> None:
    folder = Path(reference_dumps.__file__).parent / "mixture"
    dumps = open_dumps(folder / "f16")
    dump, tokens = dumps.dump("prompt"), dumps.entries[0].token_ids
    _, config, weights = opened(folder / "model.gguf")
    seen: dict[str, Any] = {}
    keep = lambda name, array: seen.__setitem__(name, np.float32(array))  # noqa: E731
    at = np.arange(len(tokens))
    keep("logits", RIGHT.logits(tokens, weights, config=config, positions=at, tap=keep))
    save_dump(tmp_path / "mine.safetensors", seen, token_ids=tokens)
    found = compare_dump(tmp_path / "mine.safetensors", reference=folder / "f16", model=folder / "model.gguf")
    assert found.verdict == "pass" and found.compared == found.of == 21, found.reason
    assert set(dump.shapes) >= {"blk.0.ffn_router", "blk.0.ffn_expert_out"}
    without = compare_dump(tmp_path / "mine.safetensors", reference=folder / "f16")
    assert without.verdict == "pass", without.reason
    seen["blk.0.ffn_weights"] = seen["blk.0.ffn_weights"][:, ::-1].copy()
    save_dump(tmp_path / "mine.safetensors", seen, token_ids=tokens)
    without = compare_dump(tmp_path / "mine.safetensors", reference=folder / "f16")
    assert without.first_wrong is not None and without.first_wrong.name == "blk.0.ffn_weights"


def test_what_is_as_right() -> None:
    router = np.array([[3.0, 2.0, 1.999, -9.0]] * 4)
    theirs = np.array([[0, 1], [0, 2], [1, 0], [0, 0]])
    assert as_right(theirs, router, 1e-3).tolist() == [True, True, False, False]
    assert as_right(theirs, router, 0.0).tolist() == [True, False, False, False]
    chosen = np.array([[0, 1]] * 4)
    assert followed(chosen, theirs, router, 1e-3).tolist() == [[0, 1], [0, 2], [0, 1], [0, 1]]
    odd = np.array([[0, 4], [0.5, 1], [np.nan, 1], [2, 1]])
    assert is_choice(odd, 4).tolist() == [False, False, False, True]
    assert len(TOKENS) == 20
