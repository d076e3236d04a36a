"""Recording a live torch module: hooks that yield a dump under the neutral names.

    import llama_ckpt as lc

    recorded = lc.record(model, [1, 15043])                  # transformers' LlamaForCausalLM is known
    recorded = lc.record(mine, x, mapping={"layers.{N}.norm1": "blk.{N}.attn_norm"})
    recorded.save("mine.safetensors")                        # llama-ckpt compare mine.safetensors

A mapping says which submodule's output is which point; a path that ends in `:input` means what goes in.
Tensors are copied at the moment they are made. What a known model does in a layout of its own is
recognized, stated in `notes` and undone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llama_ckpt.dumps.hooks import Recorder, hooks
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.dumps.transformers_llama import is_transformers_llama, recording
from llama_ckpt.errors import OptionError, ShapeError

__all__ = ["Recorded", "record"]

Inputs: TypeAlias = "Tensor | Sequence[int] | Mapping[str, Any]"


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
