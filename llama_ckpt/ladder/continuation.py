"""Judging chosen tokens: equal, a coin flip, or wrong, and then whose.

Two correct programs may choose different tokens where the two best logits are closer than rounding
puts them. So a token that differs is looked at with the oracle: if its own margin between the two is
within the noise it is a tie; otherwise whoever has the oracle's token is right. After a difference the
text is taken up again behind the reference's token, so that one flip does not condemn the rest.
"""

from __future__ import annotations

import base64
import codecs
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.errors import NotFiniteError
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


STEPS: Final = 12
"""So many tokens of a text are generated where the rest of it is judged in one pass."""


def judge_continuation(
    model: Model,
    weights: OracleWeights,
    recording: Recording,
    case: Case,
    *,
    noise: Noise,
    whole: bool = True,
) -> Iterator[PointVerdict]:
    """The greedy continuation, token by token, and its text.

    Args:
        case: a call of `generate`; `max_tokens` is as many as there are to compare.
        noise: how far rounding may move a logit.
        whole: every token of a recorded text is generated; else the first few are, and what the model
            chooses after each of the others is read from one pass over llama.cpp's tokens.
    """
    try:
        yield from _judged(model, weights, recording, case, noise, whole)
    except NotFiniteError as error:
        yield PointVerdict("continuation", "total", "fail", "yours", str(error))


def _judged(
    model: Model, weights: OracleWeights, recording: Recording, case: Case, noise: Noise, whole: bool
) -> Iterator[PointVerdict]:
    from checkpoints import generate

    continuation = recording.continuation
    begun = not whole and continuation is not None and len(continuation.token_ids) > 2 * STEPS
    arguments = {**case.arguments, "max_tokens": STEPS} if begun else case.arguments
    tokens = list(generate(**arguments))
    ours = [token.id for token in tokens]
    prompt = list(recording.token_ids)
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
    chosen = _choices_in_one_pass(recording, case, theirs) if begun else ours
    if continuation.ended_by == "eos":
        theirs += _end(model, chosen[len(theirs) : len(theirs) + 1])
    first = theirs[:STEPS] if begun else theirs
    later = [i for i in range(STEPS, len(theirs)) if chosen[i] != theirs[i]] if begun else []
    choices = []
    steps: NDArray[np.float64] | None = None  # every difference is judged on llama.cpp's own tokens
    while differ := [i for i, pair in enumerate(zip(ours, first, strict=False)) if pair[0] != pair[1]]:
        step = differ[0]
        if steps is None:
            steps = step_logits(model, weights, recording, prompt + theirs[:-1])
        choices.append(noise.adjudicate(step, ours[step], theirs[step], steps[step]))
        kept = first[: step + 1]
        rest = {**case.arguments, "prompt_or_token_ids": prompt + kept, "max_tokens": len(first) - step - 1}
        ours = kept + ([token.id for token in generate(**rest)] if rest["max_tokens"] else [])
    if later and steps is None:
        steps = step_logits(model, weights, recording, prompt + theirs[:-1])
    choices += [noise.adjudicate(i, chosen[i], theirs[i], steps[i]) for i in later if steps is not None]
    verdict = tokens_verdict("continuation", choices, len(theirs), "llama.cpp's")
    if len(ours) != len(first):
        reason = f"{len(ours)} tokens where llama.cpp has {len(first)}"
        verdict = dataclasses.replace(verdict, verdict="fail", blame="yours", reason=reason)
    yield verdict
    if model.tokenizer.unsupported is None:
        wanted = base64.b64decode(continuation.text_base64)
        if begun:
            tokens = tokens[:-1]  # the last one's text has what was held back
            wanted = _whole_characters(wanted[: len(_piece_bytes(model, theirs[: STEPS - 1]))])
        yield text_verdict("".join(token.text for token in tokens), wanted, choices)


def _choices_in_one_pass(recording: Recording, case: Case, theirs: Sequence[int]) -> list[int]:
    """What the model chooses after the prompt and after each of llama.cpp's tokens, the last one too."""
    from checkpoints import argmax

    token_ids, start = [*recording.token_ids, *theirs], recording.positions[0]
    logits = case.arguments["model"].logits(token_ids, range(start, start + len(token_ids)))
    rows: list[int] = argmax(logits[len(recording.token_ids) - 1 :]).tolist()
    return rows


def _piece_bytes(model: Model, token_ids: Sequence[int]) -> bytes:
    return b"".join(model.tokenizer.piece(token, special=False) for token in token_ids)


def _whole_characters(begun: bytes) -> bytes:
    """Without the bytes of a character whose other bytes are still to come."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(begun)
    return begun[: len(begun) - len(decoder.getstate()[0])]


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


def text_verdict(text: str, recorded: bytes, choices: Sequence[Choice]) -> PointVerdict:
    """The continuation's text, exact; where a token differs the texts must too, and nothing is judged."""
    wanted = recorded.decode("utf-8", errors="replace")
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
