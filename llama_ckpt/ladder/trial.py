"""One checkpoint on trial: its layer function on recorded inputs, and in the free-running model.

Teacher-forced, each call gets its inputs from the recording, so an error shows where it is made.
Free-running, the whole model runs from the tokens, so errors add up as they do in use. Both are
judged against the oracle on the same inputs and, where there is one, against llama.cpp's tensor.
Somebody's own implementation takes the layer function's place in both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama_ckpt.judging.limits import Forcing, Limit, limit_for
from llama_ckpt.judging.verdict import PointVerdict, causal_mask, judge
from llama_ckpt.ladder.continuation import Noise, judge_continuation, judge_greedy
from llama_ckpt.ladder.implementation import Implementation, Rejected
from llama_ckpt.ladder.observer import Observer
from llama_ckpt.ladder.recording import Recording, oracle_given, torch_given
from llama_ckpt.ladder.side_by_side import side_by_side
from llama_ckpt.model import Model
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import POINTS, Case, Checkpoint, split_name

__all__ = ["INHERITED", "Subject", "Trial"]

INHERITED = "inherited"
"""How the reason begins of a free-running error that came with the layer's inputs."""

LAST_ROW = " (last row)"
"""Marks a verdict on the last token's row alone, against a recording that holds no more."""

UNTAPPED = " (untapped)"
"""Marks a point computed without a tap: the fused path, which shows only what it returns."""


@dataclass(frozen=True)
class Subject:
    """A model on trial, its exact weights, and the recordings to hold it against.

    `answers` holds the oracle's runs by recording, so that several trials of a subject share them.
    """

    label: str
    model: Model
    weights: OracleWeights
    recordings: tuple[Recording, ...]
    answers: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)

    def exact(self, recording: Recording) -> dict[str, NDArray[np.float64]]:
        """The oracle's run from a recording's tokens: every point that was recorded."""
        if recording.label not in self.answers:
            seen: dict[str, NDArray[np.float64]] = {}
            seen["logits"] = oracle.logits(
                recording.token_ids,
                self.weights,
                config=self.model.config,
                positions=recording.positions,
                tap=keeper(seen, recording),
            )
            self.answers[recording.label] = seen
        return self.answers[recording.label]


@dataclass(frozen=True)
class Trial:
    """A subject and one of its recordings; the free runs are made once and shared by all checkpoints."""

    subject: Subject
    recording: Recording
    implementation: Implementation | None = None
    observer: Observer = field(default_factory=Observer)

    @property
    def dtype(self) -> str:
        """The name of the dtype that the model computes in."""
        return str(self.subject.model.dtype).removeprefix("torch.")

    def run(self, checkpoint: Checkpoint) -> Iterator[PointVerdict]:
        """Judge every point of a checkpoint, teacher-forced first, then free-running."""
        judged = []
        for verdict in self.teacher_forced(checkpoint):
            judged.append(verdict.name)
            yield verdict
        if self.implementation is not None and checkpoint.function.__name__ == "logits":
            # Its cases are of the functions that it calls, which are ours, so it is judged as it runs.
            shown = self.exact if self.implementation.takes_tap else ("logits",)
            judged += [name for name in shown if name in self.recording.tensors]
        own: dict[str, PointVerdict] = {}
        names = dict.fromkeys(name.removesuffix(UNTAPPED) for name in judged)
        runs = self.side_by_side(lambda name: list(self.free_running(name)), names)
        for name, verdicts in zip(names, runs, strict=True):
            for verdict in verdicts:
                whole = checkpoint.function.__name__ == "logits"  # its free run is its own work
                if verdict.verdict == "fail" and not whole and self.broken is None:
                    own = own or self.own_errors(checkpoint)
                    verdict = inherited(verdict, own.get(name))
                yield verdict

    def side_by_side(self, function: Callable[[str], Any], names: Iterable[str]) -> Iterator[Any]:
        """Judge points of this recording side by side where its tensors are large; in order."""
        if self.broken is None:
            _ = self.exact, self.logit_noise  # made once, before any thread asks for them
        yield from side_by_side(function, names, elements=self.elements)

    @property
    def elements(self) -> int:
        """Of the residual stream; none where figures for a page are collected, one after the other."""
        width = self.subject.model.config.width
        return 0 if self.observer.keep_tally else len(self.recording.token_ids) * width

    def own_errors(self, checkpoint: Checkpoint) -> dict[str, PointVerdict]:
        """The verdicts on each case with the free run's inputs, right or wrong, by name of the point."""
        tensors = {name: tensor.float().cpu().numpy() for name, tensor in self.free.items()}
        recording = replace(self.recording, tensors=tensors, recorded=False, tight=False)
        trial = replace(self, recording=recording, observer=Observer())
        return {verdict.name: verdict for verdict in trial.teacher_forced(checkpoint)}

    def teacher_forced(self, checkpoint: Checkpoint, only: str | None = None) -> Iterator[PointVerdict]:
        """Each case of the checkpoint, or those of one function, with recorded inputs."""
        model, weights = self.subject.model, self.subject.weights
        layer_cases = checkpoint.cases(torch_given(self.recording, model))
        oracle_cases = checkpoint.cases(oracle_given(self.recording, model, weights))
        module = sys.modules[checkpoint.function.__module__]
        for case, exact in zip(layer_cases, oracle_cases, strict=True):
            if only is not None and case.function != only:
                continue
            if self.implementation is not None:
                if self.implementation.replaces(case.function):
                    yield from self.implemented(checkpoint, self.implementation, case, exact)
                continue
            if case.function == "generate":
                yield from self.end_to_end(case)
                continue
            layer = getattr(module, case.function, None) or getattr(sys.modules["checkpoints"], case.function)
            wanted = self.oracle_answer(exact)
            made = call(layer, case, taps=True)
            verdicts = list(self.verdicts(checkpoint, made, wanted))
            yield from verdicts
            self.observer.explain(verdicts, made, wanted, exact, self)
            if case.taps:
                for found in self.verdicts(checkpoint, call(layer, case, taps=False), wanted):
                    yield replace(found, name=found.name + UNTAPPED)

    def implemented(
        self, checkpoint: Checkpoint, implementation: Implementation, case: Case, exact: Case
    ) -> Iterator[PointVerdict]:
        """One case of somebody's own function; what it does wrong before its tensors fails their points."""
        if case.function == "generate":
            with implementation.installed():
                try:
                    yield from self.end_to_end(case)
                except Rejected as error:
                    yield rejected("continuation", "free", error)
            return
        shown = [*case.taps.values(), *case.returns] if implementation.takes_tap else case.returns
        try:
            made = implementation.call(case, self.subject.model.dtype, taps=True)
        except Rejected as error:
            yield from (rejected(name, "teacher", error) for name in shown)
            return
        wanted = self.oracle_answer(exact)
        verdicts = [self.verdict(checkpoint, name, made.get(name), wanted[name], "teacher") for name in shown]
        yield from verdicts
        self.observer.explain(verdicts, made, wanted, exact, self)

    def oracle_answer(self, case: Case) -> dict[str, Any]:
        """What the oracle computes of a case; for what it has no function, what llama.cpp recorded."""
        function = getattr(oracle, case.function, None)
        if function is not None:
            return call(function, case, taps=True)
        return {name: self.reference(name) for name in case.returns}

    def verdicts(
        self, checkpoint: Checkpoint, made: Mapping[str, Any], wanted: Mapping[str, Any]
    ) -> Iterator[PointVerdict]:
        """Judge what one call made of recorded inputs, by full name."""

        def judged(name: str) -> PointVerdict:
            return self.verdict(checkpoint, name, made[name], wanted[name], "teacher")

        yield from side_by_side(judged, made, elements=self.elements)

    def verdict(
        self, checkpoint: Checkpoint | None, name: str, x: Any, o: Any, forcing: Forcing
    ) -> PointVerdict:
        """Hold one tensor against the oracle's and, where there is one, llama.cpp's."""
        _, point = split_name(name.split(" ")[0])
        sampled = point.startswith("sampling")  # made from recorded logits in float32, so always tight
        max_abs = checkpoint.max_abs if checkpoint and (self.recording.tight or sampled) else None
        trial, dtype = as_numpy(x)
        self.observer.saw(self.recording.label, name, forcing, trial, o, self.mask(point))
        limit = limit_for(name, self.dtype, forcing, n_layers=self.subject.model.config.n_layers)
        return self.judged(name, trial, o, limit, max_abs=max_abs, dtype=dtype)

    def judged(
        self, name: str, x: Any, o: Any, limit: Limit, max_abs: float | None = None, dtype: str | None = None
    ) -> PointVerdict:
        """The verdict on an array by a given limit."""
        _, point = split_name(name.split(" ")[0])
        r = self.reference(name)
        return judge(name, x, o, limit=limit, r=r, max_abs=max_abs, mask=self.mask(point), dtype=dtype)

    def mask(self, point: str) -> NDArray[np.bool_] | None:
        """Where a point is judged; None for everywhere."""
        causal = point in POINTS and POINTS[point].causal
        return causal_mask(self.recording.positions) if causal else None

    def reference(self, name: str) -> NDArray[Any] | None:
        """llama.cpp's answer at a point, or None where nothing was recorded."""
        recording = self.recording
        if name == "token_ids":
            return np.asarray(recording.token_ids)
        if not recording.recorded:
            return None
        if name == "greedy_tokens":
            return np.asarray(recording.greedy_tokens)
        if name.startswith("sampling."):
            assert recording.probabilities is not None
            return recording.probabilities(int(name.split(".")[1]))
        return recording.tensors[name]

    def free_running(self, name: str) -> Iterator[PointVerdict]:
        """The same point in the model's own run from the tokens."""
        if self.broken is not None:
            if name == "greedy_tokens" or name in self.exact:
                yield rejected(name, "free", self.broken)
            return
        if name == "greedy_tokens":
            yield judge_greedy(self.free["logits"], self.exact["logits"], self.recording, self.logit_noise)
        elif name in self.exact:
            yield self.verdict(None, name, self.free.get(name), self.exact[name], "free")
            limit = limit_for(name, self.dtype, "free", n_layers=self.subject.model.config.n_layers)
            yield from self.last_row(name, as_numpy(self.free.get(name))[0], limit)
            if name == "logits":
                if self.implementation is not None:
                    return  # the same function: whether it is asked to show its steps is its own business
                fused = self.subject.model.logits(self.recording.token_ids, self.recording.positions)
                found = self.verdict(None, name, fused, self.exact[name], "free")
                yield replace(found, name=name + UNTAPPED)

    def last_row(self, name: str, x: NDArray[Any] | None, limit: Limit) -> Iterator[PointVerdict]:
        """A free run's last row beside llama.cpp's, where no more of its tensor was kept."""
        if x is not None and name in self.recording.last_row:
            kept = self.recording.last_row[name]
            found = judge(name, x[-1:], self.exact[name][-1:], limit=limit, r=kept)
            yield replace(found, name=name + LAST_ROW)

    @cached_property
    def free(self) -> dict[str, torch.Tensor]:
        """Every recorded point of the model's own run."""
        seen: dict[str, torch.Tensor] = {}
        model, recording = self.subject.model, self.recording
        own, tap = self.implementation, keeper(seen, recording)
        if own is None:
            seen["logits"] = model.logits(recording.token_ids, recording.positions, tap=tap)
        elif own.replaces("logits"):
            seen["logits"] = own(
                model.tensor(recording.token_ids),
                model.weights,
                config=model.config,
                positions=model.tensor(recording.positions),
                dtype=model.dtype,
                tap=tap,
                dtype_on_trial=model.dtype,
            )
        else:
            with own.installed():
                seen["logits"] = model.logits(recording.token_ids, recording.positions, tap=tap)
        return seen

    @cached_property
    def broken(self) -> Rejected | None:
        """Why the free run came to nothing, where an implementation's fault it is."""
        try:
            _ = self.free
        except Rejected as error:
            return error
        except Exception as error:
            if self.implementation is None:
                raise  # ours
            return Rejected(f"its tensors broke the layers after it: {type(error).__name__}: {error}")
        return None

    @property
    def exact(self) -> dict[str, NDArray[np.float64]]:
        """Every recorded point of the oracle's run from the same tokens."""
        return self.subject.exact(self.recording)

    def end_to_end(self, case: Case) -> Iterator[PointVerdict]:
        """The greedy continuation and its text."""
        yield from judge_continuation(
            self.subject.model, self.subject.weights, self.recording, case, noise=self.logit_noise
        )

    @cached_property
    def logit_noise(self) -> Noise:
        """How far rounding may move a logit, in a correct program and in llama.cpp as recorded."""
        limit = limit_for("logits", self.dtype, "free", n_layers=self.subject.model.config.n_layers)
        reference = self.reference("logits")
        if reference is None:
            return Noise(limit.row_err, 0.0)
        return Noise(limit.row_err, float(np.abs(reference - self.exact["logits"]).max()))


def keeper(seen: dict[str, Any], recording: Recording) -> Callable[[str, Any], None]:
    """A tap that keeps the points that were recorded: all 32 blocks of a 7B model would be gigabytes."""

    def keep(point: str, tensor: Any) -> None:
        if point in recording.tensors:
            seen[point] = tensor

    return keep


def rejected(name: str, forcing: Forcing, error: Rejected) -> PointVerdict:
    """The failure of a point that an implementation never came to."""
    return PointVerdict(name, forcing, "fail", "target", str(error))


def inherited(found: PointVerdict, own: PointVerdict | None) -> PointVerdict:
    """A free-running failure, excused where the layer makes no error of its own on these inputs."""
    if own is None or own.verdict == "fail":
        return found
    reason = f"{INHERITED}: err {found.err:.1e} came with its inputs, on which its own is {own.err:.1e}"
    return replace(found, verdict="pass", blame="", reason=reason)


def call(function: Any, case: Case, *, taps: bool) -> dict[str, Any]:
    """Call a layer function; its returned and, with `taps`, its inner points by full name."""
    seen: dict[str, Any] = {}

    def tap(point: str, tensor: Any) -> None:
        if point in case.taps:
            seen[case.taps[point]] = tensor

    extra = {"tap": tap} if case.taps and taps else {}
    with torch.inference_mode():
        returned = function(**case.arguments, **extra)
    results: Sequence[Any] = returned if isinstance(returned, tuple) else (returned,)
    return {**seen, **dict(zip(case.returns, results, strict=True))}


def as_numpy(x: Any) -> tuple[NDArray[Any] | None, str]:
    """A tensor (or list of integers) as an array, and the name of its own dtype."""
    if x is None:
        return None, "nothing"
    if isinstance(x, torch.Tensor):
        name = str(x.dtype).removeprefix("torch.")
        return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy(), name
    array = np.asarray(x)
    return array, array.dtype.name
