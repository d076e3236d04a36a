"""Token ids and positions as people give them: whole numbers, and nothing that is quietly cut to one."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from llama_ckpt.errors import OptionError

__all__ = ["whole_numbers"]


LONGEST = 1024
"""Bits of an integer that can be written out where it is refused."""


def whole_numbers(values: Iterable[Any], what: str) -> list[int]:
    """The values as Python's integers, whatever library they come from.

    Args:
        values: integers of Python, numpy or torch.
        what: what one of them is, for the message.

    Raises:
        OptionError: one is a fraction, a truth value, a word, or nothing.
    """
    found = []
    try:
        each = iter(values)
    except TypeError:  # an array without axes is iterable by its class alone
        got = repr(values)[:40]
        raise OptionError(f"{what}: no sequence of them", got=got, wanted="integers") from None
    for value in each:
        try:
            if isinstance(value, bool):
                raise TypeError
            found.append(operator.index(value))
        except TypeError:
            raise OptionError(what, got=repr(value)[:40], wanted="an integer") from None
        if found[-1].bit_length() > LONGEST:
            raise OptionError(what, got="a number of too many digits", wanted="an integer of 64 bits")
    return found
