"""A prompt continued as text: by the engine where it runs the model, else by the checkpoints' own layers.

import llama_ckpt as lc

model = lc.load("model.gguf")
for piece in lc.generate(model, "Hello", max_tokens=10):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Final, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch

from checkpoints.c12_end_to_end import generate as generate_tokens
from llama_ckpt.engine.engine import Engine, unsupported
from llama_ckpt.engine.session import Session, session_for
from llama_ckpt.errors import OptionError
from llama_ckpt.model import Model
from llama_ckpt.precisions import ENGINE_PRECISIONS
from llama_ckpt.threads import fitted_threads
from llama_ckpt.tokens.sampling import SamplingOptions
from llama_ckpt.weights.compiled_formats import threads_for_products_alone
from llama_ckpt.weights.packed_products import all_compiled, weights_for_few_rows
from llama_ckpt.weights.records import ModelWeights

__all__ = ["ComputedBy", "computed_by", "generate", "pick_session", "quick"]

ComputedBy: TypeAlias = Literal["auto", "fast", "high", "layers"]
"""The engine in one of its precisions, the checkpoints' own layers, or whichever is meant."""


def pick_session(model: Model, precision: ComputedBy = "auto") -> Session | None:
    """The engine's session for a model, or None where the layers compute, in the model's dtype.

    Args:
        model: from `load`.
        precision: "auto" takes the engine in precision fast where it can run the model, but never for one
            that was loaded in another dtype than `load`'s own float32: that dtype was asked for.

    Raises:
        OptionError: no such precision, or one of the engine's for a model loaded in another dtype.
        DeviceError, UnsupportedModelError: the engine was asked for and cannot run the model.
    """
    if precision == "auto":
        wanted = model.device.type == "cuda" and model.dtype == torch.float32
        return session_for(model) if wanted else None
    if precision == "layers":
        return None
    if precision not in ENGINE_PRECISIONS:
        raise OptionError("precision", got=precision, wanted="auto, fast, high or layers")
    if model.dtype != torch.float32:
        raise OptionError(
            f"dtype with precision {precision}",
            got=_name(model.dtype),
            wanted="float32",
            hint="the engine's precision is all it has; precision layers computes in the model's dtype",
        )
    session = session_for(model, precision)
    if session is None:
        Engine(model, precision)  # says why
    return session


def computed_by(model: Model, precision: ComputedBy = "auto") -> str:
    """A clause on what computes: "the engine in precision fast on cuda:0"; raises as `pick_session`."""
    session = pick_session(model, precision)
    if session is not None:
        return f"the engine in precision {session.engine.precision} on {model.device}"
    layers = f"the layers in {_name(model.dtype)} on {model.device}"
    if _for_few_rows(model, precision):
        return f"{layers}, {_quick_weights(model)[1]}"
    if precision == "layers" or model.device.type != "cuda":
        return layers
    why = unsupported(model) or f"{_name(model.dtype)} was asked for, and it has precisions of its own"
    return f"{layers}, not the engine: {why}"


_QUICK: WeakKeyDictionary[ModelWeights, tuple[ModelWeights, str]] = WeakKeyDictionary()
"""What was made of weights for a pass a token, for as long as they are."""

LARGE: Final = 64 << 20
"""Bytes of a model's weights from which on a pass a token is worth products of its own."""


def quick(model: Model, precision: ComputedBy = "auto") -> Model:
    """The model as it writes a text: of a large one on the CPU, with products made for a pass a token.

    They are of the same values and in float32; sums are in another order. With precision "layers", of a small
    model, in another dtype or on a GPU it is the model as it is.
    """
    if not _for_few_rows(model, precision):
        return model
    return replace(model, weights=_quick_weights(model)[0])


def _for_few_rows(model: Model, precision: ComputedBy) -> bool:
    on_cpu = model.device.type == "cpu" and model.dtype == torch.float32
    return precision == "auto" and on_cpu and _bytes(model) > LARGE


def _bytes(model: Model) -> int:
    return sum(one.nbytes for one in model.file.tensors.values())


def _quick_weights(model: Model) -> tuple[ModelWeights, str]:
    if model.weights not in _QUICK:
        _QUICK[model.weights] = weights_for_few_rows(model.weights)
    return _QUICK[model.weights]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _prompt_ids(model: Model, prompt: str | bytes | Sequence[int]) -> Sequence[int]:
    return model.tokenizer.encode(prompt) if isinstance(prompt, str | bytes) else prompt


def generate(
    model: Model,
    prompt: str | bytes | Sequence[int],
    max_tokens: int = 128,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: Sequence[str] = (),
    precision: ComputedBy = "auto",
) -> Iterator[str]:
    """Continue a prompt and yield the text as it comes, whole characters only.

    Args:
        model: from `load`.
        prompt: text, or token ids.
        max_tokens: at most so many.
        temperature, top_k, top_p, min_p, repetition_penalty, seed: see `sampling.SamplingOptions`.
        stop: strings that end the text and are not part of it.
        precision: what computes, see `pick_session`; `computed_by` says it.

    Raises:
        OptionError, ContextLengthError: as `checkpoints.generate` and `pick_session`; another text of the
            same model is not at its end on the engine, which has one cache: see `Session.sequence`.
    """
    if model.config.rope_long_factors:  # which list holds is chosen before the first token
        model = model.for_context(len(_prompt_ids(model, prompt)) + max_tokens)
    session = pick_session(model, precision)
    options = SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    with nullcontext(quick(model, precision)) if session is None else session.sequence() as runner:
        tokens = generate_tokens(runner, prompt, max_tokens=max_tokens, sampling=options, stop=stop)
        alone: Callable[[], AbstractContextManager[None]] = nullcontext  # of the prompt torch multiplies much
        while True:
            with fitted_threads(_bytes(model)), alone():  # only while it computes: between tokens others do
                token = next(tokens, None)
            if token is None:
                return
            if _for_few_rows(model, precision) and all_compiled(model.weights):
                alone = threads_for_products_alone
            if token.text:
                yield token.text
