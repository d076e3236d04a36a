"""A few tokens of a call, and of the tensors that answer it: enough to rule most bugs out.

A token sees none that come later, so the first rows of a right program, and of most wrong ones, are those
of a shorter prompt; and what looks at one token at a time may be asked of any. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.by_rows import parts
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.points import ALL_POINTS, Case, split_name

__all__ = ["few_tokens"]

Rows: TypeAlias = NDArray[np.int64]

ONE_BY_ONE = frozenset("embed rms_norm rope qkv swiglu output_logits".split())
"""The oracle's functions that look at one token at a time."""

IN_ORDER = frozenset("attention block logits".split())
"""Those that look at earlier ones as well."""

OF_TOKENS = frozenset("x q k v positions sequence_ids token_ids".split())
"""Their arguments that have a row for each token."""

AROUND = 3
"""So many tokens are taken from the first wrong one on."""


def few_tokens(evidence: Sequence[Evidence], n: int) -> list[Evidence] | None:
    """The same evidence of about n tokens, a wrong one among them.

    None where that would be most of them, or where it is not known how to ask for fewer.
    """
    functions = {one.case.function for one in evidence}
    if not functions <= ONE_BY_ONE | IN_ORDER or any(np.shape(one.x) != np.shape(one.o) for one in evidence):
        return None
    there, wrong = len(np.asarray(evidence[0].o)), first_wrong_row(evidence[0])
    if functions <= ONE_BY_ONE:
        chosen = np.union1d(np.arange(n), np.arange(wrong, wrong + AROUND))
    else:
        chosen = np.arange(max(n, wrong + AROUND))
    rows = chosen[chosen < there]
    return None if 2 * len(rows) > there else _of_rows(evidence, rows)


def _of_rows(evidence: Sequence[Evidence], rows: Rows) -> list[Evidence]:
    cut: dict[int, Case] = {}
    found = []
    for one in evidence:
        case = cut.setdefault(id(one.case), _cut(one.case, rows))
        point = split_name(one.name)[1]
        keys = point in ALL_POINTS and ALL_POINTS[point].axes[-1] == "key"
        x, o = (_taken(array, rows, keys) for array in (one.x, one.o))
        mask = None if one.mask is None else _taken(one.mask, rows, keys)
        found.append(replace(one, x=x, o=o, mask=mask, case=case, limit=one.limit.of_rows(rows)))
    return found


def _cut(case: Case, rows: Rows) -> Case:
    arguments = {
        name: np.asarray(value)[rows] if name in OF_TOKENS and value is not None else value
        for name, value in case.arguments.items()
    }
    return replace(case, arguments=arguments)


def _taken(array: Any, rows: Rows, keys: bool) -> Any:
    """Some rows; of an axis of keys as many of the first, as there are rows."""
    taken = np.asarray(array)[rows]
    return taken[..., : len(rows)] if keys else taken


def first_wrong_row(one: Evidence) -> int:
    """The first token whose row is further off than rounding allows; the furthest off where none is."""
    x, o = np.asarray(one.x), np.asarray(one.o)
    judged = None if one.mask is None else np.broadcast_to(one.mask, o.shape)
    shares = []
    for part in parts(o.shape):
        exact = np.asarray(o[part], np.float64)
        with np.errstate(all="ignore"):
            off = x[part] - exact
            if judged is not None:
                off, exact = (np.where(judged[part], array, 0.0) for array in (off, exact))
            errors, scale = (np.linalg.norm(array.reshape(len(array), -1), axis=1) for array in (off, exact))
            errors = np.nan_to_num(errors, nan=np.inf)
            wrong = errors > max(one.limit.row_err, one.limit.err) * scale
            if wrong.any():
                return int(part.start + np.argmax(wrong))
            shares.append(errors / np.where(scale > 0, scale, 1.0))
    return int(np.argmax(np.concatenate(shares)))
