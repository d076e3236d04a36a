"""Products of many rows with dense weights: float16 inputs on the tensor cores, float32 sums.

A float16 number holds 11 bits of a weight or an activation; what it takes off each, a part in 4,096, is
all that separates such a product from one in float32. `Dense` and `Rows` carry it where it is wanted:
with a weight that is float16 in the file, as a second float16 activation and a second product; with any
other, both rests matter (x_low W_high and x_high W_low), and one product in 8 bits of twice the
depth, [x_high | x_low] [W_low | W_high], gives their sum to a part in 20 for the time of one in float16.
What that was expected to cost and cost stands in docs/speed_steps.md, "Long prompts", steps 4 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llama_ckpt.kernels.many_rows import Rest
from llama_ckpt.weights.quants import PackedWeight, Weight

__all__ = ["LOW_PART", "Dense", "Rows", "add_product", "product", "values"]

LOW_PART = 2048.0
"""What the rest of a float16 rounding is multiplied by, so that it does not fall below float16's range."""

_LARGEST = 448.0  # of float8_e4m3fn
_TILE = 16  # rows and columns of an 8-bit product come in multiples


@dataclass(frozen=True, eq=False)
class Dense:
    """A weight for the tensor cores.

    Attributes:
        high: float16 [rows, width].
        low: float8_e4m3fn [rows to the next 16, 2 width]: what rounding to float16 took times `LOW_PART`,
            then `high`, both times 1 / `unit`; None where `high` is exact, or is all that is wanted.
        unit: float32 [], of `low`.
    """

    high: Tensor
    low: Tensor | None = None
    unit: Tensor | None = None

    @classmethod
    def of(cls, weights: tuple[Weight, ...], *, exact: bool) -> Dense:
        """Matrices under one another; with `exact`, with what float16 cannot hold of them."""
        # A file in float16 has no rest in its weights, and a quantized one has: scale times integer needs
        # more bits.
        if not exact or all(isinstance(w, Tensor) and w.dtype == torch.float16 for w in weights):
            parts = [values(w, torch.float16) for w in weights]
            return cls(parts[0] if len(parts) == 1 else torch.cat(parts))
        whole = torch.cat([values(w, torch.float32) for w in weights])
        high = whole.half()
        rows, width = whole.shape
        # A power of two: nothing is rounded but to the three bits that are meant to stay.
        unit = torch.exp2(torch.ceil(torch.log2(whole.abs().max().clamp_min(1e-30) / _LARGEST)))
        low = torch.zeros(-(-rows // _TILE) * _TILE, 2 * width, dtype=torch.float8_e4m3fn, device=high.device)
        low[:rows, :width] = ((whole - high) * (LOW_PART / unit)).to(low.dtype)
        low[:rows, width:] = (high / unit).to(low.dtype)
        return cls(high, low, unit)

    def rest(self, *, wanted: bool) -> Rest:
        """What an activation for this weight carries beside its float16 part."""
        if not wanted:
            return Rest.NONE
        return Rest.HALF if self.low is None else Rest.BYTES


@dataclass(frozen=True, eq=False)
class Rows:
    """Activations for the tensor cores.

    Attributes:
        high: float16 [n, width].
        rest: see `Rest`; None where nothing is kept.
        unit: float32 []: what an 8-bit rest is to be multiplied by.
    """

    high: Tensor
    rest: Tensor | None = None
    unit: Tensor | None = None

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        """What a kernel is given to write to: without a rest, the same twice."""
        return self.high, self.high if self.rest is None else self.rest

    def keeping(self, lift: float, name: str = "LIFT") -> dict[str, float]:
        """The constants that tell a kernel what to keep: `REST`, and what 8 bits are multiplied by."""
        kind = Rest.NONE if self.rest is None else Rest.HALF if self.unit is None else Rest.BYTES
        return {"REST": int(kind), name: lift}

    def whole(self) -> Tensor:
        """The activations as float32; an 8-bit rest holds what rounding took to three bits only."""
        high = self.high.float()
        if self.rest is None:
            return high
        if self.unit is None:
            return high + self.rest.float() / LOW_PART
        return high + self.rest[:, high.shape[1] :].float() * (self.unit / LOW_PART)


def values(w: Weight, dtype: torch.dtype) -> Tensor:
    """A weight's values in a dtype."""
    return w.dequantize(dtype) if isinstance(w, PackedWeight) else w.to(dtype)


def product(h: Rows, w: Dense, out: Tensor, rest: Tensor | None) -> None:
    """x Wᵀ to `out` [n, rows], float32 or float16; to `rest`, float16, what it misses, times `LOW_PART`."""
    if rest is not None:
        _missing(h, w, rest)
    _multiply(h.high, w.high, out)


def add_product(x: Tensor, h: Rows, w: Dense, room: Tensor | None) -> None:
    """x += h Wᵀ, float32 [n, rows]; `room` float16 and as large, where a rest goes with h."""
    if w.low is not None and room is not None:
        x.add_(_missing(h, w, room), alpha=1 / LOW_PART)
    elif h.rest is not None:
        _add(x, h.rest, w.high, alpha=1 / LOW_PART)
    _add(x, h.high, w.high)


def _missing(h: Rows, w: Dense, out: Tensor) -> Tensor:
    """What rounding to float16 took off a product, times `LOW_PART`; three digits of it are enough."""
    assert h.rest is not None
    if w.low is None:
        return _multiply(h.rest, w.high, out)
    assert h.unit is not None and w.unit is not None
    # 8-bit products want rows in multiples of 16. Only where the weight has padding is a copy made.
    rows = out.shape[1]
    whole = out if rows == w.low.shape[0] else None
    made = torch._scaled_mm(
        h.rest, w.low.t(), h.unit, w.unit, out_dtype=torch.float16, use_fast_accum=True, out=whole
    )
    return made if whole is not None else out.copy_(made[:, :rows])


def _multiply(a: Tensor, w: Tensor, out: Tensor) -> Tensor:
    # float16 inputs with float32 sums are offered on CUDA alone; on the CPU, where tests come, float32 has
    # the same.
    if not a.is_cuda:
        return out.copy_(a.float() @ w.float().t())
    if out.dtype == torch.float16:
        return torch.mm(a, w.t(), out=out)
    return torch.mm(a, w.t(), out_dtype=torch.float32, out=out)


def _add(x: Tensor, a: Tensor, w: Tensor, *, alpha: float = 1) -> None:
    """x += alpha a wᵀ."""
    if not a.is_cuda:
        x.add_(a.float() @ w.float().t(), alpha=alpha)
    else:
        torch.addmm(x, a, w.t(), out_dtype=torch.float32, alpha=alpha, out=x)
