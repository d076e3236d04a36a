"""Recording what transformers does by itself: generation, chunks, left padding, dynamic and static caches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import llama_ckpt as lc
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.errors import OptionError
from llama_ckpt.making.export import export_weights
from tests.comparing.ported_llama import prompt, seeded

transformers = pytest.importorskip("transformers", reason="a GPU machine without a network may lack it")

P = prompt(8)
PADDED = {
    "input_ids": torch.tensor([[0, 0, 0, *P[:5]], P]),
    "attention_mask": torch.tensor([[0] * 3 + [1] * 5, [1] * 8]),
}
GENERATE = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hf")
    export_weights(seeded(), made / "model.safetensors", layout="hf")
    return made


def loaded(folder: Path, attention: str) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    ).eval()


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return loaded(folder, "eager")


def judged(model: Any, folder: Path, program: Callable[[Any], Any]) -> Comparison:
    with torch.no_grad(), lc.recording(model) as run:
        program(model)
    run.save(folder / "run.safetensors")
    return compare_dump(folder / "run.safetensors", model=seeded())


def chunks(model: Any) -> None:
    cache = transformers.DynamicCache(config=model.config)
    for part in (P[:5], P[5:]):
        model(torch.tensor([part]), past_key_values=cache)


def static(model: Any) -> None:
    cache = transformers.StaticCache(config=model.config, max_cache_len=16)
    for first, part in ((0, P[:5]), (5, P[5:6])):
        at = torch.arange(first, first + len(part))
        model(torch.tensor([part]), past_key_values=cache, cache_position=at)


def sliding(model: Any, window: int = 9, kinds: tuple[str, ...] = ("sliding", "full")) -> None:
    """A window that nothing falls out of is none; every second layer has one."""
    config = copy.deepcopy(model.config)
    config.sliding_window, n = window, config.num_hidden_layers
    config.layer_types = [f"{kind}_attention" for kind in kinds * n][:n]
    cache = transformers.DynamicCache(config=config)
    for part in (P[:5], *([token] for token in P[5:])):
        model(torch.tensor([part]), past_key_values=cache)


def rolled_back(model: Any) -> None:
    """What speculative decoding does of itself: tokens that were guessed wrongly are taken back."""
    cache = transformers.DynamicCache(config=model.config)
    model(torch.tensor([P[:5]]), past_key_values=cache)
    cache.crop(-2)
    model(torch.tensor([P[5:]]), past_key_values=cache)


RIGHT: dict[str, Callable[[Any], Any]] = {
    "chunks": chunks,
    "static": static,
    "generate": lambda model: model.generate(torch.tensor([P]), **GENERATE),
    "left padding": lambda model: model.generate(**PADDED, **GENERATE),
    "left padding, static": lambda model: model.generate(**PADDED, **GENERATE, cache_implementation="static"),
    "sliding": sliding,
    "prefill in chunks": lambda model: model.generate(torch.tensor([P]), **GENERATE, prefill_chunk_size=3),
    "beams": lambda model: model.generate(torch.tensor([P]), **GENERATE | {"max_new_tokens": 3}, num_beams=3),
    "beams, left padding": lambda model: model.generate(
        **PADDED, **GENERATE | {"max_new_tokens": 3}, num_beams=2
    ),
    "packed": lambda model: model(
        torch.tensor([[*P[:5], 1, 9, 12]]),
        position_ids=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]]),
        use_cache=False,
    ),
    "rolled back": rolled_back,
    "guessed tokens": lambda model: model.generate(torch.tensor([P]), **GENERATE, prompt_lookup_num_tokens=2),
}


@pytest.mark.parametrize("program", RIGHT)
def test_what_transformers_does_is_right(model: Any, tmp_path: Path, program: str) -> None:
    report = judged(model, tmp_path, RIGHT[program])
    assert report.verdict == "pass" and not report.findings, report.reason
    assert all(one.compared >= 53 for one in report.sequences)


def test_a_fused_attention_shows_all_points_of_every_step(folder: Path, tmp_path: Path) -> None:
    """Its heads lie where tokens do in a call of one token."""
    report = judged(loaded(folder, "sdpa"), tmp_path, RIGHT["left padding, static"])
    assert report.verdict == "pass" and not report.findings, report.reason
    assert all(one.compared == 47 for one in report.sequences)


def test_a_window_that_keys_fall_out_of_is_named(model: Any, tmp_path: Path) -> None:
    report = judged(model, tmp_path, lambda model: sliding(model, 4, ("sliding",)))
    assert "the last 4 keys of the cache are seen" in report.reason and "in call 1 " in report.where


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_with_a_mask(model: Any, tmp_path: Path, side: str) -> None:
    given = dict(PADDED)
    if side == "left":
        given["position_ids"] = torch.tensor([[0, 0, 0, *range(5)], list(range(8))])
    else:
        given = {name: x.flip(1) for name, x in given.items()}
    lc.record(model, given).save(tmp_path / "batch.safetensors")
    report = compare_dump(tmp_path / "batch.safetensors", model=seeded())
    assert report.verdict == "pass" and not report.findings, report.reason
    assert [len(one.rows) for one in report.sequences] == [5, 8]


def test_positions_that_count_the_padding_are_told(model: Any, tmp_path: Path) -> None:
    """A batch without `position_ids`: they are then counted through the padding."""
    report = judged(model, tmp_path, lambda model: model(**PADDED))
    assert "other_positions" in [one.kind for one in report.findings]


def test_a_cache_that_rounds_is_refused(model: Any) -> None:
    class QuantizedCache(transformers.DynamicCache):  # type: ignore[name-defined,misc]
        pass

    with pytest.raises(OptionError, match="gives back what it was given"), lc.recording(model):
        model(torch.tensor([P]), past_key_values=QuantizedCache(config=model.config))
