"""Records the committed runs of several calls again: llama.cpp on the stand-in of Llama 3, in float32.

    python -m tools.make_runs [FOLDER]        reference_dumps/llama-3/runs without it

Eight tokens as 5 + 3, one by one, two sequences that take turns, tokens that are taken back: few points, so
that all of them together are small.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from llama_ckpt.capture.plan import Decode, Plan, Remove, Rows, plan_of
from llama_ckpt.capture.run_file import capture_run
from llama_ckpt.making.derive import derive
from reference_dumps import stand_in

__all__ = ["PLANS", "POINTS", "make"]

TOKENS: Final = (0, 42, 117, 7, 201, 88, 15, 260)
OTHER: Final = (0, 64, 150, 33)

PLANS: Final[Mapping[str, Plan]] = {
    "five-and-three": plan_of([TOKENS], chunks=[5]),
    "one-by-one": plan_of([TOKENS], chunks=[1] * 7),
    "two-sequences": (*plan_of([TOKENS[:4], OTHER], chunks=[2]), Decode(1)),
    "taken-back": (*plan_of([TOKENS[:5]], decode=3), Remove(0, 5), Rows(tuple((0, t) for t in TOKENS[5:]))),
}
"""The last tokens of `taken-back` make it `five-and-three`, had the decoded ones never been there."""

POINTS: Final = ("embd", "q_rope", "k_rope", "v", "attn_out", "out", "output_norm", "logits")
"""What layers that see other rows are given, and what they give."""


def make(folder: Path) -> None:
    """Write them all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "f32.gguf"
        derive(stand_in("llama-3") / "model.gguf", "F32", weights)
        for name, plan in PLANS.items():
            capture_run(weights, plan, out=folder / f"{name}.safetensors", points=POINTS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = stand_in("llama-3") / "runs"
    parser.add_argument("folder", type=Path, nargs="?", default=default, help="where to write")
    make(parser.parse_args().folder)


if __name__ == "__main__":
    main()
