r"""The cutting of a text into words, which BPE then merges each for itself.

A pre-tokenizer is one regular expression or several in a row: what one matches, and what lies between two of
its matches, are the pieces that the next one is given. llama.cpp reads them in two ways, which is followed
here: one with classes of characters (`\p{L}`) sees a character beyond ASCII as its class alone (`[^a-z]` is
then every letter but these 26), one without them sees the character. White space is Unicode's in both.

Source: llama.cpp's behaviour at the version that `reference_dumps` names, checked by tests for every
pre-tokenizer that `pre_tokenizers` lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from llama_ckpt.tokens.unicode_classes import CLASS_RANGES, classes, narrow_spaces

__all__ = ["DIGITS", "PreTokenizer"]

DIGITS = "digits"
"""In the place of a regular expression: numbers in groups of three, counted from the right."""

Cutter = Callable[[str, int, int], Iterator[tuple[int, int]]]
"""Cuts a text between two places: yields where each piece starts and ends, in order, without a gap."""

_NUMBERS = re.compile(f"[{CLASS_RANGES['N']}]+")


@dataclass(frozen=True)
class PreTokenizer:
    """How a text is cut, and what else follows from a pre-tokenizer's name.

    Attributes:
        stages: regular expressions, or `DIGITS`.
        ignore_merges: a word that is a token is that token, whatever the merges would make of it.
        add_bos: whether BOS comes first where the file does not say.
        has_bos: whether there is one where the file names none.
    """

    stages: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    has_bos: bool = True

    def words(self, text: str) -> list[str]:
        """The text cut into words, none empty; together they are the text."""
        spans = [(0, len(text))] if text else []
        for stage in self.stages:
            seen = classes(text) if stage == DIGITS or r"\p{" in stage else narrow_spaces(text)
            cut = _digits_from_the_right if stage == DIGITS else _by_expression(stage)
            spans = [piece for start, end in spans for piece in cut(seen, start, end)]
        return [text[start:end] for start, end in spans]


@cache
def _by_expression(expression: str) -> Cutter:
    pattern = re.compile(_with_classes(expression), re.ASCII)  # C++'s \s and \d know ASCII alone

    def cut(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        for match in pattern.finditer(text, start, end):
            if match.start() > start:
                yield start, match.start()
            if match.end() > match.start():
                yield match.span()
            start = match.end()
        if start < end:
            yield start, end

    return cut


def _with_classes(expression: str) -> str:
    r"""The expression with each `\p{..}` as the characters of `classes`, which do not tell cases apart."""
    parts, inside = [], False
    for part in re.findall(r"\\p\{\w+\}|\\.|.", expression, re.DOTALL):
        if part.startswith(r"\p{"):
            ranges = CLASS_RANGES[part[3]]
            parts.append(ranges if inside else f"[{ranges}]")
            continue
        inside = part == "[" or (inside and part != "]")
        parts.append(part)
    return "".join(parts)


def _digits_from_the_right(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Groups of three from each run's end; what stands before a run is in one piece with its first group."""
    for run in _NUMBERS.finditer(text, start, end):
        first = run.start() + (len(run[0]) % 3 or 3)
        for stop in range(first, run.end() + 1, 3):
            yield start, stop
            start = stop
    if start < end:
        yield start, end
