"""Where float64 is computed: on the device itself, or on the CPU for one that has none, as Apple's GPUs.

Angles of RoPE and a sampler's sums need it, and are small; everything else of a layer is float32 or less.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["double", "double_device"]

WITHOUT: Final = {"mps"}
"""Kinds of devices that have no float64."""


def double_device(device: torch.device | str) -> torch.device:
    """The device that computes in float64 for another."""
    own = torch.device(device)
    return torch.device("cpu") if own.type in WITHOUT else own


def double(x: Tensor) -> Tensor:
    """A tensor in float64, where that is computed for its device."""
    return x.to(double_device(x.device)).to(torch.float64)
