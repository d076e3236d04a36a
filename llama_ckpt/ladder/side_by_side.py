"""Judging large tensors side by side: numpy computes outside the interpreter's lock.

A tensor of a 7B model with 300 tokens takes a second to judge, and there are thousands; those of small
models are not worth a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from llama_ckpt.cores import usable_cpus

__all__ = ["LARGE", "side_by_side"]

LARGE = 1 << 19
"""Elements of a tensor from which on a thread of its own pays."""

MOST = 8
"""Threads at most: each holds a few float64 copies of its tensor."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Item], Result], items: Iterable[Item], *, elements: int
) -> Iterator[Result]:
    """`map(function, items)`, in threads where a tensor has `LARGE` elements or more; in order."""
    threads = min(MOST, usable_cpus())
    if elements < LARGE or threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(function, items)
