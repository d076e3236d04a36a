"""The work cut into pieces, each a process of its own, so many at once, and their counts added up."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.fuzz.hunt import CURRENT, saved
from tools.fuzz.targets import TARGETS

__all__ = ["Piece", "added", "attack", "pieces_for", "pieces_of_goals"]

ROOT = Path(__file__).parents[2]
NO_END = 10**9

LONG = {"gguf": 2.0, "load": 2.0, "compare": 2.0}
"""Pieces for each process of the targets that take longest; of the others a quarter."""


@dataclass(frozen=True)
class Piece:
    """A target, the seconds and mutants for it at most, and what its choices begin with."""

    target: str
    seconds: float
    seed: int
    most: int = NO_END


def pieces_for(names: Sequence[str], seconds: float, jobs: int, seed: int, most: int) -> list[Piece]:
    """Every target its share of the time, in each of the processes; the seeds are apart."""
    total = sum(TARGETS[name].share for name in names)
    most = math.ceil(most / jobs)
    return [
        Piece(name, seconds * TARGETS[name].share / total, seed + 1_000_003 * job, most)
        for name in names
        for job in range(jobs)
    ]


def pieces_of_goals(names: Sequence[str], seconds: float, jobs: int, seed: int) -> list[Piece]:
    """As many mutants of every target as its goal says, the longest last; the seconds are for all."""
    found = []
    for name in sorted(names, key=lambda one: one in LONG):
        n = math.ceil(jobs * LONG.get(name, 0.25))
        most = math.ceil(TARGETS[name].goal / n)
        found += [Piece(name, seconds, seed + 1_000_003 * job, most) for job in range(n)]
    return found


def attack(
    pieces: Iterable[Piece], jobs: int, out: Path, seconds: float, by: str = "hunt"
) -> Iterator[dict[str, Any]]:
    """Work through the pieces, `jobs` at once; none goes on after the seconds. Yields what each found.

    Args:
        by: the module that attacks, "hunt" or "guided".
    """
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda piece: _attack(piece, out, until, by), pieces)


def added(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What the pieces of one target found, as one: counts and seconds added up, findings by what was said."""
    first, *rest = parts
    whole = {**first, "counts": Counter(first["counts"]), "found": dict(first["found"])}
    for one in rest:
        whole["counts"] += Counter(one["counts"])
        whole["seconds"] += one["seconds"]
        whole["found"] |= one["found"]
        whole.update({key: one[key] for key in ("died",) if key in one})
    return {**whole, "counts": dict(whole["counts"])}


def _attack(piece: Piece, out: Path, until: float, by: str) -> dict[str, Any]:
    """A process of its own: what kills that is a finding, and not the end."""
    left = max(0.0, min(piece.seconds, until - time.monotonic()))
    with tempfile.TemporaryDirectory(prefix="llama-ckpt-fuzz-") as folder:
        words = [piece.target, str(left), str(piece.seed), str(out), str(piece.most), folder]
        command = [sys.executable, "-m", f"tools.fuzz.{by}", *words]
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **threads}
        )
        try:
            return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]
        except (ValueError, IndexError):
            died = f"exit code {done.returncode}, seed {piece.seed}: {done.stderr.strip()[-400:]}"
            killer = Path(folder) / CURRENT
            found = (
                {died: saved(out, piece.target, killer.read_bytes())}
                if done.returncode and killer.exists()
                else {}
            )
            return {"target": piece.target, "counts": {}, "seconds": left, "found": found, "died": died}
