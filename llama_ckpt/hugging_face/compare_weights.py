"""Two models' weights, tensor by tensor: which differ, by how much, and if rounding or order explains it.

Either side is a GGUF file or a Hugging Face folder; both are named as in GGUF, their values are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.gguf.file import GGUFFile, open_gguf
from llama_ckpt.hugging_face.folder import named_tensors, pairs_from_halves
from llama_ckpt.hugging_face.tensors import json_of
from llama_ckpt.outside import whole_number
from llama_ckpt.weights.config import LlamaConfig

__all__ = ["ComparedTensor", "compare_weights", "comparison_lines"]

Array = NDArray[np.float32]
State = Literal["equal", "rounded", "permuted", "differs", "missing"]

ROUNDING: Final = {
    **{"F32": 0.0, "F16": 5e-4, "BF16": 4e-3, "Q8_0": 9e-3, "Q6_K": 3e-2},
    **{"Q5_0": 7e-2, "Q5_1": 7e-2, "Q5_K": 7e-2, "Q4_0": 0.15, "Q4_1": 0.14, "Q4_K": 0.14},
    **{
        "IQ4_NL": 0.14,
        "IQ4_XS": 0.14,
        "MXFP4": 0.22,
        "NVFP4": 0.2,
        "Q3_K": 0.28,
        "IQ3_S": 0.28,
        "IQ3_XXS": 0.32,
    },
    **{"Q2_K": 0.5, "IQ2_S": 0.5, "IQ2_XS": 0.55, "IQ2_XXS": 0.6, "IQ1_S": 0.8, "IQ1_M": 0.8},
    **{"TQ1_0": 0.9, "TQ2_0": 0.9},
}
"""The most that a type changes weights by, relative to their norm: twice what it does to normal numbers."""


@dataclass(frozen=True)
class ComparedTensor:
    """One tensor of the two.

    Attributes:
        name: its GGUF name.
        state: "equal"; "rounded", no further apart than the coarser of the two types explains; "permuted",
            the same rows in another order; "differs"; "missing" in one of the two.
        types: of either side, "-" where it is missing.
        error: ‖a - b‖ / ‖b‖ in the order in which they agree best; None where they cannot be subtracted.
        largest: the largest difference of two elements.
        words: what there is to say.
    """

    name: str
    state: State
    types: tuple[str, str]
    error: float | None = None
    largest: float | None = None
    words: str = ""


@dataclass(frozen=True)
class _Side:
    """A model's tensors by GGUF name: the type, and what reads the values."""

    tensors: dict[str, tuple[str, Callable[[], Array]]]
    heads: dict[str, int]


def compare_weights(a: str | Path, b: str | Path) -> Iterator[ComparedTensor]:
    """Compare two models, each a GGUF file or a folder, in the order of their names.

    Raises:
        LlamaCkptError: one of them cannot be read.
    """
    first, second = _side(Path(a)), _side(Path(b))
    for name in sorted(first.tensors.keys() | second.tensors.keys(), key=_natural):
        sides = first.tensors.get(name), second.tensors.get(name)
        types = tuple("-" if one is None else one[0] for one in sides)
        if sides[0] is None or sides[1] is None:
            where = "first" if sides[0] is None else "second"
            yield ComparedTensor(name, "missing", (types[0], types[1]), words=f"not in the {where}")
        else:
            heads = first.heads.get(name) or second.heads.get(name) or 0
            yield _compared(name, (types[0], types[1]), sides[0][1](), sides[1][1](), heads)


def _natural(name: str) -> tuple[int, str]:
    _, _, rest = name.partition("blk.")
    number, _, part = rest.partition(".")
    return (int(number), part) if whole_number(number) is not None else (-1, name)


def _side(path: Path) -> _Side:
    if path.is_dir():
        config = json_of(path / "config.json")
        found = dict(named_tensors(path, config))

        def reader(name: str) -> Callable[[], Array]:
            tensor, heads = found[name]
            return lambda: pairs_from_halves(tensor.float32(), heads) if heads else tensor.float32()

        tensors = {name: (found[name][0].kind, reader(name)) for name in found}
        return _Side(tensors, {name: heads for name, (_, heads) in found.items() if heads})
    file = open_gguf(path)
    return _Side(
        {name: (info.type.name, partial(file.float32, name)) for name, info in file.tensors.items()},
        _heads_of(file),
    )


def _heads_of(file: GGUFFile) -> dict[str, int]:
    """The heads of Q's and K's rows, where the file is a Llama's."""
    try:
        config = LlamaConfig.from_gguf(file)
    except LlamaCkptError:
        return {}
    heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}
    parts = {name: name.split(".") for name in file.tensors}
    return {name: heads[part[2]] for name, part in parts.items() if len(part) > 2 and part[2] in heads}


def _compared(name: str, types: tuple[str, str], a: Array, b: Array, heads: int) -> ComparedTensor:
    if a.shape != b.shape:
        words = f"{list(a.shape)} in the first, {list(b.shape)} in the second"
        return ComparedTensor(name, "differs", types, words=words)
    error, largest = _apart(a, b)
    if error == 0:
        return ComparedTensor(name, "equal", types, 0.0, 0.0)
    allowed = max(ROUNDING.get(kind, 0.0) for kind in types)
    if error <= allowed:
        coarser = max(types, key=lambda kind: ROUNDING.get(kind, 0.0))
        return ComparedTensor(name, "rounded", types, error, largest, f"within {coarser}")
    for words, order in _orders(heads):
        if order(a).shape == b.shape and (found := _apart(order(a), b))[0] <= allowed:
            return ComparedTensor(name, "permuted", types, *found, words)
    return ComparedTensor(name, "differs", types, error, largest)


def _orders(heads: int) -> Iterator[tuple[str, Callable[[Array], Array]]]:
    if heads:
        yield (
            "the first's rows are in halves, or the second's were put into pairs twice",
            lambda w: pairs_from_halves(w, heads),
        )
        yield (
            "the second's rows are in halves, or the first's were put into pairs twice",
            lambda w: _halves(w, heads),
        )
    yield "one is the other's transpose", lambda w: w.T if w.ndim == 2 and w.shape[0] == w.shape[1] else w


def _halves(w: Array, heads: int) -> Array:
    pairs = w.reshape(heads, -1, 2, *w.shape[1:])
    return pairs.swapaxes(1, 2).reshape(w.shape)


def _apart(a: Array, b: Array) -> tuple[float, float]:
    off = a - b
    norm = float(np.linalg.norm(b.astype(np.float64)))
    apart = float(np.linalg.norm(off.astype(np.float64)))
    error = apart / norm if norm else (0.0 if apart == 0 else float("inf"))
    return (float("inf") if np.isnan(error) else error), float(np.abs(off).max(initial=0.0))


def comparison_lines(found: list[ComparedTensor], *, every_tensor: bool = False) -> Iterator[str]:
    """The tensors that differ, or all, and how many there are of each kind."""
    for one in found:
        if every_tensor or one.state not in ("equal", "rounded"):
            error = "" if one.error is None else f"error {one.error:.2e}  largest {one.largest:.2e}"
            yield f"  {one.state:<9}{one.name:<28}{'/'.join(one.types):<12}{error}  {one.words}".rstrip()
    counts = {
        state: sum(one.state == state for one in found)
        for state in ("equal", "rounded", "permuted", "differs", "missing")
    }
    worst = max((one.error or 0.0 for one in found if one.state == "rounded"), default=0.0)
    said = {
        "equal": "equal",
        "rounded": f"within the rounding of their types (at most {worst:.2e})",
        "permuted": "equal but for an order",
        "differs": "different",
        "missing": "in one of the two alone",
    }
    parts = [f"{count} {said[state]}" for state, count in counts.items() if count]
    yield f"{len(found)} tensors: " + ", ".join(parts)
