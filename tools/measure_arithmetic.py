"""Measure how far a program's declared arithmetic explains its error, type by type and point by point.

    python -m tools.measure_arithmetic record FOLDER            llama.cpp on the CPU, small seeded models
    python -m tools.measure_arithmetic record FOLDER --gpu      its CUDA program, where it is built for one
    python -m tools.measure_arithmetic explain FOLDER --profile llama.cpp-cpu [--section cpu]

`record` makes a model of each type and records llama.cpp on a few prompts, of few tokens and of many: a
program takes other kernels for these. `explain` prints for each type and point what llama.cpp is off by, how
much of that (of its square) the profile explains, and what is left; with --section it writes the table to
docs/arithmetic.json, which `make docs` packs and writes into docs/arithmetic.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llama_ckpt.arithmetic.explained import Explained, explained
from llama_ckpt.arithmetic.profiles import read_arithmetic
from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.arithmetic.rounded_oracle import rounded_oracle
from llama_ckpt.capture import Take, capture_takes
from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.making.seeded_model import Sizes, make_seeded
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import split_name
from llama_ckpt.weights.config import LlamaConfig
from tools.kept_reports import kept_report

FIGURES = Path(__file__).parents[1] / "docs" / "arithmetic.json"

TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS"),
)

SHAPE: Final[Sizes] = {"width": 512, "n_heads": 8, "n_kv_heads": 4, "ffn": 768, "n_layers": 1, "vocab": 512}
"""Rows of whole blocks of 256, grouped heads, one block: every kind of product there is."""

LENGTHS = {"cpu": (4, 70), "gpu": (1, 4, 12, 40)}
"""Tokens of the prompts. Few and many rows take other kernels, on a GPU four kinds."""

PRODUCTS = (
    "q",
    "k",
    "v",
    "attn_scores",
    "attn_context",
    "attn_out",
    "ffn_gate",
    "ffn_up",
    "ffn_out",
    "logits",
)


@dataclass(frozen=True)
class Row:
    """A type's points of one kind in one prompt, the worst block of each.

    Attributes:
        type: of the weights. tokens: of the prompt. point: the neutral name.
        error: what the program is off by. share: of its square what is explained. left: what is not.
    """

    type: str
    tokens: int
    point: str
    error: float
    share: float
    left: float


def record(folder: Path, types: tuple[str, ...], *, gpu: bool) -> None:
    """Make the models and record llama.cpp on them."""
    takes = [
        Take(
            tokens=[1 + 7 * i % (SHAPE["vocab"] - 2) for i in range(n)],
            positions_from=0 if gpu else 500,
            max_tokens=0,
            name=f"tokens-{n}",
        )
        for n in LENGTHS["gpu" if gpu else "cpu"]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for kind in types:
        model = folder / f"{kind}.gguf"
        make_seeded(model, **SHAPE, seed=3, type=kind)
        capture_takes(model, takes, out=folder / kind, n_gpu_layers=99 if gpu else 0)
        print(f"{kind}: recorded", flush=True)


def rows(folder: Path, arithmetic: Arithmetic) -> Iterator[Row]:
    """What is explained of every recording in a folder."""
    rounded = rounded_oracle(arithmetic)
    for kind in TYPES:
        if not (folder / kind / "manifest.json").is_file():
            continue
        file = open_gguf(folder / f"{kind}.gguf")
        config = LlamaConfig.from_gguf(file)
        options = {"weights": OracleWeights(file, config), "config": config}
        dumps = open_dumps(folder / kind)
        for name in dumps.names:
            dump = dumps.dump(name)
            positions = np.array(dump.entry.positions)
            worst: dict[str, Explained] = {}
            for one in explained(dump, rounded, positions=positions, **options):
                point = split_name(one.name)[1]
                if point not in worst or one.left > worst[point].left:
                    worst[point] = one
            for point, one in worst.items():
                yield Row(kind, len(positions), point, one.error, one.share, one.left)


def figures(found: list[Row]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """By type, tokens and point: the error and what is left, two digits of each."""
    made: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in found:
        if row.point in (*PRODUCTS, "q_rope", "attn_probs", "ffn_swiglu"):
            points = made.setdefault(row.type, {}).setdefault(str(row.tokens), {})
            points[row.point] = [float(f"{row.error:.1e}"), float(f"{row.left:.1e}")]
    return made


def _kept() -> dict[str, Any]:
    """What the sections were, the one not yet packed first."""
    if FIGURES.is_file():
        found: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8"))
        return found
    return kept_report(FIGURES.stem)


def main() -> None:
    """Record, or explain what was recorded."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("record", "explain"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--profile", default="llama.cpp-cpu")
    parser.add_argument("--section")
    asked = parser.parse_args()
    if asked.what == "record":
        record(asked.folder, tuple(asked.types.split(",")), gpu=asked.gpu)
        return
    found = list(rows(asked.folder, read_arithmetic(asked.profile)))
    for row in found:
        print(
            f"{row.type:8} {row.tokens:3} tokens  {row.point:13} {row.error:8.1e}"
            f"  explained {100 * row.share:8.4f} %  left {row.left:8.1e}"
        )
    if asked.section:
        sections = _kept()
        sections[asked.section] = {"profile": asked.profile, "types": figures(found)}
        lines = (f"{json.dumps(name)}: {json.dumps(section)}" for name, section in sorted(sections.items()))
        FIGURES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
