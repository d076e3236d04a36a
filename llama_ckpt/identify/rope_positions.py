"""Which position each row was turned by, and in which words that is said.

The position of a row is the whole number whose angles fit its pairs best. What the rows have in common is
said where there is something; otherwise the runs are, each with what it counts from. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.turns import Others, Turns
from llama_ckpt.judging.to_precision import cut_to_bfloat16, to_bfloat16, to_float16
from llama_ckpt.listing import listed, some, which

__all__ = ["Positions", "measured_positions", "said_of"]

Array: TypeAlias = NDArray[Any]

FARTHEST = 1 << 16
"""Positions are looked for up to here at most."""

LEAST = 512
"""And at least up to here, either way."""

AT_ONCE = 1 << 22
"""So many fits are computed at once."""

ROWS = 256
"""Of longer prompts so many rows are looked at one by one; the others are first held against those."""

FEW_RUNS = 6
"""Up to so many runs of rows are said one by one."""


class Positions(Others):
    """Other positions than the right ones; `at` is `[n]`."""


def measured_positions(turns: Turns, own: Array, frequencies: Array) -> Array | None:
    """The position that each row was turned by, `[n]` whole numbers; None where some row has none.

    A row that tells nothing, or that its own position fits, has its own.
    """
    at = np.array(own, np.int64)
    weight = np.sum(np.abs(turns.turn), axis=1)
    allowed = max(turns.tolerance, 2 * turns.left) ** 2 / 2

    def misfit(rows: Array, positions: Array) -> Array:
        angles = np.asarray(positions, np.float64)[:, None] * frequencies
        fit = np.sum(np.real(turns.turn[rows] * np.exp(-1j * angles)), axis=1)
        return np.asarray(1 - fit / np.where(weight[rows] > 0, weight[rows], 1.0))

    left = np.flatnonzero((weight > 0) & (misfit(np.arange(len(at)), at) > allowed))
    steps: list[int] = []
    while len(left):
        few = left if len(left) <= ROWS else left[np.linspace(0, len(left) - 1, ROWS).astype(int)]
        found = _best(turns.turn[few], at[few], frequencies)
        fits = misfit(few, found) <= allowed
        if not fits.all():
            return None
        at[few] = found
        steps = list(dict.fromkeys([*steps, *(found - own[few]).tolist()]))[:64]
        left = np.setdiff1d(left, few)
        for step in steps:  # what one row is off by, others nearly always are as well
            if len(left):
                good = misfit(left, own[left] + step) <= allowed
                at[left[good]] = own[left[good]] + step
                left = left[~good]
    return at


def _best(turn: Array, own: Array, frequencies: Array) -> Array:
    """For each row the whole number that fits best; of those that fit alike the nearest to its own."""
    most = int(min(FARTHEST, max(LEAST, 4 * (int(np.abs(own).max(initial=0)) + 1))))
    candidates = np.arange(-most, most + 1)
    table = np.exp(-1j * candidates[:, None] * frequencies).T
    found = np.empty(len(turn), np.int64)
    step = max(1, AT_ONCE // len(candidates))
    for start in range(0, len(turn), step):
        rows = slice(start, start + step)
        fit = np.real(turn[rows] @ table)
        best = fit.max(axis=1, keepdims=True)
        near = fit >= best - 1e-9 * np.abs(best)
        away = np.where(near, np.abs(candidates - own[rows][:, None]), 2 * FARTHEST + most)
        found[rows] = candidates[np.argmin(away, axis=1)]
    return found


ROUNDED: Mapping[str, Callable[[Array], Array]] = {"bfloat16": to_bfloat16, "float16": to_float16}


def said_of(at: Array, own: Array, token_ids: Any = ()) -> Iterator[Positions]:
    """What the positions `at` are, `[n]`, where `own` are right; the shortest description first."""
    at, own = np.asarray(at, np.int64), np.asarray(own, np.int64)
    n, off = len(at), at - own
    row = np.arange(n)
    moved = own != 0
    if (at[moved] == 0).all() and (at[~moved] == 0).all():
        yield Positions("rope.none", "nothing is turned", at, 0, "RoPE not called, or called with position 0")
    elif (at == at[0]).all() and n > 1:
        words = f"every row is turned as if it stood at position {at[0]}"
        yield Positions("rope.positions", words, at, code="one position for the whole batch or prompt")
    if (off == off[0]).all() and off[0]:
        yield _offset(at, own, int(off[0]))
    if own[0] and (at == row).all():
        words = f"positions are counted from 0 in this call, where it begins at {own[0]}"
        yield Positions("rope.positions", words, at, 0, "arange(n) without the number of tokens in the cache")
    if (at == -own).all():
        yield Positions("rope.sign", "everything is turned the other way", at, 0, "the sine's sign")
    yield from _by_a_rule(at, own, token_ids)
    yield _runs(at, own)


def _offset(at: Array, own: Array, step: int) -> Positions:
    words = f"rows are turned as if each stood {abs(step)} position{'s' * (abs(step) > 1)} "
    words += f"{'later' if step > 0 else 'earlier'}: from {at[0]} on instead of {own[0]}"
    code = "padding before the prompt is counted, or the cache's length is added too late or twice"
    return Positions("rope.positions", words, at, 1, code, parameters={"offset": step})


def _by_a_rule(at: Array, own: Array, token_ids: Any) -> Iterator[Positions]:
    """Rounded, cut, counted anew, shared, backwards."""
    real = own.astype(np.float64)
    for name, rounded in ROUNDED.items():
        if (at == rounded(real)).all():
            words = f"positions are rounded to {name}: whole numbers end at {256 if name[0] == 'b' else 2048}"
            yield Positions(
                "rope.positions-rounded", words, at, 1, f"arange in {name}, or positions cast to it"
            )
    if (at == cut_to_bfloat16(real)).all():
        words = "positions are cut to bfloat16, not rounded: whole numbers end at 256"
        yield Positions("rope.positions-rounded", words, at, 1, "the upper half of a float32 taken")
    top = int(at.max())
    if (at == np.minimum(own, top)).all():
        words = f"positions end at {top}: later rows are all turned as if they stood there"
        yield Positions("rope.positions", words, at, 1, "a table of angles that is too short, and clamped")
    wrapped = top + 1
    for start, words in ((0, "position"), (int(own[0]), "row")):
        if wrapped > 1 and (at == (own - start) % wrapped).all():
            said = f"positions begin again at 0 every {wrapped} {words}s"
            code = "a chunk's own numbers, a small integer type, or a table that is gone round"
            yield Positions("rope.positions", said, at, 1, code, parameters={"period": wrapped})
            break
    if (at == own[::-1]).all():
        yield Positions("rope.positions", "positions run backwards", at, 0, "reversed, or padded on the left")
    for share in range(2, 9):
        if (at == own // share).all():
            words = f"{share} rows after each other share a position: positions are divided by {share}"
            yield Positions("rope.positions", words, at, 1, "integers divided, or tokens counted in groups")
    if len(token_ids) == len(at) and (at == np.asarray(token_ids)).all():
        yield Positions("rope.positions", "token ids are taken for positions", at, 0, "arguments exchanged")


def _runs(at: Array, own: Array) -> Positions:
    """Rows in runs that are off by the same, or each by itself."""
    off = at - own
    same = (np.diff(off) == 0) & (np.diff(own) == 1)
    starts = np.r_[0, np.flatnonzero(~same) + 1]
    ends = np.r_[starts[1:] - 1, len(at) - 1]
    wrong = [(int(a), int(b)) for a, b in zip(starts, ends, strict=True) if off[a]]
    parameters = {"positions": at.tolist(), "own": own.tolist(), "rows": [list(run) for run in wrong]}
    if len(wrong) <= FEW_RUNS:
        words = "RoPE turns " + listed([_run(a, b, at, own, len(at)) for a, b in wrong])
        free = sum(2 if last > first else 1 for first, last in wrong)
        begun = all(at[a] == 0 for a, _ in wrong)
        code = (
            "counted anew in each call"
            if begun
            else "positions kept by hand: a step adds too many or too few"
        )
        return Positions("rope.positions", words, at, free, code, parameters=parameters)
    rows = [row for a, b in wrong for row in range(a, b + 1)]
    listed_at = some(at[rows].tolist(), 12)
    words = f"RoPE turns {which('token', rows, len(at))} as if their positions were {listed_at}"
    return Positions("rope.positions", words, at, len(rows), "", parameters=parameters)


def _run(first: int, last: int, at: Array, own: Array, n: int) -> str:
    tokens = which("token", range(first, last + 1), n)
    if first == last:
        return f"{tokens} as if its position was {at[first]} instead of {own[first]}"
    instead = f"{_span(at[first], at[last])} instead of {_span(own[first], own[last])}"
    return f"{tokens} as if their positions were {instead}"


def _span(first: int, last: int) -> str:
    return f"{first} to {last}" if last - first > 1 else f"{first} and {last}"
