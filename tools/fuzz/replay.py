"""Everything that ever broke a rule, read again, and a few mutants of each kind: seconds, for the tests."""

from __future__ import annotations

import lzma
import struct
import sys
import tempfile
from pathlib import Path

from tools.fuzz.hunt import KINDS, Hunt
from tools.fuzz.targets import TARGETS

__all__ = ["CORPUS", "main", "replay"]

CORPUS = Path(__file__).parent / "corpus"
ROOT = Path(__file__).parents[2]


def replay(n_mutants: int) -> list[str]:
    """What breaks a rule, a line each; the corpus' files are named for their target."""
    found = []
    for name, target in TARGETS.items():
        with tempfile.TemporaryDirectory(prefix="llama-ckpt-fuzz-") as folder:
            one = Hunt(target, Path(folder), seed=7)
            for path in sorted(CORPUS.glob(f"{name}-*")):
                outcome = one.try_one(_kept(path))
                if outcome.kind == "broken":
                    found.append(f"{path.name}: {outcome.said}")
            one.run(60, n_mutants if name != "compare" else n_mutants // 8)
            one.lines.close()
            found += [f"{name}, mutated: {said}" for said in one.findings]
            print(f"{target.what}: {sum(one.counts[kind] for kind in KINDS)}")
    return found


def _kept(path: Path) -> bytes:
    """A file of the corpus; most are compressed, some told as damage to a file here."""
    data = path.read_bytes()
    data = lzma.decompress(data) if path.suffix == ".xz" else data
    return _put_together(data) if ".from" in path.suffixes else data


def _put_together(data: bytes) -> bytes:
    """What was damaged from a file here: its name, a line, then what is new and what is copied in turn.

    Each turn: how many new bytes, from where and how many are copied, three uint32; and the new bytes.
    """
    whose, _, turns = data.partition(b"\n")
    whole, made, at = (ROOT / whose.decode()).read_bytes(), b"", 0
    while at < len(turns):
        new, start, copied = struct.unpack_from("<III", turns, at)
        at += 12 + new
        made += turns[at - new : at] + whole[start : start + copied]
    return made


def main() -> None:
    """`python -m tools.fuzz.replay MUTANTS`: exit code 1 where something breaks a rule."""
    found = replay(int(sys.argv[1]))
    print("\n".join(found), file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
