"""The example of two processes: right, and broken in each of its ways, it is judged as it should be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import llama_ckpt as lc
from llama_ckpt.comparing.comparison import Comparison
from tests.comparing.ported_llama import seeded
from tests.draws import draws

EXAMPLE = Path(__file__).parents[2] / "examples" / "two_ranks.py"
BROKEN = {
    "reduction": ("blk.0.ffn_inp", (0, 1), "every rank adds its own part alone"),
    "fused": ("blk.0.q", (1,), "rank 1 has a piece of the fused QKV"),
    "twice": ("blk.0.ffn_inp", (0, 1), "2 times the sum over ranks"),
    "residual": ("blk.0.ffn_inp", (0, 1), "the residual in the sum, added on every rank"),
    "rank": ("blk.0.q", (1,), "rank 1 has the shard of rank 0"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    lc.export_weights(seeded(vocab=15360, n_layers=2), path)
    return path


def compared(weights: Path, out: Path, *broken: str) -> Comparison:
    command = [sys.executable, str(EXAMPLE), str(weights), str(out), *broken]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [out / "rank0.safetensors", out / "rank1.safetensors"]
    return lc.compare(ranks=ranks, model=seeded(vocab=15360, n_layers=2))


def test_two_processes_pass(weights: Path, tmp_path: Path) -> None:
    report = compared(weights, tmp_path)
    assert report.verdict == "pass", report.reason
    assert report.compared == report.of == 3 + 17 * 2


@pytest.mark.parametrize("broken", list(BROKEN)[: draws(1, 5)])
def test_two_processes_broken_are_named(weights: Path, tmp_path: Path, broken: str) -> None:
    report = compared(weights, tmp_path, "--broken", broken)
    at, ranks, said = BROKEN[broken]
    assert report.first_wrong is not None and report.first_wrong.name == at
    assert tuple(one.rank for one in report.ranks if one.verdict == "fail") == ranks
    assert said in report.reason
