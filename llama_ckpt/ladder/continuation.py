"""Judging chosen tokens: equal, a coin flip, or wrong, and then whose.

Two correct programs may choose different tokens where the two best logits are closer than rounding
puts them. So a token that differs is looked at with the oracle: if its own margin between the two is
within the noise it is a tie; otherwise whoever has the oracle's token is right. After a difference the
text is taken up again behind the reference's token, so that one flip does not condemn the rest.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.judging.adjudication import Choice, adjudicate, tokens_verdict
from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.ladder.recording import Recording
from llama_ckpt.model import Model
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import Case

__all__ = ["Noise", "judge_continuation", "judge_greedy"]


@dataclasses.dataclass(frozen=True)
class Noise:
    """How far rounding may move a logit.

    Attributes:
        limit: the largest relative error of a correct row of logits, from the table of limits.
        reference: the largest absolute error seen in llama.cpp's recorded logits; 0 without them.
    """

    limit: float
    reference: float

    def adjudicate(self, step: int, got: int, wanted: int, exact: NDArray[np.float64]) -> Choice:
        """Who is right about one token, by the oracle's logits `[vocab]` at that step."""
        own = self.limit * float(np.sqrt(np.mean(exact * exact)))
        return adjudicate(step, got, wanted, exact, own, self.reference)


def judge_greedy(logits: Any, exact: NDArray[np.float64], recording: Recording, noise: Noise) -> PointVerdict:
    """The greedy token after every row of the own run's `logits [n, vocab]`."""
    ours = logits.float().cpu().numpy().astype(np.float64)
    chosen = oracle.argmax(ours)
    recorded = recording.greedy_tokens
    theirs: ArrayLike = oracle.argmax(exact) if recorded is None else recorded
    choices = [
        noise.adjudicate(row, int(got), int(wanted), exact[row])
        for row, (got, wanted) in enumerate(zip(chosen, np.asarray(theirs), strict=True))
        if got != wanted
    ]
    return tokens_verdict(
        "greedy_tokens", choices, len(chosen), "llama.cpp's" if recorded else "the oracle's"
    )


def judge_continuation(
    model: Model, weights: OracleWeights, recording: Recording, case: Case, *, noise: Noise
) -> Iterator[PointVerdict]:
    """The greedy continuation, token by token, and its text.

    Args:
        case: a call of `generate`; `max_tokens` is as many as there are to compare.
        noise: how far rounding may move a logit.
    """
    from checkpoints import generate

    tokens = list(generate(**case.arguments))
    ours = [token.id for token in tokens]
    prompt = list(recording.token_ids)
    continuation = recording.continuation
    if continuation is None:
        exact = step_logits(model, weights, recording, prompt + ours[:-1])
        choices = [
            noise.adjudicate(step, got, wanted, exact[step])
            for step, (got, wanted) in enumerate(zip(ours, oracle.argmax(exact).tolist(), strict=True))
            if got != wanted
        ]
        yield tokens_verdict("continuation", choices, len(ours), "the oracle's")
        return
    theirs = list(continuation.token_ids)
    if continuation.ended_by == "eos":
        theirs += _end(model, ours[len(theirs) : len(theirs) + 1])
    choices = []
    steps: NDArray[np.float64] | None = None  # every difference is judged on llama.cpp's own tokens
    while differ := [i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]]:
        step = differ[0]
        if steps is None:
            steps = step_logits(model, weights, recording, prompt + theirs[:-1])
        choices.append(noise.adjudicate(step, ours[step], theirs[step], steps[step]))
        kept = theirs[: step + 1]
        rest = {**case.arguments, "prompt_or_token_ids": prompt + kept, "max_tokens": len(theirs) - step - 1}
        ours = kept + ([token.id for token in generate(**rest)] if rest["max_tokens"] else [])
    verdict = tokens_verdict("continuation", choices, len(theirs), "llama.cpp's")
    if len(ours) != len(theirs):
        reason = f"{len(ours)} tokens where llama.cpp has {len(theirs)}"
        verdict = dataclasses.replace(verdict, verdict="fail", blame="yours", reason=reason)
    yield verdict
    if model.tokenizer.unsupported is None:
        yield text_verdict("".join(token.text for token in tokens), continuation.text_base64, choices)


def _end(model: Model, ours: Sequence[int]) -> list[int]:
    """The token at which llama.cpp ended; which is not recorded, so ours, where it ends a text."""
    ends = model.tokenizer.eog_ids
    if ours and ours[0] in ends:
        return list(ours)
    return [model.tokenizer.eos_id] if model.tokenizer.eos_id is not None else sorted(ends)[:1]


def step_logits(
    model: Model, weights: OracleWeights, recording: Recording, token_ids: Sequence[int]
) -> NDArray[np.float64]:
    """The oracle's logits for every step after the prompt, in one forced pass: `[steps, vocab]`."""
    first, n_prompt = recording.positions[0], len(recording.token_ids)
    positions = np.arange(first, first + len(token_ids))
    return oracle.logits(token_ids, weights, config=model.config, positions=positions)[n_prompt - 1 :]


def text_verdict(text: str, text_base64: str, choices: Sequence[Choice]) -> PointVerdict:
    """The continuation's text, exact; where a token differs the texts must too, and nothing is judged."""
    wanted = base64.b64decode(text_base64).decode("utf-8", errors="replace")
    if text == wanted or choices:
        reason = (
            f"{len(text)} characters equal" if text == wanted else "differs with the tokens, judged there"
        )
        return PointVerdict("text", "total", "pass", "", reason, err=0.0, limit=0.0, n_judged=len(wanted))
    step = next(
        (i for i, pair in enumerate(zip(text, wanted, strict=False)) if pair[0] != pair[1]), len(wanted)
    )
    reason = f"got {text[step:][:20]!r}, wanted {wanted[step:][:20]!r} at character {step}"
    return PointVerdict("text", "total", "fail", "yours", reason, index=(step,), limit=0.0, n_differ=1)
