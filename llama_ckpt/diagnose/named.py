"""Which bug of the catalogue gives the tensor on trial: the oracle is run with each, and compared.

A bug explains a tensor when the oracle with that bug is as near to it as a right program is to the
oracle, and when it moves the tensor that far; what leaves more is named as a part of the truth, with the
share that it explains. Where no bug explains it, those with a number of their own are fitted, and then two
bugs are tried at once. Two bugs are indistinguishable when their own tensors differ by no more than what
the better one leaves unexplained. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from llama_ckpt.diagnose.bugs import Bug, candidates
from llama_ckpt.diagnose.evidence import Predictions
from llama_ckpt.diagnose.few_heads import VAST, few_heads, is_of_each_head
from llama_ckpt.diagnose.few_tokens import few_tokens
from llama_ckpt.diagnose.fits import fitted_bugs
from llama_ckpt.diagnose.pairs import pairs_of
from llama_ckpt.diagnose.records import NamedBug
from llama_ckpt.diagnose.trying import EXPLAINS_MOST, Tried, Unpatched, may_explain, try_bug, unpatched
from llama_ckpt.judging.evidence import FINEST, Evidence
from llama_ckpt.judging.matching import distance, leaves_at_most
from llama_ckpt.judging.verdict import judge

__all__ = ["name_bugs"]

TOKENS = 16
"""So many are looked at first."""

SURELY = 1.001
"""What is so many times as far off as is allowed is so however its error is added up."""


def name_bugs(
    evidence: Sequence[Evidence],
    *,
    among: Iterable[Bug] | None = None,
    predictions: Predictions | None = None,
    part: float = EXPLAINS_MOST,
) -> tuple[list[NamedBug], list[tuple[str, ...]]]:
    """The bugs that explain all of the evidence, best first, and which of them cannot be told apart.

    Args:
        evidence: tensors of one wrong function, of one call or of several; together they say more.
        among: the bugs that are tried; None: all that can show in the functions called. Where none of
            them explains it, those with a number that can be fitted are, and pairs.
        predictions: those made before; None keeps none.
        part: what leaves less than this share of the error is named as a part of the truth.
    """
    if all(_is_right(one) for one in evidence):
        return [], []  # nothing is wrong, and much would explain that
    if among is None:
        functions = dict.fromkeys(one.case.function for one in evidence)
        among = dict.fromkeys(bug for function in functions for bug in candidates(function))
    bugs, before = list(among), unpatched(evidence, part)
    tried: list[Tried] = []
    few = None if predictions is not None else few_tokens(evidence, TOKENS)
    for worth in [bugs] if few is None else _worth_trying(bugs, evidence, few, part):
        if not any(one.explained for one in tried):
            tried += [found for bug in worth if (found := try_bug(bug, evidence, before, predictions))]
    for more in (_fitted(evidence, few, part), pairs_of(bugs, evidence)):
        if not any(one.explained for one in tried):
            tried += _explaining(more, evidence, before)
    tried.sort(key=lambda one: (not one.explained, one.rank))
    return [one.named(evidence) for one in tried], _alike(tried, evidence)


def _worth_trying(
    bugs: list[Bug], evidence: Sequence[Evidence], few: Sequence[Evidence], part: float
) -> list[list[Bug]]:
    """Those that a few tokens do not rule out, and then those that a few tokens cannot show.

    Of a long prompt most bugs are ruled out so, at little cost.
    """
    before = unpatched(few, part)
    left = [bug for bug in bugs if not bug.sees_later and may_explain(bug, few, before)]
    # What is wrong in a shorter prompt, where theirs is right, is so in the whole: that much is shown.
    right = [one for one in few if distance(one.x, one.o, one.mask) <= leaves_at_most(one.limit)]
    later = [bug for bug in bugs if bug.sees_later and (not right or may_explain(bug, right, before))]
    heads = few_heads(evidence) if later else None
    if heads is not None:
        of_heads = unpatched(heads, part)
        later = [bug for bug in later if not is_of_each_head(bug, few) or may_explain(bug, heads, of_heads)]
    return [left, later]


def _fitted(evidence: Sequence[Evidence], few: Sequence[Evidence] | None, part: float) -> Iterator[Bug]:
    """Bugs with a number that is fitted; of a vast tensor only where a few tokens have one that fits them."""
    first = evidence[0]
    if few is not None and np.size(first.x) > VAST:
        before = unpatched(few, part)
        if not any(may_explain(bug, few, before) for bug in fitted_bugs(first.name, few[0].x, few[0].case)):
            return
    yield from fitted_bugs(first.name, first.x, first.case)


def _explaining(bugs: Iterable[Bug], evidence: Sequence[Evidence], before: Unpatched) -> Iterator[Tried]:
    """Those that explain the evidence whole: of a fitted number or of two bugs a part is nothing."""
    for bug in bugs:
        found = try_bug(bug, evidence, before)
        if found and found.explained:
            yield found


def _is_right(one: Evidence) -> bool:
    limit = one.limit
    if not limit.exact and distance(one.x, one.o, one.mask) > SURELY * limit.err:
        return False  # without measuring more of a large tensor
    return judge(one.name, one.x, one.o, limit=limit, mask=one.mask, dtype=limit.dtype).verdict == "pass"


def _alike(tried: Sequence[Tried], evidence: Sequence[Evidence]) -> list[tuple[str, ...]]:
    """Groups of two and more whose predictions differ by less than what their first leaves."""
    groups, rest = [], list(tried)
    while rest:
        first, *others = rest
        group = [t for t in others if _cannot_be_told_apart(first, t, evidence)]
        rest = [t for t in others if t not in group]
        if group:
            groups.append((first.bug.name, *(t.bug.name for t in group)))
    return groups


def _cannot_be_told_apart(a: Tried, b: Tried, evidence: Sequence[Evidence]) -> bool:
    parts = zip(a.predicted, b.predicted, a.errors, evidence, strict=True)
    return all(distance(q, p, one.mask) <= max(left, FINEST) for p, q, left, one in parts)
