"""What the project promises of its float32: after 32 layers close to exact, and as close as llama.cpp is."""

from __future__ import annotations

import pytest

from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.ladder.climb import validate
from llama_ckpt.ladder.report import CheckpointResult
from reference_dumps import dump_folders


@pytest.fixture(scope="module")
def logits_checkpoint() -> CheckpointResult:
    return validate(["8"], device="cpu").checkpoints[0]


def test_logits_after_32_layers(logits_checkpoint: CheckpointResult) -> None:
    free = {
        (point.dump, point.verdict.shown_name): point.verdict
        for point in logits_checkpoint.points
        if point.verdict.error_kind == "total" and point.verdict.name.startswith("logits")
    }
    dumps = {
        f"{label}/{entry.name}": entry
        for label, path in dump_folders().items()
        for entry in open_dumps(path).entries
    }
    ways = {(dump, way) for dump in dumps for way in ("logits", "logits (untapped)")}
    ways |= {(dump, "logits (last row)") for dump, entry in dumps.items() if entry.last_logits_only}
    assert set(free) == ways and len(free) >= 16
    assert max(verdict.err for verdict in free.values()) <= 1e-5

    # llama.cpp's own float32 run; at far positions its angles drift, which would flatter us.
    tight = [v for (dump, _), v in free.items() if dump.startswith("f32/") and "far" not in dump]
    assert max(verdict.err for verdict in tight) <= 3 * max(verdict.err_reference for verdict in tight)


def test_far_positions_show_who_is_right() -> None:
    points = validate(["1B"], dumps=dump_folders()["f32"], device="cpu").checkpoints[0].points
    far = [p.verdict for p in points if p.dump == "f32/far-positions" and p.verdict.error_kind == "own"]
    # llama.cpp builds its angles by repeated multiplication in float32: off at position 4,000.
    assert far
    assert {verdict.blame for verdict in far} == {"reference"}
    assert {verdict.closer for verdict in far} == {"yours"}
    assert max(verdict.err for verdict in far) < 2e-7 < 1e-5 < min(verdict.err_reference for verdict in far)
