"""From what hooks and the watch saw of a run to the points of a dump, and sentences on what was undone.

numpy only: what runs is over, and copies are all that is left of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.dumps.attention import Attention, of_one_token
from llama_ckpt.dumps.heads import by_values, cut_keys, fold_heads, norm_ratio, side_by_side
from llama_ckpt.dumps.masks import Rows
from llama_ckpt.dumps.names_map import pair_kind
from llama_ckpt.dumps.recorder import Recorder
from llama_ckpt.errors import ShapeError
from llama_ckpt.points import ALL_POINTS, block_point, split_name

__all__ = ["Run", "settle"]

Array: TypeAlias = NDArray[Any]
HEADS = ("q", "k", "v")


@dataclass
class Run:
    """What was seen of one run.

    Attributes:
        shown: by points (several, with blanks between, where they lie side by side), as hooks saw it.
        dtypes: of each of these.
        attention: by block, as the watch saw it.
        token_ids, positions: of the run, where the inputs tell.
        rows: sequences and padding, where there are several or some.
        notes: sentences on what was recognized.
        call: of a call of several, what it was handed.
        cached: how many keys lay in the cache before the call; None where it is the only one, whose keys are
            its own.
    """

    shown: dict[str, Array] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    attention: Mapping[int, Attention] = field(default_factory=dict)
    token_ids: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    rows: Rows | None = None
    notes: list[str] = field(default_factory=list)
    call: Mapping[str, NDArray[np.int64]] | None = None
    cached: int | None = None

    def own_keys(self, x: Array, n: int, axis: int, name: str) -> Array:
        """The keys or values of the call's own tokens, of all that attention was given."""
        if self.cached is None or x.shape[axis] <= n:
            return cut_keys(x, n, self.first_position, axis, name)
        if x.shape[axis] < self.cached + n:  # a window's: the oldest have fallen out
            return x.take(np.arange(x.shape[axis] - n, x.shape[axis]), axis)
        return x.take(np.arange(self.cached, self.cached + n), axis)

    @property
    def first_position(self) -> int:
        """Of the first row that is no padding; 0 where it is not known."""
        padding = [0] if self.rows is None else self.rows.padding
        return self.positions[padding.index(0)] if self.positions and 0 in padding else 0

    def note(self, sentence: str) -> None:
        """Say it once."""
        if sentence not in self.notes:
            self.notes.append(sentence)


def settle(run: Run) -> Recorder:
    """The points of a run, each with its own axes. Features keep the order that the program has them in.

    Raises:
        ShapeError: several sequences, keys of earlier tokens, or one point from two places.
    """
    recorder = Recorder()
    n = None if run.token_ids is None else len(run.token_ids)
    run.attention = {block: of_one_token(seen, n) for block, seen in run.attention.items()}
    head_dim = next((each.q.shape[-1] for each in run.attention.values()), None)
    for names, array in run.shown.items():
        for name, part in _parts(names, array, run).items():
            laid = _laid(name, part, run, head_dim)
            if _has_every_token(name, len(laid), run):
                _keep(recorder, name, laid, run.dtypes[names])
    for block, attention in run.attention.items():
        if _has_every_token(block_point(block, "q_rope"), attention.q.shape[1], run):
            _add_attention(recorder, block, attention, run)
    _say_pairs(recorder, run)
    return recorder


def _has_every_token(name: str, rows: int, run: Run) -> bool:
    """Whether a point has a row for each token; past the last attention some programs go on with one alone.

    Such logits are a dump of their kind, other points are left out.
    """
    n = rows if run.token_ids is None else len(run.token_ids)
    if rows == n or name == "logits" and rows == 1:
        return True
    run.note(f"{name} has {rows} rows for {n} tokens: left out")
    return False


def _keep(recorder: Recorder, name: str, array: Array, dtype: str) -> None:
    recorder.keep(name, array)
    recorder.dtypes[name] = dtype


def _parts(names: str, array: Array, run: Run) -> Mapping[str, Array]:
    """An output that holds several points, cut into them."""
    points = names.split()
    if len(points) == 1:
        return {names: array}
    block, _ = split_name(points[0])
    attention = run.attention.get(-1 if block is None else block)
    q_features = None if attention is None else len(attention.q) * attention.q.shape[-1]
    parts = side_by_side(array, points, q_features)
    if attention is not None and attention.v is not None and len(points) == 3:
        v = run.own_keys(attention.v, attention.q.shape[1], 1, f"block {block}")
        parts, remark = by_values(array, points, parts, attention.q.shape[-1], v)
        if remark is not None:
            run.note(remark)
    if parts is None:
        kinds = ", ".join(split_name(point)[1] for point in points)
        run.note(f"one output holds {kinds}: where each ends can't be told, so they are left out")
    return parts or {}


def _laid(name: str, x: Array, run: Run, head_dim: int | None) -> Array:
    """Without a batch of one, and with heads of their own where their size is known."""
    n = None if run.token_ids is None else len(run.token_ids)
    axes = ALL_POINTS[split_name(name)[1]].axes
    if x.ndim == 3 and n is not None and x.shape[:2] == (n, 1) and n > 1:
        x = x.swapaxes(0, 1)  # tokens before the batch, as some programs have them
    if x.ndim > len(axes) or (x.ndim == 3 and x.shape[0] == 1 and n in (None, x.shape[1])):
        if x.shape[0] != 1:
            raise ShapeError(f"batch of {name}", got=x.shape[0], wanted="one sequence")
        x = x[0]
    if split_name(name)[1] in HEADS and head_dim is not None and x.size % (len(x) * head_dim) == 0:
        x = x.reshape(len(x), -1, head_dim)
    return x


def _add_attention(recorder: Recorder, block: int, seen: Attention, run: Run) -> None:
    """What the watch saw of one block; what a hook saw too is left as the hook saw it."""
    n = seen.q.shape[1]
    v = recorder.tensors.get(block_point(block, "v"))
    k = recorder.tensors.get(block_point(block, "k"))
    known = next((each.shape[1] for each in (k, v) if each is not None and each.ndim == 3), None)
    found: dict[str, tuple[Array | None, str]] = {"q_rope": (seen.q.swapaxes(0, 1), "q")}
    for point, own in (("k_rope", "k"), ("v", "v")):
        found[point] = _keys(getattr(seen, own), n, known, block, run), own
    for point, own in (("attn_scores", "scores"), ("attn_probs", "probs")):
        array = getattr(seen, own)
        if array is not None:
            if run.cached is None:
                array = cut_keys(array, n, run.first_position, 2, f"block {block}")
            array = array.swapaxes(0, 1)
        found[point] = array, own
    context = None if seen.context is None else seen.context.swapaxes(0, 1).reshape(n, -1)
    found["attn_context"] = context, "context"
    _undo_scale(found, recorder.tensors.get(block_point(block, "q")), k, run)
    for point, (array, own) in found.items():
        if array is not None and block_point(block, point) not in recorder.tensors:
            _keep(recorder, block_point(block, point), array, seen.dtypes.get(own, "float32"))


def _keys(x: Array | None, n: int, known: int | None, block: int, run: Run) -> Array | None:
    """Keys or values as `[n, n_kv_heads, head_dim]`."""
    if x is None:
        return None
    few, remark = fold_heads(run.own_keys(x, n, 1, f"block {block}"), known)
    if remark is not None:
        run.note(remark)
    return None if few is None or few.shape[1] != n else few.swapaxes(0, 1)


def _undo_scale(
    found: dict[str, tuple[Array | None, str]], q: Array | None, k: Array | None, run: Run
) -> None:
    """Where q, or q and k, were scaled before their product, which is one of the right ways to do it."""
    factor = 1.0
    for point, before in (("q_rope", q), ("k_rope", k)):
        turned, own = found[point]
        if turned is None or before is None or before.ndim != 3:
            continue
        ratio = norm_ratio(before, turned)
        for scale in (turned.shape[-1] ** -0.5, turned.shape[-1] ** -0.25):
            if ratio is not None and abs(ratio - scale) < 0.02 * scale:
                found[point] = turned / np.float32(scale), own
                factor *= scale
                run.note(f"{point} was multiplied by {scale:.4g} before the scores were made: undone")
    scores, own = found["attn_scores"]
    if scores is not None and factor != 1.0:
        found["attn_scores"] = scores / np.float32(factor), own


def _say_pairs(recorder: Recorder, run: Run) -> None:
    """Which features RoPE turned together, as it shows in the tensors; `compare` decides what that means."""
    tensors = recorder.tensors
    for block, point in map(split_name, list(tensors)):
        if point != "q_rope" or block is None:
            continue
        q, turned = tensors.get(block_point(block, "q")), tensors[block_point(block, "q_rope")]
        if q is not None and q.shape == turned.shape:
            kind = pair_kind(q, turned, run.positions or range(len(q)))
            if kind is not None:
                pairs = "neighbours (2i, 2i+1)" if kind == "neighbours" else "pairs (i, i + head_dim/2)"
                run.note(f"RoPE turns {pairs}")
            return
