"""One target attacked for some seconds, in a process of its own: what is new is kept and changed further."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from tools.fuzz.rules import Outcome, held
from tools.fuzz.targets import TARGETS, Target

__all__ = ["hunt", "main"]

KEPT = 400
"""Mutants that are changed further, at most."""

WATCHED = 16
"""Of one in so many mutants the lines of ours are looked at, which takes ten times as long."""


class Hunt:
    """A target under attack.

    Attributes:
        counts: how many mutants were read, refused and broke the rule.
        findings: what broke it, by what was said without its numbers.
    """

    def __init__(self, target: Target, folder: Path, seed: int) -> None:
        self.target, self.folder, self.rng = target, folder, random.Random(seed)
        self.kept = list(target.seeds())
        self.n_seeds = len(self.kept)
        self.counts: Counter[str] = Counter()
        self.findings: dict[str, bytes] = {}
        self.seen: set[Any] = set()
        for data in self.kept:  # what is imported is no mutant's memory
            target.read(data, folder)

    def try_one(self, data: bytes, *, watch: bool = False) -> Outcome:
        """Read a mutant under the rule, and keep it where it showed something new."""
        (self.folder / "current").write_bytes(data)  # what is left of it where the process dies
        lines: set[tuple[str, int]] = set()
        if watch:
            sys.settrace(_tracer(lines))
        try:
            outcome = held(lambda: self.target.read(data, self.folder), len(data), self.target.seconds)
        finally:
            sys.settrace(None)
        self.counts[outcome.kind] += 1
        said = re.sub(r"[0-9]+|'[^']*'", "#", outcome.said.replace(str(self.folder), ""))[:120]
        if outcome.kind == "broken" and said not in self.findings:
            self.findings[said] = data
        new = {(outcome.kind, said)} | lines
        if not new <= self.seen and outcome.kind != "broken" and len(data) < 1 << 20:
            self.kept.append(data)
            if len(self.kept) > KEPT:
                del self.kept[self.rng.randrange(self.n_seeds, len(self.kept))]
        self.seen |= new
        return outcome

    def run(self, seconds: float, most: int) -> None:
        """Attack until the time is up, or so many mutants were tried."""
        for data in self.kept[: self.n_seeds]:
            outcome = self.try_one(data, watch=True)
            if outcome.kind != "read":
                raise SystemExit(f"{self.target.name}: a sound file is {outcome.kind}: {outcome.said}")
        until, n = time.monotonic() + seconds, 0
        while time.monotonic() < until and n < most:
            n += 1
            seed = self.rng.choice(self.kept[: self.n_seeds] if n % 3 == 0 else self.kept)
            self.try_one(self.target.change(seed, self.rng), watch=n % WATCHED == 0)


def _tracer(lines: set[tuple[str, int]]) -> Any:
    def of_line(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return of_line

    def of_call(frame: FrameType, _event: str, _argument: Any) -> Any:
        return of_line if "/llama_ckpt/" in frame.f_code.co_filename else None

    return of_call


def hunt(name: str, seconds: float, seed: int, out: Path, most: int = sys.maxsize) -> dict[str, Any]:
    """Attack a target; findings become files in `out`. Returns the counts and what was found."""
    with tempfile.TemporaryDirectory(prefix="llama-ckpt-fuzz-") as folder:
        one = Hunt(TARGETS[name], Path(folder), seed)
        began = time.process_time()
        one.run(seconds, most)
        found = {said: _saved(out, name, data) for said, data in one.findings.items()}
        took = time.process_time() - began
        return {
            "target": name,
            "counts": dict(one.counts),
            "seconds": took,
            "found": found,
            "kept": len(one.kept),
        }


def _saved(out: Path, name: str, data: bytes) -> str:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return str(path)


def main() -> None:
    """`python -m tools.fuzz.hunt NAME SECONDS SEED OUT MOST`: prints one line of JSON."""
    name, seconds, seed, out, most = sys.argv[1:6]
    print(json.dumps(hunt(name, float(seconds), int(seed), Path(out), int(most))))


if __name__ == "__main__":
    main()
