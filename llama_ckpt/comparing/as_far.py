"""What is said of roundings that may explain a tensor behind whole blocks: proved, or as far off."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llama_ckpt.arithmetic.record import Arithmetic, arithmetic_lines
from llama_ckpt.comparing.arithmetic_costs import ArithmeticCosts, UnprovedCosts
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.comparing.explaining import is_explained, is_identified
from llama_ckpt.comparing.over_blocks import AsFar, OverBlocks
from llama_ckpt.points import block_point

__all__ = ["as_far", "is_told", "note_stretches"]

MOST_OTHERS = 2
"""So many other roundings are told that put a tensor as far."""


def is_told(result: Comparison) -> bool:
    """Whether a bug explains the first wrong point whole."""
    return any(is_explained(one) or is_identified(one) for one in result.diagnoses[:1])


def note_stretches(costs: ArithmeticCosts, over: OverBlocks, fits: Sequence[AsFar]) -> None:
    """Take what an arithmetic costs over whole blocks, and what it leaves there."""
    for stretch, fit in zip(over.stretches, fits, strict=True):
        costs.note(stretch.name, fit.costs, fit.left, passes=True)
        costs.of = max(costs.of, fit.err)


def as_far(
    over: OverBlocks, fits: Sequence[AsFar], said: Callable[[Arithmetic], str], *, shown: bool
) -> UnprovedCosts:
    """What puts a right program as far from exact as a dump is.

    Args:
        fits: what it makes of each stretch; said: what an arithmetic rounds, in words.
        shown: whether single steps have shown what is rounded.
    """
    # What steps have shown is no finding of its own: there the first that is not explained is told.
    at = next((i for i, fit in enumerate(fits) if shown and not fit.proved), 0)
    stretch, fit = over.stretches[at], fits[at]
    others = {} if shown else {said(each[0].arithmetic): each[0].costs for each in over.may_be}
    others.pop(said(fit.arithmetic), None)
    middle = (stretch.first + stretch.until) // 2
    return UnprovedCosts(
        fit.arithmetic.name,
        fit.arithmetic.source,
        arithmetic_lines(fit.arithmetic),
        declared=False,
        words=said(fit.arithmetic),
        costs=fit.costs,
        costs_at=stretch.name,
        left=fit.left,
        left_at=stretch.name,
        of=fit.err,
        record=block_point(middle, "out") if shown else block_point(stretch.first, "q"),
        others=[f"{words} ({costs:.1e})" for words, costs in others.items()][:MOST_OTHERS],
        theirs=fit.theirs(),
        rows=len(fit.rows),
        likely=shown or over.is_likely,
        shown=shown,
    )
