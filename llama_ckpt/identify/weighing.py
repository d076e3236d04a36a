"""Which guesses explain the tensors, and how sure that is: alike for all operators.

A guess explains a call when every tensor of it, the right ones too, is as near to what the guess says as a
right program's is to the oracle. Of several the one with the fewest numbers counts; those that explain as
well with as few are named beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.places import NOWHERE, elements_off, place_of
from llama_ckpt.identify.record import Asked, Guess, Identified
from llama_ckpt.judging.evidence import FINEST, Evidence
from llama_ckpt.judging.matching import distance, leaves_at_most, passes, would_explain

__all__ = ["weigh"]

Array: TypeAlias = NDArray[Any]

PART = 0.9
"""A part of the truth explains at least this share of the error's square."""

EQUATIONS = 2
"""So many numbers of theirs are wanted for each that a guess reads from them: fewer fit anything."""

MOST_ALIKE = 3
"""So many others are named beside the first."""


MUCH = 10.0
"""What leaves so many times as much can be told apart, though it passes too."""

FINE = 0.01
"""Below this share of what rounding may leave nothing can be told apart."""


@dataclass(frozen=True)
class _Weighed:
    found: Identified
    guess: Guess


def weigh(asked: Asked, guesses: Iterable[Guess]) -> list[Identified]:
    """The guesses that explain the call or most of it, best first."""
    wrong = [one for one in asked.evidence if not passes(one.x, one.o, one.limit, one.mask)]
    only_exact = not wrong  # judged more sharply, from what was recorded right before it
    wrong = wrong or [asked.first]
    equations = sum(int(_judged(one).sum()) for one in wrong)
    weighed = []
    for guess in guesses:
        if only_exact and not guess.exact:
            continue
        if guess.free_numbers * EQUATIONS > equations:
            continue
        found = _tried(guess, asked.evidence, wrong, equations)
        if found is not None:
            weighed.append(_Weighed(found, guess))
    weighed.sort(key=lambda one: _rank(one.found))
    return _beside_each_other(weighed, wrong)


def _judged(one: Evidence) -> NDArray[np.bool_]:
    """The elements that are judged, of the rows that are off; of all where none is by itself."""
    off = elements_off(one.x, one.o, one.limit, one.mask)
    rows = off.reshape(len(off), -1).any(axis=1)
    judged = np.ones(off.shape, np.bool_) if one.mask is None else np.broadcast_to(one.mask, off.shape)
    return judged[rows] if rows.any() else judged


def _rank(found: Identified) -> tuple[bool, float, float]:
    """Of those that explain it the one with the fewest numbers, of the others the one that leaves least."""
    if found.explained:
        return False, found.free_numbers, found.left
    return True, -found.explains, found.free_numbers


def _tried(
    guess: Guess, evidence: Sequence[Evidence], wrong: Sequence[Evidence], equations: int
) -> Identified | None:
    if not guess.exact and not any(_moves(one, guess) for one in wrong):
        return None
    made = [(one, guess.predicted.get(one.name, one.o)) for one in evidence]
    explained = all(would_explain(p, one.x, one.o, one.limit, one.mask) for one, p in made)
    shares = [_share(one, guess.predicted[one.name]) for one in wrong if one.name in guess.predicted]
    explains = 1.0 if explained else min(shares, default=0.0)
    if not explained and not (guess.part and explains >= PART):
        return None
    left = [(distance(one.x, p, one.mask), leaves_at_most(one.limit)) for one, p in made]
    worst, allowed = max(left, key=lambda pair: pair[0] / (pair[1] or FINEST))
    place = guess.place
    if place is NOWHERE:
        first = evidence[0]
        place = place_of(elements_off(first.x, first.o, first.limit, first.mask), first.name)
    return Identified(
        guess.kind,
        guess.sentence,
        place,
        explained,
        explains,
        worst,
        allowed,
        guess.free_numbers,
        equations,
        code=guess.code,
        would_tell=guess.would_tell,
        parameters=guess.parameters,
        predicted=guess.predicted,
    )


def _moves(one: Evidence, guess: Guess) -> bool:
    """Whether a guess says of a wrong tensor that it is another than the oracle's."""
    p = guess.predicted.get(one.name)
    return p is not None and not passes(p, one.o, one.limit, one.mask)


def _share(one: Evidence, p: Array) -> float:
    """Of the error's square, how much the guess explains; below 0 where it makes it worse.

    Nothing where most of the tensor itself remains: of one that is small beside the right one, any small
    prediction would explain the error.
    """
    before, after = distance(one.x, one.o, one.mask), distance(one.x, p, one.mask)
    sizes = np.linalg.norm(np.asarray(one.o, np.float64)), np.linalg.norm(np.asarray(p, np.float64))
    whole, left = (
        float(d * (s or 1.0)) for d, s in zip((before, after), sizes, strict=True)
    )  # of zeros: itself
    own = float(np.linalg.norm(np.asarray(one.x, np.float64)))
    if not np.isfinite(left) or (np.isfinite(own) and left**2 > (1 - PART) * own**2 and left > 0):
        return 0.0
    return 1.0 - (left / whole) ** 2 if np.isfinite(whole) and whole > 0 else 1.0


def _beside_each_other(weighed: Sequence[_Weighed], wrong: Sequence[Evidence]) -> list[Identified]:
    """Each once, the best with those that cannot be told apart from it and the one that comes next."""
    if not weighed:
        return []
    first, *others = weighed
    if first.found.explained:  # what is said beside what explains all of it says nothing
        others = [o for o in others if not o.found.sentence.startswith(f"{first.found.sentence}, and ")]
    alike = [one for one in others if _cannot_be_told_apart(first, one, wrong)]
    rest = [one.found for one in others if one not in alike and one.found.sentence != first.found.sentence]
    words = dict.fromkeys(_with_what_tells(one.guess) for one in alike)
    words.pop(_with_what_tells(first.guess), None)
    best = replace(
        first.found,
        alike=tuple(words)[:MOST_ALIKE],
        next_best=(rest[0].sentence, rest[0].left) if rest else None,
    )
    return [best, *rest]


def _with_what_tells(guess: Guess) -> str:
    return guess.sentence + (f"; {guess.would_tell} would tell" if guess.would_tell else "")


def _cannot_be_told_apart(a: _Weighed, b: _Weighed, wrong: Sequence[Evidence]) -> bool:
    """Both explain it, the other with no more numbers, and does not leave far more.

    In half precision much passes that misses every number by a digit, beside what meets them exactly.
    """
    both = a.found.explained and b.found.explained
    as_near = b.found.left <= max(MUCH * a.found.left, FINE * a.found.allowed)
    return both and as_near and b.guess.free_numbers <= a.guess.free_numbers
