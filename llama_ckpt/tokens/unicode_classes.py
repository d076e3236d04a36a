"""A text as classes of characters, which is what llama.cpp's pre-tokenizers look at.

Beyond ASCII a pre-tokenizer asks no more of a character than what it is: a letter, a number, a mark, a
punctuation, a symbol, white space or none of these. The answers stand in `unicode_classes.txt`, those of
Unicode 15.1, as llama.cpp has them: Python's own tables are of another version of Unicode in each of its
versions, in which a character that is new is none of these.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from importlib.resources import files

__all__ = ["CLASS_RANGES", "classes", "narrow_spaces"]

CLASS_RANGES = {
    "N": "\xd10-9",
    "L": "\xd2A-Za-z",
    "P": "\xd3!-#%-*,-/:;?@\\[-\\]_{}",
    "M": "\xd4",
    "S": "\xd5$+<=>^`|~",
}
"""What stands for a class within the brackets of a regular expression that is matched against `classes`."""

_SPACE, _NONE = "\x0b", "\xd0"


def classes(text: str) -> str:
    """Each character that is not ASCII replaced by one that stands for its class; white space by U+000B."""
    return text if text.isascii() else text.translate(_Classes.made())


def narrow_spaces(text: str) -> str:
    """Each white space that is not ASCII replaced by U+000B; the rest as it is."""
    return text if text.isascii() else text.translate(_Spaces.made())


class _Classes(dict[int, int]):
    """Code point to the one that stands for it, looked up as it is met."""

    @classmethod
    @cache
    def made(cls) -> _Classes:
        return cls()

    def __missing__(self, code: int) -> int:
        self[code] = found = code if code < 128 else self._stands_for(code)
        return found

    def _stands_for(self, code: int) -> int:
        kind = _class_of(code)
        return ord(_SPACE if kind == "W" else CLASS_RANGES[kind][0] if kind in CLASS_RANGES else _NONE)


class _Spaces(_Classes):
    def _stands_for(self, code: int) -> int:
        return ord(_SPACE) if _class_of(code) == "W" else code


def _class_of(code: int) -> str:
    starts, kinds = _table()
    return kinds[bisect_right(starts, code) - 1]


@cache
def _table() -> tuple[list[int], str]:
    """Where each run of characters of one class starts, from U+0080 on, and its class; - for none."""
    lines = files("llama_ckpt.tokens").joinpath("unicode_classes.txt").read_text("ascii").splitlines()
    runs = [run for line in lines if not line.startswith("#") for run in line.split()]
    return [int(run[:-1], 16) for run in runs], "".join(run[-1] for run in runs)
