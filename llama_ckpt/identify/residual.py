"""What was summed, how often, and whose block it was.

A residual sum is fitted with the tensors of its block: its own two terms with other weights, another term in
the place of one, a term more. A block whose end alone was recorded is held against the same block left out,
gone through twice, or with the weights of another. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.affine import factor_said
from llama_ckpt.identify.record import Asked, Guess
from llama_ckpt.identify.residual_rounded import one_way_sums
from llama_ckpt.identify.residual_terms import NAMES, SUMS, shown_in, terms_of
from llama_ckpt.identify.sources import other_blocks
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.matching import leaves_at_most, passes
from llama_ckpt.listing import listed
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import block_point

__all__ = ["residual_guesses"]

Array: TypeAlias = NDArray[Any]

NICE = (0.0, 1.0, 2.0, 3.0, 4.0, 8.0, 16.0, 0.5, 0.25, 0.125, -1.0)
"""How often people's mistakes add a term."""


@dataclass(frozen=True)
class Sum:
    """What a residual sum was.

    Attributes:
        weights: how often each term is in it.
        made: the sum.
    """

    weights: Mapping[str, float]
    made: Array

    @property
    def numbers(self) -> int:
        """Terms that are not as they should be."""
        return sum(1 for name, one in self.weights.items() if one != 1.0 or name in NAMES) or 1


def residual_guesses(asked: Asked) -> Iterator[Guess]:
    """Guesses where a residual sum or a whole block is the first wrong tensor."""
    if asked.first.case.function != "block" or asked.block is None:
        return
    shown = shown_in(asked)
    if asked.point in SUMS:
        yield from _sums(asked, shown)
        yield from one_way_sums(asked, shown)
    yield from _other_blocks(asked)


# -- one sum -------------------------------------------------------------------------------------------


def _sums(asked: Asked, shown: Mapping[str, Array]) -> Iterator[Guess]:
    """What the first wrong sum was, and the second where that is wrong too."""
    point = asked.point
    one = asked.of(point)
    assert one is not None
    for found in _fitted(np.asarray(one.x, np.float64), terms_of(asked, point, shown), point, one):
        if all(weight == 1.0 for weight in found.weights.values()) and set(found.weights) == set(SUMS[point]):
            continue  # the right sum, off by something else
        made = {point: found.made}
        sentence, numbers, code = _said(point, found), found.numbers, _code(found)
        if point == "ffn_inp":
            second = _second(asked, shown)
            made |= _after(asked, found.made, second)
            if second is not None:
                sentence, numbers = _both_said(found, second), found.numbers + second.numbers
        parameters: dict[str, Any] = {"terms": dict(found.weights)}
        predicted = {block_point(asked.block or 0, name): array for name, array in made.items()}
        yield Guess("residual.terms", sentence, predicted, numbers, parameters=parameters, code=code)


def _fitted(x: Array, terms: Mapping[str, Array], point: str, one: Evidence) -> Iterator[Sum]:
    """Sums of few terms that give x, the simplest first."""
    if x.shape != next(iter(terms.values())).shape or not np.isfinite(x).all():
        return
    right = [name for name in SUMS[point] if name in terms]
    others = [name for name in terms if name not in right]
    allowed = 3 * leaves_at_most(one.limit) * float(np.linalg.norm(x))
    tries = [right, *([name] for name in others), *([a, b] for a in right for b in others)]
    tries += [[*right, other] for other in others]
    tries += [[*right, *two] for two in combinations(others, 2)]
    for names in tries:
        found = _solved(x, {name: terms[name] for name in names})
        if found is not None and np.linalg.norm(x - found.made) <= allowed:
            yield found
            return


def _solved(x: Array, terms: Mapping[str, Array]) -> Sum | None:
    """How often each term is in x, by least squares; a number that people write, where it is near one."""
    columns = np.stack([term.ravel() for term in terms.values()], axis=1)
    weights, _, rank, _ = np.linalg.lstsq(columns, x.ravel(), rcond=1e-10)
    if rank < len(terms):
        return None
    nice = np.asarray(NICE)
    for names in (True, False):
        nearest = nice[np.abs(weights[:, None] - nice).argmin(axis=1)]
        near = np.abs(nearest - weights) < (0.05 if names else 1e-4)
        rounded = np.where(near, nearest, weights)
        made = (columns @ rounded).reshape(x.shape)
        if np.linalg.norm(x.ravel() - made.ravel()) <= 2 * np.linalg.norm(
            x.ravel() - columns @ weights
        ) + 1e-6 * np.linalg.norm(x):
            break
    kept = {n: float(w) for n, w in zip(terms, rounded, strict=True)}
    return Sum(kept, made)


def _second(asked: Asked, shown: Mapping[str, Array]) -> Sum | None:
    """What the block's second sum was of its own terms, where it is not what it should be."""
    one = asked.of("out")
    if one is None:
        return None
    terms = terms_of(asked, "out", shown)
    if not {"ffn_inp", "ffn_out"} <= terms.keys() or asked.theirs("ffn_inp") is None:
        return None
    if asked.theirs("ffn_out") is None:
        return None
    x = np.asarray(one.x, np.float64)
    if x.shape != terms["ffn_inp"].shape or passes(x, terms["ffn_inp"] + terms["ffn_out"], one.limit):
        return None
    return next(_fitted(x, terms, "out", one), None)


def _after(asked: Asked, ffn_inp: Array, second: Sum | None) -> dict[str, Array]:
    """The rest of the block, were its first sum another."""
    weights, config = asked.given["weights"], asked.given["config"]
    made: dict[str, Array] = {}
    made["ffn_norm"] = oracle.rms_norm(ffn_inp, weights.ffn_norm, eps=config.rms_norm_eps)
    made["ffn_out"] = oracle.feed_forward(made["ffn_norm"], weights, config, made.__setitem__)
    made["out"] = ffn_inp + made["ffn_out"] if second is None else second.made
    return made


# -- words ---------------------------------------------------------------------------------------------


def _said(point: str, found: Sum) -> str:
    right = SUMS[point]
    left_out = [name for name in right if found.weights.get(name, 0.0) == 0.0]
    more = [name for name, one in found.weights.items() if name not in right and one]
    if point == "out" and {name: one for name, one in found.weights.items() if one} == {"in": 1.0}:
        return "the block is left out: its input goes on"
    if left_out and more:
        said = (
            f"{listed([_name(n) for n in more])} is summed in place of {listed([_name(n) for n in left_out])}"
        )
        often = [_often(n, w) for n, w in found.weights.items() if w not in (0.0, 1.0)]
        return f"{point}: {listed([said, *often])}"
    parts = [f"{_name(name)} is left out" for name in left_out]
    parts += [_often(name, one) for name, one in found.weights.items() if one not in (0.0, 1.0)]
    parts += [f"{_name(name)} is added as well" for name in more if found.weights[name] == 1.0]
    return f"{point}: {listed(parts)}"


def _name(term: str) -> str:
    return NAMES.get(term, term)


def _often(name: str, weight: float) -> str:
    if weight == 2:
        return f"{_name(name)} is added twice"
    if weight == -1:
        return f"{_name(name)} is subtracted"
    return f"{_name(name)} is added {factor_said(weight)} times"


def _both_said(first: Sum, second: Sum) -> str:
    parallel = first.weights.get("attn_out", 0.0) == 0.0 and second.weights.get("attn_out") == 1.0
    if parallel and second.weights.get("ffn_inp") == 1.0:
        return (
            "the residual is parallel: the feed-forward reads the block's input, attn_out is added at the end"
        )
    return f"{_said('ffn_inp', first)}; {_said('out', second)}"


def _code(found: Sum) -> str:
    whole = [one for one in found.weights.values() if one in (2.0, 4.0, 8.0, 16.0)]
    if whole:
        return "a residual that each rank adds before the all-reduce, or that a fused kernel adds too"
    return "the residual sums of the block"


# -- whole blocks --------------------------------------------------------------------------------------


def _other_blocks(asked: Asked) -> Iterator[Guess]:
    """The block gone through twice, or another's; only where nothing but ends was recorded."""
    inside = [one for one in asked.evidence if one.name.rpartition(".")[2] not in ("out", "ffn_inp")]
    if inside:
        return
    case = asked.first.case
    block, weights = asked.block or 0, asked.around.weights
    out = block_point(block, "out")

    def guess(kind: str, sentence: str, made: Mapping[str, Array], parameters: dict[str, Any]) -> Guess:
        return Guess(kind, sentence, made, 1, parameters=parameters, code="the loop over the blocks")

    again = {**case.arguments, "x": case.run(oracle.block)[out]}
    twice = oracle.block(**again)
    yield guess("block.twice", f"block {block} is gone through twice", {out: twice}, {})
    for number in other_blocks(asked):
        made = oracle.block(**{**case.arguments, "weights": weights.blocks[number]})
        if _near(asked, out, made):
            said = f"block {block} is computed with the weights of block {number}"
            yield guess("block.weights", said, {out: made}, {"block": number})
        beyond = oracle.block(**{**again, "weights": weights.blocks[number]})
        if _near(asked, out, beyond):
            said = f"block {number} is gone through as well, after block {block}"
            yield guess("block.more", said, {out: beyond}, {"block": number})


def _near(asked: Asked, name: str, made: Array) -> bool:
    one = next((one for one in asked.evidence if one.name == name), None)
    if one is None or np.shape(one.x) != made.shape:
        return False
    whole = np.linalg.norm(np.asarray(one.x, np.float64) - np.asarray(one.o))
    return bool(np.linalg.norm(np.asarray(one.x, np.float64) - made) < 0.1 * whole)
