"""The largest errors measured of the engine, written by `tools/measure_engine_limits.py`."""

from __future__ import annotations

from typing import Final

__all__ = ["ENGINE_MEASURED", "ENGINE_MEASURED_ON"]

ENGINE_MEASURED_ON: Final = "nothing yet"
"""What the figures are the largest of."""

ENGINE_MEASURED: Final[dict[str, dict[str, dict[str, tuple[float, float, float, float, float]]]]] = {}
"""By precision, forcing and point, as in `measured_errors`; teacher-forced: a block on given inputs."""
