"""Two bugs of one function at once, as a port has them that was written from another model's code.

A norm without its epsilon that multiplies by 1 + weight, half-split pairs of another theta: neither bug
alone gives the tensor. Tried on a few tokens first. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

import numpy as np

from llama_ckpt.diagnose.bugs import Bug
from llama_ckpt.diagnose.few_tokens import few_tokens
from llama_ckpt.diagnose.patched_oracle import RIGHT, PatchedOracle, bound
from llama_ckpt.diagnose.trying import SLACK, Trial, unpatched
from llama_ckpt.judging.evidence import Evidence

__all__ = ["pairs_of"]

FUNCTIONS = frozenset({"rms_norm", "rope", "qkv", "attention", "swiglu"})
"""Functions that are tried with two bugs; what calls others has too many."""

TOKENS = 8
"""So many are tried at first."""

MOST_NUMBERS = 2_000_000
"""Of a call whose arguments have more, each pair would take too long."""


def pairs_of(bugs: Sequence[Bug], evidence: Sequence[Evidence]) -> Iterator[Bug]:
    """The pairs that come near to the evidence, each as one bug; none where that would take long.

    Args:
        bugs: those that may be in a pair; only the called function's own are.
        evidence: of one call; of several the first one's counts.
    """
    case = evidence[0].case
    if case.function not in FUNCTIONS:
        return
    own = [one for one in evidence if one.case is case]
    few = few_tokens(own, TOKENS) or own
    if sum(np.size(value) for value in few[0].case.arguments.values()) > MOST_NUMBERS:
        return
    before, seen = unpatched(few), set[frozenset[str]]()
    for outer, inner in permutations([bug for bug in bugs if bug.function == case.function], 2):
        both = frozenset({outer.name, inner.name})
        if both not in seen and _comes_near(outer, inner, Trial(few, before, SLACK)):
            seen.add(both)
            yield _pair(outer, inner)


def _comes_near(outer: Bug, inner: Bug, trial: Trial) -> bool:
    """Whether the outer bug, laid over the inner one, leaves no more than rounding and the slack."""
    program = inner.over(trial.evidence[0].base)
    return trial.runs(lambda case: bound(outer.patch, program)) and trial.whole <= SLACK


def _pair(outer: Bug, inner: Bug) -> Bug:
    def both(right: PatchedOracle, *args: Any, **options: Any) -> Any:
        inside = inner.oracle if right is RIGHT else inner.over(right)
        return bound(outer.patch, inside)(*args, **options)

    name, sentence = f"{outer.name}+{inner.name}", f"{outer.sentence}, and {inner.sentence}"
    return Bug(name, sentence, outer.checkpoint, outer.function, both)
