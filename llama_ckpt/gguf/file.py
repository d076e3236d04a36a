"""A GGUF file: its bytes checked, mapped into memory, and given out as named tensors.

Opening walks and checks the header (`header`) and nothing else: no tensor is read, so it costs
the same for 1 MB and for 13 GB. What the tensors must be for a Llama is asked in
`weights/llama_tensors.py`, so that a file of metadata alone can be opened for its configuration and its
vocabulary.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from llama_ckpt.cores import usable_cpus
from llama_ckpt.errors import ModelFileError, UnsupportedModelError
from llama_ckpt.gguf.cursor import shown
from llama_ckpt.gguf.header import MetadataValue, TensorInfo
from llama_ckpt.gguf.mapped import MappedFile
from llama_ckpt.gguf.splits import SPLIT_KEYS, all_parts, joined_tensors

__all__ = [
    "GGUFFile",
    "MetadataValue",
    "TensorInfo",
    "open_gguf",
    "weights_sha256",
]

_PIECE: Final = 1 << 22  # bytes dequantized at a time for a checksum
_THREADS: Final = 16  # that dequantize for a checksum, at most

_DIGESTS: Final[dict[tuple[str, tuple[object, ...]], str]] = {}
"""Checksums by kind and, of each file, path, device, inode, size and time of the last change."""


class GGUFFile:
    """An open GGUF file.

    Args:
        path: a regular file; of a model that is split over several, any of them.

    Attributes:
        path: where it was opened.
        version: 2 or 3.
        metadata: every key, see `MetadataValue`: plain scalars, `str`, `list[bytes]` for an array of
            strings, a read-only numpy array for any other array.
        tensors: `TensorInfo` by name, in the file's order.

    Raises:
        ModelFileError: the file is missing, damaged, truncated, or no GGUF file.
        UnsupportedModelError: big-endian, or a version other than 2 and 3.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Final = Path(path)
        self._parts: Final = all_parts(MappedFile(self.path))
        header = self._parts[0].header
        metadata = dict(header.metadata)
        if len(self._parts) > 1:
            metadata = {key: value for key, value in metadata.items() if key not in SPLIT_KEYS}
        self.version: Final = header.version
        self.metadata: Final[Mapping[str, MetadataValue]] = MappingProxyType(metadata)
        self.tensors: Final[Mapping[str, TensorInfo]] = MappingProxyType(joined_tensors(self._parts))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that hold it, in order: one, or the parts of a split model."""
        return tuple(part.path for part in self._parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all its files together."""
        return sum(len(part.map) for part in self._parts)

    def info(self, name: str) -> TensorInfo:
        """The tensor of that name.

        Raises:
            ModelFileError: the file has no such tensor.
        """
        if name not in self.tensors:
            raise ModelFileError(f"{self.path}: tensor {name} is missing")
        return self.tensors[name]

    def check_unchanged(self) -> None:
        """Refuse a file that was written to since it was opened.

        Raises:
            ModelFileError: which of its files it is.
        """
        for part in self._parts:
            part.check_unchanged()

    def raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes as in the file: uint8 [rows, row_bytes], a read-only view, not a copy."""
        info = self.info(name)
        self._parts[info.part].check_unchanged()
        view = np.frombuffer(self.buffer(info.part), np.uint8, info.nbytes, info.offset)
        view.flags.writeable = False
        return view.reshape(info.n_rows, info.row_bytes)

    def buffer(self, part: int = 0) -> mmap.mmap:
        """A whole file, mapped copy-on-write: writing to it never reaches the file."""
        return self._parts[part].map

    @contextmanager
    def reading(self) -> Iterator[tuple[int, ...]]:
        """A descriptor of each file that is mapped, for reads that leave no page of it in memory.

        Raises:
            ModelFileError: another file stands at the path by now, or this one was written to.
        """
        with ExitStack() as stack:
            yield tuple(stack.enter_context(part.reading()) for part in self._parts)

    def float32(self, name: str, rows: slice = slice(None)) -> NDArray[np.float32]:
        """A tensor's values, dequantized by `gguf`: float32 in its shape, or some rows of a matrix.

        Raises:
            UnsupportedModelError: a type that `gguf` does not dequantize.
        """
        info = self.info(name)
        values = _dequantize(self.raw(name)[rows], info)
        return values if rows != slice(None) else values.reshape(info.shape)

    def float64(self, name: str) -> NDArray[np.float64]:
        """A tensor's float32 values, exactly, in float64."""
        return self.float32(name).astype(np.float64)

    def sha256(self) -> str:
        """SHA-256 of the file's bytes, of all parts' one after the other, in hex.

        Computed once for a file that stays as it is.
        """
        return self._remembered("file", self._hash_bytes)

    def _hash_bytes(self) -> str:
        digest = hashlib.sha256()
        for part in self._parts:
            digest.update(part.map)
        self.check_unchanged()
        return digest.hexdigest()

    def _remembered(self, what: str, compute: Callable[[], str]) -> str:
        """A checksum of this file, kept for the process: of 13 GB each takes many seconds."""
        key = (what, tuple(part.identity for part in self._parts))
        if key not in _DIGESTS:
            _DIGESTS[key] = compute()
        return _DIGESTS[key]


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF file; the same as `GGUFFile(path)`."""
    return GGUFFile(path)


def weights_sha256(file: GGUFFile) -> str:
    """SHA-256, in hex, over the values of all tensors, whatever type the file keeps them in.

    For each tensor in the order of their names: the name in UTF-8, a NUL, then its dequantized
    values as little-endian float32, row-major. A file and its exact float32 upcast agree. Memory:
    some rows of a few tensors. Computed once for a file that stays as it is.
    """
    return file._remembered("weights", lambda: _hash_weights(file))


def _hash_weights(file: GGUFFile) -> str:
    """Several threads dequantize ahead of the one that hashes, which has to go in order."""
    digest = hashlib.sha256()
    threads = min(_THREADS, usable_cpus())
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[bytes | memoryview]] = deque()
        for piece in _pieces(file):
            ahead.append(pool.submit(piece))
            if len(ahead) > 2 * threads:
                digest.update(ahead.popleft().result())
        for future in ahead:
            digest.update(future.result())
    file.check_unchanged()
    return digest.hexdigest()


def _pieces(file: GGUFFile) -> Iterator[Callable[[], bytes | memoryview]]:
    """What `weights_sha256` hashes, in order, each piece to be computed when it is called."""
    for name in sorted(file.tensors):
        yield partial(bytes, name.encode("utf-8", "surrogateescape") + b"\0")
        info, raw = file.tensors[name], file.raw(name)
        step = max(1, _PIECE // info.row_bytes)
        for first in range(0, info.n_rows, step):
            yield partial(_little_endian, raw[first : first + step], info)


def _little_endian(raw: NDArray[np.uint8], info: TensorInfo) -> memoryview:
    return np.ascontiguousarray(_dequantize(raw, info), "<f4").data


def _dequantize(raw: NDArray[np.uint8], info: TensorInfo) -> NDArray[np.float32]:
    try:
        with np.errstate(all="ignore"):  # random or damaged scales overflow; their values are judged later
            values: NDArray[Any] = dequantize(raw, info.type)
    except NotImplementedError:
        raise UnsupportedModelError(f"the type of tensor {shown(info.name)}", got=info.type.name) from None
    return values.astype(np.float32, copy=False)
