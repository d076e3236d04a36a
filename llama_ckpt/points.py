"""The names of the points of a Llama, and the record that describes a checkpoint.

A *point* is a place in the network where a tensor can be looked at. Its name is neutral: the
same in every language and program. A point inside a block carries the block's number,
`blk.3.attn_norm`; the others stand alone, `embd`, `output_norm`, `logits`. First axis = token.

This module imports nothing of ours, so that reading a dump costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "BLOCK_POINTS",
    "MODEL_POINTS",
    "POINTS",
    "Case",
    "Checkpoint",
    "Point",
    "block_point",
    "split_name",
]


@dataclass(frozen=True)
class Point:
    """A place in the network.

    Attributes:
        name: the neutral name without a block's number.
        axes: what each axis counts, in order; the first is always the token.
        llama_cpp: the name llama.cpp gives the tensor, without `-N`.
        op: the ggml op that makes it; tells apart tensors that share a name.
        causal: True where only keys not later than the query are judged.
    """

    name: str
    axes: tuple[str, ...]
    llama_cpp: str
    op: str
    causal: bool = False


BLOCK_POINTS: tuple[Point, ...] = (
    Point("attn_norm", ("token", "width"), "attn_norm", "MUL"),
    Point("q", ("token", "head", "head_dim"), "Qcur", "MUL_MAT"),
    Point("k", ("token", "kv_head", "head_dim"), "Kcur", "MUL_MAT"),
    Point("v", ("token", "kv_head", "head_dim"), "Vcur", "MUL_MAT"),
    Point("q_rope", ("token", "head", "head_dim"), "Qcur", "ROPE"),
    Point("k_rope", ("token", "kv_head", "head_dim"), "Kcur", "ROPE"),
    Point("attn_scores", ("token", "head", "key"), "kq", "MUL_MAT", causal=True),
    Point("attn_probs", ("token", "head", "key"), "kq_soft_max", "SOFT_MAX"),
    Point("attn_context", ("token", "q_width"), "kqv_out", "CONT"),
    Point("attn_out", ("token", "width"), "attn_out", "MUL_MAT"),
    Point("ffn_inp", ("token", "width"), "ffn_inp", "ADD"),
    Point("ffn_norm", ("token", "width"), "ffn_norm", "MUL"),
    Point("ffn_gate", ("token", "ffn"), "ffn_gate", "MUL_MAT"),
    Point("ffn_up", ("token", "ffn"), "ffn_up", "MUL_MAT"),
    Point("ffn_swiglu", ("token", "ffn"), "ffn_swiglu", "GLU"),
    Point("ffn_out", ("token", "width"), "ffn_out", "MUL_MAT"),
    Point("out", ("token", "width"), "l_out", "ADD"),
)
"""The points of one block, in the order in which data flows through them."""

MODEL_POINTS: tuple[Point, ...] = (
    Point("embd", ("token", "width"), "embd", "GET_ROWS"),
    Point("output_norm", ("token", "width"), "result_norm", "MUL"),
    Point("logits", ("token", "vocab"), "result_output", "MUL_MAT"),
)
"""The points outside the blocks."""

POINTS: Mapping[str, Point] = {point.name: point for point in (*MODEL_POINTS, *BLOCK_POINTS)}
"""Every point by its neutral name without a block's number."""


def block_point(block: int, point: str) -> str:
    """The full name of a block's point: `block_point(3, "q")` is `"blk.3.q"`."""
    return f"blk.{block}.{point}"


def split_name(name: str) -> tuple[int | None, str]:
    """A full name's block (None outside the blocks) and point: `"blk.3.q"` gives `(3, "q")`."""
    prefix, _, rest = name.partition(".")
    number, _, point = rest.partition(".")
    if prefix == "blk" and number.isdigit() and point:
        return int(number), point
    return None, name


@dataclass(frozen=True)
class Case:
    """One call of a layer function with recorded inputs, and the points it answers for.

    Attributes:
        function: the name of the function, the same in the checkpoint's module and in the oracle.
        arguments: keyword arguments, all taken from the recording (arrays, weights, plain values).
        returns: the full names of the points that the function returns, in order.
        taps: the function's own tap names (as it calls `tap(name, tensor)`) to full point names.
    """

    function: str
    arguments: Mapping[str, Any]
    returns: tuple[str, ...]
    taps: Mapping[str, str] = field(default_factory=dict)

    def run(
        self,
        function: Callable[..., Any],
        *,
        taps: bool = True,
        keep: Callable[[Any, str], Any] = lambda value, where: value,
    ) -> dict[str, Any]:
        """Call a function with the case's arguments; what it returns and shows, by full point name.

        Args:
            function: the layer's, the oracle's, or one like them.
            taps: whether it is asked to show its inner points, too.
            keep: gets each value and where it came from; what it returns is kept.

        Raises:
            ValueError: another number of values than the case names.
        """
        seen: dict[str, Any] = {}

        def tap(point: str, value: Any) -> None:
            if point in self.taps:
                seen[self.taps[point]] = keep(value, f"tap({point!r}, …)")

        returned = function(**self.arguments, **({"tap": tap} if self.taps and taps else {}))
        results = returned if isinstance(returned, tuple) else (returned,)
        kept = [keep(one, f"return value {i + 1}") for i, one in enumerate(results)]
        return {**seen, **dict(zip(self.returns, kept, strict=True))}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint module says of itself; it stands there as `CHECKPOINT`.

    Attributes:
        id: "0", "1", "1B", …; the ladder's order is the order of the modules' names.
        title: a few words.
        function: the layer function.
        stands_on: ids of the checkpoints whose failure explains a failure here.
        points: neutral point names (no block number) that this checkpoint answers for.
        max_abs: largest absolute difference from a float32 llama.cpp dump, times
            max(1, max|reference|); 0.0 means exact.
        cases: given a recording (arrays of torch, or float64 of numpy), the calls with recorded inputs.
        torch_function: the torch function it stands on, and why (one sentence, for the docs).
        mistakes: what people get wrong here, a sentence each, for `explain`.
    """

    id: str
    title: str
    function: Callable[..., Any]
    stands_on: tuple[str, ...]
    points: tuple[str, ...]
    max_abs: float
    cases: Callable[[Any], Iterable[Case]]
    torch_function: str
    mistakes: tuple[str, ...]
