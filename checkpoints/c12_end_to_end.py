"""Checkpoint 12, end to end: from a prompt to text, one token at a time through the KV cache.

    fill the cache with the prompt;  repeat: token = choose(last logits);  feed it back

All the checkpoints chained. The prompt goes through in one pass, each new token in a pass of its own;
the loop ends at EOS, at a stop string or at the limit. Judged against llama.cpp's greedy continuation,
token by token, and its text. Source: llama.cpp, `examples/simple/simple.cpp`, and its sampler chain.

Stands on the layers before it; nothing here computes anything but the choice of the token.

What goes wrong here: see `CHECKPOINT.mistakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from checkpoints.c09_last_logits import last_logits
from checkpoints.c10_argmax import argmax
from checkpoints.c11_softmax import softmax
from llama_ckpt.errors import ContextLengthError, NotFiniteError, OptionError
from llama_ckpt.points import Case, Checkpoint, Given
from llama_ckpt.tokens.sampling import PENALTY_WINDOW, SamplingOptions, Uniforms, draw, penalize
from llama_ckpt.tokens.text_stream import TextStream
from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.tokens.whole_numbers import whole_numbers
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.kv_cache import KVCache

__all__ = ["CHECKPOINT", "GeneratedToken", "generate"]

StopReason = Literal["eos", "stop", "length"]


class LanguageModel(Protocol):
    """What `generate` needs of a model; `llama_ckpt.load` returns one."""

    @property
    def config(self) -> LlamaConfig: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    def new_cache(self, capacity: int) -> KVCache: ...
    def forward(self, token_ids: Tensor, positions: Tensor, cache: KVCache) -> Tensor: ...
    def tensor(self, token_ids: Sequence[int]) -> Tensor: ...


@runtime_checkable
class Explaining(Protocol):
    """A language model that can say where a run of its own broke."""

    def first_not_finite(self, token_ids: Sequence[int], first_position: int) -> str: ...


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token.

    Attributes:
        id: its id.
        text: what may be shown now: whole characters, nothing that a stop string may begin in. Can be empty.
        stop_reason: set on the last token: "eos", "stop" or "length".
        stop_string: the stop string that was met, if one was.
    """

    id: int
    text: str
    stop_reason: StopReason | None = None
    stop_string: str | None = None


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt_or_token_ids: str | bytes | Sequence[int],
    *,
    max_tokens: int,
    sampling: SamplingOptions | None = None,
    stop: Sequence[str] = (),
    ignore_eos: bool = False,
    first_position: int = 0,
    tap: Callable[[str, Tensor], object] | None = None,
) -> Iterator[GeneratedToken]:
    """Continue a prompt token by token.

    Args:
        model: what `llama_ckpt.load` returns.
        prompt_or_token_ids: text, tokenized with BOS as the file says, or token ids, taken as they are.
        max_tokens: how many to generate at most; 1 or more.
        sampling: how a token is chosen; None is greedy.
        stop: strings that end the text; they are not part of it.
        ignore_eos: go on after EOS.
        first_position: where the prompt's first token stands; 0 but for experiments.
        tap: gets "step_logits" `[vocab]` before each choice.

    Yields:
        a GeneratedToken for each token, EOS included, as soon as it is chosen.

    Raises:
        OptionError: an empty prompt, a token id that is none, or `max_tokens` below one.
        ContextLengthError: prompt and `max_tokens` do not fit the model's context.
        NotFiniteError: logits are NaN or infinite, so nothing can be chosen.
    """
    options = sampling or SamplingOptions()
    history = prompt_tokens(model, prompt_or_token_ids, max_tokens)
    cache = model.new_cache(len(history) + max_tokens)
    uniforms, stream = Uniforms(options.seed), TextStream(stop)
    pending = history
    for count in range(1, max_tokens + 1):
        end = first_position + len(history)
        positions = model.tensor(range(end - len(pending), end))
        row = last_logits(model.forward(model.tensor(pending), positions, cache))
        if tap:
            tap("step_logits", row)
        if not torch.isfinite(row).all():
            raise _not_finite(model, row, history, first_position)
        chosen = choose(row, model.tensor(history[-PENALTY_WINDOW:]), options, uniforms)
        history = [*history, chosen]
        pending = [chosen]
        ended = chosen in model.tokenizer.eog_ids and not ignore_eos
        text = "" if ended else stream.push(model.tokenizer.piece(chosen, special=False))
        reason: StopReason | None = "eos" if ended else "stop" if stream.stopped else None
        reason = reason or ("length" if count == max_tokens else None)
        if reason in ("eos", "length"):
            text += stream.finish()
        yield GeneratedToken(chosen, text, reason, stream.stopped)
        if reason:
            return


def _not_finite(
    model: LanguageModel, row: Tensor, token_ids: Sequence[int], first_position: int
) -> NotFiniteError:
    """The error of `logits [vocab]` of which no token can be chosen, with where the run broke."""
    wrong = ~torch.isfinite(row)
    first = int(wrong.int().argmax())
    hint = model.first_not_finite(token_ids, first_position) if isinstance(model, Explaining) else ""
    return NotFiniteError(
        f"logits after {len(token_ids)} tokens",
        got=f"{float(row[first])} at token id {first}, {int(wrong.sum())} of {len(row)} not finite",
        wanted="finite numbers",
        hint=hint,
    )


def prompt_tokens(
    model: LanguageModel, prompt_or_token_ids: str | bytes | Sequence[int], max_tokens: int
) -> list[int]:
    """The prompt's token ids, checked against vocabulary and context."""
    if isinstance(prompt_or_token_ids, str | bytes):
        token_ids = model.tokenizer.encode(prompt_or_token_ids)
    else:
        token_ids = whole_numbers(prompt_or_token_ids, "token id in the prompt")
    if not token_ids:
        raise OptionError("prompt", got="no tokens", wanted="at least one", hint="begin with BOS")
    outside = [token for token in token_ids if not 0 <= token < model.config.vocab_size]
    if outside:
        raise OptionError(
            "token id in the prompt", got=outside[0], wanted=f"0 to {model.config.vocab_size - 1}"
        )
    (max_tokens,) = whole_numbers([max_tokens], "max_tokens")
    if max_tokens < 1:
        raise OptionError("max_tokens", got=max_tokens, wanted="1 or more")
    if len(token_ids) + max_tokens > model.config.context_length:
        raise ContextLengthError(
            "prompt and max_tokens",
            got=f"{len(token_ids)} + {max_tokens} tokens",
            wanted=f"at most the model's context of {model.config.context_length}",
            hint="shorten the prompt or lower max_tokens",
        )
    return token_ids


def choose(row: Tensor, recent: Tensor, options: SamplingOptions, uniforms: Uniforms) -> int:
    """The next token from the last `logits [vocab]`, in the order of llama.cpp's chain."""
    row = penalize(row, recent, options.repetition_penalty)
    if options.greedy:
        return int(argmax(row))
    probabilities = softmax(
        row,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
    )
    return int(draw(probabilities, uniforms.next(), ranked=options.ranked))


def cases(given: Given) -> Iterator[Case]:
    """The greedy continuation of the recorded prompt, as many choices as llama.cpp made, if any."""
    if given.n_choices == 0:
        return
    arguments = {
        "model": given.model,
        "prompt_or_token_ids": given.token_id_list,
        "max_tokens": given.n_choices,
        "first_position": given.first_position,
    }
    yield Case("generate", arguments, ("continuation",))


CHECKPOINT = Checkpoint(
    id="12",
    title="end to end",
    function=generate,
    stands_on=("0", "8", "10", "11"),
    points=("continuation", "text"),
    max_abs=0.0,
    cases=cases,
    torch_function="the layers before it; the loop is plain Python",
    mistakes=(
        "BOS is missing from the prompt.",
        "The position does not move on, or starts again at 0 for the second token.",
        "The cache keeps a rejected or repeated token.",
        "Multi-byte characters are printed byte by byte.",
        "The stop string is printed before it is recognized.",
        "EOS is fed back and the text goes on.",
    ),
)
