"""What the ladder says: a verdict a checkpoint, its points, and the whole as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llama_ckpt.comparing.arithmetic_costs import ArithmeticCosts
from llama_ckpt.diagnose.records import Diagnosis
from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.results import Result

__all__ = ["SCHEMA", "CheckpointResult", "JudgedPoint", "LadderReport"]

SCHEMA = 2
"""The version of the report's JSON."""

Verdict = Literal["pass", "fail", "skipped", "hidden"]


@dataclass(frozen=True)
class JudgedPoint:
    """One point's verdict and the recording that it was judged on, such as "f32/hello"."""

    dump: str
    verdict: PointVerdict

    def to_json(self) -> dict[str, Any]:
        """The point as one flat record."""
        return {**self.verdict.to_json(), "dump": self.dump}


@dataclass
class CheckpointResult:
    """What one checkpoint says.

    Attributes:
        id, title: the checkpoint's.
        verdict: "pass", "fail", "skipped", or "hidden" where the engine shows none of its points.
        reason: one sentence; on a failure the first failing point's.
        compared, of: how many points were compared, of how many there are.
        seconds: spent on it.
        points: every point judged, in order.
        diagnoses: what the first failures look like.
        hidden: points that the engine does not show.
        stands_on_failed: ids of failed checkpoints that this failing one stands on.
    """

    id: str
    title: str
    verdict: Verdict = "skipped"
    reason: str = "not reached"
    compared: int = 0
    of: int = 0
    seconds: float = 0.0
    points: list[JudgedPoint] = field(default_factory=list)
    diagnoses: list[Diagnosis] = field(default_factory=list)
    hidden: tuple[str, ...] = ()
    stands_on_failed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The record that stands under `checkpoints` in the report."""
        plain = {name: getattr(self, name) for name in ("id", "title", "verdict", "reason", "compared", "of")}
        return {
            **plain,
            "seconds": round(self.seconds, 3),
            "hidden": list(self.hidden),
            "stands_on_failed": list(self.stands_on_failed),
            "points": [point.to_json() for point in self.points],
            "diagnoses": [one.to_json() for one in self.diagnoses],
        }


@dataclass(repr=False)
class LadderReport(Result):
    """What the whole ladder says.

    Attributes:
        model, device, dtype: what was validated, where, in which precision.
        notes: sentences about how the recordings came about.
        compared: False where llama.cpp should have been compared and was not.
        checkpoints: one result each, in the ladder's order.
        implementation: how somebody's own layer was given; None where ours were tried.
        engine: the engine's precision, where its kernels were tried and not the layers.
        maps: histograms and errors by token, where they were asked for.
        arithmetic: what an implementation declares that it rounds, what that costs and what it leaves.
        seconds: by the clock, with loading, recording and what several checkpoints' cases needed together.
    """

    model: str
    device: str
    dtype: str
    notes: list[str]
    compared: bool
    checkpoints: list[CheckpointResult]
    implementation: str | None = None
    maps: Mapping[str, Any] | None = None
    engine: str | None = None
    arithmetic: ArithmeticCosts | None = None
    seconds: float = 0.0
    schema: int = SCHEMA

    @property
    def exit_code(self) -> int:
        """0 where every checkpoint that shows something passes and all was compared, else 1.

        A run that compared nothing is never a success: the engine may hide all that was asked for.
        """
        fine = all(c.verdict in ("pass", "hidden") for c in self.checkpoints)
        return 0 if self.compared and fine and self.n_compared else 1

    @property
    def n_compared(self) -> int:
        """How many points were compared."""
        return sum(checkpoint.compared for checkpoint in self.checkpoints)

    def to_json(self) -> dict[str, Any]:
        """The report as `--json` writes it."""
        names = ("schema", "model", "device", "dtype", "notes", "implementation", "engine")
        head = {"kind": "ladder", **{name: getattr(self, name) for name in names}}
        head["seconds"] = round(self.seconds, 3)
        maps = {} if self.maps is None else {"maps": self.maps}
        if self.arithmetic is not None:
            head["arithmetic"] = asdict(self.arithmetic)
        return {**head, "checkpoints": [checkpoint.to_json() for checkpoint in self.checkpoints], **maps}
