"""The KV cache: slots and positions are two things, sequences are apart, and nothing is read back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoints
from llama_ckpt.errors import ContextLengthError, OptionError
from llama_ckpt.model import load
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.kv_cache import KVCache
from tests.checkpoints.drawn_inputs import DEVICES, DTYPES, small_config
from tests.checkpoints.held_against import check_capturable
from tests.comparing.ported_llama import prompt, seeded

CONFIG: LlamaConfig = small_config(n_layers=3)


def tokens(first: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values that can be told apart: `[n, n_kv_heads, head_dim]` of first, first + 1, …."""
    k = torch.arange(first, first + n, dtype=torch.float32)[:, None, None].expand(n, 2, 16).contiguous()
    return k, -k


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_empty_cache(dtype: torch.dtype, device: str) -> None:
    cache = KVCache.allocate(CONFIG, 7, n_sequences=2, device=device, dtype=dtype)
    assert cache.capacity == 7 and cache.k.shape == cache.v.shape == (3, 2, 7, 2, 16)
    assert cache.k.dtype == dtype and cache.k.device.type == device
    assert (cache.positions == -1).all() and not cache.lengths.any() and not cache.k.any()


@pytest.mark.parametrize("size", [{"capacity": 0}, {"capacity": -1}, {"capacity": 4, "n_sequences": 0}])
def test_an_impossible_size(size: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="wanted at least 1 x 1"):
        KVCache.allocate(CONFIG, **size)


def test_slots_count_on_while_positions_are_what_they_are() -> None:
    cache = KVCache.allocate(CONFIG, 6)
    cache.reserve(torch.tensor([4000, 4001]))
    assert cache.slots.tolist() == [0, 1]
    cache.reserve(torch.tensor([4002]))
    assert cache.slots.tolist() == [2]
    assert cache.positions.tolist() == [[4000, 4001, 4002, -1, -1, -1]]
    assert cache.lengths.tolist() == [3] and cache.used == 3


@given(ids=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=4))
@settings(max_examples=50)
def test_each_sequence_gets_its_own_slots_in_order(ids: list[list[int]]) -> None:
    cache = KVCache.allocate(CONFIG, 16, n_sequences=3)
    held: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for number, one_pass in enumerate(ids):
        positions = [100 * number + i for i in range(len(one_pass))]
        cache.reserve(torch.tensor(positions), torch.tensor(one_pass))
        wanted = []
        for sequence, position in zip(one_pass, positions, strict=True):
            wanted.append(16 * sequence + len(held[sequence]))
            held[sequence].append(position)
        assert cache.slots.tolist() == wanted
    assert cache.lengths.tolist() == [len(held[sequence]) for sequence in range(3)]
    for sequence, positions in held.items():
        assert cache.positions[sequence].tolist() == positions + [-1] * (16 - len(positions))


@pytest.mark.parametrize("device", DEVICES)
def test_keys_and_values_are_written_in_place(device: str) -> None:
    cache = KVCache.allocate(CONFIG, 4, device=device)
    places = cache.k.data_ptr(), cache.v.data_ptr(), cache.positions.data_ptr(), cache.lengths.data_ptr()
    for first, n in ((1, 2), (3, 1)):
        cache.reserve(torch.arange(first, first + n, device=device))
        k, v = (x.to(device) for x in tokens(first, n))
        keys, values = cache.layer(1).update(k, v)
    assert keys[:, 0, 0].tolist() == [1.0, 2.0, 3.0, 0.0] and values[:, 1, 5].tolist() == [
        -1.0,
        -2.0,
        -3.0,
        0.0,
    ]
    assert torch.equal(cache.k[1, 0], keys) and not cache.k[[0, 2]].any()
    assert places == (
        cache.k.data_ptr(),
        cache.v.data_ptr(),
        cache.positions.data_ptr(),
        cache.lengths.data_ptr(),
    )


def test_keys_are_kept_in_the_dtype_of_the_cache() -> None:
    cache = KVCache.allocate(CONFIG, 4, dtype=torch.float16)
    cache.reserve(torch.tensor([0]))
    keys, _ = cache.layer(0).update(torch.full((1, 2, 16), 1 / 3), torch.ones(1, 2, 16))
    assert keys.dtype == torch.float16 and float(keys[0, 0, 0]) == float(torch.tensor(1 / 3).half())


def test_visible_compares_positions_and_passes_over_empty_slots() -> None:
    cache = KVCache.allocate(CONFIG, 4)
    cache.reserve(torch.tensor([7, 3, 5]))
    seen = cache.layer(0).visible(torch.tensor([3, 5, 100]), None)
    assert seen.tolist() == [
        [False, True, False, False],
        [False, True, True, False],
        [True, True, True, False],
    ]


def test_visible_keeps_sequences_apart() -> None:
    cache = KVCache.allocate(CONFIG, 2, n_sequences=2)
    cache.reserve(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    seen = cache.layer(0).visible(torch.tensor([9, 9]), torch.tensor([0, 1]))
    assert seen.tolist() == [[True, False, False, False], [False, False, True, True]]
    assert cache.layer(0).visible(torch.tensor([9]), None).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("passes", [[5], [4, 1], [1, 1, 1, 1, 1], [2, 3]])
def test_more_tokens_than_slots(passes: list[int]) -> None:
    cache = KVCache.allocate(CONFIG, 4)
    for n in passes[:-1]:
        cache.reserve(torch.arange(n))
    before = cache.positions.clone(), cache.lengths.clone(), cache.used
    with pytest.raises(ContextLengthError, match="got 5, wanted at most 4"):
        cache.reserve(torch.arange(passes[-1]))
    assert torch.equal(cache.positions, before[0]) and torch.equal(cache.lengths, before[1])
    assert cache.used == before[2]


def test_a_full_sequence_does_not_run_over_into_the_next() -> None:
    cache = KVCache.allocate(CONFIG, 2, n_sequences=3)
    cache.reserve(torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]))
    with pytest.raises((IndexError, RuntimeError), match="out of (bounds|range)"):
        cache.reserve(torch.tensor([2]), torch.tensor([0]))
    assert cache.positions[1:].tolist() == [[0, -1], [-1, -1]]


def test_clear_forgets_every_token_in_place() -> None:
    cache = KVCache.allocate(CONFIG, 3)
    place = cache.k.data_ptr()
    cache.reserve(torch.arange(3))
    cache.layer(0).update(*tokens(1, 3))
    cache.clear()
    assert not cache.layer(0).visible(torch.tensor([100]), None).any()
    cache.reserve(torch.arange(2))
    assert cache.slots.tolist() == [0, 1] and cache.lengths.tolist() == [2] and cache.k.data_ptr() == place


def test_reserving_writing_and_masking_read_nothing_back() -> None:
    def one_pass(
        positions: torch.Tensor, ids: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        cache = KVCache.allocate(CONFIG, 8, n_sequences=2)
        cache.reserve(positions, ids)
        keys, _ = cache.layer(1).update(k, v)
        return keys.sum() + cache.layer(1).visible(positions, ids)

    k, v = tokens(0, 3)
    check_capturable(one_pass, {"positions": torch.arange(3), "ids": torch.tensor([0, 1, 0]), "k": k, "v": v})


def test_tokens_are_taken_out_and_the_next_ones_stand_in_their_slots() -> None:
    cache = KVCache.allocate(CONFIG, 8, n_sequences=2)
    cache.reserve(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 0, 1, 0]))
    cache.remove(1)
    assert cache.positions[0].tolist()[:4] == [0, -1, -1, -1] and cache.positions[1].tolist()[:2] == [0, 1]
    assert cache.lengths.tolist() == [1, 2] and cache.used == 3
    cache.reserve(torch.tensor([1, 2]), torch.tensor([0, 1]))
    assert cache.slots.tolist() == [1, 8 + 2] and cache.used == 5


def test_chunks_a_rollback_and_a_batch_come_to_what_one_pass_does() -> None:
    model = load(seeded(), device="cpu")
    ids, other = torch.tensor(prompt(8)), torch.tensor(prompt(5))
    options: dict[str, Any] = {"config": model.config, "dtype": model.dtype}

    def logits(
        cache: KVCache | None, given: torch.Tensor, first: int, sequences: torch.Tensor | None = None
    ) -> torch.Tensor:
        at = first + torch.arange(len(given))
        if sequences is not None:
            at = torch.tensor([int((sequences[:i] == s).sum()) for i, s in enumerate(sequences)])
        places: dict[str, Any] = {"positions": at, "cache": cache, "sequence_ids": sequences}
        return checkpoints.logits(given, model.weights, **options, **places)

    whole, alone = logits(None, ids, 0), logits(None, other, 0)
    cache = KVCache.allocate(model.config, 16)
    parts = [logits(cache, ids[:5], 0), logits(cache, other[1:4], 5)]
    cache.remove(5)
    parts[1] = logits(cache, ids[5:], 5)
    assert torch.allclose(torch.cat(parts), whole, atol=2e-5)
    turns = torch.tensor([0, 1] * 5 + [0] * 3)
    both = torch.stack([ids[:5], other], 1).flatten()
    mixed = logits(None, torch.cat([both, ids[5:]]), 0, turns)
    assert torch.allclose(mixed[turns == 0], whole, atol=2e-5)
    assert torch.allclose(mixed[turns == 1], alone, atol=2e-5)
