"""The embedded model, its reference dumps and where they are: a data package, so that a wheel carries them.

tiny-32l/model.gguf       a trained 32-layer Llama, F16 weights
tiny-32l/f32, f16, …      what llama.cpp computed with it: a manifest.json and a safetensors a prompt
llama-3, mixture          small seeded models like Llama 3's and Mixtral, and llama.cpp's dumps of them
llama-3/runs              runs of several calls, which `compare` reads: chunks, steps, sequences, a rollback
llama-2-7b/f16            of `make-seeded --shape llama-2-7b --seed 1`: the last of 16 tokens, on CUDA
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["EMBEDDED", "dump_folder", "dump_folders", "embedded_model", "stand_in"]

EMBEDDED = "tiny-32l"
"""Name of the embedded model."""


def _folder() -> Path:
    # Never a zip: pip unpacks wheels, and memory-mapping a model needs a real file.
    return Path(str(files(__name__))) / EMBEDDED


def embedded_model() -> Path:
    """Path of the embedded model, a GGUF file with F16 weights."""
    return _folder() / "model.gguf"


def dump_folder(weights: str = "f32") -> Path:
    """Path of the folder with the embedded model's dumps for the type that the weights had in llama.cpp.

    Args:
        weights: "f32", "f16", "q8_0" or "q4_0"; those that exist are `dump_folders()`.
    """
    return _folder() / weights


def dump_folders() -> dict[str, Path]:
    """Every folder of dumps of the embedded model, by the type of its weights, in alphabetic order."""
    return {path.parent.name: path.parent for path in sorted(_folder().glob("*/manifest.json"))}


def stand_in(name: str) -> Path:
    """The folder of a small seeded model, "llama-3" or "mixture": `model.gguf`, and llama.cpp's dumps."""
    return _folder().parent / name
