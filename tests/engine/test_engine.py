"""The engine: held against the ladder's own layers, the same bits replayed as launched, its points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama_ckpt.engine.engine import (
    OBSERVABLE,
    Engine,
    Precision,
    engine_points,
    slots_looked_at,
    unsupported,
)
from llama_ckpt.engine.forced import forced_block, forced_logits
from llama_ckpt.engine.step import FEW_SLOTS
from llama_ckpt.errors import ContextLengthError, DeviceError, OptionError, ShapeError
from llama_ckpt.generation import generate
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.making.derive import derive
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.model import Model, load
from llama_ckpt.points import POINTS

LIMITS = {"high": 5e-6, "fast": 2e-3}  # of the logits, from float32 layers, 32 layers deep
INNER = {"high": "float32", "fast": "float16"}  # whose free-running limits the points inside are held to
PROMPT = "In the beginning God created the heaven"


@pytest.fixture(scope="module")
def model(embedded_model: Path) -> Model:
    return load(embedded_model, device="cuda")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_what_it_shows_are_points_of_the_network_in_their_order() -> None:
    order = ["embd", *(name for name in POINTS if name != "embd"), "greedy_tokens"]
    assert {*OBSERVABLE} <= {*order, "last_logits"}
    assert sorted(engine_points(), key=order.index)[0] == "embd" and "attn_probs" not in OBSERVABLE


@pytest.mark.parametrize("capacity", [1, 100, 4096, 5000, 131_072])
def test_a_step_looks_at_what_is_used_and_little_more(capacity: int) -> None:
    """A long context costs nothing until it is used."""
    for used in {1, 100, 128, 129, 3073, 4096, 4097, 100_000, capacity}:
        if used <= capacity:
            assert used <= slots_looked_at(used, capacity) <= min(capacity, max(128, 2 * used - 1))


def test_cpu_models_are_refused_with_a_reason(embedded_model: Path) -> None:
    on_cpu = load(embedded_model, device="cpu")
    assert unsupported(on_cpu)
    with pytest.raises(DeviceError):
        Engine(on_cpu)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["high", "fast"])
@pytest.mark.parametrize("n", [1, 2, 16, 17, 300])
def test_logits_and_points_are_those_of_the_layers(model: Model, precision: Precision, n: int) -> None:
    ids = [(37 * i) % 31_000 + 3 for i in range(n)]
    wanted: dict[str, torch.Tensor] = {}
    wanted["logits"] = model.logits(ids, tap=wanted.__setitem__)
    shown: dict[str, torch.Tensor] = {}
    shown["logits"] = Engine(model, precision, capacity=512).logits(ids, tap=shown.__setitem__)
    assert {name.split(".")[-1] for name in shown} == {*engine_points(), "logits"}
    for name, tensor in shown.items():
        inside = limit_for(name, INNER[precision], "total").err
        assert relative(tensor, wanted[name]) <= (LIMITS[precision] if name == "logits" else inside), name


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["high", "fast"])
def test_prompt_and_steps_are_the_whole_sequence(model: Model, precision: Precision) -> None:
    ids = [(37 * i) % 31_000 + 3 for i in range(150)]
    wanted = model.logits(ids)
    engine = Engine(model, precision, capacity=200)
    rows = [engine.prompt(ids[:100]), *(engine.step(token).clone() for token in ids[100:])]
    for row, exact in zip(rows, wanted[99:], strict=True):
        assert relative(row, exact) <= LIMITS[precision]


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["high", "fast"])
@pytest.mark.parametrize("group", [2, 4])
def test_long_contexts_of_heads_that_share_keys(precision: Precision, group: int, tmp_path: Path) -> None:
    """Past some slots another kernel attends: tokens before and after are one sequence, twice the same.

    In float16 for `high`: of a quantized weight a long prompt keeps three bits of what float16 leaves, 1e-5.
    """
    kind = {"high": "F16", "fast": "Q8_0"}[precision]
    sizes = {"width": 256, "n_heads": 8, "ffn": 256, "n_layers": 2, "vocab": 320, "context_length": 4096}
    make_seeded(tmp_path / "m.gguf", **sizes, n_kv_heads=8 // group, type=kind, seed=1)  # type: ignore[arg-type]
    model = load(tmp_path / "m.gguf", device="cuda")
    ids = [(37 * i) % 300 + 3 for i in range(2600)]
    wanted = model.logits(ids)
    engine = Engine(model, precision, capacity=4000)
    for start in (FEW_SLOTS // group - 3, 2500):
        found = []
        for _ in range(2):
            engine.reset()
            engine.prompt(ids[:start])
            rows = [engine.step(token).clone() for token in ids[start : start + 6]]
            rows.append(engine.prompt(ids[start + 6 : start + 18]))
            found.append(torch.stack(rows))
        at = [*range(start, start + 6), start + 17]
        assert relative(found[0], wanted[at]) <= LIMITS[precision]
        assert torch.equal(*found)


@pytest.mark.cuda
def test_replayed_and_launched_steps_give_the_same_bits(model: Model) -> None:
    ids = model.tokenizer.encode(PROMPT)
    replayed, launched = Engine(model), Engine(model, graphs=False)
    found = []
    for engine in (replayed, launched):
        engine.logits(ids)
        found.append((engine.greedy(80), engine.buffers.logits[0].clone()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["high", "fast"])
def test_prompts_give_the_same_bits_launched_captured_or_replayed(model: Model, precision: Precision) -> None:
    replayed, launched = (Engine(model, precision, capacity=400, graphs=graphs) for graphs in (True, False))
    for n in (100, 128, 17, 100, 300, 70, 120, 300, 17):  # lengths that share launches, and others between
        ids = [(37 * i + n) % 31_000 + 3 for i in range(n)]
        assert torch.equal(replayed.logits(ids), launched.logits(ids)), n


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["high", "fast"])
def test_long_prompts_one_after_another_are_one_sequence(model: Model, precision: Precision) -> None:
    ids = [(37 * i) % 31_000 + 3 for i in range(450)]
    wanted = model.logits(ids)
    engine = Engine(model, precision, capacity=450)
    for _ in range(3):  # launched, captured, replayed
        engine.reset()
        rows = torch.stack([engine.prompt(ids[start : start + 25]) for start in range(0, 450, 25)])
        assert relative(rows, wanted[24::25]) <= LIMITS[precision]


@pytest.mark.cuda
def test_what_ran_before_changes_nothing(model: Model) -> None:
    ids = model.tokenizer.encode(PROMPT)
    engine = Engine(model)
    engine.logits(ids)
    first = engine.greedy(40)
    engine.logits([(7 * i) % 31_000 + 3 for i in range(700)])
    engine.greedy(20)
    engine.logits(ids)
    assert torch.equal(engine.greedy(40), first)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["high", "fast"])
@pytest.mark.parametrize("n", [5, 40])
def test_what_a_tap_was_given_stays(model: Model, precision: Precision, n: int) -> None:
    """A float32 cache handed on as it is would change under its reader with the next sequence."""
    engine, seen = Engine(model, precision, capacity=64), {}
    ids = [(37 * i) % 31_000 + 3 for i in range(n)]
    engine.logits(ids, tap=seen.__setitem__)
    before = {name: tensor.clone() for name, tensor in seen.items()}
    engine.logits([(11 * i) % 31_000 + 3 for i in range(n)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in seen.items())


@pytest.mark.cuda
def test_positions_may_begin_late(model: Model) -> None:
    ids, last = [1, 15043, 3186], model.config.context_length
    at = [last - 3, last - 2, last - 1]
    assert relative(Engine(model, "high").logits(ids, at), model.logits(ids, at)) <= LIMITS["high"]


@pytest.mark.cuda
def test_greedy_text_is_that_of_the_layers(model: Model) -> None:
    layers = "".join(generate(model, PROMPT, 40, precision="layers"))
    assert "".join(generate(model, PROMPT, 40, precision="high")) == layers


@pytest.mark.cuda
def test_wrong_input_is_one_sentence(model: Model) -> None:
    engine = Engine(model, capacity=20)
    with pytest.raises(ShapeError):
        engine.logits([])
    with pytest.raises(ShapeError):
        engine.logits([1, 2], [3, 3])
    with pytest.raises(ContextLengthError):
        engine.logits(list(range(3, 30)))
    with pytest.raises(OptionError):
        engine.rewind(5)
    with pytest.raises(OptionError):
        Engine(replace(model), "exact")  # type: ignore[arg-type]


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["high", "fast"])
@pytest.mark.parametrize("n", [3, 40])
def test_a_block_on_given_inputs_is_the_same_block(model: Model, precision: Precision, n: int) -> None:
    """Bit for bit in long prompts; a few tokens' norms add up in another order after a block of the run."""
    same = torch.equal if n > 16 else lambda a, b: relative(a, b) <= LIMITS[precision]
    ids, at = [(37 * i) % 31_000 + 3 for i in range(n)], list(range(n))
    engine = Engine(model, precision, capacity=64)
    seen: dict[str, torch.Tensor] = {}
    logits = engine.logits(ids, tap=seen.__setitem__)
    found: dict[str, torch.Tensor] = {}
    x = seen["embd"]
    for number in range(model.config.n_layers):
        out = forced_block(engine, number, x, at, found.__setitem__)
        x = seen[f"blk.{number}.out"]
        assert same(out, x), number
    assert same(forced_logits(engine, x), logits)
    assert all(same(tensor, seen[name]) for name, tensor in found.items())
    assert {name for name in seen if name.startswith("blk.")} == found.keys()
    with pytest.raises(ShapeError):
        forced_block(engine, 0, x[:, :-1], at, None)


def test_older_gpus_are_asked_for_nothing_that_they_lack(
    embedded_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only what the GPU is called is made up here: tensor cores multiply 8 bits from 8.9 on."""
    half = load(embedded_model, device="cpu")
    quantized = load(derive(embedded_model, "Q8_0", tmp_path / "q8_0.gguf").path, device="cpu")
    monkeypatch.setattr("llama_ckpt.engine.engine.HAS_TRITON", True)
    monkeypatch.setattr("llama_ckpt.engine.engine.INTERPRETED", True)  # so that the CPU passes for a device
    for capability, refused in (((8, 6), True), ((8, 9), False), ((9, 0), False)):
        monkeypatch.setattr("llama_ckpt.engine.engine._capability", lambda model, found=capability: found)
        assert unsupported(half, "high") is None
        assert unsupported(quantized, "fast") is None
        assert ("8-bit" in (unsupported(quantized, "high") or "")) is refused
