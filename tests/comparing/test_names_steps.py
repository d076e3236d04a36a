"""What `compare` says of single steps that are wrong: a softmax in tiles, a head's factor, a lost tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_ckpt.report.comparison import comparison_lines
from tests.comparing.ported_llama import Array, F, Port, compared, seeded
from tests.comparing.test_names_rope import changed, sentence

TILE = 8


class Tiled(Port):
    """An online softmax, which has no probabilities; a fault forgets what it rescales, or keys."""

    rescaled = frozenset({"sum", "values"})
    last = True

    def attention(self, x: Array, weights: Any, positions: Array, at: str) -> Array:
        super().attention(x, weights, positions, at)
        scores = self.seen.pop(at + "attn_scores") * F(self.config.head_dim**-0.5)
        del self.seen[at + "attn_probs"]
        scores = np.where((positions[:, None] >= positions)[:, None], scores, F(-np.inf))
        mixed = self.mixed(scores, self.repeated(self.seen[at + "v"])).reshape(len(x), -1)
        return self.keep(at + "attn_out", self.product(self.keep(at + "attn_context", mixed), weights.wo))

    def mixed(self, scores: Array, values: Array) -> Array:
        largest, total = np.full((*scores.shape[:2], 1), -np.inf, F), np.zeros((*scores.shape[:2], 1), F)
        made = np.zeros((*scores.shape[:2], values.shape[-1]), F)
        for start in range(0, len(values), TILE):
            tile, several = slice(start, start + TILE), start + TILE < len(values)
            if not (several or self.last or not start):
                break
            before, largest = largest, np.maximum(largest, scores[..., tile].max(-1, keepdims=True))
            e, factor = np.exp(scores[..., tile] - largest), np.exp(before - largest)
            total = total * (factor if "sum" in self.rescaled else F(1)) + e.sum(-1, keepdims=True)
            made = made * (factor if "values" in self.rescaled else F(1))
            made = made + np.einsum("nhm,mhd->nhd", e, values[tile])
        return made / total


class Averaged(Tiled):
    """Softmaxes of parts are averaged."""

    def mixed(self, scores: Array, values: Array) -> Array:
        parts = []
        for start in range(0, len(values), TILE):
            tile = slice(start, start + TILE)
            with np.errstate(invalid="ignore"):
                e = np.exp(scores[..., tile] - scores[..., tile].max(-1, keepdims=True))
                parts.append(np.einsum("nhm,mhd->nhd", e / e.sum(-1, keepdims=True), values[tile]))
        return np.asarray(np.nanmean(parts, axis=0), F)


def tiles(*rescaled: str, last: bool = True) -> type[Port]:
    return type("Wrong", (Tiled,), {"rescaled": frozenset(rescaled), "last": last})


IN_TILES = "the softmax is made in tiles of 8 keys, and "
LATER = "rescaled where a later one has a larger score"


def first_head(self: Port, mixed: Array) -> Array:
    made = np.array(mixed)
    made[:, : self.config.head_dim] *= F(1.0005)
    return made


def first_block_of_one_output(self: Port, x: Array, weight: Array) -> Array:
    made = Port.product(self, x, weight)
    if weight.shape == (96, 64):
        made[:, 3] = x[:, 32:] @ weight[3, 32:].astype(F)
    return made


CASES: dict[str, tuple[type[Port], str, str]] = {
    "sum": (tiles("values"), "attn_context", f"{IN_TILES}the sum is not {LATER}"),
    "values": (tiles("sum"), "attn_context", f"{IN_TILES}the mixed values are not {LATER}"),
    "neither": (tiles(), "attn_context", f"{IN_TILES}neither the sum nor the mixed values are {LATER}"),
    "mean": (
        Averaged,
        "attn_context",
        f"{IN_TILES}their results are averaged, and not weighed by their sums",
    ),
    "tail": (tiles("sum", "values", last=False), "attn_context", "no token sees keys 16 to 19"),
    "head": (changed(context=first_head), "attn_context", "head 0 is multiplied by 1.0005"),
    "queries": (
        changed(cached=lambda self, keys, values: (keys * F(0.25), values)),
        "attn_scores",
        "queries or keys are multiplied by 0.25 = 1/sqrt(head_dim), and the scores are scaled as well",
    ),
    "block of weights": (
        changed(product=first_block_of_one_output),
        "ffn_gate",
        "ffn_gate and ffn_up: columns 0 to 31 of the sum are left out, in feature 3 alone",
    ),
    "norm": (
        changed(norm=lambda self, x, weight: Port.norm(self, x, weight) * F(1.0005)),
        "attn_norm",
        "rows are multiplied by 1.0005 as well",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_step_is_named(name: str, tmp_path: Path) -> None:
    program, point, said = CASES[name]
    report = compared(program(seeded()), tmp_path, 20, partial=True)
    assert report.first_wrong is not None and report.first_wrong.name == f"blk.0.{point}"
    assert sentence(report) == said


def test_a_right_softmax_in_tiles_passes(tmp_path: Path) -> None:
    assert compared(Tiled(seeded()), tmp_path, 20, partial=True).verdict == "pass"


def test_a_small_gain_is_said_with_what_it_is_too_large_in(tmp_path: Path) -> None:
    """A gain that six digits call 1 is no gain of 1, and an error within its limit is not all that fails."""

    class Gain(Port):
        def context(self, mixed: Array) -> Array:
            return np.asarray(mixed * F(1 + 2.0**-20), F)

    report = compared(Gain(seeded()), tmp_path, 100)
    assert sentence(report).startswith("there is a gain of 1 + 9.")
    told = "".join(text for line in comparison_lines(report, verbose=False) for text, _ in line)
    assert "within the allowed" in told and "but gain off by" in told
