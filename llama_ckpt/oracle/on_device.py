"""A model's weights for the oracle, multiplied on the device that holds them.

The oracle stays numpy; only `x @ w.T` with a large weight goes to the GPU, through numpy's own
protocol for foreign arrays, and is done there in float64. So the float64 run of a 7B model takes
seconds, not an hour, and memory for one matrix. Where there is a choice, a matrix's values are compared
with those that `gguf` reads from the file before it is believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Final, SupportsIndex, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_ckpt.errors import ReferenceError
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.oracle.block_parts import block_minima
from llama_ckpt.oracle.on_cpu import HostOracleWeights
from llama_ckpt.oracle.weights import KEPT_BYTES, OracleBlockWeights, OracleWeights, block_weights
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.quants import PackedWeight, Weight
from llama_ckpt.weights.records import ModelWeights, load_weights
from llama_ckpt.weights.tensor_names import MODEL_TENSORS, QKV, block_tensor
from llama_ckpt.weights.unpacking import unpacked_by_block

__all__ = ["DeviceMatrix", "DeviceOracleWeights", "oracle_weights"]

Array = NDArray[np.float64]

PRODUCT_BYTES: Final = 1 << 30
"""Models whose matrices take more in float64 are multiplied where they are; smaller ones by numpy."""

SHARED_BYTES: Final = 1 << 28
"""On the CPU a model is large from here on, its head counted: float64 arrays are read from memory then."""

CHECKED_ROWS: Final = 4
"""So many of a matrix's first and of its last rows are compared with what `gguf` reads."""


class DeviceMatrix:
    """A weight `[out, in]` on a device, as an operand of numpy's `matmul` from the right.

    Args:
        weight: in the file's type.
        transposed: True for what `.T` gives.
    """

    def __init__(self, weight: Weight, transposed: bool = False) -> None:
        self._weight, self._transposed = weight, transposed

    @property
    def T(self) -> DeviceMatrix:  # noqa: N802 - numpy's name
        """The other way round."""
        return DeviceMatrix(self._weight, not self._transposed)

    def __getitem__(self, rows: slice) -> DeviceMatrix:
        weight = self._weight
        if isinstance(weight, PackedWeight):
            raw = weight.raw[rows]
            return DeviceMatrix(PackedWeight(raw, weight.type, (len(raw), weight.shape[1])))
        return DeviceMatrix(weight[rows])

    @property
    def weight_type(self) -> str:
        """The file's type, such as "Q4_0"."""
        if isinstance(self._weight, PackedWeight):
            return self._weight.type.name
        return {torch.float16: "F16", torch.bfloat16: "BF16"}.get(self._weight.dtype, "F32")

    @property
    def minima(self) -> Array | None:
        """The minimum of each block of a row, `[out, blocks]`; None where the type has none."""
        if not isinstance(self._weight, PackedWeight):
            return None
        return block_minima(self._weight.raw.cpu().numpy(), self._weight.type.name)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if ufunc is not np.matmul or method != "__call__" or options or inputs[1] is not self:
            return NotImplemented
        x = torch.from_numpy(np.ascontiguousarray(inputs[0])).to(self._weight.device)
        matrix = self.float64()
        return torch.mm(x, matrix.t() if self._transposed else matrix).cpu().numpy()

    def product_terms(self, x: Array, chunks: int) -> tuple[Array, Array]:
        """What the rounding of products `x [n, in]` with this weight depends on, `[n, out]`.

        The norms of their terms, ‖x∘w‖₂, and the rms of the sums after each of `chunks` parts of `in`; with 0
        the norms alone. In float32, of which two digits count; each row of both is divided by its largest
        number first, so that squares neither overflow nor vanish, but those below 1e-38 of that one's.
        """
        rows, scale = _row_scaled(torch.from_numpy(np.ascontiguousarray(x)).to(self._weight.device))
        matrix, unit = _row_scaled(self.float32())
        scales = scale * unit.t()
        norms = torch.mm(rows * rows, (matrix * matrix).t()).sqrt() * scales
        squares = torch.zeros_like(norms)
        running = torch.zeros_like(norms, dtype=torch.float32)
        parts = -(-x.shape[1] // chunks) if chunks else x.shape[1] + 1
        for start in range(0, x.shape[1] if chunks else 0, parts):
            part = slice(start, start + parts)
            running += torch.mm(rows[:, part], matrix[:, part].t())
            squares += running.square()
        partial = (squares / max(chunks, 1)).sqrt() * scales
        return norms.cpu().numpy(), partial.cpu().numpy()

    def column_means(self) -> Array:
        """The mean of its rows, `[in]`."""
        return self.float32().mean(dim=0, dtype=torch.float64).cpu().numpy()

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), or the other way round."""
        out, width = self._weight.shape
        return (width, out) if self._transposed else (out, width)

    def float32(self) -> Tensor:
        """The values as the file means them, `[out, in]` on the device; float32 holds every type's."""
        weight = self._weight
        return weight.dequantize(torch.float32) if isinstance(weight, PackedWeight) else weight.float()

    def float64(self) -> Tensor:
        """The same for products with float64."""
        return self.float32().double()

    def check(self, file: GGUFFile, name: str) -> None:
        """Compare some rows with the file's.

        Raises:
            ReferenceError: they differ: the oracle would judge by wrong weights.
        """
        weight = self._weight
        for rows in (slice(0, CHECKED_ROWS), slice(weight.shape[0] - CHECKED_ROWS, weight.shape[0])):
            few = (
                PackedWeight(weight.raw[rows], weight.type, (CHECKED_ROWS, weight.shape[1]))
                if isinstance(weight, PackedWeight)
                else weight[rows]
            )
            ours, wanted = DeviceMatrix(few).float64().cpu().numpy(), file.float32(name, rows)
            if not np.array_equal(ours, wanted):
                raise ReferenceError(
                    f"weights of {name} on {weight.device}",
                    got=float(np.abs(ours - wanted).max()),
                    wanted="equal to what gguf dequantizes",
                )


def _row_scaled(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Rows divided by their largest number, float32; and these, float64 `[rows, 1]`, 1 for a row of zeros."""
    scale = matrix.abs().amax(dim=1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    return (matrix / scale).float(), scale.double()


class DeviceOracleWeights(OracleWeights):
    """As `OracleWeights`, with every large matrix a `DeviceMatrix`.

    Args:
        file: the GGUF file, for norms, embeddings and the comparison. config: its shape.
        weights: loaded from it, on a device.

    Raises:
        ReferenceError: see `DeviceMatrix.check`.
    """

    def __init__(self, file: GGUFFile, config: LlamaConfig, weights: ModelWeights) -> None:
        super().__init__(file, config)
        self._file = file
        self._head = DeviceMatrix(weights.output)
        self._head.check(file, MODEL_TENSORS["token_embd" if config.tied_output else "output"])
        self.blocks = _DeviceBlocks(file, config, weights)

    @cached_property
    def token_embd(self) -> Any:
        """[vocab, width], float32: rows are looked up, and widened then."""
        return self._file.float32(MODEL_TENSORS["token_embd"])

    @property
    def output(self) -> Any:
        """[vocab, width]"""
        return self._head


class _DeviceBlocks(Sequence[OracleBlockWeights]):
    """The blocks of a model on a device; norms are arrays."""

    def __init__(self, file: GGUFFile, config: LlamaConfig, weights: ModelWeights) -> None:
        self._file, self._config, self._weights = file, config, weights
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return len(self._weights.blocks)

    @overload
    def __getitem__(self, index: SupportsIndex) -> OracleBlockWeights: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[OracleBlockWeights]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> OracleBlockWeights | Sequence[OracleBlockWeights]:
        if isinstance(index, slice):
            return [self._block(number) for number in range(len(self))[index]]
        return self._block(range(len(self))[index])

    def __iter__(self) -> Iterator[OracleBlockWeights]:
        return (self._block(number) for number in range(len(self)))

    def _block(self, number: int) -> OracleBlockWeights:
        def matrix(field: str) -> DeviceMatrix:
            made = DeviceMatrix(getattr(self._weights.blocks[number], field))
            fused = self._config.fused_qkv and field in QKV  # its rows stand in another tensor
            if number not in self._checked and not fused:
                made.check(self._file, block_tensor(number, field, experts=self._config.n_experts > 0))
            return made

        block = block_weights(self._file, self._config, number, matrix)
        self._checked.add(number)
        return block


def oracle_weights(
    file: GGUFFile,
    config: LlamaConfig,
    weights: ModelWeights,
    device: torch.device,
    *,
    above: int = PRODUCT_BYTES,
) -> OracleWeights:
    """The oracle's weights of a model: on its device where that is a GPU and the model large.

    On the CPU a large model's are float32 values that the layers use too (`on_cpu`); one whose blocks fit is
    kept in float64.

    Args:
        file, config: the GGUF file and its shape.
        weights: loaded from it, on `device`.
        above: bytes of its matrices in float64 from which on a model is large.
    """
    ffn = max(1, config.n_experts) * config.ffn
    a_block = config.width * (2 * config.q_width + 2 * config.kv_width + 3 * ffn)
    blocks, head = 8 * config.n_layers * a_block, 8 * config.vocab_size * config.width
    large = blocks > above if device.type == "cuda" else blocks + head > min(above, SHARED_BYTES)
    if not large:
        return OracleWeights(file, config, kept_bytes=max(KEPT_BYTES, above))
    if device.type != "cuda":  # Apple's GPUs have no float64
        mapped = weights if device.type == "cpu" else load_weights(file, config)
        return HostOracleWeights(file, config, mapped, unpacked_by_block(mapped))
    return DeviceOracleWeights(file, config, weights)
