"""What is wrong with a dump's run, told before anything is compared; each finding fails.

BOS missing, other tokens, positions or weights than the reference's. What is wrong with the tensors stands
in `scan` and `suspicions`, points that are missing in `completeness`; what needs the oracle (a norm recorded
before its weight) in `settling`. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llama_ckpt.comparing.comparison import LintFinding
from llama_ckpt.dumps.theirs import Declared
from llama_ckpt.listing import some

__all__ = ["lint_run"]

AGAIN = "record again with the reference's"


def lint_run(
    declared: Declared,
    *,
    token_ids: Sequence[int],
    positions: Sequence[int],
    weights_sha256: str | None,
) -> Iterator[LintFinding]:
    """Hold what a dump says of its run against the reference's manifest; what it leaves out passes here."""
    own = declared.token_ids
    if own is not None and own != tuple(token_ids):
        yield _other_tokens(own, tuple(token_ids))
    elif declared.positions is not None and declared.positions != tuple(positions):
        at = _first_difference(declared.positions, positions)
        message = f"positions are {_few(declared.positions)}, the reference's {_few(positions)}"
        yield LintFinding(
            "other_positions", "", f"{message}: they differ from row {at} on", f"{AGAIN} positions"
        )
    if weights_sha256 and declared.weights_sha256 not in (None, weights_sha256):
        message = f"weights_sha256 is {declared.weights_sha256}, the reference's {weights_sha256}"
        yield LintFinding("other_weights", "", message, f"{AGAIN} weights: llama-ckpt export writes them")


def _other_tokens(own: tuple[int, ...], wanted: tuple[int, ...]) -> LintFinding:
    if own == wanted[1:]:
        message = f"BOS is missing: tokens {_few(own)}, the reference's begin with {wanted[0]}"
        return LintFinding("missing_bos", "", message, f"put {wanted[0]} before the prompt's tokens")
    if own[1:] == wanted and own[0] == wanted[0]:
        message = f"BOS is there twice: tokens {_few(own)}, the reference's {_few(wanted)}"
        return LintFinding("other_tokens", "", message, "let either the tokenizer or the caller add BOS")
    at = _first_difference(own, wanted)
    message = f"tokens are {_few(own)}, the reference's {_few(wanted)}: they differ from row {at} on"
    return LintFinding("other_tokens", "", message, f"{AGAIN} tokens")


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    return next(
        (i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b))
    )


def _few(numbers: Sequence[int]) -> str:
    return f"[{some(numbers, 8)}]"
