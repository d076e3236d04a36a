"""What a module is called with, and what that says of each row: token, position, sequence, padding; torch.

Ids and positions are known by the names that programs give them: `input_ids`, `tokens`, `idx`, `x`;
`position_ids`, `input_pos`, `positions`, `start_pos`; masks and sequences by those in `masks`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from llama_ckpt.dumps.masks import Rows, rows_by_mask, rows_by_positions, rows_by_sequence
from llama_ckpt.errors import ShapeError

__all__ = ["IDS", "POSITIONS", "Inputs", "arguments_of", "call", "declared_rows", "declared_run"]

Inputs: TypeAlias = "Tensor | Sequence[int] | Mapping[str, Any]"

IDS = ("input_ids", "tokens", "token_ids", "idx", "x", "ids")
POSITIONS = ("position_ids", "input_pos", "cache_position", "positions")
START = "start_pos"
MASKS = ("attention_mask", "attn_mask", "mask")
"""What may be seen: 1, true or 0.0 (added to scores) where it may."""
IGNORED = ("key_padding_mask", "src_key_padding_mask")
"""What may not: true where it may not."""
SEQUENCES = ("sequence_ids", "seq_ids", "seq_idx", "segment_ids", "document_ids", "doc_ids")
ENDS = ("cu_seqlens", "cu_seq_lens", "cu_seq_lens_q", "cu_seqlens_q")
"""Where sequences begin, and the last ends, as kernels for packed rows take it."""


def arguments_of(inputs: Inputs, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the call.

    A list of ids, or a tensor of them, is the first argument, in a batch of one; `start_pos` and
    `input_pos` are added where the module cannot be called without.

    Raises:
        ShapeError: what are no token ids of one sequence.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if not isinstance(inputs, Tensor):
        given = np.asarray(inputs)
        if given.dtype.kind not in "iu" or given.ndim not in (1, 2):
            got = f"{given.dtype} of shape {list(given.shape)}"
            raise ShapeError("inputs", got=got, wanted="token ids, [n] or [1, n]")
        inputs = torch.from_numpy(given.astype(np.int64))
    if inputs.is_floating_point():
        return (inputs,), {}
    first = next(module.parameters(), torch.empty(0))
    ids = (inputs[None] if inputs.ndim == 1 else inputs).to(first.device)
    return (ids,), _wanted_besides(module, ids)


def _wanted_besides(module: nn.Module, ids: Tensor) -> dict[str, Any]:
    forward = getattr(module, "_orig_mod", module).forward
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    wanted = {one.name for one in parameters if one.default is one.empty}
    run = {START: 0, "input_pos": torch.arange(ids.shape[-1], device=ids.device)}
    return {name: value for name, value in run.items() if name in wanted}


def call(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call it on copies: a cache among the arguments would be another one after the first call."""
    try:
        args, kwargs = copy.deepcopy((args, dict(kwargs)))
    except Exception:  # a tensor with a gradient, an object that can't be copied: then as it is
        pass
    return module(*args, **kwargs)


def declared_run(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Token ids and positions of the run, as far as the inputs tell.

    Raises:
        ShapeError: more than one sequence.
    """
    named = (kwargs[name] for name in IDS if _is_ids(kwargs.get(name)))
    ids: Any = args[0] if args else next(named, None)
    if not _is_ids(ids):
        return None, None
    if ids.ndim == 2 and ids.shape[0] != 1:
        raise ShapeError("batch", got=ids.shape[0], wanted="one sequence")
    token_ids = tuple(int(token) for token in ids.reshape(-1))
    at = next((kwargs[name] for name in POSITIONS if isinstance(kwargs.get(name), Tensor)), None)
    if at is not None and at.numel() == len(token_ids):
        return token_ids, tuple(int(position) for position in at.reshape(-1))
    start = int(kwargs[START]) if START in kwargs else 0
    start = int(at) if at is not None and at.numel() == 1 else start
    return token_ids, tuple(range(start, start + len(token_ids)))


def declared_rows(
    kwargs: Mapping[str, Any], positions: Sequence[int] | None, n: int
) -> tuple[Rows | None, str | None]:
    """The sequence of each row and which rows are padding, as far as what the module was handed tells.

    Args:
        kwargs: of the call. positions: of its n rows, where they are known.

    Returns:
        None where it is one sequence without padding; and a sentence where a mask says something else.
    """

    def given(names: Sequence[str]) -> Any:
        found = next((kwargs[name] for name in names if isinstance(kwargs.get(name), Tensor)), None)
        return None if found is None else found.detach().cpu()

    by_name, ends, mask, ignored = (given(names) for names in (SEQUENCES, ENDS, MASKS, IGNORED))
    if by_name is not None and by_name.numel() == n:
        return rows_by_sequence(by_name.reshape(-1).numpy()), None
    if ends is not None and int(ends[-1]) == n:
        starts = ends.reshape(-1)[:-1].long()
        return rows_by_sequence(torch.bucketize(torch.arange(n), starts, right=True).numpy()), None
    if mask is None and ignored is not None:
        mask = ~ignored if ignored.dtype == torch.bool else ignored
    rows, other = None, None
    if mask is not None:
        rows, other = rows_by_mask((mask if mask.dtype != torch.bfloat16 else mask.float()).numpy(), n)
    if rows is None and other is None:
        rows = rows_by_positions(positions or ())
    return rows, other


def _is_ids(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool
