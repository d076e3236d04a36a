"""A call's tensors, handed over as they are made, and no more of them than somebody looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.points import Case

__all__ = ["show_answers"]


def show_answers(
    function: Callable[..., Any],
    case: Case,
    wanted: set[str],
    see: Callable[[str, NDArray[Any]], bool],
) -> bool:
    """Hand over what a call makes, a point at a time, and go no further than somebody looks.

    Args:
        function, case: as in `patched_oracle.answers`.
        wanted: full names of the points that `see` is given, in the order in which they are made.
        see: gets a point's name and tensor; False ends the call.

    Returns:
        Whether all that was wanted was made, and `see` never said no.
    """
    left, seen = set(wanted), True

    def show(name: str, array: Any) -> None:
        nonlocal seen
        if name in left:
            left.discard(name)
            seen = seen and see(name, np.asarray(array))
            if not seen or not left:
                raise _NothingLeft

    def tap(point: str, array: Any) -> None:
        if point in case.taps:
            show(case.taps[point], array)

    try:
        returned = function(**case.arguments, **({"tap": tap} if case.taps else {}))
        results = returned if isinstance(returned, tuple) else (returned,)
        for name, array in zip(case.returns, results, strict=True):
            show(name, array)
    except _NothingLeft:
        return seen
    return False


class _NothingLeft(Exception):
    """Ends a call from within its tap."""
