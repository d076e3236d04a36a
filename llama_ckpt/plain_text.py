"""Text that came from outside, made fit for a terminal: on one line, with nothing that a terminal obeys.

A name in a file may hold escape codes, line breaks that forge a line, or marks that turn the direction of
writing. Each such character is shown as an escape, `\\x1b`.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["one_line", "shortened", "spoken"]

_BREAKS: Final = re.compile(r"\s*[\r\n\x0b\x0c\x85\u2028\u2029]\s*")
_SPEECH: Final = "\n\t"
"""What a model's text may do to a terminal: begin a line, or go on to the next stop."""


def one_line(text: str) -> str:
    """The text with every character that is not printed as an escape; itself where there is none."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def spoken(text: str) -> str:
    """A model's words for a terminal: line breaks and tabs stay, what else is not printed is an escape."""
    if text.isprintable():
        return text
    return "".join(one if one in _SPEECH else _escaped(one) for one in text)


def shortened(text: str, most: int) -> str:
    """The text on one line, its middle left out where it is longer than `most` characters."""
    if len(text) > 4 * most:  # escapes make a text longer, never shorter: no need to look at all of it
        text = text[: 2 * most] + text[-2 * most :]
    text = one_line(_BREAKS.sub(" ", text))
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 3]}...{text[-tail:]}"


def _escaped(one: str) -> str:
    if one.isprintable():
        return one
    return one.encode("unicode_escape").decode("ascii")
