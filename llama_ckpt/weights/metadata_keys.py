"""Typed, bounded access to a GGUF file's metadata: a key of another kind or out of its range is an error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_ckpt.errors import LlamaCkptError, ModelFileError, UnsupportedModelError
from llama_ckpt.gguf.cursor import shown

if TYPE_CHECKING:
    from llama_ckpt.gguf.file import GGUFFile

__all__ = ["MetadataKeys"]


class MetadataKeys:
    """Typed, bounded access to the metadata; remembers which keys took their default.

    Attributes:
        file, metadata: what is read.
        defaulted: the keys that were asked for, are not there and took a default.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.file, self.metadata = file, file.metadata
        self.defaulted: list[str] = []

    def wrong(
        self,
        key: str,
        got: object,
        wanted: str,
        kind: type[LlamaCkptError] = ModelFileError,
        hint: str | None = None,
    ) -> LlamaCkptError:
        """The error of a key that is not what it should be; the caller raises it."""
        return kind(f"{self.file.path}: {key}", got=got, wanted=wanted, hint=hint)

    def _absent(self, key: str, default: Any, wanted: str) -> Any:
        if default is None:
            raise self.wrong(key, "no such key", wanted)
        self.defaulted.append(key)
        return default

    def integer(self, key: str, high: int, *, default: int | None = None, per_block: bool = False) -> int:
        """An integer from 1 to `high`; where `per_block`, also an array with that value for every block."""
        wanted = f"an integer from 1 to {high}"
        if key not in self.metadata:
            return int(self._absent(key, default, wanted))
        value = self.metadata[key]
        if per_block and isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu":
            self._check_length(key, value)
            if (value != value[0]).any():
                raise self.wrong(
                    key, "different values for different blocks", "one value", UnsupportedModelError
                )
            value = int(value[0])
        if type(value) is not int or not 1 <= value <= high:
            raise self.wrong(key, shown(value), wanted)
        return value

    def _check_length(self, key: str, values: np.ndarray) -> None:
        """An array has one value a block, no fewer and no more: llama.cpp refuses any other."""
        blocks = self.metadata.get("llama.block_count")
        if len(values) != blocks:
            raise self.wrong(key, f"an array of {len(values)}", f"one value, or {blocks}, one for each block")

    def positive(self, key: str, *, default: float | None = None) -> float:
        """A positive, finite number: the float32 nearest to it."""
        wanted = "a positive, finite number"
        if key not in self.metadata:
            return float(self._absent(key, default, wanted))
        value = self.metadata[key]
        if not isinstance(value, float):
            raise self.wrong(key, shown(value), wanted)
        with np.errstate(all="ignore"):
            value = float(np.float32(value))
        if not (math.isfinite(value) and value > 0):
            raise self.wrong(key, shown(value), wanted)
        return value

    def text(self, key: str, *, default: str) -> str:
        """A text."""
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, shown(value), "text")
        return value
