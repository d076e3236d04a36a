"""The judge beside every trial of a recording: limits, masks, llama.cpp's answers, and the verdict.

The trial of the layers and that of the engine run different programs; what their tensors are held
against is the same, and stands here once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.limits import ErrorKind, Limit, is_measured, limit_for, unmeasured, within
from llama_ckpt.judging.near_ties import near
from llama_ckpt.judging.rounded_run import parted
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.verdict import PointVerdict, causal_mask, judge
from llama_ckpt.ladder.continuation import Noise
from llama_ckpt.ladder.discovery import answering
from llama_ckpt.ladder.near_ties import NearTies
from llama_ckpt.ladder.recording import Recording
from llama_ckpt.ladder.reference_steps import ReferenceSteps
from llama_ckpt.ladder.subject import Subject
from llama_ckpt.oracle.on_device import DeviceOracleWeights
from llama_ckpt.points import ALL_POINTS, POINTS, SAMPLED, split_name

__all__ = ["RecordingJudge"]


_NO_ROWS = frozenset({"token_ids", "last_logits", "greedy_tokens"})
"""Points with no axis of tokens to leave some out of, or with choices of their own."""


@dataclass(frozen=True)
class RecordingJudge:
    """Judges tensors of one recording.

    Attributes:
        subject: the model, with the oracle's runs.
        recording: what llama.cpp computed.
        precision: whose limits hold: a dtype of the layers, or a precision of the engine.
        apart: where a function rounds as it declares, the same run without that, by full name: a whole run
            may be as far from the declared one as that costs, since float32's last bit decides now and then
            between two neighbours.
    """

    subject: Subject
    recording: Recording
    precision: str
    apart: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def exact(self) -> dict[str, NDArray[np.float64]]:
        """Every recorded point of the oracle's run from the same tokens."""
        return self.subject.exact(self.recording)

    def limit(self, name: str, error_kind: ErrorKind) -> Limit:
        """How far a point may be off; NaN, so that nothing passes, where that was never measured."""
        if not is_measured(name, self.precision, error_kind):
            return unmeasured(name, self.precision, error_kind)
        n_layers = self.subject.model.config.n_layers
        point = split_name(name)[1].split(".")[0]
        checkpoint = answering(point)
        said = "" if checkpoint is None else checkpoint.error_from.get(point, "")
        limit = limit_for(name, self.precision, error_kind, n_layers=n_layers, error_from=said)
        if error_kind == "own" or name not in self.apart:
            return limit
        return parted(limit, self.exact[name], self.apart[name], point, self.mask(name))

    def own_limit(self, name: str, o: Any, spread: Spread | None) -> Limit:
        """The limit on an own error, from the data where it is known what rounding may leave."""
        limit = self.limit(name, "own")
        if spread is None or math.isnan(limit.err):
            return limit
        return within(limit, spread, o, self.mask(name))

    def mask(self, name: str, error_kind: ErrorKind = "own") -> NDArray[np.bool_] | None:
        """Where a point is judged; None for everywhere."""
        point = split_name(name)[1]
        causal = point in POINTS and POINTS[point].causal
        mask = causal_mask(self.recording.positions) if causal else None
        if not self.subject.model.config.n_experts or point in _NO_ROWS:
            return mask
        unjudged = self.near_ties.unjudged(name, error_kind)
        if not unjudged.any():
            return mask
        axes = len(ALL_POINTS[point].axes) if point in ALL_POINTS else 2
        judged = ~unjudged.reshape(-1, *(1,) * (axes - 1))
        return judged if mask is None else mask & judged

    @cached_property
    def near_ties(self) -> NearTies:
        """Where a mixture of experts may choose another way."""
        config = self.subject.model.config

        def off(router: NDArray[np.float64], kind: ErrorKind) -> NDArray[np.float64]:
            return np.asarray(self.limit("ffn_router", kind).row_err * np.linalg.norm(router, axis=1))

        @cache
        def own(block: int) -> NDArray[np.bool_]:
            x = self.recording.tensors[f"blk.{block}.ffn_norm"].astype(np.float64)
            router = x @ np.asarray(self.subject.weights.blocks[block].w_router, np.float64).T
            allowed = off(router, "own")
            if self.recording.recorded:  # llama.cpp's own scores are further off where weights are packed
                recorded = self.recording.tensors[f"blk.{block}.ffn_router"]
                allowed = np.maximum(allowed, np.abs(recorded - router).max(axis=1))
            return near(router, config.n_experts_used, allowed)

        @cache
        def run(block: int) -> NDArray[np.bool_] | None:
            router = self.exact.get(f"blk.{block}.ffn_router")
            return None if router is None else near(router, config.n_experts_used, off(router, "total"))

        return NearTies(config.n_layers, tuple(self.recording.positions), own, run)

    def reference(self, name: str) -> NDArray[Any] | None:
        """llama.cpp's answer at a point, or None where nothing was recorded."""
        recording = self.recording
        if name == "token_ids":
            return np.asarray(recording.token_ids)
        if not recording.recorded or name in recording.computed:
            return None
        if name == "greedy_tokens":
            return np.asarray(recording.greedy_tokens)
        if name.startswith("sampling."):
            assert recording.probabilities is not None
            return recording.probabilities(int(name.split(".")[1]))
        if split_name(name)[1] not in (*ALL_POINTS, *SAMPLED):
            return None  # a checkpoint's own point, which no dump holds
        return recording.tensors[name]

    def verdict(
        self,
        name: str,
        x: Any,
        o: Any,
        error_kind: ErrorKind,
        *,
        max_abs: float | None = None,
        dtype: str | None = None,
        spread: Spread | None = None,
    ) -> PointVerdict:
        """Hold an array against the oracle's and, where there is one, llama.cpp's.

        Args:
            name: the point's full name. x: on trial, or None where it was never given. o: the oracle's.
            max_abs: the ladder's absolute limit against a float32 recording; None for none. Against one of
                weights that llama.cpp rounds for, llama.cpp is held to it beside its own arithmetic.
            dtype: x's own where the array was widened.
            spread: what rounding may leave there, of an own error; None: the table's limit holds.
        """
        limit, r, mask = self.own_limit(name, o, spread), self.reference(name), self.mask(name, error_kind)
        if error_kind == "total":
            limit = self.limit(name, error_kind)
        recording = self.recording
        ours = max_abs if recording.tight or name.startswith("sampling") else None  # sampled in float32
        if mask is not None and not mask.any():
            return PointVerdict(name, error_kind, "pass", "", "every token read a near tie of a router")
        found = judge(name, x, o, limit=limit, r=r, max_abs=ours, mask=mask, dtype=dtype)
        if math.isnan(limit.err) and found.n_judged:  # it is nobody's fault but the missing limit's
            return replace(found, blame="", reason=f"error {found.err:.1e}; {limit.reason}")
        if found.blame == "reference" and found.verdict == "pass" and error_kind == "own" and self.steps:
            return self.steps.told(found, max_abs)
        return found

    @cached_property
    def steps(self) -> ReferenceSteps | None:
        """llama.cpp's own steps, where it is known what it rounds and the weights are in memory."""
        subject, recording = self.subject, self.recording
        if (
            recording.arithmetic is None
            or not recording.recorded
            or isinstance(subject.weights, DeviceOracleWeights)
            or subject.model.config.n_experts
        ):
            return None
        at = np.asarray(recording.positions, np.int64)
        return ReferenceSteps(
            recording.tensors, at, recording.arithmetic, subject.rounded_weights, subject.model.config
        )

    def last_row(self, name: str, x: NDArray[Any] | None, dtype: str | None = None) -> Iterator[PointVerdict]:
        """A whole run's last row beside llama.cpp's, where no more of its tensor was kept.

        Args:
            name: the full name of the tensor.
            x: it, a row a token; None where there is none.
            dtype: x's own where the array was widened.
        """
        if x is not None and name in self.recording.last_row:
            kept = self.recording.last_row[name]
            limit = self.limit(name, "total")
            found = judge(name, x[-1:], self.exact[name][-1:], limit=limit, r=kept, dtype=dtype)
            yield replace(found, variant="last row")

    @cached_property
    def noise(self) -> Noise:
        """How far rounding may move a logit, in a correct program and in llama.cpp as recorded."""
        reference, exact = self.reference("logits"), self.exact["logits"]
        if reference is None and "logits" in self.recording.last_row:
            reference, exact = self.recording.last_row["logits"], exact[-1:]
        off = 0.0 if reference is None else float(np.abs(reference - exact).max())
        limit = self.limit("logits", "total").row_err
        if self.subject.model.config.n_experts and self.precision != "float32":
            limit = math.inf  # a near tie of a router anywhere may turn the text
        return Noise(limit, off)
