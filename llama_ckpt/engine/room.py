"""Where a long prompt lies on the device while it runs: buffers at fixed addresses, in whole tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Room", "padded"]

_STEP = 128  # rows of a tensor-core tile: fewer cost no less


def padded(n: int) -> int:
    """Rows that a prompt of `n` tokens is computed with."""
    return next((rows for rows in (32, 64) if n <= rows), -(-n // _STEP) * _STEP)


class Room:
    """Buffers for prompts of up to `rows` tokens; each is made when it is first asked for, and kept.

    Attributes:
        span: int32 [2], the first token's slot and the one after the last token's.
        positions, token_ids: int32 [rows].
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows, self._device = rows, device
        self._inputs = torch.zeros(2 + 2 * rows, dtype=torch.int32, device=device)
        self.span, self.positions = self._inputs[:2], self._inputs[2 : 2 + rows]
        self.token_ids = self._inputs[2 + rows :]
        self._kept: dict[str, Tensor] = {}

    def place(self, token_ids: Sequence[int], positions: Sequence[int], start: int) -> None:
        """A prompt to the device, in one copy; rows that fill up hold token 0 at position 0."""
        fill = [0] * (self.rows - len(positions))
        span = (start, start + len(positions))
        self._inputs.copy_(torch.tensor([*span, *positions, *fill, *token_ids, *fill], dtype=torch.int32))

    def take(self, name: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """The buffer of that name: [rows, width], the same memory each time."""
        if name not in self._kept:
            self._kept[name] = torch.empty(self.rows, width, dtype=dtype, device=self._device)
        return self._kept[name][:rows]
