"""Many numbers or names in a few words that stay true: ranges and strides, and how many are not shown.

which("token", range(512, 535), 600)       # "tokens 512 to 534"
which("head", [3, 7, 8, 9], 32)            # "heads 3 and 7 to 9"
which("feature", range(3, 64, 4), 64)      # "every 4th feature from 3 to 63"
some(["a", "b", "c", "d"], 2)              # "a, b and 2 more"
listed(["a", "b", "c"])                    # "a, b and c"
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["listed", "ordinal", "some", "which"]

MOST_PARTS = 8
"""Up to so many numbers and ranges are said one by one; of more, how many there are and where they lie."""

SHORTEST_STRIDE = 4
"""From so many numbers at one distance on, they are said as a stride: three may be so by chance."""


def which(noun: str, numbers: Iterable[int], n: int) -> str:
    """Which of `n` things are meant, complete, or with their count where that would take too many words.

    Args:
        noun: one of them: "token", "KV head".
        numbers: of those that are meant, each from 0 to n - 1; at least one.
        n: how many things there are.
    """
    chosen = sorted({int(one) for one in numbers})
    if len(chosen) == 1:
        return f"{noun} {chosen[0]}"
    if len(chosen) == n:
        return f"all {n} {_plural(noun)}"
    steps = {b - a for a, b in zip(chosen, chosen[1:], strict=False)}
    step = min(steps)
    if len(steps) == 1 and step > 1 and len(chosen) >= SHORTEST_STRIDE:
        return f"every {ordinal(step)} {noun} from {chosen[0]} to {chosen[-1]}"
    parts = list(_parts(chosen))
    if len(parts) > MOST_PARTS:
        few = ", ".join(map(str, chosen[:3]))
        return f"{len(chosen)} of {n} {_plural(noun)} (first {few}, last {chosen[-1]})"
    return f"{_plural(noun)} {listed(parts)}"


def _plural(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}s"


def some(names: Sequence[object], most: int) -> str:
    """The first `most` of them, and how many more there are; empty where there are none."""
    shown = ", ".join(map(str, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def listed(names: Sequence[object]) -> str:
    """All of them, the last after an "and"; empty where there are none."""
    *first, last = [*map(str, names)] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _parts(chosen: Sequence[int]) -> Iterable[str]:
    """Runs of three and more neighbours as ranges, the others one by one."""
    first = 0
    for i in range(1, len(chosen) + 1):
        if i < len(chosen) and chosen[i] == chosen[i - 1] + 1:
            continue
        run = chosen[first:i]
        if len(run) > 2:
            yield f"{run[0]} to {run[-1]}"
        else:
            yield from map(str, run)
        first = i


def ordinal(n: int) -> str:
    """A number as it counts: 2 is "2nd", 11 is "11th", 23 is "23rd"."""
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"
