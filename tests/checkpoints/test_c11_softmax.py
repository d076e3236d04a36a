"""Checkpoint 11: the probabilities that the next token is drawn with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoints import argmax, c11_softmax, softmax
from checkpoints.c11_softmax import CHECKPOINT
from tests.checkpoints.drawn_inputs import DEVICES, DTYPES, Values, arguments_seed
from tests.checkpoints.dump_trials import (
    EVERY_DUMP,
    DumpRun,
    check_a_point_fails,
    check_every_point,
    judge_own,
)
from tests.checkpoints.held_against import check_capturable, check_passes, check_same_bits, judged

POINT = ["sampling.0"]
OPTIONS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-7, 0.25, 1.0, 1.5]),
        "top_k": st.sampled_from([0, 1, 5, 1000]),
        "top_p": st.sampled_from([0.0, 0.1, 0.5, 0.95, 1.0]),
        "min_p": st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    }
)


@pytest.mark.parametrize("run", EVERY_DUMP)
def test_dump(run: DumpRun) -> None:
    check_every_point(run, CHECKPOINT)


def row(seed: int, *shape: int, exponent: int = 1, device: str = "cpu") -> Tensor:
    """Logits with a spread of 2^exponent."""
    return Values(seed, exponent).tensor(*shape, dtype=torch.float32, device=device)


@pytest.mark.parametrize("device", DEVICES)
@given(
    seed=arguments_seed(),
    exponent=st.integers(-3, 2),
    vocab=st.sampled_from([7, 100, 1000]),
    options=OPTIONS,
)
@settings(max_examples=50)
def test_oracle(device: str, seed: int, exponent: int, vocab: int, options: dict[str, Any]) -> None:
    arguments = {"logits": row(seed, vocab, exponent=exponent, device=device), **options}
    check_passes(judged(softmax, arguments, POINT))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_precision_logits_give_float32_probabilities(dtype: torch.dtype) -> None:
    arguments = {"logits": row(0, 100).to(dtype), "temperature": 0.7}
    check_passes(judged(softmax, arguments, POINT))


def test_every_row_has_its_own_cut() -> None:
    rows = row(0, 3, 50)
    options = {"temperature": 0.5, "top_k": 20, "top_p": 0.8, "min_p": 0.02}
    apart = torch.stack([softmax(one, **options) for one in rows])
    torch.testing.assert_close(softmax(rows, **options), apart, rtol=1e-6, atol=0)
    assert torch.equal(softmax(rows, **options) > 0, apart > 0)


@given(seed=arguments_seed(), options=OPTIONS)
@settings(max_examples=25)
def test_sums_to_one_and_keeps_the_order(seed: int, options: dict[str, Any]) -> None:
    x = row(seed, 80).double()
    p = softmax(x, **options)
    assert abs(float(p.sum()) - 1) < 1e-14
    assert bool((p >= 0).all()) and float(p[argmax(x)]) == float(p.max())
    ranked = p[x.argsort(descending=True, stable=True)]
    assert bool((ranked[:-1] >= ranked[1:]).all())


@given(seed=arguments_seed(), low=st.floats(0.1, 1), high=st.floats(1, 4))
@settings(max_examples=25)
def test_a_higher_temperature_is_flatter(seed: int, low: float, high: float) -> None:
    x = row(seed, 80).double()
    assert float(softmax(x, temperature=high).max()) <= float(softmax(x, temperature=low).max()) + 1e-15


@given(seed=arguments_seed(), top_p=st.floats(0.05, 0.95))
@settings(max_examples=25)
def test_top_p_keeps_the_fewest_that_reach_it(seed: int, top_p: float) -> None:
    x = row(seed, 80).double()
    plain, kept = softmax(x), softmax(x, top_p=top_p) > 0
    assert float(plain[kept].sum()) >= top_p - 1e-12
    assert float(plain[kept].sum() - plain[kept].min()) < top_p + 1e-12
    assert float(plain[kept].min()) >= float(plain[~kept].max())


@given(seed=arguments_seed(), min_p=st.floats(0.001, 1))
@settings(max_examples=25)
def test_min_p_is_a_share_of_the_best(seed: int, min_p: float) -> None:
    x = row(seed, 80).double()
    plain, kept = softmax(x), softmax(x, min_p=min_p) > 0
    assert float(plain[kept].min()) >= min_p * float(plain.max()) * (1 - 1e-12)
    assert not (~kept).any() or float(plain[~kept].max()) < min_p * float(plain.max()) * (1 + 1e-12)


@given(seed=arguments_seed(), temperature=st.floats(0.1, 5), k=st.integers(1, 80))
@settings(max_examples=25)
def test_the_cut_comes_before_the_temperature(seed: int, temperature: float, k: int) -> None:
    x = row(seed, 80).double()
    options = {"top_k": k, "top_p": 0.7, "min_p": 0.05}
    assert torch.equal(softmax(x, temperature=temperature, **options) > 0, softmax(x, **options) > 0)


@pytest.mark.parametrize(
    "options", [{"top_k": 1}, {"temperature": 0.0}, {"temperature": 9e-7}, {"top_p": 0.0}, {"min_p": 1.0}]
)
def test_settings_that_leave_the_best_alone(options: dict[str, Any]) -> None:
    x = row(3, 4, 60)
    wanted = torch.nn.functional.one_hot(argmax(x), 60).float()
    assert torch.equal(softmax(x, **options), wanted)


def test_of_ties_the_lower_id_stays() -> None:
    x = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0])
    assert softmax(x, top_k=2).tolist() == [0.0, 0.5, 0.5, 0.0, 0.0]
    assert softmax(x, temperature=0.0).tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]


def test_large_logits_do_not_overflow() -> None:
    x = torch.tensor([1e30, -1e30, 1e30, 0.0])
    assert softmax(x).tolist() == [0.5, 0.0, 0.5, 0.0]
    assert softmax(torch.tensor([-math.inf, 0.0, 0.0]), top_p=0.9).tolist() == [0.0, 0.5, 0.5]


def test_two_runs_are_equal() -> None:
    check_same_bits(softmax, {"logits": row(0, 3, 1000), "top_k": 50, "top_p": 0.9, "temperature": 0.7})


def test_capturable() -> None:
    options = {"top_k": 50, "top_p": 0.9, "min_p": 0.1, "temperature": 0.7}
    check_capturable(softmax, {"logits": row(0, 3, 100), **options})


def temperature_multiplied(logits: Tensor, *, temperature: float = 1.0, **cut: Any) -> Tensor:
    return softmax(logits, temperature=1 / max(temperature, 1e-6), **cut)


def temperature_first(logits: Tensor, *, temperature: float = 1.0, **cut: Any) -> Tensor:
    return softmax(logits / max(temperature, 1e-6), **cut)


def temperature_forgotten(logits: Tensor, *, temperature: float = 1.0, **cut: Any) -> Tensor:
    return softmax(logits, **cut)


def renormalized_never(logits: Tensor, *, temperature: float = 1.0, **cut: Any) -> Tensor:
    kept = softmax(logits, temperature=temperature, **cut) > 0
    return softmax(logits, temperature=temperature) * kept


def one_fewer(logits: Tensor, **options: Any) -> Tensor:
    """What stays, less the least likely of it."""
    p = softmax(logits, **options)
    kept = p > 0
    last = torch.where(kept, p, 2.0).argmin()
    p = p.index_fill(0, last, 0.0) if int(kept.sum()) > 1 else p
    return p / p.sum()


def top_p_one_early(logits: Tensor, *, top_p: float = 1.0, **options: Any) -> Tensor:
    return softmax(logits, **options) if top_p >= 1 else one_fewer(logits, top_p=top_p, **options)


def top_k_one_early(logits: Tensor, *, top_k: int = 0, **options: Any) -> Tensor:
    return softmax(logits, top_k=max(top_k - 1, 1) if top_k else 0, **options)


def top_k_forgotten(logits: Tensor, *, top_k: int = 0, **options: Any) -> Tensor:
    return softmax(logits, **options)


def top_p_forgotten(logits: Tensor, *, top_p: float = 1.0, **options: Any) -> Tensor:
    return softmax(logits, **options)


def min_p_of_one(logits: Tensor, *, min_p: float = 0.0, **options: Any) -> Tensor:
    return softmax(logits, min_p=min(1.0, min_p / float(logits.softmax(-1).max())), **options)


def log_probabilities(logits: Tensor, **options: Any) -> Tensor:
    return softmax(logits, **options).log()


def in_float16(logits: Tensor, **options: Any) -> Tensor:
    return softmax(logits.half(), **options)


def ids_shifted(logits: Tensor, **options: Any) -> Tensor:
    return softmax(logits, **options).roll(1)


def ranked_not_by_id(logits: Tensor, **options: Any) -> Tensor:
    return softmax(logits, **options).sort(descending=True).values


WRONG = [
    temperature_multiplied,
    temperature_first,
    temperature_forgotten,
    renormalized_never,
    top_p_one_early,
    top_k_one_early,
    top_k_forgotten,
    top_p_forgotten,
    min_p_of_one,
    log_probabilities,
    in_float16,
    ids_shifted,
    ranked_not_by_id,
]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_layer_fails(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c11_softmax, "softmax", wrong)
    check_a_point_fails(judge_own(CHECKPOINT))


def test_an_overflowing_exp_fails() -> None:
    def wrong(logits: Tensor) -> Tensor:
        e = logits.exp()
        return e / e.sum(-1, keepdim=True)

    check_a_point_fails(judged(wrong, {"logits": row(0, 50) + 100.0}, POINT, function="softmax"))
