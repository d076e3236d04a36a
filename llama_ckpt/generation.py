"""A prompt continued as text: by the engine where it runs the model, else by the checkpoints' own layers.

    import llama_ckpt as lc

    model = lc.load("model.gguf")
    for piece in lc.generate(model, "Hello", max_tokens=10):
        print(piece, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from checkpoints.c12_end_to_end import LanguageModel
from checkpoints.c12_end_to_end import generate as generate_tokens
from llama_ckpt.engine.session import session_for
from llama_ckpt.model import Model
from llama_ckpt.tokens.sampling import SamplingOptions

__all__ = ["generate"]


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
    precision: Literal["fast", "high", "layers"] = "fast",
) -> Iterator[str]:
    """Continue a prompt and yield the text as it comes, whole characters only.

    Args:
        model: from `load`.
        prompt: text, or token ids.
        max_tokens: at most so many.
        temperature, top_k, top_p, min_p, repetition_penalty, seed: see `sampling.SamplingOptions`.
        stop: strings that end the text and are not part of it.
        precision: on CUDA, how the engine computes: see `engine`. "layers" computes with the checkpoints'
            own layers in the model's dtype instead, as the CPU always does.

    Raises:
        OptionError, ContextLengthError: as `checkpoints.generate`.
    """
    runner: LanguageModel = model
    if model.device.type == "cuda" and precision != "layers":
        runner = session_for(model, precision) or model
    options = SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    for token in generate_tokens(runner, prompt, max_tokens=max_tokens, sampling=options, stop=stop):
        if token.text:
            yield token.text
