"""What goes wrong between ranks: faults that people reported, and their kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llama_ckpt.mutants.ranks.port import Array, RankPort
from llama_ckpt.mutants.ranks.record import RankFamily

__all__ = ["WRONG"]

WRONG = RankFamily()
F = np.float32
EVERY = (0, 1)
REDUCED = "blk.0.ffn_inp"


def even_piece(matrices: Sequence[Array], lengths: Sequence[int], rank: int, n: int) -> list[Array]:
    """A fused matrix cut evenly, and then taken apart as if the rank's piece had a part of each."""
    fused = np.concatenate(matrices)
    each = len(fused) // n
    piece = fused[rank * each : (rank + 1) * each]
    return np.split(piece, np.cumsum(lengths)[:-1])


@WRONG.bug("rank 1 loads rank 0's heads", at="blk.0.q", ranks=(1,), right=r"rank 1 has the shard of rank 0")
class HeadsOfAnotherRank(RankPort):
    def qkv(self, w: Any, rank: int) -> tuple[Array, Array, Array]:
        return super().qkv(w, 0)


@WRONG.bug(
    "the feed-forward's shards are exchanged",
    at="blk.0.ffn_gate",
    ranks=EVERY,
    right=r"rank 0 has the shard of rank 1; rank 1 has the shard of rank 0",
)
class FeedForwardExchanged(RankPort):
    def gate_up(self, w: Any, rank: int) -> tuple[Array, Array]:
        return super().gate_up(w, 1 - rank)


@WRONG.bug(
    "the columns of the down projection are another rank's",
    at="blk.0.ffn_out",
    ranks=(1,),
    right=r"rank 1 has the columns of rank 0",
)
class DownColumnsOfAnotherRank(RankPort):
    def down_columns(self, w: Any, rank: int) -> Array:
        return super().down_columns(w, 0)


@WRONG.bug(
    "the output projection is cut by rows, as the matrices before attention are",
    at="blk.0.attn_out",
    ranks=EVERY,
    right=r"rows .*cut the other way",
)
class OutputCutByRows(RankPort):
    def output_columns(self, w: Any, rank: int) -> Array:
        return np.asarray(w.wo[self.rows(self.heads(rank))].T)


@WRONG.bug(
    "the all-reduce after the output projection is missing",
    at=REDUCED,
    ranks=EVERY,
    right=r"every rank adds its own part alone.*reduction.*missing",
    reports="FreeToken#429",
)
class ReductionMissing(RankPort):
    def added(self, x: Array, parts: Sequence[Array], rank: int) -> Array:
        return np.asarray(x + parts[rank])


@WRONG.bug(
    "the all-reduce is missing on one rank, which went another way",
    at=REDUCED,
    ranks=(1,),
    right=r"rank 1 adds its own part alone",
)
class ReductionMissingOnOneRank(RankPort):
    reduced = True

    def added(self, x: Array, parts: Sequence[Array], rank: int) -> Array:
        return np.asarray(x + (parts[1] if rank == 1 else self.reduce(parts, rank)))


@WRONG.bug("it is reduced twice", at=REDUCED, ranks=EVERY, right=r"every rank has 2 times the sum.*twice")
class ReducedTwice(RankPort):
    def added(self, x: Array, parts: Sequence[Array], rank: int) -> Array:
        return np.asarray(x + len(parts) * self.reduce(parts, rank))


@WRONG.bug(
    "what was reduced twice is recorded so", at="blk.0.attn_out", ranks=EVERY, right=r"2 times the sum.*twice"
)
class ReducedTwiceAndRecorded(RankPort):
    reduced = True

    def reduce(self, parts: Sequence[Array], rank: int) -> Array:
        return np.asarray(len(parts) * super().reduce(parts, rank))


@WRONG.bug("four ranks average", at="blk.0.attn_out", ranks=(0, 1, 2, 3), right=r"mean.*quarter.*averaged")
class Averaged(RankPort):
    n, reduced = 4, True

    def reduce(self, parts: Sequence[Array], rank: int) -> Array:
        return np.asarray(super().reduce(parts, rank) / F(len(parts)))


@WRONG.bug(
    "one rank of four is left out of the group",
    at=REDUCED,
    ranks=(0, 1, 2, 3),
    right=r"misses the part of rank 3",
)
class OneRankLeftOut(RankPort):
    n = 4

    def added(self, x: Array, parts: Sequence[Array], rank: int) -> Array:
        return np.asarray(x + self.reduce(parts[:3], rank))


@WRONG.bug(
    "the residual is in every rank's part",
    at="blk.0.attn_out",
    ranks=EVERY,
    right=r"every rank has the residual in its part",
    reports="mirage#722",
)
class ResidualInEveryPart(RankPort):
    def part(self, x: Array, weight: Array, residual: Array, rank: int) -> Array:
        return np.asarray(residual + x @ weight.T)

    def added(self, x: Array, parts: Sequence[Array], rank: int) -> Array:
        return self.reduce(parts, rank)


@WRONG.bug(
    "four ranks reduce after the residual is added",
    at=REDUCED,
    ranks=(0, 1, 2, 3),
    right=r"every rank has the residual in the sum, added on every rank",
    reports="mirage#722",
)
class ResidualOnEveryRank(RankPort):
    n = 4

    def added(self, x: Array, parts: Sequence[Array], rank: int) -> Array:
        return self.reduce([x + part for part in parts], rank)


@WRONG.bug(
    "every rank adds the bias of the output projection",
    at="blk.0.attn_out",
    ranks=(1,),
    right=r"rank 1 has the bias in its part",
    model="biased",
)
class BiasInEveryPart(RankPort):
    def bias(self, x: Array, bias: Array | None, rank: int) -> Array:
        return x if bias is None else np.asarray(x + bias.astype(F))


@WRONG.bug(
    "the reduced sum has the bias of every rank",
    at="blk.0.attn_out",
    ranks=EVERY,
    right=r"every rank has the bias of every rank",
    model="biased",
)
class BiasOfEveryRank(BiasInEveryPart):
    reduced = True


@WRONG.bug(
    "a fused QKV matrix is cut evenly", at="blk.0.q", ranks=(1,), right=r"rank 1 has a piece of the fused QKV"
)
class FusedQKVCutEvenly(RankPort):
    def qkv(self, w: Any, rank: int) -> tuple[Array, Array, Array]:
        lengths = [len(one) for one in super().qkv(w, rank)]
        q, k, v = even_piece([w.wq, w.wk, w.wv], lengths, rank, self.n)
        return q, k, v


@WRONG.bug(
    "a fused gate/up matrix is cut evenly",
    at="blk.0.ffn_gate",
    ranks=(1,),
    right=r"rank 1 has a piece of the fused gate/up",
    reports="Automodel#1324",
)
class FusedGateUpCutEvenly(RankPort):
    def gate_up(self, w: Any, rank: int) -> tuple[Array, Array]:
        lengths = [len(one) for one in super().gate_up(w, rank)]
        gate, up = even_piece([w.w_gate, w.w_up], lengths, rank, self.n)
        return gate, up


@WRONG.bug(
    "features are dealt out in turn",
    at="blk.0.ffn_gate",
    ranks=EVERY,
    right=r"has every 2nd column from 1 on",
)
class FeaturesInTurn(RankPort):
    def gate_up(self, w: Any, rank: int) -> tuple[Array, Array]:
        return w.w_gate[rank :: self.n], w.w_up[rank :: self.n]


@WRONG.bug(
    "of a padded vocabulary ranks begin where they would without padding",
    at="logits",
    ranks=(1, 2),
    right=r"rank 1 has columns from 107 on, wanted from 108 on",
)
class VocabularyBeginsUnpadded(RankPort):
    n = 3

    def head(self, x: Array, rank: int) -> Array:
        each = -(-self.config.vocab_size // self.n) + 1
        start = self.vocabulary(rank).start
        rows = self.weights.output[start : start + each].astype(F)
        padded = np.concatenate([rows, np.zeros((each - len(rows), rows.shape[1]), F)])
        return np.asarray(x @ padded.T)


@WRONG.bug(
    "four ranks and two key heads: they are dealt out in turn",
    at="blk.0.k",
    ranks=(1, 2),
    right=r"rank 1 has key head 1, wanted 0",
)
class KeyHeadsInTurn(RankPort):
    n = 4

    def qkv(self, w: Any, rank: int) -> tuple[Array, Array, Array]:
        head = self.rows(range(rank % 2, rank % 2 + 1))
        return w.wq[self.rows(self.heads(rank))], w.wk[head], w.wv[head]


@WRONG.bug(
    "the second stage has the first one's layers",
    at="blk.2.attn_norm blk.2.q",
    ranks=(1,),
    right=r"rank 1 has layer 0's weights in the place of layer 2's of stage 1",
    reports="huggingface/transformers#24381",
)
class StageWithTheFirstLayers(RankPort):
    n, stages = 1, 2

    def layer(self, block: int, stage: int) -> Any:
        return self.weights.blocks[block - self.layers(stage).start]


@WRONG.bug(
    "the second stage begins with the embedding, nothing was handed on",
    at="blk.2.attn_norm",
    ranks=(2, 3),
    right=r"ranks 2 and 3 read embd where blk.1.out is wanted",
)
class StageBeginsAnew(RankPort):
    stages = 2

    def handed_on(self, xs: list[Array], stage: int) -> list[Array]:
        return [self.seen[0]["embd"] for _ in xs]


@WRONG.bug(
    "a rank's norms were never loaded: all ones on rank 1",
    at="blk.0.attn_norm",
    ranks=(1,),
    right=r"rank 1 is off; rank 0 is right",
)
class RanksDiffer(RankPort):
    def norm(self, x: Array, weight: Array, rank: int) -> Array:
        return super().norm(x, np.ones_like(weight) if rank else weight, rank)


@WRONG.bug(
    "the embedding reaches the first rank alone",
    at="blk.0.attn_norm embd",
    ranks=(1,),
    right=r"rank 1 (is off|reads its own part of the embedding alone)",
)
class EmbeddingOnOneRank(RankPort):
    def embedded(self, tokens: Array, rank: int) -> Array:
        return super().embedded(tokens, rank) * F(rank == 0)


@WRONG.bug(
    "an embedding cut by the vocabulary is not reduced",
    at="blk.0.attn_norm embd",
    ranks=EVERY,
    right=r"every rank adds its own part alone|reduction.*missing",
)
class EmbeddingNotReduced(RankPort):
    def embedded(self, tokens: Array, rank: int) -> Array:
        own = self.vocabulary(rank)
        inside = (tokens >= own.start) & (tokens < own.stop)
        return np.asarray(super().embedded(tokens, rank) * inside[:, None].astype(F))


@WRONG.bug(
    "rank 1 begins to count one too late", at="blk.0.q_rope", ranks=(1,), right=r"rank 1 is off; rank 0 is"
)
class PositionsOfOneRank(RankPort):
    def turned(self, x: Array, positions: Array, rank: int) -> Array:
        return super().turned(x, positions + rank, rank)


@WRONG.bug(
    "parts are divided by the number of ranks, for a mean that is none",
    at="blk.0.ffn_out",
    ranks=EVERY,
    right=r"every rank has its part divided by the number of ranks",
)
class PartsDivided(RankPort):
    def down_columns(self, w: Any, rank: int) -> Array:
        return np.asarray(super().down_columns(w, rank) / self.n)


@WRONG.bug(
    "uneven heads: the first rank's last head is the second's as well",
    at="blk.0.q",
    ranks=(1,),
    right=r"rank 1 has columns from 16 on, wanted from 32 on|rank 1 has",
)
class HeadsOverlap(RankPort):
    def qkv(self, w: Any, rank: int) -> tuple[Array, Array, Array]:
        first = self.heads(rank).start - rank
        own = self.rows(range(first, first + len(self.heads(rank))))
        _, k, v = super().qkv(w, rank)
        return w.wq[own], k, v
