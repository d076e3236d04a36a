"""What may be kept of a large model: as much as the system has to spare, and no more in a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_ckpt import spare_memory
from llama_ckpt.ladder.subject import Subject
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.model import load
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.spare_memory import spare_bytes
from llama_ckpt.weights.quants import PackedWeight

MEMINFO = "MemTotal:       100 kB\nMemFree:          1 kB\nMemAvailable:    40 kB\n"


@pytest.mark.parametrize(
    ("most", "current", "wanted"),
    [("max", "0", 40 << 10), ("20480", "4096", 16384), ("4096", "8192", 0), (None, None, 40 << 10)],
)
def test_a_container_may_take_less(
    most: str | None, current: str | None, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    for name, text in (("memory.max", most), ("memory.current", current)):
        if text is not None:
            (tmp_path / name).write_text(text)
    monkeypatch.setattr(spare_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(spare_memory, "_CGROUP", tmp_path)
    assert spare_bytes() == wanted


def test_a_system_that_does_not_tell_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_memory, "_MEMINFO", tmp_path / "meminfo")
    assert spare_bytes() == 0


def subject(folder: Path) -> Subject:
    shape = {"width": 64, "n_heads": 4, "ffn": 96, "n_layers": 2, "vocab": 300}
    path = make_seeded(folder / "m.gguf", type="Q8_0", seed=1, **shape).path
    model = load(path, device="cpu")
    return Subject("one", model, OracleWeights(model.file, model.config), ())


@pytest.mark.parametrize(("spare", "packed"), [(1 << 40, False), (0, True)])
def test_a_large_models_matrices_are_made_once_where_they_fit(
    spare: int, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_ckpt.ladder.subject.UNPACKED_BYTES", 0)
    monkeypatch.setattr("llama_ckpt.ladder.subject.spare_bytes", lambda: spare)
    one = subject(tmp_path)
    assert isinstance(one.at_work.weights.blocks[0].wq, PackedWeight) is packed
    assert one.at_work is one.writing


def test_a_small_model_is_tried_as_it_lies_in_the_file(tmp_path: Path) -> None:
    one = subject(tmp_path)
    assert isinstance(one.at_work.weights.blocks[0].wq, PackedWeight)
    assert not isinstance(one.writing.weights.blocks[0].wq, PackedWeight)


def test_the_oracle_keeps_blocks_that_fit(tmp_path: Path) -> None:
    file, config = (one := subject(tmp_path).model).file, one.config
    kept, made_anew = OracleWeights(file, config), OracleWeights(file, config, kept_bytes=0)
    assert kept.blocks[0] is kept.blocks[0]
    assert made_anew.blocks[0] is not made_anew.blocks[0]
    last = OracleWeights(file, config, kept_bytes=0, keep_last=True)
    first = last.blocks[0]
    assert last.blocks[0] is first
    assert last.blocks[1] is not None
    assert last.blocks[0] is not first
