"""Dumps that hold a few points: between which of them an error is made, by the sentence that is printed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.comparing.nearest import DataFlow
from llama_ckpt.diagnose.bugs import catalogue
from llama_ckpt.report.comparison import comparison_lines
from llama_ckpt.report.html import page
from llama_ckpt.report.junit import junit
from tests.comparing.their_programs import EIGHT, HELLO, N_LAYERS, Tensors, bug, model, right_run, run, write


def shown(report: Comparison) -> str:
    return "\n".join("".join(part for part, _ in line) for line in comparison_lines(report, verbose=False))


def only(tensors: Tensors, *endings: str) -> Tensors:
    """Those whose names are, or end in, one of these."""
    return {name: x for name, x in tensors.items() if name.endswith(endings)}


@pytest.fixture(scope="module")
def wrong() -> Tensors:
    """A program whose block 13 alone is wrong: ReLU in SiLU's place."""
    return run(wrong=bug("ffn-relu"), blocks=[13])


def test_logits_alone(wrong: Tensors, tmp_path: Path) -> None:
    report = compare_dump(write(tmp_path, only(wrong, "logits")))
    text = shown(report)
    assert "first wrong    logits  made between the tokens and logits" in text
    assert "next           record blk.15.out next" in text and "inputs are right" not in text
    assert "missing" not in text and "own   " not in text, "complete of its kind, and no strip to draw"
    assert (report.exit_code, report.compared, report.of, len(report.skipped)) == (1, 1, 1, 546)


def test_two_ends_of_blocks(wrong: Tensors, tmp_path: Path) -> None:
    report = compare_dump(write(tmp_path, only(wrong, "blk.5.out", "blk.20.out")))
    text = shown(report)
    assert "first wrong    blk.20.out  made between blk.5.out and blk.20.out" in text
    assert "next           record blk.12.out next" in text
    assert "next           llama-ckpt explain block   # what people get wrong there" in text
    cells = {line[:15].strip(): line[15:] for line in text.splitlines()}
    for row in ("own", "inherited", "total"):
        assert [i for i, cell in enumerate(cells[row]) if cell != " "] == [5, 20], row
    record = report.to_json()
    assert record["made"] == "between" and record["record_next"] == "blk.12.out"
    assert record["between"]["from"] == ["blk.5.out"] and record["between"]["to"] == "blk.20.out"
    assert not record["between"]["from_tokens"] and "between blk.5.out and blk.20.out" in page(record)
    assert record["between"]["unseen"][0] == "blk.6.attn_norm"
    assert len(record["between"]["unseen"]) == 15 * 17 - 1
    assert record["points"][1]["computed_from"] == ["blk.5.out"] and len(record["skipped"]) == 545
    assert record["layers"][12]["own"] is None and record["layers"][20]["own"] > 0.01
    assert 'message="not recorded"' in junit(record)


def test_following_the_advice_ends_at_the_step(wrong: Tensors, tmp_path: Path) -> None:
    """What is recorded next, one point after the other, leads to the wrong step in a few dumps."""
    names, told = ["blk.5.out", "blk.20.out"], []
    while len(names) < 12:
        report = compare_dump(write(tmp_path, only(wrong, *names)), partial=True)
        assert report.first_wrong is not None
        told.append(report.first_wrong.where)
        if report.record_next is None:
            break
        names.append(report.record_next)
    assert (report.first_wrong.name, report.first_wrong.made) == ("blk.13.ffn_swiglu", "here")
    assert told[:2] == ["made between blk.5.out and blk.20.out", "made between blk.12.out and blk.20.out"]
    assert len(names) <= 11, names


def test_norms_and_ends(wrong: Tensors, tmp_path: Path) -> None:
    report = compare_dump(write(tmp_path, only(wrong, "_norm", ".out", "logits")))
    text = shown(report)
    nearest = "blk.12.out, blk.13.attn_norm, blk.13.ffn_norm and blk.13.out"
    assert f"first wrong    blk.13.out  made between {nearest}" in text
    assert "looks like     ReLU stands for SiLU" in text and "missing" not in text
    assert "record blk.13.ffn_" in text, "a right ffn_norm tells that attention is right"


def test_the_last_row_of_logits_by_either_name(wrong: Tensors, tmp_path: Path) -> None:
    last = wrong["logits"][-1]
    for tensors in (
        {"logits": last[None]},
        {"logits": last},
        {"last_logits": last},
        {"last_logits": last[None]},
    ):
        report = compare_dump(write(tmp_path, tensors))
        assert "logits  made between the tokens and logits" in shown(report)
        assert not report.findings and [token.row for token in report.tokens] == [1]
    right = right_run()["logits"][-1]
    for tensors in ({"logits": right[None]}, {"last_logits": right}):
        report = compare_dump(write(tmp_path, tensors))
        assert (report.verdict, report.compared, report.of) == ("pass", 1, 1), report.reason
        total = report.points[0].total
        assert total is not None and total.variant == "last row" and total.err_reference < 1e-5


@pytest.mark.parametrize(
    "endings",
    [("logits",), (".out",), ("blk.5.out", "blk.20.out"), ("_norm", ".out", "logits"), ("blk.3.out",)],
)
def test_a_right_program_passes_whatever_of_its_ends_it_shows(
    endings: tuple[str, ...], tmp_path: Path
) -> None:
    report = compare_dump(write(tmp_path, only(dict(right_run()), *endings)))
    assert report.exit_code == 0, report.reason
    assert report.compared == report.of and "the others are not judged" in shown(report)


def test_declared_blocks_count(tmp_path: Path) -> None:
    """Two ends were to be recorded, and one is there."""
    path = tmp_path / "theirs.safetensors"
    facts = {"token_ids": "1,15043", "blocks": "5 20"}
    save_file({"blk.5.out": right_run()["blk.5.out"]}, path, facts)
    report = compare_dump(path)
    assert [one.message for one in report.findings] == ["blk.20.out is missing"] and report.of == 2
    save_file(only(dict(right_run()), "blk.5.out", "blk.20.out"), path, facts)
    assert compare_dump(path).verdict == "pass"


def test_a_prompt_that_no_recording_has(tmp_path: Path) -> None:
    tokens = (1, 306, 4658, 278, 6593)
    facts = {"token_ids": tokens, "positions": range(5)}
    report = compare_dump(write(tmp_path, run(tokens), **facts))
    text = shown(report)
    assert report.exit_code == 0 and not report.findings, report.reason
    assert "has these tokens: the exact run alone judges, and llama.cpp is not compared" in text
    assert "--tokens 1,306,4658,278,6593 --out dumps   # records llama.cpp on this prompt" in text
    report = compare_dump(write(tmp_path, run(tokens, wrong=bug("rope-half-split")), **facts))
    assert report.exit_code == 1 and "blk.0.q_rope  made here" in shown(report)


def test_two_bugs_in_one_block_are_both_named(tmp_path: Path) -> None:
    """A scale forgotten in attention, and gate and up swapped, in block 4 alone."""
    bugs = {one.name: one for one in catalogue()}
    both = bugs["ffn-gate-up-swapped"].over(bugs["attention-scale-missing"].oracle)
    tensors = run(EIGHT, wrong=both, blocks=[4])
    report = compare_dump(write(tmp_path, tensors, token_ids=EIGHT, positions=range(8)))
    assert [found.named[0].name for found in report.diagnoses] == [
        "attention-scale-missing",
        "ffn-gate-up-swapped",
    ]
    made = [point.name for point in report.points if point.made == "here"]
    assert made == ["blk.4.attn_probs", "blk.4.ffn_gate", "blk.4.ffn_up"]


def test_what_is_behind_a_wrong_gate_has_inherited(tmp_path: Path) -> None:
    """A gate that is wrong, and right steps from there on."""
    _, weights = model()
    tensors = run(EIGHT, wrong=bug("ffn-relu"), blocks=[])
    block, x = weights.blocks[4], tensors["blk.4.ffn_norm"].astype(np.float64)
    gate = 1.5 * (x @ block.w_gate.T)
    up = x @ block.w_up.T
    swiglu = gate / (1 + np.exp(-gate)) * up
    theirs = {"ffn_gate": gate, "ffn_swiglu": swiglu, "ffn_out": swiglu @ block.w_down.T}
    theirs["out"] = tensors["blk.4.ffn_inp"] + theirs["ffn_out"]
    kept = {name: x for name, x in tensors.items() if name.startswith(tuple(f"blk.{n}." for n in range(5)))}
    kept |= {f"blk.4.{point}": np.float32(array) for point, array in theirs.items()}
    report = compare_dump(write(tmp_path, kept, token_ids=EIGHT, positions=range(8)), partial=True)
    made = {point.name: point.made for point in report.points if point.made}
    assert made == {
        "blk.4.ffn_gate": "here",
        "blk.4.ffn_swiglu": "inherited",
        "blk.4.ffn_out": "inherited",
        "blk.4.out": "inherited",
    }


def test_what_follows_a_nan_is_inherited(tmp_path: Path) -> None:
    tensors = dict(right_run())
    tensors["blk.30.ffn_out"] = tensors["blk.30.ffn_out"].copy()
    tensors["blk.30.ffn_out"][1, 5] = np.nan
    after = DataFlow(N_LAYERS).names
    for name in after[after.index("blk.30.out") :]:
        tensors[name] = np.full_like(tensors[name], np.nan)
    report = compare_dump(write(tmp_path, tensors))
    assert [point.name for point in report.points if point.made == "here"] == ["blk.30.ffn_out"]


def test_what_to_record_next_halves_what_is_left() -> None:
    flow = DataFlow(N_LAYERS)
    since = flow.nearest("logits", set())
    assert since.sources == ("the tokens",) and len(since.unseen) == 547
    assert flow.record_next(since.unseen) == "blk.15.out"
    since = flow.nearest("blk.13.out", {"blk.12.out"})
    assert since.sources == ("blk.12.out",) and flow.record_next(since.unseen) == "blk.13.attn_context"
    since = flow.nearest("blk.3.q", {"blk.3.attn_norm"})
    assert since.unseen == ("blk.3.q",) and flow.record_next(since.unseen) is None


def test_tokens_of_the_embedded_recordings_are_still_compared(tmp_path: Path) -> None:
    report = compare_dump(write(tmp_path, only(dict(right_run()), ".out"), token_ids=HELLO))
    assert report.reference is not None and report.reference["dump"] == "hello"
