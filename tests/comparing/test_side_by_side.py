"""Several dumps side by side: who is nearest where, where they part, what cannot stand beside each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama_ckpt as lc
from llama_ckpt.comparing.side_by_side import SideBySide, labels, side_by_side
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.errors import OptionError
from llama_ckpt.judging.to_precision import to_bfloat16
from llama_ckpt.results import load_result
from tests.comparing.ported_llama import Port, prompt, seeded

TOKENS = prompt(6)


class WrongScale(Port):
    """Scores that are not scaled, in the second block alone."""

    inside = ""

    def attention(self, x: Any, weights: Any, positions: Any, at: str) -> Any:
        self.inside = at
        return super().attention(x, weights, positions, at)

    def probabilities(self, scores: Any, visible: Any) -> Any:
        wrong = self.config.head_dim**0.5 if self.inside.startswith("blk.1") else 1.0
        return super().probabilities(scores * np.float32(wrong), visible)


@pytest.fixture(scope="module")
def runs() -> dict[str, dict[str, Any]]:
    right = Port(seeded()).run(TOKENS, list(range(6)))
    wrong = WrongScale(seeded()).run(TOKENS, list(range(6)))
    return {"right": right, "wrong": wrong, "half": {name: to_bfloat16(x) for name, x in right.items()}}


@pytest.fixture(scope="module")
def files(runs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dumps")
    found = {}
    for name, tensors in runs.items():
        found[name] = folder / f"{name}.safetensors"
        save_dump(found[name], tensors, token_ids=TOKENS, positions=range(6))
    return found


@pytest.fixture(scope="module")
def found(files: dict[str, Path]) -> SideBySide:
    return side_by_side([files["right"], files["wrong"]], model=seeded())


def test_it_says_who_passes_and_where_they_part(found: SideBySide) -> None:
    said = "right passes; wrong fails; they part at blk.1.attn_probs, where wrong is off"
    assert (found.reason, found.verdict, found.exit_code, found.passed) == (said, "fail", 1, False)
    assert repr(found) == f"<SideBySide fail: {said}>"
    parted = found.parting
    assert parted is not None and parted.nearest == ("right",) and parted.error_kind == "own"


def test_what_is_made_of_a_wrong_point_by_itself_is_alike(found: SideBySide) -> None:
    by_name = {one.name: one for one in found.points}
    assert by_name["blk.0.attn_probs"].nearest == ()
    assert by_name["blk.1.attn_context"].nearest == (), "its own error is made on what each of them recorded"
    assert by_name["blk.1.attn_context"].made == ("", "inherited")


def test_a_coarser_one_is_not_the_nearest(runs: dict[str, Any]) -> None:
    half = lc.compare(runs["half"], token_ids=TOKENS, model=seeded(), dtype="bfloat16")
    right = lc.compare(runs["right"], token_ids=TOKENS, model=seeded())
    found = side_by_side({"float32": right, "bfloat16": half})
    products = [one for one in found.points if one.point in ("q", "ffn_gate", "out")]
    assert products and all(one.nearest == ("float32",) for one in products)


def test_without_a_wrong_one_it_says_who_is_nearest_at_the_end(files: dict[str, Path]) -> None:
    found = side_by_side([files["right"], files["right"]], model=seeded())
    assert found.reason == "1: right and 2: right pass" and found.passed and found.parting is None


def test_points_that_one_lacks_are_judged_in_total(runs: dict[str, Any]) -> None:
    few = {name: x for name, x in runs["right"].items() if name.endswith(".out") or name == "logits"}
    one, other = (lc.compare(tensors, token_ids=TOKENS, model=seeded()) for tensors in (runs["right"], few))
    found = side_by_side({"all": one, "few": other})
    by_name = {point.name: point for point in found.points}
    assert by_name["blk.1.out"].error_kind == "total" and by_name["blk.0.q"].made == ("", None)
    assert by_name["blk.0.q"].nearest == ()


def test_it_is_saved_and_read(found: SideBySide, tmp_path: Path) -> None:
    found.save(tmp_path / "found.json")
    read = load_result(tmp_path / "found.json")
    assert read.to_dict() == found.to_dict() and read.exit_code == 1 and not read
    assert read.to_html() == found.to_html() and read._repr_html_() == found._repr_html_()
    assert {row["dump"] for row in read.to_rows()} == {"right", "wrong"}


def test_what_is_not_of_one_run_is_refused(
    runs: dict[str, Any], files: dict[str, Path], found: SideBySide, tmp_path: Path
) -> None:
    other, weights = tmp_path / "other.safetensors", tmp_path / "weights.safetensors"
    save_dump(other, runs["right"], token_ids=[*TOKENS[:-1], TOKENS[-1] + 1])
    save_dump(weights, runs["right"], token_ids=TOKENS, weights_sha256="0" * 64)
    declared = tmp_path / "declared.safetensors"
    save_dump(declared, runs["right"], token_ids=TOKENS, weights_sha256="1" * 64)
    for dumps, said in (
        ([files["right"], other], "other: got other tokens than right, wanted dumps of one prompt and model"),
        (
            [weights, declared],
            "declared: got other weights than weights, wanted dumps of one prompt and model",
        ),
        ([files["right"]], "side by side: got 1 dumps, wanted 2 to 26"),
        ({"a": found, "b": files["right"]}, "a: got another report, wanted the comparison of a dump"),
    ):
        with pytest.raises(OptionError) as refused:
            side_by_side(dumps, model=seeded())  # type: ignore[arg-type]
        assert str(refused.value).startswith(said) and len(str(refused.value).splitlines()) == 1


def test_of_another_model_is_refused(runs: dict[str, Any]) -> None:
    one = lc.compare(runs["right"], token_ids=TOKENS, model=seeded())
    other = lc.compare(runs["right"], token_ids=TOKENS, model=seeded())
    assert other.model is not None
    with pytest.raises(OptionError, match="b: got other model than a"):
        side_by_side({"a": one, "b": replace(other, model={**other.model, "n_layers": 7})})


def test_labels_are_as_short_as_tells_them_apart() -> None:
    assert labels(["a/x.safetensors", "b/y.safetensors"]) == ["x", "y"]
    assert labels(["a/x.safetensors", "b/x.safetensors"]) == ["a/x", "b/x"]
    assert labels(["x.safetensors", "x.safetensors"]) == ["1: x", "2: x"]
