"""What rounding may leave in a tensor: how far each element may be off, and which way errors may point."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.turns import Angles

__all__ = ["RowSums", "Spread"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class RowSums:
    """What the errors of a row add up to, as deviations, `[rows]`: rounding that went through a product.

    Attributes:
        along: the sum of each error times the exact element.
        plain: the sum of the errors.
    """

    along: Array
    plain: Array

    def and_of(self, other: RowSums) -> RowSums:
        """Both, as chance adds them up."""
        return RowSums(np.hypot(self.along, other.along), np.hypot(self.plain, other.plain))


@dataclass(frozen=True)
class Spread:
    """What rounding may leave in a tensor.

    Attributes:
        deviation: of each element, absolute, of the tensor's shape or one that broadcasts to it.
        most: what comes on top, at most, with no chance about it: RoPE's angles; None where nothing does.
        lean: the most that `most` may move the sum of all elements by: a wrong angle turns every head alike.
        shared: a relative deviation that all of a row have in common, `[rows, 1]` or one for all.
        columns: one that all of a column have in common.
        everywhere: one that all elements have in common: a constant that is rounded.
        equal: what equal numbers of a step's input, rounded alike, come to along all rows and in their sum,
            squares, beside what they come to apart.
        mode: part of the deviation, signed: what all elements of a row are off by together, by chance more or
            less, but all of them at once; None where they are not.
        apart: the rest of it, where that is known by itself.
        aligned: all of it came through several products, and may point wherever the tensor does.
        sums: what each row's errors may come to along the row and in sum; None where each element errs apart.
        angles: of a rotation, what its angles may be off by.
        onward: of the next step's product what these errors come to in its rows' sums, where that is known.
    """

    deviation: Array
    most: Array | None = None
    lean: float = 0.0
    shared: Any = None
    columns: float = 0.0
    everywhere: float = 0.0
    equal: tuple[float, float] = (0.0, 0.0)
    mode: Array | None = None
    apart: Array | None = None
    aligned: bool = False
    sums: RowSums | None = None
    onward: RowSums | None = None
    angles: Angles | None = None

    @property
    def whole(self) -> Array:
        """All in one, for a step that reads the tensor."""
        return self.deviation if self.most is None else np.hypot(self.deviation, self.most)

    @property
    def together(self) -> Array | None:
        """Of the mode what came with what a step read; its own is in the deviation whole."""
        return None if self.apart is not None else self.mode

    @property
    def beside_mode(self) -> Array:
        """What a product adds up as chance does, and what may be on top; the mode goes through it as one."""
        if self.apart is None or self.most is None:
            return self.whole if self.apart is None else self.apart
        return np.hypot(self.apart, self.most)

    def times(self, factor: float) -> Spread:
        """Of the tensor times a number; shares of it stay."""

        def scaled(array: Any) -> Any:
            return None if array is None else factor * array

        def scaled_sums(sums: RowSums | None, power: int) -> RowSums | None:
            return None if sums is None else RowSums(factor**power * sums.along, factor * sums.plain)

        return replace(
            self,
            deviation=factor * self.deviation,
            most=scaled(self.most),
            lean=factor * self.lean,
            mode=scaled(self.mode),
            apart=scaled(self.apart),
            sums=scaled_sums(self.sums, 2),
            onward=scaled_sums(self.onward, 1),
            equal=(factor**4 * self.equal[0], factor**2 * self.equal[1]),
        )

    def in_float32(self) -> Spread:
        """The same, its arrays of a tensor's size in float32."""

        def narrow(array: Any) -> Any:
            return array.astype(np.float32) if np.ndim(array) > 1 else array

        names = ("deviation", "most", "mode", "apart")
        return replace(self, **{name: narrow(getattr(self, name)) for name in names})

    def last_row(self) -> Spread:
        """Of the last row alone."""
        return self.rows(slice(-1, None))

    def rows(self, part: Any) -> Spread:
        """Of some rows; what broadcasts over all of them stays."""

        def cut(array: Any) -> Any:
            return array[part] if np.ndim(array) > 1 and len(array) > 1 else array

        def cut_sums(sums: RowSums | None) -> RowSums | None:
            return None if sums is None else RowSums(sums.along[part], sums.plain[part])

        n = len(self.deviation) if np.ndim(self.deviation) > 1 else 1
        share = len(np.arange(n)[part]) / n if n > 1 else 1.0
        return replace(
            self,
            deviation=cut(self.deviation),
            most=cut(self.most),
            shared=cut(self.shared),
            mode=cut(self.mode),
            apart=cut(self.apart),
            sums=cut_sums(self.sums),
            equal=(share**2 * self.equal[0], share**2 * self.equal[1]),
            onward=cut_sums(self.onward),
            angles=None if self.angles is None else self.angles.rows(part),
        )
