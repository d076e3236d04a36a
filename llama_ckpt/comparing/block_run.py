"""One block in float64, each step on the nearest points that were recorded; computed when it is asked for.

    in -> attn_norm -> q, k, v -> q_rope, k_rope -> scores -> probs -> context -> attn_out
       -> ffn_inp = in + attn_out
       -> ffn_norm -> gate, up -> swiglu -> ffn_out -> out = ffn_inp + ffn_out

What a step reads is theirs where they recorded it, and computed from what is before where they did not. So
the error of a point is the one made since the nearest recorded points, and rounding may have left there what
the steps since may leave: `block_spreads`. With nothing of theirs it is the oracle's own run of the block.
The steps are those of `oracle.block`, which a test holds to be equal. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.attention import Attention
from llama_ckpt.comparing.dataflow import Flow
from llama_ckpt.diagnose.patched_oracle import RIGHT, answers
from llama_ckpt.judging.near_ties import Choosing, Rows, followed, near, seen_by
from llama_ckpt.judging.spread import Spread
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.c06b_experts import routed, weighted_sum, weights_of
from llama_ckpt.points import ALL_POINTS, BLOCK_INPUT, Case, block_point, split_name
from llama_ckpt.weights.tensor_names import BIAS_OF

__all__ = ["ATTENDED", "MATRICES", "WEIGHT_OF", "BlockRun", "Given"]

Array: TypeAlias = NDArray[Any]

MATRICES = ("attn_scores", "attn_probs")
"""The largest tensors that there are."""

ATTENDED = (*MATRICES, "attn_context")
"""What is computed from q, k and v a few queries at a time."""

WEIGHT_OF = {
    "attn_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "q": "wq",
    "k": "wk",
    "v": "wv",
    "attn_out": "wo",
    "ffn_router": "w_router",
    "ffn_gate": "w_gate",
    "ffn_up": "w_up",
    "ffn_out": "w_down",
}
"""The weight that a point is made with."""


NORMS = ("attn_norm", "ffn_norm")

KEPT = 1 << 20
"""Their tensors of up to so many elements are kept in float64, since several steps read them."""


@dataclass(frozen=True)
class Given:
    """What goes into a block.

    Attributes:
        start: `[n, width]` float64; None where nobody knows it.
        far: it was not recorded, but computed from the end of another block: what rounding left there
            is no longer told by the steps of this block.
        off: how far rounding may have put a start that is not far, None for not at all.
        ties: the tokens that may have gone through other experts before, `[n]`; None for none.
    """

    start: Array | None
    far: bool = False
    off: Spread | None = None
    ties: Rows | None = None


TO_THE_CONTEXT = ("attn_norm", "q", "k", "v", "q_rope", "k_rope", *MATRICES)
"""The points of a block before the context, which later ones do not read."""


@dataclass(frozen=True, eq=False)
class BlockRun(Mapping[str, Array]):
    """The points of one block by neutral name, on what was recorded of it; those that can be computed.

    Attributes:
        flow: the model's numbers, the positions, the dtype.
        number: of the block.
        given: what goes in.
        weights: the block's; None without a model: then only what needs none is computed.
        theirs: their tensors by neutral name, those that can be relied on.
        choosing: in a mixture of experts, what is known of the choice.
    """

    in_parts: ClassVar[bool] = True
    """Whether attention is computed a few queries at a time."""

    flow: Flow
    number: int
    given: Given
    weights: Any
    theirs: Mapping[str, Array]
    choosing: Choosing = Choosing()
    _computed: dict[str, Array | None] = field(default_factory=dict)
    _floats: dict[str, Array] = field(default_factory=dict)
    _ties: dict[str, Rows | None] = field(default_factory=dict)

    def __getitem__(self, point: str) -> Array:
        found = self.compute(point)
        if found is None:
            raise KeyError(point)
        return found

    def __contains__(self, point: object) -> bool:
        return isinstance(point, str) and self._can_be_made(point)

    def __iter__(self) -> Iterator[str]:
        return (point.name for point in self.flow.points if point.name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def known(self, point: str) -> Array | None:
        """Theirs where they recorded it, else what is computed; None where neither can be."""
        if point == BLOCK_INPUT:
            return self.given.start
        if point not in self.theirs:
            return self.compute(point)
        if point in self._floats:
            return self._floats[point]
        floats = np.asarray(self.theirs[point], np.int64 if point == "ffn_chosen" else np.float64)
        if floats.size <= KEPT:
            self._floats[point] = floats
        return floats

    def compute(self, point: str) -> Array | None:
        """A point from what its step reads; None where that, or a weight, is not known."""
        if point not in self._computed:
            self._computed[point] = self._made(point) if self._can_be_made(point) else None
        return self._computed[point]

    def _can_be_made(self, point: str) -> bool:
        needs = self.is_product(point) or point in (*NORMS, "q_rope", "k_rope", "ffn_expert_out")
        if point in ATTENDED:
            return self.attention is not None
        if needs and self.weights is None:
            return False
        return all(self.known(read) is not None for read in self.flow.reads(point))

    def _made(self, point: str) -> Array:
        if point in ATTENDED:
            return self._attended(point)
        read = self.read(point)
        if point in NORMS:
            return oracle.rms_norm(read[0], self.weight(point), eps=self.flow.config.rms_norm_eps)
        if self.is_product(point):
            product: Array = np.matmul(read[0], self.weight(point).T)
            if (bias := self.bias(point)) is not None:
                product = product + bias
            heads = self._heads(point)
            return product if heads is None else product.reshape(len(product), heads, -1)
        if point in ("q_rope", "k_rope"):
            none = read[0][:, :0]
            larger = oracle.rope_magnitude(self.flow.config)
            return oracle.rope(read[0], none, self.flow.positions, self.frequencies, magnitude=larger)[0]
        if point == "ffn_swiglu":
            return _swiglu(*read)
        if ALL_POINTS[point].function == "add":
            return np.asarray(read[0] + read[1])
        return self._by_experts(point, read) if self.flow.experts else self._by_its_function(point)

    def _by_experts(self, point: str, read: list[Array]) -> Array:
        """A point of a mixture of experts that is no product: what is chosen, and what that makes."""
        if point == "ffn_chosen":
            chosen: Array = routed(read[0], self.flow.n_used)[0]
            theirs = self.choosing.theirs
            return chosen if theirs is None else followed(chosen, theirs, read[0], self.scores_off())
        if point == "ffn_weights":
            return weights_of(*read)
        if point == "ffn_out":
            return weighted_sum(read[1], read[0])
        if point != "ffn_expert_out":
            return self._by_its_function(point)
        w = self.weights
        made: Array = RIGHT.by_experts(*read, w.w_gate, w.w_up, w.w_down, len(w.w_router))
        return made

    def is_product(self, point: str) -> bool:
        """Whether a point is a product with a weight."""
        return point in WEIGHT_OF and point not in NORMS and not (self.flow.experts and point == "ffn_out")

    # -- where a mixture may choose another way -------------------------------------------------------

    def scores_off(self) -> Array:
        """What a router's score may be off by, `[n]`."""
        off, router = self.choosing.off, self.known("ffn_router")
        return np.zeros(0 if router is None else len(router)) if off is None else off

    def near_ties(self) -> Rows | None:
        """The tokens whose choice in this block may fall another way; None where there are no experts."""
        router = self.known("ffn_router") if self.flow.experts else None
        return None if router is None else near(router, self.flow.n_used, self.scores_off())

    def unjudged(self, point: str) -> Rows | None:
        """The tokens that nobody can judge at a point, as what it is made of may be another expert's."""
        if not self.flow.experts:
            return None
        if point not in self._ties:
            self._ties[point] = self._unjudged(point)
        return self._ties[point]

    def _unjudged(self, point: str) -> Rows | None:
        found: Rows | None = None
        for read in self.flow.reads(point):
            if read in self.theirs:
                continue
            came = self.given.ties if read == BLOCK_INPUT else self.unjudged(read)
            if read == "ffn_chosen" and self.choosing.theirs is None:
                found = _either(found, self.near_ties())
            found = _either(found, came)
        if found is None or not found.any():
            return None
        return seen_by(found, self.flow.positions) if point in ATTENDED else found

    def read(self, point: str) -> list[Array]:
        """What the step of a point reads, where all of it is known."""
        found = [self.known(one) for one in self.flow.reads(point)]
        return [one for one in found if one is not None]

    def _by_its_function(self, point: str) -> Array:
        """A point that is not among those above: as its function shows it."""
        case = self.case(point)
        assert case is not None, point
        return answers(getattr(oracle, case.function), case)[block_point(self.number, point)]

    @cached_property
    def attention(self) -> Attention | None:
        """On the known q, k and v; None where one is not known."""
        q, k, v = (self.known(point) for point in ("q_rope", "k_rope", "v"))
        if q is None or k is None or v is None:
            return None
        theirs = self.theirs.get("attn_scores"), self.theirs.get("attn_probs")
        return Attention(q, k, v, self.flow.positions, self.flow.dtype, *theirs)

    def _attended(self, point: str) -> Array:
        assert self.attention is not None
        if point == "attn_context":
            return self.attention.context()
        make = self.attention.scores_of if point == "attn_scores" else self.attention.probs_of
        n, heads, _ = self.attention.q.shape
        made = np.empty((n, heads, n))
        for part in self.attention.whole_parts():
            made[part.queries] = make(part).transpose(1, 0, 2)
        return made

    def is_far(self, point: str) -> bool:
        """Whether whole blocks lie between a computed point and the nearest recorded ones."""
        return self.given.far and self.reaches_input(point)

    def reaches_input(self, point: str) -> bool:
        """Whether a way from a point back to the block's input has nothing recorded on it."""
        return any(
            read == BLOCK_INPUT or (read not in self.theirs and self.reaches_input(read))
            for read in self.flow.reads(point)
        )

    # -- calls of the oracle, for whoever tries bugs ---------------------------------------------------

    def case(self, point: str) -> Case | None:
        """The call of the oracle that answers for a point; None without a model, or across whole blocks."""
        if self.weights is None or self.is_far(point):
            return None
        if ALL_POINTS[point].function == "add":
            return None if self.given.start is None else self.whole_case()
        step = self.flow.step(point)
        inputs = [self.known(read) for read in step.inputs]
        if any(one is None for one in inputs):
            return None
        return self.flow.case(self.number, step, [one for one in inputs if one is not None], self.weights)

    def call(self, point: str) -> tuple[Case, Self] | None:
        """That call, and what it answers at its own points whatever was recorded of these."""
        case = self.case(point)
        if case is None:
            return None
        inside = {split_name(name)[1] for name in (*case.taps.values(), *case.returns)}
        before = {name: x for name, x in self.theirs.items() if name not in inside}
        return case, self.on(before)

    def on(self, theirs: Mapping[str, Array]) -> Self:
        """The same block on others of their tensors."""
        return self._anew(theirs=theirs)

    def choosing_by(self, choosing: Choosing) -> Self:
        """The same block of a mixture, which knows more of the choice."""
        return self._anew(choosing=choosing)

    def forget(self) -> None:
        """Let go of all that was computed but the block's end; what is asked for again is computed again."""
        for point in [point for point in self._computed if point != "out"]:
            del self._computed[point]
        self._floats.clear()
        self.forget_attention()

    def forget_attention(self) -> None:
        """Let go of what leads to the context, theirs too; what is asked for again is put together again."""
        for point in TO_THE_CONTEXT:
            self._computed.pop(point, None)
            self._floats.pop(point, None)
        self.__dict__.pop("attention", None)

    def let_go_of_parts(self) -> None:
        """Let go of what attention kept of scores and probabilities."""
        if "attention" in self.__dict__ and self.attention is not None:
            self.attention.let_go()

    def given_another(self, given: Given) -> Self:
        """The same block on something else that goes in."""
        return self._anew(given=given)

    def _anew(self, **changed: Any) -> Self:
        return replace(self, **changed, _computed={}, _floats={}, _ties={})

    def whole_case(self) -> Case:
        """The call of the whole block on its input."""
        assert self.given.start is not None
        return self.flow.block_case(self.number, self.given.start, self.weights)

    # -- numbers ---------------------------------------------------------------------------------------

    def weight(self, point: str) -> Any:
        """What a point is made with."""
        return getattr(self.weights, WEIGHT_OF[point])

    def bias(self, point: str) -> Any:
        """What is added to the product that makes a point; None for most models."""
        return getattr(self.weights, BIAS_OF.get(WEIGHT_OF[point], ""), None)

    @cached_property
    def frequencies(self) -> Array:
        """Of RoPE, `[head_dim / 2]`."""
        return oracle.rope_frequencies(self.flow.config)

    def _heads(self, point: str) -> int | None:
        config = self.flow.config
        return {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}.get(point)


def _either(a: Rows | None, b: Rows | None) -> Rows | None:
    return b if a is None else a if b is None else a | b


def _swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up."""
    e = np.exp(-np.abs(gate))  # never above 1: exp(-gate) itself would overflow far below 0
    product: Array = np.where(gate >= 0, 1.0, e)
    product /= 1.0 + e
    product *= gate
    product *= up
    return product
