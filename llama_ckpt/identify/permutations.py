"""Orders that programs put things in by mistake: each a permutation with a sentence, of few numbers.

    for order in orders(64, heads=4, name="row"):
        order.taken              # place i holds what belongs to order.taken[i]

Most mistakes with a layout are one of these: axes exchanged (heads before features, pairs before halves),
everything moved along, bits of the number exchanged, turned round. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Order", "divisors", "named_order", "orders", "shifted"]

Array: TypeAlias = NDArray[Any]

MOST = 700
"""So many orders are tried of one length, the likeliest first."""

FEWEST, KEPT = 8, 1 << 21
"""Of many things fewer orders: so many numbers of all of them are kept."""

BLOCK = 32
"""How many numbers of a row come together in most block formats."""


@dataclass(frozen=True, eq=False)
class Order:
    """A permutation.

    Attributes:
        taken: `[n]`; place i holds what belongs to `taken[i]`.
        sentence: how they lie, a clause that follows the noun: "are taken in reverse".
        numbers: how many whole numbers tell it.
    """

    taken: NDArray[np.int64]
    sentence: str
    numbers: int


def divisors(n: int) -> list[int]:
    """All divisors of n, in order."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def shifted(n: int, by: int) -> Order:
    """Everything moved along, round the end."""
    by = by % n if by % n <= n // 2 else by % n - n
    return Order((np.arange(n) + by) % n, f"are moved by {by:+d}, round the end", 1)


@lru_cache(maxsize=16)
def orders(n: int, heads: int = 0) -> tuple[Order, ...]:
    """The orders of n things that lie in so many heads, 0 for none, the likeliest first; each once."""
    found: list[Order] = []
    seen = {np.arange(n).tobytes()}
    for order in _all(n, heads):
        key = order.taken.tobytes()
        if key not in seen:
            seen.add(key)
            found.append(order)
        if len(found) >= max(FEWEST, min(MOST, KEPT // n)):
            break
    return tuple(found)


def named_order(taken: Array, heads: int = 0) -> Order | None:
    """The order among `orders` that a permutation is, or a shift; None where it is none of them."""
    n = len(taken)
    steps = np.unique((np.asarray(taken) - np.arange(n)) % n)
    if len(steps) == 1 and steps[0]:
        return shifted(n, int(steps[0]))
    return next((order for order in orders(n, heads) if np.array_equal(order.taken, taken)), None)


def _all(n: int, heads: int) -> Iterator[Order]:
    within = n // max(heads, 1)
    yield Order(np.arange(n)[::-1], "are taken in reverse", 0)
    if heads:
        yield from _of_pairs(n, heads)
    if heads > 1:
        yield from _of_heads(n, heads)
    yield from _within(n, heads)
    yield from _exchanged(n, [within, BLOCK, *divisors(n)])


def _of_pairs(n: int, heads: int) -> Iterator[Order]:
    """What Hugging Face's order of q and k does and undoes, with the right or a wrong number of heads."""
    if n % (2 * heads):
        return
    right = _axes(n, heads, 2, n // heads // 2, 1)
    yield Order(right, f"of each of {heads} heads are taken as (i, i + {n // heads // 2}) for (2i, 2i+1)", 1)
    undone = np.argsort(right)
    yield Order(undone, f"of each of {heads} heads are taken as (2i, 2i+1) for (i, i + {n // heads // 2})", 1)
    for other in divisors(n // 2):
        if other == heads:
            continue
        wrong = _axes(n, other, 2, n // other // 2, 1)
        said = f"are put into pairs as if there were {other} heads, where there are {heads}"
        yield Order(undone[wrong], said, 1)
        yield Order(np.argsort(undone[wrong]), said + " (undone the other way)", 1)
        yield Order(right[np.argsort(wrong)], said + ", from halves", 1)
        yield Order(np.argsort(right[np.argsort(wrong)]), said + ", from halves (undone the other way)", 1)


def _of_heads(n: int, heads: int) -> Iterator[Order]:
    within, numbers = n // heads, np.arange(heads)
    for group in divisors(heads):
        if 1 < group < heads:
            taken = numbers.reshape(group, heads // group).T.ravel()
            said = f"of {heads} heads lie in turn, {group} by {heads // group}"
            yield Order(_spread(taken, within), said, 1)
    for by in range(1, heads):
        yield Order(_spread((numbers + by) % heads, within), f"are those of head h + {by}, round the end", 1)
    yield Order(_spread(numbers[::-1], within), "are those of the heads in reverse", 0)
    for bit in (1 << i for i in range(1, heads.bit_length())):
        if heads % bit == 0:
            taken = numbers.reshape(-1, bit)[:, ::-1].ravel()
            yield Order(_spread(taken, within), f"are those of the heads in reverse, in groups of {bit}", 1)


def _spread(heads: Array, within: int) -> Array:
    return np.asarray((heads[:, None] * within + np.arange(within)).ravel())


def _within(n: int, heads: int) -> Iterator[Order]:
    """Moved along, exchanged or turned round within blocks of one length."""
    sizes = dict.fromkeys(
        [n // max(heads, 1), BLOCK, *(1 << i for i in range(1, n.bit_length())), *divisors(n)]
    )
    for size in sizes:
        if size < 2 or n % size or size > n:
            continue
        places = np.arange(n).reshape(-1, size)
        what = f"in each {size}" if size < n else "in all"
        if size < n:
            yield Order(places[:, ::-1].ravel(), f"{what} are taken in reverse", 1)
        for by in dict.fromkeys((size // 2, 1, size - 1)):
            if size < n and by:
                yield Order(np.roll(places, -by, axis=1).ravel(), f"{what} are moved by {by}", 2)


def _exchanged(n: int, sizes: Iterable[int]) -> Iterator[Order]:
    """Two axes exchanged: `[h, a, b, t]` read as `[h, b, a, t]`."""
    for size in dict.fromkeys(sizes):  # of a whole, of a head, of a block
        if n % size:
            continue
        for t in divisors(size):
            for a in divisors(size // t):
                b = size // t // a
                if a > 1 and b > 1:
                    yield Order(_axes(n, n // size, a, b, t), _said(n, size, a, b, t), 2 + (t > 1))


def _said(n: int, size: int, a: int, b: int, t: int) -> str:
    each = "" if size == n else f" of each {size}"
    runs = "" if t == 1 else f", {t} together"
    return f"{each} lie as [{b}, {a}] where [{a}, {b}] is meant{runs}".strip()


def _axes(n: int, h: int, a: int, b: int, t: int) -> Array:
    """Place `[h, b, a, t]` holds what belongs to `[h, a, b, t]`."""
    return np.arange(n).reshape(h, a, b, t).swapaxes(1, 2).ravel()
