"""Which checkpoints there are: found by their modules' names, `checkpoints/cNN_*.py`; nothing lists them."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable
from functools import cache

from llama_ckpt.errors import OptionError
from llama_ckpt.points import Checkpoint
from llama_ckpt.shadowing import check_checkpoints

__all__ = ["answering", "discover", "ladder_of", "normalize_ids"]


@cache
def discover() -> tuple[Checkpoint, ...]:
    """Every checkpoint, in the ladder's order, found by its module's name.

    Raises:
        OptionError: another package called `checkpoints` stands before ours on the path.
    """
    check_checkpoints()
    import checkpoints

    names = sorted(m.name for m in pkgutil.iter_modules(checkpoints.__path__) if re.match(r"c\d\d", m.name))
    # "c01_rms_norm" before "c01b_rope": "_" sorts after capitals but before small letters.
    return tuple(importlib.import_module(f"checkpoints.{name}").CHECKPOINT for name in names)


def ladder_of(n_experts: int) -> tuple[Checkpoint, ...]:
    """The checkpoints that a model of so many experts has, 0 of a dense one: 12 of either."""
    return tuple(one for one in discover() if one.holds_for(n_experts))


@cache
def answering(point: str) -> Checkpoint | None:
    """The first checkpoint that answers for a point, by its neutral name; None where none does."""
    return next((one for one in discover() if point in one.points), None)


def normalize_ids(ids: Iterable[str] | None) -> tuple[str, ...]:
    """Ids as the ladder writes them, in its order; None or nothing means all.

    Raises:
        OptionError: an id that is not on the ladder.
    """
    known = {checkpoint.id.upper(): checkpoint.id for checkpoint in discover()}
    asked = [str(one).upper() for one in ids or ()]
    for one in asked:
        if one not in known:
            raise OptionError("checkpoint", got=one, wanted="one of " + ", ".join(known.values()))
    return tuple(known[one] for one in known if one in asked or not asked)
