"""One file's bytes, mapped into memory, and the header that they begin with."""

from __future__ import annotations

import mmap
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from llama_ckpt.bus_errors import say_on_bus_errors
from llama_ckpt.errors import ModelFileError, UnsupportedModelError
from llama_ckpt.gguf.header import GGUFHeader, read_header

__all__ = ["MappedFile"]


class MappedFile:
    """A mapped GGUF file whose header has been checked.

    Args:
        path: a regular file.

    Attributes:
        path: where it was opened.
        map: the whole file, copy-on-write: writing to it never reaches the file.
        header: its metadata and tensors.
        identity: what tells it from any other or changed file.

    Raises:
        ModelFileError: the file is missing, damaged, truncated, or no GGUF file.
        UnsupportedModelError: big-endian, or a version other than 2 and 3.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.map, self._descriptor, self.identity = _map(path)
        weakref.finalize(self, os.close, self._descriptor)
        say_on_bus_errors(path, len(self.map))
        try:
            self.header: Final[GGUFHeader] = read_header(self.map)
        except (ModelFileError, UnsupportedModelError) as error:
            raise type(error)(
                f"{path}: {error.what}", got=error.got, wanted=error.wanted, hint=error.hint
            ) from None

    def check_unchanged(self) -> None:
        """Refuse a file that was written to since it was opened: what was read of it is of two files.

        Raises:
            ModelFileError: its size or the time of its last change is another.
        """
        if _identity(os.fstat(self._descriptor)) != self.identity[1:]:
            raise ModelFileError(f"{self.path} has changed since it was opened", hint="load it anew")

    @contextmanager
    def reading(self) -> Iterator[int]:
        """A descriptor of the very file that is mapped, for reads that leave no page of it in memory.

        Raises:
            ModelFileError: another file stands at the path by now, or this one was written to.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise ModelFileError(f"{self.path} cannot be opened again", got=error.strerror) from None
        try:
            if _identity(os.fstat(descriptor)) != self.identity[1:]:
                raise ModelFileError(f"{self.path} has changed since it was opened", hint="load it anew")
            yield descriptor
            self.check_unchanged()
        finally:
            os.close(descriptor)


def _map(path: Path) -> tuple[mmap.mmap, int, tuple[object, ...]]:
    """The file's bytes, a descriptor of it, and what tells it from any other or changed file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise ModelFileError(f"{path} is not a regular file", wanted="a GGUF file")
        if status.st_size == 0:
            raise ModelFileError(f"{path} is empty", wanted="a GGUF file")
        with path.open("rb") as opened:
            identity = (path.resolve(), *_identity(os.fstat(opened.fileno())))
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            return mapped, os.dup(opened.fileno()), identity
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelFileError(f"{path} cannot be opened", got=reason, wanted="a GGUF file") from None


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
