"""Records the committed reference dumps of the embedded model again: `make reference-dumps`.

The F16 file is the committed one; the others are derived from it (`llama-ckpt` derives the same
files, byte for byte, when it validates). Every dump is small enough for a repository: logits of
32,000 tokens are most of it, so prompts are short, but for one that keeps the last token's logits
alone, and where a whole recording would say the same 32 times, some blocks are recorded in full and
of the others only what they return.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llama_ckpt.capture import capture
from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.making.derive import derive
from reference_dumps import embedded_model

ALL_BYTES = 8_000_000
"""The most that all dumps of the embedded model together may take."""

FEW = (0, 1, 15, 31)
"""The first blocks, where a mistake shows alone, one in the middle, and the last."""

EIGHT = (0, 1, 2, 3, 8, 15, 24, 31)

FIRST = (0,)

GENESIS = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; and "
    "darkness was upon the face of the deep. And the Spirit of God moved upon the face of the waters. And "
    "God said, Let there be light: and there was light. And God saw the light"
)


@dataclass(frozen=True)
class Plan:
    """One dump to record; the arguments of `capture`."""

    name: str
    prompt: str | None = None
    tokens: tuple[int, ...] | None = None
    positions_from: int = 0
    max_tokens: int = 64
    blocks: tuple[int, ...] | None = None
    last_logits_only: bool = False


PLANS: Mapping[str, tuple[Plan, ...]] = {
    "f32": (
        Plan("hello", prompt="Hello"),
        Plan("eight-tokens", prompt="And God said, Let there be", blocks=EIGHT, last_logits_only=True),
        Plan("one-token", tokens=(1,), blocks=FEW, last_logits_only=True),
        Plan("two-tokens", prompt="Jesus", blocks=FEW, last_logits_only=True),
        Plan(
            "far-positions", prompt="In the beginning", positions_from=4000, blocks=FEW, last_logits_only=True
        ),
        Plan("sixty-four-tokens", prompt=GENESIS, max_tokens=16, blocks=FIRST, last_logits_only=True),
    ),
    "f16": (Plan("hello", prompt="Hello", blocks=FEW),),
    "q8_0": (Plan("hello", prompt="Hello", blocks=FEW),),
    "q4_0": (Plan("hello", prompt="Hello", blocks=FEW),),
}
"""What is recorded, by the type of the weights."""


def record(weights: str, out: Path, scratch: Path) -> int:
    """Record every dump for one type of weights; returns the bytes of the new folder."""
    model: Path = embedded_model()
    derived_from: Mapping[str, str] | None = None
    if weights != "f16":
        made = derive(model, weights, scratch / f"{weights}.gguf")
        model, derived_from = made.path, made.derived_from
    for plan in PLANS[weights]:
        capture(model, out=out, derived_from=derived_from, **vars(plan))
        print(f"{weights}/{plan.name}", file=sys.stderr)
    return sum(path.stat().st_size for path in out.iterdir())


def main() -> int:
    """Record everything aside, and only when all of it is there put it in the place of the old."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=embedded_model().parent, help="folder of the folders")
    folder: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory(prefix="llama-ckpt-") as temporary:
        scratch = Path(temporary)
        try:
            total = sum(record(weights, scratch / "new" / weights, scratch) for weights in PLANS)
        except LlamaCkptError as error:
            print(error, file=sys.stderr)
            return 2
        if total > ALL_BYTES:
            print(f"all dumps together: got {total} bytes, wanted at most {ALL_BYTES}", file=sys.stderr)
            return 1
        for weights in PLANS:
            shutil.rmtree(folder / weights, ignore_errors=True)
            shutil.copytree(scratch / "new" / weights, folder / weights)
    print(f"{folder}: {total:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
