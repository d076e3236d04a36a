"""The structure of a residual: each kind is found where it was put, and nothing where there is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama_ckpt.diagnose.records import Finding
from llama_ckpt.diagnose.structure import find_structure
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.judging.to_precision import to_bfloat16, to_float16
from llama_ckpt.judging.verdict import causal_mask
from llama_ckpt.listing import which

Array = NDArray[np.float64]

LIMIT = limit_for("ffn_out", "float32", "own")


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def found(x: Array, o: Array, **options: object) -> list[Finding]:
    """With float32 rounding on x, as from the field."""
    return find_structure(x.astype(np.float32), o, limit=LIMIT, **options)  # type: ignore[arg-type]


def one_token(o: Array) -> Array:
    x = o.copy()
    x[-1] += 1
    return x


def one_feature(o: Array) -> Array:
    x = o.copy()
    x[:, 3] *= -2
    return x


ROWS: list[tuple[str, str, Callable[[Array], Array]]] = [
    ("constant", "it is all zeros", lambda o: 0 * o),
    ("constant", "every element is 0.5", lambda o: 0 * o + 0.5),
    ("sign", "the sign is flipped", lambda o: -o),
    ("gain", "there is a gain of 1.002", lambda o: 1.002 * o),
    ("gain", "there is a gain of 8 = sqrt(64)", lambda o: 8 * o),
    ("gain", "there is a gain of 0.015625 = 1/64", lambda o: o / 64),
    ("bias", "there is a bias of 0.25", lambda o: o + 0.25),
    ("rounding", "it is rounded to float16", to_float16),
    ("rounding", "it is rounded to bfloat16", to_bfloat16),
    ("saturation", "it is cut at 1.5", lambda o: np.clip(o, -1.5, 1.5)),
    ("position", "each token is the one before it", lambda o: np.roll(o, 1, axis=0)),
    ("position", "each token is the one 2 after it", lambda o: np.roll(o, -2, axis=0)),
    ("position", "each token stands in reverse order", lambda o: o[::-1]),
    ("position", "every token is number 4", lambda o: o[[4] * len(o)]),
    ("permutation", "each feature is the one before it", lambda o: np.roll(o, 1, axis=1)),
    ("permutation", "each feature is turned round by 32", lambda o: np.roll(o, 32, axis=1)),
    ("permutation", "each feature stands in reverse order", lambda o: o[:, ::-1]),
    (
        "permutation",
        "each feature is read as [2, 32] of [32, 2] (even and odd parted)",
        lambda o: o.reshape(len(o), 32, 2).swapaxes(1, 2).reshape(o.shape),
    ),
    (
        "permutation",
        "each feature is read as [32, 2] of [2, 32] (halves interleaved)",
        lambda o: o.reshape(len(o), 2, 32).swapaxes(1, 2).reshape(o.shape),
    ),
    ("token", "only token 7 is off, of 8", one_token),
    ("feature", "only feature 3 is off, of 64", one_feature),
    ("gain", "each token has a gain of its own, 1 to 8", lambda o: o * np.arange(1, 9)[:, None]),
    ("bias", "each feature has a bias of its own, -1 to 1", lambda o: o + np.linspace(-1, 1, 64)),
]


@pytest.mark.parametrize(("kind", "sentence", "change"), ROWS, ids=[row[1] for row in ROWS])
def test_a_change_of_rows_is_found(kind: str, sentence: str, change: Callable[[Array], Array]) -> None:
    o = normal(8, 64)
    first = found(change(o), o)[0]
    assert (first.kind, first.sentence) == (kind, sentence)
    assert first.explained and first.remaining_error < 1e-6


HEADS: list[tuple[str, str, Callable[[Array], Array]]] = [
    ("heads", "each head stands in reverse order", lambda o: o[:, ::-1]),
    ("heads", "every head is number 0", lambda o: o[:, [0] * 4]),
    ("heads", "2 of 4 heads are others: 0 is 1, 1 is 0", lambda o: o[:, [1, 0, 2, 3]]),
    ("permutation", "each feature of a head is turned round by 8", lambda o: np.roll(o, 8, axis=2)),
    (
        "axes",
        "heads are split as [head_dim, n_heads]",
        lambda o: o.reshape(len(o), 16, 4).swapaxes(1, 2),
    ),
    ("axes", "heads stand before tokens", lambda o: o.swapaxes(0, 1).reshape(o.shape)),
    ("gain", "each head has a gain of its own, 1 to 4", lambda o: o * np.arange(1, 5)[:, None]),
]


@pytest.mark.parametrize(("kind", "sentence", "change"), HEADS, ids=[row[1] for row in HEADS])
def test_a_change_of_heads_is_found_in_either_form(
    kind: str, sentence: str, change: Callable[[Array], Array]
) -> None:
    o = normal(6, 4, 16)
    for x, exact, n_heads in ((change(o), o, None), (change(o).reshape(6, 64), o.reshape(6, 64), 4)):
        first = next(one for one in found(x, exact, n_heads=n_heads) if one.kind == kind)
        assert first.sentence == sentence and first.explained


def test_one_bad_head_is_found() -> None:
    o = normal(6, 8, 16)
    x = o.copy()
    x[:, 5] = normal(6, 16, seed=1)
    assert found(x, o)[0].sentence == "only head 5 is off, of 8"


def test_the_axes_of_ggml_are_found() -> None:
    o = normal(6, 4, 16)
    first = found(o.transpose(2, 1, 0), o)[0]
    assert (first.kind, first.sentence, first.explained) == (
        "axes",
        "the axes are in the order 2, 1, 0",
        True,
    )
    flat = found(o.reshape(6, 64), o)[0]
    assert flat.sentence == "the shape is [6, 64] for [6, 4, 16]"
    assert found(o[:5], o) == []


def test_another_layers_tensor_is_found() -> None:
    o, other = normal(8, 64), normal(8, 64, seed=1)
    assert found(other, o) == []
    first = found(other, o, neighbours={"blk.4.out": other, "blk.5.k": normal(8, 4, 16)})[0]
    assert (first.kind, first.sentence) == ("layer", "it is the tensor of blk.4.out")


def test_infinity_where_float16_ends_is_found() -> None:
    o = normal(8, 64) * 4e4
    with np.errstate(over="ignore"):
        first = found(to_float16(o), o)
    assert [one.kind for one in first] == [] or first[0].kind == "saturation"
    exact = np.where(np.abs(o) > 65504, np.copysign(np.inf, o), o)
    assert found(exact, o)[0].sentence == "it is infinite where the value is beyond float16's 65,504"
    assert found(np.where(np.arange(64) == 3, np.nan, o), o) == []


def test_what_is_masked_is_not_looked_at() -> None:
    o = normal(6, 4, 6)
    mask = causal_mask(np.arange(6))
    x = np.where(mask, 2 * o, 1e9)
    assert found(x, o, mask=mask)[0].sentence == "there is a gain of 2"


def test_a_little_noise_leaves_the_finding_unexplained() -> None:
    o = normal(8, 64)
    first = found(2 * o + 0.01 * normal(8, 64, seed=3), o)[0]
    assert first.kind == "gain" and not first.explained and 0.001 < first.remaining_error < 0.01


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 6), width=st.sampled_from([16, 33, 64]))
@settings(max_examples=30)
def test_nothing_is_found_in_noise_or_in_equality(seed: int, n: int, width: int) -> None:
    o = normal(n, width, seed=seed)
    assert found(normal(n, width, seed=seed + 1), o) == []
    assert find_structure(o, o, limit=LIMIT) == []


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([8, 16, 48]))
@settings(max_examples=20)
def test_any_permutation_of_features_is_found(seed: int, size: int) -> None:
    order = np.random.default_rng(seed).permutation(size)
    o = normal(4, size, seed=seed)
    if not np.array_equal(order, np.arange(size)):
        first = found(o[:, order], o)[0]
        assert first.kind in ("permutation", "feature") and first.explained


def test_a_vector_has_gains_but_no_tokens() -> None:
    o = normal(300)
    assert found(3 * o, o)[0].sentence == "there is a gain of 3"
    x = o.copy()
    x[4] = 9
    assert found(x, o) == []


BAD_SETS: list[tuple[list[int], str]] = [
    (list(range(512, 535)), "only tokens 512 to 534 are off, of 600"),
    ([3, 7, 8, 9, *range(40, 63)], "only tokens 3, 7 to 9 and 40 to 62 are off, of 600"),
    (list(range(3, 600, 9)), "only every 9th token from 3 to 597 is off, of 600"),
    ([i * i for i in range(24)], "only 24 of 600 tokens (first 0, 1, 4, last 529) are off"),
]


@pytest.mark.parametrize(("bad", "sentence"), BAD_SETS, ids=[row[1] for row in BAD_SETS])
def test_every_bad_token_is_said(bad: list[int], sentence: str) -> None:
    o = normal(600, 8)
    x = o.copy()
    x[bad] += normal(len(bad), 8, seed=2)
    assert found(x, o)[0].sentence == sentence


def test_a_slightly_bad_token_beside_a_very_bad_one_is_said() -> None:
    o = normal(20, 32)
    x = o.copy()
    x[4] *= 1e4
    x[9] *= 1.001
    assert found(x, o)[0].sentence == "only tokens 4 and 9 are off, of 20"


@pytest.mark.parametrize(
    ("point", "axis", "words"),
    [
        ("k", 1, "only KV heads 1 to 3 are off, of 16"),
        ("q", 1, "only heads 1 to 3 are off, of 16"),
        ("q", 2, "only head features 1 to 3 are off, of 16"),
        ("attn_probs", 2, "only keys 1 to 3 are off, of 16"),
    ],
)
def test_bad_heads_keys_and_features_of_heads_are_said(point: str, axis: int, words: str) -> None:
    o = np.abs(normal(6, 16, 16)) + 1
    x = np.moveaxis(o.copy(), axis, 0)
    x[1:4] = normal(*x[1:4].shape, seed=4)
    back = np.moveaxis(x, 0, axis).astype(np.float32)
    first = find_structure(back, o, limit=limit_for(point, "float32", "own"))[0]
    assert first.sentence == words and first.explained


@given(bad=st.sets(st.integers(0, 79), min_size=1, max_size=20), axis=st.sampled_from([0, 1]))
@settings(max_examples=60)
def test_what_is_said_to_be_bad_is_what_was_made_bad(bad: set[int], axis: int) -> None:
    o = normal(80, 80)
    x = np.moveaxis(o.copy(), axis, 0)
    x[sorted(bad)] += 1
    first = found(np.moveaxis(x, 0, axis), o)[0]
    noun = ("token", "feature")[axis]
    assert first.kind == noun and f"only {which(noun, bad, 80)} " in first.sentence


def test_many_heads_in_another_order_are_counted() -> None:
    o = normal(6, 16, 8)
    order = [1, 0, 3, 2, 5, 4, *range(6, 16)]
    first = next(one for one in found(o[:, order], o) if one.kind == "heads")
    assert first.sentence == "6 of 16 heads are others: 0 is 1, 1 is 0, 2 is 3, 3 is 2 and 2 more"


def test_what_rounding_does_not_leave_is_said_to_be_a_part() -> None:
    o = normal(8, 64)
    first = found(2 * o + 0.01 * normal(8, 64, seed=3), o)[0]
    assert first.said().startswith(f"a part of it: {first.sentence}; explains 99.5% of the error; 4.7e-03 ")
    assert first.said().endswith(f"where rounding leaves {LIMIT.err:.1e} at most: something else as well")
    assert 0.98 < first.share < 1 and first.allowed == LIMIT.err < first.remaining_error
