"""What a trial found, brought into the form in which it is judged, or told of where it never came to that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama_ckpt.judging.limits import ErrorKind
from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.ladder.implementation import Rejected

__all__ = ["as_numpy", "inherited", "rejected"]


def rejected(name: str, error_kind: ErrorKind, error: Rejected) -> PointVerdict:
    """The failure of a point that an implementation never came to."""
    return PointVerdict(name, error_kind, "fail", "yours", str(error))


def inherited(found: PointVerdict, own: PointVerdict | None) -> PointVerdict:
    """A total error beyond its limit, excused where the layer makes no error of its own on these inputs."""
    if own is None or own.verdict == "fail":
        return found
    reason = f"inherited: error {found.err:.1e} came with its inputs, on which its own is {own.err:.1e}"
    return replace(found, verdict="pass", blame="", reason=reason, inherited=True)


def as_numpy(x: Any) -> tuple[NDArray[Any] | None, str]:
    """A tensor (or list of integers) as an array, and the name of its own dtype."""
    if x is None:
        return None, "nothing"
    if isinstance(x, torch.Tensor):
        name = str(x.dtype).removeprefix("torch.")
        return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy(), name
    array = np.asarray(x)
    return array, array.dtype.name
