"""One target attacked for some seconds, in a process of its own: what is new is kept and changed further."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tools.fuzz.lines import NewLines
from tools.fuzz.rules import Outcome, held
from tools.fuzz.targets import TARGETS, Target

__all__ = ["CURRENT", "KINDS", "Hunt", "hunt", "main", "saved"]

CURRENT = "current"
"""Where the mutant lies that is being read: what is left of it where the process dies."""

KINDS = ("read", "refused", "broken")

FROM_SOUND = 0.6
"""So many mutants are of a sound file; the others are of those that showed something new."""

KEPT = 400
"""Mutants that are changed further, at most."""


class Hunt:
    """A target under attack.

    Attributes:
        counts: how many mutants were read, refused and broke the rule; "header" among them came past theirs.
        findings: what broke it, by what was said without its numbers.
    """

    def __init__(self, target: Target, folder: Path, seed: int) -> None:
        self.target, self.folder, self.rng = target, folder, random.Random(seed)
        self.kept = list(target.seeds())
        self.n_seeds = len(self.kept)
        self.counts: Counter[str] = Counter()
        self.findings: dict[str, bytes] = {}
        self.seen: set[tuple[str, str]] = set()
        self.lines = NewLines()
        for data in self.kept:  # what is imported is no mutant's memory
            target.read(data, folder)

    def try_one(self, data: bytes) -> Outcome:
        """Read a mutant under the rule, and keep it where it showed something new."""
        (self.folder / CURRENT).write_bytes(data)
        self.lines.begin()
        outcome = held(lambda: self.target.read(data, self.folder), len(data), self.target.seconds)
        self.counts[outcome.kind] += 1
        if outcome.header:
            self.counts["header"] += 1
        said = re.sub(r"[0-9]+|'[^']*'", "#", outcome.said.replace(str(self.folder), ""))[:120]
        if outcome.kind == "broken" and said not in self.findings:
            self.findings[said] = data
        new = self.lines.taken() or (outcome.kind, said) not in self.seen
        if new and outcome.kind != "broken" and len(data) < 1 << 20:
            self.kept.append(data)
            if len(self.kept) > KEPT:
                del self.kept[self.rng.randrange(self.n_seeds, len(self.kept))]
        self.seen.add((outcome.kind, said))
        return outcome

    def run(self, seconds: float, most: int) -> None:
        """Attack until the time is up, or so many mutants were tried, or read where only those count."""
        for data in self.kept[: self.n_seeds]:
            outcome = self.try_one(data)
            if outcome.kind != "read":
                raise SystemExit(f"{self.target.name}: a sound file is {outcome.kind}: {outcome.said}")
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.tried() < most:
            sound = self.rng.random() < FROM_SOUND
            seed = self.rng.choice(self.kept[: self.n_seeds] if sound else self.kept)
            self.try_one(self.target.change(seed, self.rng))

    def tried(self) -> int:
        """How many count towards the target's goal."""
        return sum(self.counts[kind] for kind in (("read",) if self.target.only_read else KINDS))


def hunt(name: str, seconds: float, seed: int, out: Path, most: int, folder: Path) -> dict[str, Any]:
    """Attack a target in a folder; findings become files in `out`. Returns the counts and what was found."""
    began = time.process_time()
    one = Hunt(TARGETS[name], folder, seed)
    one.run(seconds, most)
    one.lines.close()
    found = {said: saved(out, name, data) for said, data in one.findings.items()}
    took = time.process_time() - began
    return {"target": name, "counts": dict(one.counts), "seconds": took, "found": found}


def saved(out: Path, name: str, data: bytes) -> str:
    """Keep what broke a rule as a file named for its target; where it is."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return str(path)


def main() -> None:
    """`python -m tools.fuzz.hunt NAME SECONDS SEED OUT MOST FOLDER`: prints one line of JSON."""
    name, seconds, seed, out, most, folder = sys.argv[1:7]
    print(json.dumps(hunt(name, float(seconds), int(seed), Path(out), int(most), Path(folder))))


if __name__ == "__main__":
    main()
