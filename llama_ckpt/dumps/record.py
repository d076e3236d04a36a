"""Recording a live torch module: hooks that yield a dump under the neutral names.

    import llama_ckpt as lc

    recorded = lc.record(model, [1, 15043])                  # transformers' LlamaForCausalLM is known
    recorded = lc.record(mine, x, mapping={"layers.{N}.norm1": "blk.{N}.attn_norm"})
    recorded.save("theirs.safetensors")                      # llama-ckpt compare theirs.safetensors

A mapping says which submodule's output is which point; a path that ends in `:input` means what goes in.
Tensors are copied at the moment they are made. What a known model does in a layout of its own is
recognized, stated in `notes` and undone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.errors import OptionError, ShapeError
from llama_ckpt.points import POINTS, split_name

__all__ = ["Recorded", "Recorder", "record"]

Inputs: TypeAlias = "Tensor | Sequence[int] | Mapping[str, Any]"

BLOCK = "{N}"
INPUT = ":input"


@dataclass
class Recorded:
    """What a recording yields.

    Attributes:
        tensors: full point name to float32, token first, a batch of one left out.
        token_ids, positions: of the run; None where the inputs don't tell.
        dtype: what the module computes in.
        notes: sentences on what was recognized and how it was recorded.
    """

    tensors: dict[str, NDArray[np.float32]]
    token_ids: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    dtype: str = "float32"
    notes: list[str] = field(default_factory=list)

    def save(self, path: str | Path, *, weights_sha256: str | None = None) -> None:
        """Write it as a dump that `llama-ckpt compare` reads.

        Args:
            path: the safetensors file.
            weights_sha256: of the weights that were loaded, as a manifest or an export declares it.
        """
        save_dump(
            path,
            self.tensors,
            token_ids=self.token_ids,
            positions=self.positions,
            weights_sha256=weights_sha256,
            dtype=self.dtype,
            producer="llama_ckpt.record",
            notes="; ".join(self.notes) or None,
        )


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


def record(
    module: nn.Module,
    inputs: Inputs,
    *,
    mapping: Mapping[str, str] | None = None,
) -> Recorded:
    """Run a module once and keep the tensors at the points that the mapping names.

    Args:
        module: a live torch module.
        inputs: token ids `[n]` or `[1, n]` as a list or a tensor, any one tensor, or keyword arguments;
            among these `input_ids` and `position_ids` are declared in the dump.
        mapping: path of a submodule to full point name, `{N}` for the block's number in both; the path
            may end in `:input`. None: the module must be of a kind that is known (transformers' Llama).

    Raises:
        OptionError: an unknown kind of module without a mapping, or a path or point that there is not.
        ShapeError: more than one sequence, a point recorded twice.
    """
    arguments = _arguments(inputs)
    recorder, notes = Recorder(), []
    with ExitStack() as stack:
        if mapping is None:
            from llama_ckpt.dumps.transformers_llama import is_transformers_llama, recording

            if not is_transformers_llama(module):
                raise OptionError(
                    "mapping",
                    got=f"none for {type(module).__name__}",
                    wanted="paths of submodules and points",
                )
            finish = stack.enter_context(recording(module, recorder))
        else:
            stack.enter_context(hooks(module, mapping, recorder))
            finish = None
        with torch.inference_mode():
            module(**arguments) if isinstance(arguments, dict) else module(arguments)
    ids, positions = _declared(arguments)
    if finish is not None:
        notes += finish(positions)
    dtype = next((str(p.dtype).removeprefix("torch.") for p in module.parameters()), "float32")
    return Recorded(recorder.tensors, ids, positions, dtype, notes)


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


def _arguments(inputs: Inputs) -> Any:
    """What the module is called with: a tensor, or a dict of keyword arguments."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if isinstance(inputs, Tensor):
        ids = not inputs.is_floating_point()
        return inputs[None] if ids and inputs.ndim == 1 else inputs
    return torch.tensor([list(inputs)], dtype=torch.int64)


def _declared(arguments: Any) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Token ids and positions of the run, as far as the inputs tell."""
    named = arguments if isinstance(arguments, dict) else {"input_ids": arguments}
    ids, positions = named.get("input_ids"), named.get("position_ids")
    if not isinstance(ids, Tensor) or ids.is_floating_point():
        return None, None
    if ids.ndim == 2 and ids.shape[0] != 1:
        raise ShapeError("batch", got=ids.shape[0], wanted="one sequence")
    token_ids = tuple(int(token) for token in ids.reshape(-1))
    at = range(len(token_ids)) if positions is None else positions.reshape(-1).tolist()
    return token_ids, tuple(int(position) for position in at)
