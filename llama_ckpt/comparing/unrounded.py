"""What declared roundings come to in a whole run: the last blocks again, without them.

Where a program rounds on purpose, float32's last bit decides now and then which of two neighbours is taken,
and a right program's run parts from another's by as much as the roundings cost. That cost is how far the same
blocks are apart with and without them, over the block itself and the one before it. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.block_run import BlockRun, Given
from llama_ckpt.comparing.dataflow import Flow
from llama_ckpt.comparing.head_run import HeadRun
from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.rounded_run import parted

__all__ = ["Unrounded"]

Array: TypeAlias = NDArray[Any]


@dataclass
class Unrounded:
    """The blocks of a declared run, without the roundings.

    Attributes:
        flow: the model's numbers, the positions, the dtype; weights: the model's.
    """

    flow: Flow
    weights: Any
    _starts: dict[int, Array] = field(default_factory=dict)
    _made: dict[int | None, Mapping[str, Array]] = field(default_factory=dict)

    def enter(self, number: int, start: Array) -> None:
        """Go on to a block, into which this goes in the declared run."""
        self._starts = {n: x for n, x in self._starts.items() if n == number - 1} | {number: start}
        self._made = {}

    def widened(
        self, limit: Limit, o: Array, block: int | None, point: str, mask: Any, *, last: bool
    ) -> Limit:
        """A total error's limit, no less than what the roundings cost up to a point.

        Args:
            o: the declared run's; block: None for the points after the blocks.
            last: logits are those of the last token alone.
        """
        if not self._starts:  # before the first block nothing has come together
            return limit
        made = self._points(block)[point]
        return parted(limit, o, made[-1:] if last else made, point, mask)

    def _points(self, block: int | None) -> Mapping[str, Array]:
        """Of the block that was entered last, or of what comes after it."""
        if block not in self._made:
            number = max(self._starts)
            if block is None:
                end = Given(self._points(number)["out"])
                self._made[None] = HeadRun(end, self.weights, self.flow.config, self.flow.dtype, {})
            else:
                start = self._starts[min(self._starts)]
                if number - 1 in self._starts:
                    start = self._run(number - 1, start)["out"]
                self._made[block] = self._run(number, start)
        return self._made[block]

    def _run(self, number: int, start: Array) -> BlockRun:
        return BlockRun(self.flow, number, Given(np.asarray(start)), self.weights.blocks[number], {})
