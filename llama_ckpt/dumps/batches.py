"""What a call of several sequences side by side was handed, and what was seen of each of them.

A batch's lines are settled one by one, and its rows are those of the first line, then those of the second,
as `run_facts` counts them. What is padding stays with its line, since its keys lie between the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llama_ckpt.dumps.attention import Attention
from llama_ckpt.dumps.inputs import IDS, POSITIONS
from llama_ckpt.dumps.masks import Rows, rows_by_positions
from llama_ckpt.dumps.recorder import Recorder
from llama_ckpt.dumps.settle import Run, settle
from llama_ckpt.errors import ShapeError

__all__ = ["CACHE", "call_of", "of_several", "rows_of", "settled"]

LAST_ALONE = "logits of the last token alone are not kept of several sequences or calls"
MASK = "attention_mask"
CACHE = "past_key_values"


def of_several(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is handed the token ids of several sequences side by side."""
    ids = _ids(args, kwargs)
    return isinstance(ids, Tensor) and not ids.is_floating_point() and ids.ndim == 2 and len(ids) > 1


def call_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, NDArray[np.int64]]:
    """Of each token of a call, `[batch, n]`: id, position, padding, and which of its line's sequences.

    And `start`: how many keys the cache held before.

    Raises:
        ShapeError: it is not handed token ids.
    """
    ids = _ids(args, kwargs)
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim not in (1, 2):
        raise ShapeError("inputs of a call", got=type(ids).__name__, wanted="token ids, [n] or [batch, n]")
    tokens = ids.detach().cpu().numpy().astype(np.int64)
    tokens = tokens.reshape(1, -1) if tokens.ndim == 1 else tokens
    n = tokens.shape[1]
    cache: Any = kwargs.get(CACHE)
    start = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
    at = next((kwargs[name] for name in POSITIONS if isinstance(kwargs.get(name), Tensor)), None)
    first = np.arange(start, start + n) if at is None else at.detach().cpu().numpy()
    positions = np.broadcast_to(first.reshape(-1, n), tokens.shape).astype(np.int64)
    padding = _padding(kwargs.get(MASK), tokens, start)
    packed = np.zeros_like(tokens)
    alone = len(tokens) == 1 and not start and kwargs.get(MASK) is None
    if alone and (rows := rows_by_positions(positions[0].tolist())) is not None:
        packed[0] = rows.sequences
    facts = {"token_ids": tokens, "positions": positions, "padding": padding, "packed": packed}
    return facts | {"start": np.array(start)}


def rows_of(
    call: Mapping[str, NDArray[np.int64]], lines: Sequence[int] | None = None
) -> dict[str, list[int]]:
    """Of a call's rows, in their order: `token_ids`, `positions`, `padding` and `sequences`.

    Args:
        lines: the sequence that each line is; None: they are counted.
    """
    facts = {key: call[key].reshape(-1).tolist() for key in ("token_ids", "positions", "padding")}
    first = np.arange(len(call["token_ids"])) if lines is None else np.asarray(lines)
    return facts | {"sequences": (first[:, None] + call["packed"]).reshape(-1).tolist()}


def settled(run: Run) -> tuple[Recorder, Rows]:
    """The points of a call, the rows of its lines one after the other, and whose each row is.

    Raises:
        ShapeError: as of `settle`.
    """
    assert run.call is not None
    batch = len(run.call["token_ids"])
    lines = [settle(_line(run, line, batch)) for line in range(batch)]
    together = Recorder()
    for name in (name for name in lines[0].tensors if all(name in one.tensors for one in lines)):
        whole = [one.tensors[name] for one in lines]
        if name == "logits" and sum(map(len, whole)) != run.call["token_ids"].size:
            run.note(LAST_ALONE)
            continue
        together.keep(name, whole[0] if batch == 1 else np.concatenate(whole))
        together.dtypes[name] = lines[0].dtypes[name]
    rows = rows_of(run.call)
    return together, Rows(tuple(rows["sequences"]), tuple(rows["padding"]))


def _ids(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    named = (kwargs[name] for name in IDS if isinstance(kwargs.get(name), Tensor))
    return args[0] if args else next(named, None)


def _padding(mask: Any, tokens: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    """Which of a call's tokens the mask leaves out, `[batch, n]`.

    Args:
        mask: `[batch, keys]`, or `[batch, 1, n, keys]` as attention takes it: true, or 0.0, where seen.
        start: how many keys come before the call's own.
    """
    batch, n = tokens.shape
    if isinstance(mask, Mapping):  # one for each kind of layer, of which a Llama has one
        mask = next(iter(mask.values()), None)
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4) or mask.shape[-1] < start + n:
        return np.zeros_like(tokens)
    given = mask.detach().cpu()
    own = (given.float() if given.is_floating_point() else given).numpy()[..., start : start + n]
    if mask.ndim == 2:
        return np.asarray(own == 0, np.int64)
    last = own[:, 0, -1]  # the call's last row sees every token before it that is none of padding
    seen = last >= 0 if given.is_floating_point() else last != 0
    return np.asarray(~np.broadcast_to(seen, (batch, n)), np.int64)


def _line(run: Run, line: int, batch: int) -> Run:
    """What was seen of one line of a batch."""
    assert run.call is not None

    def cut(x: NDArray[Any] | None) -> NDArray[Any] | None:
        if x is None or batch == 1:
            return x
        each = len(x) // batch
        return x[line * each : (line + 1) * each]

    shown = {name: x if batch == 1 else x[line : line + 1] for name, x in run.shown.items()}
    parts = ("q", "k", "v", "scores", "probs", "context")
    attention: dict[int, Attention] = {}
    for block, seen in run.attention.items():
        of_line: dict[str, Any] = {part: cut(getattr(seen, part)) for part in parts}
        attention[block] = replace(seen, **of_line)
    tokens, positions = (tuple(run.call[key][line].tolist()) for key in ("token_ids", "positions"))
    start = int(run.call["start"])
    return Run(shown, run.dtypes, attention, tokens, positions, None, run.notes, None, start)
