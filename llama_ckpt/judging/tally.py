"""What a page of a report draws that no single verdict holds: histograms of errors, errors by token.

Filled while points are judged, so that no tensor has to be kept. numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.judging.metrics import element_errors
from llama_ckpt.points import split_name

__all__ = ["EDGES", "Tally", "row_errors"]

Mask: TypeAlias = NDArray[np.bool_]

EDGES = tuple(range(-11, 3))
"""Powers of ten between which the errors of elements are counted; the first bin takes all below too."""


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


@dataclass
class Tally:
    """Counts over everything judged.

    Attributes:
        counts: for (neutral point, "own" or "total") how many elements have an error in each bin.
        rows: for a dump's label and a point's full name the total error of each token; of the blocks'
            ends only.
    """

    counts: dict[tuple[str, str], NDArray[np.int64]] = field(default_factory=dict)
    rows: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)

    def add(
        self, name: str, kind: str, x: ArrayLike, o: ArrayLike, mask: Mask | None = None, label: str = ""
    ) -> None:
        """Count one tensor of `kind` "own" or "total"; one of another shape than o's is passed over."""
        if np.shape(x) != np.shape(o) or np.ndim(o) == 0:
            return
        point = split_name(name)[1].split(".")[0]  # "sampling.2" counts as "sampling"
        with np.errstate(all="ignore"):
            errors = element_errors(x, o, mask)
            if mask is not None:
                errors = errors[np.broadcast_to(mask, np.shape(o)).reshape(errors.shape)]
            exponents = np.log10(errors.reshape(-1))  # -inf where equal, NaN where not finite
        kept = np.clip(np.where(np.isnan(exponents), EDGES[-1], exponents), EDGES[0], EDGES[-1])
        bins = np.minimum(np.floor(kept).astype(np.int64) - EDGES[0], len(EDGES) - 2)
        key = (point, kind)
        counted = np.bincount(bins, minlength=len(EDGES) - 1)
        self.counts[key] = self.counts.get(key, np.zeros(len(EDGES) - 1, np.int64)) + counted
        if kind == "total" and point in ("embd", "out", "output_norm", "logits"):
            self.rows[label, name] = tuple(float(error) for error in row_errors(x, o, mask))

    def to_json(self) -> dict[str, Any]:
        """`edges` (exponents of ten), `histograms` and `rows`."""
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
        }
