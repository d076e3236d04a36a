"""The verdict: a correct tensor passes in every precision, and every kind of wrong one fails.

The tensor is a Llama's Q: projected from normalized vectors, 24 tokens, 16 heads of 128.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_ckpt.judging.limits import limit_for
from llama_ckpt.judging.metrics import causal_mask, measure
from llama_ckpt.judging.verdict import PointVerdict, judge
from llama_ckpt.oracle import llama as oracle

N, HEADS, HEAD_DIM, WIDTH = 24, 16, 128, 512
POSITIONS = np.arange(N)
FREQUENCIES = 10000.0 ** -(np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Change = Callable[[Any], Any]


def made(seed: int) -> tuple[Any, Any]:
    """Hidden vectors as small as a first block's, and a projection."""
    g = np.random.default_rng(seed)
    x = g.standard_normal((N, WIDTH)) * 0.03
    return x, g.standard_normal((HEADS * HEAD_DIM, WIDTH)) / math.sqrt(WIDTH)


def projected(seed: int, eps: float = 1e-5) -> Any:
    """The exact Q after RoPE, `[N, HEADS, HEAD_DIM]`."""
    x, w = made(seed)
    normed = oracle.rms_norm(x, np.ones(WIDTH), eps=eps)
    q, k, _ = oracle.qkv(normed, w, w, w, n_heads=HEADS, n_kv_heads=HEADS)
    return oracle.rope(q, k, POSITIONS, FREQUENCIES)[0]


def rounded(array: Any, dtype: str) -> Any:
    """What a correct program of a precision would have: the exact values, rounded once more than once."""
    noisy = np.asarray(array) * (1 + 2e-8 * np.random.default_rng(9).standard_normal(np.shape(array)))
    return torch.from_numpy(noisy).to(DTYPES[dtype]).float().numpy()


def judged(x: Any, o: Any, dtype: str = "float32", **options: Any) -> PointVerdict:
    """Judge x as a Q that comes teacher-forced out of a program of that precision."""
    point = options.pop("point", "q")
    error_kind = options.pop("error_kind", "own")
    return judge(f"blk.0.{point}", x, o, limit=limit_for(point, dtype, error_kind), dtype=dtype, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(10))
def test_a_correct_tensor_passes(dtype: str, seed: int) -> None:
    o = projected(seed)
    verdict = judged(rounded(o, dtype), o, dtype)
    assert (verdict.verdict, verdict.blame) == ("pass", ""), verdict.reason
    assert verdict.n_differ == 0
    assert verdict.n_judged == o.size


def test_a_verdict_says_what_is_nearest_to_its_limit() -> None:
    o = projected(1)
    fine = judged(rounded(o, "float32"), o)
    assert 0 < fine.share < 1 and fine.nearest
    x = np.array(o)
    x[3, 0, 5] += 0.9 * limit_for("q", "float32", "own").element_err * (abs(o[3, 0, 5]) + row_rms(o, 3))
    one_off = judged(x, o)
    assert one_off.verdict == "pass" and one_off.nearest == "element_err"
    assert one_off.share == pytest.approx(0.9, rel=1e-3)
    longer = judged(o * 1.001, o)
    assert longer.verdict == "fail" and longer.share > 1
    same = judge(
        "blk.0.token_ids", np.arange(4), np.arange(4), limit=limit_for("token_ids", "float32", "own")
    )
    assert same.nearest == "" and math.isnan(same.share)


def row_rms(o: Any, row: int) -> float:
    return float(np.sqrt(np.mean(np.square(o[row]))))


def half_split(q: Any) -> Any:
    """The rotation undone, and done again on pairs (i, i + d/2)."""
    q = oracle.rope(q, q, -POSITIONS, FREQUENCIES)[0]
    angle = POSITIONS[:, None] * FREQUENCIES
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    low, high = q[..., : HEAD_DIM // 2], q[..., HEAD_DIM // 2 :]
    return np.concatenate([low * cos - high * sin, low * sin + high * cos], axis=-1)


def garbage_last_token(q: Any) -> Any:
    q[-1] = q[0]
    return q


def zeroed_tail(q: Any) -> Any:
    q[:, :, -8:] = 0
    return q


def one_element(q: Any) -> Any:
    q[5, 3, 7] += 0.05
    return q


WRONG: dict[str, tuple[Change, str]] = {
    "gain of 1.04": (lambda q: q * 1.04, "gain off by 4.00e-02"),
    "gain of 1.002": (lambda q: q * 1.002, "gain"),
    "sign": (lambda q: -q, "gain off by 2.00e+00"),
    "bias": (lambda q: q + 0.02, "bias"),
    "garbage last token": (garbage_last_token, "(token 23)"),
    "half-split RoPE": (half_split, "err"),
    "no RoPE": (lambda q: oracle.rope(q, q, -POSITIONS, FREQUENCIES)[0], "err"),
    "RoPE one position late": (lambda q: oracle.rope(q, q, np.ones(N), FREQUENCIES)[0], "err"),
    "swapped heads": (lambda q: q[:, [1, 0, *range(2, HEADS)]], "err"),
    "heads transposed": (lambda q: q.reshape(N, HEAD_DIM, HEADS).transpose(0, 2, 1), "err"),
    "zeroed tail": (zeroed_tail, "err"),
    "all zeros": (np.zeros_like, "gain off by 1.00e+00"),
    "one element": (one_element, "element_err"),
    "a token late": (lambda q: np.roll(q, 1, axis=0), "row_err"),
    "a token early": (lambda q: np.roll(q, -1, axis=0), "row_err"),
    "a feature late": (lambda q: np.roll(q, 1, axis=2), "row_err"),
    "tokens permuted": (lambda q: q[[1, 0, *range(2, N)]], "err"),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_tensor_fails_and_says_what_it_looks_like(name: str, dtype: str) -> None:
    change, words = WRONG[name]
    o = projected(0)
    verdict = judged(rounded(change(o.copy()), dtype), o, dtype)
    assert (verdict.verdict, verdict.blame) == ("fail", "yours")
    assert words in verdict.reason or dtype != "float32", verdict.reason
    assert verdict.n_differ > 0 or "gain" in verdict.reason or "bias" in verdict.reason


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_epsilon_fails(dtype: str) -> None:
    verdict = judged(rounded(projected(0, eps=1e-6), dtype), projected(0), dtype)
    assert verdict.verdict == "fail"
    assert verdict.gain == pytest.approx(1.005, abs=1e-3)


def test_what_the_usual_metrics_let_through() -> None:
    """Cosine, correlation and means pass tensors that are plainly wrong; the verdict does not."""
    o = projected(0)
    for name in ("gain of 1.04", "garbage last token", "gain of 1.002"):
        x = WRONG[name][0](o.copy())
        cosine = np.vdot(x, o) / np.linalg.norm(x) / np.linalg.norm(o)
        assert cosine > 0.95
        assert judged(rounded(x, "float32"), o).verdict == "fail"
    for name in ("half-split RoPE", "swapped heads"):
        x = WRONG[name][0](o.copy())
        assert np.linalg.norm(x) == pytest.approx(np.linalg.norm(o), rel=1e-6)
        assert judged(rounded(x, "float32"), o).verdict == "fail"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_fails_with_its_first_place(value: float) -> None:
    o = projected(0)
    x = rounded(o, "float32")
    x[3, 2, 1] = x[5, 0, 0] = value
    verdict = judged(x, o, r=rounded(o, "float32"))
    assert (verdict.verdict, verdict.index, verdict.n_differ) == ("fail", (3, 2, 1), 2)
    assert "not finite" in verdict.reason
    assert json.loads(json.dumps(verdict.to_json(), allow_nan=False))["got"] is None


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (None, "missing"),
        (np.zeros((2, 3), np.float32), r"wrong shape: got [2, 3], wanted [2, 2]"),
        (np.zeros((2, 2, 1), np.float32), r"wrong shape"),
        (np.zeros((2, 2), np.float64), "wrong dtype: got float64, wanted float32"),
        (np.zeros((2, 2), np.int64), "wrong dtype: got int64"),
    ],
)
def test_what_cannot_be_measured_fails(x: Any, words: str) -> None:
    verdict = judge("q", x, np.zeros((2, 2)), limit=limit_for("q", "float32", "own"))
    assert (verdict.verdict, verdict.blame) == ("fail", "yours")
    assert words in verdict.reason
    json.dumps(verdict.to_json(), allow_nan=False)


def test_nothing_to_compare_fails() -> None:
    limit = limit_for("q", "float32", "own")
    assert (
        "nothing to compare" in judge("q", np.zeros((0, 4), np.float32), np.zeros((0, 4)), limit=limit).reason
    )


def test_an_oracle_that_is_not_finite_passes_nothing() -> None:
    o = projected(0)
    x = rounded(o, "float32")
    o[0, 0, 0] = x[0, 0, 0] = np.nan
    verdict = judged(x, o)
    assert verdict.verdict == "fail"
    assert "some input" in verdict.reason


def test_only_what_is_looked_at_may_be_wider_than_the_layer() -> None:
    o = np.ones((2, 1, 2))
    for point, verdict in (("attn_scores", "pass"), ("attn_probs", "pass"), ("q", "fail")):
        limit = limit_for(point, "float16", "own")
        assert judge(point, o.astype(np.float32), o, limit=limit, dtype="float32").verdict == verdict


class TestAgainstTheReference:
    """What llama.cpp's tensor changes."""

    def test_both_right_and_different_is_noise(self) -> None:
        o = projected(0)
        verdict = judged(rounded(o, "float32"), o, r=o.astype(np.float32), max_abs=1e-4)
        assert (verdict.verdict, verdict.blame) == ("pass", "noise")
        assert 0 < verdict.distance < 1e-7
        assert verdict.closer == "reference"
        assert verdict.max_abs_limit == pytest.approx(1e-4 * np.abs(o).max(), rel=1e-6)

    def test_equal_is_nobodys_fault(self) -> None:
        o = projected(0)
        x = rounded(o, "float32")
        verdict = judged(x, o, r=x, max_abs=1e-4)
        assert (verdict.verdict, verdict.blame, verdict.closer, verdict.distance) == ("pass", "", "equal", 0)

    def test_a_reference_that_is_off_is_said_to_be(self) -> None:
        o = projected(0)
        r = (o * 1.001).astype(np.float32)
        verdict = judged(rounded(o, "float32"), o, r=r, max_abs=1e-4)
        assert (verdict.verdict, verdict.blame, verdict.closer) == ("pass", "reference", "yours")
        assert verdict.err_reference == pytest.approx(1e-3, rel=1e-3)
        assert "judged by the oracle" in verdict.reason
        loosely = judged(rounded(o, "float32"), o, r=r)
        assert (loosely.verdict, loosely.blame) == ("pass", "reference")

    def test_a_reference_that_is_off_excuses_nothing(self) -> None:
        o = projected(0)
        wrong = (o * 1.001).astype(np.float32)
        assert judged(wrong, o, r=wrong, max_abs=1e-4).verdict == "fail"

    def test_the_absolute_limit_holds_where_the_reference_is_right(self) -> None:
        """One large element hides a small one's error from err, not from the absolute limit."""
        o = np.zeros((1, 4))
        o[0] = [1, 1e-6, 1, 1]
        x, r = o.astype(np.float32), o.astype(np.float32)
        x[0, 1] += 2e-6
        limit = limit_for("q", "float32", "own")
        assert judge("q", x, o, r=r, limit=limit, max_abs=1e-5).verdict == "pass"
        verdict = judge("q", x, o, r=r, limit=limit, max_abs=1e-6)
        assert (verdict.verdict, verdict.blame, verdict.index) == ("fail", "yours", (0, 1))
        assert "max|x - llama.cpp| 2.00e-06 > allowed 1.00e-06" in verdict.reason
        assert judge("q", x, o, limit=limit, max_abs=1e-6).verdict == "pass"

    def test_the_absolute_limit_is_float32s_and_teacher_forced(self) -> None:
        o = projected(0)
        r = o.astype(np.float32)
        assert judged(rounded(o, "float16"), o, "float16", r=r, max_abs=1e-9).verdict == "pass"
        free = judged(rounded(o, "float32"), o, error_kind="total", r=r, max_abs=1e-9)
        assert (free.verdict, free.error_kind) == ("pass", "total")

    def test_whoever_is_more_than_half_a_limit_off_answers_for_it(self) -> None:
        o = np.ones((1, 4))
        x, r = (o + 1e-7).astype(np.float32), (o - 9e-6).astype(np.float32)
        verdict = judge("q", x, o, r=r, limit=limit_for("q", "float32", "own"), max_abs=9.05e-6)
        assert (verdict.verdict, verdict.blame) == ("pass", "reference")

    def test_a_reference_of_another_shape_passes_nothing(self) -> None:
        o = projected(0)
        verdict = judged(rounded(o, "float32"), o, r=o[:1].astype(np.float32))
        assert (verdict.verdict, verdict.blame) == ("fail", "reference")

    def test_a_reference_that_is_not_finite_is_off(self) -> None:
        o = projected(0)
        r = rounded(o, "float32")
        r[0, 0, 0] = np.nan
        verdict = judged(rounded(o, "float32"), o, r=r, max_abs=1e-4)
        assert (verdict.verdict, verdict.blame) == ("pass", "reference")
        json.dumps(verdict.to_json(), allow_nan=False)


def test_scores_are_judged_where_the_query_sees_the_key() -> None:
    o = np.random.default_rng(0).standard_normal((4, 2, 4))
    x = o.astype(np.float32)
    mask = causal_mask([0, 1, 2, 3])
    x[0, :, 1:] = np.nan
    x[1, :, 2:] = -np.inf
    limit = limit_for("attn_scores", "float32", "own")
    verdict = judge("blk.0.attn_scores", x, o, limit=limit, mask=mask)
    assert (verdict.verdict, verdict.n_judged) == ("pass", 2 * (1 + 2 + 3 + 4))
    x[3, 0, 3] += 1e-3
    verdict = judge("blk.0.attn_scores", x, o, limit=limit, mask=mask, r=o.astype(np.float32))
    assert (verdict.verdict, verdict.index, verdict.worst_row) == ("fail", (3, 0, 3), 3)
    assert verdict.n_differ == 1


def test_causal_mask_tells_sequences_apart() -> None:
    mask = causal_mask([0, 0, 1], [5, 6, 5])[:, 0]
    assert mask.tolist() == [[True, False, False], [False, True, False], [True, False, True]]


class TestExact:
    """Points where nothing is rounded."""

    def test_ids(self) -> None:
        limit = limit_for("greedy_tokens", "bfloat16", "own")
        ids = np.array([3, 1, 4])
        assert judge("greedy_tokens", ids, ids, r=ids, limit=limit).reason == "equal"
        assert judge("greedy_tokens", ids.astype(np.int32), ids, limit=limit).verdict == "pass"
        off = judge("greedy_tokens", np.array([3, 2, 4]), ids, r=ids, limit=limit)
        assert (off.verdict, off.blame, off.index, off.got, off.wanted) == ("fail", "yours", (1,), 2, 1)
        assert judge("greedy_tokens", ids.astype(np.float32), ids, limit=limit).verdict == "fail"

    def test_one_bit_is_a_difference(self) -> None:
        limit = limit_for("embd", "float32", "own")
        o = np.full((2, 3), 1.5)
        x = o.astype(np.float32)
        assert judge("embd", x, o, r=x, limit=limit).verdict == "pass"
        x[1, 2] = np.nextafter(x[1, 2], np.float32(2))
        verdict = judge("embd", x, o, limit=limit)
        assert (verdict.verdict, verdict.index, verdict.n_differ) == ("fail", (1, 2), 1)

    def test_an_oracle_and_a_reference_at_odds_pass_nothing(self) -> None:
        limit = limit_for("last_logits", "float32", "own")
        o, r = np.ones(4), np.array([1, 1, 2, 1])
        verdict = judge("last_logits", o.astype(np.float32), o, r=r, limit=limit)
        assert (verdict.verdict, verdict.blame, verdict.index) == ("fail", "reference", (2,))


class TestMeasure:
    """The figures themselves."""

    def test_by_hand(self) -> None:
        found = measure([[3.0, 5.0], [0.0, 1.0]], [[3.0, 4.0], [0.0, 1.0]])
        assert found.err == pytest.approx(1 / math.sqrt(26))
        assert (found.row_err, found.row, found.n) == (pytest.approx(1 / 5), 0, 4)
        assert found.element_err == pytest.approx(1 / (4 + 5 / math.sqrt(2)))
        assert found.gain == pytest.approx(4 / 26)
        assert found.bias == pytest.approx((1 / 4) / math.sqrt(26 / 4))
        assert found.n_gain == pytest.approx(26**2 / (3**4 + 4**4 + 1))

    def test_zeros_are_measured_absolutely(self) -> None:
        found = measure([[0.0, 3e-9]], [[0.0, 0.0]])
        assert (found.err, found.row_err, found.gain) == (3e-9, 3e-9, 0)

    def test_a_row_of_next_to_nothing_is_measured_against_the_others(self) -> None:
        o = np.ones((3, 4))
        o[1] = 1e-12
        x = o.copy()
        x[1, 0] += 1e-7
        assert measure(x, o).row_err == pytest.approx(1e-7 / 0.2, rel=1e-4)

    @given(st.integers(0, 10_000), st.sampled_from([1e-8, 1e-4, 1.0]), st.floats(1e-20, 1e20))
    def test_properties(self, seed: int, noise: float, scale: float) -> None:
        g = np.random.default_rng(seed)
        o = g.standard_normal((5, 7))
        x = o + noise * g.standard_normal((5, 7))
        found = measure(x, o)
        assert abs(found.gain) <= found.err * (1 + 1e-9)
        assert abs(found.bias) <= found.err * (1 + 1e-9)
        assert found.err <= found.row_err * (1 + 1e-9)
        order = g.permutation(5)
        mixed = measure(scale * x[order], scale * o[order])
        assert mixed.err == pytest.approx(found.err, rel=1e-6)
        assert mixed.row_err == pytest.approx(found.row_err, rel=1e-6)
        assert order[mixed.row] == found.row
