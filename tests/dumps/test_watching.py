"""Attention is watched however it is written, and what can't be told is not seen, never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.dumps.record import Recorded, record
from llama_ckpt.errors import ShapeError
from tests.dumps import torch_programs as programs
from tests.dumps.torch_programs import HEADS, KV, SIZE, HfLike, MetaLike, expanded, hidden_keys, loaded

IDS = [1, 40, 41, 300, 7]
ALL = 3 + 17 * 2
SCALE = SIZE**-0.5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return programs.seeded(tmp_path_factory.mktemp("seeded"))


def judged(recorded: Recorded, model: Path, folder: Path) -> Comparison:
    recorded.save(folder / "theirs.safetensors")
    return compare_dump(folder / "theirs.safetensors", model=model)


def causal(scores: Tensor) -> Tensor:
    return scores + hidden_keys(*scores.shape[-2:])


def scaled_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return causal(q * SCALE @ expanded(k).mT).softmax(-1) @ expanded(v)


def both_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return causal((q * SCALE**0.5) @ (expanded(k) * SCALE**0.5).mT).softmax(-1) @ expanded(v)


def in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.matmul(q, expanded(k).mT)
    scores.mul_(SCALE).add_(hidden_keys(*scores.shape[-2:]))
    return torch.matmul(scores.softmax(-1), expanded(v))


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Without any softmax of torch's."""
    scores = causal(q @ expanded(k).mT * SCALE)
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True)) @ expanded(v)


def batched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q[0], expanded(k)[0], expanded(v)[0]
    return torch.bmm(causal(torch.bmm(q, k.mT) * SCALE).softmax(-1), v)[None]


def added_to_a_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Product, scale and mask in one call of `baddbmm`."""
    q, k, v = q[0], expanded(k)[0], expanded(v)[0]
    mask = hidden_keys(q.shape[1], k.shape[1]).expand(HEADS, -1, -1)
    return torch.bmm(torch.baddbmm(mask, q, k.mT, beta=1.0, alpha=SCALE).softmax(-1), v)[None]


def added_to_nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same with an empty buffer that counts for nothing, and a mask afterwards."""
    q, k, v = q[0], expanded(k)[0], expanded(v)[0]
    empty = torch.full((HEADS, q.shape[1], k.shape[1]), torch.nan)
    scores = torch.baddbmm(input=empty, batch1=q, batch2=k.mT, beta=0, alpha=SCALE)
    return torch.bmm(causal(scores).softmax(-1), v)[None]


def head_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = []
    for head in range(HEADS):
        kv = head // (HEADS // KV)
        probs = torch.softmax(causal(q[0, head] @ k[0, kv].T * SCALE), dim=-1)
        heads.append(probs @ v[0, kv])
    return torch.stack(heads)[None]


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The group as an axis of its own, so that no key is copied."""
    q = q.unflatten(1, (KV, HEADS // KV))
    probs = causal(q @ k[:, :, None].mT * SCALE).softmax(-1)
    return (probs @ v[:, :, None]).flatten(1, 2)


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, expanded(k))
    return torch.einsum("bhqk,bhkd->bhqd", causal(scores * SCALE).softmax(-1), expanded(v))


def by_grouped_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Tokens before heads, as JAX programs have them."""
    q, k, v = q.transpose(1, 2).unflatten(2, (KV, HEADS // KV)), k.transpose(1, 2), v.transpose(1, 2)
    probs = causal(torch.einsum("bqhgd,bkhd->bhgqk", q, k) * SCALE).softmax(-1)
    return torch.einsum("bhgqk,bkhd->bqhgd", probs, v).flatten(2, 3).transpose(1, 2)


def grouped_call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def keywords(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    call = torch.nn.functional.scaled_dot_product_attention
    return call(value=expanded(v), key=expanded(k), query=q, is_causal=True)


RIGHT = {
    scaled_first: 17, both_scaled: 17, in_place: 17, by_hand: 17, batched: 17, head_by_head: 17,
    added_to_a_mask: 17, added_to_nothing: 17,
    grouped: 17, by_einsum: 17, by_grouped_einsum: 17, grouped_call: 15, keywords: 15,
}  # fmt: skip
"""Right ways to write attention, and how many points of a block are seen of each."""


@pytest.mark.parametrize("attention", RIGHT)
def test_a_right_attention_passes_however_it_is_written(
    attention: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(programs.ATTENTIONS, "mine", attention)
    report = judged(record(loaded(HfLike("mine"), model), IDS), model, tmp_path)
    assert report.verdict == "pass" and not report.findings, report.reason
    assert report.compared == report.of == 3 + 2 * RIGHT[attention]


def queries_in_columns(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Right, with keys in the rows: what is q and what k can't be told from the product alone."""
    scores = expanded(k) @ q.mT * SCALE + hidden_keys(q.shape[2], k.shape[2]).T
    return scores.softmax(-2).mT @ expanded(v)


def out_of_sight(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As a kernel of somebody's own, which asks torch for nothing."""
    q, k, v = (x.detach().numpy() for x in (q, expanded(k), expanded(v)))
    scores = q @ np.swapaxes(k, 2, 3) * np.float32(SCALE) + hidden_keys(q.shape[2], k.shape[2]).numpy()
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return torch.from_numpy((e / e.sum(-1, keepdims=True)) @ v)


def keys_in_pieces(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As flash attention: sums over some keys at a time."""
    n, k, v = q.shape[2], expanded(k), expanded(v)
    above = total = torch.zeros(())
    for keys in (slice(0, 2), slice(2, 4), slice(4, n)):
        scores = q @ k[:, :, keys].mT * SCALE + hidden_keys(n, n)[:, keys]
        e = scores.exp()
        above, total = above + e @ v[:, :, keys], total + e.sum(-1, keepdim=True)
    return above / total


def queries_in_pieces(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    each = []
    for row in range(q.shape[2]):
        seen = q[:, :, row : row + 1] @ expanded(k)[:, :, : row + 1].mT * SCALE
        each.append(seen.softmax(-1) @ expanded(v)[:, :, : row + 1])
    return torch.cat(each, 2)


def by_hand_from_sums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No product of torch's at all."""
    scores = causal((q[:, :, :, None] * expanded(k)[:, :, None]).sum(-1) * SCALE)
    return (scores.softmax(-1)[..., None] * expanded(v)[:, :, None]).sum(3)


def torchs_own_layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`nn.MultiheadAttention`, head by head, with projections that change nothing."""
    heads = []
    for head in range(HEADS):
        layer = torch.nn.MultiheadAttention(SIZE, 1, bias=False, batch_first=True).eval()
        layer.in_proj_weight.data = torch.eye(SIZE).repeat(3, 1)
        layer.out_proj.weight.data = torch.eye(SIZE)
        kv = head // (HEADS // KV)
        hidden = hidden_keys(q.shape[2], k.shape[2])
        heads.append(layer(q[:, head], k[:, kv], v[:, kv], attn_mask=hidden, need_weights=head % 2 == 0)[0])
    return torch.stack(heads, 1)


@pytest.mark.parametrize(
    "attention",
    [
        queries_in_columns,
        out_of_sight,
        keys_in_pieces,
        queries_in_pieces,
        by_hand_from_sums,
        torchs_own_layer,
    ],
)
def test_what_is_not_seen_is_declared(
    attention: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(programs.ATTENTIONS, "mine", attention)
    recorded = record(loaded(HfLike("mine"), model), IDS)
    assert any("not seen" in note and "q_rope" in note for note in recorded.notes)
    report = judged(recorded, model, tmp_path)
    assert report.verdict == "pass" and not report.findings, report.reason
    assert report.compared == report.of == 3 + 2 * 13


def test_key_heads_in_turn_are_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`repeat` where `repeat_interleave` is meant: the key heads are right, and read by the wrong queries."""

    def tiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat(1, HEADS // KV, 1, 1) for x in (k, v))
        return causal(q @ k.mT * SCALE).softmax(-1) @ v

    monkeypatch.setitem(programs.ATTENTIONS, "mine", tiled)
    recorded = record(loaded(HfLike("mine"), model), IDS)
    assert any("stand in turn" in note for note in recorded.notes)
    report = judged(recorded, model, tmp_path)
    assert report.first_wrong is not None
    assert (report.first_wrong.name, report.first_wrong.made) == ("blk.0.attn_scores", "here")


def test_a_cache_of_earlier_tokens_is_refused(model: Path) -> None:
    program = loaded(MetaLike(), model)
    program(torch.tensor([[1, 40, 41]]), 0)
    with pytest.raises(ShapeError, match="got 5, and the first token at position 3, wanted the prompt's 2"):
        record(program, {"tokens": torch.tensor([[300, 7]]), "start_pos": 3})


@pytest.mark.parametrize("whole", [True, False], ids=["the model", "its blocks"])
def test_what_is_compiled_is_recorded_as_it_runs_uncompiled(whole: bool, model: Path, tmp_path: Path) -> None:
    program = loaded(HfLike(), model)
    if whole:
        program = torch.compile(program)
    else:
        for number, layer in enumerate(program.model.layers):
            program.model.layers[number] = torch.compile(layer)
    recorded = record(program, IDS)
    assert any("compiled by torch.compile" in note for note in recorded.notes)
    report = judged(recorded, model, tmp_path)
    assert report.verdict == "pass" and report.compared == ALL
