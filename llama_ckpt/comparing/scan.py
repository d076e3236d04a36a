"""One look at each tensor of a dump: what is not finite, zero, or equal to another.

Zeros and equal tensors or rows are suspicions at first: a program may compute them. So they are told after
the tensors were judged, by `suspicions`, and only of those that are not what they should be; `Scan.hear`
takes the verdicts. numpy only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.dumps.theirs import TheirDump
from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.metrics import row_scale
from llama_ckpt.points import ALL_POINTS, split_name

__all__ = ["Scan", "scan"]

COPYING = "llama_ckpt."
"""How the producers begin whose recorder copies each tensor when it is made: ours."""

SOME = 61
"""About so many numbers of a tensor tell, with its sum, whether another may be equal to it."""


@dataclass
class Scan:
    """What one look at each tensor tells.

    Attributes:
        hashes: of each tensor's values, the same for equal ones.
        zeros: tensors of nothing but zeros.
        bad: for a tensor that is not finite the first place, what stands there, how many there are.
        rows: for a tensor with equal rows each pair of them, a row with the first one that is like it.
        verdicts: for what was judged whether it is right; by its own error, where that was judged.
        copied: whether the recorder is known to copy: what is alike then was made so.
    """

    hashes: dict[str, bytes] = field(default_factory=dict)
    zeros: list[str] = field(default_factory=list)
    bad: dict[str, tuple[tuple[int, ...], float, int]] = field(default_factory=dict)
    rows: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    verdicts: dict[str, bool] = field(default_factory=dict)
    judged_by_own: set[str] = field(default_factory=set)
    copied: bool = False

    def hear(self, name: str, right: bool, o: NDArray[Any], limit: Limit) -> None:
        """Take a verdict; one on the own error counts for more than one on the total, a later one of a kind.

        Args:
            name: the point. right: whether its error is allowed. o: the exact tensor, token first.
            limit: what was allowed.
        """
        if limit.error_kind == "total" and name in self.judged_by_own:
            return
        if limit.error_kind == "own":
            self.judged_by_own.add(name)
        self.verdicts[name] = right
        if name in self.rows and o.ndim > 1:
            flat = o.reshape(len(o), -1)
            allowed = limit.row_err if limit.rows is None else limit.rows
            most = np.broadcast_to(allowed, len(o)) * row_scale(flat)
            self.rows[name] = [
                (i, j)
                for i, j in self.rows[name]
                # Rows that are so much alike may be rounded to the same bytes.
                if max(i, j) < len(o) and np.linalg.norm(flat[i] - flat[j]) > most[i] + most[j]
            ]

    def are_right(self, names: Sequence[str]) -> bool:
        """Whether all of these were judged and found right."""
        return all(self.verdicts.get(name, False) for name in names)


def scan(theirs: TheirDump, progress: Callable[[str, int, int], None] | None = None) -> Scan:
    """Look at every tensor once, one in memory at a time."""
    found = Scan(copied=(theirs.declared.producer or "").startswith(COPYING))
    told: dict[tuple[int, str, bytes], list[str]] = {}
    for number, name in enumerate(theirs.names):
        if progress:
            progress(f"looking at {name}", number, len(theirs.names))
        array = theirs.raw(name)
        # A sum is finite where all terms are, unless it overflows.
        with np.errstate(all="ignore"):  # of infinities, and of half precision
            flat = array.ravel()
            total = flat.sum()
        written = bool(total) or array.any()
        if not written:
            found.zeros.append(name)
        some = flat[:: max(1, flat.size // SOME)]
        told.setdefault((array.nbytes, str(total), some.tobytes()), []).append(name)
        finite = np.True_ if np.isfinite(total) else np.isfinite(array) | _unseen(name, array)
        if not finite.all():
            at = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape))
            found.bad[name] = at, float(array[at]), int((~finite).sum())
        elif written and (pairs := _equal_rows(array)):
            found.rows[name] = pairs
    # What is equal has the same sum and the same few numbers, and hardly anything else has: only that is
    # read once more for a hash.
    alike = {name for names in told.values() if len(names) > 1 for name in names}
    found.hashes = {n: _hash(theirs.raw(n)) if n in alike else n.encode() for n in theirs.names}
    return found


def _hash(array: NDArray[Any]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()


def _unseen(name: str, array: NDArray[Any]) -> Any:
    """Where scores are those of later keys, which are often minus infinity, and which nobody judges."""
    if not ALL_POINTS[split_name(name)[1]].causal or array.ndim != 3 or array.shape[0] != array.shape[2]:
        return False
    return np.triu(np.ones((len(array), len(array)), bool), 1)[:, None]


def _equal_rows(array: NDArray[Any]) -> list[tuple[int, int]]:
    if array.ndim < 2 or array[0].size < 8:
        return []
    seen: dict[int, int] = {}
    pairs: list[tuple[int, int]] = []
    keys = _row_hashes(array)
    if len(set(keys)) == len(keys):
        return pairs
    for row, key in enumerate(keys):
        if key in seen and array[seen[key]].tobytes() == array[row].tobytes():
            pairs.append((seen[key], row))
        else:
            seen.setdefault(key, row)
    return pairs


def _row_hashes(array: NDArray[Any]) -> list[int]:
    """A number for each row, the same for rows of the same bytes: their words times odd numbers, summed."""
    rows = np.ascontiguousarray(array).reshape(len(array), -1)
    words: NDArray[Any] = rows.view(np.uint32 if rows.dtype.itemsize == 4 else np.uint64)
    sums: Any = np.einsum("ij,j->i", words, _odd(words.shape[1], words.dtype))
    hashes: list[int] = sums.tolist()
    return hashes


@lru_cache(maxsize=8)
def _odd(n: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    odd: NDArray[Any] = np.random.default_rng(0).integers(0, 1 << 31, n, dtype) * dtype.type(2)
    odd += dtype.type(1)
    return odd
