"""What a diagnosis says: plain records, for reports of any kind."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.json_values import finite

__all__ = ["Change", "Diagnosis", "Finding", "NamedBug", "SmallestLimit"]


@dataclass(frozen=True)
class Finding:
    """A simple change of the right tensor that gives the wrong one.

    Attributes:
        kind: "gain", "bias", "sign", "permutation", "heads", "position", "layer", "token", "head",
            "feature", "axes", "rounding", "saturation", "constant".
        sentence: what was found, with its figures.
        remaining_error: the relative error that is left when the change is undone.
        explained: whether what is left would pass.
    """

    kind: str
    sentence: str
    remaining_error: float
    explained: bool = False


@dataclass(frozen=True)
class Change:
    """The oracle's tensor changed in some way, to be held against the tensor on trial.

    Attributes:
        kind, sentence: as in `Finding`.
        changed: the tensor, of the trial's shape.
    """

    kind: str
    sentence: str
    changed: NDArray[np.float64]


@dataclass(frozen=True)
class NamedBug:
    """A bug of the catalogue that gives (nearly) the wrong tensor.

    Attributes:
        name, sentence, checkpoint: the catalogue's.
        remaining_error: relative error of the tensor on trial against the oracle with that bug.
        explained: whether that would pass.
    """

    name: str
    sentence: str
    remaining_error: float
    explained: bool = False
    checkpoint: str = ""


@dataclass(frozen=True)
class SmallestLimit:
    """The smallest limits that the tensor would pass: its own errors, and how far they are beyond.

    Attributes:
        err, row_err, element_err, gain, bias: as in `limits.Limit`, gain and bias as of 4,096 elements.
        factor: the largest of them over the limit that holds: all limits times this would pass.
        metric: which of them that is.
    """

    err: float
    row_err: float
    element_err: float
    gain: float
    bias: float
    factor: float
    metric: str


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with one point, as far as its tensor tells.

    Attributes:
        point: its full name.
        err: the relative error to be explained.
        structure: simple changes that give the tensor, best first.
        named: bugs that give the tensor, or most of it, best first.
        indistinguishable: groups of names in `named` whose tensors are equal within what is left.
        smallest_limit: None where the tensor cannot be measured, or must be exact.
    """

    point: str
    err: float = math.nan
    structure: list[Finding] = field(default_factory=list)
    named: list[NamedBug] = field(default_factory=list)
    indistinguishable: list[tuple[str, ...]] = field(default_factory=list)
    smallest_limit: SmallestLimit | None = None

    def sentence(self) -> str:
        """The likeliest explanation in one sentence, with the remaining error; empty where there is none."""
        if self.named:
            best = self.named[0]
            alike = [name for group in self.indistinguishable if best.name in group for name in group[1:]]
            also = f" (or, alike here: {', '.join(alike)})" if alike else ""
            return f"{best.sentence}{also}: remaining error {best.remaining_error:.1e}"
        if self.structure:
            return f"{self.structure[0].sentence}: remaining error {self.structure[0].remaining_error:.1e}"
        return ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; NaN and infinity become None."""
        plain: dict[str, Any] = finite(dataclasses.asdict(self))
        return plain | {"sentence": self.sentence()}
