"""What is said of near ties of a mixture's router: which were followed, and what is not judged for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from llama_ckpt.judging.near_ties import Rows
from llama_ckpt.listing import some
from llama_ckpt.points import block_point, split_name

__all__ = ["RouterTies"]

NAMED = 4


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

    def hide(self, name: str, rows: Rows) -> None:
        """Take down which tokens of a point are not judged; of two runs those of both."""
        before = self.hidden.get(name)
        self.hidden[name] = rows if before is None or len(before) != len(rows) else before | rows

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
