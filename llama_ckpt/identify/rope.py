"""By which angle each pair of each row was turned, and which positions and frequencies that is. numpy only.

From q to q_rope, and from k to k_rope, the turns are measured; what explains those of the first wrong one is
tried on the other, so that one sentence says both where one mistake made both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify import rope_frequencies, rope_positions
from llama_ckpt.identify.places import Place, ranges
from llama_ckpt.identify.record import Asked, Guess
from llama_ckpt.identify.rope_formulas import formula_guesses
from llama_ckpt.identify.rope_scalings import of_this_file
from llama_ckpt.identify.rope_tables import rounded_tables
from llama_ckpt.identify.turns import Turns, measured_turns
from llama_ckpt.judging.matching import distance, leaves_at_most, passes
from llama_ckpt.listing import which
from llama_ckpt.oracle.llama import rope_frequencies as frequencies_of_config
from llama_ckpt.points import split_name

__all__ = ["rope_guesses", "turned_too"]

Array: TypeAlias = NDArray[Any]

OFFSETS = (-2, -1, 1, 2)
"""Positions that are tried together with other frequencies."""

MOST_OF_A_PART = 4
"""What reads more numbers from the tensor fits a part of much, and says nothing of it."""

MOST = 12
"""So many explanations of one tensor are tried on the other."""


@dataclass(frozen=True)
class _Turned:
    """One explanation of one tensor: a table of cosines and sines, and how to say it."""

    turns: Turns
    kind: str
    words: str
    cos: Array
    sin: Array
    free: int
    code: str = ""
    tells: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def predicted(self) -> Array:
        """The whole tensor as this has it."""
        return self.turns.predicted(self.cos, self.sin)

    @property
    def fits(self) -> bool:
        """Whether it leaves no more than rounding may."""
        one = self.turns.one
        return distance(one.x, self.predicted, one.mask) <= leaves_at_most(one.limit)


def rope_guesses(asked: Asked) -> Iterator[Guess]:
    """Guesses where q_rope or k_rope is the first wrong tensor."""
    if asked.point not in ("q_rope", "k_rope"):
        return
    given = asked.given
    own, f = np.asarray(given["positions"], np.int64), np.asarray(given["frequencies"], np.float64)
    larger = float(given.get("magnitude", 1.0))
    wrong = []
    for point in ("q_rope", "k_rope"):
        one = asked.of(point)
        if one is not None and not passes(one.x, one.o, one.limit, one.mask):
            wrong.append(list(measured_turns(one, larger * np.asarray(given[point[0]], np.float64))))
    if not wrong or not all(wrong):
        yield from formula_guesses(asked)
        return
    both = False
    for first in _explanations(wrong[0], own, f, asked):
        if len(wrong) == 1:
            yield _guess([first], asked)
            continue
        other = _the_same(first, wrong[1])
        if other is not None:
            both = both or other.fits
            yield _guess([first, other], asked)
    if len(wrong) == 2 and not both:
        yield from _each_its_own(wrong, own, f, asked)


def _each_its_own(wrong: Sequence[Sequence[Turns]], own: Array, f: Array, asked: Asked) -> Iterator[Guess]:
    """What explains one does not explain the other: the best of each."""
    best = []
    for turns in wrong:
        found = sorted(_explanations(turns, own, f, asked), key=lambda one: one.free)[:2]
        if not found:
            return
        best.append(found)
    for first in best[0]:
        for second in best[1]:
            if first.words != second.words:
                yield _guess([first, second], asked)


def _the_same(first: _Turned, others: Sequence[Turns]) -> _Turned | None:
    """The same explanation of the other tensor; None where it is turned otherwise."""
    for turns in others:
        if turns.layout.words == first.turns.layout.words and abs(turns.gain - first.turns.gain) < 1e-3:
            parts = (first.kind, first.words, first.cos, first.sin, first.free)
            return _Turned(turns, *parts, first.code, first.tells, first.parameters)
    return None


# -- what one tensor's turns are -------------------------------------------------------------------


def _explanations(every: Sequence[Turns], own: Array, f: Array, asked: Asked) -> Iterator[_Turned]:
    """Those that come near, at most so many."""
    n = 0
    for turns in every:
        for one in _of_turns(turns, own, f, asked):
            yield one
            n += 1
            if n == MOST:
                return


def _of_turns(turns: Turns, own: Array, f: Array, asked: Asked) -> Iterator[_Turned]:
    pairs = len(turns.layout.a)
    extra = (turns.layout.words != "") + (turns.gain != 1) + (len(turns.heads) < turns.before.shape[1])
    most = max(turns.tolerance, 2 * turns.left)

    def near(angles: Array) -> bool:
        return turns.misfit(angles) <= most

    def of(kind: str, words: str, angles: Array, free: int, *more: Any) -> _Turned:
        return _Turned(turns, kind, words, np.cos(angles), np.sin(angles), free + extra, *more)

    right = own[:, None] * f[:pairs]
    if pairs == len(f) and near(right):
        if turns.layout.words or turns.gain != 1:
            yield of("rope.pairs" if turns.layout.words else "rope.gain", "", right, 0)
        for speed in of_this_file(f, pairs, asked.around.config):
            # Of few positions the slow pairs tell little, which half precision hides: no number is read.
            drawn = {"frequencies": speed.at.tolist(), "own": f.tolist()}
            yield of(speed.kind, speed.words, own[:, None] * speed.at, 0, speed.code, "", drawn)
        yield from _of_tables(turns, own, f, extra)
        return
    at = rope_positions.measured_positions(turns, own, f[:pairs])
    if at is not None:
        for one in rope_positions.said_of(at, own, asked.around.token_ids):
            plain = {"positions": at.tolist(), "own": own.tolist()} | dict(one.parameters)
            yield of(one.kind, one.words, one.at[:, None] * f[:pairs], one.free, one.code, one.tells, plain)
    for offset in (0, *OFFSETS):
        found = rope_frequencies.measured_frequencies(turns, own + offset)
        if found is None or not near((own + offset)[:, None] * found.at):
            continue
        later = f", and positions are off by {offset:+d}" if offset else ""
        for speed in rope_frequencies.said_of(found, f, asked.around.config):
            angles = (own + offset)[:, None] * speed.at
            if near(angles):
                words, free = speed.words + later, speed.free + bool(offset)
                drawn = {"frequencies": speed.at.tolist(), "own": f.tolist()} | dict(speed.parameters)
                yield of(speed.kind, words, angles, free, speed.code, speed.tells, drawn)
        break
    if pairs == len(f):
        yield from _of_tables(turns, own, f, extra)


def _of_tables(turns: Turns, own: Array, f: Array, extra: int) -> Iterator[_Turned]:
    for table in rounded_tables(turns, own.astype(np.float64), f):
        kind, free = "rope.rounded", len(table.steps) + extra
        code = f"a table or angles made in {table.dtype.split()[0]}, where float32 is wanted"
        parameters = {"rounded": list(table.steps), "to": table.dtype}
        yield _Turned(turns, kind, table.words, table.cos, table.sin, free, code, "", parameters)


# -- how it is said --------------------------------------------------------------------------------


def _guess(found: Sequence[_Turned], asked: Asked) -> Guess:
    first = found[0]
    predicted = {one.turns.one.name: one.predicted for one in found}
    same = len({one.words for one in found}) == 1 and len({_heads_said(one) for one in found}) == 1
    if same:
        letters = [_letter(one) for one in found]
        rest = _others_right(asked, letters)
        sentence = _sentence(first, letters, rest)
    else:
        sentence = "; ".join(f"{_letter(one)}: {_sentence(one, [_letter(one)], False)}" for one in found)
    return Guess(
        first.kind,
        sentence,
        predicted,
        free_numbers=first.free if same else sum(one.free for one in found),
        place=_place(first),
        parameters=first.parameters,
        code=first.code,
        would_tell=first.tells,
        part=all(one.free <= MOST_OF_A_PART for one in found),
    )


def _sentence(one: _Turned, letters: Sequence[str], only: bool) -> str:
    parts = [part for part in (one.turns.layout.words, one.words) if part]
    if one.turns.gain != 1:
        parts.append(_gain_said(one.turns.gain, float(one.turns.one.case.arguments.get("magnitude", 1.0))))
    said = ", and ".join(parts)
    heads = _heads_said(one)
    where = " and ".join(letters) if only else ""
    return f"in {where}{' ' * bool(where and heads)}{heads} only: {said}" if where or heads else said


def _gain_said(gain: float, larger: float) -> str:
    """What everything is multiplied by, beside what the file asks for."""
    if larger != 1 and abs(gain * larger - 1) < 1e-4:
        return f"the attention factor by which YaRN makes what is turned larger, {larger:.6g}, is left out"
    if larger != 1 and abs(gain / larger - 1) < 1e-4:
        return f"YaRN's attention factor, {larger:.6g}, is applied twice"
    as_yarn = float(np.exp(10 * (gain - 1)))
    whole = round(as_yarn)
    known = whole > 1 and abs(as_yarn / whole - 1) < 1e-3
    return f"everything is multiplied by {gain:.6g}" + (
        f", 1 + 0.1 ln({whole}), which is YaRN's attention factor of a scaling by {whole}" if known else ""
    )


def _letter(one: _Turned) -> str:
    return split_name(one.turns.one.name)[1][0]


def _others_right(asked: Asked, letters: Sequence[str]) -> bool:
    """Whether the other of q and k was looked at and is right."""
    return any(asked.of(f"{letter}_rope") is not None for letter in "qk" if letter not in letters)


def _heads_said(one: _Turned) -> str:
    n, heads = one.turns.before.shape[1], one.turns.heads
    return which("head", heads, n) if len(heads) < n else ""


def _place(one: _Turned) -> Place:
    """Rows whose angles are others than the right ones, and heads where not all are meant."""
    n, heads = one.turns.before.shape[:2]
    exact, made = np.asarray(one.turns.one.o, np.float64), one.predicted
    size = np.linalg.norm(exact.reshape(n, -1), axis=1)
    rows = np.flatnonzero(np.linalg.norm((made - exact).reshape(n, -1), axis=1) > one.turns.tolerance * size)
    some_heads = len(one.turns.heads) < heads
    return Place(
        rows=ranges(rows) if len(rows) < n else None,
        heads=ranges(one.turns.heads) if some_heads else None,
        sizes={"rows": n, "heads": heads},
        nouns={"rows": "token", "heads": "head"},
    )


def turned_too(asked: Asked) -> Iterator[Guess]:
    """Guesses where q, k or v is wrong, since it is turned already: by RoPE at its own positions."""
    config, own = asked.around.config, np.asarray(asked.around.positions)
    if asked.point not in ("q", "k", "v") or config is None or len(own) != len(asked.x):
        return
    f = frequencies_of_config(config)
    for turns in measured_turns(asked.first, asked.o):
        angles = own[:, None] * f[: len(turns.layout.a)]
        if turns.misfit(angles) <= max(turns.tolerance, 2 * turns.left):
            said = {"v": "values are turned by RoPE, as only queries and keys are"}
            words = said.get(asked.point, f"{asked.point} is turned by RoPE here already")
            where = f", as {turns.layout.words[11:]}" if turns.layout.words.startswith("RoPE turns ") else ""
            made = turns.predicted(np.cos(angles), np.sin(angles))
            yield Guess("rope.turned-too", words + where, {asked.name: made}, int(bool(where)))
