"""The safetensors of a folder: one file, or several with an index; values are read when they are asked for.

numpy has no bfloat16, so that files are mapped and read here by their own header: eight bytes of length, then
JSON with a type, a shape and a place for each name.
"""

from __future__ import annotations

import math
import operator
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.errors import ModelFileError
from llama_ckpt.outside import check_file, json_value, quoted, read_json

__all__ = ["FolderTensor", "StackedTensor", "folder_tensors", "json_of"]

TYPES: Final = {"F32": ("<f4", 4), "F16": ("<f2", 2), "BF16": ("<u2", 2)}
_LONGEST: Final = 100 << 20  # bytes of a header


@dataclass(frozen=True)
class FolderTensor:
    """A tensor of a folder.

    Attributes:
        path: the file that it is in.
        kind: "F32", "F16" or "BF16".
        shape: its own.
        offset: its first byte in the file.
    """

    path: Path
    kind: str
    shape: tuple[int, ...]
    offset: int

    def float32(self) -> NDArray[np.float32]:
        """Its values; float32 holds all of them exactly."""
        stored, _ = TYPES[self.kind]
        # Read, not mapped: a mapped file that is cut meanwhile ends the process without a word.
        raw = np.fromfile(self.path, stored, math.prod(self.shape), offset=self.offset)
        if raw.size != math.prod(self.shape):
            raise ModelFileError(f"{self.path} has changed since it was opened", hint="load it anew")
        raw = raw.reshape(self.shape)
        if self.kind != "BF16":
            return np.asarray(raw, np.float32)
        return (np.asarray(raw, np.uint32) << 16).view(np.float32)


@dataclass(frozen=True)
class StackedTensor:
    """Tensors of a folder that a GGUF file has as one: the experts' matrices, one after the other.

    Attributes:
        parts: those of every expert, in order, of one shape and type.
    """

    parts: tuple[FolderTensor, ...]

    @property
    def path(self) -> Path:
        """The file that the first is in."""
        return self.parts[0].path

    @property
    def kind(self) -> str:
        """Their type."""
        return self.parts[0].kind

    @property
    def shape(self) -> tuple[int, ...]:
        """The experts first."""
        return (len(self.parts), *self.parts[0].shape)

    def float32(self) -> NDArray[np.float32]:
        """All values."""
        return np.stack([part.float32() for part in self.parts])


def folder_tensors(folder: Path) -> dict[str, FolderTensor]:
    """Every tensor of a folder by name.

    Raises:
        ModelFileError: no safetensors there, a damaged one, or one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = json_of(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise ModelFileError(f"{index}: weight_map", got=type(named).__name__, wanted="names of files")
        files = sorted({folder / name for name in named.values()})
    else:
        files = sorted(folder.glob("*.safetensors"))
    found: dict[str, FolderTensor] = {}
    for path in files:
        if path.parent != folder or not path.is_file():
            raise ModelFileError(f"{index}", got=f"no file {path.name}", wanted="every file that it names")
        found |= _tensors(path)
    if not found:
        raise ModelFileError(
            f"{folder}", got="no *.safetensors", wanted="a folder with a model's weights and its config.json"
        )
    return found


def json_of(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelFileError where there is none."""
    value = read_json(path, ModelFileError, "JSON of a model's folder")
    if not isinstance(value, dict):
        raise ModelFileError(str(path), got=type(value).__name__, wanted="a JSON object")
    return value


def _tensors(path: Path) -> dict[str, FolderTensor]:
    size = check_file(path, ModelFileError, "a safetensors file")
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
        if not 2 <= length <= min(_LONGEST, size - 8):
            raise ModelFileError(f"{path}: its header", got=f"{length} bytes", wanted="as many as it has")
        try:
            text = stream.read(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{path}: its header", got="no UTF-8", wanted="JSON") from error
    header = json_value(text, f"{path}: its header", ModelFileError)
    if not isinstance(header, dict):
        raise ModelFileError(f"{path}: its header", got=quoted(header), wanted="a JSON object")
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, said, 8 + length, size) for name, said in header.items()}


def _tensor(path: Path, name: str, said: Any, start: int, size: int) -> FolderTensor:
    try:
        kind, shape = said["dtype"], tuple(map(operator.index, said["shape"]))
        first, last = map(operator.index, said["data_offsets"])
        if not isinstance(kind, str) or any(one < 0 for one in shape):
            raise ValueError
    except (TypeError, KeyError, ValueError) as error:
        raise ModelFileError(f"{path}: {name}", got="a damaged entry", wanted="type, shape, place") from error
    if kind not in TYPES:
        raise ModelFileError(
            f"{path}: the type of {name}",
            got=kind,
            wanted="one of " + ", ".join(TYPES),
            hint="weights that a program has quantized are read from a GGUF file",
        )
    if last - first != TYPES[kind][1] * math.prod(shape) or not 0 <= first <= last <= size - start:
        raise ModelFileError(
            f"{path}: {name}", got=f"bytes {first} to {last}", wanted=f"those of {list(shape)}"
        )
    return FolderTensor(path, kind, shape, start + first)
