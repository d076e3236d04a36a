"""Checkpoint 6B: a router and its experts, beside the oracle, beside llama.cpp, and near ties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import checkpoints.c07_block as block_layer
import llama_ckpt
from checkpoints import c06b_experts, experts
from checkpoints.c06b_experts import CHECKPOINT
from llama_ckpt.capture import capture
from llama_ckpt.errors import LlamaCkptError, OptionError
from llama_ckpt.judging.near_ties import near
from llama_ckpt.ladder.discovery import ladder_of
from llama_ckpt.ladder.near_ties import NearTies
from llama_ckpt.oracle import llama as oracle
from tests.checkpoints.drawn_inputs import DEVICES, DTYPES, Values, values
from tests.checkpoints.held_against import check_passes, check_same_bits, judged
from tests.gguf_files import T, V, write_llama

INNER = [f"blk.0.ffn_{name}" for name in ("router", "chosen", "weights", "expert_out")]
OUT = ["blk.0.ffn_out"]


def inputs(
    x: Values,
    n: int,
    *,
    n_experts: int = 4,
    n_used: int = 2,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> dict[str, Any]:
    """Rows, a router whose scores are all apart from each other, and stacked matrices of the usual scale."""
    plain, width, ffn = Values(x.seed), 48, 96
    shapes = {"w_gate": (n_experts * ffn, width), "w_up": (n_experts * ffn, width)}
    shapes["w_down"] = (n_experts * width, ffn)
    weights: dict[str, Any] = {
        name: plain.tensor(*shape, dtype=dtype, device=device, salt=salt) / shape[1] ** 0.5
        for salt, (name, shape) in enumerate(shapes.items(), start=1)
    }
    router = torch.zeros(n_experts, width)
    router[:, 0] = torch.arange(n_experts) - 1.5  # feature 0 alone decides, and is 1 or -1 in every row
    rows = x.tensor(n, width, dtype=dtype, device=device)
    rows[:, 0] = torch.where(rows[:, 0] < 0, -1.0, 1.0)
    return {"x": rows, "w_router": router.to(device, dtype), **weights, "n_used": n_used}


@pytest.mark.parametrize("tapped", [False, True], ids=["plain", "tapped"])
@pytest.mark.parametrize("device", DEVICES)
@given(
    x=values(-3, 2),
    n=st.integers(1, 9),
    n_used=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=15)
def test_oracle(x: Values, n: int, n_used: int, dtype: torch.dtype, device: str, tapped: bool) -> None:
    arguments = inputs(x, n, n_used=n_used, dtype=dtype, device=device)
    check_passes(judged(experts, arguments, OUT, taps=INNER if tapped else [], dtype=dtype))


def test_the_same_bits() -> None:
    check_same_bits(experts, inputs(Values(3), 5), taps=INNER)


def test_every_expert_alone_is_the_feed_forward_network() -> None:
    """With all experts alike the weights do not matter, since they add up to 1."""
    arguments = inputs(Values(5), 6)
    for name in ("w_gate", "w_up", "w_down"):
        first = arguments[name][: len(arguments[name]) // 4]
        arguments[name] = first.repeat(4, 1)
    one = {name: arguments[name][: len(arguments[name]) // 4] for name in ("w_gate", "w_up", "w_down")}
    wanted = c06b_experts.swiglu(arguments["x"], **one)
    torch.testing.assert_close(experts(**arguments), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.llama_cpp
@pytest.mark.parametrize("kind", [T.F32, T.Q8_0], ids=lambda kind: kind.name)
def test_the_ladder_beside_llama_cpp(kind: T, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "m.gguf", n_experts=5, n_used=3, n_layers=2, type=kind, width=64, ffn=96)
    capture(model, out=tmp_path / "dumps", tokens=[1, 300, 4, 77, 111, 9, 77], max_tokens=4)
    report = llama_ckpt.validate(model=model, dumps=tmp_path / "dumps", device="cpu")
    assert {c.id: c.reason for c in report.checkpoints if c.verdict != "pass"} == {}
    assert [c.id for c in report.checkpoints] == [one.id for one in ladder_of(5)]
    points = {point.verdict.name for c in report.checkpoints if c.id == "6B" for point in c.points}
    assert points == {f"blk.{n}.{point}" for n in (0, 1) for point in CHECKPOINT.points}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_against_the_oracle_alone(dtype: str, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "m.gguf", n_experts=4)
    report = llama_ckpt.validate(model=model, device="cpu", dtype=dtype, oracle_only=True)
    assert {c.id: c.reason for c in report.checkpoints if c.verdict != "pass"} == {}
    (own,) = (c for c in report.checkpoints if c.id == "6B")
    assert {point.verdict.name.split(".")[2] for point in own.points if point.verdict.n_judged} == {
        *CHECKPOINT.points
    }


def unweighted(
    x: Tensor, w_router: Any, w_gate: Any, w_up: Any, w_down: Any, *, n_used: int, tap: Any = None
) -> Tensor:
    """The experts' outputs added as they are."""
    seen: dict[str, Tensor] = {}
    experts(x, w_router, w_gate, w_up, w_down, n_used=n_used, tap=seen.__setitem__)
    for name, tensor in seen.items() if tap else ():
        tap(name, tensor)
    return seen["ffn_expert_out"].sum(dim=1)


def test_a_wrong_layer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_llama(tmp_path / "m.gguf", n_experts=4)
    given: dict[str, Any] = {"model": model, "device": "cpu", "oracle_only": True}
    report = llama_ckpt.validate("6B", implementation=unweighted, **given)
    (result,) = report.checkpoints
    assert result.verdict == "fail" and "ffn_out" in result.reason
    assert result.diagnoses[0].named[0].name == "experts-unweighted"
    monkeypatch.setattr(block_layer, "experts", unweighted)
    found = llama_ckpt.validate(["7", "8"], **given)
    assert [one.verdict for one in found.checkpoints] == ["fail", "fail"]


def test_what_the_model_has_not_cannot_be_asked_for(embedded_model: Path, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "m.gguf", n_experts=4)
    with pytest.raises(OptionError, match="checkpoint 6 of a mixture of experts: got 6, wanted 6B"):
        llama_ckpt.validate("6", model=model, device="cpu", oracle_only=True)
    with pytest.raises(OptionError, match="checkpoint 6B of no mixture of experts: got 6B, wanted 6"):
        llama_ckpt.validate("6B", device="cpu", oracle_only=True)


def test_what_is_near() -> None:
    router = np.array([[3.0, 2.0, 1.0, -9.0], [3.0, 2.9999, 1.0, 0.0], [3.0, 2.0, 1.9999, 0.0]])
    assert near(router, 2, 1e-3).tolist() == [False, True, True]
    assert near(router, 1, 1e-3).tolist() == [False, True, False]
    assert near(router, 2, np.array([0.6, 0.0, 0.0])).tolist() == [True, False, False]
    assert near(router[:, :1], 1, 1.0).tolist() == [False, False, False]


def test_what_is_not_judged_after_a_near_tie() -> None:
    ties = {0: [False, False, False, False], 1: [False, True, False, False], 2: [True, False, False, False]}
    found = NearTies(3, (5, 6, 7, 8), lambda b: np.array(ties[b]), lambda b: np.array(ties[b]))

    def rows(name: str, kind: str) -> list[int]:
        return np.flatnonzero(found.unjudged(name, kind)).tolist()

    assert rows("blk.1.ffn_router", "own") == [] and rows("blk.1.ffn_chosen", "own") == [1]
    assert rows("blk.2.ffn_out", "own") == [0]  # on recorded inputs nothing comes from another block
    assert rows("blk.1.attn_norm", "total") == rows("blk.1.ffn_router", "total") == []
    assert rows("blk.1.out", "total") == [1]
    assert rows("blk.2.attn_norm", "total") == [1, 2, 3]  # later tokens look at the one that chose
    assert rows("logits", "total") == [0, 1, 2, 3] and rows("embd", "total") == []


def test_a_near_tie_is_not_judged_and_a_wrong_choice_is(tmp_path: Path) -> None:
    """Two experts' rows of the router are alike: which comes first is nobody's error."""
    router = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32) / 8
    router[1] = router[0] * (1 + 2**-22)
    tensors = {f"blk.{n}.ffn_gate_inp.weight": router for n in range(2)}
    model = write_llama(tmp_path / "m.gguf", n_experts=4, tensors=tensors)
    given: dict[str, Any] = {"model": model, "device": "cpu", "oracle_only": True}
    swapped = llama_ckpt.validate("6B", implementation=other_of_two, **given)
    assert swapped.checkpoints[0].verdict == "pass", swapped.checkpoints[0].reason
    wrong = llama_ckpt.validate("6B", implementation=others_than_two, **given)
    assert wrong.checkpoints[0].verdict == "fail"


def with_router(change: Any) -> Any:
    def changed(
        x: Tensor, w_router: Any, w_gate: Any, w_up: Any, w_down: Any, *, n_used: int, tap: Any = None
    ) -> Tensor:
        scores: dict[str, Tensor] = {}

        def see(point: str, tensor: Tensor) -> None:
            if tap:
                tap(point, scores["right"] if point == "ffn_router" else tensor)

        scores["right"] = torch.nn.functional.linear(x, w_router)
        return experts(x, change(w_router.clone()), w_gate, w_up, w_down, n_used=n_used, tap=see)

    return changed


def nudged(router: Tensor) -> Tensor:
    router[1] *= 1 - 2**-21
    return router


def exchanged(router: Tensor) -> Tensor:
    return router[[2, 3, 0, 1]]


other_of_two, others_than_two = with_router(nudged), with_router(exchanged)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keys": {"llama.expert_used_count": (5, V.UINT32)}}, "got 5, wanted an integer from 1 to 4"),
        ({"keys": {"llama.expert_group_count": (2, V.UINT32)}}, "group_count: got 2, wanted 1 at most"),
        ({"omit_keys": ["llama.expert_used_count"]}, "expert_used_count: got no such key"),
        ({"tensors": {"blk.1.ffn_gate_inp.weight": None}}, "blk.1.ffn_gate_inp.weight is missing"),
        ({"tensors": {"blk.0.ffn_gate_exps.bias": np.ones(96, np.float32)}}, "experts with biases"),
        (
            {"tensors": {"blk.0.ffn_up_exps.weight": np.ones((3, 96, 64), np.float32)}},
            r"ffn_up_exps.weight: got \[3, 96, 64\], wanted \[4, 96, 64\]",
        ),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf", n_experts=4, **options)
    with pytest.raises(LlamaCkptError, match=words):
        llama_ckpt.load(path, device="cpu")


def test_exports_without_a_place_for_experts_say_so(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "m.gguf", n_experts=4)
    llama_ckpt.export_weights(model, tmp_path / "plain.safetensors")
    with pytest.raises(OptionError, match="the layout of a mixture of experts: got meta, wanted hf or gguf"):
        llama_ckpt.export_weights(model, tmp_path / "meta" / "m.safetensors", layout="meta")


def test_the_oracle_is_mixtrals_formula() -> None:
    draw = np.random.default_rng(2)
    x, router = draw.standard_normal((3, 8)), draw.standard_normal((4, 8))
    gate, up, down = (
        draw.standard_normal((4, 6, 8)),
        draw.standard_normal((4, 6, 8)),
        draw.standard_normal((4, 8, 6)),
    )
    made = oracle.experts(x, router, gate.reshape(-1, 8), up.reshape(-1, 8), down.reshape(-1, 6), n_used=2)
    for row, out in zip(x, made, strict=True):
        scores = router @ row
        first, second = sorted(range(4), key=lambda e: -scores[e])[:2]
        share = 1 / (1 + np.exp(scores[second] - scores[first]))

        def network(e: int, row: Any = row) -> Any:
            a = gate[e] @ row
            return down[e] @ (a / (1 + np.exp(-a)) * (up[e] @ row))

        np.testing.assert_allclose(
            out, share * network(first) + (1 - share) * network(second), rtol=1e-9, atol=1e-12
        )
