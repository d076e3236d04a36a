"""Which roundings put a tensor where it is, with whole blocks between it and what was recorded before.

Nothing shows a single rounding there, so whole arithmetics run from the last recorded end, or the tokens, to
the tensor. What a run leaves no further off than float32 leaves a program is proved: a bug would have stayed.
More often float32's last bit has decided otherwise somewhere on the way, and what follows is as large as the
roundings are: then it can be said how far they would put a right program, and no more. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.parts import (
    OTHERS,
    PARTS,
    Lines,
    candidates,
    composed,
    in_halves,
    lines_of,
    plain,
)
from llama_ckpt.arithmetic.profiles import PROFILES
from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.arithmetic.rounded_oracle import rounded_oracle
from llama_ckpt.comparing.stretch import Stretch
from llama_ckpt.errors import OptionError
from llama_ckpt.judging.rounded_run import PARTED
from llama_ckpt.judging.verdict import judge
from llama_ckpt.oracle.patched_oracle import RIGHT

__all__ = ["MOST_PRODUCTS", "AsFar", "OverBlocks"]

Array: TypeAlias = NDArray[Any]

MOST_PRODUCTS: Final = 1 << 29
"""A run of more multiplications, parameters times tokens, is not made for each arithmetic."""

FIRST_ROWS: Final = 4
"""On so many tokens each is tried; what comes after a token does not change its row."""

KEPT: Final = 16
"""So many are then tried on all tokens."""

ALIKE: Final = 2.0
"""A tensor is as far off as roundings put it within this factor."""

ROOM, FEW_GREW = 4.0, 3
"""Within this factor, beyond how most others grew between, so many at least, and from a few tokens to all."""

MANY, LIKELY, LIKELY_OF_FEW = 8, 0.8, 0.25
"""Of half of so many rows no more than this share of their error is left where it is these roundings'. Of
others, which add their own, as much is left as there was or more, but by chance less of a row: all that a
run adds lies along a few directions."""


@dataclass(frozen=True)
class AsFar:
    """What an arithmetic makes of a stretch.

    Attributes:
        arithmetic: tried.
        left: the relative distance from its run; costs: its run's from the exact one; err: the tensor's own.
        rows: of each row's error the share that is left.
        proved: whether what is left is within what float32 may leave.
    """

    arithmetic: Arithmetic
    left: float
    costs: float
    err: float
    rows: Array
    proved: bool

    @property
    def share(self) -> float:
        """Of half of the rows no more than this share is left."""
        return float(np.median(self.rows))

    @property
    def may_be(self) -> bool:
        """Whether the tensor is as far off as these roundings put it, and errors lie so, or they are usual.

        Of a right program no more is left than two runs may part by.
        """
        near = self.is_within(ALIKE) and self.left <= PARTED * self.costs
        return near and (self.is_likely or is_usual(self.arithmetic))

    def is_within(self, factor: float) -> bool:
        """The same within another factor."""
        return self.err <= factor * self.costs and self.costs <= factor * self.err

    @property
    def is_likely(self) -> bool:
        """Whether its errors lie as these roundings put them, which no bug's do."""
        return self.proved or self.share <= (LIKELY if len(self.rows) >= MANY else LIKELY_OF_FEW)

    def theirs(self) -> int:
        """How many rows are explained to a hundredth."""
        return int(np.count_nonzero(self.rows <= 0.01))


@dataclass(frozen=True)
class _Exactly:
    """A stretch without roundings: what goes into its `middle`, and the tensor."""

    begun: Array
    y: Array


@dataclass
class OverBlocks:
    """The arithmetics that may explain the stretches of a dump.

    Attributes:
        types, weight_type: of the model's matrices, as in `Undeclared`; rows: tokens of the pass.
        stretches: those that were looked at; unseen: whether others were not, so that nothing is proved.
        fits: of each arithmetic left what it makes of each stretch.
    """

    rows: int
    types: Sequence[str]
    weight_type: str
    stretches: list[Stretch] = field(default_factory=list)
    fits: list[list[AsFar]] = field(default_factory=list)
    unseen: bool = False
    _exact: dict[tuple[str, int | None], _Exactly] = field(default_factory=dict)
    _grew: dict[str, list[float]] = field(default_factory=dict)  # costs at the end for those of the beginning

    def look(self, stretch: Stretch, *, search: bool = True) -> None:
        """Try every arithmetic on a first stretch, and on a later one those that may be it by then.

        Args:
            search: whether what is rounded is not known.
        """
        if self.stretches or not search:
            alive = [before for before in self.fits if _may_be(before)]
            found = [(before, self._fit(stretch, before[0].arithmetic)) for before in alive]
            self.fits = [[*before, one] for before, one in found if one is not None]
        else:
            self.fits = [[one] for one in self._first(stretch)]
        self.stretches.append(stretch)

    @property
    def best(self) -> list[AsFar] | None:
        """Of the arithmetic that explains most, what it makes of each stretch; None where none may be it."""
        return next(iter(self.may_be), None)

    @property
    def may_be(self) -> list[list[AsFar]]:
        """Of all that put every stretch as far what they make of it, the best first."""
        found = [fits for fits in self.fits if _may_be(fits)]
        return sorted(found, key=lambda fits: (not all(one.proved for one in fits), fits[0].share))

    @property
    def is_proved(self) -> bool:
        """Whether the best explains every stretch whole."""
        return self.best is not None and self.proves(self.best)

    def proves(self, fits: Sequence[AsFar]) -> bool:
        """Whether an arithmetic explains every stretch whole; so it is where none are."""
        return not self.unseen and all(one.proved for one in fits)

    def of(self, arithmetic: Arithmetic) -> list[AsFar]:
        """What an arithmetic makes of each stretch."""
        for fits in self.fits:
            if fits[0].arithmetic == arithmetic and len(fits) == len(self.stretches):
                return fits
        held = replace(arithmetic.for_rows(self.rows), fewer_rows={})
        return [one for stretch in self.stretches if (one := self._fit(stretch, held)) is not None]

    @property
    def is_likely(self) -> bool:
        """Whether errors of a stretch lie as the best one's roundings put them."""
        return self.best is not None and any(one.is_likely for one in self.best)

    def _first(self, stretch: Stretch) -> list[AsFar]:
        rows = None if stretch.last or len(stretch.x) <= FIRST_ROWS else FIRST_ROWS
        tried = self._fits(stretch, self._arithmetics(), rows)
        caches = max((one.costs for one in tried if _is_a_cache(one.arithmetic)), default=0.0)

        def most(one: AsFar) -> float:
            """With a cache no more is left than it costs, beside what two runs part by."""
            return PARTED * float(np.hypot(one.costs, caches))

        tried.sort(key=lambda one: (not one.is_within(ALIKE**2), one.share))
        tried = tried[:KEPT]
        if tried and not tried[0].proved:
            near = [one for one in tried[:2] if one.is_within(ALIKE**2) and one.left <= most(one)]
            added = [a for one in near for a in self._with_caches(one)]
            tried += [one for one in self._fits(stretch, added, rows) if one.share < tried[0].share]
        if rows is None:
            return tried
        errs = self._err(stretch, rows), self._err(stretch)
        left = [few.arithmetic for few in tried if few.proved or _is_about(errs, few.costs, few.costs)]
        return self._fits(stretch, left, None)

    def _fits(self, stretch: Stretch, among: Sequence[Arithmetic], rows: int | None) -> list[AsFar]:
        """What each makes of the first rows, or of all; without those that begin too far off, or too near.

        What is the same after the first blocks, to the last bit, stays so: it is run once.
        """
        exact, errs = self._exactly(stretch, rows).begun, (self._err(stretch, rows), self._err(stretch))
        found, seen, grew = [], dict[bytes, AsFar | None](), self._grew.setdefault(stretch.name, [])
        for arithmetic in among:
            try:
                begun = self._begun(stretch, arithmetic, rows)
            except OptionError:
                continue
            key = begun.tobytes()
            if key not in seen or stretch.middle == stretch.first:
                costs = float(np.linalg.norm(begun - exact) / np.linalg.norm(exact))
                known = costs > 0 and len(grew) >= FEW_GREW
                if known and not _is_about(errs, *_usually(costs, grew)):
                    seen[key] = None
                    continue
                seen[key] = one = self._fit(stretch, arithmetic, rows, begun)
                if one is not None and costs > 0 and np.isfinite(one.costs / costs):
                    grew.append(one.costs / costs)
            if (one := seen[key]) is not None:
                found.append(replace(one, arithmetic=arithmetic))
        return found

    def _err(self, stretch: Stretch, rows: int | None = None) -> float:
        """Of the first rows, or of all; at least what float32 may leave."""
        exact = self._exactly(stretch, rows).y
        off = np.linalg.norm(stretch.theirs(rows) - exact)
        return max(float(off / np.linalg.norm(exact)), stretch.limit.err)

    def _begun(self, stretch: Stretch, arithmetic: Arithmetic, rows: int | None) -> Array:
        by = rounded_oracle(arithmetic, weight_type=self.weight_type)
        return stretch.begin(by, arithmetic.embeddings, rows)

    def _exactly(self, stretch: Stretch, rows: int | None) -> _Exactly:
        key = stretch.name, rows
        if key not in self._exact:
            begun = stretch.begin(RIGHT, rows=rows)
            self._exact[key] = _Exactly(begun, stretch.end(RIGHT, begun))
        return self._exact[key]

    def _fit(
        self, stretch: Stretch, arithmetic: Arithmetic, rows: int | None = None, begun: Array | None = None
    ) -> AsFar | None:
        """None where rows of these widths cannot be rounded so; `begun` what goes on where it is made."""
        try:
            begun = self._begun(stretch, arithmetic, rows) if begun is None else begun
            y = stretch.end(rounded_oracle(arithmetic, weight_type=self.weight_type), begun)
        except OptionError:
            return None
        x, o = stretch.theirs(rows), self._exactly(stretch, rows).y
        norm, off = float(np.linalg.norm(o)), _by_row(x - o)
        left = _by_row(x - y)
        return AsFar(
            arithmetic,
            left=float(np.linalg.norm(left)) / norm,
            costs=float(np.linalg.norm(y - o)) / norm,
            err=float(np.linalg.norm(off)) / norm,
            rows=left / np.maximum(off, 1e-300),
            proved=judge(stretch.name, x, y, limit=stretch.limit, dtype="float32").verdict == "pass",
        )

    def _arithmetics(self) -> list[Arithmetic]:
        """Profiles, single parts, and half precision with its steps fused; each for so many rows."""
        none: Mapping[str, Lines] = {part: plain(part, self.types) for part in PARTS}
        seen = [none]
        found = []
        for profile in OTHERS:
            lines = {part: lines_of(profile, part, self.rows, self.types) for part in PARTS}
            if lines not in seen:
                seen.append(lines)
                found.append(replace(profile.for_rows(self.rows), fewer_rows={}))
        singles = [
            {**none, part: one}
            for part in ("products", "attention")
            for one in candidates(part, self.rows, self.types)
        ]
        for lines in (*singles, *in_halves(self.rows, self.types)):
            if lines not in seen:
                seen.append(lines)
                found.append(composed(lines, self.rows, self.types, None))
        return found

    def _with_caches(self, one: AsFar) -> list[Arithmetic]:
        """The same with a cache in half precision, where it has none."""
        a = one.arithmetic
        if (a.keys, a.values) != ("float32", "float32"):
            return []
        lines = {part: lines_of(a, part, self.rows, self.types) for part in PARTS}
        kept = [
            x
            for x in candidates("attention", self.rows, self.types)
            if x["keys"] == x["values"] and x["keys"] in ("float16", "bfloat16")
        ]
        return [composed({**lines, "attention": x}, self.rows, self.types, None) for x in kept]


def _may_be(fits: Sequence[AsFar]) -> bool:
    """Whether an arithmetic explains every stretch, or puts it as far."""
    return all(one.proved or one.may_be for one in fits)


def _usually(costs: float, grew: Sequence[float]) -> tuple[float, float]:
    """What costs of a beginning grow to, least and most, but for an eighth of those known at either end."""
    ordered, few = sorted(grew), len(grew) // 8
    return costs * ordered[few], costs * ordered[-1 - few]


def _is_about(errs: tuple[float, float], least: float, most: float) -> bool:
    """Whether errors, of first rows and of all, may be what an arithmetic costs, known within a factor."""
    return least <= ALIKE * ROOM * min(errs) and errs[1] <= ALIKE * ROOM * most


def is_usual(arithmetic: Arithmetic) -> bool:
    """Whether programs are known that round so: something that can be tried costs as much as any bug."""
    return arithmetic.name in PROFILES or _is_a_cache(arithmetic)


def _is_a_cache(a: Arithmetic) -> bool:
    """Whether keys and values alone are rounded, to half precision."""
    cache = replace(Arithmetic(), keys=a.keys, values=a.keys, name=a.name, about=a.about)
    return a.keys in ("float16", "bfloat16") and a == cache


def _by_row(x: Array) -> Array:
    """The norm of each row."""
    return np.asarray(np.linalg.norm(x.reshape(len(x), -1), axis=1))
