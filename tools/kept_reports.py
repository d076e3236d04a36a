"""Reports that pages under docs/ are made of, kept compressed: a tenth of the room, and as much to read.

A command writes `docs/NAME.json`; `python -m tools.make_docs` packs it into `docs/NAME.json.xz`.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

__all__ = ["kept_report", "pack_reports"]

DOCS = Path(__file__).parents[1] / "docs"
PACKED = ("mutants", "arithmetic", "arithmetic_bugs", "real_bugs", "full_size*")


def pack_reports(folder: Path = DOCS) -> None:
    """Put what a command has just written in the place of what was kept."""
    for name in PACKED:
        for written in folder.glob(f"{name}.json"):
            written.with_name(f"{written.name}.xz").write_bytes(lzma.compress(written.read_bytes(), preset=9))
            written.unlink()


def kept_report(name: str, folder: Path = DOCS) -> dict[str, Any]:
    """A report by its name."""
    report: dict[str, Any] = json.loads(lzma.decompress((folder / f"{name}.json.xz").read_bytes()))
    return report
