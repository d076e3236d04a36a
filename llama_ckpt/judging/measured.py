"""The largest errors that were measured of correct programs, read from the data files beside this module.

`measured_errors.json` is written by `tools/measure_limits.py`, `measured_engine_errors.json` by
`tools/measure_engine_limits.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

__all__ = ["ENGINE", "LAYERS", "Errors", "Measured", "Table", "read_measured"]

Errors: TypeAlias = tuple[float, float, float, float, float]
"""err, row_err, element_err, |gain| and |bias| as `metrics` defines them, the last two of 4,096 elements."""
Table: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Errors]]]
"""Precision -> "own" or "total" -> neutral name of a point -> errors."""


@dataclass(frozen=True)
class Measured:
    """What one tool measured.

    Attributes:
        on: what the figures are the largest of.
        errors: the largest of each kind.
        worst: the shape, seed and program that had the largest err, by precision, error kind and point, so
            that it can be run again; empty where that was not written down.
    """

    on: str
    errors: Table
    worst: Mapping[tuple[str, str, str], tuple[str, int, str]]


def read_measured(path: Path) -> Measured:
    """A table as one of the tools wrote it."""
    found = json.loads(path.read_text(encoding="utf-8"))
    errors = {
        dtype: {kind: {point: _five(*row) for point, row in points.items()} for kind, points in kinds.items()}
        for dtype, kinds in found["errors"].items()
    }
    worst = {
        (dtype, kind, point): (str(shape), int(seed), str(program))
        for dtype, kind, point, shape, seed, program in found.get("worst", ())
    }
    return Measured(str(found["on"]), errors, worst)


def _five(err: float, row_err: float, element_err: float, gain: float, bias: float) -> Errors:
    return err, row_err, element_err, gain, bias


LAYERS = read_measured(Path(__file__).with_name("measured_errors.json"))
"""Of layers and plain programs, in each dtype."""

ENGINE = read_measured(Path(__file__).with_name("measured_engine_errors.json"))
"""Of the engine's kernels, in each of its precisions; "own" means a whole block on given inputs."""
