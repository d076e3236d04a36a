"""The merging of a text's symbols into tokens, best pair first: what SPM and BPE have in common."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush

__all__ = ["merge_symbols"]


def merge_symbols(texts: list[bytes], ranks: Mapping[bytes, int], joint: bytes = b"") -> list[bytes]:
    """Merge neighbours in place while any two have a rank, and return what is left, in order.

    The pair of the lowest rank goes first; of equal ranks, the left-most.

    Args:
        texts: the symbols; changed.
        ranks: by a pair's two texts with `joint` between them.
        joint: nothing where a pair's rank depends on what it becomes; a byte that no symbol has where it
            depends on the two.
    """
    # A pair waits in the heap as rank * n + left index, which orders by rank, then by position.
    # `waiting[left]` is the entry that holds for the pair now; older ones are skipped when they surface.
    n = len(texts)
    following = list(range(1, n + 1))
    before = list(range(-1, n - 1))
    waiting = [-1] * n
    for left in range(n - 1):
        rank = ranks.get(texts[left] + joint + texts[left + 1])
        if rank is not None:
            waiting[left] = rank * n + left
    heap = [entry for entry in waiting if entry >= 0]
    heapify(heap)
    while heap:
        entry = heappop(heap)
        left = entry % n
        if waiting[left] != entry:
            continue
        right = following[left]
        merged = texts[left] = texts[left] + texts[right]
        texts[right], waiting[left], waiting[right] = b"", -1, -1
        following[left] = after = following[right]
        if after < n:
            before[after] = left
            rank = ranks.get(merged + joint + texts[after])
            if rank is not None:
                waiting[left] = entry = rank * n + left
                heappush(heap, entry)
        previous = before[left]
        if previous >= 0:
            rank = ranks.get(texts[previous] + joint + merged)
            waiting[previous] = entry = -1 if rank is None else rank * n + previous
            if rank is not None:
                heappush(heap, entry)
    return [text for text in texts if text]
