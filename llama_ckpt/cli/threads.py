"""How many threads torch computes with."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["SMALL_MODEL", "fit_threads"]

SMALL_MODEL = 64 << 20  # bytes of a GGUF file


def fit_threads(model: Path) -> None:
    """Let torch compute with one thread where the model is so small that more only wait for each other.

    On two cores that others use too, the embedded model's ladder takes 8 times as long with two threads.
    A number that the user sets in `OMP_NUM_THREADS` is left alone, and so is a file that is not there.
    """
    if "OMP_NUM_THREADS" not in os.environ and model.is_file() and model.stat().st_size < SMALL_MODEL:
        import torch

        torch.set_num_threads(1)
