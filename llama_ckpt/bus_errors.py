"""A mapped file that is cut while it is read ends a process by a bus error, without a word; here is the word.

Python's own handlers of signals run between its instructions, and after this signal there is none. So the C
library is told to call us at once: a sentence, and exit code 2 instead of a signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["say_on_bus_errors"]

_WATCHED: dict[Path, int] = {}
"""Every mapped file, and its size when it was opened."""

_HANDLER: list[Any] = []
"""Ours, kept: the C library has no more than its address."""


def say_on_bus_errors(path: Path, size: int) -> None:
    """From now on a bus error says which mapped file has become shorter, this one among them."""
    _WATCHED[path] = size
    if _HANDLER or not hasattr(signal, "SIGBUS") or signal.getsignal(signal.SIGBUS) is not signal.SIG_DFL:
        return
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    handler = kind(_said)
    with contextlib.suppress(OSError, AttributeError):  # a system without such a library
        call: Callable[..., Any] = ctypes.CDLL(None).signal
        call.restype, call.argtypes = ctypes.c_void_p, [ctypes.c_int, kind]  # type: ignore[attr-defined]
        call(signal.SIGBUS, handler)
        _HANDLER.append(handler)


def _said(_number: int) -> None:
    """Nothing can be gone on with: the instruction that failed would be tried again."""
    try:
        cut = [path for path, size in _WATCHED.items() if _size(path) < size]
        named = f"{cut[0]} became shorter" if cut else "a mapped file could not be read"
        os.write(2, f"llama-ckpt: error: {named} while it was in use; load it anew\n".encode())
    finally:
        os._exit(2)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return sys.maxsize  # another file, or none, has the name: the mapped one lives on
