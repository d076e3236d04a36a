"""What a page of a report draws that no single verdict holds: histograms of errors, errors by token.

Filled while points are judged, so that no tensor has to be kept. numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.json_values import finite
from llama_ckpt.judging.metrics import element_errors
from llama_ckpt.points import split_name

__all__ = ["EDGES", "Tally", "row_errors", "sampled"]

Mask: TypeAlias = NDArray[np.bool_]

EDGES = tuple(range(-11, 3))
"""Powers of ten between which the errors of elements are counted; the first bin takes all below too."""

SAMPLE = 1 << 13
"""About so many elements are counted where there are more, each for all that it stands for."""


def row_errors(x: ArrayLike, o: ArrayLike, mask: Mask | None = None) -> NDArray[np.float64]:
    """||x - o|| / ||o|| for each token `[n]`; 1 stands for a row's norm that is nothing."""
    oracle = np.asarray(o, np.float64)
    trial = np.asarray(x, np.float64)
    if mask is not None:
        trial, oracle = np.where(mask, trial, 0.0), np.where(mask, oracle, 0.0)
    rows = (oracle.shape[0] if oracle.ndim > 1 else 1, -1)
    norms = np.linalg.norm(oracle.reshape(rows), axis=1)
    with np.errstate(all="ignore"):
        errors: NDArray[np.float64] = np.linalg.norm((trial - oracle).reshape(rows), axis=1) / np.where(
            norms > 0, norms, 1.0
        )
    return errors


BOUNDS = tuple(np.float32(10.0) ** np.arange(EDGES[1], EDGES[-1], dtype=np.float32))
"""Where one bin ends and the next begins, float32."""


def histogram(errors: NDArray[np.float64], judged: Mask | None = None) -> NDArray[np.int64]:
    """How many errors of elements there are between each two EDGES, where they are judged."""
    kept = errors if judged is None else errors[judged]
    small = kept.astype(np.float32).ravel()
    # What is no number is less than nothing, and counts among the largest.
    below = [int(np.count_nonzero(small < bound)) for bound in BOUNDS]
    ends = np.asarray([0, *below, small.size], np.int64)
    counts: NDArray[np.int64] = ends[1:] - ends[:-1]
    return counts


def sampled(
    residual: NDArray[np.float64], against: NDArray[np.float64] | None, judged: Mask | None
) -> NDArray[np.int64]:
    """The histogram of residual / against, 1 where that is None; of many elements from every so many."""
    step = max(1, residual.size // SAMPLE)
    errors = residual.ravel()[::step]
    if against is not None:
        errors = errors / against.ravel()[::step]
    return step * histogram(errors, None if judged is None else judged.ravel()[::step])


@dataclass
class Tally:
    """Counts over everything judged.

    Attributes:
        counts: for (neutral point, "own" or "total") how many elements have an error in each bin.
        rows: for a dump's label and a point's full name the total error of each token; of the blocks'
            ends only.
        first: the first wrong point and `error_maps` of it; None without one, or where it is too large.
    """

    counts: dict[tuple[str, str], NDArray[np.int64]] = field(default_factory=dict)
    rows: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)
    first: tuple[str, list[dict[str, Any]]] | None = None

    def add(
        self, name: str, kind: str, x: ArrayLike, o: ArrayLike, mask: Mask | None = None, label: str = ""
    ) -> None:
        """Count one tensor of `kind` "own" or "total"; one of another shape than o's is passed over."""
        if np.shape(x) != np.shape(o) or np.ndim(o) == 0:
            return
        point = split_name(name)[1].split(".")[0]  # "sampling.2" counts as "sampling"
        with np.errstate(all="ignore"):
            errors = element_errors(x, o, mask)
            judged = None if mask is None else np.broadcast_to(mask, np.shape(o)).reshape(errors.shape)
            self.add_counts(name, kind, histogram(errors, judged))
        if kind == "total" and point in ("embd", "out", "output_norm", "logits"):
            self.rows[label, name] = tuple(float(error) for error in row_errors(x, o, mask))

    def add_counts(self, name: str, kind: str, counts: NDArray[np.int64]) -> None:
        """Add a `histogram` of errors."""
        key = (split_name(name)[1].split(".")[0], kind)  # "sampling.2" counts as "sampling"
        self.counts[key] = self.counts.get(key, 0) + counts

    def to_json(self) -> dict[str, Any]:
        """`edges` (exponents of ten), `histograms`, `rows`, and `first` where there is a wrong point."""
        drawn = None if self.first is None else {"name": self.first[0], "of": finite(self.first[1])}
        return {
            "edges": list(EDGES),
            "histograms": [
                {"point": point, "kind": kind, "counts": counts.tolist()}
                for (point, kind), counts in self.counts.items()
            ],
            "rows": [
                {"dump": label, "name": name, "errs": [e if math.isfinite(e) else None for e in errs]}
                for (label, name), errs in self.rows.items()
            ],
            "first": drawn,
        }
