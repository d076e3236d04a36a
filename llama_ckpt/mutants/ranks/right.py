"""Right programs on ranks, of the kinds that may look wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llama_ckpt.mutants.ranks.port import Array, RankPort
from llama_ckpt.mutants.ranks.record import RankFamily

__all__ = ["RIGHT"]

RIGHT = RankFamily()
F = np.float32
WHOLE = ("embd", "attn_norm", "ffn_inp", "ffn_norm", "out", "output_norm")


class Recording(RankPort):
    """Drops or changes what was recorded."""

    def recorded(self, rank: int, name: str, x: Array) -> Array | None:
        """What is kept of a tensor; None for nothing."""
        return x

    def run(self, tokens: Sequence[int]) -> list[dict[str, Array]]:
        made = []
        for rank, seen in enumerate(super().run(tokens)):
            kept = {name: self.recorded(rank, name, x) for name, x in seen.items()}
            made.append({name: x for name, x in kept.items() if x is not None})
        return made


def _point(name: str) -> str:
    return name.rpartition(".")[2]


@RIGHT.rightly("two ranks, parts of sums recorded before the reduction")
class Plain(RankPort):
    pass


@RIGHT.rightly("four ranks, each with a key head that two share", tokens=37)
class MoreRanksThanKeyHeads(RankPort):
    n = 4


@RIGHT.rightly("eight ranks, two key heads", model="wide", tokens=20)
class EightRanks(RankPort):
    n = 8


@RIGHT.rightly("one key head for two ranks", model="one-key-head")
class OneKeyHead(RankPort):
    pass


@RIGHT.rightly("each rank has recorded the reduced sum")
class Reduced(RankPort):
    reduced = True


@RIGHT.rightly("only rank 0 has what is reduced: the others record their parts")
class ReducedOnTheFirst(Recording):
    def sums(self, xs: list[Array], parts: list[Array], names: tuple[str, str], first: int) -> list[Array]:
        made = super().sums(xs, parts, names, first)
        self.seen[first][names[0]] = self.reduce(parts, 0).astype(F)
        return made


@RIGHT.rightly("only rank 0 records what all ranks have")
class WholeOnTheFirst(Recording):
    def recorded(self, rank: int, name: str, x: Array) -> Array | None:
        return None if rank and _point(name) in (*WHOLE, "attn_out", "ffn_out") else x

    reduced = True


@RIGHT.rightly("three ranks: heads, features and vocabulary do not go evenly", model="uneven", tokens=20)
class Uneven(RankPort):
    n = 3


class Padded(RankPort):
    """Every rank has as many logits, the last ones with padding."""

    def head(self, x: Array, rank: int) -> Array:
        each = -(-(self.config.vocab_size + 8) // self.n)
        rows = self.weights.output[rank * each : (rank + 1) * each].astype(F)
        return np.asarray(x @ np.concatenate([rows, np.zeros((each - len(rows), rows.shape[1]), F)]).T)


@RIGHT.rightly("a padded vocabulary over three ranks")
class PaddedVocabulary(Padded):
    n = 3


@RIGHT.rightly(
    "each rank pads its own part of the vocabulary, and a plan says so", plan="logits: vocabulary 160 160"
)
class PaddedOnEachRank(RankPort):
    def head(self, x: Array, rank: int) -> Array:
        logits = super().head(x, rank)
        return np.concatenate([logits, np.zeros((len(logits), 4), F)], axis=1)


@RIGHT.rightly("every rank has gathered the logits")
class GatheredLogits(RankPort):
    def head(self, x: Array, rank: int) -> Array:
        return np.concatenate([super(GatheredLogits, self).head(x, r) for r in range(self.n)], axis=1)


@RIGHT.rightly("rank 0 alone has gathered the logits, of the last token")
class LastLogitsOnTheFirst(Recording):
    def recorded(self, rank: int, name: str, x: Array) -> Array | None:
        return (None if rank else x[-1]) if name == "logits" else x

    def head(self, x: Array, rank: int) -> Array:
        return np.concatenate([super(LastLogitsOnTheFirst, self).head(x, r) for r in range(self.n)], axis=1)


@RIGHT.rightly("two pipeline stages of one rank")
class TwoStages(RankPort):
    n, stages = 1, 2


@RIGHT.rightly("two pipeline stages of two ranks", tokens=20)
class StagesOfRanks(RankPort):
    stages = 2


@RIGHT.rightly(
    "the second stage counts its blocks from 0, and a plan says which they are",
    plan="blocks: 0-1\nblocks: 2-3",
)
class StageCountsItsOwn(RankPort):
    n, stages = 1, 2

    def run(self, tokens: Sequence[int]) -> list[dict[str, Array]]:
        first, second = super().run(tokens)
        renamed = {
            name.replace("blk.2.", "blk.0.").replace("blk.3.", "blk.1."): x for name, x in second.items()
        }
        return [first, renamed]


@RIGHT.rightly("an embedding cut by the vocabulary, recorded before it is reduced")
class EmbeddingByVocabulary(RankPort):
    def embedded(self, tokens: Array, rank: int) -> Array:
        own = self.vocabulary(rank)
        inside = (tokens >= own.start) & (tokens < own.stop)
        return np.asarray(super().embedded(tokens, rank) * inside[:, None].astype(F))

    def whole_embedding(self, xs: list[Array]) -> list[Array]:
        return [np.sum(xs, axis=0) for _ in xs]


@RIGHT.rightly("a model with biases: one rank adds them", model="biased")
class BiasOnOneRank(RankPort):
    pass


@RIGHT.rightly("the reduction runs in another order on each rank", model="four-key-heads")
class AnotherOrder(RankPort):
    n = 4

    def reduce(self, parts: Sequence[Array], rank: int) -> Array:
        turned = [*parts[rank:], *parts[:rank]]
        return super().reduce(turned, rank)


@RIGHT.rightly("heads lie flat")
class FlatHeads(Recording):
    def recorded(self, rank: int, name: str, x: Array) -> Array | None:
        return x if _point(name) in ("attn_scores", "attn_probs") else x.reshape(len(x), -1)


def _halves(x: Array) -> Array:
    return np.concatenate([x[..., 0::2], x[..., 1::2]], -1)


@RIGHT.rightly("features lie as in Hugging Face's models")
class HalfSplit(Recording):
    def recorded(self, rank: int, name: str, x: Array) -> Array | None:
        return _halves(x) if _point(name) in ("q", "k", "q_rope", "k_rope") else x
