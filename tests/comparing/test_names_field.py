"""What `compare` says of programs with faults that were found in published code, by the sentence it prints.

Ports of their own in float32, one method overridden each; the model has grouped heads and its own head.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.judging.to_precision import to_bfloat16, to_float16
from tests.comparing.ported_llama import Array, F, Port, compared, seeded

LEFT = re.compile(r"(.*): remaining error (\d\.\de[-+]\d\d)")


def sentence(report: Comparison, most: float = 1e-6) -> str:
    """The headline's explanation; what it leaves is within what rounding may."""
    found = LEFT.fullmatch(report.diagnoses[0].sentence())
    assert found, report.diagnoses[0].sentence()
    assert float(found[2]) < most
    return found[1]


def changed(**methods: Any) -> type[Port]:
    return type("Changed", (Port,), methods)


def cache(keys: Callable[[Array], Array], values: Callable[[Array], Array]) -> type[Port]:
    return changed(cached=lambda self, k, v: (keys(k), values(v)))


def same(x: Array) -> Array:
    return x


def tiled(self: Port, x: Array) -> Array:
    """`repeat` where `repeat_interleave` is meant."""
    return np.tile(x, (1, self.config.n_heads // self.config.n_kv_heads, 1))


class OnlyOne(Port):
    """`repeat` for keys, or for values; the other is right."""

    wrong = "keys"

    def cached(self, keys: Array, values: Array) -> tuple[Array, Array]:
        self.order = iter(("keys", "values"))
        return keys, values

    def repeated(self, x: Array) -> Array:
        return tiled(self, x) if next(self.order) == self.wrong else Port.repeated(self, x)


def rows(matrix: str, order: Callable[[Array, int, int], Array]) -> type[Port]:
    """The rows of wq, wk or wv in another order, of `order(w, n_kv_heads, n_heads)`."""

    def projections(self: Port, weights: Any) -> tuple[Array, ...]:
        c = self.config
        found = dict(zip(("q", "k", "v"), Port.projections(self, weights), strict=True))
        return tuple(order(w, c.n_kv_heads, c.n_heads) if n in matrix else w for n, w in found.items())

    return changed(projections=projections)


def to_halves(w: Array, heads: int) -> Array:
    return w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def to_neighbours(w: Array, heads: int) -> Array:
    return w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def without_epsilon(self: Port, x: Array, weight: Array) -> Array:
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True, dtype=F)) * weight.astype(F)


def normalized(self: Port, x: Array, weight: Array) -> Array:
    """`F.normalize(x) * sqrt(width) * (weight + 1)`."""
    length = np.linalg.norm(x, axis=-1, keepdims=True).astype(F)
    return x / np.maximum(length, F(1e-12)) * F(x.shape[1] ** 0.5) * (1 + weight.astype(F))


def parallel(self: Port, x: Array, weights: Any, positions: Array, at: str, one_norm: bool = False) -> Array:
    normed = self.keep(at + "attn_norm", self.norm(x, weights.attn_norm))
    attended = self.attention(normed, weights, positions, at)
    read = normed if one_norm else self.norm(self.keep(at + "ffn_inp", x), weights.ffn_norm)
    fed = self.keep(at + "ffn_out", self.feed_forward(self.keep(at + "ffn_norm", read), weights, at))
    return x + attended + fed


KEYS_BY_QUERIES = "wk's rows are brought to GGUF's order as if there were as many key heads as query heads"
KEYS_BACK = "wk's rows are brought to Hugging Face's order as if there were as many key heads as query heads"
X_TRANSFORMERS = "the norm has no epsilon and multiplies by 1 + weight, as x-transformers does"

CACHES: dict[str, tuple[type[Port], str]] = {
    "tinygrad's cache": (cache(to_float16, to_float16), "keys and values in float16"),
    "bfloat16 cache": (cache(to_bfloat16, to_bfloat16), "keys and values in bfloat16"),
    "cache of keys": (cache(to_float16, same), "keys in float16"),
    "cache of values": (cache(same, to_float16), "values in float16"),
}
"""Programs whose cache rounds, and what is said of it where they do not declare that."""

CASES: dict[str, tuple[type[Port], str, str]] = {
    "embedding of the head": (
        changed(embedded=lambda self, tokens: self.head()[tokens].astype(F)),
        "embd",
        "the embedding is taken from the head's table where the file has its own",
    ),
    "head of the embedding": (
        changed(head=lambda self: self.weights.token_embd),
        "logits",
        "the head is the embedding table where the file has its own",
    ),
    "parallel residual": (
        changed(block=parallel),
        "ffn_inp",
        "the residual is parallel: the second norm reads the block's input, and all are added at the end",
    ),
    "parallel residual, one norm": (
        changed(block=lambda *given: parallel(*given, one_norm=True)),
        "ffn_norm",
        "the residual is parallel, and one norm serves attention and feed-forward",
    ),
    "repeat": (
        changed(repeated=tiled),
        "attn_scores",
        "query head h reads key head h % n_kv_heads instead of h // group",
    ),
    "repeat of keys": (
        OnlyOne,
        "attn_scores",
        "query head h reads keys of head h % n_kv_heads instead of h // group, and the right values",
    ),
    "repeat of values": (
        type("OnlyValues", (OnlyOne,), {"wrong": "values"}),
        "attn_context",
        "query head h reads values of head h % n_kv_heads instead of h // group, and the right keys",
    ),
    "keys permuted by query heads": (
        rows("k", lambda w, n_kv, n: to_neighbours(to_halves(w, n_kv), n)),
        "k",
        KEYS_BY_QUERIES,
    ),
    "keys permuted back by query heads": (
        rows("k", lambda w, n_kv, n: to_neighbours(to_halves(w, n), n_kv)),
        "k",
        KEYS_BACK,
    ),
    "keys in halves": (
        rows("k", lambda w, n_kv, n: to_halves(w, n_kv)),
        "k",
        "the rows of wk are in Hugging Face's order, those of wq are not",
    ),
    "permuted twice": (
        rows("qk", lambda w, n_kv, n: to_neighbours(w, n if len(w) == 128 else n_kv)),
        "q",
        "the rows of wq and wk are permuted from Hugging Face's order to GGUF's a second time",
    ),
    "keys permuted twice": (
        rows("k", lambda w, n_kv, n: to_neighbours(w, n_kv)),
        "k",
        "k: outputs of each of 2 heads are taken as (i, i + 8) for (2i, 2i+1)",
    ),
    "no epsilon": (changed(norm=without_epsilon), "attn_norm", "the norm has no epsilon"),
    "1 + weight": (
        changed(norm=lambda self, x, weight: Port.norm(self, x, 1 + weight)),
        "attn_norm",
        "the norm multiplies by 1 + weight, as Gemma does",
    ),
    "x-transformers": (changed(norm=normalized), "attn_norm", X_TRANSFORMERS),
}


@pytest.mark.parametrize("name", CASES)
def test_the_headline_names_what_is_wrong(name: str, tmp_path: Path) -> None:
    program, point, said = CASES[name]
    # Groups of four: of two some orders of rows are their own reverse.
    model = seeded(n_heads=8, n_kv_heads=2, width=128)
    report = compared(program(model), tmp_path, 16)
    assert report.verdict == "fail" and report.first_wrong is not None
    assert report.first_wrong.name.rpartition(".")[2] == point
    assert sentence(report) == said


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_that_rounds_is_arithmetic(name: str, tmp_path: Path) -> None:
    program, said = CACHES[name]
    report = compared(program(seeded(n_heads=8, n_kv_heads=2, width=128)), tmp_path, 16)
    assert (report.verdict, report.exit_code) == ("arithmetic", 3)
    assert report.reason.startswith(f"differs by arithmetic, no bug seen: {said}, left unexplained")


ALIKE = re.compile(r" \(or, alike here: .*\)")

OF_LOGITS = {
    "tinygrad's cache": "",
    "embedding of the head": None,
    "repeat": None,
    "keys permuted by query heads": None,
    "no epsilon": None,
    "1 + weight": None,
    "x-transformers": None,
    "parallel residual": "the feed-forward reads the block's input, as GPT-J's does",
    "gelu": "GELU (by tanh) stands for SiLU",
    "scale": "the scores are not divided by sqrt(head_dim)",
    "theta": "RoPE's theta is 10,000, whatever the file says",
}


def of_logits(name: str) -> type[Port]:
    def gelu(a: Array) -> Array:
        return 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))

    return {
        "gelu": changed(gated=lambda self, gate, up: gelu(gate) * up),
        "scale": changed(probabilities=lambda self, s, v: Port.probabilities(self, s * F(4), v)),
        "theta": changed(frequencies=lambda self: 1e4 ** (-np.arange(8) / 8)),
        **{key: case[0] for key, case in [*CACHES.items(), *CASES.items()]},
    }[name]


@pytest.mark.parametrize("name", OF_LOGITS)
@pytest.mark.parametrize("kept", ["logits", "ends"])
def test_of_logits_alone_the_bug_is_named_too(name: str, kept: str, tmp_path: Path) -> None:
    program, said = of_logits(name), OF_LOGITS[name] if name in CACHES else OF_LOGITS[name] or CASES[name][2]
    model = seeded(n_heads=8, n_kv_heads=2, width=128)
    ends = ("logits",) if kept == "logits" else ("logits", ".out")
    report = compared(program(model), tmp_path, 16, kept=lambda name: name.endswith(ends), partial=True)
    if name in CACHES and kept == "ends":
        assert report.verdict == "arithmetic" and CACHES[name][1] in report.reason
        return
    assert report.verdict == "fail"
    if name in CACHES:  # its rounding falls either way, and a run amplifies it
        assert f"as far from exact as {CACHES[name][1]} would be" in report.reason
        return
    assert ALIKE.sub("", sentence(report, 1e-5)) == said


@pytest.mark.parametrize("name", ["repeat", "x-transformers", "gelu", "theta", "scale"])
def test_of_the_last_row_alone_the_bug_is_named_too(name: str, tmp_path: Path) -> None:
    class LastRow(of_logits(name)):  # type: ignore[misc]
        def run(self, tokens: Sequence[int], positions: Sequence[int] | None = None) -> dict[str, Array]:
            return {"last_logits": Port.run(self, tokens, positions)["logits"][-1]}

    report = compared(LastRow(seeded(n_heads=8, n_kv_heads=2, width=128)), tmp_path, 16)
    assert report.verdict == "fail"
    assert ALIKE.sub("", sentence(report, 1e-5)) == (
        OF_LOGITS[name] if name in CACHES else OF_LOGITS[name] or CASES[name][2]
    )


def test_of_a_right_programs_logits_nothing_is_said(tmp_path: Path) -> None:
    report = compared(Port(seeded()), tmp_path, 16, kept=lambda name: name == "logits", partial=True)
    assert report.verdict == "pass" and not report.diagnoses
