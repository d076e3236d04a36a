"""Token ids and positions as people give them: whole numbers, and nothing that is quietly cut to one."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from llama_ckpt.errors import OptionError

__all__ = ["whole_numbers"]


def whole_numbers(values: Iterable[Any], what: str) -> list[int]:
    """The values as Python's integers, whatever library they come from.

    Args:
        values: integers of Python, numpy or torch.
        what: what one of them is, for the message.

    Raises:
        OptionError: one is a fraction, a truth value, a word, or nothing.
    """
    found = []
    for value in values:
        try:
            if isinstance(value, bool):
                raise TypeError
            found.append(operator.index(value))
        except TypeError:
            raise OptionError(what, got=repr(value)[:40], wanted="an integer") from None
    return found
