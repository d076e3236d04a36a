"""The models that the corpus is run on: the embedded one, and small seeded ones for what that one lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.gguf.writing import TensorPlan, encode_rows, metadata_of, write_gguf
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.mutants.real.port import Array
from llama_ckpt.mutants.real.record import Prompt
from reference_dumps import embedded_model

__all__ = ["Models", "tokens_of"]

_GROUPED: dict[str, Any] = {
    "width": 64,
    "n_heads": 4,
    "n_kv_heads": 2,
    "ffn": 176,
    "n_layers": 12,
    "vocab": 512,
    "rope_theta": 5e5,
    "rms_norm_eps": 1e-6,
    "context_length": 65536,
}
_WIDE: dict[str, Any] = _GROUPED | {"width": 256, "ffn": 512, "n_layers": 3}

SEEDED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "grouped": ("F32", _GROUPED),
    "linear": ("F32", _GROUPED | {"rope_scale": 4.0, "n_layers": 3}),
    "llama3": ("F32", _GROUPED | {"llama3_factor": 8.0, "n_layers": 3}),
    "tied": ("F32", _GROUPED | {"tied_output": True, "n_layers": 3}),
    "q8_0": ("Q8_0", _WIDE),
    "q4_0": ("Q4_0", _WIDE),
    "q4_1": ("Q4_1", _WIDE),
    "q5_0": ("Q5_0", _WIDE),
    "q4_k_m": ("Q4_K_M", _WIDE | {"n_layers": 4}),
}
"""Type and sizes. 12 blocks, so that some have two digits; a feed-forward network that no tile divides."""


MASSIVE, GROWN = "massive", "blk.1.ffn_down.weight"


class Models:
    """The files, each made once in `folder` when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """The GGUF file of that name."""
        if name == "embedded":
            return Path(embedded_model())
        made = self.folder / f"{name}.gguf"
        if not made.exists():
            if name == MASSIVE:
                _made_massive(self.path("tied"), made)
            else:
                type, sizes = SEEDED[name]
                make_seeded(made, seed=1, type=type, **sizes)
        return made


def _made_massive(source: Path, made: Path) -> None:
    """The same but for one matrix, so much larger that a block's sums have the size of trained models'."""
    file = open_gguf(source)
    plans = [TensorPlan(one.name, one.shape, one.type) for one in file.tensors.values()]

    def rows(plan: TensorPlan, first: int, n: int) -> Array:
        values = file.float32(plan.name, slice(first, first + n)).reshape(n, plan.row_width)
        grown = values * np.float32(2.0**22 if plan.name == GROWN else 1)
        return encode_rows(plan.name, grown, plan.type)

    write_gguf(made, metadata_of(file), plans, rows)


@cache
def _ids(n: int, seed: int) -> tuple[int, ...]:
    drawn = np.random.default_rng([n, seed]).choice(np.arange(3, 500), n - 1, replace=n > 400)
    return (1, *(int(one) for one in drawn))


def tokens_of(prompt: Prompt, seed: int = 0) -> Sequence[int]:
    """BOS and other tokens, the same for the same length."""
    return _ids(prompt.n, seed)
