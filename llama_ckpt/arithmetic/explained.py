"""How much of a recorded program's error its declared arithmetic explains, place by place.

Each point is computed twice from the recorded points that its step reads: exactly, and with the roundings.
What the program is off by splits into what the arithmetic costs and what is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.steps import STEPS, computed, step_of
from llama_ckpt.oracle.patched_oracle import RIGHT, PatchedOracle
from llama_ckpt.points import POINTS, block_input, block_point

__all__ = ["Explained", "explained"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Explained:
    """One point. The numbers are distances, divided by the norm of the exact tensor.

    Attributes:
        name: full, such as "blk.0.q".
        error: of theirs from the exact one.
        costs: of the rounded oracle's from the exact one.
        left: of theirs from the rounded oracle's.
    """

    name: str
    error: float
    costs: float
    left: float

    @property
    def share(self) -> float:
        """Of the error's square, the part that is explained."""
        return 1 - (self.left / self.error) ** 2 if self.error else 1.0


def explained(
    recorded: Mapping[str, Any],
    rounded: PatchedOracle,
    *,
    weights: Any,
    config: Any,
    positions: NDArray[np.int64],
) -> Iterator[Explained]:
    """Every point whose step reads recorded points, in the order of the data's flow.

    Args:
        recorded: arrays by full point name, first axis the token.
        rounded: the oracle that rounds as declared.
        weights: the model's, as the oracle takes them.
        config: its configuration.
        positions: `[n]`.
    """
    for number in range(config.n_layers):
        yield from _block(recorded, rounded, number, weights, config, positions)
    if "output_norm" in recorded and "logits" in recorded:
        x = np.asarray(recorded["output_norm"], np.float64)
        theirs = np.asarray(recorded["logits"], np.float64)
        yield _split("logits", theirs, *(by.head(x, weights.output) for by in (RIGHT, rounded)))


def _block(
    recorded: Mapping[str, Any],
    rounded: PatchedOracle,
    number: int,
    weights: Any,
    config: Any,
    positions: NDArray[np.int64],
) -> Iterator[Explained]:
    names = {point: block_point(number, point) for point in STEPS} | {"in": block_input(number)}
    held = {
        point: np.asarray(recorded[name], np.float64) for point, name in names.items() if name in recorded
    }
    hidden = ~RIGHT.visible(positions, None)[:, None, :]
    of_block: Any = None
    for point in STEPS:
        if point not in held or any(name not in held for name in step_of(point, held)[0]):
            continue
        of_block = of_block or weights.blocks[number]
        options = {"weights": of_block, "config": config, "positions": positions}
        tensors = [held[point], *(computed(by, point, held, **options) for by in (RIGHT, rounded))]
        if POINTS[point].causal:
            tensors = [np.where(hidden, 0.0, x) for x in tensors]
        yield _split(names[point], *tensors)


def _split(name: str, theirs: Array, exact: Array, rounded: Array) -> Explained:
    norm = float(np.linalg.norm(exact)) or 1.0
    error, costs, left = (
        float(np.linalg.norm(x - y)) / norm for x, y in ((theirs, exact), (rounded, exact), (theirs, rounded))
    )
    return Explained(name, error, costs, left)
