"""How the cost of a validation grows: with a model's blocks, and with a prompt's rows.

    python -m tools.measure_growth --out docs/performance_growth.svg

Blocks are of TinyLlama's shape in Q8_0, from a seed. Processor seconds of one thread: what else runs on the
machine changes them by some per cent, where it changes seconds by half. Blocks: `validate --oracle-only` of
whole models. Rows: one block of the oracle, of the layers, and what rounding may leave in it. Each is told
with the straight line through it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

BLOCKS = (1, 2, 4)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 300)

VALIDATE = """
import sys, time
from llama_ckpt.ladder.climb import validate
began = time.process_time()
assert validate(model=sys.argv[1], device="cpu", oracle_only=True).exit_code == 0
print(time.process_time() - began)
"""


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the figure, SVG")
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch:
        files = [_model(Path(scratch), blocks) for blocks in BLOCKS]
        by_blocks = [_validated(file) for file in files]
        by_rows = _rows(files[0])
    panels = [
        _panel(BLOCKS, by_blocks, "blocks of TinyLlama's shape, Q8_0", "validate --oracle-only", 0),
        _panel(ROWS, by_rows, "rows of one block", "oracle, layers and what rounding may leave", 330),
    ]
    size = 'viewBox="0 0 660 260" font-family="sans-serif" font-size="11" fill="#555"'
    out.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(panels)}</svg>\n', "utf-8")


def _model(folder: Path, blocks: int) -> Path:
    from llama_ckpt.making.seeded_model import make_seeded

    return make_seeded(folder / f"{blocks}.gguf", shape="tinyllama-1.1b", type="Q8_0", n_layers=blocks).path


def _validated(path: Path) -> float:
    done = subprocess.run(
        [sys.executable, "-c", VALIDATE, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return float(done.stdout.split()[-1])


def _rows(path: Path) -> list[float]:
    """Processor seconds of everything that checkpoint 8 asks of one block, by number of rows."""
    import torch

    from checkpoints.c07_block import block
    from llama_ckpt.judging.rounding import case_spreads
    from llama_ckpt.model import load
    from llama_ckpt.oracle import llama as oracle
    from llama_ckpt.oracle.on_cpu import HostOracleWeights
    from llama_ckpt.weights.unpacking import unpacked_by_block

    torch.set_num_threads(1)
    model = load(path, device="cpu")
    shared = unpacked_by_block(model.weights, 1 << 40)
    weights = HostOracleWeights(model.file, model.config, model.weights, shared).blocks[0]
    found = []
    for n in ROWS:
        x = np.random.default_rng(n).standard_normal((n, model.config.width))
        at = {"config": model.config, "positions": np.arange(n)}
        best = float("inf")
        for _ in range(2):
            began = time.process_time()
            steps: dict[str, np.ndarray] = {}
            steps["out"] = oracle.block(x, weights, **at, tap=steps.__setitem__)
            case_spreads("block", {"x": x, "weights": weights, **at}, steps, "float32", exact_angles=True)
            with torch.inference_mode():
                positions = torch.arange(n)
                block(torch.from_numpy(x).float(), shared.blocks[0], config=model.config, positions=positions)
            best = min(best, time.process_time() - began)
        found.append(best)
    return found


def _panel(xs: Sequence[int], ys: Sequence[float], across: str, title: str, left: int) -> str:
    """Points and the line through them, and the same in words on standard output."""
    slope, start = np.polyfit(xs, ys, 1)
    line = f"{start:.3g} s + {slope:.3g} s each"
    print(f"{title}, {across}: {line}")
    print("  " + ", ".join(f"{x}: {y:.3g}" for x, y in zip(xs, ys, strict=True)))
    most = max(*ys, start + slope * xs[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        return left + 40 + 270 * x / xs[-1], 220 - 180 * y / most

    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#2a6fb0"/>' for x, y in map(place, xs, ys))
    (x0, y0), (x1, y1) = place(0, start), place(xs[-1], start + slope * xs[-1])
    ticks = "".join(
        f'<text x="{place(x, 0)[0]:.1f}" y="234" text-anchor="middle">{x}</text>' for x in (0, *xs[-3:])
    )
    return (
        f'<text x="{left + 40}" y="16" fill="#222">{escape(title)}</text>'
        f'<text x="{left + 40}" y="31">{escape(line)}</text>'
        f'<path d="M{left + 40} 40V220H{left + 310}" fill="none" stroke="#999"/>'
        f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="#c0603a"/>{dots}{ticks}'
        f'<text x="{left + 36}" y="46" text-anchor="end">{most:.3g} s</text>'
        f'<text x="{left + 175}" y="250" text-anchor="middle">{escape(across)}</text>'
    )


if __name__ == "__main__":
    main()
