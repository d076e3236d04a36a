"""What stands for a letter where the terminal's encoding has none for it: one ASCII letter for each of ours.

A strip of layers keeps its width: `.` is within half of what is allowed, `-` within it, 1 to 7 stand for the
blocks. What is not ours, such as a token's text, is written as Python writes it, `\\u20ac`.
"""

from __future__ import annotations

import codecs
from types import MappingProxyType
from typing import Final

__all__ = ["ASCII_LETTERS", "LETTERS"]

ASCII_LETTERS: Final = "llama_ckpt.ascii_letters"
"""The name of the way to encode, for a stream's `errors`."""

LETTERS: Final = MappingProxyType(
    {
        **dict(zip("·▁▂▃▄▅▆▇█", ".-1234567", strict=True)),
        **{"…": "...", "‖": "|", "≤": "<=", "≥": ">=", "—": "-", "–": "-", "−": "-", "×": "x", "µ": "u"},
        **{"⁻": "-", "•": "*", "’": "'", "“": '"', "”": '"', "─": "-", "━": "-", "│": "|", "√": "sqrt"},
        **dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)),
    }
)


def _encoded(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    if all(letter in LETTERS for letter in letters):
        return "".join(LETTERS[letter] for letter in letters), error.end
    first = letters[0]
    if first in LETTERS:
        return LETTERS[first], error.start + 1
    alone = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    return codecs.backslashreplace_errors(alone)


codecs.register_error(ASCII_LETTERS, _encoded)
