"""Attack every kind of input for so many seconds, and count; see the package."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tools.fuzz.page import write_page
from tools.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
COUNTS = ROOT / "docs" / "fuzzing.json"


def main() -> int:
    """Run what the command line asks for; 1 where a rule was broken."""
    asked = _asked()
    names = asked.target or list(TARGETS)
    total = sum(TARGETS[name].share for name in names)
    broken = 0
    counted: list[dict[str, Any]] = []
    for name in names:
        seconds = asked.seconds * TARGETS[name].share / total
        found = _attack(name, seconds, asked)
        counted.append(found)
        broken += found["counts"].get("broken", 0) + bool(found.get("died"))
        _say(found)
    if asked.count:
        _add(counted)
        write_page(json.loads(COUNTS.read_text("utf-8")))
    return 1 if broken else 0


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument(
        "--target", action="append", choices=[*TARGETS], help="only this one; may be repeated"
    )
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--most", type=int, default=10**9, help="mutants of a target, at most")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz", help="where findings go")
    parser.add_argument(
        "--count", action="store_true", help="add the counts to docs/fuzzing.json and its page"
    )
    return parser.parse_args()


def _attack(name: str, seconds: float, asked: argparse.Namespace) -> dict[str, Any]:
    """A target in a process of its own: what kills that is a finding, and not the end."""
    words = [name, str(seconds), str(asked.seed), str(asked.out), str(asked.most)]
    command = [sys.executable, "-m", "tools.fuzz.hunt", *words]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **threads})
    try:
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]
    except (ValueError, IndexError):
        died = f"exit code {done.returncode}, seed {asked.seed}: {done.stderr.strip()[-400:]}"
        return {"target": name, "counts": {}, "seconds": seconds, "found": {}, "died": died}


def _say(found: dict[str, Any]) -> None:
    counts = found["counts"]
    print(
        f"{TARGETS[found['target']].what:28} {sum(counts.values()):9,} tried, "
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
