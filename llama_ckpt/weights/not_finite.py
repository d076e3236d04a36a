"""Weights that are NaN or infinite, found where a run broke."""

from __future__ import annotations

import numpy as np

from llama_ckpt.gguf.file import GGUFFile

__all__ = ["bad_weight"]


def bad_weight(file: GGUFFile, block: int | None) -> str:
    """The first tensor that is not finite among a block's, or among those outside the blocks; "" for none.

    Args:
        file: whose weights; block: its number, or None.

    Returns:
        Name and row, as a clause begins with it.
    """
    for name in file.tensors:
        if name.startswith("blk.") if block is None else not name.startswith(f"blk.{block}."):
            continue
        values = file.float32(name)
        wrong = ~np.isfinite(values.reshape(-1, values.shape[-1])).all(axis=1)
        if wrong.any():
            return f"{name}, row {int(wrong.argmax())},"
    return ""
