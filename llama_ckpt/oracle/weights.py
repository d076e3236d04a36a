"""A model's weights for the oracle: float64 arrays under the same names, with numpy alone.

The values are the file's own, dequantized to float32 as `gguf` does and then widened exactly. A
block of Llama-2-7B takes 1.6 GB in float64, so blocks are dequantized when they are asked for, and
only models that fit a stated number of bytes are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.oracle.block_parts import block_minima, half_scaled
from llama_ckpt.oracle.integer_blocks import BlockParts, integer_blocks
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.llama_tensors import check_llama
from llama_ckpt.weights.tensor_names import BIAS_OF, MODEL_TENSORS, block_fields, block_tensor, fused_tensor

__all__ = ["KEPT_BYTES", "FileMatrix", "OracleBlockWeights", "OracleWeights"]

Array = NDArray[np.float64]

KEPT_BYTES: Final = 1 << 30
"""Blocks of a model that takes at most so many bytes are kept once they are dequantized."""


class FileMatrix(np.ndarray[Any, np.dtype[np.float64]]):
    """A file's matrix `[out, in]`, float64, that knows its type there; what is made of it is a plain array.

    Attributes:
        weight_type: the file's type, such as "Q4_0"; None for a part or a transpose of the matrix.
    """

    weight_type: str | None
    _raw: Callable[[], NDArray[np.uint8]] | None
    _kept: dict[str, Any]
    _always: dict[str, Any]

    @classmethod
    def read(cls, file: GGUFFile, name: str, rows: slice = slice(None)) -> FileMatrix:
        """A tensor of a file, or some of its rows."""
        values = file.float32(name, rows)  # experts' matrices come stacked, and lie under one another
        matrix = values.reshape(-1, values.shape[-1]).astype(np.float64).view(cls)
        matrix.weight_type, matrix._raw = file.info(name).type.name, lambda: file.raw(name)[rows]
        return matrix

    def __array_finalize__(self, whole: Any) -> None:
        self.weight_type, self._raw, self._kept, self._always = None, None, {}, {}

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)

    @property
    def minima(self) -> Array | None:
        """The minimum of each block of a row, `[out, blocks]`; None where the type has none."""
        raw, kind = self._raw, self.weight_type
        if raw is None or kind is None:
            return None
        minima: Array | None = self.kept("minima", lambda: block_minima(raw(), kind))
        return minima

    def half_scaled(self) -> Array:
        """The values once the scales of groups are rounded to float16; as they are in a type without any."""
        raw, kind = self._raw, self.weight_type
        if raw is None or kind not in ("Q2_K", "Q4_K", "Q5_K"):
            return np.asarray(self)
        made: Array = self.kept("half scales", lambda: half_scaled(np.asarray(self), raw(), kind))
        return made

    @property
    def parts(self) -> BlockParts | None:
        """Its integers, scales and minima; None for a type that has none, or that is not read so."""
        raw, kind = self._raw, self.weight_type
        if raw is None or kind is None:
            return None
        parts: BlockParts | None = self.kept("parts", lambda: integer_blocks(raw(), kind))
        return parts

    def always(self, what: str, make: Callable[[], Any]) -> Any:
        """Something made of the matrix that every product asks for; it stays as long as this does."""
        if what not in self._always:
            self._always[what] = make()
        return self._always[what]

    def kept(self, what: str, make: Callable[[], Any]) -> Any:
        """Something made of the matrix; the last three stay, as each may be as large as the matrix."""
        if what not in self._kept:
            while len(self._kept) > 2:
                del self._kept[next(iter(self._kept))]
            self._kept[what] = make()
        return self._kept[what]


@dataclass(frozen=True, eq=False)
class OracleBlockWeights:
    """One block's weights, float64; fields and shapes as in `weights.BlockWeights`."""

    attn_norm: Array
    wq: Array
    wk: Array
    wv: Array
    wo: Array
    ffn_norm: Array
    w_gate: Array
    w_up: Array
    w_down: Array
    w_router: Array | None = None
    bq: Array | None = None
    bk: Array | None = None
    bv: Array | None = None
    bo: Array | None = None
    b_gate: Array | None = None
    b_up: Array | None = None
    b_down: Array | None = None

    def biases(self, *names: str) -> dict[str, Any]:
        """Those of the named biases that there are: keyword arguments of the function that adds them."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def block_weights(
    file: GGUFFile, config: LlamaConfig, number: int, matrix: Callable[[str], Any] | None = None
) -> OracleBlockWeights:
    """A block's weights of a file; `matrix` makes those of a field in another way."""
    rows = {"wq": config.q_width, "wk": config.kv_width, "wv": config.kv_width}
    ends = dict(zip(rows, np.cumsum(list(rows.values())), strict=True))

    def part(field: str) -> slice:
        return slice(int(ends[field]) - rows[field], int(ends[field]))

    def of_file(field: str) -> Any:
        if field.endswith("_norm"):
            return file.float64(block_tensor(number, field))
        if config.fused_qkv and field in rows:
            return FileMatrix.read(file, fused_tensor(number), part(field))
        return FileMatrix.read(file, block_tensor(number, field, experts=config.n_experts > 0))

    def bias(field: str) -> Array:
        if config.fused_qkv and field in rows:
            return file.float64(fused_tensor(number, "bias"))[part(field)]
        return file.float64(block_tensor(number, BIAS_OF[field]))

    made = {
        field: (matrix or of_file)(field) if not field.endswith("_norm") else of_file(field)
        for field in block_fields(config)
    }
    biases = {name: bias(field) for field, name in BIAS_OF.items() if name in config.biases_of(number)}
    return OracleBlockWeights(**made, **biases)


class OracleWeights:
    """A model's weights, float64; attributes as in `weights.ModelWeights`.

    Args:
        kept_bytes: blocks stay once they are dequantized where all of them together take at most so many;
            None: as many as a small model's.
        keep_last: of a larger model the last block stays until the next is asked for.

    Attributes:
        blocks: a sequence of `OracleBlockWeights`, each made when it is asked for.

    Raises:
        ModelFileError, UnsupportedModelError: as `check_llama`.
    """

    def __init__(
        self, file: GGUFFile, config: LlamaConfig, *, kept_bytes: int | None = None, keep_last: bool = False
    ) -> None:
        check_llama(file, config)
        self._file, self._tied = file, config.tied_output
        most = KEPT_BYTES if kept_bytes is None else kept_bytes
        self.blocks: Sequence[OracleBlockWeights] = _Blocks(file, config, most, keep_last)

    @cached_property
    def token_embd(self) -> Array:
        """[vocab, width]; dequantized when it is first asked for, as the others are."""
        return FileMatrix.read(self._file, MODEL_TENSORS["token_embd"])

    @cached_property
    def output_norm(self) -> Array:
        """[width]"""
        return self._file.float64(MODEL_TENSORS["output_norm"])

    @cached_property
    def output(self) -> Array:
        """[vocab, width]; the very array `token_embd` where the file ties the two."""
        return self.token_embd if self._tied else FileMatrix.read(self._file, MODEL_TENSORS["output"])


class _Blocks(Sequence[OracleBlockWeights]):
    """The blocks of a file, dequantized one at a time; kept where all of them take at most `most` bytes."""

    def __init__(self, file: GGUFFile, config: LlamaConfig, most: int, keep_last: bool) -> None:
        self._file, self._config, self._n_layers = file, config, config.n_layers
        n_layers, tensors = config.n_layers, [name for name in file.tensors if name.startswith("blk.0.")]
        elements = sum(np.prod(file.info(name).shape) for name in tensors)
        self._keep = 8 * int(elements) * n_layers <= most
        self._keep_last = keep_last
        self._kept: dict[int, OracleBlockWeights] = {}

    def __len__(self) -> int:
        return self._n_layers

    @overload
    def __getitem__(self, index: int) -> OracleBlockWeights: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[OracleBlockWeights]: ...

    def __getitem__(self, index: int | slice) -> OracleBlockWeights | Sequence[OracleBlockWeights]:
        numbers = range(self._n_layers)[index]
        if isinstance(numbers, range):
            return [self._block(number) for number in numbers]
        return self._block(numbers)

    def __iter__(self) -> Iterator[OracleBlockWeights]:
        return (self._block(number) for number in range(self._n_layers))

    def _block(self, number: int) -> OracleBlockWeights:
        if number in self._kept:
            return self._kept[number]
        if self._keep_last and not self._keep:
            self._kept.clear()  # before the next is made
        block = block_weights(self._file, self._config, number)
        if self._keep or self._keep_last:
            self._kept[number] = block
        return block
