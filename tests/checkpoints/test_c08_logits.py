"""Checkpoint 8: all blocks, the last norm and the head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoints import block, c08_logits, logits
from checkpoints.c08_logits import CHECKPOINT, output_logits
from llama_ckpt.points import BLOCK_POINTS
from llama_ckpt.weights.kv_cache import KVCache
from llama_ckpt.weights.quants import exact_matmul, linear
from tests.checkpoints.drawn_inputs import (
    DEVICES,
    DTYPES,
    arguments_seed,
    position_lists,
    small_config,
    small_llama,
)
from tests.checkpoints.dump_trials import (
    EIGHT_TOKENS,
    EVERY_DUMP,
    DumpRun,
    check_a_point_fails,
    check_every_point,
    judge_own,
)
from tests.checkpoints.held_against import check_capturable, check_passes, check_same_bits, judged

CONFIG = small_config(n_layers=3)
TAPS = ["embd", *(f"blk.{n}.{point.name}" for n in range(3) for point in BLOCK_POINTS), "output_norm"]


@pytest.mark.parametrize("run", EVERY_DUMP)
def test_dump(run: DumpRun) -> None:
    check_every_point(run, CHECKPOINT)


def inputs(
    seed: int,
    positions: list[int],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    tied: bool = False,
    config: Any = CONFIG,
) -> dict[str, Any]:
    """A small Llama and tokens for it."""
    weights = small_llama(config, seed=seed, dtype=dtype, device=device)
    if tied:
        weights = dataclasses.replace(weights, output=weights.token_embd)
    generator = torch.Generator().manual_seed(seed)
    return {
        "token_ids": torch.randint(0, config.vocab_size, (len(positions),), generator=generator).to(device),
        "weights": weights,
        "config": config,
        "positions": torch.tensor(positions, device=device),
    }


def computing_in(dtype: torch.dtype) -> Callable[..., Tensor]:
    """`logits` in a dtype; the oracle has no such argument."""

    def layer(**arguments: Any) -> Tensor:
        return logits(dtype=dtype, **arguments)

    return layer


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("device", DEVICES)
@given(
    seed=arguments_seed(),
    positions=st.integers(1, 9).flatmap(position_lists),
    tapped=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=25)
def test_oracle(
    device: str, tied: bool, seed: int, positions: list[int], tapped: bool, dtype: torch.dtype
) -> None:
    arguments = inputs(seed, positions, dtype, device, tied)
    taps = TAPS if tapped else ()
    verdicts = judged(
        computing_in(dtype),
        arguments,
        ["logits"],
        taps=taps,
        function="logits",
        dtype=dtype,
        error_kind="total",
    )
    check_passes(verdicts)
    assert len(verdicts) == len(taps) + 1


def through_a_cache(cuts: list[int], dtype: torch.dtype, **arguments: Any) -> Tensor:
    """The logits of all tokens, given to the model in pieces that end at `cuts`."""
    token_ids, positions = arguments["token_ids"], arguments["positions"]
    fixed = {name: arguments[name] for name in ("weights", "config")}
    cache = KVCache.allocate(fixed["config"], len(token_ids), device=token_ids.device, dtype=dtype)
    pieces = [
        logits(token_ids[first:end], positions=positions[first:end], cache=cache, dtype=dtype, **fixed)
        for first, end in zip([0, *cuts], cuts, strict=False)
    ]
    return torch.cat(pieces)


@pytest.mark.parametrize("device", DEVICES)
@given(
    seed=arguments_seed(),
    positions=position_lists(7),
    cuts=st.sampled_from([[7], [1, 2, 3, 4, 5, 6, 7], [5, 6, 7], [2, 7]]),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=15)
def test_prefill_equals_token_by_token(
    device: str, seed: int, positions: list[int], cuts: list[int], dtype: torch.dtype
) -> None:
    def cached(**arguments: Any) -> Tensor:
        return through_a_cache(cuts, dtype, **arguments)

    arguments = inputs(seed, positions, dtype, device)
    check_passes(judged(cached, arguments, ["logits"], function="logits", dtype=dtype, error_kind="total"))


@pytest.mark.parametrize("device", DEVICES)
def test_two_sequences_side_by_side(device: str) -> None:
    ids = torch.tensor([0, 1, 0, 1, 1, 0], device=device)
    arguments = {**inputs(0, [0, 9, 1, 10, 11, 2], device=device), "sequence_ids": ids}
    check_passes(judged(logits, arguments, ["logits"], error_kind="total"))

    def cached(**arguments: Any) -> Tensor:
        cache = KVCache.allocate(CONFIG, 4, n_sequences=2, device=device)
        return logits(cache=cache, **arguments)

    check_passes(judged(cached, arguments, ["logits"], function="logits", error_kind="total"))


def test_causal() -> None:
    before = inputs(0, [0, 1, 2, 3])
    after = {**before, "token_ids": before["token_ids"].clone()}
    after["token_ids"][2] = (after["token_ids"][2] + 1) % CONFIG.vocab_size
    first, second = logits(**before), logits(**after)
    assert torch.equal(first[:2], second[:2])
    assert (first[2:] != second[2:]).any(-1).all()


def test_layers_keep_their_own_cache() -> None:
    arguments = inputs(0, [0, 1, 2])
    cache = KVCache.allocate(CONFIG, 5)
    seen: dict[str, Tensor] = {}
    logits(**arguments, cache=cache, tap=seen.__setitem__)
    for number in range(CONFIG.n_layers):
        assert torch.equal(cache.k[number, 0, :3], seen[f"blk.{number}.k_rope"])
        assert torch.equal(cache.v[number, 0, :3], seen[f"blk.{number}.v"])
    assert not cache.k[:, :, 3:].any() and not cache.v[:, :, 3:].any()


def test_points_come_in_the_order_of_the_data() -> None:
    seen: list[str] = []
    logits(**inputs(0, [0, 1]), tap=lambda point, tensor: seen.append(point))
    assert sorted(seen) == sorted(TAPS) and seen[0] == "embd" and seen[-1] == "output_norm"
    outs = [name for name in seen if name.endswith(".out")]
    assert outs == ["blk.0.out", "blk.1.out", "blk.2.out"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("taps", [[], TAPS], ids=["plain", "tapped"])
def test_two_runs_are_equal(taps: list[str], dtype: torch.dtype) -> None:
    check_same_bits(computing_in(dtype), inputs(0, [0, 1, 2], dtype), taps=taps)


@pytest.mark.parametrize("with_cache", [False, True])
def test_capturable(with_cache: bool) -> None:
    arguments = inputs(0, [0, 1, 2])

    def layer(**arguments: Any) -> Tensor:
        return logits(cache=KVCache.allocate(CONFIG, 4) if with_cache else None, **arguments)

    check_capturable(layer, arguments)


@pytest.mark.cuda
def test_a_step_with_a_cache_can_be_captured_in_a_cuda_graph() -> None:
    prompt, n_steps = inputs(0, [4000, 4001, 4002], device="cuda"), 5
    fixed = {name: prompt[name] for name in ("weights", "config")}
    token_ids = torch.tensor([3, 1, 4, 1, 5], device="cuda")
    positions = torch.arange(4003, 4003 + n_steps, device="cuda")

    def filled() -> KVCache:
        cache = KVCache.allocate(CONFIG, 16, device="cuda")
        logits(**prompt, cache=cache)
        return cache

    with exact_matmul(), torch.inference_mode():
        cache = filled()
        wanted = [
            logits(token_ids[i : i + 1], positions=positions[i : i + 1], cache=cache, **fixed)
            for i in range(n_steps)
        ]
        token, position = token_ids[:1].clone(), positions[:1].clone()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):  # what cuBLAS and the allocator do once must not be captured
            logits(token, positions=position, cache=filled(), **fixed)
        torch.cuda.synchronize()
        cache, graph = filled(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            row = logits(token, positions=position, cache=cache, **fixed)
        for i in range(n_steps):
            token.copy_(token_ids[i : i + 1])
            position.copy_(positions[i : i + 1])
            graph.replay()
            assert torch.equal(row, wanted[i]), f"step {i}"
    assert cache.lengths.tolist() == [3 + n_steps]


def final_norm_skipped(x: Tensor, weights: Any, *, config: Any, tap: Any = None) -> Tensor:
    if tap:
        tap("output_norm", x)
    return linear(x, weights.output)


def final_norm_without_its_weight(x: Tensor, weights: Any, *, config: Any, tap: Any = None) -> Tensor:
    ones = dataclasses.replace(weights, output_norm=torch.ones_like(weights.output_norm))
    return output_logits(x, ones, config=config, tap=tap)


def tied_head_assumed(x: Tensor, weights: Any, *, config: Any, tap: Any = None) -> Tensor:
    return output_logits(x, dataclasses.replace(weights, output=weights.token_embd), config=config, tap=tap)


def rows_one_late(x: Tensor, weights: Any, *, config: Any, tap: Any = None) -> Tensor:
    return output_logits(x, weights, config=config, tap=tap).roll(1, 0)


def logits_in_bfloat16(x: Tensor, weights: Any, *, config: Any, tap: Any = None) -> Tensor:
    return output_logits(x, weights, config=config, tap=tap).bfloat16().float()


def one_token_s_logit_missing(x: Tensor, weights: Any, *, config: Any, tap: Any = None) -> Tensor:
    found = output_logits(x, weights, config=config, tap=tap).clone()
    found[:, -1] = 0.0
    return found


WRONG_HEADS = [
    final_norm_skipped,
    final_norm_without_its_weight,
    tied_head_assumed,
    rows_one_late,
    logits_in_bfloat16,
    one_token_s_logit_missing,
]


@pytest.mark.parametrize("wrong", WRONG_HEADS)
def test_wrong_head_fails(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c08_logits, "output_logits", wrong)
    check_a_point_fails(judge_own(CHECKPOINT))


def test_a_wrong_block_fails_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Tensor, weights: Any, **options: Any) -> Tensor:
        return block(x, dataclasses.replace(weights, w_gate=weights.w_up, w_up=weights.w_gate), **options)

    monkeypatch.setattr(c08_logits, "block", wrong)
    verdicts = [one for one in judge_own(CHECKPOINT) if one.name.endswith(".out")]
    assert len(verdicts) == 32 and {one.verdict for one in verdicts} == {"fail"}


def judge_total(change: Callable[[Any], Any]) -> list[Any]:
    """The verdicts on the free-running model with changed weights."""
    trial = EIGHT_TOKENS.trial()
    model = dataclasses.replace(trial.subject.model, weights=change(trial.subject.model.weights))
    wrong = dataclasses.replace(trial, subject=dataclasses.replace(trial.subject, model=model))
    # The oracle's run is of the right weights; it is the same for all and made once.
    wrong.__dict__["exact"] = trial.exact
    names = [f"blk.{n}.out" for n in (0, 15, 30, 31)] + ["output_norm", "logits"]
    return [verdict for name in names for verdict in wrong.judge_total(name)]


WRONG_WEIGHTS = {
    "last layer skipped": lambda w: dataclasses.replace(w, blocks=w.blocks[:-1]),
    "last layer's weights used twice": lambda w: dataclasses.replace(
        w, blocks=(*w.blocks[:-1], w.blocks[-2])
    ),
    "two layers swapped": lambda w: dataclasses.replace(w, blocks=(w.blocks[1], w.blocks[0], *w.blocks[2:])),
    "layers backwards": lambda w: dataclasses.replace(w, blocks=w.blocks[::-1]),
    "tied head": lambda w: dataclasses.replace(w, output=w.token_embd),
}


@pytest.mark.parametrize("change", WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS.keys())
def test_wrong_model_fails_running_free(change: Callable[[Any], Any]) -> None:
    verdicts = judge_total(change)
    check_a_point_fails(verdicts)
    assert verdicts[-1].verdict == "fail" and verdicts[-1].name.startswith("logits")


def test_the_right_model_passes_running_free() -> None:
    check_passes(judge_total(lambda weights: weights))


def test_a_float16_residual_stream_overflows_and_fails() -> None:
    arguments = inputs(0, [0, 1], torch.float16)
    weights = arguments["weights"]
    loud = [dataclasses.replace(one, w_down=one.w_down * 2e4) for one in weights.blocks]
    token_embd = weights.token_embd * 1e4
    arguments["weights"] = dataclasses.replace(weights, token_embd=token_embd, blocks=tuple(loud))
    layer = computing_in(torch.float16)
    verdicts = judged(
        layer, arguments, ["logits"], function="logits", dtype=torch.float16, error_kind="total"
    )
    check_a_point_fails(verdicts)
    assert "not finite" in verdicts[0].reason
