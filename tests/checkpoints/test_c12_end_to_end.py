"""Checkpoint 12: from a prompt to text."""

from __future__ import annotations

import base64
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import checkpoints
from checkpoints import argmax, generate
from checkpoints.c12_end_to_end import CHECKPOINT, GeneratedToken
from llama_ckpt.errors import ContextLengthError, OptionError
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.ladder.trial import Trial
from llama_ckpt.making.derive import derive
from llama_ckpt.model import Model, load
from llama_ckpt.tokens.sampling import SamplingOptions
from tests.checkpoints.dump_trials import (
    EIGHT_TOKENS,
    EVERY_DUMP,
    DumpRun,
    check_a_point_fails,
    check_every_point,
    judge_own,
)
from tests.checkpoints.held_against import check_passes
from tests.checkpoints.reciting_llama import reciting
from tests.draws import draws

PROMPT = "And God said, Let there be"
SAMPLED = SamplingOptions(temperature=1.0, top_k=50, top_p=0.95, seed=7)


@pytest.mark.parametrize("run", EVERY_DUMP)
def test_dump(run: DumpRun) -> None:
    check_every_point(run, CHECKPOINT)


@pytest.fixture(scope="module")
def model(embedded_model: Path) -> Model:
    """The embedded model on the CPU."""
    return load(embedded_model, device="cpu")


def ids(tokens: Iterator[GeneratedToken]) -> list[int]:
    return [token.id for token in tokens]


def text(tokens: Iterator[GeneratedToken]) -> str:
    return "".join(token.text for token in tokens)


def test_greedy_is_the_argmax_of_a_forced_pass(model: Model) -> None:
    prompt = model.tokenizer.encode(PROMPT)
    found = ids(generate(model, prompt, max_tokens=20))
    forced = argmax(model.logits([*prompt, *found[:-1]])).tolist()
    assert found == forced[len(prompt) - 1 :]


def test_text_and_token_ids_agree(model: Model) -> None:
    of_text = list(generate(model, PROMPT, max_tokens=8))
    assert of_text == list(generate(model, model.tokenizer.encode(PROMPT), max_tokens=8))
    assert of_text == list(generate(model, PROMPT.encode(), max_tokens=8))


def test_text_is_that_of_the_tokens(model: Model) -> None:
    tokens = list(generate(model, PROMPT, max_tokens=20))
    pieces = b"".join(model.tokenizer.piece(token.id) for token in tokens)
    assert text(iter(tokens)) == pieces.decode()
    assert [token.stop_reason for token in tokens] == [None] * 19 + ["length"]


def test_tokens_come_as_soon_as_they_are_chosen(model: Model) -> None:
    stream = generate(model, PROMPT, max_tokens=10)
    first = next(stream)
    assert first.stop_reason is None and first.id == ids(generate(model, PROMPT, max_tokens=1))[0]
    stream.close()


def test_the_tap_sees_what_each_choice_is_made_from(model: Model) -> None:
    rows: list[Tensor] = []
    tokens = ids(generate(model, PROMPT, max_tokens=5, tap=lambda point, row: rows.append(row.clone())))
    assert [int(argmax(row)) for row in rows] == tokens
    assert {row.shape for row in rows} == {(model.config.vocab_size,)}


def test_same_seed_same_tokens(model: Model) -> None:
    first = ids(generate(model, PROMPT, max_tokens=12, sampling=SAMPLED))
    assert first == ids(generate(model, PROMPT, max_tokens=12, sampling=SAMPLED))
    other = dataclasses.replace(SAMPLED, seed=8)
    assert first != ids(generate(model, PROMPT, max_tokens=12, sampling=other))


def test_without_a_seed_two_runs_differ(model: Model) -> None:
    unseeded = dataclasses.replace(SAMPLED, temperature=5.0, top_k=0, top_p=1.0, seed=None)
    runs = {tuple(ids(generate(model, PROMPT, max_tokens=8, sampling=unseeded))) for _ in range(2)}
    assert len(runs) == 2  # of 32,000^8


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-7},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 2.0, "min_p": 1.0},
    ],
)
def test_settings_that_leave_the_best_alone_are_greedy(model: Model, options: dict[str, float]) -> None:
    sampling = SamplingOptions(seed=3, **options)
    assert ids(generate(model, PROMPT, max_tokens=8, sampling=sampling)) == ids(
        generate(model, PROMPT, max_tokens=8)
    )


def test_a_penalty_keeps_tokens_from_coming_again(model: Model) -> None:
    loop = reciting(model, [500, 501, 502])
    assert ids(generate(loop, [500], max_tokens=6)) == [501, 502, 500, 501, 502, 500]
    # Scores of 8 and 0 times sqrt(3): a penalty of 10^6 leaves less than nothing but zeros, lowest id first.
    penalized = SamplingOptions(repetition_penalty=1e6)
    assert ids(generate(loop, [500], max_tokens=2, sampling=penalized)) == [501, 502]
    assert ids(generate(loop, [500, 501, 502], max_tokens=1, sampling=penalized)) == [500]


def test_stops_at_eos(model: Model) -> None:
    eos = model.tokenizer.eos_id
    assert eos is not None
    speaker = reciting(model, [500, 501, eos, 502])
    tokens = list(generate(speaker, [500], max_tokens=10))
    assert ids(iter(tokens)) == [501, eos]
    assert [token.stop_reason for token in tokens] == [None, "eos"]
    assert text(iter(tokens)) == model.tokenizer.piece(501).decode()
    going_on = list(generate(speaker, [500], max_tokens=4, ignore_eos=True))
    assert ids(iter(going_on)) == [501, eos, 502, 500] and going_on[-1].stop_reason == "length"


def test_eos_as_the_last_token_allowed_is_eos(model: Model) -> None:
    eos = model.tokenizer.eos_id
    assert eos is not None
    assert [t.stop_reason for t in generate(reciting(model, [500, eos]), [500], max_tokens=1)] == ["eos"]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_stop_string_ends_the_text_before_it(model: Model, cut: int) -> None:
    whole = text(iter(generated(model, tuple(model.tokenizer.encode(PROMPT)), max_tokens=16)))
    stop = whole[cut : cut + 7]  # spread over two tokens or more
    tokens = list(generate(model, PROMPT, max_tokens=16, stop=[stop, "never in the text"]))
    assert text(iter(tokens)) == whole[: whole.index(stop)]
    assert tokens[-1].stop_reason == "stop" and tokens[-1].stop_string == stop
    assert all(token.stop_reason is None for token in tokens[:-1])


def test_what_only_looked_like_a_stop_string_is_shown_in_the_end(model: Model) -> None:
    whole = text(generate(model, PROMPT, max_tokens=16))
    tokens = list(generate(model, PROMPT, max_tokens=16, stop=[whole[-3:] + "\x00"]))
    assert text(iter(tokens)) == whole and tokens[-1].stop_reason == "length"


def test_characters_come_whole(model: Model) -> None:
    euro = [model.tokenizer.encode(bytes([byte]))[-1] for byte in "€".encode()]
    script = [500, *euro, 501]
    shown = [token.text for token in generate(reciting(model, script), [500], max_tokens=4)]
    assert shown == ["", "", "€", model.tokenizer.piece(501).decode()]
    cut_off = [token.text for token in generate(reciting(model, script), [500], max_tokens=2)]
    assert cut_off == ["", "\ufffd"]


def test_a_batch_of_prompts_in_turn_share_nothing(model: Model) -> None:
    alone = ids(generate(model, "Hello", max_tokens=6))
    first, second = generate(model, PROMPT, max_tokens=6), generate(model, "Hello", max_tokens=6)
    mixed = [(a.id, b.id) for a, b in zip(first, second, strict=True)]
    assert [b for _, b in mixed] == alone


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "error"),
    [
        ([], 1, OptionError),
        ([32000], 1, OptionError),
        ([-1], 1, OptionError),
        ("Hello", 0, OptionError),
        ("Hello", -5, OptionError),
        ("Hello", 1_000_000, ContextLengthError),
    ],
)
def test_bad_arguments(model: Model, prompt: Any, max_tokens: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="wanted"):
        list(generate(model, prompt, max_tokens=max_tokens))


def test_prompt_and_text_may_fill_the_context(model: Model) -> None:
    loop = reciting(model, [500, 501])
    small = dataclasses.replace(loop, config=dataclasses.replace(loop.config, context_length=8))
    assert len(list(generate(small, [500, 501, 500], max_tokens=5))) == 5
    with pytest.raises(ContextLengthError):
        list(generate(small, [500, 501, 500], max_tokens=6))


@pytest.mark.llama_cpp
def test_greedy_text_is_llama_cpps(embedded_model: Path, tmp_path: Path) -> None:
    import llama_cpp

    path = derive(open_gguf(embedded_model), "F32", tmp_path / "f32.gguf").path
    ours = load(path, device="cpu")
    theirs = llama_cpp.Llama(
        str(path), n_ctx=256, n_threads=1, type_k=0, type_v=0, flash_attn=False, verbose=False
    )
    prompts = [PROMPT, "In the beginning", "And Jesus answered", "The children of Israel", "Blessed are the"]
    for prompt in prompts[: draws(2, 5)]:
        options = {"max_tokens": 64, "temperature": 0.0, "repeat_penalty": 1.0}
        wanted = theirs.create_completion(prompt, **options)["choices"][0]["text"]
        assert text(generate(ours, prompt, max_tokens=64)) == wanted
    theirs.close()


@dataclasses.dataclass(frozen=True)
class Misled:
    """A model that is given other positions, tokens or caches than `generate` chose."""

    model: Model
    positions: Callable[[Tensor], Tensor] = lambda positions: positions
    fresh_cache: bool = False
    row: Callable[[Tensor], Tensor] = lambda logits: logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, token_ids: Tensor, positions: Tensor, cache: Any) -> Tensor:
        cache = self.model.new_cache(len(token_ids)) if self.fresh_cache else cache
        return self.row(self.model.forward(token_ids, self.positions(positions), cache))


def misled(**how: Any) -> Callable[..., Any]:
    """`generate` with a misled model."""
    return lambda model, prompt_or_token_ids, **options: generate(
        Misled(model, **how), prompt_or_token_ids, **options
    )


def without_bos(model: Any, prompt_or_token_ids: Any, **options: Any) -> Any:
    return generate(model, prompt_or_token_ids[1:], **options)


def last_prompt_token_missing(model: Any, prompt_or_token_ids: Any, **options: Any) -> Any:
    return generate(model, prompt_or_token_ids[:-1], **options)


def sampled(model: Any, prompt_or_token_ids: Any, **options: Any) -> Any:
    sampling = SamplingOptions(temperature=2.0, seed=0)
    return generate(model, prompt_or_token_ids, sampling=sampling, **options)


def penalized(model: Any, prompt_or_token_ids: Any, **options: Any) -> Any:
    return generate(model, prompt_or_token_ids, sampling=SamplingOptions(repetition_penalty=1.3), **options)


def one_token_short(model: Any, prompt_or_token_ids: Any, *, max_tokens: int, **options: Any) -> Any:
    return generate(model, prompt_or_token_ids, max_tokens=max(1, max_tokens - 1), **options)


WRONG_TOKENS = {
    "BOS missing": without_bos,
    "last prompt token missing": last_prompt_token_missing,
    "sampled": sampled,
    "penalized": penalized,
    "one token short": one_token_short,
    "position does not move on": misled(positions=lambda p: p if len(p) > 1 else torch.full_like(p, 7)),
    "position starts again at 0": misled(positions=lambda p: p - p[0]),
    "cache not kept": misled(fresh_cache=True),
    "first row instead of last": misled(row=lambda logits: logits[:1]),
    "second best": misled(row=lambda x: x.scatter(-1, x.argmax(-1, keepdim=True), -1e9)),
}


def shortened(n: int) -> Trial:
    """The dump with the first tokens of its continuation; a wrong program differs at each of them."""
    trial = EIGHT_TOKENS.trial()
    whole = trial.recording.continuation
    assert whole is not None
    kept = [trial.subject.model.tokenizer.piece(token, special=False) for token in whole.token_ids[:n]]
    encoded = base64.b64encode(b"".join(kept)).decode()
    few = {"token_ids": whole.token_ids[:n], "margins": whole.margins[:n], "text_base64": encoded}
    recording = dataclasses.replace(trial.recording, continuation=dataclasses.replace(whole, **few))
    short = Trial(trial.subject, recording)
    vars(short.judge)["noise"] = trial.judge.noise
    return short


def test_the_shortened_continuation_passes() -> None:
    check_passes(list(shortened(16).judge_own(CHECKPOINT)))


def test_of_a_text_that_is_only_begun_the_rest_is_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = EIGHT_TOKENS.trial()
    begun = Trial(whole.subject, whole.recording, whole_text=False)
    vars(begun.judge)["noise"] = whole.judge.noise
    text = whole.recording.continuation
    assert text is not None
    n = len(whole.recording.token_ids) + len(text.token_ids) - 1
    generated = 0

    def counted(self: Model, *arguments: Any, **options: Any) -> Tensor:
        nonlocal generated
        generated += 1
        return forward(self, *arguments, **options)

    forward = Model.forward
    monkeypatch.setattr(Model, "forward", counted)
    check_passes(list(begun.judge_own(CHECKPOINT)))
    assert generated < 20 < n

    def wrong_at_the_end(self: Model, *arguments: Any, **options: Any) -> Tensor:
        rows = logits(self, *arguments, **options).clone()
        rows[n - 10] = -rows[n - 10]
        return rows

    logits = Model.logits
    monkeypatch.setattr(Model, "logits", wrong_at_the_end)
    check_a_point_fails([one for one in begun.judge_own(CHECKPOINT) if one.name == "continuation"])


@pytest.mark.parametrize("wrong", WRONG_TOKENS.values(), ids=WRONG_TOKENS.keys())
def test_wrong_tokens_fail(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "generate", wrong)
    # Each token that differs costs another text behind it; a penalty shows where a word comes again.
    n = 16 if wrong is penalized else 8
    verdicts = list(shortened(n).judge_own(CHECKPOINT))
    check_a_point_fails([one for one in verdicts if one.name == "continuation"])


@functools.cache
def generated(model: Model, token_ids: tuple[int, ...], **options: Any) -> list[GeneratedToken]:
    return list(generate(model, token_ids, **options))


def retold(change: Callable[[GeneratedToken, Any], str]) -> Callable[..., Any]:
    """`generate` with the right tokens and other text."""

    def layer(model: Any, prompt_or_token_ids: Any, **options: Any) -> Iterator[GeneratedToken]:
        for token in generated(model, tuple(prompt_or_token_ids), **options):
            yield dataclasses.replace(token, text=change(token, model))

    return layer


WRONG_TEXT = {
    "spaces lost": retold(lambda token, model: token.text.strip()),
    "pieces with U+2581": retold(lambda token, model: token.text.replace(" ", "\u2581")),
    "lower case": retold(lambda token, model: token.text.lower()),
    "token ids": retold(lambda token, model: str(token.id)),
    "last piece lost": retold(lambda token, model: "" if token.stop_reason else token.text),
    "nothing": retold(lambda token, model: ""),
}


@pytest.mark.parametrize("wrong", WRONG_TEXT.values(), ids=WRONG_TEXT.keys())
def test_wrong_text_fails(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "generate", wrong)
    check_a_point_fails([one for one in judge_own(CHECKPOINT) if one.name == "text"])
