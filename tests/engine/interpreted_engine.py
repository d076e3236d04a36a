"""Checks of the whole engine for Triton's interpreter: a Llama of two blocks, against the ladder's layers.

The interpreter takes a tenth of a second for each program of a kernel, so the model is as narrow as
the engine allows, and `test_engine_interpreted` gives each of these a process.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast
from unittest.mock import patch

import torch
from gguf import GGMLQuantizationType as T

from checkpoints.c12_end_to_end import generate
from llama_ckpt.engine.engine import Engine, Precision, engine_points
from llama_ckpt.engine.forced import forced_block, forced_logits
from llama_ckpt.engine.session import Session, session_for
from llama_ckpt.errors import OptionError
from llama_ckpt.generation import ComputedBy
from llama_ckpt.generation import generate as generate_text
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.model import Model, load
from llama_ckpt.tokens.sampling import SamplingOptions
from tests.gguf_files import write_llama

VOCAB = 20
CAPACITY = 100


def tiny(type: T, n_layers: int = 2) -> Model:
    """Grouped heads, and as few programs a kernel as there can be."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_llama(
            Path(folder) / "model.gguf",
            type=type,
            width=32,
            ffn=64,
            n_heads=2,
            n_kv_heads=1,
            n_layers=n_layers,
            vocab=VOCAB,
        )
        return load(path, device="cpu")


def token_ids(n: int) -> list[int]:
    return [(7 * i + 3) % VOCAB for i in range(n)]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def hold(name: str, found: torch.Tensor, wanted: torch.Tensor, precision: str) -> None:
    """A point of the engine's is within its measured limit of the layers' own."""
    limit = limit_for(name, cast("Precision", precision), "total").err
    error = relative(found, wanted)
    assert error <= limit, (name, precision, error, limit)


def points(type: str, precision: str, n: int) -> None:
    """Every point of `n` tokens, in the run and block by block; what a tap was given stays."""
    model, ids = tiny(T[type]), token_ids(n)
    wanted: dict[str, torch.Tensor] = {}
    wanted["logits"] = model.logits(ids, tap=wanted.__setitem__)
    engine, seen = Engine(model, cast("Precision", precision), capacity=CAPACITY), {}
    seen["logits"] = engine.logits(ids, tap=seen.__setitem__)
    kept = {name: tensor.clone() for name, tensor in seen.items()}
    assert {name.split(".")[-1] for name in seen} == {*engine_points(), "logits"}
    for name, tensor in seen.items():
        hold(name, tensor, wanted[name], precision)
    found: dict[str, torch.Tensor] = {}
    x = seen["embd"]
    for number in range(model.config.n_layers):
        hold(f"blk.{number}.out", forced_block(engine, number, x, list(range(n)), found.__setitem__),
             seen[f"blk.{number}.out"], precision)  # fmt: skip
        x = seen[f"blk.{number}.out"]
    hold("logits", forced_logits(engine, x), seen["logits"], precision)
    assert found.keys() == {name for name in seen if name.startswith("blk.")}
    for name, tensor in seen.items():
        assert torch.equal(tensor, kept[name]), name


def mixed_types(n: int) -> None:
    """Values of another type than queries and keys: in one launch as in two, to the bit, and right."""
    model, ids = tiny(T.F16, n_layers=1), token_ids(n)
    (block,) = model.weights.blocks
    object.__setattr__(model.weights, "blocks", (replace(block, wv=cast("torch.Tensor", block.wv).float()),))
    wanted = model.logits(ids)
    engine = Engine(model, "fast", capacity=CAPACITY)
    assert len(engine.weights.blocks[0].qkv) == 2
    launches: list[str] = []
    together = engine.launcher._mixed_qkv
    engine.launcher._mixed_qkv = lambda *a: (launches.append("one"), together(*a))[1]  # type: ignore[method-assign]
    one = engine.logits(ids)
    hold("logits", one, wanted, "fast")
    with patch("llama_ckpt.engine.step._launched_alike", lambda *_: False):
        assert torch.equal(engine.logits(ids), one)
    assert launches == ["one"]


def sequence(type: str, precision: str) -> None:
    """Long prompts one after another, a token by itself, then greedy tokens: one sequence to the layers."""
    model, ids = tiny(T[type]), token_ids(52)
    wanted = model.logits(ids)
    engine = Engine(model, cast("Precision", precision), capacity=CAPACITY)
    rows = [engine.prompt(ids[:20]), engine.prompt(ids[20:50])]
    rows += [engine.prompt(ids[50:51]), engine.step(ids[51])]
    for row, at in zip(rows, (19, 49, 50, 51), strict=True):
        hold("logits", row, wanted[at], precision)
    chosen = engine.greedy(3).tolist()
    assert engine.used == 54
    for token in chosen:
        last = model.logits(ids)[-1]
        slack = limit_for("logits", cast("Precision", precision), "total").row_err * last.norm()
        assert last.max() - last[token] <= slack
        ids.append(token)
    engine.rewind(52)
    hold("logits", engine.step(ids[52]), model.logits(ids[:53])[-1], precision)


def sequence_of_groups() -> None:
    """The same with the attention of heads that share keys, which is for longer contexts than these."""
    with patch("llama_ckpt.engine.step.FEW_SLOTS", 0):
        sequence("F16", "fast")


def text() -> None:
    """`generate` chooses the same tokens with the engine as with the layers, greedy, drawn and penalized."""
    model = tiny(T.F16, n_layers=1)
    session = Session(model, Engine(model, "high", capacity=CAPACITY))
    drawn = SamplingOptions(temperature=0.8, top_k=5, repetition_penalty=1.3, seed=7)
    for sampling in (SamplingOptions(), drawn):
        chosen = [
            [
                token.id
                for token in generate(one, token_ids(2), max_tokens=3, sampling=sampling, ignore_eos=True)
            ]
            for one in (session, model)
        ]
        assert chosen[0] == chosen[1] and len(chosen[0]) == 3, (sampling, chosen)


def two_texts() -> None:
    """A second text is refused before its first token, in any thread, until the first has ended."""
    model = tiny(T.F16)

    def begin(precision: ComputedBy = "high") -> Iterator[str]:
        return generate_text(model, token_ids(1), 2, precision=precision)

    alone = list(begin("layers"))  # what the interpreter takes a minute for
    first = begin()
    pieces = [next(first)]
    refusals: list[str] = []

    def try_another() -> None:
        try:
            next(begin())
        except OptionError as error:
            refusals.append(str(error))

    try_another()
    thread = threading.Thread(target=try_another)
    thread.start()
    thread.join()
    assert len(refusals) == 2 and all("sequences at a time on one engine: got 2" in one for one in refusals)
    assert [*pieces, *first] == alone, "the first text is what it is alone"
    abandoned = begin()
    assert next(abandoned) == alone[0]
    abandoned.close()
    dropped = begin()
    assert next(dropped) == alone[0], "a text that was closed holds nothing"
    del dropped
    assert next(begin()) == alone[0], "nor does one that nobody holds any more"


def two_caches() -> None:
    """Below `generate`, too: a cache that a newer sequence has replaced takes no more tokens."""
    model = tiny(T.F16, n_layers=1)
    session = Session(model, Engine(model, "high", capacity=CAPACITY))

    def continued() -> Iterator[int]:
        for token in generate(session, token_ids(1), max_tokens=2, ignore_eos=True):
            yield token.id

    alone = list(continued())
    first, second = continued(), continued()
    assert next(first) == next(second) == alone[0]
    try:
        next(first)
    except OptionError as error:
        assert "the sequence's cache on the engine" in str(error)
    else:
        raise AssertionError("the first went on in the second's tokens")
    assert list(second) == alone[1:]


def one_session_for_two_threads() -> None:
    """Threads that ask at the same time get one session, so that each keeps the other out."""
    model, made = tiny(T.F16, n_layers=1), []
    together = threading.Barrier(4)

    def ask() -> None:
        together.wait()
        made.append(session_for(model, "high"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4 and len(set(map(id, made))) == 1
