"""Layers whose tensors stand under the number of the block before or after. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from llama_ckpt.judging.metrics import relative_error

__all__ = ["Ends", "find_shift"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Ends(Mapping[int, Array]):
    """What one point of each block should be, made when it is asked for; -1 is what goes into block 0.

    Attributes:
        blocks: whose is known; make: makes it.
    """

    blocks: tuple[int, ...]
    make: Callable[[int], Array]

    def __getitem__(self, block: int) -> Array:
        return self.make(block)

    def __contains__(self, block: object) -> bool:
        return block in self.blocks

    def __iter__(self) -> Iterator[int]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)


def find_shift(theirs: Callable[[int], Array | None], right: Mapping[int, Array], most: float) -> int | None:
    """By how many blocks their tensors of one point are displaced: -1, 1, or None where they are not.

    The first block of most dumps is what it should be: then no other is asked for.

    Args:
        theirs: their tensor of a block, of the shape of `right`'s; None where there is none that tells.
        right: what each block should have; of -1 what goes into block 0.
        most: the relative error below which two tensors are the same.

    Returns:
        1 where their block N holds what belongs to block N + 1; -1 where it holds block N - 1's.
    """
    for shift in (1, -1):
        displaced = False
        for block in (one for one in right if one >= 0 and one + shift in right):
            x = theirs(block)
            if x is None:
                continue
            displaced = relative_error(x, right[block]) > most > relative_error(x, right[block + shift])
            if not displaced:
                break
        if displaced:
            return shift
    return None
