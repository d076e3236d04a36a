"""Ways to misread the small integers that a K-quant's groups have for scales and minima. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.misreading import Misreading
from llama_ckpt.oracle.integer_blocks import BlockParts

__all__ = ["small_scales"]

Array: TypeAlias = NDArray[Any]


def small_scales(parts: BlockParts) -> Iterator[Misreading]:
    """Of the small integers that a super-block's groups have for scales."""
    each = parts.integers.shape[1] // 256
    groups = parts.scale.shape[1] // max(each, 1)

    def small(change: Callable[[Array], Array]) -> Callable[[BlockParts], BlockParts]:
        def read(p: BlockParts) -> BlockParts:
            assert p.scales is not None and p.d is not None
            blocks = p.scales.reshape(len(p.scales), -1, groups)
            changed = change(blocks).reshape(p.scales.shape)
            return replace(p, scale=p.d * changed)

        return read

    def without_top(blocks: Array) -> Array:
        kept = blocks.copy()
        kept[..., groups // 2 :] = blocks[..., groups // 2 :].astype(np.int64) & 15
        return kept

    yield Misreading("scale", "the groups' own scales are not applied", small(np.ones_like))
    yield Misreading("scale", "the groups' scales are those in reverse", small(lambda b: b[..., ::-1]))
    for by, whose in ((-1, "next"), (1, "previous")):
        said = f"each group has the small scale of the {whose} one in its block of 256"
        yield Misreading("scale", said, small(partial(np.roll, shift=by, axis=-1)))
    if parts.minima is not None:
        said = "the top bits of the scales of the second half of each block of 256 are lost"
        yield Misreading("scale", said, small(without_top))
        for what, change in (
            ("the top bits of those of the second half of each block of 256 are lost", without_top),
            ("their top two bits are lost", lambda b: np.asarray(b.astype(np.int64) & 15)),
            ("they are those in reverse", lambda b: b[..., ::-1]),
        ):
            yield Misreading("scale", f"of the groups' scales and minima {what}", _of_both(change, groups))
        yield Misreading("scale", "the groups' scales and minima are exchanged", _scales_for_minima)
        yield Misreading("scale", "d and dmin are exchanged", _d_for_dmin)
    else:
        said = "the groups' scales are read without their sign"
        yield Misreading("scale", said, small(lambda b: np.where(b < 0, b + 256, b)))
        pairs = "each two groups of 16 share the scale of the first"
        yield Misreading("scale", pairs, small(lambda b: np.repeat(b[..., ::2], 2, axis=-1)))


def _of_both(change: Callable[[Array], Array], groups: int) -> Callable[[BlockParts], BlockParts]:
    """The small integers of scales and of minima changed alike: they lie in the same twelve bytes."""

    def read(p: BlockParts) -> BlockParts:
        assert p.scales is not None and p.minima is not None and p.d is not None and p.dmin is not None
        scales, minima = (
            change(one.reshape(len(one), -1, groups)).reshape(one.shape) for one in (p.scales, p.minima)
        )
        return replace(p, scale=p.d * scales, minimum=-p.dmin * minima)

    return read


def _scales_for_minima(p: BlockParts) -> BlockParts:
    assert p.scales is not None and p.minima is not None and p.d is not None and p.dmin is not None
    return replace(p, scale=p.d * p.minima, minimum=-p.dmin * p.scales)


def _d_for_dmin(p: BlockParts) -> BlockParts:
    assert p.scales is not None and p.minima is not None and p.d is not None and p.dmin is not None
    return replace(p, scale=p.dmin * p.scales, minimum=-p.d * p.minima)
