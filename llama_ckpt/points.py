"""The names of the points of a Llama, the record that describes a checkpoint, and what its cases are given.

A *point* is a place in the network where a tensor can be looked at. Its name is neutral: the
same in every language and program. A point inside a block carries the block's number,
`blk.3.attn_norm`; the others stand alone, `embd`, `output_norm`, `logits`. First axis = token.

A point is named here where llama.cpp has a tensor for it: dumps, captures and `compare` know these. A
checkpoint may name further points in its own record; `validate` holds those against the oracle alone.

This module imports nothing of ours, so that reading a dump costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

__all__ = [
    "ALL_BLOCK_POINTS",
    "ALL_POINTS",
    "BLOCK_INPUT",
    "BLOCK_POINTS",
    "DENSE_ONLY",
    "EXPERT_POINTS",
    "MODEL_POINTS",
    "POINTS",
    "SAMPLED",
    "Case",
    "Checkpoint",
    "Given",
    "Point",
    "block_input",
    "block_point",
    "points_in_block",
    "split_name",
]


BLOCK_INPUT = "in"
"""What stands for the block's input in `Point.reads`: the embedding, or `out` of the block before."""

SAMPLED = frozenset({"logits", "last_logits"})
"""Points that are handed on in float32 whatever the layers compute in: a choice is made from them."""


@dataclass(frozen=True)
class Point:
    """A place in the network.

    Attributes:
        name: the neutral name without a block's number.
        axes: what each axis counts, in order; the first is always the token.
        llama_cpp: the name llama.cpp gives the tensor, without `-N`.
        op: the ggml op that makes it; tells apart tensors that share a name.
        function: the oracle's function that makes it; "add" for a sum of what it reads.
        reads: the points that this function is given, in the order of its arguments.
        error_from: where the error of a correct program comes from, for the reason of the limit.
        inner: True where the function shows it to `tap` instead of returning it.
        causal: True where only keys not later than the query are judged.
    """

    name: str
    axes: tuple[str, ...]
    llama_cpp: str
    op: str
    function: str
    reads: tuple[str, ...]
    error_from: str
    inner: bool = False
    causal: bool = False


_WIDTH, _FFN = ("token", "width"), ("token", "ffn")
_Q, _KV, _KEYS = ("token", "head", "head_dim"), ("token", "kv_head", "head_dim"), ("token", "head", "key")
_ROPED = ("q_rope", "k_rope", "v")
_NORM = "one sum of squares over the width, two products an element"
_DOT = "a dot product over the width"
_TURN = "two products and a sum an element; angles in float64, so the position does not matter"
_SCORE = "a dot product over the head, with cancellation: measured against the norm"
_EXP = "exp turns a score's absolute error into a relative one"
_MIX = "the error of the probabilities, averaged over the values"
_OUT = "scores, softmax, context and a dot product over the heads"
_RESIDUAL = "attention's error beside a residual that has none"
_GLU = "two dot products over the width, exp, two products"
_DOWN = "a dot product over the feed-forward width of such products"
_BLOCK = "a whole block; its two residual sums keep most of the input exact"

# name, axes, llama.cpp's name and op; function, what it reads; where its error comes from
BLOCK_POINTS: tuple[Point, ...] = (
    Point("attn_norm", _WIDTH, "attn_norm", "MUL", "rms_norm", (BLOCK_INPUT,), _NORM),
    Point("q", _Q, "Qcur", "MUL_MAT", "qkv", ("attn_norm",), _DOT),
    Point("k", _KV, "Kcur", "MUL_MAT", "qkv", ("attn_norm",), _DOT),
    Point("v", _KV, "Vcur", "MUL_MAT", "qkv", ("attn_norm",), _DOT),
    Point("q_rope", _Q, "Qcur", "ROPE", "rope", ("q", "k"), _TURN),
    Point("k_rope", _KV, "Kcur", "ROPE", "rope", ("q", "k"), _TURN),
    Point("attn_scores", _KEYS, "kq", "MUL_MAT", "attention", _ROPED, _SCORE, inner=True, causal=True),
    Point("attn_probs", _KEYS, "kq_soft_max", "SOFT_MAX", "attention", _ROPED, _EXP, inner=True),
    Point("attn_context", ("token", "q_width"), "kqv_out", "CONT", "attention", _ROPED, _MIX, inner=True),
    Point("attn_out", _WIDTH, "attn_out", "MUL_MAT", "attention", _ROPED, _OUT),
    Point("ffn_inp", _WIDTH, "ffn_inp", "ADD", "add", (BLOCK_INPUT, "attn_out"), _RESIDUAL),
    Point("ffn_norm", _WIDTH, "ffn_norm", "MUL", "rms_norm", ("ffn_inp",), _NORM),
    Point("ffn_gate", _FFN, "ffn_gate", "MUL_MAT", "swiglu", ("ffn_norm",), _DOT, inner=True),
    Point("ffn_up", _FFN, "ffn_up", "MUL_MAT", "swiglu", ("ffn_norm",), _DOT, inner=True),
    Point("ffn_swiglu", _FFN, "ffn_swiglu", "GLU", "swiglu", ("ffn_norm",), _GLU, inner=True),
    Point("ffn_out", _WIDTH, "ffn_out", "MUL_MAT", "swiglu", ("ffn_norm",), _DOWN),
    Point("out", _WIDTH, "l_out", "ADD", "add", ("ffn_inp", "ffn_out"), _BLOCK),
)
"""The points of one block, in the order in which data flows through them."""

_ROUTED = ("ffn_norm",)
_RANK = ("token", "rank")

EXPERT_POINTS: tuple[Point, ...] = (
    Point(
        "ffn_router", ("token", "expert"), "ffn_moe_logits", "MUL_MAT", "experts", _ROUTED, _DOT, inner=True
    ),
    Point("ffn_chosen", _RANK, "ffn_moe_topk", "VIEW", "experts", _ROUTED, "a choice", inner=True),
    Point("ffn_weights", _RANK, "ffn_moe_weights_norm", "DIV", "experts", _ROUTED, _EXP, inner=True),
    Point(
        "ffn_expert_out",
        ("token", "rank", "width"),
        *("ffn_moe_down", "MUL_MAT_ID", "experts", _ROUTED, _DOWN),
        inner=True,
    ),
)
"""What a mixture's block has between `ffn_norm` and `ffn_out`; the likeliest expert's rank is 0."""

DENSE_ONLY = frozenset({"ffn_gate", "ffn_up", "ffn_swiglu"})
"""The points of a block that a mixture of experts has not: each of its experts would have its own."""


def points_in_block(*, experts: bool) -> tuple[Point, ...]:
    """The points of one block, in order, of a dense model or of a mixture of experts."""
    if not experts:
        return BLOCK_POINTS
    at = [point.name for point in BLOCK_POINTS].index("ffn_norm") + 1
    rest = tuple(
        replace(point, function="experts") if point.function == "swiglu" else point
        for point in BLOCK_POINTS[at:]
        if point.name not in DENSE_ONLY
    )
    return (*BLOCK_POINTS[:at], *EXPERT_POINTS, *rest)


ALL_BLOCK_POINTS: tuple[Point, ...] = (*points_in_block(experts=True)[:-2], *BLOCK_POINTS[-5:])
"""Every point that a block of either kind may have, in an order in which data flows through both kinds."""

_LOOKUP = "a lookup: the table's own rounding, none in float32"
_HEAD = "the last norm and a dot product over the width"

MODEL_POINTS: tuple[Point, ...] = (
    Point("embd", _WIDTH, "embd", "GET_ROWS", "embed", ("token_ids",), _LOOKUP),
    Point("output_norm", _WIDTH, "result_norm", "MUL", "output_logits", ("out",), _NORM, inner=True),
    Point("logits", ("token", "vocab"), "result_output", "MUL_MAT", "output_logits", ("out",), _HEAD),
)
"""The points outside the blocks."""

POINTS: Mapping[str, Point] = {point.name: point for point in (*MODEL_POINTS, *BLOCK_POINTS)}
"""Every point of a dense model by its neutral name without a block's number."""

ALL_POINTS: Mapping[str, Point] = {**POINTS, **{point.name: point for point in EXPERT_POINTS}}
"""The same, with those of a mixture of experts."""


def block_point(block: int, point: str) -> str:
    """The full name of a block's point: `block_point(3, "q")` is `"blk.3.q"`."""
    return f"blk.{block}.{point}"


def block_input(block: int) -> str:
    """The full name of the point that a block reads: the embedding, or the block before's `out`."""
    return "embd" if block == 0 else block_point(block - 1, "out")


def split_name(name: str) -> tuple[int | None, str]:
    """A full name's block (None outside the blocks) and point: `"blk.3.q"` gives `(3, "q")`."""
    prefix, _, rest = name.partition(".")
    number, _, point = rest.partition(".")
    # No more digits than a number of blocks has, and no other script's, which Python would read as well.
    if prefix == "blk" and number.isascii() and number.isdigit() and len(number) < 10 and point:
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


Array: TypeAlias = Any
"""A torch tensor on the device on trial, or a float64 array of numpy: the same values, asked twice."""


@runtime_checkable
class Given(Protocol):
    """What a checkpoint's `cases` are given: one prompt on one model, and every recorded tensor.

    `cases` run twice, once with torch tensors in the dtype on trial for the layer, once with float64
    arrays of the same, already rounded, values for the oracle. So they hand on what they are given and
    compute nothing. n is the number of tokens.
    """

    def __getitem__(self, point: str, /) -> Array:
        """A recorded point by its full name: `given["blk.3.q"]`, `[n, n_heads, head_dim]`.

        The axes are those of `POINTS`, also "last_logits" `[vocab]`. In the dtype on trial, or, what is in
        SAMPLED, in float32. Of a block outside `blocks` only "out" is there.

        Raises:
            KeyError: the recording has no such point.
        """

    @property
    def config(self) -> Any:
        """The model's `LlamaConfig`: n_layers, n_heads, n_kv_heads, head_dim, width, rms_norm_eps, …"""

    @property
    def weights(self) -> Any:
        """The model's weights: `token_embd` and `output` `[vocab, width]`, `output_norm` `[width]`, `blocks`.

        Each of `blocks[i]` has attn_norm, ffn_norm `[width]`; wq `[n_heads * head_dim, width]`; wk, wv
        `[n_kv_heads * head_dim, width]`; wo `[width, n_heads * head_dim]`; w_gate, w_up `[ffn, width]`;
        w_down `[width, ffn]`. The layer's may be packed, the oracle's are read as float64. A mixture of
        experts has w_router `[n_experts, width]`, and its experts' matrices under one another.
        """

    @property
    def blocks(self) -> tuple[int, ...]:
        """The numbers of the blocks that were recorded in full."""

    @property
    def token_ids(self) -> Array:
        """The prompt's tokens, `[n]` int64."""

    @property
    def positions(self) -> Array:
        """`[n]` int64, where each token stands; they may begin above 0."""

    @property
    def rope_frequencies(self) -> Array:
        """`[head_dim / 2]` float64, radians a position for each pair."""

    @property
    def dtype_option(self) -> Mapping[str, Any]:
        """`{"dtype": …}` for a layer with no input to take its dtype from; empty for the oracle."""

    @property
    def prompt(self) -> str | None:
        """The prompt's text; None where token ids were given."""

    @property
    def tokenizer(self) -> Any:
        """The model's own `Tokenizer`."""

    @property
    def model(self) -> Any:
        """What `generate` takes; the whole model, for a checkpoint that runs it from its tokens."""

    @property
    def token_id_list(self) -> list[int]:
        """`token_ids` as plain integers."""

    @property
    def first_position(self) -> int:
        """The position of the first token."""

    @property
    def n_choices(self) -> int:
        """How many tokens to generate; 0: none."""

    @property
    def sampling(self) -> Sequence[Mapping[str, Any]]:
        """Keyword arguments for `softmax`, one record a setting."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint module says of itself; it stands there as `CHECKPOINT`.

    Attributes:
        id: "0", "1", "1B", …; the ladder's order is the order of the modules' names.
        title: a few words.
        function: the layer function.
        stands_on: ids of the checkpoints whose failure explains a failure here.
        points: neutral point names (no block number) that this checkpoint answers for. One that `POINTS`
            does not have is the checkpoint's own: no dump holds it, the oracle alone judges it.
        max_abs: largest absolute difference from a float32 llama.cpp dump, times
            max(1, max|reference|); 0.0 means exact.
        cases: given a recording, the calls with recorded inputs.
        torch_function: the torch function it stands on, and why (one sentence, for the docs).
        mistakes: what people get wrong here, a sentence each, for `explain`.
        error_from: for its own points, where the error of a correct program comes from: the limit's reason.
        experts: True for mixtures of experts alone, False for dense models alone; None for every model.
    """

    id: str
    title: str
    function: Callable[..., Any]
    stands_on: tuple[str, ...]
    points: tuple[str, ...]
    max_abs: float
    cases: Callable[[Given], Iterable[Case]]
    torch_function: str
    mistakes: tuple[str, ...]
    error_from: Mapping[str, str] = field(default_factory=dict, hash=False)
    experts: bool | None = None

    def holds_for(self, n_experts: int) -> bool:
        """Whether a model of so many experts, 0 of a dense one, has what it computes."""
        return self.experts is None or self.experts == (n_experts > 0)
