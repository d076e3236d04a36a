"""A target attacked by atheris: libFuzzer counts every branch of ours, and our mutators make its mutants.

In the place of `tools.fuzz.hunt`, with the same words and the same line of JSON: `make fuzz
FUZZ_ARGS=--atheris`, after `pip install -r requirements/atheris.txt`.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from tools.fuzz.hunt import Hunt, saved
from tools.fuzz.targets import TARGETS

__all__ = ["main"]

LONGEST = 1 << 20
"""Bytes of a mutant."""


def main() -> None:
    """`python -m tools.fuzz.guided NAME SECONDS SEED OUT MOST FOLDER`: prints one line of JSON."""
    import atheris

    name, seconds, seed, out, most = sys.argv[1:6]
    target, folder = TARGETS[name], Path(sys.argv[6])
    with atheris.instrument_imports(include=["llama_ckpt"], enable_loader_override=False):
        one = Hunt(target, folder, int(seed))  # reads the sound files: what is imported is instrumented
    known = folder / "known"
    known.mkdir()
    for number, data in enumerate(one.kept):
        (known / str(number)).write_bytes(data)
    until = time.monotonic() + float(seconds)

    def attack(data: bytes) -> None:
        if time.monotonic() > until or one.tried() >= int(most):
            _told(one, name, Path(out))
        one.try_one(data)

    def changed(data: bytes, size: int, number: int) -> Any:
        rng = random.Random(number)
        made = target.change(data, rng) if rng.random() < 0.7 else atheris.Mutate(data, size)
        return made[:size]

    words = [sys.argv[0], str(known), f"-max_len={LONGEST}", f"-seed={int(seed) or 1}", "-rss_limit_mb=0"]
    atheris.Setup([*words, "-timeout=0", "-verbosity=0"], attack, custom_mutator=changed)
    atheris.Fuzz()


def _told(one: Hunt, name: str, out: Path) -> None:
    """Print what came of it, and end: libFuzzer itself would go on for ever."""
    found = {said: saved(out, name, data) for said, data in one.findings.items()}
    counts = dict(one.counts)
    print(json.dumps({"target": name, "counts": counts, "seconds": time.process_time(), "found": found}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
