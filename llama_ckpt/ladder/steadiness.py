"""Whether a layer gives the same answer to the same call twice: what it gives else is nothing to judge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from llama_ckpt.judging.metrics import relative_error
from llama_ckpt.judging.verdict import PointVerdict

__all__ = ["beside_itself"]


def beside_itself(found: PointVerdict, made: Any, again: Any) -> PointVerdict:
    """The verdict on a tensor, with what a second call gave before all else.

    Orders of summation may differ from call to call; what is within the limit is nobody's fault.
    """
    if made is None or again is None:
        return found
    a, b = (
        x.detach().double().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
        for x in (made, again)
    )
    if a.shape != b.shape:
        said = f"differs from itself: shape {list(a.shape)}, then {list(b.shape)}"
        return replace(found, verdict="fail", blame="yours", reason=f"{said}; {found.reason}")
    differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
    if not differs.any():
        return found
    with np.errstate(all="ignore"):
        off = relative_error(b, a)
    if off <= found.limit:
        return found
    said = f"differs from itself: {differs.sum()} of {a.size} elements, {off:.0e}".replace("e-0", "e-")
    return replace(found, verdict="fail", blame="yours", reason=f"{said}; {found.reason}")
