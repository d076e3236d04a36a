"""Dumps of the last row alone: small enough for a full-size model, and still telling."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import llama_ckpt as lc
import reference_dumps
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.dumps.reference import keep_last_row, open_dumps, write_dump
from llama_ckpt.errors import DumpError
from llama_ckpt.making.seeded_model import KNOWN_SHA256
from reference_dumps import dump_folder

BLOCKS, POINTS = (0, 15, 31), ("q_rope", "k_rope", "attn_out", "ffn_out", "out")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    keep_last_row(open_dumps(dump_folder("f16")), "hello", tmp_path / "kept", blocks=BLOCKS, points=POINTS)
    return tmp_path / "kept"


def test_it_holds_that_row_and_no_more(kept: Path) -> None:
    whole, small = (open_dumps(folder).dump("hello") for folder in (dump_folder("f16"), kept))
    assert set(small) == {"embd", "output_norm", "logits"} | {f"blk.{b}.{p}" for b in BLOCKS for p in POINTS}
    for name, row in small.items():
        np.testing.assert_array_equal(row, whole[name][-1:])
    assert small.vocab_size == whole.vocab_size
    assert json.loads((kept / "manifest.json").read_text())["dumps"][0]["last_row"] is True
    assert "last_row" not in (dump_folder("f16") / "manifest.json").read_text()


def test_the_ladder_is_climbed_on_it(kept: Path, embedded_model: Path) -> None:
    report = lc.validate(["0", "1B", "3", "6", "8", "12"], model=embedded_model, dumps=kept, device="cpu")
    assert report.exit_code == 0, [c.reason for c in report.checkpoints]
    rows = [p.verdict for c in report.checkpoints for p in c.points if p.verdict.variant == "last row"]
    assert {row.name for row in rows} == set(open_dumps(kept).dump("hello"))
    assert all(row.err_reference > 0 for row in rows if not row.name.startswith("embd"))


def test_a_row_that_another_program_made_is_blamed(kept: Path, embedded_model: Path) -> None:
    entry = open_dumps(kept).entry("hello")
    dump = dict(open_dumps(kept).dump("hello"))
    dump["blk.15.attn_out"] = dump["blk.15.attn_out"] * np.float32(1.1)
    manifest = open_dumps(kept).manifest
    write_dump(kept, model=manifest.model, producer=manifest.producer, entry=entry, tensors=dump)
    report = lc.validate("3", model=embedded_model, dumps=kept, device="cpu")
    off = {p.verdict.shown_name for p in report.checkpoints[0].points if p.verdict.err_reference > 0.05}
    assert off == {"blk.15.attn_out (last row)"}
    (verdict,) = (p.verdict for p in report.checkpoints[0].points if p.verdict.shown_name in off)
    assert verdict.blame == "reference"


def test_a_comparison_wants_a_whole_dump(kept: Path, embedded_model: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.safetensors"
    save_file(
        {name: np.ascontiguousarray(row) for name, row in open_dumps(kept).dump("hello").items()}, theirs
    )
    with pytest.raises(DumpError, match="the last token's row alone"):
        compare_dump(theirs, reference=kept, model=embedded_model)


def test_the_full_size_dump_is_whole_and_small() -> None:
    folder = Path(reference_dumps.__file__).parent / "llama-2-7b" / "f16"
    dumps = open_dumps(folder)
    assert dumps.manifest.model.sha256 == KNOWN_SHA256["llama-2-7b", 1, "F16"]
    (entry,) = dumps.entries
    assert entry.last_row
    assert entry.blocks == (0, 15, 31)
    dump = dumps.dump(entry.name)
    rows = {name: dump[name] for name in dump}  # reading checks that all is finite
    assert rows["blk.31.out"].shape == (1, 4096)
    assert int(rows["logits"][0].argmax()) == entry.greedy_tokens[-1]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_000_000
