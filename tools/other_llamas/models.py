"""The models that the programs run: ours, one with grouped heads, and a real trained one; and the prompts.

Each is made once under `.others/models/<name>`: float32 in GGUF, in Hugging Face's and Meta's layouts, and
llama.cpp's recordings of the prompts, where llama.cpp is installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from llama_ckpt.capture import capture
from llama_ckpt.gguf.file import open_gguf, weights_sha256
from llama_ckpt.making.derive import derive
from llama_ckpt.making.export import export_weights
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.weights.config import LlamaConfig
from reference_dumps import embedded_model
from tools.other_llamas.environments import OTHERS, ROOT, prepared
from tools.other_llamas.job import ModelFiles

__all__ = ["LENGTHS", "MODELS", "Source", "missing", "model_files", "prompt", "reference"]

LENGTHS = (2, 20, 100, 600)
"""Tokens of the prompts."""

RECORDED = 100
"""Longest of those that llama.cpp's recordings stand beside: longer ones cost gigabytes, and it is a program
of its own in the table."""

STORIES = ROOT / "models" / "stories260K.gguf"
"""No package has it: whoever wants it in the table puts it there."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a sentence for the page, and what writes its GGUF file."""

    sentence: str
    write: Callable[[Path], None]


def _embedded(out: Path) -> None:
    derive(embedded_model(), "F32", out)


def _grouped(out: Path) -> None:
    make_seeded(
        out,
        width=256,
        n_heads=8,
        n_kv_heads=2,
        ffn=704,
        n_layers=4,
        vocab=512,
        context_length=1024,
        rms_norm_eps=1e-6,
        rope_theta=500000.0,
        type="F32",
    )


def _trained(out: Path) -> None:
    (packed,) = prepared("smollm2").rglob("*.gguf")
    derive(packed, "F32", out)


def _stories(out: Path) -> None:
    derive(STORIES, "F32", out)


MODELS: Mapping[str, Source] = {
    "embedded": Source("the embedded model: 32 layers, 4 heads of 16, 32,000 tokens, trained", _embedded),
    "grouped": Source(
        "seeded weights: 4 layers, 8 query heads and 2 key heads of 32, theta 500,000, epsilon 1e-6", _grouped
    ),
    "stories260K": Source(
        "llama2.c's stories260K: 5 layers, 8 query heads and 4 key heads of 8, 512 tokens, trained", _stories
    ),
    "SmolLM2": Source(
        "SmolLM2-135M-Instruct: 30 layers, 9 query heads and 3 key heads of 64, 49,152 tokens, tied", _trained
    ),
}
"""By the name that tables give them."""


def missing(name: str) -> str:
    """Why there is no such model here, and what to do; "" where there is one."""
    if name != "stories260K" or STORIES.is_file() or (OTHERS / "models" / name / "done").is_file():
        return ""
    return f"no {name} here: put it at {STORIES.relative_to(ROOT)}, in GGUF"


def model_files(name: str) -> ModelFiles:
    """The files of a model, made if they are not there."""
    folder = OTHERS / "models" / name
    gguf, done = folder / "model.gguf", folder / "done"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        MODELS[name].write(gguf)
        for layout in ("hf", "meta"):
            export_weights(gguf, folder / layout / "model.safetensors", layout=layout)
        done.touch()
    sha256 = weights_sha256(open_gguf(gguf))
    return ModelFiles(name, str(gguf), str(folder / "hf"), str(folder / "meta"), sha256)


def prompt(files: ModelFiles, length: int) -> tuple[int, ...]:
    """Token ids: the model's first, then random ones, the same each time."""
    file = open_gguf(files.gguf)
    vocab = LlamaConfig.from_gguf(file).vocab_size
    first = file.metadata.get("tokenizer.ggml.bos_token_id", 1)
    rest = np.random.default_rng(length).integers(3, vocab, length - 1)
    return (int(str(first)), *map(int, rest))


def reference(files: ModelFiles, lengths: Sequence[int]) -> Path | None:
    """The folder of llama.cpp's recordings of these prompts; None where llama.cpp is not installed."""
    if find_spec("llama_cpp") is None:
        return None
    folder = OTHERS / "models" / files.name / "reference"
    for length in (n for n in lengths if n <= RECORDED):
        if not (folder / f"n{length}.safetensors").is_file():
            capture(files.gguf, out=folder, tokens=prompt(files, length), max_tokens=0, name=f"n{length}")
    return folder
