"""Drawing a token: llama.cpp's random numbers, its penalty, its order of candidates, its draw."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import argmax, softmax
from checkpoints.c12_end_to_end import choose
from llama_ckpt.errors import OptionError
from llama_ckpt.tokens.sampling import PENALTY_WINDOW, SamplingOptions, Uniforms, draw, penalize
from tests.checkpoints.drawn_inputs import DEVICES, DTYPES, Values, arguments_seed
from tests.checkpoints.held_against import check_capturable

# The first raw words of std::mt19937 with its default seed; the C++ standard states the 10,000th.
SEED_5489 = (3499211612, 581869302, 3890346734, 3586334585)
TEN_THOUSANDTH = 4123659995


def combined(low: int, high: int) -> float:
    """Two raw words as libstdc++'s generate_canonical makes a double of them, rounded once."""
    return (low + high * 2**32) / 2**64


def test_uniforms_are_those_of_mt19937() -> None:
    uniforms = Uniforms(5489)
    low, high, low_2, high_2 = SEED_5489
    assert [uniforms.next(), uniforms.next()] == [combined(low, high), combined(low_2, high_2)]


def test_the_ten_thousandth_word_is_the_standard_s() -> None:
    uniforms = Uniforms(5489)
    last = [uniforms.next() for _ in range(5000)][-1]
    assert int(last * 2**32) == TEN_THOUSANDTH  # the high word of the 5,000th number


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_uniforms_lie_in_zero_to_one_and_repeat(seed: int) -> None:
    first, second = Uniforms(seed), Uniforms(seed)
    numbers = [first.next() for _ in range(20)]
    assert all(0 <= number < 1 for number in numbers) and len(set(numbers)) == 20
    assert numbers == [second.next() for _ in range(20)]


def test_unseeded_uniforms_differ() -> None:
    assert Uniforms(None).next() != Uniforms(None).next()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("uniform", "by_id", "best_first"),
    [
        (0.0, 1, 3),
        (0.05, 1, 3),
        (0.15, 3, 3),
        (0.55, 3, 3),
        (0.65, 3, 4),
        (0.75, 4, 4),
        (0.95, 4, 1),
        (1 - 2**-53, 4, 1),
    ],
)
def test_a_draw_goes_by_the_running_sum(uniform: float, by_id: int, best_first: int, device: str) -> None:
    p = torch.tensor([0.0, 0.1, 0.0, 0.6, 0.3], device=device)
    assert int(draw(p, uniform, ranked=False)) == by_id
    assert int(draw(p, uniform, ranked=True)) == best_first


@given(seed=arguments_seed(), uniform=st.floats(0, 1, exclude_max=True), ranked=st.booleans())
@settings(max_examples=50)
def test_what_was_cut_off_is_never_drawn(seed: int, uniform: float, ranked: bool) -> None:
    p = softmax(Values(seed).tensor(50, dtype=torch.float32), top_k=3)
    assert float(p[draw(p, uniform, ranked=ranked)]) > 0


def test_equal_probabilities_are_ranked_by_id() -> None:
    p = torch.tensor([0.25, 0.25, 0.25, 0.25])
    assert [int(draw(p, u, ranked=True)) for u in (0.1, 0.3, 0.6, 0.9)] == [0, 1, 2, 3]


def test_frequencies_are_the_probabilities() -> None:
    p, uniforms, n = torch.tensor([0.5, 0.0, 0.3, 0.2]), Uniforms(1), 4000
    counts = torch.bincount(
        torch.stack([draw(p, uniforms.next(), ranked=False) for _ in range(n)]), minlength=4
    )
    deviation = (counts / n - p).abs()
    assert float(deviation.max()) < 4 * math.sqrt(0.25 / n)  # four standard deviations; the seed is fixed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_penalty(dtype: torch.dtype, device: str) -> None:
    logits = torch.tensor([3.0, -2.0, 0.0, 5.0, -1.0], dtype=dtype, device=device)
    found = penalize(logits, torch.tensor([0, 1, 2, 0, 0], device=device), 2.0)
    assert found.tolist() == [1.5, -4.0, 0.0, 5.0, -1.0] and found.dtype == dtype
    assert logits.tolist() == [3.0, -2.0, 0.0, 5.0, -1.0]


def test_a_penalty_of_one_is_none() -> None:
    logits = torch.tensor([3.0, -2.0])
    assert penalize(logits, torch.tensor([0]), 1.0) is logits


def test_a_penalty_below_one_makes_tokens_likelier() -> None:
    assert penalize(torch.tensor([3.0, -2.0]), torch.tensor([0, 1]), 0.5).tolist() == [6.0, -1.0]


def test_penalty_and_draw_read_nothing_back() -> None:
    logits, recent = torch.zeros(20), torch.tensor([1, 2])
    check_capturable(lambda **a: penalize(repetition_penalty=1.1, **a), {"logits": logits, "recent": recent})
    for ranked in (False, True):
        check_capturable(draw, {"probabilities": logits, "uniform": 0.5, "ranked": ranked})


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"min_p": 1.5},
        {"min_p": -1.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.nan},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_bad_options(bad: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"^{next(iter(bad))}: got .*, wanted "):
        SamplingOptions(**bad)


def test_defaults_are_greedy() -> None:
    assert SamplingOptions().greedy and SamplingOptions(temperature=9e-7).greedy
    assert not SamplingOptions(temperature=1e-6).greedy
    row = Values(0).tensor(100, dtype=torch.float32)
    chosen = choose(row, torch.tensor([], dtype=torch.int64), SamplingOptions(), Uniforms(0))
    assert chosen == int(argmax(row))


def test_a_candidate_list_is_ranked_after_top_k_and_top_p_only() -> None:
    assert not SamplingOptions(temperature=1.0, min_p=0.1).ranked
    assert (
        SamplingOptions(temperature=1.0, top_k=5).ranked
        and SamplingOptions(temperature=1.0, top_p=0.9).ranked
    )


# Exact in float32, as llama.cpp keeps its parameters.
LIVE = [
    {"temperature": 1.0},
    {"temperature": 0.75, "top_k": 40},
    {"temperature": 1.5, "top_p": 0.875},
    {"temperature": 1.0, "min_p": 0.0625},
    {"temperature": 0.5, "top_k": 200, "top_p": 0.9375, "min_p": 0.03125},
    {"temperature": 1.25, "top_k": 1},
    {"temperature": 2.0, "top_p": 0.5, "repetition_penalty": 1.25},
    {"temperature": 1.0, "repetition_penalty": 1.5},
    {"temperature": 1.0, "top_k": 60, "repetition_penalty": 0.75},
]


class LlamaCppChain:
    """llama.cpp's own samplers in their usual order, on logits that we make."""

    def __init__(self, options: SamplingOptions, vocab: int) -> None:
        import llama_cpp

        self.api = llama_cpp
        self.chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        for sampler in (
            llama_cpp.llama_sampler_init_penalties(
                vocab, PENALTY_WINDOW, options.repetition_penalty, 0.0, 0.0
            ),
            llama_cpp.llama_sampler_init_top_k(options.top_k),
            llama_cpp.llama_sampler_init_top_p(options.top_p, 1),
            llama_cpp.llama_sampler_init_min_p(options.min_p, 1),
            llama_cpp.llama_sampler_init_temp(options.temperature),
            llama_cpp.llama_sampler_init_dist(options.seed),
        ):
            llama_cpp.llama_sampler_chain_add(self.chain, sampler)

    def __enter__(self) -> LlamaCppChain:
        return self

    def __exit__(self, *_: object) -> None:
        self.api.llama_sampler_free(self.chain)

    def choose(self, row: np.ndarray) -> int:
        """Choose a token and take note of it, as generation does."""
        data = (self.api.llama_token_data * len(row))()
        view = np.ctypeslib.as_array(data)
        view["id"], view["logit"], view["p"] = np.arange(len(row)), row, 0.0
        candidates = self.api.llama_token_data_array(data, len(row), -1, False)
        self.api.llama_sampler_apply(self.chain, ctypes.byref(candidates))
        token = int(candidates.data[candidates.selected].id)
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        self.api.llama_sampler_accept(self.chain, token)


@pytest.mark.llama_cpp
@pytest.mark.parametrize("vocab", [500, 4000])
@pytest.mark.parametrize("options", LIVE, ids=str)
def test_the_same_seed_draws_llama_cpps_tokens(options: dict[str, Any], vocab: int) -> None:
    for seed in (0, 1, 42, 2**32 - 2):
        chosen = SamplingOptions(**options, seed=seed)
        generator = np.random.default_rng(seed)
        history, uniforms = [3, 1, 3], Uniforms(seed)
        with LlamaCppChain(chosen, vocab) as chain:
            for token in history:
                chain.accept(token)
            for step in range(80):  # more than the penalty's window
                row = (generator.standard_normal(vocab) * 3).astype(np.float32)
                recent = torch.tensor(history[-PENALTY_WINDOW:])
                ours = choose(torch.from_numpy(row), recent, chosen, uniforms)
                assert ours == chain.choose(row), f"seed {seed}, step {step}"
                history.append(ours)


@pytest.mark.llama_cpp
def test_the_penalty_is_llama_cpps() -> None:
    import llama_cpp

    row = (np.random.default_rng(0).standard_normal(200) * 3).astype(np.float32)
    row[[5, 9]] = 0.0, -0.0
    recent = [5, 9, 17, 17, 40, 199, 0]
    sampler = llama_cpp.llama_sampler_init_penalties(200, PENALTY_WINDOW, 1.3, 0.0, 0.0)
    for token in recent:
        llama_cpp.llama_sampler_accept(sampler, token)
    data = (llama_cpp.llama_token_data * 200)()
    view = np.ctypeslib.as_array(data)
    view["id"], view["logit"] = np.arange(200), row
    candidates = llama_cpp.llama_token_data_array(data, 200, -1, False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(candidates))
    llama_cpp.llama_sampler_free(sampler)
    found = penalize(torch.from_numpy(row), torch.tensor(recent), float(np.float32(1.3)))
    np.testing.assert_array_equal(found.numpy(), view["logit"])


@pytest.mark.llama_cpp
@pytest.mark.parametrize("options", LIVE[:6], ids=str)
def test_the_probabilities_are_llama_cpps(options: dict[str, Any]) -> None:
    import llama_cpp

    from llama_ckpt.capture.sampler_chain import run_chain, survivors
    from llama_ckpt.dumps.manifest import Sampling

    setting = Sampling(**{"top_k": 0, "top_p": 1.0, "min_p": 0.0, "row": 0, **options})
    rows = (np.random.default_rng(1).standard_normal((6, 3000)) * 3).astype(np.float32)
    clear = [row for row in rows if survivors(row, setting) is not None]
    assert clear
    for row in clear:
        kept, probabilities = run_chain(llama_cpp, row, setting)
        ours = softmax(torch.from_numpy(row), **options).numpy()
        assert np.flatnonzero(ours).tolist() == kept.tolist()
        assert np.abs(ours[kept] - probabilities).max() <= 1e-6
