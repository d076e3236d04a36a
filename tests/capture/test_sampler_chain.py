"""llama.cpp's sampler chain: what is recorded of it, and that its cut is never a coin flip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference_dumps
from llama_ckpt.capture.library import load_library
from llama_ckpt.capture.sampler_chain import (
    ARGMAX_BELOW,
    SETTINGS,
    clear_settings,
    penalty_setting,
    run_chain,
    survivors,
)
from llama_ckpt.dumps.manifest import Sampling
from llama_ckpt.dumps.reference import open_dumps

PLAIN = Sampling(1.0, 0, 1.0, 0.0, 0)
Chain = Callable[[Any, Sampling], tuple[NDArray[np.int32], NDArray[np.float32]]]


def spread(*chances: float) -> NDArray[np.float32]:
    """Logits whose softmax is `chances`."""
    return np.log(np.array(chances)).astype(np.float32)


@pytest.fixture(scope="module")
def chain() -> Chain:
    """llama.cpp's chain."""
    api = load_library().api
    return lambda logits, setting: run_chain(api, np.asarray(logits, np.float32), setting)


CUTS = {
    "everything": (PLAIN, 4),
    "top-k": (replace(PLAIN, top_k=3), 3),
    "top-k beyond all": (replace(PLAIN, top_k=9), 4),
    "top-p keeps the one that crosses it": (replace(PLAIN, top_p=0.6), 2),
    "top-p on the border": (replace(PLAIN, top_p=0.5), None),
    "min-p": (replace(PLAIN, min_p=0.3), 3),
    "min-p on the border": (replace(PLAIN, min_p=0.4), None),
    "top-p is of what top-k left": (replace(PLAIN, top_k=2, top_p=0.6), 1),
    "min-p after top-p": (replace(PLAIN, top_p=0.85, min_p=0.3), 3),
    "argmax": (replace(PLAIN, temperature=0.0), 1),
    "nearly argmax": (replace(PLAIN, temperature=0.9 * ARGMAX_BELOW), 1),
    "temperature comes after top-p": (replace(PLAIN, temperature=0.5, top_p=0.6), 2),
}


@pytest.mark.parametrize(("setting", "count"), CUTS.values(), ids=CUTS)
def test_what_a_setting_leaves(setting: Sampling, count: int | None) -> None:
    assert survivors(spread(0.125, 0.5, 0.2, 0.175), setting) == count


@pytest.mark.parametrize("setting", [replace(PLAIN, top_k=1), replace(PLAIN, temperature=0.0)])
def test_a_cut_between_equal_logits_is_not_clear(setting: Sampling) -> None:
    assert survivors(spread(0.4, 0.4, 0.2), setting) is None
    assert survivors(spread(0.4, 0.5, 0.1), setting) == 1


def test_a_penalty_shrinks_both_signs_away_from_the_top() -> None:
    penalty = replace(PLAIN, temperature=0.0, repeat_penalty=1.25, penalty_tokens=(0, 0, 1))
    assert survivors(np.array([2.0, -1.0, 1.6], np.float32), penalty) is None  # 2 / 1.25 = 1.6, once
    assert survivors(np.array([2.0, -1.0, 1.7], np.float32), penalty) == 1


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 10))
def test_recorded_settings_are_clear_and_sparse(seed: int, scale: float) -> None:
    logits = (scale * np.random.default_rng(seed).standard_normal(3000)).astype(np.float32)
    for setting in clear_settings(logits, 7):
        count = survivors(logits, setting)
        assert count is not None and 1 <= count <= 300
        assert setting.row == 7


def test_equal_logits_leave_nothing_to_record() -> None:
    assert clear_settings(np.zeros(1000, np.float32), 0) == []


def test_settings_are_exact_in_float32_and_cover_the_chain() -> None:
    for setting in SETTINGS:
        for value in (setting.temperature, setting.top_p, setting.min_p):
            assert float(np.float32(value)) == value
    assert len({setting.temperature for setting in SETTINGS}) >= 5
    assert sum(setting.temperature < ARGMAX_BELOW for setting in SETTINGS) == 2
    assert any(setting.top_k == 1 for setting in SETTINGS)


@pytest.mark.llama_cpp
@pytest.mark.parametrize(("setting", "count"), CUTS.values(), ids=CUTS)
def test_llama_cpp_leaves_as_many(setting: Sampling, count: int | None, chain: Chain) -> None:
    ids, probabilities = chain(spread(0.125, 0.5, 0.2, 0.175), setting)
    assert count in (None, len(ids))
    assert list(ids) == sorted(ids) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-6)


@pytest.mark.llama_cpp
def test_probabilities_are_of_the_survivors_after_the_temperature(chain: Chain) -> None:
    """Without `dist` the chain would show what top-p computed, before the temperature."""
    ids, probabilities = chain(spread(0.125, 0.5, 0.2, 0.175), replace(PLAIN, temperature=0.5, top_p=0.6))
    assert list(ids) == [1, 2]
    np.testing.assert_allclose(probabilities, np.array([0.25, 0.04]) / 0.29, rtol=1e-6)


@pytest.mark.llama_cpp
def test_the_penalty_comes_first(chain: Chain) -> None:
    penalty = replace(PLAIN, top_k=2, repeat_penalty=2.0, penalty_tokens=(0,))
    ids, probabilities = chain([2.0, 1.5, 1.25], penalty)
    assert list(ids) == [1, 2]
    np.testing.assert_allclose(probabilities[0], 1 / (1 + np.exp(-0.25)), rtol=1e-6)


@pytest.mark.parametrize("weights", reference_dumps.dump_folders())
def test_recorded_survivors_are_those_of_the_recorded_logits(weights: str) -> None:
    dumps = open_dumps(reference_dumps.dump_folder(weights))
    for dump in map(dumps.dump, dumps.names):
        for index, setting in enumerate(dump.entry.sampling):
            ids, probabilities = dump.survivors(index)
            assert len(ids) == survivors(dump["last_logits"], setting)
            np.testing.assert_allclose(probabilities.sum(dtype=np.float64), 1, rtol=1e-6)
        penalized, _ = dump.survivors(0, penalized=True)
        assert len(penalized) == survivors(dump["last_logits"], dump.entry.penalized[0])


def test_the_penalty_reaches_tokens_that_survive() -> None:
    logits = np.random.default_rng(1).standard_normal(500).astype(np.float32)
    setting = penalty_setting(logits, (1, 2))
    assert setting.penalty_tokens[:2] == (1, 2)
    assert int(logits.argmax()) in setting.penalty_tokens
