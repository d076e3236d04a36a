"""Attack every kind of input for so many seconds, and count; see the package."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tools.fuzz.hunt import KINDS
from tools.fuzz.page import write_page
from tools.fuzz.pieces import added, attack, pieces_for, pieces_of_goals
from tools.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
COUNTS = ROOT / "docs" / "fuzzing.json"


def main() -> int:
    """Run what the command line asks for; 1 where a rule was broken."""
    asked = _asked()
    names = asked.target or list(TARGETS)
    if asked.goals:
        pieces = pieces_of_goals(names, asked.seconds, asked.jobs, asked.seed)
    else:
        pieces = pieces_for(names, asked.seconds, asked.jobs, asked.seed, asked.most)
    seconds = asked.seconds if asked.goals else float("inf")
    parts: dict[str, list[dict[str, Any]]] = {}
    by = "guided" if asked.atheris else "hunt"
    for one in attack(pieces, asked.jobs, asked.out, seconds, by):
        parts.setdefault(one["target"], []).append(one)
    counted = [added(parts[name]) for name in names]
    for found in counted:
        _say(found)
    if asked.count:
        _add(counted)
        write_page(json.loads(COUNTS.read_text("utf-8")))
    return int(any(found["counts"].get("broken", 0) or "died" in found for found in counted))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument(
        "--target", action="append", choices=[*TARGETS], help="only this one; may be repeated"
    )
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--most", type=int, default=10**9, help="mutants of a target, at most")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz", help="where findings go")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, their counts added up")
    parser.add_argument("--atheris", action="store_true", help="let atheris choose, where it is installed")
    parser.add_argument(
        "--goals", action="store_true", help="a million GGUF files and so on, as far as the seconds reach"
    )
    parser.add_argument(
        "--count", action="store_true", help="add the counts to docs/fuzzing.json and its page"
    )
    return parser.parse_args()


def _say(found: dict[str, Any]) -> None:
    counts = found["counts"]
    print(
        f"{TARGETS[found['target']].what:28} {sum(counts.get(kind, 0) for kind in KINDS):9,} tried, "
        f"{counts.get('read', 0):9,} read, {counts.get('refused', 0):9,} refused, "
        f"{counts.get('broken', 0)} broke a rule",
        flush=True,
    )
    for said, path in found["found"].items():
        print(f"  {said}\n    {path}")
    if "died" in found:
        print(f"  the process died: {found['died']}")


def _add(counted: list[dict[str, Any]]) -> None:
    known = json.loads(COUNTS.read_text("utf-8")) if COUNTS.exists() else {}
    for found in counted:
        one = known.setdefault(found["target"], {"counts": {}, "seconds": 0.0})
        one["counts"] = dict(Counter(one["counts"]) + Counter(found["counts"]))
        one["seconds"] = round(one["seconds"] + found["seconds"], 1)
    COUNTS.write_text(json.dumps(known, indent=1) + "\n", "utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(main())
