"""Dumps that keep the last token's logits alone: all that a long prompt needs, and no less judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import llama_ckpt as lc
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.dumps.manifest import DumpEntry
from llama_ckpt.dumps.reference import keep_last_row, open_dumps, write_dump
from llama_ckpt.errors import DumpError
from llama_ckpt.judging.verdict import PointVerdict
from reference_dumps import dump_folder

NAME = "sixty-four-tokens"
RECORDED = open_dumps(dump_folder("f32"))


def written(folder: Path, changes: Mapping[str, Any] | None = None, **fields: Any) -> Path:
    """A folder with that dump alone, some of its tensors and fields changed."""
    tensors = load_file(RECORDED.path / RECORDED.entry(NAME).file) | dict(changes or {})
    entry = replace(RECORDED.entry(NAME), **fields)
    write_dump(
        folder,
        model=RECORDED.manifest.model,
        producer=RECORDED.manifest.producer,
        entry=entry,
        tensors=tensors,
    )
    return folder


def verdicts(id: str, dumps: Path, model: Path) -> list[PointVerdict]:
    """What a checkpoint says of every point of the dump."""
    (checkpoint,) = lc.validate(id, model=model, dumps=dumps, device="cpu").checkpoints
    return [point.verdict for point in checkpoint.points]


def test_it_holds_the_last_row_and_says_so() -> None:
    dump = RECORDED.dump(NAME)
    assert "logits" not in dump and "last_logits" in dump and dump.vocab_size == 32000
    assert dump["output_norm"].shape == (64, 64)
    entries = json.loads((RECORDED.path / "manifest.json").read_text())["dumps"]
    assert [entry["name"] for entry in entries if entry.get("last_logits_only")] == [
        "eight-tokens",
        "one-token",
        "two-tokens",
        "far-positions",
        NAME,
    ]


def test_logits_beside_them_are_left_over(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="does not name"):
        written(tmp_path / "dumps", {"logits": np.ones((64, 32000), np.float32)})


def test_its_last_row_can_be_kept_alone(tmp_path: Path) -> None:
    keep_last_row(RECORDED, NAME, tmp_path, blocks=(0, 31), points=("out",))
    kept, whole = open_dumps(tmp_path).dump(NAME), RECORDED.dump(NAME)
    np.testing.assert_array_equal(kept["logits"], whole["last_logits"][None])
    np.testing.assert_array_equal(kept["blk.31.out"], whole["blk.31.out"][-1:])


def test_the_last_row_of_everything_and_of_the_logits_alone_is_a_contradiction(tmp_path: Path) -> None:
    both: DumpEntry = replace(RECORDED.entry(NAME), last_row=True)
    with pytest.raises(DumpError, match="last_row and last_logits_only, wanted one of them"):
        write_dump(
            tmp_path,
            model=RECORDED.manifest.model,
            producer=RECORDED.manifest.producer,
            entry=both,
            tensors={},
        )


def test_a_last_row_that_another_program_made_is_blamed(tmp_path: Path, embedded_model: Path) -> None:
    wrong = RECORDED.dump(NAME)["last_logits"] * np.float32(1.1)
    found = verdicts("8", written(tmp_path / "dumps", {"last_logits": wrong}), embedded_model)
    off = {verdict.shown_name: verdict.blame for verdict in found if verdict.err_reference > 0.05}
    assert off == {"logits (last row)": "reference"}
    assert {verdict.verdict for verdict in found} == {"pass"}


def test_the_choice_after_every_row_is_held_against_the_recorded_one(
    tmp_path: Path, embedded_model: Path
) -> None:
    """Those of 63 rows too whose logits were not kept."""
    chosen = list(RECORDED.entry(NAME).greedy_tokens)
    chosen[5] += 1
    found = verdicts("10", written(tmp_path / "dumps", greedy_tokens=tuple(chosen)), embedded_model)
    assert [verdict.n_judged for verdict in found if verdict.error_kind == "total"] == [64]
    assert [verdict.n_differ for verdict in found if verdict.error_kind == "total"] == [1]
    assert [verdict.blame for verdict in found if verdict.error_kind == "total"] == ["reference"]


@pytest.fixture(scope="module")
def ours(embedded_model: Path) -> dict[str, Any]:
    """Our layers' own run of the 64 tokens, every point."""
    model = lc.load(embedded_model, device="cpu")
    seen: dict[str, Any] = {}
    seen["logits"] = model.logits(RECORDED.entry(NAME).token_ids, tap=seen.__setitem__)
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in seen.items()}


@pytest.mark.parametrize("row", [None, 0, 63])
def test_a_whole_dump_is_compared_with_it(row: int | None, ours: dict[str, Any], tmp_path: Path) -> None:
    """Its rows of logits for which nothing was recorded, too: by the oracle."""
    tensors = dict(ours)
    if row is not None:
        tensors["logits"] = ours["logits"].copy()
        tensors["logits"][row] *= np.float32(1.01)
    metadata = {"token_ids": ",".join(map(str, RECORDED.entry(NAME).token_ids))}
    save_file(tensors, tmp_path / "ours.safetensors", metadata)
    report = compare_dump(tmp_path / "ours.safetensors")
    assert report.reference is not None and report.reference["dump"] == NAME
    failed = [point.name for point in report.points if point.verdict == "fail"]
    assert failed == ([] if row is None else ["logits"])


def test_without_a_model_what_was_not_recorded_is_not_judged_and_the_report_says_so(
    ours: dict[str, Any], tmp_path: Path
) -> None:
    metadata = {"token_ids": ",".join(map(str, RECORDED.entry(NAME).token_ids))}
    save_file(ours, tmp_path / "ours.safetensors", metadata)
    report = compare_dump(tmp_path / "ours.safetensors", reference=RECORDED.path)
    judged = {point.name for point in report.points}
    assert report.verdict == "pass" and "output_norm" in judged and "blk.15.attn_probs" in judged
    assert not judged & {"logits", "blk.14.attn_norm"} and report.compared == len(judged)
    assert [line for line in report.cannot_tell if "the last token's logits alone" in line]
    document = report.to_json()
    assert [point["name"] for point in document["points"]] == [point.name for point in report.points]
