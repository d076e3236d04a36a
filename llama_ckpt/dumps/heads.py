"""Puts what was recorded of a running program into the axes that a point has; numpy only.

Programs hand attention more than the prompt: the slots of a cache that are still empty, and each key head
once for every query head that reads it. Copies are folded back once they are found to be equal, slots are
cut off. One output that holds several points side by side is cut into them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.errors import ShapeError

__all__ = ["by_values", "cut_keys", "fold_heads", "norm_ratio", "side_by_side"]


def cut_keys(x: NDArray[Any], n: int, first: int, axis: int, name: str) -> NDArray[Any]:
    """The prompt's own keys of `x`, where it holds a cache's slots.

    Args:
        x: with keys on `axis`. n: the number of the prompt's tokens. first: the first one's position.
        name: for the message.

    Raises:
        ShapeError: keys of earlier tokens are there too.
    """
    keys = x.shape[axis]
    if keys <= n:
        return x
    if first != 0:
        raise ShapeError(
            f"keys that attention saw in {name}",
            got=f"{keys}, and the first token at position {first}",
            wanted=f"the prompt's {n}, in one pass without a cache of earlier tokens",
        )
    return x.take(np.arange(n), axis)


def fold_heads(x: NDArray[Any], n_kv_heads: int | None) -> tuple[NDArray[Any] | None, str | None]:
    """Expanded key or value heads as the few that they were, and what is remarkable about it.

    Args:
        x: `[heads, keys, head_dim]`.
        n_kv_heads: how many there were; None: as few as the copies say.

    Returns:
        `[n_kv_heads, keys, head_dim]`, or None where the heads are no copies of so many.
    """
    heads = len(x)
    counts = range(1, heads + 1) if n_kv_heads is None else (n_kv_heads,)
    for few in counts:
        if few == heads:
            return x, None
        if heads % few:
            continue
        one_by_one = x.reshape(few, heads // few, *x.shape[1:])
        if (one_by_one == one_by_one[:, :1]).all():
            return one_by_one[:, 0], None
        if n_kv_heads is not None:
            in_turn = x.reshape(heads // few, few, *x.shape[1:])
            if (in_turn == in_turn[:1]).all():
                return in_turn[0], "key heads stand in turn (0, 1, 0, 1), as `repeat` puts them"
    return None, "the key heads that attention saw are no copies of the projection's"


def norm_ratio(before: NDArray[Any], after: NDArray[Any]) -> float | None:
    """By what factor vectors were made longer; None where it is not one for all of them.

    Args:
        before, after: `[n, heads, head_dim]`.
    """
    if before.shape != after.shape:
        return None
    lengths = [np.linalg.norm(x.astype(np.float64), axis=-1) for x in (before, after)]
    # Rows of padding may hold anything, NaN too where they see no key.
    kept = (lengths[0] > 0) & np.isfinite(lengths[0]) & np.isfinite(lengths[1])
    ratio = lengths[1][kept] / lengths[0][kept]
    if not ratio.size or not np.isfinite(ratio).all():
        return None
    middle = float(np.median(ratio))
    return middle if np.abs(ratio - middle).max() <= 0.02 * middle else None


def side_by_side(
    x: NDArray[Any], points: Sequence[str], q_features: int | None
) -> Mapping[str, NDArray[Any]] | None:
    """One output cut into the points that lie side by side in its last axis.

    Where they are q, k and v, `q_features` says how many the first has; the others share the rest. None
    where that is wanted and not known, or does not go in.
    """
    features = x.shape[-1]
    parts = [features // len(points)] * len(points)
    if points[0].rpartition(".")[2] == "q" and len(points) == 3:
        if q_features is None:
            return None
        parts = [q_features, *[(features - q_features) // 2] * 2]
    if sum(parts) != features or min(parts) <= 0:
        return None
    ends = np.cumsum(parts)[:-1]
    return dict(zip(points, np.split(x, ends, axis=-1), strict=True))


def by_values(
    x: NDArray[Any],
    points: Sequence[str],
    parts: Mapping[str, NDArray[Any]] | None,
    head_dim: int,
    v: NDArray[Any],
) -> tuple[Mapping[str, NDArray[Any]] | None, str | None]:
    """q, k and v in one output, cut where the values lie that attention was given.

    Some programs put the heads by groups, each with its queries, its key and its value, and not all queries
    first. Where the values are found in neither order, the parts stay as they are.

    Args:
        x: the output `[…, features]`; points: the names of q, k and v; parts: `side_by_side`'s.
        v: as attention was given it, `[heads, n, head_dim]`, with as many copies of heads as it had.

    Returns:
        the parts, and a remark where they lay by groups.
    """
    n, heads = v.shape[1], len(v)
    if parts is None or x.size % (n * head_dim) or _has_values(parts[points[2]], v, head_dim):
        return parts, None
    per_token = x.reshape(n, -1, head_dim)
    for groups in (g for g in range(1, heads + 1) if heads % g == 0 and per_token.shape[1] % g == 0):
        by_group = per_token.reshape(n, groups, -1, head_dim)
        cut = [by_group[:, :, :-2], by_group[:, :, -2], by_group[:, :, -1]]
        if by_group.shape[2] > 2 and _has_values(cut[2].reshape(n, -1), v, head_dim):
            made = {name: part.reshape(*x.shape[:-1], -1) for name, part in zip(points, cut, strict=True)}
            return made, "one output holds q, k and v group by group: put apart"
    return parts, None


def _has_values(part: NDArray[Any], v: NDArray[Any], head_dim: int) -> bool:
    """Whether these features are the values that attention was given, copies of heads aside."""
    n, heads = v.shape[1], len(v)
    if part.size % (n * head_dim):
        return False
    own = part.reshape(n, -1, head_dim).swapaxes(0, 1)
    return heads % len(own) == 0 and bool(
        (np.repeat(own, heads // len(own), axis=0) == v).all()
        or (np.tile(own, (heads // len(own), 1, 1)) == v).all()
    )
