"""Which keys each row saw, and the rule that says it: a window, a mask aligned otherwise, a cache begun anew.

numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.places import ranges
from llama_ckpt.listing import listed, which

__all__ = ["KeySet", "rules_of", "verb"]

Mask: TypeAlias = NDArray[np.bool_]

FEW = 4
"""Up to so many runs of rows are said one by one."""


@dataclass(frozen=True)
class KeySet:
    """A rule, `seen [rows, keys]`, and how to say it; attributes as in `Guess`."""

    kind: str
    words: str
    seen: Mask
    free: int = 1
    code: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


def rules_of(seen: Mask, unknown: Mask, visible: Mask) -> Iterator[KeySet]:
    """The rules that say what was seen; the last says it row by row.

    Args:
        seen: measured; unknown: where it cannot be told, as the key would count for nothing.
        visible: what should be seen.
    """
    for rule in _rules(seen, visible):
        if not np.any((rule.seen != seen) & ~unknown):
            yield rule
    yield _row_by_row(np.where(unknown, visible, seen), visible)


def _rules(seen: Mask, visible: Mask) -> Iterator[KeySet]:
    n = len(seen)
    row, key = np.arange(n)[:, None], np.arange(n)[None, :]
    yield KeySet(
        "attention.mask",
        "every token sees all tokens, later ones too: there is no causal mask",
        np.ones((n, n), np.bool_),
        0,
        "the mask not given, or is_causal forgotten",
    )
    last = np.max(np.where(seen, key - row, -n), axis=1)  # the latest key that is seen, from its own row
    # Late rows see all there is: how far a row looks ahead is told by those that could look further.
    free = last + row[:, 0] < n - 1
    yield from _shifted(int(np.median(last[free]) if free.any() else last.max()), row, key, visible)
    yield from _shifted_later(seen, row, key, visible)
    yield from _windows(seen, row, key, visible)
    yield from _aligned(seen, row, key, visible)
    yield from _begun_anew(seen, visible)
    yield from _of_keys(seen, visible)


def _shifted(by: int, row: Any, key: Any, visible: Mask) -> Iterator[KeySet]:
    if by > 0:
        words = f"the mask is off by {by}: a token sees the next {'one' if by == 1 else by} as well"
    elif by < 0:
        words = f"the mask is off by {-by}: a token does not see {_before(-by)}"
    else:
        return
    seen = np.asarray(key <= row + by)
    yield KeySet("attention.mask", words, seen, 1, "a diagonal of the mask off by one", {"offset": by})
    if by < 0:  # a row that would see nothing keeps itself, or the first key
        for kept, which_one in ((key == row, "itself"), (key == 0, "the first token")):
            one = seen | (kept & ~seen.any(axis=1, keepdims=True))
            said = f"{words}; where nothing is left, it sees {which_one}"
            yield KeySet("attention.mask", said, one, 1, "a diagonal of the mask off by one")


def _shifted_later(seen: Mask, row: Any, key: Any, visible: Mask) -> Iterator[KeySet]:
    """Rows that see the next ones from a call on, but for the last of a call, which has none after it."""
    n = len(seen)
    more = seen & ~visible
    wrong = np.flatnonzero((seen != visible).any(axis=1))
    if not len(wrong) or not wrong[0] or not more.any():
        return
    by, first = int(np.max(np.where(more, key - row, 0))), int(wrong[0])
    made = visible | ((row >= first) & (key <= row + by))
    # A call's last rows can't see so far.
    ends = [end for end in range(first, n) if not more[end].any()]
    for end in ends:
        made[max(first, end - by + 1) : end + 1, end + 1 :] = False
    words = f"the mask is off by {by} from token {first} on: a token sees the next {'one' if by == 1 else by}"
    inner = [end for end in ends if end < n - 1]
    words += " as well, but no later call's" if inner else " as well"
    code = "the mask of a call that begins behind a cache"
    yield KeySet("attention.mask", words, made, 2 + len(inner), code, {"offset": by, "first_row": first})


def _before(by: int) -> str:
    return "itself" if by == 1 else f"itself and the {by - 1} before it"


def _windows(seen: Mask, row: Any, key: Any, visible: Mask) -> Iterator[KeySet]:
    reach = np.max(np.where(seen & visible, row - key, -1), axis=1)
    width = int(reach.max()) + 1
    if 0 < width < len(seen):
        words = f"a token sees the last {width} keys only, a window that the model has not"
        if width == 1:
            words = "a token sees itself only"
        window = visible & (row - key < width)
        yield KeySet("attention.window", words, window, 1, "sliding_window", {"window": width})
    chunk = int(np.max(seen.sum(axis=1)))
    if 1 < chunk < len(seen):
        words = f"a token sees keys of its own chunk of {chunk} only"
        chunks = visible & (row // chunk == key // chunk)
        yield KeySet("attention.window", words, chunks, 1, "attention in chunks, the cache not read")


def _aligned(seen: Mask, row: Any, key: Any, visible: Mask) -> Iterator[KeySet]:
    """Rows of a later call whose mask begins at the first key, not at the call's own."""
    n = len(seen)
    wrong = np.flatnonzero((seen != visible).any(axis=1))
    if not len(wrong):
        return
    start = int(wrong[0])
    for first in dict.fromkeys((start, start - 1)):
        if first < 1:
            continue
        size = _call_size(seen, first)
        local = np.where(row >= first, (row - first) % size, row)
        aligned = np.where(row >= first, key <= local, visible)
        each = "each call" if size < n - first else "the call"
        words = (
            f"the causal mask is aligned to the top left: of {each} from token {first} on, the first row sees"
        )
        words += " the first key only, the next two, and so on"
        parameters = {"first_row": first, "rows": size}
        yield KeySet(
            "attention.alignment", words, np.asarray(aligned), 1, "is_causal with a cache", parameters
        )
    counts = seen.sum(axis=1)
    if (seen[wrong] == (key <= counts[wrong][:, None] - 1)).all() and len(set(counts[wrong])) == 1 == counts[
        start
    ]:
        words = "the causal mask of one row is aligned to the top left: "
        words += f"{which('token', wrong, n)} {verb(wrong, 'sees', 'see')} the first key only"
        aligned = visible.copy()
        aligned[wrong] = key == 0
        yield KeySet("attention.alignment", words, aligned, 1, "is_causal with a cache and one query")


def _call_size(seen: Mask, first: int) -> int:
    """How many rows the call at `first` has: until its mask begins at the first key again."""
    counts = seen[first:].sum(axis=1)
    again = np.flatnonzero(counts[1:] <= 1)
    return int(again[0]) + 1 if len(again) else len(counts)


def _begun_anew(seen: Mask, visible: Mask) -> Iterator[KeySet]:
    """Rows that see no key before a certain one: another sequence, or a cache that was reset."""
    n = len(seen)
    begins = np.where(seen.any(axis=1), np.argmax(seen, axis=1), np.arange(n))
    starts = sorted({int(one) for one in begins} - {0})
    if not starts or len(starts) > max(1, n // 2) or (np.diff(begins) < 0).any():
        return
    made = visible.copy()
    for start in starts:
        made[start:, :start] = False
    words = f"from {which('token', starts, n)} on no earlier key is seen: each begins a sequence of its own"
    code = "the cache is reset, or what a later call is given replaces it"
    yield KeySet("attention.begun-anew", words, made, len(starts), code, {"starts": starts})
    if len(starts) == 1:
        kept = visible.copy()
        rows = np.flatnonzero(begins == starts[0])
        kept[rows, : starts[0]] = False
        words = f"no key before {starts[0]} is seen by {which('token', rows, n)}"
        yield KeySet("attention.begun-anew", words, kept, 2, code)


def _of_keys(seen: Mask, visible: Mask) -> Iterator[KeySet]:
    """Keys that nobody sees, but perhaps each itself; and keys that all see."""
    n = len(seen)
    rows = np.arange(n)
    own = np.eye(n, dtype=np.bool_)
    lost = visible & ~seen
    gone = [bool(lost[key + 1 :, key].all() and lost[key + 1 :, key].any()) for key in range(n)]
    never = np.flatnonzero([bool(lost[key:, key].all()) for key in range(n)])
    for itself, hidden in ((True, np.flatnonzero(gone)), (False, never)):
        if 0 < len(hidden) < n:
            made = visible.copy()
            made[:, hidden] = own[:, hidden] & visible[:, hidden] if itself else False
            words = f"no {'later ' if itself else ''}token sees {which('key', hidden, n)}"
            code = "taken for padding, evicted, or not written into the cache"
            code = "the last tile of keys is left out" if hidden[0] and hidden[-1] == n - 1 else code
            yield KeySet("attention.hidden", words, made, len(ranges(hidden)), code, _as(hidden))
    more = seen & ~visible
    shown = np.flatnonzero([key > 0 and bool(more[:key, key].all()) for key in range(n)])
    if 0 < len(shown) < n:
        made = visible | np.isin(rows, shown)[None, :]
        words = f"every token, earlier ones too, sees {which('key', shown, n)}"
        code = "a prefix that sees both ways, or a mask of the wrong part"
        yield KeySet("attention.shown", words, made, len(ranges(shown)) + 1, code, _as(shown))


def verb(numbers: Any, one: str, several: str) -> str:
    """The verb for so many."""
    return one if len(numbers) == 1 else several


def _of_one(words: str) -> str:
    return words.replace("do not see", "does not see").replace("also see", "also sees")


def _as(keys: NDArray[np.int64]) -> dict[str, Any]:
    return {"keys": [list(run) for run in ranges(keys)]}


def _row_by_row(seen: Mask, visible: Mask) -> KeySet:
    """Runs of rows that miss or see the same keys."""
    n = len(seen)
    wrong = np.flatnonzero((seen != visible).any(axis=1))
    parts, free = [], 0
    for rows, words, numbers in _runs(seen, visible, wrong):
        parts.append(f"{which('token', rows, n)} {words if len(rows) > 1 else _of_one(words)}")
        free += numbers
    if len(parts) > FEW:
        most = f"; {len(parts) - FEW} other runs of rows otherwise"
        parts = parts[:FEW]
    else:
        most = ""
    words = f"other keys are seen: {listed(parts)}{most}"
    return KeySet("attention.keys", words, seen, free)


def _runs(seen: Mask, visible: Mask, wrong: NDArray[np.int64]) -> Iterator[tuple[list[int], str, int]]:
    """Neighbouring rows whose sets are off by the same keys."""
    run: list[int] = []
    before: tuple[Any, Any] | None = None
    for row in wrong:
        missing = ranges(np.flatnonzero(visible[row] & ~seen[row]))
        more = ranges(np.flatnonzero(seen[row] & ~visible[row]))
        if run and (missing, more) == before and row == run[-1] + 1:
            run.append(int(row))
            continue
        if run and before is not None:
            yield run, *_said(*before, len(seen))
        run, before = [int(row)], (missing, more)
    if run and before is not None:
        yield run, *_said(*before, len(seen))


def _said(missing: Any, more: Any, n: int) -> tuple[str, int]:
    parts = []
    for runs, verb in ((missing, "do not see"), (more, "also see")):
        keys = [key for first, last in runs for key in range(first, last + 1)]
        if keys:
            parts.append(f"{verb} {which('key', keys, n)}")
    return " and ".join(parts), 2 * (len(missing) + len(more)) + 2
