"""The measured half of docs/arithmetic.md: how far profiles explain llama.cpp, from docs/arithmetic.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llama_ckpt.report.pages import markdown_table

__all__ = ["arithmetic_tables"]

COLUMNS = {
    "q": "Q projection",
    "q_rope": "RoPE",
    "attn_scores": "scores",
    "attn_context": "context",
    "attn_out": "attention out",
    "ffn_gate": "gate",
    "ffn_out": "down",
    "logits": "logits",
}
"""A table's columns: one point of each kind."""

TITLES = {
    "cpu": "llama.cpp on the CPU, positions from 500 on",
    "cuda": "llama.cpp's CUDA program on an H200",
}

INTRODUCTION = """\
## How far profiles explain llama.cpp

Each cell: what llama.cpp is off by from the exact tensor on its own recorded inputs, and what of that is left
once its profile's roundings are made; relative distances. Models of one block, 512 wide, random weights.
Made by `python -m tools.measure_arithmetic`."""

FOUND = """\
What the tables show of llama.cpp:

- Of every type, its error at products is its arithmetic's: what is left is float32's own rounding. In CUDA's
  running sums in float16 (F16: one row, or more than 16) and where a GPU's fast division decides between two
  integers, a little more is left.
- Its CUDA program takes other arithmetic for other numbers of rows. A float32 weight is multiplied in
  float32 up to 3 rows, up to 16 in TF32 that is cut off, above in TF32 that is rounded. F16 is summed in
  float16 for one row and for more than 16, in float32 between.
- Sums of a block of activations that are kept in float16 cost as much again as the 8-bit integers: Q4_0 and
  Q5_0 up to 8 rows, Q4_1, Q5_1, Q2_K, Q4_K and Q5_K above.
- RoPE by repeated multiplication (CPU) loses with the position and the pair; by powers (CUDA) too, and there
  the fast cosine and sine of the GPU are left."""


def arithmetic_tables(sections: dict[str, Any]) -> str:
    """The tables of what was measured, in Markdown."""
    parts = [INTRODUCTION]
    for name, title in TITLES.items():
        if name in sections:
            section = sections[name]
            rows = _rows(section["types"])
            table = "\n".join(markdown_table(("type", "rows", *COLUMNS.values()), rows))
            parts.append(f"### {title}\n\nProfile `{section['profile']}`.\n\n{table}")
    return "\n\n".join([*parts, FOUND]) + "\n"


def _rows(types: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for kind, by_tokens in types.items():
        for tokens, points in by_tokens.items():
            yield kind, tokens, *(_cell(points.get(point)) for point in COLUMNS)


def _cell(numbers: list[float] | None) -> str:
    return "" if numbers is None else f"{numbers[0]:.1e} → {numbers[1]:.1e}"
