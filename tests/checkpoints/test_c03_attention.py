"""Checkpoint 3: attention, with and without a cache, fused and step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from checkpoints import attention, c03_attention
from checkpoints.c03_attention import CHECKPOINT
from llama_ckpt.points import split_name
from llama_ckpt.weights.kv_cache import KVCache
from llama_ckpt.weights.quants import linear
from tests.checkpoints.catalogued_layers import check_catalogued_bugs_fail
from tests.checkpoints.drawn_inputs import (
    DEVICES,
    DTYPES,
    Heads,
    Values,
    arguments_seed,
    causal_inputs,
    heads,
    position_lists,
    small_config,
    values,
)
from tests.checkpoints.dump_trials import (
    EVERY_DUMP,
    DumpRun,
    check_a_point_fails,
    check_every_point,
    judge_own,
)
from tests.checkpoints.held_against import check_capturable, check_passes, check_same_bits, judged

INNER = ["blk.0.attn_scores", "blk.0.attn_probs", "blk.0.attn_context"]
OUT = ["blk.0.attn_out"]
GROUPED = Heads(4, 2, 16)


@pytest.mark.parametrize("run", EVERY_DUMP)
def test_dump(run: DumpRun) -> None:
    check_every_point(run, CHECKPOINT)


def inputs(
    drawn: Heads, x: Values, positions: list[int], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict[str, Any]:
    """Arguments of attention over tokens at `positions`."""
    made = causal_inputs(drawn, len(positions), x, dtype, device)
    return {**made, "positions": torch.tensor(positions, device=device)}


@pytest.mark.parametrize("tapped", [False, True], ids=["fused", "tapped"])
@pytest.mark.parametrize("device", DEVICES)
@given(
    drawn=heads(),
    x=values(-3, 0),
    positions=st.integers(1, 17).flatmap(position_lists),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=25)
def test_oracle(
    device: str, tapped: bool, drawn: Heads, x: Values, positions: list[int], dtype: torch.dtype
) -> None:
    arguments = inputs(drawn, x, positions, dtype, device)
    check_passes(judged(attention, arguments, OUT, taps=INNER if tapped else (), dtype=dtype))


@pytest.mark.parametrize("device", DEVICES)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    x=values(-3, 0),
    shuffle=arguments_seed(),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=25)
def test_oracle_with_interleaved_sequences(
    device: str, lengths: list[int], x: Values, shuffle: int, dtype: torch.dtype
) -> None:
    order = torch.randperm(sum(lengths), generator=torch.Generator().manual_seed(shuffle))
    positions = torch.cat([torch.arange(length) for length in lengths])[order].tolist()
    arguments = inputs(GROUPED, x, positions, dtype, device)
    ids = torch.cat([torch.full((length,), i) for i, length in enumerate(lengths)])[order].to(device)
    check_passes(judged(attention, {**arguments, "sequence_ids": ids}, OUT, taps=INNER, dtype=dtype))


def through_a_cache(
    arguments: dict[str, Any], cuts: list[int], *, capacity: int, sequence_ids: Tensor | None = None
) -> Tensor:
    """attn_out of all tokens, given to a cached attention in pieces that end at `cuts`."""
    q, k, positions = arguments["q"], arguments["k"], arguments["positions"]
    config = small_config(n_layers=1, n_heads=q.shape[1], n_kv_heads=k.shape[1], head_dim=q.shape[2])
    n_sequences = 1 if sequence_ids is None else int(sequence_ids.max()) + 1
    cache = KVCache.allocate(config, capacity, n_sequences=n_sequences, device=q.device, dtype=q.dtype)
    pieces = []
    for first, end in zip([0, *cuts], cuts, strict=False):
        own = None if sequence_ids is None else sequence_ids[first:end]
        cache.reserve(positions[first:end], own)
        piece = {name: arguments[name][first:end] for name in ("q", "k", "v", "positions")}
        pieces.append(attention(**piece, wo=arguments["wo"], cache=cache.layer(0), sequence_ids=own))
    return torch.cat(pieces)


@pytest.mark.parametrize("device", DEVICES)
@given(
    drawn=heads(),
    x=values(-3, 0),
    positions=st.integers(2, 9).flatmap(position_lists),
    cut=st.integers(0, 8),
    room=st.integers(0, 5),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=25)
def test_cached_is_uncached(
    device: str, drawn: Heads, x: Values, positions: list[int], cut: int, room: int, dtype: torch.dtype
) -> None:
    n = len(positions)
    arguments = inputs(drawn, x, positions, dtype, device)
    at_once, one_by_one, in_two = [n], list(range(1, n + 1)), [min(cut, n - 1) or 1, n]
    for cuts in (at_once, one_by_one, in_two):

        def cached(cuts: list[int] = cuts, **arguments: Any) -> Tensor:
            return through_a_cache(arguments, cuts, capacity=n + room)

        check_passes(judged(cached, arguments, OUT, function="attention", dtype=dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_sequences_in_one_cache_are_apart(device: str) -> None:
    ids = torch.tensor([0, 1, 1, 0, 2, 1, 0, 2], device=device)
    arguments = inputs(GROUPED, Values(4), [0, 0, 1, 1, 7, 2, 2, 8], device=device)

    def cached(sequence_ids: Tensor, **arguments: Any) -> Tensor:
        return through_a_cache(arguments, [3, 6, 8], capacity=3, sequence_ids=sequence_ids)

    arguments["sequence_ids"] = ids
    check_passes(judged(cached, arguments, OUT, function="attention"))


@pytest.mark.parametrize("tapped", [False, True], ids=["fused", "tapped"])
@given(drawn=heads(), seed=arguments_seed(), n=st.integers(2, 9), at=st.integers(1, 8))
@settings(max_examples=25)
def test_a_later_token_never_changes_an_earlier_one(
    tapped: bool, drawn: Heads, seed: int, n: int, at: int
) -> None:
    at = min(at, n - 1)
    tap = (lambda point, tensor: None) if tapped else None
    before = inputs(drawn, Values(seed), list(range(n)))
    after = {**before, **{name: before[name].clone() for name in ("q", "k", "v")}}
    for name in ("q", "k", "v"):
        after[name][at:] = 100.0
    first, second = attention(**before, tap=tap), attention(**after, tap=tap)
    assert torch.equal(first[:at], second[:at])
    assert not torch.equal(first[at:], second[at:])


def test_an_earlier_token_changes_a_later_one() -> None:
    before = inputs(GROUPED, Values(0), [0, 1, 2])
    after = {**before, "v": before["v"].clone()}
    after["v"][0] += 1.0
    changed = (attention(**before) != attention(**after)).any(-1)
    assert changed.all()


@given(drawn=heads(), x=values(-3, 1), n=st.integers(1, 9))
@settings(max_examples=25)
def test_probabilities_sum_to_one_and_leave_out_the_future(drawn: Heads, x: Values, n: int) -> None:
    seen: dict[str, Tensor] = {}
    attention(**inputs(drawn, x, list(range(n)), torch.float64), tap=seen.__setitem__)
    probs = seen["attn_probs"]
    assert probs.shape == (n, drawn.n_heads, n)
    torch.testing.assert_close(
        probs.sum(-1), torch.ones(n, drawn.n_heads, dtype=torch.float64), rtol=1e-14, atol=0
    )
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    assert not probs.transpose(0, 1)[:, later].any()


def test_the_first_token_sees_itself_alone() -> None:
    arguments = inputs(Heads(4, 4, 8), Values(0), [5, 6], torch.float64)
    wanted = torch.nn.functional.linear(arguments["v"][0].flatten(), arguments["wo"])
    torch.testing.assert_close(attention(**arguments)[0], wanted, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("shown", [[], INNER], ids=["fused", "tapped"])
def test_both_ways_agree_with_the_oracle_and_differ_in_rounding_only(shown: list[str]) -> None:
    arguments = inputs(GROUPED, Values(0), list(range(12)))
    verdicts = judged(attention, arguments, OUT, taps=shown)
    check_passes(verdicts)
    assert [split_name(one.name)[1] for one in verdicts] == [split_name(name)[1] for name in [*shown, *OUT]]


def test_position_4000_goes_to_slot_0() -> None:
    arguments = inputs(GROUPED, Values(0), [4000, 4001, 4002])
    config = small_config(n_layers=1)
    cache = KVCache.allocate(config, 8)
    cache.reserve(arguments["positions"])
    out = attention(**arguments, cache=cache.layer(0))
    assert cache.slots.tolist() == [0, 1, 2]
    assert cache.positions.tolist() == [[4000, 4001, 4002, -1, -1, -1, -1, -1]]
    assert torch.equal(cache.k[0, 0, :3], arguments["k"]) and torch.equal(cache.v[0, 0, :3], arguments["v"])

    def cached(**_: Any) -> Tensor:
        return out

    check_passes(judged(cached, arguments, OUT, function="attention"))


@pytest.mark.parametrize("dump", ["f32/eight-tokens", "f32/far-positions"])
def test_the_cache_holds_llama_cpps_keys_and_values_exactly(dump: str) -> None:
    trial = DumpRun(dump).trial()
    recorded, config = trial.recording.tensors, trial.subject.model.config
    positions = torch.tensor(trial.recording.positions)
    cache = KVCache.allocate(config, 10)
    cache.reserve(positions)
    for number in trial.recording.blocks:
        q, k, v = (torch.tensor(recorded[f"blk.{number}.{point}"]) for point in ("q_rope", "k_rope", "v"))
        wo = trial.subject.model.weights.blocks[number].wo
        attention(q, k, v, wo, positions=positions, cache=cache.layer(number))
        assert torch.equal(cache.k[number, 0, : len(k)], k) and torch.equal(cache.v[number, 0, : len(v)], v)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("taps", [[], INNER], ids=["fused", "tapped"])
def test_two_runs_are_equal(taps: list[str], dtype: torch.dtype) -> None:
    check_same_bits(attention, inputs(GROUPED, Values(0), list(range(9)), dtype), taps=taps)


@pytest.mark.parametrize("with_cache", [False, True])
def test_capturable(with_cache: bool) -> None:
    arguments = inputs(GROUPED, Values(0), [4000, 4001], torch.float16)
    ids = torch.tensor([0, 1])
    cache = None
    if with_cache:
        whole = KVCache.allocate(small_config(n_layers=1), 8, n_sequences=2, dtype=torch.float16)
        whole.reserve(arguments["positions"], ids)
        cache = whole.layer(0)
    check_capturable(attention, {**arguments, "sequence_ids": ids, "cache": cache})


def test_a_layer_that_reads_a_value_back_is_caught() -> None:
    def reads_back(q: Tensor, positions: Tensor, **arguments: Any) -> Tensor:
        return q[: int(positions.max()) + 1]

    def picks(q: Tensor, positions: Tensor, **arguments: Any) -> Tensor:
        return q[positions > 0]

    for layer in (reads_back, picks):
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            check_capturable(layer, inputs(GROUPED, Values(0), [0, 1]))


def bent(
    *,
    visible: Callable[[Tensor], Tensor] = lambda p: p[None, :] <= p[:, None],
    axis: int = -1,
    kv_head: Callable[[int, int, int], int] = lambda h, n_heads, n_kv: h // (n_heads // n_kv),
    context_of: Callable[[Tensor], Tensor] = lambda context: context.flatten(1),
    k_of: Callable[[Tensor], Tensor] = lambda k: k,
    v_of: Callable[[Tensor], Tensor] = lambda v: v,
) -> Callable[..., Tensor]:
    """Attention step by step, with one step that can be bent; unbent it is right."""

    def layer(q: Tensor, k: Tensor, v: Tensor, wo: Tensor, *, positions: Tensor, tap: Any = None) -> Tensor:
        see = tap or (lambda point, tensor: None)
        of_head = [kv_head(h, q.shape[1], k.shape[1]) for h in range(q.shape[1])]
        keys, values_ = k_of(k)[:, of_head], v_of(v)[:, of_head]
        scores = torch.einsum("thd,shd->ths", q, keys)
        see("attn_scores", scores)
        hidden = ~visible(positions)[:, None, :]
        scaled = scores * q.shape[-1] ** -0.5
        probs = scaled.masked_fill(hidden, -1e30).softmax(axis)
        see("attn_probs", probs)
        context = context_of(torch.einsum("ths,shd->thd", probs, values_))
        see("attn_context", context)
        return linear(context, wo)

    return layer


WRONG = {
    "mask the wrong way round": bent(visible=lambda p: p[None, :] >= p[:, None]),
    "a window of two": bent(visible=lambda p: (p[None, :] <= p[:, None]) & (p[None, :] > p[:, None] - 2)),
    "first token forgotten": bent(
        visible=lambda p: (p[None, :] <= p[:, None]) & ((p > p[0]) | (p[:, None] == p[0]))
    ),
    "softmax over the heads": bent(axis=1),
    "key head h % n_kv_heads, shifted": bent(kv_head=lambda h, n_heads, n_kv: (h + 1) % n_kv),
    "heads reversed": bent(context_of=lambda context: context.flip(1).flatten(1)),
    "values one slot late": bent(v_of=lambda v: v.roll(1, 0)),
    "keys one slot late": bent(k_of=lambda k: k.roll(1, 0)),
    "last token's values not written": bent(v_of=lambda v: torch.cat((v[:-1], torch.zeros_like(v[:1])))),
    "values in bfloat16": bent(v_of=lambda v: v.bfloat16().float()),
}


def test_unbent_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c03_attention, "attention", bent())
    check_passes(judge_own(CHECKPOINT))


def test_catalogued_bugs_fail() -> None:
    check_catalogued_bugs_fail(CHECKPOINT)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_wrong_layer_fails(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c03_attention, "attention", wrong)
    verdicts = judge_own(CHECKPOINT)
    check_a_point_fails(verdicts)
    # What the layer hands on is wrong too, whether or not anybody looks inside.
    check_a_point_fails([one for one in verdicts if "attn_out" in one.name])


@pytest.mark.parametrize("wrong", [lambda h, n_heads, n_kv: h % n_kv, lambda h, n_heads, n_kv: 0])
def test_wrong_key_head_of_a_group_fails(wrong: Callable[[int, int, int], int]) -> None:
    arguments = inputs(Heads(8, 2, 16), Values(0), list(range(6)))
    check_passes(judged(bent(), arguments, OUT, taps=INNER, function="attention"))
    check_a_point_fails(judged(bent(kv_head=wrong), arguments, OUT, taps=INNER, function="attention"))


def test_masking_by_slot_instead_of_position_fails() -> None:
    by_slot = bent(visible=lambda p: torch.ones(len(p), len(p), dtype=torch.bool).tril())
    arguments = inputs(GROUPED, Values(0), [2, 0, 1])
    check_passes(judged(attention, arguments, OUT))
    check_a_point_fails(judged(by_slot, arguments, OUT, function="attention"))


def test_a_cache_that_forgets_fails() -> None:
    arguments = inputs(GROUPED, Values(0), [0, 1, 2, 3])

    def forgets(**arguments: Any) -> Tensor:
        second = {name: x if name == "wo" else x[2:] for name, x in arguments.items()}
        return torch.cat((attention(**arguments)[:2], attention(**second)))

    check_a_point_fails(judged(forgets, arguments, OUT, function="attention"))


def test_sequences_that_see_each_other_fail() -> None:
    arguments = {**inputs(GROUPED, Values(0), [0, 1, 0, 1]), "sequence_ids": torch.tensor([0, 0, 1, 1])}

    def mixes(sequence_ids: Tensor, **arguments: Any) -> Tensor:
        return attention(**arguments)

    check_a_point_fails(judged(mixes, arguments, OUT, function="attention"))
