"""A folder that tensors are kept in while a run is recorded, so that memory holds those of a block or two.

    recorded = lc.record(model, ids, scratch="/var/tmp")     # 600 tokens of a large model
    recorded.save("mine.safetensors")

A tensor that is copied is written and mapped: its pages are the file's, which the system drops where memory
is short. numpy only.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.errors import OptionError
from llama_ckpt.whole_files import scratch_folder

__all__ = ["Scratch", "in_scratch", "keeping_in"]

SMALL: Final = 1 << 14
"""Bytes below which a tensor stays in memory."""


class Scratch:
    """A folder of its own below the caller's; it goes with the last of its tensors.

    Args:
        folder: where there is room for the whole recording.

    Raises:
        OptionError: no folder, or none that can be written to.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            self._folder = scratch_folder("recording", Path(folder))
        except OSError as error:
            wanted = "a folder with room for the recording"
            raise OptionError("scratch", got=f"{folder}: {error.strerror}", wanted=wanted) from None
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._count = 0

    def kept(self, array: NDArray[Any]) -> NDArray[Any]:
        """The same numbers, in a file."""
        if array.nbytes < SMALL:
            return array
        path = self._folder / str(self._count)
        self._count += 1
        np.ascontiguousarray(array).tofile(path)
        mapped = np.memmap(path, array.dtype, "r", shape=array.shape)
        weakref.finalize(mapped, path.unlink, missing_ok=True)
        return mapped


_CURRENT: ContextVar[Scratch | None] = ContextVar("scratch", default=None)


def in_scratch(array: NDArray[Any]) -> NDArray[Any]:
    """An array, kept in the folder of the recording that goes on, where it has one."""
    scratch = _CURRENT.get()
    return array if scratch is None else scratch.kept(array)


@contextmanager
def keeping_in(scratch: Scratch | None) -> Iterator[None]:
    """While it lasts, copies are kept there; None: in memory."""
    before = _CURRENT.set(scratch)
    try:
        yield
    finally:
        _CURRENT.reset(before)
