"""Values as JSON can hold them: it has no NaN and no infinity."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["finite"]


def finite(value: Any) -> Any:
    """As JSON has it: NaN and infinity None, tuples and arrays lists, numpy's numbers Python's."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if hasattr(value, "tolist"):  # of numpy, which this module need not import
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
