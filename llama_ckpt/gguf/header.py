"""The walk over a GGUF header, every count, length and offset held against the file before it is used.

A damaged header may claim twenty million elements in a file of fifty bytes. So nothing is read that
is not there, nothing is allocated before what it is to hold has been seen in the file, and what a
sound file never has much of (bytes, keys, tensors, strings) is also bounded in number, which bounds
the time. Numeric arrays are views of the file, not copies.

The format: little-endian; magic `GGUF`, version u32, number of tensors u64, number of keys u64; for
each key its name, a value type u32 and the value; for each tensor its name, number of dimensions
u32, dimensions u64 with the fastest first, type u32, offset u64 from the start of the data. The data
starts at the next multiple of `general.alignment`. A string is its length u64 and its bytes.
Source: the GGUF specification (ggml repository, docs/gguf.md); the same limits as llama.cpp's reader
where that has one.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from llama_ckpt.errors import ModelFileError, UnsupportedModelError
from llama_ckpt.gguf.cursor import AGAIN, Cursor, shown
from llama_ckpt.gguf.foreign import REMOVED_TYPES, foreign_kind

__all__ = ["GGUFHeader", "MetadataValue", "TensorInfo", "read_header"]

MetadataValue = bool | int | float | str | list[bytes] | np.ndarray[Any, np.dtype[Any]]
"""A metadata value: a plain scalar, text (UTF-8, undecodable bytes as lone surrogates), an array of
strings as `list[bytes]`, any other array as a read-only one-dimensional numpy array."""

# The most that a header may have of each: far above any Llama's (10 MB, 30 keys, 290 tensors, 400,000
# tokens and merges), yet walked in seconds, in memory for a few times as many bytes.
_HEADER_BYTES: Final = 1 << 27
_KEYS: Final = 1 << 16
_TENSORS: Final = 1 << 16
_STRINGS: Final = 1 << 21
_KEY_BYTES: Final = (1 << 16) - 1  # the specification's limit
_NAME_BYTES: Final = 63  # llama.cpp's GGML_MAX_NAME, less the NUL at its end
_DIMS: Final = 4  # llama.cpp's GGML_MAX_DIMS
_ELEMENTS: Final = (1 << 63) - 1

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Final[Mapping[int, np.dtype[Any]]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("<u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in its file, and what it holds.

    Attributes:
        name: as in the file.
        shape: row-major, [out, in] for a weight matrix: GGUF's dimensions reversed.
        type: the block format of its rows.
        nbytes: its size in the file.
        offset: its first byte, counted from the start of the file.
        part: which of a model's files that is, counted from 0.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    nbytes: int
    offset: int
    part: int = 0

    @property
    def n_rows(self) -> int:
        """Rows of the innermost axis: 1 for a vector."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the file."""
        return self.nbytes // self.n_rows


@dataclass(frozen=True)
class GGUFHeader:
    """What a header says: its version, its metadata, and its tensors in the file's order."""

    version: int
    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, TensorInfo]


def read_header(data: mmap.mmap) -> GGUFHeader:
    """Walk the header of a whole mapped GGUF file.

    Raises:
        ModelFileError: no GGUF file, truncated, or damaged; the message names the field.
        UnsupportedModelError: a sound GGUF file of another version or byte order.
    """
    cursor = Cursor(data, limit=_HEADER_BYTES, strings=_STRINGS)
    version = _read_version(cursor)
    n_tensors = cursor.count("number of tensors", smallest=32, limit=_TENSORS)
    n_keys = cursor.count("number of metadata keys", smallest=14, limit=_KEYS)
    metadata: dict[str, MetadataValue] = {}
    for index in range(n_keys):
        key = cursor.string(f"metadata key {index}", _KEY_BYTES).decode("utf-8", "surrogateescape")
        if not key or key in metadata:
            raise ModelFileError(f"metadata key {index}", got=shown(key), wanted="a key not seen before")
        metadata[key] = _read_value(cursor, f"metadata {shown(key)}")
    return GGUFHeader(version, metadata, _read_tensors(cursor, n_tensors, _alignment(metadata)))


def _read_version(cursor: Cursor) -> int:
    start = cursor.advance(4, "the magic")
    magic = cursor.data[start : start + 4]
    if magic != b"GGUF":
        what, hint = foreign_kind(cursor.data[start : start + 64]) or (None, "this is no GGUF file")
        got = shown(magic) if what is None else f"{shown(magic)}: {what}"
        raise ModelFileError("the first four bytes", got=got, wanted="'GGUF'", hint=hint)
    version = cursor.u32("the version")
    if version and version & 0xFFFF == 0:
        raise UnsupportedModelError("the file's byte order", got="big-endian", wanted="little-endian")
    if version not in (2, 3):
        raise UnsupportedModelError(
            "GGUF version",
            got=version,
            wanted="2 or 3",
            hint="convert the model again with a current llama.cpp",
        )
    return version


def _read_value(cursor: Cursor, what: str) -> MetadataValue:
    kind = cursor.u32(f"the type of {what}")
    if kind == _STRING:
        return cursor.string(what).decode("utf-8", "surrogateescape")
    if kind == _ARRAY:
        return _read_array(cursor, what)
    dtype = _scalar_dtype(kind, what)
    start = cursor.advance(dtype.itemsize, what)
    value: bool | int | float = np.frombuffer(cursor.data, dtype, 1, start)[0].item()
    return bool(value) if kind == _BOOL else value


def _read_array(cursor: Cursor, what: str) -> MetadataValue:
    kind = cursor.u32(f"the element type of {what}")
    if kind == _STRING:
        n = cursor.count(f"the length of {what}", smallest=8, limit=cursor.strings_left)
        cursor.strings_left -= n
        return cursor.strings(n, what)
    if kind == _ARRAY:
        raise ModelFileError(f"the element type of {what}", got="array", wanted="numbers or strings")
    dtype = _scalar_dtype(kind, what)
    n = cursor.count(f"the length of {what}", smallest=dtype.itemsize, limit=_ELEMENTS)
    start = cursor.advance(n * dtype.itemsize, what)
    array = np.frombuffer(cursor.data, dtype, n, start) if n else np.empty(0, dtype)
    if kind == _BOOL:
        array = array != 0
    array.flags.writeable = False
    return array


def _scalar_dtype(kind: int, what: str) -> np.dtype[Any]:
    if kind not in _SCALARS:
        raise ModelFileError(f"the value type of {what}", got=kind, wanted="a GGUF value type, 0 to 12")
    return _SCALARS[kind]


def _alignment(metadata: Mapping[str, MetadataValue]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
        got = alignment if isinstance(alignment, (int, float)) else type(alignment).__name__
        raise ModelFileError("general.alignment", got=got, wanted="a power of two from 8")
    return alignment


def _read_tensors(cursor: Cursor, n_tensors: int, alignment: int) -> dict[str, TensorInfo]:
    relative: dict[str, TensorInfo] = {}
    for index in range(n_tensors):
        info = _read_tensor(cursor, index, alignment)
        if info.name in relative:
            raise ModelFileError(
                f"the name of tensor {index}", got=shown(info.name), wanted="a name not seen before"
            )
        relative[info.name] = info
    start = -(-cursor.at // alignment) * alignment
    tensors = {
        name: TensorInfo(name, info.shape, info.type, info.nbytes, start + info.offset)
        for name, info in relative.items()
    }
    _check_places(tensors, len(cursor.data))
    return tensors


def _read_tensor(cursor: Cursor, index: int, alignment: int) -> TensorInfo:
    raw_name = cursor.string(f"the name of tensor {index}", _NAME_BYTES)
    what = f"tensor {shown(raw_name)}"
    n_dims = cursor.u32(f"the number of dimensions of {what}")
    if not 1 <= n_dims <= _DIMS:
        raise ModelFileError(f"the number of dimensions of {what}", got=n_dims, wanted=f"1 to {_DIMS}")
    shape = tuple(cursor.u64(f"a dimension of {what}") for _ in range(n_dims))[::-1]
    if not 0 < math.prod(shape) <= _ELEMENTS:
        raise ModelFileError(
            f"the shape of {what}", got=list(shape), wanted="dimensions from 1 that fit the file"
        )
    type_number = cursor.u32(f"the type of {what}")
    if type_number not in _TENSOR_TYPES:
        raise _unknown_type(what, type_number)
    kind = _TENSOR_TYPES[type_number]
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise ModelFileError(
            f"the rows of {what}",
            got=f"{shape[-1]} elements",
            wanted=f"a multiple of {block}, as {kind.name} needs",
        )
    offset = cursor.u64(f"the offset of {what}")
    if offset % alignment:
        raise ModelFileError(f"the offset of {what}", got=offset, wanted=f"a multiple of {alignment}")
    name = raw_name.decode("utf-8", "surrogateescape")
    return TensorInfo(name, shape, kind, math.prod(shape) // block * block_bytes, offset)


def _unknown_type(what: str, number: int) -> ModelFileError | UnsupportedModelError:
    if number in REMOVED_TYPES:
        return UnsupportedModelError(
            f"the type of {what}",
            got=f"{number}, {REMOVED_TYPES[number]}, which ggml reads no more",
            hint="quantize the original model again with a current llama.cpp",
        )
    newest = max(_TENSOR_TYPES)
    if newest < number < newest + 32:
        return UnsupportedModelError(
            f"the type of {what}",
            got=f"{number}, newer than the package gguf here",
            wanted=f"at most {newest}, {_TENSOR_TYPES[newest].name}",
            hint="pip install --upgrade gguf, and quantize to another type if that does not help",
        )
    return ModelFileError(f"the type of {what}", got=number, wanted="the number of a ggml type")


def _check_places(tensors: Mapping[str, TensorInfo], size: int) -> None:
    """Every tensor's bytes are in the file, and no two tensors share any."""
    end, before = 0, ""
    for info in sorted(tensors.values(), key=lambda info: info.offset):
        if info.offset < end:
            raise ModelFileError(f"tensor {shown(info.name)} overlaps tensor {shown(before)}", hint=AGAIN)
        end, before = info.offset + info.nbytes, info.name
        if end > size:
            raise ModelFileError(
                f"tensor {shown(info.name)} lies outside the file",
                got=f"{size} bytes in the file",
                wanted=f"at least {end}",
                hint=AGAIN,
            )


_TENSOR_TYPES: Final = {int(kind): kind for kind in GGMLQuantizationType}
