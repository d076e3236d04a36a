"""Layers whose tensors stand under the number of the block before or after. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from llama_ckpt.judging.metrics import relative_error

__all__ = ["find_shift"]


def find_shift(
    theirs: Mapping[int, NDArray[Any]], right: Mapping[int, NDArray[Any]], most: float
) -> int | None:
    """By how many blocks their tensors of one point are displaced: -1, 1, or None where they are not.

    Args:
        theirs: their tensor by block; shapes as `right`'s.
        right: what each block should have; -1 for what goes into block 0.
        most: the relative error below which two tensors are the same.

    Returns:
        1 where their block N holds what belongs to block N + 1; -1 where it holds block N - 1's.
    """
    for shift in (1, -1):
        pairs = [(theirs[b], right[b + shift], right.get(b)) for b in theirs if b + shift in right]
        if pairs and all(relative_error(x, o) < most for x, o, _ in pairs):
            if all(own is None or relative_error(x, own) > most for x, _, own in pairs):
                return shift
    return None
