"""A large model's weights for the oracle on the CPU: float32 values, the layers' too, and float64 products.

A weight's values are float32 in every format, so that float64 copies hold nothing more, and take twice the
memory and longer to read than to make. So a matrix stays in float32, once for everybody, and some rows at a
time become float64 where they are multiplied. The oracle stays numpy: as on a device, `x @ w.T` goes through
numpy's protocol for foreign arrays, and a matrix is compared with what `gguf` reads before it is believed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Final, overload
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_ckpt.errors import ReferenceError
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.oracle.weights import OracleBlockWeights, OracleWeights, block_weights
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.quants import PackedWeight, Weight
from llama_ckpt.weights.records import BlockWeights, ModelWeights
from llama_ckpt.weights.tensor_names import MODEL_TENSORS, QKV, block_tensor

__all__ = ["HostMatrix", "HostOracleWeights"]

Array = NDArray[np.float64]

TILE: Final = 1 << 17
"""Elements that become float64 at a time: a megabyte, which stays in a processor's cache."""

CHECKED_ROWS: Final = 8
"""So many rows, spread over a matrix from the first to the last, are compared with what `gguf` reads."""

TAME: Final = 2.0**40
"""Rows whose largest number is within so much of 1 have squares that float32 holds."""


class HostMatrix:
    """A weight `[out, in]` as an operand of numpy's `matmul` from the right.

    Args:
        values: float32, contiguous rows. weight_type: the file's, such as "Q4_0".
        transposed: True for what `.T` gives.
    """

    def __init__(self, values: Tensor, weight_type: str, transposed: bool = False) -> None:
        self.values, self.weight_type, self._transposed = values, weight_type, transposed

    @property
    def T(self) -> HostMatrix:  # noqa: N802 - numpy's name
        """The other way round."""
        return HostMatrix(self.values, self.weight_type, not self._transposed)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), or the other way round."""
        out, width = self.values.shape
        return (width, out) if self._transposed else (out, width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> HostMatrix:
        return HostMatrix(self.values[rows], self.weight_type)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        values = self.values.t() if self._transposed else self.values
        return np.asarray(values.double().numpy(), dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if ufunc is not np.matmul or method != "__call__" or options or inputs[1] is not self:
            return NotImplemented
        given = np.asarray(inputs[0], np.float64)
        rows = torch.from_numpy(np.ascontiguousarray(given.reshape(-1, given.shape[-1])))
        made = self._by_rows(rows) if self._transposed else self._through(rows)
        return made.numpy().reshape(*given.shape[:-1], made.shape[-1])

    def _by_rows(self, x: Tensor) -> Tensor:
        """x wᵀ, `[n, out]`."""
        out = torch.empty(len(x), len(self.values), dtype=torch.float64)
        for some, tile in self._tiles():
            torch.mm(x, tile.t(), out=out[:, some])
        return out

    def _through(self, x: Tensor) -> Tensor:
        """x w, `[n, in]`, of x `[n, out]`."""
        out = torch.zeros(len(x), self.values.shape[1], dtype=torch.float64)
        for some, tile in self._tiles():
            out.addmm_(x[:, some], tile)
        return out

    def _tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Some rows at a time in float64, each in the place of the one before."""
        out, width = self.values.shape
        step = max(1, TILE // width)
        place = torch.empty(min(step, out), width, dtype=torch.float64)
        for start in range(0, out, step):
            part = self.values[start : start + step]
            yield slice(start, start + len(part)), place[: len(part)].copy_(part)

    def product_terms(self, x: Array, chunks: int) -> tuple[Array, Array]:
        """What the rounding of products `x [n, in]` with this weight depends on, `[n, out]`.

        The norms of their terms, ‖x∘w‖₂, and the rms of the sums after each of `chunks` parts of `in`.
        """
        norms, partial, _ = self.rounding_terms(x, chunks)
        return norms, partial

    def rounding_terms(
        self, x: Array, chunks: int, carried: Array | None = None
    ) -> tuple[Array, Array, Array | None]:
        """`product_terms`, and the norms of a deviation's terms, in one reading of the weight.

        In float32, of which two digits count; rows of all three are divided by their largest numbers where
        their squares would overflow or vanish.
        """
        rows, scale = _row_scaled(torch.from_numpy(np.ascontiguousarray(x, np.float64)))
        squares = [rows * rows]
        if carried is not None:
            off, off_scale = _row_scaled(torch.from_numpy(np.ascontiguousarray(carried, np.float64)))
            squares.append(off * off)
        parts = _in_parts(rows, chunks)
        n, out = len(rows), len(self.values)
        norms = torch.empty(len(squares) * n, out, dtype=torch.float64)
        partial = torch.zeros(n, out, dtype=torch.float64)
        step = max(1, 2 * TILE // self.values.shape[1])
        for start in range(0, out, step):
            some = slice(start, start + step)
            tile, unit = (self.values[some], 1.0) if self._tame else _scaled(self.values[some])
            norms[:, some] = torch.mm(torch.cat(squares), (tile * tile).t()).sqrt_() * unit
            if chunks:
                sums = torch.bmm(parts, _in_parts(tile, chunks).transpose(1, 2)).cumsum_(0)
                partial[:, some] = (sums.square_().sum(0) / chunks).sqrt_() * unit
        through = None if carried is None else (norms[n:] * off_scale).numpy()
        return (norms[:n] * scale).numpy(), (partial * scale).numpy(), through

    def column_means(self) -> Array:
        """The mean of its rows, `[in]`."""
        return self._column_means

    @cached_property
    def _tame(self) -> bool:
        largest = torch.maximum(self.values.amax(dim=1), -self.values.amin(dim=1))
        return float(largest.max()) < TAME and float(largest.min()) > 1 / TAME

    @cached_property
    def _column_means(self) -> Array:
        ones = torch.full((1, len(self.values)), 1 / len(self.values), dtype=torch.float64)
        return self._through(ones)[0].numpy()

    def check(self, file: GGUFFile, name: str, first: int = 0) -> None:
        """Compare some rows with the file's, where they begin with its row `first`.

        Raises:
            ReferenceError: they differ: the oracle would judge by wrong weights.
        """
        numbers = np.unique(np.linspace(0, len(self.values) - 1, CHECKED_ROWS).astype(int))
        for number in numbers:
            ours = self.values[number].numpy()
            wanted = file.float32(name, slice(first + number, first + number + 1)).reshape(-1)
            if not np.array_equal(ours, wanted, equal_nan=True):
                raise ReferenceError(
                    f"row {number} of the weights of {name}",
                    got=float(np.abs(ours - wanted).max()),
                    wanted="equal to what gguf dequantizes",
                )


def _in_parts(rows: Tensor, chunks: int) -> Tensor:
    """`[chunks, n, width / chunks]` of `[n, width]`, with zeros at the end where it is no multiple."""
    width = rows.shape[1]
    part = -(-width // max(chunks, 1))
    if part * chunks > width:
        rows = torch.nn.functional.pad(rows, (0, part * chunks - width))
    return rows.view(len(rows), -1, part).transpose(0, 1)


def _scaled(tile: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose squares float32 holds, and what they were divided by."""
    scaled, unit = _row_scaled(tile.double())
    return scaled, unit.t()


def _row_scaled(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Rows divided by their largest number, float32; and these, float64 `[rows, 1]`, 1 for a row of zeros."""
    scale = matrix.abs().amax(dim=1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    return (matrix / scale).float(), scale


class HostOracleWeights(OracleWeights):
    """As `OracleWeights`, with every matrix a `HostMatrix`.

    Args:
        file: the GGUF file. config: its shape.
        weights: loaded from it on the CPU, packed. unpacked: the same in float32 (`unpacked_by_block`).

    Attributes:
        unpacked: the same, for whoever computes with the very values.

    Raises:
        ReferenceError: see `HostMatrix.check`.
    """

    def __init__(
        self, file: GGUFFile, config: LlamaConfig, weights: ModelWeights, unpacked: ModelWeights
    ) -> None:
        super().__init__(file, config)
        self.unpacked = unpacked
        self._head = HostMatrix(_values(unpacked.output), _type_of(weights.output))
        self._head.check(file, MODEL_TENSORS["token_embd" if config.tied_output else "output"])
        self.blocks = _HostBlocks(file, config, weights, unpacked)

    @cached_property
    def token_embd(self) -> Any:
        """[vocab, width], float32: rows are looked up, and widened then."""
        weight = self.unpacked.token_embd
        made = HostMatrix(_values(weight), _type_of(weight))
        made.check(self._file, MODEL_TENSORS["token_embd"])
        return made.values.numpy()

    @property
    def output(self) -> Any:
        """[vocab, width]"""
        return self._head


class _HostBlocks(Sequence[OracleBlockWeights]):
    """The blocks of a model; norms are arrays. One is kept for as long as its float32 values are."""

    def __init__(
        self, file: GGUFFile, config: LlamaConfig, weights: ModelWeights, unpacked: ModelWeights
    ) -> None:
        self._file, self._config, self._weights, self._unpacked = file, config, weights, unpacked
        self._checked: set[int] = set()
        self._made: WeakKeyDictionary[BlockWeights, OracleBlockWeights] = WeakKeyDictionary()
        self._making = threading.Lock()  # several runs may ask for a block at once

    def __len__(self) -> int:
        return len(self._unpacked.blocks)

    @overload
    def __getitem__(self, index: int) -> OracleBlockWeights: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[OracleBlockWeights]: ...

    def __getitem__(self, index: int | slice) -> OracleBlockWeights | Sequence[OracleBlockWeights]:
        numbers = range(len(self))[index]
        return [self._block(one) for one in numbers] if isinstance(numbers, range) else self._block(numbers)

    def __iter__(self) -> Iterator[OracleBlockWeights]:
        return (self._block(number) for number in range(len(self)))

    def _block(self, number: int) -> OracleBlockWeights:
        shared = self._unpacked.blocks[number]
        with self._making:
            if shared not in self._made:
                self._made[shared] = self._of(shared, number)
            return self._made[shared]

    def _of(self, shared: BlockWeights, number: int) -> OracleBlockWeights:
        def matrix(field: str) -> HostMatrix:
            packed = getattr(self._weights.blocks[number], field)
            made = HostMatrix(_values(getattr(shared, field)), _type_of(packed))
            fused = self._config.fused_qkv and field in QKV  # its rows stand in another tensor
            if number not in self._checked and not fused:
                made.check(self._file, block_tensor(number, field, experts=self._config.n_experts > 0))
            return made

        block = block_weights(self._file, self._config, number, matrix)
        self._checked.add(number)
        return block


def _values(weight: Weight) -> Tensor:
    return weight.dequantize(torch.float32) if isinstance(weight, PackedWeight) else weight.float()


def _type_of(weight: Weight) -> str:
    if isinstance(weight, PackedWeight):
        return weight.type.name
    return {torch.float16: "F16", torch.bfloat16: "BF16"}.get(weight.dtype, "F32")
