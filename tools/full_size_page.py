"""The page on a model at full size: how far from exact every point is, ours and llama.cpp's.

Made from the JSON of `tools/validate_full_size.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["full_size_page"]

PROGRAMS = ("float32", "high", "fast", "llama.cpp")

TITLES = {"llama-2-7b": "Llama-2-7B", "llama-3.1-8b": "Llama-3.1-8B"}
COMMANDS = {
    "llama-2-7b": "make validate-7b",
    "llama-3.1-8b": "python -m tools.validate_full_size --shape llama-3.1-8b --vocabulary FILE --type TYPE",
}

ABOUT = {
    "llama-3.1-8b": """
32 heads share 8 key and value heads, RoPE's frequencies have the divisors of `rope_freqs.weight`, the
vocabulary is Llama 3's own, and the context ends at 131,072.
"""
}

INTRO = """# {title} at full size

Seeded weights in the shape of {title}, 32 layers, validated on {gpu} by
`{command}` in {seconds:.0f} s: prompts of
2, 16 and 300 tokens, 16 tokens at the context's end, and 64 of llama.cpp's greedy tokens in one pass.
Every figure is the largest relative error ‖x − o‖/‖o‖ against the float64 oracle over those five
recordings.
{about}
An error is *own* where the program is fed with recorded inputs, *total* where it runs by itself from the
tokens.

- **float32**: the layers here, TF32 off. An own error is that of one layer.
- **high**, **fast**: the engine's fused kernels. An own error is that of the block up to there.
- **llama.cpp**: {producer} on the same GPU, with a float32 KV cache and without flash attention;
  for its own errors fed from its own recording, as the layers are.

"""


def full_size_page(found: Mapping[str, Any]) -> str:
    """The page's text."""
    types = [one for one in found["types"] if "error" not in one]
    first = types[0]
    shape = found.get("shape", "llama-2-7b")
    intro = INTRO.format(
        title=TITLES[shape],
        command=COMMANDS[shape],
        about=ABOUT.get(shape, ""),
        gpu=first["gpu"],
        seconds=found["seconds"],
        producer=first["producer"],
    )
    notes = [f"- {note}" for note in found.get("notes", ())]
    return (
        intro + "\n".join([*_summary(types), *notes, *(line for one in types for line in _type(one))]) + "\n"
    )


def _summary(types: list[Mapping[str, Any]]) -> Iterator[str]:
    yield "## Logits of 16 tokens, total errors\n"
    yield "| | " + " | ".join(PROGRAMS) + " | checkpoints that pass: float32, high, fast |"
    yield "| --- |" + " --- |" * (len(PROGRAMS) + 1)
    for one in types:
        errors = [_number(one["logits_16_tokens"].get(program)) for program in PROGRAMS]
        passed = [_passed(one["verdicts"][program]) for program in PROGRAMS[:3]]
        yield f"| {one['type']} | " + " | ".join(errors) + " | " + ", ".join(passed) + " |"
    yield ""
    yield "Checkpoint 1 is not observable in the engine, whose norms never leave registers; it counts as"
    yield "judged by what comes after it.\n"


def _passed(verdicts: Mapping[str, str]) -> str:
    return f"{sum(one in ('pass', 'hidden') for one in verdicts.values())} of {len(verdicts)}"


def _type(one: Mapping[str, Any]) -> Iterator[str]:
    """The table of one file type."""
    took = sum(one["seconds"].values())
    yield f"\n## {one['type']}\n"
    memory = f"{one['peak_gpu_gb']:.0f} GB of GPU memory and {one['peak_host_gb']:.0f} GB of the host's"
    yield f"{took:.0f} s, up to {memory}.\n"
    heads = [f"{program}, {error_kind}" for error_kind in ("own", "total") for program in PROGRAMS]
    yield "| checkpoint | point | " + " | ".join(heads) + " |"
    yield "| --- | --- |" + " --- |" * len(heads)
    for name, row in one["errors"].items():
        checkpoint, _, point = name.partition(" ")
        cells = [_number(row.get(f"{p} {error_kind}")) for error_kind in ("own", "total") for p in PROGRAMS]
        yield f"| {checkpoint} | {point} | " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"
