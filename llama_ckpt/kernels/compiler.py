"""Triton, where it is installed: `jit`, `tl`, and what differs under its interpreter.

A machine without a GPU has no use for Triton and often lacks it; modules with kernels can then still
be imported, and only launching one fails.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

__all__ = [
    *("HAS_TRITON", "INTERPRETED", "MISSING"),
    *("constant", "gdc_launch_dependents", "gdc_wait", "jit", "tl"),
]

_FOUND = importlib.util.find_spec("triton")
_triton: Any = None
MISSING = "Triton is not installed"
"""Why there is no Triton, where there is none."""
if _FOUND is not None and _FOUND.origin is not None:  # a folder of that name has no origin
    try:
        _triton = importlib.import_module("triton")
    except ImportError as error:  # half installed, say; the layers need none of it
        MISSING = f"Triton cannot be imported ({error})"

HAS_TRITON = _triton is not None
"""Whether Triton is installed, whole."""

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
    jit = _triton.jit
    tl = importlib.import_module("triton.language")
    _cuda = importlib.import_module("triton.language.extra.cuda")
    gdc_wait, gdc_launch_dependents = _cuda.gdc_wait, _cuda.gdc_launch_dependents


def constant(number: int) -> Any:
    """A number of a module that kernels may call by its name."""
    return tl.constexpr(int(number)) if HAS_TRITON else number
