"""The engine's kernels on given inputs: one block, or the head, where a validation feeds it from a recording.

Same kernels, same buffers, same launch options as in a run from tokens; only the residual stream comes
from outside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from checkpoints.c08_logits import Tap
from llama_ckpt.engine.engine import Engine, slots_looked_at
from llama_ckpt.engine.step import FEW
from llama_ckpt.errors import ShapeError

__all__ = ["forced_block", "forced_logits"]


@torch.inference_mode()
def forced_block(engine: Engine, number: int, x: Tensor, positions: list[int], tap: Tap | None) -> Tensor:
    """One block on a residual stream, as the first tokens of a new sequence.

    Args:
        engine: what it holds of another sequence is forgotten.
        number: which block.
        x: [n, width], 1 to the capacity.
        positions: `n`, increasing.
        tap: gets the block's points of `engine_points`, by full name.

    Returns:
        float32 `[n, width]`.
    """
    n, x = len(positions), _stream(engine, x)
    engine.reset()
    if n <= FEW:
        engine.place([0] * n, positions)
        engine.launcher.enter(number, _rows(engine, n), x, n)
        engine.launcher.block(number, n, slots_looked_at(n, engine.capacity), tap)
        return engine.buffers.x[:n].clone()
    return engine.prefill.block(number, x, positions, tap)


@torch.inference_mode()
def forced_logits(engine: Engine, x: Tensor) -> Tensor:
    """The last norm and the head on a residual stream `[n, width]`: float32 `[n, vocab]`."""
    n, x = len(x), _stream(engine, x)
    engine.reset()
    if n <= FEW:
        engine.launcher.enter(engine.config.n_layers, _rows(engine, n), x, n)
        engine.launcher.head(n)
        return engine.buffers.logits[:n].clone()
    return engine.prefill.head(x)


def _stream(engine: Engine, x: Tensor) -> Tensor:
    wanted = (engine.capacity, engine.config.width)
    if x.ndim != 2 or not 1 <= x.shape[0] <= wanted[0] or x.shape[1] != wanted[1]:
        raise ShapeError("residual stream", got=list(x.shape), wanted=f"[1 to {wanted[0]}, {wanted[1]}]")
    return x.to(engine.device, torch.float32).contiguous()


def _rows(engine: Engine, n: int) -> Tensor:
    return torch.arange(n, dtype=torch.int32, device=engine.device)
