"""Keeps copies of tensors under their neutral names, and writes them as a dump; torch is not needed.

    import llama_ckpt as lc

    recorder = lc.Recorder()
    recorder.keep("embd", x)                         # of numpy, jax, mlx, torch: what turns into numpy
    recorder.keep("blk.0.attn_norm", h)
    recorder.save("mine.safetensors", token_ids=[1, 15043])

What was kept is what was meant: the dump declares these points and blocks, and nothing else counts as
missing. A point that was kept in some of the blocks and not in others does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.dumps.scratch import in_scratch
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.errors import OptionError, ShapeError
from llama_ckpt.points import ALL_BLOCK_POINTS, ALL_POINTS, MODEL_POINTS, SAMPLED, split_name
from llama_ckpt.precisions import DTYPES

__all__ = ["Recorder", "as_numpy", "check_point", "computed_in", "dtype_name"]

PROJECTED = frozenset({"q", "k", "v", "attn_out", "ffn_gate", "ffn_up", "ffn_out"})
"""What matrix products give: their type is what a program computes in, also where norms are wider."""

INSIDE, OUTSIDE = ({point.name for point in points} for points in (ALL_BLOCK_POINTS, MODEL_POINTS))


@dataclass
class Recorder:
    """Copies of tensors by full point name, each once.

    Attributes:
        tensors: as float32, or float64 where they were; with the axes that they were given.
        dtypes: what each was before, by numpy's name for it; also "bfloat16".
    """

    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)

    def keep(self, name: str, array: Any) -> None:
        """Copy an array at the moment when it is made.

        Args:
            name: a point's full neutral name, `"blk.7.q_rope"` or `"logits"`.
            array: token first, as `docs/diagnosis.md` lists the axes; a batch of one before it is left out.
                numpy's, or anything that turns into it: of torch, jax, mlx, cupy, tinygrad.

        Raises:
            OptionError: no such point. ShapeError: several sequences, or a point that was there already.
        """
        check_point(name)
        if name in self.tensors:
            raise ShapeError(name, got="two tensors in one call", wanted="one: a single pass over the prompt")
        dtype, copy = dtype_name(array), as_numpy(array, name)
        if copy.ndim > len(ALL_POINTS[split_name(name)[1]].axes):
            if copy.shape[0] != 1:
                raise ShapeError(f"batch of {name}", got=copy.shape[0], wanted="one sequence")
            copy = copy[0]
        self.tensors[name], self.dtypes[name] = copy, dtype

    def save(
        self,
        path: str | Path,
        *,
        token_ids: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        sequences: Sequence[int] | None = None,
        padding: Sequence[int] | None = None,
        weights_sha256: str | None = None,
        dtype: str | None = None,
        producer: str | None = None,
        notes: str | None = None,
    ) -> None:
        """Write what was kept as a dump that `llama-ckpt compare` reads.

        Args:
            path: the safetensors file.
            token_ids, positions: of the run; not needed where a recording of the same prompt is at hand.
            sequences, padding: of each row, where there are several sequences or rows of padding.
            weights_sha256: of the weights that were loaded, as a manifest or an export declares it.
            dtype: what was computed in; None: the narrowest that was kept of what projections give.
            producer, notes: for reports.

        Raises:
            OptionError: nothing was kept.
        """
        names = [split_name(name) for name in self.tensors]
        blocks = sorted({block for block, _ in names if block is not None})
        save_dump(
            path,
            self.tensors,
            token_ids=token_ids,
            positions=positions,
            weights_sha256=weights_sha256,
            dtype=dtype or computed_in(self.dtypes),
            points=list(dict.fromkeys(point for _, point in names)),
            blocks=blocks or None,
            producer=producer or "llama_ckpt.Recorder",
            notes=notes,
            sequences=sequences,
            padding=padding,
        )


def check_point(name: str) -> None:
    """Refuse what is no point.

    Raises:
        OptionError: a name that `points.py` does not have, or a block's number where it does not belong.
    """
    number, point = split_name(name)
    if point not in (OUTSIDE if number is None else INSIDE):
        wanted = "a point, such as blk.0.attn_norm or logits"
        raise OptionError("the name of a tensor", got=name, wanted=wanted)


def dtype_name(array: Any) -> str:
    """An array's type by numpy's name for it, whatever made it: `torch.bfloat16` is "bfloat16"."""
    dtype = array.dtype if hasattr(array, "dtype") else np.asarray(array).dtype
    return str(dtype).rpartition(".")[2]


def as_numpy(array: Any, name: str) -> NDArray[Any]:
    """A copy as float32, or as float64 where it is that.

    Raises:
        ShapeError: nothing that turns into numbers.
    """
    if hasattr(array, "detach"):  # torch: bfloat16 has no numpy, so it is widened there
        array = array.detach()
        array = (array if dtype_name(array) == "float64" else array.float()).cpu()
    mlx = sys.modules.get("mlx.core")
    if mlx is not None and isinstance(array, mlx.array) and dtype_name(array) == "bfloat16":
        array = array.astype(mlx.float32)
    for turn in (np.asarray, lambda x: x.numpy(), lambda x: x.get(), np.from_dlpack):
        try:
            made = np.asarray(turn(array))
            return in_scratch(np.array(made, np.float64 if made.dtype == np.float64 else np.float32))
        except OSError:  # no room in the scratch folder
            raise
        except Exception:  # each library has an error of its own for what it does not do
            continue
    raise ShapeError(f"what {name} is recorded from", got=type(array).__name__, wanted="an array of numbers")


def computed_in(dtypes: dict[str, str]) -> str | None:
    """What a program computed in, from the types of its tensors; None where none is of `DTYPES`.

    Norms and residuals may be wider, as under autocast, and a cache narrower: what the projections give
    decides. In half precision those of one type in most of the tensors.
    """
    projected = [kind for name, kind in dtypes.items() if split_name(name)[1] in PROJECTED]
    others = [kind for name, kind in dtypes.items() if split_name(name)[1] not in SAMPLED]
    for kinds in (projected, others, list(dtypes.values())):
        half = [kind for kind in kinds if kind in DTYPES and kind != "float32"]
        if half:
            return max(sorted(set(half)), key=half.count)
        if kinds:
            return "float32" if set(kinds) & {"float32", "float64"} else None
    return None
