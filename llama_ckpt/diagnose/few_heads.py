"""One key head of a long prompt's attention, and the tensors that answer it: enough to rule most bugs out.

Heads do not read each other. A bug by which they do is told from the others by a few tokens. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs import Bug
from llama_ckpt.diagnose.patched_oracle import DoesNotApply
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.points import Case, split_name

__all__ = ["VAST", "few_heads", "is_of_each_head"]

Array: TypeAlias = NDArray[Any]

VAST = 1 << 20
"""Elements of scores or probabilities of which one key head is looked at first."""

MATRICES = ("attn_scores", "attn_probs")


def few_heads(evidence: Sequence[Evidence]) -> list[Evidence] | None:
    """The same evidence of the key head that is furthest off; None where it is not vast, or no attention."""
    first = evidence[0]
    x, o = np.asarray(first.x), np.asarray(first.o)
    alone = {(one.case.function, id(one.case)) for one in evidence} == {("attention", id(first.case))}
    if not alone or split_name(first.name)[1] not in MATRICES or x.size <= VAST or x.shape != o.shape:
        return None
    heads, kv_heads = x.shape[1], np.shape(first.case.arguments["k"])[1]
    group = heads // kv_heads
    if kv_heads < 2 or group * kv_heads != heads:
        return None
    with np.errstate(all="ignore"):
        off = [float(np.linalg.norm(np.nan_to_num(x[:, head] - o[:, head]))) for head in range(heads)]
    return _of_key_head(evidence, int(np.argmax(off)) // group)


def _of_key_head(evidence: Sequence[Evidence], key: int) -> list[Evidence]:
    """What one key head answers for: all but the output, which all heads make."""
    case = cut_to(evidence[0].case, key)
    heads, kv_heads = (np.shape(evidence[0].case.arguments[name])[1] for name in "qk")
    found = []
    for one in evidence:
        if split_name(one.name)[1] in (*MATRICES, "attn_context"):
            x, o = (_of_heads(np.asarray(array), key, heads, kv_heads) for array in (one.x, one.o))
            found.append(replace(one, x=x, o=o, case=case, limit=one.limit.uniform))
    return found


def cut_to(case: Case, key: int) -> Case:
    """The attention of one key head."""
    given = case.arguments
    heads, kv_heads = (np.shape(given[name])[1] for name in "qk")
    group = heads // kv_heads
    cut = {
        "q": np.asarray(given["q"])[:, group * key : group * (key + 1)],
        **{name: np.asarray(given[name])[:, key : key + 1] for name in "kv"},
        "wo": _of_heads(np.asarray(given["wo"]), key, heads, kv_heads),
    }
    return replace(case, arguments={**given, **cut})


def _of_heads(array: Array, key: int, heads: int, kv_heads: int) -> Array:
    """The query heads of a key head, of `[n, heads, …]` or of `[n, heads * head_dim]`."""
    group = heads // kv_heads
    by_head = array if array.ndim > 2 else array.reshape(len(array), heads, -1)
    some = by_head[:, group * key : group * (key + 1)]
    return some if array.ndim > 2 else some.reshape(len(array), -1)


def is_of_each_head(bug: Bug, few: Sequence[Evidence]) -> bool:
    """Whether what a bug makes of one key head is what it makes of it among all; few: a few tokens."""
    program, case = bug.over(few[0].base), few[0].case
    heads, kv_heads = (np.shape(case.arguments[name])[1] for name in "qk")
    try:
        with np.errstate(all="ignore"):
            among, alone = program.answers(case), program.answers(cut_to(case, kv_heads - 1))
    except (DoesNotApply, ValueError):
        return False
    names = [name for name in among if split_name(name)[1] in (*MATRICES, "attn_context")]
    return all(
        np.allclose(_of_heads(among[name], kv_heads - 1, heads, kv_heads), alone[name], equal_nan=True)
        for name in names
    )
