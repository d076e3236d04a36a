"""Hooks on a torch module's submodules, and the recorder that they show tensors to; below both recorders.

A mapping says which submodule's output is which point; a path that ends in `:input` means what goes in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from llama_ckpt.errors import OptionError, ShapeError
from llama_ckpt.points import POINTS, split_name

__all__ = ["Recorder", "hooks"]

BLOCK = "{N}"
INPUT = ":input"


@dataclass
class Recorder:
    """Keeps copies of what hooks show; each point once."""

    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def keep(self, point: str, tensor: Any) -> None:
        """Copy a tensor under its full neutral name, without a batch of one.

        Raises:
            ShapeError: no tensor, several sequences, or a point that was there already.
        """
        if isinstance(tensor, tuple | list) and tensor:
            tensor = tensor[0]
        if not isinstance(tensor, Tensor):
            raise ShapeError(f"what {point} is recorded from", got=type(tensor).__name__, wanted="a tensor")
        if point in self.tensors:
            raise ShapeError(
                point, got="two tensors in one call", wanted="one: a single pass over the prompt"
            )
        array = tensor.detach().float().cpu().numpy()
        if array.ndim > len(POINTS[split_name(point)[1]].axes) or (array.ndim == 3 and array.shape[0] == 1):
            if array.shape[0] != 1:
                raise ShapeError(f"batch of {point}", got=array.shape[0], wanted="one sequence")
            array = array[0]
        self.tensors[point] = np.array(array)  # a copy, whatever happens to the module's buffers


@contextmanager
def hooks(module: nn.Module, mapping: Mapping[str, str], recorder: Recorder) -> Iterator[None]:
    """While it lasts, every call of a mapped submodule is shown to the recorder."""
    handles = []
    try:
        for path, point in mapping.items():
            found = list(_submodules(module, path, point))
            if not found:
                raise OptionError(
                    "mapping", got=path, wanted="the path of a submodule, {N} for a block's number"
                )
            for submodule, name in found:
                if path.endswith(INPUT):
                    hook = submodule.register_forward_pre_hook(_before(name, recorder), with_kwargs=True)
                else:
                    hook = submodule.register_forward_hook(_after(name, recorder))
                handles.append(hook)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(name: str, recorder: Recorder) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorder.keep(name, args[0] if args else next(iter(kwargs.values()), None))

    return hook


def _after(name: str, recorder: Recorder) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        recorder.keep(name, output)

    return hook


def _submodules(module: nn.Module, path: str, point: str) -> Iterator[tuple[nn.Module, str]]:
    """The submodules of a path, each with the full name of its point."""
    if path.count(BLOCK) != point.count(BLOCK) or path.count(BLOCK) > 1:
        raise OptionError("mapping", got=f"{path}: {point}", wanted="{N} once in both, or in neither")
    number, neutral = split_name(point.replace(BLOCK, "0"))
    if neutral not in POINTS or (number is None) != (neutral in ("embd", "output_norm", "logits")):
        raise OptionError("mapping", got=point, wanted="a point, such as blk.{N}.attn_norm or logits")
    pattern = re.escape(path.removesuffix(INPUT)).replace(re.escape(BLOCK), r"(\d+)")
    for name, submodule in module.named_modules():
        if match := re.fullmatch(pattern, name):
            yield submodule, point.replace(BLOCK, match.group(1)) if match.groups() else point
