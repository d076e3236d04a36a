"""Triton, where it is installed: `jit`, `tl`, and what differs under its interpreter.

A machine without a GPU has no use for Triton and often lacks it; modules with kernels can then still
be imported, and only launching one fails.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

__all__ = ["HAS_TRITON", "INTERPRETED", "constant", "gdc_launch_dependents", "gdc_wait", "jit", "tl"]

_FOUND = importlib.util.find_spec("triton")
HAS_TRITON = _FOUND is not None and _FOUND.origin is not None
"""Whether Triton is installed. (A folder of that name in the working directory has no origin.)"""

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
"""Whether kernels run in Triton's interpreter, on the CPU. It knows no inline assembly."""


def _as_it_is(function: Any) -> Any:
    """Leave a kernel as it is: without Triton nothing can launch it."""
    return function


jit: Any = _as_it_is
tl: Any = None
gdc_wait: Any = None
gdc_launch_dependents: Any = None
if HAS_TRITON:
    jit = importlib.import_module("triton").jit
    tl = importlib.import_module("triton.language")
    _cuda = importlib.import_module("triton.language.extra.cuda")
    gdc_wait, gdc_launch_dependents = _cuda.gdc_wait, _cuda.gdc_launch_dependents


def constant(number: int) -> Any:
    """A number of a module that kernels may call by its name."""
    return tl.constexpr(int(number)) if HAS_TRITON else number
