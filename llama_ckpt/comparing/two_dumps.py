"""Two dumps of one program: where they first differ, as of a run that gives another answer each time.

    found = compare_two("monday.safetensors", "tuesday.safetensors")
    found.sentence()      # "they first differ at blk.3.attn_probs: 3 of 128 elements, 2e-4; …"

Nothing is said of which is right: that is what each of them is compared for alone. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_ckpt.dumps.names_map import DumpMap, read_map
from llama_ckpt.dumps.stored_points import in_order
from llama_ckpt.dumps.theirs import TheirDump, open_their_dump
from llama_ckpt.errors import DumpError
from llama_ckpt.json_values import finite
from llama_ckpt.judging.metrics import relative_error
from llama_ckpt.listing import some

__all__ = ["PointDifference", "TwoDumps", "compare_two"]

MOST_LINES = 8
SAID = ("token_ids", "positions", "sequences", "padding", "weights_sha256", "dtype")


@dataclass(frozen=True)
class PointDifference:
    """One point that differs.

    Attributes:
        name: the point. n, of: how many elements differ, of how many.
        error: of the second against the first, relative; infinite where one is not finite alone.
        shapes: of both, where they differ; "" else.
    """

    name: str
    n: int
    of: int
    error: float
    shapes: str = ""

    def sentence(self) -> str:
        """What differs, and by how much."""
        if self.shapes:
            return f"{self.name}: {self.shapes}"
        return f"{self.name}: {self.n} of {self.of} elements, {self.error:.0e}".replace("e-0", "e-")


@dataclass(frozen=True)
class TwoDumps:
    """What two dumps have in common.

    Attributes:
        shared: points that both hold. differing: those that are not equal bit for bit, in order.
        alone: points that only one holds. said: facts of the run that they declare differently.
    """

    shared: int
    differing: tuple[PointDifference, ...]
    alone: tuple[str, ...]
    said: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 where all that both hold is equal, else 1."""
        return 1 if self.differing else 0

    def sentence(self) -> str:
        """Where they first differ."""
        if not self.differing:
            return f"all {self.shared} points that both hold are equal, bit for bit"
        rest = len(self.differing) - 1
        more = f"; {rest} of the {self.shared} points that both hold differ as well" if rest else ""
        return f"they first differ at {self.differing[0].sentence()}{more}"

    def lines(self) -> Iterator[str]:
        """What the terminal shows."""
        for fact in self.said:
            yield f"other runs     {fact}"
        if self.alone:
            yield f"in one alone   {some(self.alone, 4)}"
        for one in self.differing[1:MOST_LINES]:
            yield f"then           {one.sentence()}"
        yield self.sentence()

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        plain: dict[str, Any] = finite(asdict(self))
        return {"kind": "two dumps", "reason": self.sentence(), **plain}


def compare_two(first: str | Path, second: str | Path, names: str | Path | None = None) -> TwoDumps:
    """Say where two dumps of one program differ.

    Args:
        names: a map of names, axes and layouts, for both.

    Raises:
        DumpError: a dump that cannot be read, or two without a point in common.
    """
    known = DumpMap() if names is None else read_map(names)
    a, b = (open_their_dump(path, known) for path in (first, second))
    shared = [name for name in in_order(a.names) if name in b.names]
    if not shared:
        raise DumpError(f"{first} and {second}", got="no point in common", wanted="two dumps of one program")
    said = tuple(f"{key} are not the same" for key in SAID if _other(a, b, key))
    alone = in_order(set(a.names) ^ set(b.names))
    differing = tuple(found for name in shared if (found := _difference(a, b, name)) is not None)
    return TwoDumps(len(shared), differing, alone, said)


def _other(a: TheirDump, b: TheirDump, key: str) -> bool:
    """Whether both declare something, and not the same."""
    one, other = getattr(a.declared, key), getattr(b.declared, key)
    return one is not None and other is not None and one != other


def _difference(a: TheirDump, b: TheirDump, name: str) -> PointDifference | None:
    x, y = a.raw(name), b.raw(name)
    if x.shape != y.shape:
        return PointDifference(name, x.size, x.size, math.inf, f"shapes {list(x.shape)} and {list(y.shape)}")
    differs = (x != y) & ~(np.isnan(x) & np.isnan(y))
    n = int(differs.sum())
    if not n:
        return None
    both = np.isfinite(x) & np.isfinite(y)
    if (differs & ~both).any():
        return PointDifference(name, n, x.size, math.inf)
    return PointDifference(name, n, x.size, relative_error(np.where(both, y, 0), np.where(both, x, 0)))
