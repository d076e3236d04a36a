"""Which roundings a program makes that declares none: tried place by place, on the first blocks that are off.

Each candidate of a part of arithmetic (`arithmetic.parts`) is judged at the points that are wrong: it
explains one where the point passes beside it and a quarter of the error at most is left, so that what merely
allows more explains nothing. A part keeps the candidates that hold at all its points. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.formats import rounded
from llama_ckpt.arithmetic.parts import (
    OTHERS,
    PARTS,
    Lines,
    alike_steps,
    as_right,
    candidates,
    composed,
    in_halves,
    in_words,
    lines_of,
    plain,
)
from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.arithmetic.turns import FAST_TURNS
from llama_ckpt.comparing.block_run import ATTENDED, WEIGHT_OF, BlockRun
from llama_ckpt.comparing.comparison import ComparedPoint
from llama_ckpt.comparing.declared import Declared
from llama_ckpt.comparing.declared_block import DeclaredBlock
from llama_ckpt.comparing.declared_head import DeclaredHead
from llama_ckpt.comparing.head_run import HeadRun
from llama_ckpt.comparing.over_blocks import OverBlocks
from llama_ckpt.comparing.own_run import OwnRun
from llama_ckpt.comparing.stretch import Stretch
from llama_ckpt.errors import OptionError
from llama_ckpt.judging.limits import limit_for, within
from llama_ckpt.judging.matching import distance
from llama_ckpt.judging.verdict import PointVerdict, judge
from llama_ckpt.points import ALL_POINTS, split_name

__all__ = ["Undeclared", "part_of"]

Array: TypeAlias = NDArray[Any]

LARGEST: Final = 0.2
"""A relative error above this is no rounding that anybody makes on purpose."""

LEFT: Final = 0.25
"""Of the error at most so much is left where a rounding explains it."""

FEW: Final = 32
"""So many queries are looked at first."""

PART_OF: Final[Mapping[str, str]] = {
    **dict.fromkeys((*WEIGHT_OF, "logits"), "products"),
    **dict.fromkeys(("attn_norm", "ffn_norm", "output_norm"), "norms"),
    **dict.fromkeys(("q_rope", "k_rope"), "rope"),
    **dict.fromkeys(("ffn_inp", "out"), "residual"),
    "ffn_swiglu": "gate",
    "embd": "embeddings",
    **dict.fromkeys(("attn_scores", "attn_probs", "attn_context"), "attention"),
}


def part_of(point: str) -> str:
    """The part of an arithmetic that a point's step is rounded by."""
    return PART_OF.get(point, "residual")  # of a checkpoint's own point no line is known


Whole: TypeAlias = dict[str, Lines]
"""Lines for every part."""


@dataclass
class Undeclared:
    """What is tried, and what holds so far.

    Attributes:
        rows: tokens of the pass; types: of the model's matrices; weight_type: see `Declared`.
        mask: where scores are judged.
        first: whether wrong points are explained only once it is known what is rounded.
        waited: whether explanations were left out for that.
        stretch: gives what lies before a point that whole blocks lie before.
    """

    rows: int
    types: Sequence[str]
    weight_type: str
    mask: NDArray[np.bool_]
    first: bool = True
    waited: bool = False
    stretch: Callable[[str, Array, OwnRun], Stretch | None] | None = None
    _alive: dict[str, list[Lines]] = field(default_factory=dict)
    _whole: list[Whole] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _hidden: set[str] = field(default_factory=set)  # parts whose points a bug keeps out of sight
    _head: Lines | None = None

    @cached_property
    def over_blocks(self) -> OverBlocks:
        """What tensors tell that whole blocks lie before."""
        return OverBlocks(self.rows, self.types, self.weight_type)

    def look(self, run: OwnRun, theirs: Mapping[str, Array], judged: Mapping[str, ComparedPoint]) -> None:
        """Try candidates on a block, or on what follows the blocks; of each kind of point once."""
        if not isinstance(run, BlockRun | HeadRun):
            self._look_at_embeddings(run, theirs)
            return
        self._look_over_blocks(run, theirs, judged)
        wrong = {
            point: {part_of(split_name(name)[1]) for name in one.since.unseen}
            for point, one in judged.items()
            if one.made in ("here", "between") and point not in self._seen and is_small(one)
            if not run.is_far(point)
        }
        found = set()
        for point, parts in wrong.items():
            self._seen.add(point)
            trial = _Trial(self, run, point, theirs[point], judged[point])
            if len(parts) > 1:
                self._whole = self._explaining(trial, self._whole or self._wholes()) or self._whole
            elif self._try(trial, *parts):
                found |= parts
        for part in found:
            self._hold(part, run, theirs, judged)
        self._hidden |= {
            part_of(point)
            for point, one in judged.items()
            if one.made in ("here", "between") and part_of(point) not in self._alive
        }
        if "logits" in judged and "logits" not in wrong and self._head is None:
            self._hold_head(run, theirs, judged["logits"])

    def _look_over_blocks(
        self, run: OwnRun, theirs: Mapping[str, Array], judged: Mapping[str, ComparedPoint]
    ) -> None:
        for point, one in judged.items():
            if one.made and run.is_far(point):  # what seems inherited may be no more than allowed here
                stretch = None
                if self.first and self.stretch is not None and is_small(one):
                    stretch = self.stretch(one.name, theirs[point], run)
                if stretch is not None:
                    self.over_blocks.look(stretch, search=not self.is_shown)
                else:
                    self.over_blocks.unseen = True

    def waits(self) -> bool:
        """Whether what is wrong is to be explained later: beside roundings that explain some of it by now."""
        self.waited |= self.first and (self.is_shown or self.over_blocks.is_likely)
        return self.waited

    def _look_at_embeddings(self, run: OwnRun, theirs: Mapping[str, Array]) -> None:
        """Rows of a table are rounded, or they are not: nothing else is computed."""
        x, o = theirs.get("embd"), run.get("embd")
        if x is None or o is None or np.array_equal(x, o):
            return
        among = candidates("embeddings", self.rows, self.types)
        found = [one for one in among if np.array_equal(x, rounded(np.asarray(o), one["embeddings"]))]
        if found:
            self._alive["embeddings"] = found

    def _try(self, trial: _Trial, part: str) -> bool:
        """Narrow a part to what explains a wrong point; whether anything does."""
        rounding = [one for one in candidates(part, self.rows, self.types) if one != plain(part, self.types)]
        explaining = self._explaining(trial, [{part: one} for one in self._alive.get(part, rounding)])
        if not explaining and trial.point == "logits" and part in self._alive:
            explaining = self._explaining(trial, [{part: one} for one in rounding])
            self._head = explaining[0][part] if explaining else None
            return bool(explaining)
        if explaining:
            self._alive[part] = [one[part] for one in explaining]
        return bool(explaining)

    @staticmethod
    def _explaining(trial: _Trial, among: Sequence[Whole]) -> list[Whole]:
        return [one for one in among if trial.explains(one)]

    def _hold(
        self,
        part: str,
        run: BlockRun | HeadRun,
        theirs: Mapping[str, Array],
        judged: Mapping[str, ComparedPoint],
    ) -> None:
        """Drop what is wrong at the right points of a part."""
        for point, one in judged.items():
            if not is_right_here(one) or part_of(point) != part or len(one.since.unseen) > 1:
                continue
            if point != "logits" and len(self._alive[part]) > 1:
                trial = _Trial(self, run, point, theirs[point], one)
                self._alive[part] = [x for x in self._alive[part] if trial.passes({part: x})] or self._alive[
                    part
                ]

    def _hold_head(self, run: BlockRun | HeadRun, theirs: Mapping[str, Array], one: ComparedPoint) -> None:
        """Logits that are right without rounding: whether they are with it as well."""
        alive = self._alive.get("products")
        if not alive or not is_right_here(one) or run.is_far("logits"):
            return
        trial = _Trial(self, run, "logits", theirs["logits"], one)
        passing = [x for x in alive if trial.passes({"products": x})]
        if passing:
            self._alive["products"] = passing
        else:
            self._head = plain("products", self.types)

    def _wholes(self) -> list[Whole]:
        """What is tried where one point shows several parts: profiles, single parts, the usual pairs."""
        none = {part: plain(part, self.types) for part in PARTS}
        of = {part: candidates(part, self.rows, self.types) for part in ("products", "attention")}
        found = [{p: lines_of(one, p, self.rows, self.types) for p in PARTS} for one in OTHERS]
        found += in_halves(self.rows, self.types)
        found += [none | {part: one} for part, among in of.items() for one in among]
        halves = [
            x for x in of["attention"] if x["keys"] == x["values"] and x["keys"] in ("float16", "bfloat16")
        ]
        found += [none | {"products": x, "attention": y} for x in of["products"] for y in halves]
        found.append(none | {"rope": {**none["rope"], "turns": FAST_TURNS}})
        kept: list[Whole] = []
        for one in found:
            if one != none and one not in kept:
                kept.append(one)
        return kept

    def found(self) -> list[Arithmetic]:
        """What explains the points that were wrong, the best first; nothing where nothing does."""
        if not self.is_shown:
            return [fits[0].arithmetic for fits in self.over_blocks.may_be]
        return [self._found()]

    def _found(self) -> Arithmetic:
        """Of what single steps show."""
        wholes = [one for one in self._whole if self._agrees(one)]
        parts = {part: self._alive.get(part) or [plain(part, self.types)] for part in PARTS}
        hidden = {} if wholes else alike_steps({p: parts[p][0] for p in parts if p not in self._unseen})
        parts |= {part: [lines] for part, lines in hidden.items() if part in self._unseen}
        for profile in OTHERS:
            lines = {part: as_right(profile, part, self.rows, self.types) for part in PARTS}
            if wholes:
                fits = any(all(whole[part] in lines[part] for part in PARTS) for whole in wholes)
            else:
                fits = all(any(one in parts[part] for one in lines[part]) for part in PARTS)
            if fits and (self._head is None or self._head in self._head_of(profile)):
                return profile
        first = wholes[0] if wholes else {part: among[0] for part, among in parts.items()}
        return composed(first, self.rows, self.types, self._head)

    @property
    def is_shown(self) -> bool:
        """Whether steps of which the inputs are known have shown what is rounded."""
        return bool(self._alive or self._whole)

    @property
    def _unseen(self) -> set[str]:
        """Parts that were never right, and nothing explained."""
        return self._hidden - set(self._alive)

    def _agrees(self, whole: Whole) -> bool:
        return all(whole[part] in alive for part, alive in self._alive.items())

    def _head_of(self, profile: Arithmetic) -> list[Lines]:
        return as_right(profile.for_rows(self.rows).for_head(), "products", self.rows, self.types)

    def said(self, arithmetic: Arithmetic) -> str:
        """What is rounded, in words."""
        return ", ".join(in_words(arithmetic, self.rows, self.types))


@dataclass(frozen=True)
class _Worst:
    """The queries of one key head that are furthest off, and the squares of their error."""

    kv_head: int
    queries: NDArray[np.intp]
    squares: float


@dataclass
class _Trial:
    """One tensor of theirs, and what candidates make of it."""

    search: Undeclared
    run: BlockRun | HeadRun
    point: str
    x: Array
    judged: ComparedPoint
    _worst: _Worst | None = None

    def passes(self, lines: Mapping[str, Lines]) -> bool:
        """Whether the point is right beside these roundings."""
        verdict = self._verdict(lines)
        return verdict is not None and verdict.verdict == "pass"

    def explains(self, lines: Mapping[str, Lines]) -> bool:
        """Whether it is, and hardly any of its error is left."""
        assert self.judged.own is not None
        most = math.inf if _of_a_table(lines) else LEFT * self.judged.own.err
        verdict = self._verdict(lines, most)
        return verdict is not None and verdict.verdict == "pass"

    def _verdict(self, lines: Mapping[str, Lines], most: float = math.inf) -> PointVerdict | None:
        """None where rows of these widths cannot be rounded so, or more than `most` of an error is left."""
        given = {name: value for part in lines.values() for name, value in part.items()}
        made = self._made(Declared(replace(Arithmetic(), **given), self.search.weight_type))
        mask = self.search.mask if ALL_POINTS[self.point].causal else None
        try:
            if self._leaves_more(made, most, mask):
                return None
            o = made[self.point]
            # What rounding may leave costs more than the tensor: of most candidates nobody asks for it.
            if not distance(self.x, o, mask) <= most:
                return None
            spread = made.spreads.get(self.point)
        except OptionError:
            return None
        limit = limit_for(self.judged.name, "float32", "own")
        if spread is not None and self.x.shape == o.shape:
            limit = within(limit, spread, o, mask)
        return judge(self.judged.name, self.x, o, limit=limit, mask=mask, dtype="float32")

    def _leaves_more(self, made: DeclaredBlock | DeclaredHead, most: float, mask: Any) -> bool:
        """Whether some heads of attention alone leave more than `most` of the error.

        Of most candidates a few queries or the first head do, and what is left of it, which costs as much
        again for each head, is not made.
        """
        if self.point not in ATTENDED or not isinstance(made, DeclaredBlock) or not most < 1:
            return False
        theirs = np.asarray(self.x)
        if self._leaves_the_worst(made, theirs, mask):
            return True
        # The norm of what leaves no more is at most so large.
        allowed, squares = (most * float(np.linalg.norm(theirs)) / (1 - most)) ** 2, 0.0
        for x, o in made.beside(self.point, theirs):
            squares += float(_squares(x, o, mask).sum())
            if squares > allowed:
                return True
        return False

    def _leaves_the_worst(self, made: DeclaredBlock, theirs: Array, mask: Any) -> bool:
        """Whether of the queries that are furthest off half of the error stays: then no rounding did it."""
        if self._worst is None:
            exact = self._made(Declared(Arithmetic(), self.search.weight_type))
            assert isinstance(exact, DeclaredBlock)
            off = [_squares(x, o, mask).sum(axis=0) for x, o in exact.beside(self.point, theirs)]
            head = int(np.argmax([each.sum() for each in off]))
            queries = np.argsort(-off[head], kind="stable")[:FEW]
            self._worst = _Worst(head, queries, float(off[head][queries].sum()))
        worst = self._worst
        x, o = made.beside_queries(self.point, theirs, worst.kv_head, worst.queries)
        left = _squares(x, o, None if mask is None else mask[worst.queries])
        return float(left.sum()) > 0.25 * worst.squares  # half of a norm

    def _made(self, declared: Declared) -> DeclaredBlock | DeclaredHead:
        run = self.run
        if isinstance(run, HeadRun):
            shared = run.given, run.weights, run.config, run.dtype, run.theirs
            return DeclaredHead(*shared, last=run.last, declared=declared)
        return DeclaredBlock(run.flow, run.number, run.given, run.weights, run.theirs, declared=declared)


def _of_a_table(lines: Mapping[str, Lines]) -> bool:
    """Whether a rounding is of a GPU's table, of which its size alone is known."""
    return lines.get("rope", {}).get("turns") == FAST_TURNS and len(lines) == 1


def _squares(x: Array, o: Array, mask: Any) -> Array:
    """Of the differences where they are judged, by head and query: `[heads, queries]`."""
    off = x - o if mask is None else np.where(mask[:, 0], x - o, 0.0)
    return np.asarray(np.vecdot(off, off))


def is_right_here(one: ComparedPoint) -> bool:
    """Whether a point's own step is right, whatever came in with its inputs."""
    return one.own is not None and one.own.verdict == "pass"


def is_small(one: ComparedPoint) -> bool:
    """Whether a rounding may be what is wrong with a point."""
    return one.own is not None and one.own.err <= LARGEST
