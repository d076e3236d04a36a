"""One way to misread a quantized matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llama_ckpt.oracle.integer_blocks import BlockParts

__all__ = ["Misreading"]


@dataclass(frozen=True)
class Misreading:
    """A way to misread a matrix.

    Attributes:
        kind: what is misread: "zero", "sign", "scale", "minimum", "order", "bits", "borrow".
        sentence: a clause.
        read: the parts as they are taken.
    """

    kind: str
    sentence: str
    read: Callable[[BlockParts], BlockParts]
