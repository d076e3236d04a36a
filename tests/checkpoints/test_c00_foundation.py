"""Checkpoint 0: the same tokens as llama.cpp, and for each the same row of the table, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import c00_foundation, embed
from checkpoints.c00_foundation import CHECKPOINT, tokenize
from llama_ckpt.weights.quants import PackedWeight
from tests.checkpoints.drawn_inputs import DEVICES, DTYPES, Values, values
from tests.checkpoints.dump_trials import (
    EVERY_DUMP,
    DumpRun,
    check_a_point_fails,
    check_every_point,
    judge_own,
)
from tests.checkpoints.held_against import check_capturable, check_passes, check_same_bits, exact, judged


@pytest.mark.parametrize("run", EVERY_DUMP)
def test_dump(run: DumpRun) -> None:
    check_every_point(run, CHECKPOINT)


@pytest.mark.parametrize("device", DEVICES)
@given(x=values(-10, 10), n=st.integers(1, 9), dtype=st.sampled_from(DTYPES))
@settings(max_examples=25)
def test_oracle(device: str, x: Values, n: int, dtype: torch.dtype) -> None:
    table = x.tensor(32, 24, dtype=dtype, device=device)
    token_ids = torch.randint(0, 32, (n,), generator=torch.Generator().manual_seed(x.seed)).to(device)
    check_passes(judged(embed, {"token_ids": token_ids, "weight": table}, ["embd"], dtype=dtype))
    found = embed(token_ids, table)
    assert found.dtype == dtype and found.device.type == device
    assert torch.equal(found, torch.stack([table[i] for i in token_ids.tolist()]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_packed_table_gives_the_rows_of_the_whole_one(dtype: torch.dtype) -> None:
    table = packed_table()
    token_ids = torch.tensor([5, 0, 5, 7])
    whole = table.dequantize().to(dtype)
    assert torch.equal(embed(token_ids, table, dtype=dtype), whole[token_ids])
    assert embed(token_ids, table).dtype == torch.float32


def packed_table() -> PackedWeight:
    """A Q8_0 table of 8 tokens and 64 features, the scales finite."""
    raw = torch.randint(0, 256, (8, 2, 34), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    raw[:, :, 1] = 0x20  # a scale near 2^-7
    return PackedWeight(raw.flatten(1), GGMLQuantizationType.Q8_0, (8, 64))


def test_two_runs_are_equal() -> None:
    table = Values(0).tensor(32, 24, dtype=torch.float32)
    check_same_bits(embed, {"token_ids": torch.tensor([3, 1, 3]), "weight": table})


@pytest.mark.parametrize("packed", [False, True])
def test_capturable(packed: bool) -> None:
    table = packed_table() if packed else Values(0).tensor(8, 24, dtype=torch.float16)
    check_capturable(embed, {"token_ids": torch.tensor([3, 1, 3]), "weight": table})


def test_bos_comes_first_and_once() -> None:
    tokenizer = DumpRun("f32/hello").trial().subject.model.tokenizer
    assert tokenize(tokenizer, "Hello") == [1, 15043]
    assert tokenize(tokenizer, "") == [1]


def scaled_as_gemma(token_ids: Any, weight: Any, **options: Any) -> Any:
    return embed(token_ids, weight, **options) * weight.shape[1] ** 0.5


def next_row(token_ids: Any, weight: Any, **options: Any) -> Any:
    return embed((token_ids + 1) % weight.shape[0], weight, **options)


def rounded_to_bfloat16(token_ids: Any, weight: Any, **options: Any) -> Any:
    return embed(token_ids, weight, **options).bfloat16().float()


def shifted_by_a_token(token_ids: Any, weight: Any, **options: Any) -> Any:
    return embed(token_ids.roll(1), weight, **options)


def half_precision_result(token_ids: Any, weight: Any, **options: Any) -> Any:
    return embed(token_ids, weight, dtype=torch.float16)


@pytest.mark.parametrize(
    "wrong", [scaled_as_gemma, next_row, rounded_to_bfloat16, shifted_by_a_token, half_precision_result]
)
def test_wrong_layer_fails(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def with_the_model_s_dtype(token_ids: Any, weight: Any, **options: Any) -> Any:
        return wrong(token_ids, weight, **{"dtype": torch.float32, **options})

    monkeypatch.setattr(c00_foundation, "embed", with_the_model_s_dtype)
    check_a_point_fails([one for one in judge_own(CHECKPOINT) if one.name == "embd"])


def without_bos(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_bos=False)


def bos_twice(tokenizer: Any, text: str) -> list[int]:
    return [tokenizer.bos_id, *tokenizer.encode(text)]


def without_leading_space(tokenizer: Any, text: str) -> list[int]:
    return [1, *tokenizer.encode("\n" + text)[3:]]


@pytest.mark.parametrize("wrong", [without_bos, bos_twice, without_leading_space])
def test_wrong_tokens_fail(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c00_foundation, "tokenize", wrong)
    check_a_point_fails([one for one in judge_own(CHECKPOINT) if one.name == "token_ids"])


def test_a_neighbouring_block_format_fails() -> None:
    table = packed_table()  # Q8_0's 34 bytes a block read as if the scale stood last
    misread = PackedWeight(table.raw.roll(-2, 1), table.type, table.shape)
    arguments = {"token_ids": torch.tensor([5, 0, 7]), "weight": table}

    def wrong(token_ids: Any, weight: Any) -> Any:
        return embed(token_ids, misread)

    check_a_point_fails(judged(wrong, arguments, ["embd"], function="embed"))
    assert exact(table).shape == (8, 64)
