"""What is said of near ties of a mixture's router: which were followed, and what is not judged for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.own_run import OwnRun
from llama_ckpt.judging.near_ties import Rows
from llama_ckpt.listing import some
from llama_ckpt.points import ALL_POINTS, block_point, split_name

__all__ = ["RouterTies", "judged_at", "unjudged"]

Array: TypeAlias = NDArray[Any]

NAMED = 4


def unjudged(name: str, run: Mapping[str, Array]) -> Rows | None:
    """The tokens of a point that a mixture may have put through other experts than a run, `[n]`."""
    return run.unjudged(split_name(name)[1]) if isinstance(run, OwnRun) else None


def judged_at(name: str, run: Mapping[str, Array], causal: Rows) -> Rows | None:
    """Where a point is judged against a run; None for everywhere.

    Args:
        causal: `[queries, 1, keys]`, which keys a query sees.
    """
    point = ALL_POINTS[split_name(name)[1]]
    seen, ties = causal if point.causal else None, unjudged(name, run)
    if ties is None:
        return seen
    judged = ~ties.reshape(-1, *(1,) * (len(point.axes) - 1))
    return judged if seen is None else seen & judged


@dataclass
class RouterTies:
    """The near ties of a walk.

    Attributes:
        near: by block the tokens whose choice may fall another way.
        followed: by block those among them that went through other experts than the exact run's, as right.
        hidden: by the full name of a point the tokens that were not judged there.
    """

    near: dict[int, Rows] = field(default_factory=dict)
    followed: dict[int, Rows] = field(default_factory=dict)
    hidden: dict[str, Rows] = field(default_factory=dict)

    def hides(self, name: str, run: Mapping[str, Array]) -> bool:
        """Whether no token of a point can be judged against a run; which cannot is taken down."""
        rows = unjudged(name, run)
        if rows is None:
            return False
        before = self.hidden.get(name)
        self.hidden[name] = rows if before is None or len(before) != len(rows) else before | rows
        return bool(rows.all())

    def notes(self) -> Iterator[str]:
        """What was read as meant."""
        for block, rows in self.followed.items():
            if rows.any():
                yield (
                    f"{block_point(block, 'ffn_chosen')}: near ties of the router at {_tokens(rows)}: "
                    "the experts chosen are as right as the exact run's, which follows them"
                )

    def left_out(self) -> Iterator[str]:
        """What nobody can judge."""
        if not self.hidden:
            return
        first = min(self.hidden, key=lambda name: (split_name(name)[0] is None, split_name(name)[0] or 0))
        wholly = sum(bool(rows.all()) for rows in self.hidden.values())
        causes = [block_point(b, "ffn_router") for b, rows in self.near.items() if rows.any()]
        where = f" ({some(causes, NAMED)})" if causes else ""
        more = f", {wholly} of them wholly" if wholly else ""
        yield (
            f"near ties of the router{where}: right programs may choose other experts there, and what was "
            f"chosen was not recorded; from {first}, {_tokens(self.hidden[first])}, on "
            f"{len(self.hidden)} points are judged without these tokens and those that read them{more}: "
            "record ffn_chosen to judge all"
        )


def _tokens(rows: Rows) -> str:
    numbers = [str(row) for row in np.flatnonzero(rows)]
    return f"token{'s' if len(numbers) > 1 else ''} {some(numbers, NAMED)}"
