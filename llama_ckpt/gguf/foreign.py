"""What a file is that is no GGUF model, told by its first bytes or by what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["OTHER_FILES", "REMOVED_TYPES", "foreign_kind"]

_CONVERT: Final = "convert the model to GGUF with llama.cpp's convert_hf_to_gguf.py"
_OLD: Final = "convert the original model again with a current llama.cpp: these older files cannot be read"

_BEGINNINGS: Final[tuple[tuple[bytes, str, str], ...]] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "fetch the file: git lfs pull",
    ),
    (b"<!doctype html", "a web page", "download the file itself: the link led to a page about it"),
    (b"<html", "a web page", "download the file itself: the link led to a page about it"),
    (b"<?xml", "an XML page, such as a server's error", "download the file itself"),
    (b"lmgg", "GGML's unversioned format of 2023 (magic ggml)", _OLD),
    (b"fmgg", "the format GGMF of 2023", _OLD),
    (b"tjgg", "the format GGJT of 2023", _OLD),
    (b"algg", "a LoRA in GGML's format of 2023 (magic ggla)", _OLD),
    (b"fugg", "a GGUF file of the other byte order", "convert the model on a little-endian machine"),
    (b"pk\x03\x04", "a zip archive, as PyTorch's checkpoints are", _CONVERT),
    (b"\x80\x02", "a Python pickle, as older PyTorch checkpoints are", _CONVERT),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first"),
    (b"{", "JSON", _CONVERT),
)


def foreign_kind(beginning: bytes) -> tuple[str, str] | None:
    """What a file that does not begin with GGUF's magic is, and what to do; None where it is not known.

    Args:
        beginning: its first bytes, at least nine where there are so many.
    """
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, what, hint in _BEGINNINGS:
        if text.startswith(start):
            return what, hint
    if beginning[8:9] == b"{" and int.from_bytes(beginning[:8], "little") < 1 << 32:
        return "a safetensors file", _CONVERT
    return None


OTHER_FILES: Final[Mapping[str, tuple[str, str]]] = {
    "adapter": (
        "a LoRA adapter, which changes a model and is none",
        "merge it into its model with llama-export-lora, and take what that writes",
    ),
    "mmproj": ("a projector for images or sound, not the language model", "take the model's other GGUF file"),
    "imatrix": (
        "an importance matrix, which quantizers read",
        "take the model that was quantized with it",
    ),
    "controlvector": ("a control vector, which is added to a model's activations", "take the model itself"),
    "vocab": ("a vocabulary alone", "take a file with weights"),
}
"""By `general.type` (or an architecture of that name): what a sound GGUF file is that is no model."""

REMOVED_TYPES: Final[Mapping[int, str]] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
"""Numbers of tensor types that ggml once had and reads no more."""
