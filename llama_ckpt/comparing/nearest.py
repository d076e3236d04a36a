"""Which recorded points a point is computed from, which lie between unseen, and what to record next.

A step is judged on the nearest points before it that were recorded. In a whole dump these are what its
step reads; in a sparse one they may be whole blocks away, and an error is then made somewhere between. Next
is recorded what leaves least to search whichever way it turns out. Names only, no tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from llama_ckpt.points import (
    ALL_POINTS,
    BLOCK_INPUT,
    MODEL_POINTS,
    block_input,
    block_point,
    points_in_block,
    split_name,
)

__all__ = ["NOTHING", "DataFlow", "Nearest", "step_reads"]

FINER: Mapping[str, tuple[str, ...]] = {
    "q_rope": ("q",),
    "k_rope": ("k",),
    "attn_scores": ("q_rope", "k_rope"),
    "attn_probs": ("attn_scores",),
    "attn_context": ("attn_probs", "v"),
    "attn_out": ("attn_context",),
    "ffn_swiglu": ("ffn_gate", "ffn_up"),
    "ffn_out": ("ffn_swiglu",),
    "logits": ("output_norm",),
}
"""What a point is made from, where its function makes several points one after the other."""

OF_EXPERTS: Mapping[str, tuple[str, ...]] = {
    "ffn_chosen": ("ffn_router",),
    "ffn_weights": ("ffn_router", "ffn_chosen"),
    "ffn_expert_out": ("ffn_norm", "ffn_chosen"),
    "ffn_out": ("ffn_weights", "ffn_expert_out"),
}
"""The same in a mixture of experts, where it is another."""

BESIDE = frozenset({"attn_scores", "attn_probs"})
"""Large tensors, which are recorded next only where no other tells as much."""


def step_reads(point: str, *, experts: bool = False) -> tuple[str, ...]:
    """The points that the step which makes `point` reads, by neutral name.

    Args:
        experts: of a mixture of experts.
    """
    found = OF_EXPERTS.get(point) if experts else None
    return found or FINER.get(point, ALL_POINTS[point].reads)


@dataclass(frozen=True)
class Nearest:
    """What a point was computed from.

    Attributes:
        recorded: the nearest recorded points before it, in the order of the data's flow.
        unseen: what lies between these and the point and was not recorded, the point itself last.
        from_tokens: a way back to the tokens has nothing recorded on it.
    """

    recorded: tuple[str, ...]
    unseen: tuple[str, ...]
    from_tokens: bool

    @property
    def sources(self) -> tuple[str, ...]:
        """Where what is unseen begins, as a reader is told: points, or the tokens."""
        return (*(("the tokens",) if self.from_tokens else ()), *self.recorded)


NOTHING = Nearest((), (), False)
"""Of a point of which it was not asked."""


@dataclass(frozen=True)
class DataFlow:
    """The points of a model of `n_layers` blocks, each with what it reads; `experts`: of a mixture."""

    n_layers: int
    experts: bool = False

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every point by its full name, in the order of the data's flow."""
        inside = [block_point(block, point) for block in range(self.n_layers) for point in self.inside]
        return ("embd", *inside, *(p.name for p in MODEL_POINTS if p.name != "embd"))

    @property
    def inside(self) -> tuple[str, ...]:
        """The neutral names of a block's points."""
        return tuple(point.name for point in points_in_block(experts=self.experts))

    def step_reads(self, point: str) -> tuple[str, ...]:
        """The points that a step reads, by neutral name."""
        return step_reads(point, experts=self.experts)

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Where each point stands in that order."""
        return {name: place for place, name in enumerate(self.names)}

    def reads(self, name: str) -> tuple[str, ...]:
        """The full names of what the point's step reads; nothing for `embd`, which is looked up."""
        block, point = split_name(name)
        if point == "embd":
            return ()
        if block is None:
            last = block_point(self.n_layers - 1, "out")
            return tuple(last if read == "out" else read for read in self.step_reads(point))
        inputs = block_input(block)
        return tuple(inputs if r == BLOCK_INPUT else block_point(block, r) for r in self.step_reads(point))

    def nearest(self, name: str, recorded: Collection[str]) -> Nearest:
        """What a point is computed from, given the full names of what was recorded."""
        found, unseen, waiting = set[str](), {name}, [name]
        while waiting:
            for read in self.reads(waiting.pop()):
                if read in recorded:
                    found.add(read)
                elif read not in unseen:
                    unseen.add(read)
                    waiting.append(read)
        return Nearest(self._in_order(found), self._in_order(unseen), "embd" in unseen and name != "embd")

    def record_next(self, unseen: Iterable[str]) -> str | None:
        """The point that leaves least to search, whether it turns out right or wrong; None without any.

        Args:
            unseen: of a `Nearest`, the wrong point last. Where two blocks or more lie between, one of their
                ends: it costs least to record, and says most to people.
        """
        among = list(unseen)
        candidates = among[:-1]
        ends = [name for name in candidates if split_name(name)[1] == "out"]
        if len(ends) > 1:
            candidates = ends
        before = self._before(among)
        return min(
            candidates,
            key=lambda name: (
                max(len(before[name]), len(among) - len(before[name])),
                split_name(name)[1] in BESIDE,
                self.places[name],
            ),
            default=None,
        )

    def _before(self, among: Collection[str]) -> Mapping[str, frozenset[str]]:
        """For each point those among them that it is made from, itself with them."""
        made: dict[str, frozenset[str]] = {}
        for name in self._in_order(among):
            parts = (made[read] for read in self.reads(name) if read in made)
            made[name] = frozenset({name}).union(*parts)
        return made

    def _in_order(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(names, key=self.places.__getitem__))
