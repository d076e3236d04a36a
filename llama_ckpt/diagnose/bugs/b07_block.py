"""Checkpoint 7: how a block is wired. Each bug is the right block with one of its `Wires` misplaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import Patch, PatchedOracle

__all__ = ["BUGS"]

Array: TypeAlias = NDArray[Any]
Mix: TypeAlias = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class Wires:
    """Where a block's parts take their inputs from.

    Attributes:
        norms: the weights of the first and of the second norm; None leaves one out.
        first: of x, its norm and attention's output, the input of the second half.
        ffn_reads: of x and that sum, what the second norm reads.
        second: of x, that sum and the feed-forward's output, the block's output.
        shown: of x and that sum, what is seen in its place.
        turns_values: whether RoPE turns the values too.
        same_norm: whether the second half reads the first half's norm.
    """

    norms: tuple[str | None, str | None] = ("attn_norm", "ffn_norm")
    first: Mix = lambda x, normed, attn_out: x + attn_out
    ffn_reads: Callable[[Array, Array], Array] = lambda x, ffn_inp: ffn_inp
    second: Mix = lambda x, ffn_inp, ffn_out: ffn_inp + ffn_out
    shown: Callable[[Array, Array], Array] = lambda x, ffn_inp: ffn_inp
    turns_values: bool = False
    same_norm: bool = False


def wired(**wrong: Any) -> Patch:
    """A block with these wires."""
    wires = Wires(**wrong)

    def block(
        right: PatchedOracle,
        x: Any,
        weights: Any,
        *,
        config: Any,
        positions: Any,
        sequence_ids: Any = None,
        tap: Any = None,
    ) -> Array:
        x = right.float64(x)

        def show(point: str, array: Array) -> Array:
            if tap:
                tap(point, array)
            return array

        def norm(a: Array, weight: str | None) -> Array:
            return right.rms_norm(a, getattr(weights, weight), eps=config.rms_norm_eps) if weight else a

        normed = show("attn_norm", norm(x, wires.norms[0]))
        heads = {"n_heads": config.n_heads, "n_kv_heads": config.n_kv_heads}
        heads |= right.biases(weights, "bq", "bk", "bv")
        q, k, v = right.qkv(normed, weights.wq, weights.wk, weights.wv, **heads)
        for point, array in (("q", q), ("k", k), ("v", v)):
            show(point, array)
        turn = {"frequencies": right.rope_frequencies(config), "magnitude": right.rope_magnitude(config)}
        if wires.turns_values:
            v = right.rope(q, v, positions, **turn)[1]
        q, k = right.rope(q, k, positions, **turn)
        show("q_rope", q)
        show("k_rope", k)
        places = {"positions": positions, "sequence_ids": sequence_ids, **right.biases(weights, "bo")}
        attn_out = show("attn_out", right.attention(q, k, v, weights.wo, **places, tap=show))
        ffn_inp = wires.first(x, normed, attn_out)
        show("ffn_inp", wires.shown(x, ffn_inp))
        read = normed if wires.same_norm else norm(wires.ffn_reads(x, ffn_inp), wires.norms[1])
        show("ffn_norm", read)
        ffn_out = right.feed_forward(read, weights, config, show)
        return wires.second(x, ffn_inp, show("ffn_out", ffn_out))

    return block


def bug(name: str, sentence: str, **wrong: Any) -> Bug:
    return Bug(f"block-{name}", sentence, "7", "block", wired(**wrong))


BUGS = (
    bug(
        "residual-of-norm",
        "attention's residual is taken after the norm",
        first=lambda x, normed, attn_out: normed + attn_out,
    ),
    bug("no-first-residual", "attention has no residual", first=lambda x, normed, attn_out: attn_out),
    bug("no-second-residual", "the feed-forward has no residual", second=lambda x, ffn_inp, ffn_out: ffn_out),
    bug(
        "second-residual-of-input",
        "the feed-forward's residual is the block's input, so that attention's output is lost",
        second=lambda x, ffn_inp, ffn_out: x + ffn_out,
    ),
    bug(
        "residual-twice",
        "the block's input is added twice",
        second=lambda x, ffn_inp, ffn_out: x + ffn_inp + ffn_out,
    ),
    bug("norms-swapped", "the weights of the two norms are swapped", norms=("ffn_norm", "attn_norm")),
    bug(
        "parallel",
        "the feed-forward reads the block's input, as GPT-J's does",
        ffn_reads=lambda x, ffn_inp: x,
    ),
    bug(
        "parallel-residual",
        "the residual is parallel: the second norm reads the block's input, and all are added at the end",
        ffn_reads=lambda x, ffn_inp: x,
        shown=lambda x, ffn_inp: x,
    ),
    bug(
        "parallel-one-norm",
        "the residual is parallel, and one norm serves attention and feed-forward",
        shown=lambda x, ffn_inp: x,
        same_norm=True,
    ),
    bug("no-first-norm", "attention reads the input without its norm", norms=(None, "ffn_norm")),
    bug("no-second-norm", "the feed-forward reads its input without a norm", norms=("attn_norm", None)),
    bug("values-turned", "RoPE turns the values too", turns_values=True),
)
