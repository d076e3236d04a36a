"""Writing GGUF files of any size: tensors are made in threads, and written in order as they come.

`gguf.GGUFWriter` writes the header. The tensors' bytes never sit in memory together: a plan says
which tensors there will be, a function makes some rows of one, several threads call it ahead of
the writer, and the writer appends and hashes. So a 13 GB file takes some hundred MB of memory,
and its SHA-256 costs no second pass. The file appears under its name only when it is whole.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.gguf_writer import GGUFValue
from gguf.quants import quantize
from numpy.typing import NDArray

from llama_ckpt.cores import usable_cpus
from llama_ckpt.errors import ModelFileError, OptionError
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.gguf.header import MetadataValue
from llama_ckpt.whole_files import WrittenFile, appears_when_whole

__all__ = [
    "DIRECT_TYPES",
    "MakeRows",
    "Metadata",
    "Progress",
    "TensorPlan",
    "encode_rows",
    "field",
    "metadata_of",
    "write_gguf",
]

Metadata = Mapping[str, GGUFValue]
"""Keys and typed values, in the order in which they are written; strings as bytes."""

Progress = Callable[[int, int], None]
"""Called as `progress(bytes written so far, bytes in all)`."""

_ALIGNMENT: Final = 32
_PIECE: Final = 1 << 20  # elements that one thread makes at a time
_AHEAD: Final = 4  # pieces a thread may be ahead of the writer
_ARRAY_TYPES: Final = {
    "bool": GGUFValueType.BOOL,
    **{kind.name.lower(): kind for kind in GGUFValueType if kind.name.startswith(("INT", "UINT", "FLOAT"))},
}

DIRECT_TYPES: Final = tuple(
    GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
)
"""The types that `encode_rows` writes; the same bytes on every machine."""


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that is going to be written.

    Attributes:
        name: its GGUF name.
        shape: row-major, [out, in]; GGUF's own order is the reverse.
        type: block format of the rows.

    Raises:
        OptionError: when a row does not divide into the type's blocks.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType

    def __post_init__(self) -> None:
        block, _ = GGML_QUANT_SIZES[self.type]
        if self.row_width % block:
            raise OptionError(
                f"rows of {self.name}",
                got=f"{self.row_width} elements",
                wanted=f"a multiple of {block}, the block of {self.type.name}",
                hint="choose another type or another shape",
            )

    @property
    def row_width(self) -> int:
        """Elements in a row."""
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        """Rows, all leading axes together."""
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        block, size = GGML_QUANT_SIZES[self.type]
        return self.n_rows * self.row_width // block * size


MakeRows = Callable[[TensorPlan, int, int], NDArray[Any]]
"""Called as `rows(plan, first_row, n_rows)`, from several threads; returns a contiguous array
whose bytes are those rows in the plan's type, little-endian."""


def field(value: MetadataValue) -> GGUFValue:
    """A metadata value with the type that Llamas' files use for it.

    bool, uint32 (int64, uint64 where needed), float32 (float64 where needed), string, and arrays of
    strings (`list[bytes]`) or of a numpy array's own type.
    """
    kind = GGUFValueType
    if isinstance(value, np.ndarray):
        return GGUFValue(value.tolist(), kind.ARRAY, _ARRAY_TYPES[value.dtype.newbyteorder("=").name])
    if isinstance(value, list):
        return GGUFValue(value, kind.ARRAY, kind.STRING)
    if isinstance(value, bool):
        return GGUFValue(value, kind.BOOL)
    if isinstance(value, int):
        wide = kind.INT64 if value < 0 else kind.UINT64
        return GGUFValue(value, kind.UINT32 if 0 <= value < 1 << 32 else wide)
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            fits = float(np.float32(value)) == value or value != value
        return GGUFValue(value, kind.FLOAT32 if fits else kind.FLOAT64)
    return GGUFValue(value.encode("utf-8", "surrogateescape"), kind.STRING)


def metadata_of(file: GGUFFile) -> dict[str, GGUFValue]:
    """Every key of a file, with the type it is written with: the values survive, exactly.

    Integers become uint32 where they fit, which is what llama.cpp reads; numbers with a fraction
    become float32 unless only float64 holds them. Empty arrays are left out: `gguf` cannot write them.
    """
    found = {key: field(value) for key, value in file.metadata.items()}
    return {key: entry for key, entry in found.items() if not isinstance(entry.value, list) or entry.value}


def encode_rows(name: str, values: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[Any]:
    """Values as the bytes of a type in `DIRECT_TYPES`: rounded to nearest, or quantized by `gguf`.

    Args:
        name: the tensor's, for the message.
        values: float32 [rows, row_width].
        kind: the type.

    Raises:
        OptionError: a value that float16 cannot hold.
    """
    if kind == GGMLQuantizationType.F32:
        return values.astype("<f4", copy=False)
    if kind == GGMLQuantizationType.F16:
        with np.errstate(over="ignore"):
            halves = values.astype("<f2")
        if not np.isfinite(halves).all():
            largest = np.abs(values).max()
            raise OptionError(f"a value of {name} for F16", got=largest, wanted="at most 65504")
        return halves
    return quantize(values, kind)


def write_gguf(
    path: str | Path,
    metadata: Metadata,
    tensors: Sequence[TensorPlan],
    rows: MakeRows,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    sha256: str | None = None,
) -> WrittenFile:
    """Write a GGUF file, version 3, little-endian; the same arguments give the same bytes.

    Args:
        path: the file; it appears under this name only when it is whole.
        metadata: keys in order; must hold `general.architecture`. `general.alignment` is not taken over.
        tensors: what to write, in order.
        rows: makes the bytes, a few rows at a time, from several threads.
        threads: how many of them; the machine's cores when None.
        progress: told after each piece.
        sha256: what the file's SHA-256 must turn out to be; None when it is not known.

    Raises:
        OptionError: the file cannot be written, or the disk is too full.
        ModelFileError: the file's SHA-256 is not `sha256`; the file does not appear.
    """
    total = sum(_padded(plan.nbytes) for plan in tensors)
    with appears_when_whole(path, total) as partial:
        _write_header(partial, metadata, tensors)
        with open(partial, "r+b") as file:
            digest = hashlib.sha256(file.read())
            _append(file, digest.update, bytes(-file.tell() % _ALIGNMENT))
            done = 0
            for piece in _pieces(tensors, rows, threads or usable_cpus()):
                _append(file, digest.update, piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
        written = WrittenFile(Path(path), digest.hexdigest(), partial.stat().st_size)
        if sha256 not in (None, written.sha256):
            raise ModelFileError(f"the SHA-256 of {path}", got=written.sha256, wanted=sha256)
    return written


def _padded(nbytes: int) -> int:
    return nbytes + -nbytes % _ALIGNMENT


def _append(file: BinaryIO, hash_update: Callable[[Any], None], data: bytes | memoryview) -> None:
    file.write(data)
    hash_update(data)


def _write_header(path: Path, metadata: Metadata, tensors: Sequence[TensorPlan]) -> None:
    writer = GGUFWriter(None, metadata["general.architecture"].value)
    for key, entry in metadata.items():
        if key in ("general.architecture", "general.alignment"):
            continue
        writer.add_key_value(key, entry.value, entry.type, entry.sub_type)
    for plan in tensors:
        writer.add_tensor_info(plan.name, plan.shape, np.dtype(np.float32), plan.nbytes, plan.type)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _pieces(tensors: Sequence[TensorPlan], rows: MakeRows, threads: int) -> Iterator[memoryview | bytes]:
    """The tensors' bytes and padding, in order, made by `threads` threads a little ahead."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[memoryview | bytes]] = deque()
        try:
            for plan, first, n in _ranges(tensors):
                ahead.append(pool.submit(_piece, rows, plan, first, n))
                if len(ahead) > threads * _AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _ranges(tensors: Sequence[TensorPlan]) -> Iterator[tuple[TensorPlan, int, int]]:
    for plan in tensors:
        step = max(1, _PIECE // plan.row_width)
        for first in range(0, plan.n_rows, step):
            yield plan, first, min(step, plan.n_rows - first)


def _piece(rows: MakeRows, plan: TensorPlan, first: int, n: int) -> memoryview | bytes:
    data = np.ascontiguousarray(rows(plan, first, n)).reshape(-1).view(np.uint8).data
    wanted = plan.nbytes // plan.n_rows * n
    if len(data) != wanted:
        raise ValueError(f"{plan.name}: rows {first} to {first + n} took {len(data)} bytes, not {wanted}")
    if first + n == plan.n_rows and plan.nbytes % _ALIGNMENT:
        return bytes(data) + bytes(-plan.nbytes % _ALIGNMENT)
    return data
