"""What comes from outside, held against something before it is used: files, JSON, whole numbers.

A pipe that never ends, a JSON text of 200,000 brackets, an integer of 5,000 digits, digits of another script:
each is refused here, in one place, for dumps, manifests, maps, plans and folders alike. Nothing of ours but
the errors is imported.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.plain_text import shortened

__all__ = ["MOST_LAYERS", "check_file", "json_value", "quoted", "read_json", "read_text", "whole_number"]

E = TypeVar("E", bound=LlamaCkptError)

MOST_LAYERS: Final = 512
"""llama.cpp's LLAMA_MAX_LAYERS."""

_MOST_TEXT: Final = 1 << 26
"""Bytes of a text file: a vocabulary of Hugging Face's has 20 MB, a manifest with 10,000 dumps 30 MB."""

_MOST_DIGITS: Final = 19
"""Digits of an integer: those of 64 bits."""


def quoted(value: object, most: int = 60) -> str:
    """A value out of a file as it stands in a message: short, on one line, texts in quotes."""
    try:
        return shortened(repr(value), most)
    except (ValueError, RecursionError):
        return "a number of too many digits, or brackets without end"


def check_file(path: str | os.PathLike[str], error: type[E], wanted: str) -> int:
    """Refuse what is no regular file before it is opened: a pipe would be waited for, for ever.

    Args:
        error: what is raised. wanted: what the file should be.

    Returns:
        Its size in bytes.

    Raises:
        LlamaCkptError: of the kind `error`.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise error(f"{path} cannot be opened", got="no such file", wanted=wanted) from None
    except (OSError, ValueError) as cause:  # ValueError: a NUL, or a lone surrogate in a name
        got = getattr(cause, "strerror", None) or str(cause)
        raise error(f"{path} cannot be opened", got=got, wanted=wanted) from None
    if not stat.S_ISREG(status.st_mode):
        got = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise error(f"{path} is no regular file", got=got, wanted=wanted)
    return status.st_size


def read_text(path: str | os.PathLike[str], error: type[E], wanted: str, *, most: int = _MOST_TEXT) -> str:
    """A whole text file in UTF-8.

    Raises:
        LlamaCkptError: of the kind `error`: no regular file, larger than `most` bytes, or not UTF-8.
    """
    size = check_file(path, error, wanted)
    if size > most:
        raise error(f"{path} is too large", got=f"{size:,} bytes", wanted=f"{most:,} at most")
    try:
        return Path(path).read_text("utf-8")
    except UnicodeDecodeError as cause:
        raise error(f"{path} is not readable", got=f"no UTF-8 at byte {cause.start}", wanted=wanted) from None
    except OSError as cause:
        raise error(f"{path} is not readable", got=cause.strerror, wanted=wanted) from None


def read_json(path: str | os.PathLike[str], error: type[E], wanted: str) -> Any:
    """The value that a JSON file holds; see `json_value`.

    Raises:
        LlamaCkptError: of the kind `error`: no regular file, too large, no JSON.
    """
    return json_value(read_text(path, error, wanted), str(path), error, wanted)


def json_value(text: str, where: str, error: type[E], wanted: str = "JSON") -> Any:
    """The value of a JSON text, whose numbers fit 64 bits and whose keys stand once.

    Args:
        where: what the text is, for messages. error: what is raised. wanted: what it should be.

    Raises:
        LlamaCkptError: of the kind `error`: no JSON, brackets without end, a number that no double or
            64-bit integer is, a key twice.
    """

    def refuse(got: str) -> NoReturn:
        raise error(f"{where} is no such JSON", got=got, wanted=wanted) from None

    try:
        return json.loads(
            text,
            parse_int=_integer(refuse),
            parse_float=_float(refuse),
            parse_constant=lambda word: refuse(word),
            object_pairs_hook=_object(refuse),
        )
    except RecursionError:
        refuse("brackets within brackets without end")
    except ValueError as cause:
        refuse(shortened(str(cause), 120))


def whole_number(text: str, most_digits: int = 9) -> int | None:
    """The integer that ASCII digits write; None of anything else, and of more digits than that.

    Python's own `int` also takes other scripts' digits, underscores and blanks.
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) <= most_digits else None


def _integer(refuse: Callable[[str], NoReturn]) -> Callable[[str], int]:
    def integer(digits: str) -> int:
        if len(digits.lstrip("-")) > _MOST_DIGITS or not -(1 << 63) <= (value := int(digits)) < 1 << 63:
            refuse(f"the number {shortened(digits, 24)}, which has more than 64 bits")
        return value

    return integer


def _float(refuse: Callable[[str], NoReturn]) -> Callable[[str], float]:
    def number(digits: str) -> float:
        if len(digits) > 400 or not math.isfinite(value := float(digits)):
            refuse(f"the number {shortened(digits, 24)}")
        return value

    return number


def _object(refuse: Callable[[str], NoReturn]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [key for key, _ in pairs]
            refuse(f"the key {quoted(next(key for key in reversed(names) if names.count(key) > 1))} twice")
        return found

    return made
