"""llama.cpp's sampler chain: penalties, top-k, top-p, min-p, temperature, dist.

The chain cuts before it scales. `dist` stands last because it alone computes the probabilities
of what is left; without it `p` is what an earlier sampler put there.

A setting is recorded where its cut is clear: where a token lies within rounding of the border,
which tokens survive would be chance and no test of anybody. And where it leaves few: a dump
stores the survivors only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.dumps.manifest import Sampling

__all__ = ["SETTINGS", "clear_settings", "penalty_setting", "run_chain", "survivors"]

# Every number is exact in float32: 0.7 would not be, and temperature 0.7 in double precision
# differs from llama.cpp's by as much as a whole limit.
SETTINGS: tuple[Sampling, ...] = (
    Sampling(temperature=1.0, top_k=40, top_p=1.0, min_p=0.0, row=-1),
    Sampling(temperature=0.75, top_k=40, top_p=0.9375, min_p=0.0625, row=-1),
    Sampling(temperature=1.0, top_k=0, top_p=0.875, min_p=0.0, row=-1),
    Sampling(temperature=0.5, top_k=0, top_p=0.5, min_p=0.0, row=-1),
    Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0625, row=-1),
    Sampling(temperature=2.0, top_k=100, top_p=0.75, min_p=0.0, row=-1),
    Sampling(temperature=1.0, top_k=1, top_p=1.0, min_p=0.0, row=-1),
    Sampling(temperature=1.0, top_k=0, top_p=2.0**-10, min_p=0.0, row=-1),
    Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, row=-1),
    Sampling(temperature=2.0**-21, top_k=20, top_p=1.0, min_p=0.0, row=-1),
)
"""What is tried on the last row; `row` is filled in. The last two are below 1e-6: argmax."""

MOST_SURVIVORS = 300
TRIES = 48
CLEAR_PROBABILITY = 1e-5  # distance of the cumulative probability from top_p
CLEAR_LOGIT = 1e-4  # distance of a logit from a border
ARGMAX_BELOW = 1e-6  # temperatures below this leave the best token alone


def clear_settings(
    logits: NDArray[np.float32], row: int, settings: tuple[Sampling, ...] = SETTINGS
) -> list[Sampling]:
    """The settings to record for a row of logits: each tightened until its cut is clear.

    A setting that never gets clear (a row of equal logits) is left out.
    """
    found = []
    for setting in settings:
        tries = (one for one in _tightened(replace(setting, row=row)) if _usable(logits, one))
        found += [one for one in [next(tries, None)] if one is not None]
    return found


def penalty_setting(logits: NDArray[np.float32], token_ids: tuple[int, ...]) -> Sampling:
    """A repetition penalty, before top-k, over the prompt's tokens and some of the likeliest.

    The prompt's own are seldom among the 40 best, and then the penalty would change nothing.
    """
    best = np.argsort(-logits, kind="stable")[:8:2]
    tokens = (*token_ids, *(int(token) for token in best))
    return Sampling(1.0, 40, 1.0, 0.0, -1, repeat_penalty=1.25, penalty_tokens=tokens)


def survivors(logits: NDArray[np.float32], setting: Sampling) -> int | None:
    """How many tokens a setting leaves, in float64; None where rounding could change that."""
    ordered = np.sort(_penalized(logits, setting))[::-1]
    count = min(setting.top_k or ordered.size, ordered.size)
    borders = [count]
    if setting.top_p < 1.0:
        chances = np.exp(ordered[:count] - ordered[0])
        cumulative = np.cumsum(chances / chances.sum())
        if np.abs(cumulative - setting.top_p).min() < CLEAR_PROBABILITY:
            return None
        count = int(np.searchsorted(cumulative, setting.top_p)) + 1
        borders.append(count)
    if setting.min_p > 0.0:
        above = ordered[:count] - (ordered[0] + np.log(setting.min_p))
        if np.abs(above).min() < CLEAR_LOGIT:
            return None
        count = int((above > 0).sum())
    if setting.temperature < ARGMAX_BELOW:
        count = 1
        borders.append(count)
    # A border between two equal logits would cut by chance.
    gaps = [ordered[border - 1] - ordered[border] for border in borders if border < ordered.size]
    return count if all(gap > CLEAR_LOGIT for gap in gaps) else None


def _penalized(logits: NDArray[np.float32], setting: Sampling) -> NDArray[np.float64]:
    """Logits after the repetition penalty: positive ones divided, the others multiplied by it."""
    values = logits.astype(np.float64)
    ids = sorted(set(setting.penalty_tokens))
    factor = setting.repeat_penalty
    values[ids] = np.where(values[ids] > 0, values[ids] / factor, values[ids] * factor)
    return values


def run_chain(
    api: Any, logits: NDArray[np.float32], setting: Sampling
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """What llama.cpp's chain leaves of a row of logits.

    Returns:
        The tokens with a probability above zero, ascending, and their probabilities.
    """
    tokens = (api.llama_token_data * logits.size)()
    view = np.ctypeslib.as_array(tokens)
    view["id"], view["logit"], view["p"] = np.arange(logits.size), logits, 0.0
    array = api.llama_token_data_array(tokens, logits.size, -1, False)
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    for sampler in _samplers(api, logits.size, setting):
        api.llama_sampler_chain_add(chain, sampler)
    for token in setting.penalty_tokens:
        api.llama_sampler_accept(chain, token)
    api.llama_sampler_apply(chain, ctypes.byref(array))
    api.llama_sampler_free(chain)
    left = np.ctypeslib.as_array(array.data, (array.size,))
    left = np.sort(left[left["p"] > 0], order="id")
    return left["id"].astype(np.int32), left["p"].astype(np.float32)


def _samplers(api: Any, vocab_size: int, setting: Sampling) -> Iterator[Any]:
    last_n = len(setting.penalty_tokens)
    yield api.llama_sampler_init_penalties(vocab_size, last_n, setting.repeat_penalty, 0.0, 0.0)
    yield api.llama_sampler_init_top_k(setting.top_k)
    yield api.llama_sampler_init_top_p(setting.top_p, 1)
    yield api.llama_sampler_init_min_p(setting.min_p, 1)
    yield api.llama_sampler_init_temp(setting.temperature)
    yield api.llama_sampler_init_dist(0)


def _usable(logits: NDArray[np.float32], setting: Sampling) -> bool:
    count = survivors(logits, setting)
    return count is not None and count <= MOST_SURVIVORS


def _tightened(setting: Sampling) -> Iterator[Sampling]:
    """The setting, then ever stricter ones, in numbers that float32 holds exactly."""
    for step in range(TRIES):
        yield replace(
            setting,
            top_k=max(1, setting.top_k - step) if setting.top_k else 0,
            top_p=float(np.float32(setting.top_p * 0.85**step)) if setting.top_p < 1.0 else 1.0,
            min_p=float(np.float32(setting.min_p * 1.06**step)) if setting.min_p > 0.0 else 0.0,
        )
