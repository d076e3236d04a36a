"""Other types of the same model: an exact float32 upcast, or quantized weights.

`derive("model.gguf", "Q8_0", "model.Q8_0.gguf")` writes every matrix anew and keeps norms in float32,
and says what the manifest of a dump needs to know about where the file came from. F32 has the same
`weights_sha256` as its source. The types in `DIRECT_TYPES` are written by `gguf`, byte for byte the
same on every machine; K-quants and the like by llama.cpp's own quantizer, whose bytes depend on the
instructions that it was built for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from llama_ckpt.errors import OptionError
from llama_ckpt.gguf.file import GGUFFile, open_gguf
from llama_ckpt.gguf.header import TensorInfo
from llama_ckpt.gguf.writing import (
    DIRECT_TYPES,
    Progress,
    TensorPlan,
    encode_rows,
    field,
    metadata_of,
    write_gguf,
)
from llama_ckpt.making.reference_quantizer import REFERENCE_TYPES, quantize_with_llama_cpp
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.llama_tensors import check_llama
from llama_ckpt.whole_files import WrittenFile

__all__ = ["TYPES", "Derived", "derive", "direct_type", "file_type_fields", "stays_float32"]

TYPES: Final = (*(kind.name for kind in DIRECT_TYPES), *REFERENCE_TYPES)
"""Every type that a model can be written in, by the name that llama.cpp gives it."""

_FLOATS: Final = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


@dataclass(frozen=True)
class Derived:
    """A file made from another one.

    Attributes:
        path: where it is.
        sha256: its SHA-256, in hex.
        nbytes: its size.
        derived_from: `{"sha256": of the source, "how": a few words}`, as a manifest records it.
    """

    path: Path
    sha256: str
    nbytes: int
    derived_from: Mapping[str, str]


def derive(
    source: GGUFFile | str | os.PathLike[str],
    type: str,
    out: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Derived:
    """Write a model in another type.

    Args:
        source: a Llama in GGUF. Weights in blocks can only be made F32, which is exact; all other
            types want F32, F16 or BF16, so that nothing is rounded twice without anyone's notice.
        type: one of `TYPES`, in any case. With `gguf`'s types every matrix gets that type; with
            llama.cpp's the mixture that llama.cpp makes of that name, and another type for a matrix
            whose rows don't divide into blocks.
        out: the file to write; it appears when it is whole.
        threads: None takes the machine's cores.
        progress: called as `progress(bytes written, bytes in all)`; not by llama.cpp's quantizer.

    Raises:
        ModelFileError, UnsupportedModelError: the source is damaged, or not a Llama of a known kind.
        OptionError: an unknown type, rows that don't divide into its blocks, a source in blocks, a
            value that the type cannot hold, a file that cannot be written.
        ReferenceMissingError: a type for llama.cpp's quantizer, and llama-cpp-python is missing.
        ReferenceCrashedError: llama.cpp's quantizer failed.
    """
    file = source if isinstance(source, GGUFFile) else open_gguf(source)
    check_llama(file, LlamaConfig.from_gguf(file))
    kind = direct_type(type)
    if kind != GGMLQuantizationType.F32:
        _refuse_blocks(file, type)
    if kind is None:
        written = quantize_with_llama_cpp(file.path, type, out, threads=threads)
        how = f"llama.cpp's quantizer, {type.upper()}, llama-cpp-python {version('llama-cpp-python')}"
    else:
        how = _HOW.get(kind, f"gguf.quants.quantize, {kind.name}, gguf {version('gguf')}")
        written = _write_direct(file, kind, out, threads, progress)
    origin = {"sha256": file.sha256(), "how": how}
    return Derived(written.path, written.sha256, written.nbytes, origin)


_HOW: Final = {
    GGMLQuantizationType.F32: "exact upcast to F32",
    GGMLQuantizationType.F16: "rounded to F16",
    GGMLQuantizationType.BF16: "rounded to BF16",
}


def direct_type(type: str) -> GGMLQuantizationType | None:
    """The tensor type of that name if `gguf` writes it, None if llama.cpp's quantizer has to.

    Raises:
        OptionError: neither of the two.
    """
    name = type.upper()
    if name not in TYPES:
        raise OptionError("the type", got=type, wanted="one of " + ", ".join(TYPES))
    return next((kind for kind in DIRECT_TYPES if kind.name == name), None)


def file_type_fields(kind: GGMLQuantizationType) -> dict[str, Any]:
    """The metadata that name a file's type: `general.file_type`, and the version of its blocks."""
    named = "ALL_F32" if kind == GGMLQuantizationType.F32 else f"MOSTLY_{kind.name}"
    fields = {"general.file_type": field(int(LlamaFileType[named]))}
    if kind not in _FLOATS:
        fields["general.quantization_version"] = field(GGML_QUANT_VERSION)
    return fields


def _refuse_blocks(file: GGUFFile, type: str) -> None:
    for info in file.tensors.values():
        if info.type not in _FLOATS:
            raise OptionError(
                f"{file.path}: weights to write as {type.upper()}",
                got=f"{info.type.name} in {info.name}",
                wanted="F32, F16 or BF16",
                hint="start from the file that it was quantized from",
            )


def _write_direct(
    file: GGUFFile,
    kind: GGMLQuantizationType,
    out: str | os.PathLike[str],
    threads: int | None,
    progress: Progress | None,
) -> WrittenFile:
    metadata = metadata_of(file)
    metadata.pop("general.quantization_version", None)
    metadata |= file_type_fields(kind)
    plans = [_plan(info, kind) for info in file.tensors.values()]

    def rows(plan: TensorPlan, first: int, n: int) -> NDArray[Any]:
        values = file.float32(plan.name, slice(first, first + n)).reshape(n, plan.row_width)
        return encode_rows(plan.name, values, plan.type)

    return write_gguf(Path(out), metadata, plans, rows, threads=threads, progress=progress)


def stays_float32(name: str, shape: tuple[int, ...]) -> bool:
    """Vectors, the norms, and a mixture's router are float32 in every type, as llama.cpp has them."""
    return len(shape) == 1 or name.endswith(".ffn_gate_inp.weight")


def _plan(info: TensorInfo, kind: GGMLQuantizationType) -> TensorPlan:
    plain = stays_float32(info.name, info.shape)
    return TensorPlan(info.name, info.shape, GGMLQuantizationType.F32 if plain else kind)
