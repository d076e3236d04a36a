"""What a module is called with, and which tokens and positions that says; torch.

Ids and positions are known by the names that programs give them: `input_ids`, `tokens`, `idx`, `x`;
`position_ids`, `input_pos`, `positions`, `start_pos`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from llama_ckpt.errors import ShapeError

__all__ = ["Inputs", "arguments_of", "call", "declared_run"]

Inputs: TypeAlias = "Tensor | Sequence[int] | Mapping[str, Any]"

IDS = ("input_ids", "tokens", "token_ids", "idx", "x", "ids")
POSITIONS = ("position_ids", "input_pos", "cache_position", "positions")
START = "start_pos"


def arguments_of(inputs: Inputs, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the call.

    A list of ids, or a tensor of them, is the first argument, in a batch of one; `start_pos` and
    `input_pos` are added where the module cannot be called without.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if not isinstance(inputs, Tensor):
        inputs = torch.tensor([list(inputs)], dtype=torch.int64)
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


def _is_ids(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool
