"""One checkpoint on trial: its layer function on recorded inputs, and in the whole model.

For the own error each call gets its inputs from the recording, so that it shows where it is made.
For the total error the whole model runs from the tokens, so that errors add up as they do in use. Both are
judged against the oracle on the same inputs and, where there is one, against llama.cpp's tensor.
Somebody's own implementation takes the layer function's place in both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from llama_ckpt.errors import OptionError
from llama_ckpt.judging.limits import ErrorKind
from llama_ckpt.judging.rounding import spreads_of
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.ladder.continuation import judge_continuation, judge_greedy
from llama_ckpt.ladder.declared_function import DeclaredFunction
from llama_ckpt.ladder.implementation import Implementation, Rejected
from llama_ckpt.ladder.judge import RecordingJudge
from llama_ckpt.ladder.observer import Observer
from llama_ckpt.ladder.recording import Recording, oracle_given, torch_given
from llama_ckpt.ladder.side_by_side import side_by_side
from llama_ckpt.ladder.steadiness import beside_itself
from llama_ckpt.ladder.subject import Subject, keeper
from llama_ckpt.ladder.tensors_found import as_numpy, inherited, rejected
from llama_ckpt.oracle.functions import oracle_function
from llama_ckpt.points import Case, Checkpoint, points_in_block

__all__ = ["Trial"]


@dataclass(frozen=True)
class Trial:
    """A subject and one of its recordings; the whole run is made once and shared by all checkpoints.

    `whole_text` has every token of a recorded continuation generated: see `judge_continuation`.
    `found_ahead` has own errors that were judged before their turn, by checkpoint's id (`block_by_block`).
    """

    subject: Subject
    recording: Recording
    implementation: Implementation | None = None
    observer: Observer = field(default_factory=Observer)
    whole_text: bool = True
    found_ahead: dict[str, list[PointVerdict]] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """The name of the dtype that the model computes in."""
        return str(self.subject.model.dtype).removeprefix("torch.")

    @cached_property
    def judge(self) -> RecordingJudge:
        """What its tensors are held against; of a function that rounds on purpose, what it declares."""
        recording = self.recording
        if self.declared is None or self.implementation is None:
            return RecordingJudge(self.subject, recording, self.dtype)
        function, seen = self.implementation.checkpoint.function.__name__, dict[str, Any]()
        seen["logits"] = self.declared.whole(function).logits(
            recording.token_ids,
            self.subject.weights,
            config=self.subject.model.config,
            positions=recording.positions,
            tap=keeper(seen, recording),
        )
        subject = replace(self.subject, answers={recording.label: seen})
        # llama.cpp rounds other things, so it is not asked.
        alone = replace(recording, recorded=False, tight=False, last_row={})
        return RecordingJudge(subject, alone, "float32", self.subject.exact(recording))

    @cached_property
    def declared(self) -> DeclaredFunction | None:
        """What an implementation rounds on purpose, where it says so."""
        own = self.implementation
        if own is None or own.arithmetic is None:
            return None
        at = np.asarray(self.recording.positions, np.int64)
        return DeclaredFunction(own.arithmetic, self.subject.rounded_weights, self.subject.model.config, at)

    def run(self, checkpoint: Checkpoint) -> Iterator[PointVerdict]:
        """Judge every point of a checkpoint, its own error first, then the total."""
        judged = []
        ahead = self.found_ahead.pop(checkpoint.id, None)
        for verdict in self.judge_own(checkpoint) if ahead is None else ahead:
            judged.append(verdict.name)
            yield verdict
        if self.implementation is not None and checkpoint.function.__name__ == "logits":
            # Its cases are of the functions that it calls, which are ours, so it is judged as it runs.
            shown = self.exact if self.implementation.takes_tap else ("logits",)
            yield from self.declared_steps(checkpoint)
            judged += [name for name in shown if name in self.recording.tensors]
        own: dict[str, PointVerdict] = {}
        names = dict.fromkeys(judged)
        runs = self.side_by_side(lambda name: list(self.judge_total(name)), names)
        for name, verdicts in zip(names, runs, strict=True):
            for verdict in verdicts:
                whole = checkpoint.function.__name__ == "logits"  # its whole run is its own work
                if verdict.verdict == "fail" and not whole and self.broken is None:
                    own = own or self.own_errors(checkpoint)
                    verdict = inherited(verdict, own.get(name))
                yield verdict

    def declared_steps(self, checkpoint: Checkpoint) -> Iterator[PointVerdict]:
        """Each step of somebody's whole run that rounds as it declares, on the points that it shows."""
        if self.declared is None or self.broken is not None:
            return
        for name, o, spread, costs in self.declared.steps_of(self.whole_run):
            found = self.verdict(checkpoint, name, self.whole_run[name], o, "own", spread)
            self.observer.note_costs([found], {name: costs})
            yield found

    def side_by_side(self, function: Callable[[str], Any], names: Iterable[str]) -> Iterator[Any]:
        """Judge points of this recording side by side where its tensors are large; in order."""
        if self.broken is None:
            _ = self.exact, self.judge.noise  # made once, before any thread asks for them
        yield from side_by_side(function, names, elements=self.elements)

    @property
    def elements(self) -> int:
        """Of the residual stream; none where figures for a page are collected, one after the other."""
        width = self.subject.model.config.width
        return 0 if self.observer.keep_tally else len(self.recording.token_ids) * width

    def own_errors(self, checkpoint: Checkpoint) -> dict[str, PointVerdict]:
        """The verdicts on each case with the whole run's inputs, right or wrong, by name of the point."""
        arrays = ((name, as_numpy(tensor)[0]) for name, tensor in self.whole_run.items())
        tensors = {name: np.asarray(array, np.float32) for name, array in arrays}
        recording = replace(self.recording, tensors=tensors, recorded=False, tight=False)
        trial = replace(self, recording=recording, observer=Observer())
        return {verdict.name: verdict for verdict in trial.judge_own(checkpoint)}

    def judge_own(
        self, checkpoint: Checkpoint, only: str | None = None, *, observer: Observer | None = None
    ) -> Iterator[PointVerdict]:
        """Each case of the checkpoint, or those of one function, with recorded inputs.

        Args:
            observer: is told in the place of the trial's own.
        """
        told = self.observer if observer is None else observer
        model, weights = self.subject.at_work, self.subject.weights
        layer_cases = checkpoint.cases(torch_given(self.recording, model))
        oracle_cases = checkpoint.cases(oracle_given(self.recording, model, weights))
        module = sys.modules[checkpoint.function.__module__]
        for case, exact in zip(layer_cases, oracle_cases, strict=True):
            if only is not None and case.function != only:
                continue
            own = self.implementation
            if own is not None and (own.replaces(case.function) or case.function == "generate"):
                yield from self.implemented(checkpoint, own, case, exact)
                continue
            if own is not None and own.checkpoint.id == checkpoint.id:
                continue
            if case.function == "generate":
                yield from self.end_to_end(case)
                continue
            layer = getattr(module, case.function, None) or getattr(sys.modules["checkpoints"], case.function)
            wanted, steps = self.oracle_steps(exact)
            try:
                made = self.ours(layer, case)
            except Rejected as error:
                yield from (rejected(name, "own", error) for name in case.returns)
                continue
            spreads = spreads_of(exact, wanted, self.dtype, exact_angles=own is None, steps=steps)
            verdicts = list(self.verdicts(checkpoint, made, wanted, spreads))
            yield from verdicts
            told.explain(verdicts, made, wanted, exact, spreads, self.judge)
            if case.taps:
                untapped = self.ours(layer, case, taps=False)
                for found in self.verdicts(checkpoint, untapped, wanted, spreads):
                    yield replace(found, variant="untapped")

    def ours(self, layer: Any, case: Case, *, taps: bool = True) -> dict[str, Any]:
        """One of our layers, which calls somebody's where that stands in the place of one below."""
        if self.implementation is None:
            return run_case(layer, case, taps=taps)
        with self.implementation.installed():
            return run_case(layer, case, taps=taps)

    def implemented(
        self, checkpoint: Checkpoint, implementation: Implementation, case: Case, exact: Case
    ) -> Iterator[PointVerdict]:
        """One case of somebody's own function; what it does wrong before its tensors fails their points."""
        if case.function == "generate":
            with implementation.installed():
                try:
                    yield from self.end_to_end(case)
                except Rejected as error:
                    yield rejected("continuation", "total", error)
            return
        shown = [*case.taps.values(), *case.returns] if implementation.takes_tap else case.returns
        try:
            made = implementation.call(case, self.subject.model.dtype, taps=True)
            again = implementation.call(case, self.subject.model.dtype, taps=True)
        except Rejected as error:
            yield from (rejected(name, "own", error) for name in shown)
            return
        wanted = self.oracle_answer(exact)
        declared = None if self.declared is None else self.declared.case(exact, wanted)
        costs: Mapping[str, float] = {}
        if declared is None:
            # Theirs may build RoPE's angles in float32, as most programs do; ours are held to exact ones.
            spreads = spreads_of(exact, wanted, self.dtype)
        else:
            wanted, spreads, costs = declared.answers(made)
        verdicts = [
            self.verdict(checkpoint, name, made.get(name), wanted[name], "own", spreads.get(name))
            for name in shown
        ]
        steady = [beside_itself(one, made.get(one.name), again.get(one.name)) for one in verdicts]
        yield from steady
        if steady != verdicts:
            return
        base = None
        if declared is not None:
            self.observer.note_costs(verdicts, costs)
            if all(one.verdict == "pass" for one in verdicts):
                return
            base = declared.by.declared.oracle
            wanted, spreads, _ = declared.answers({})  # a bug is tried on what the call was given
        self.observer.explain(verdicts, made, wanted, exact, spreads, self.judge, base)

    def oracle_steps(self, case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
        """`oracle_answer`, and of a block every point on the way, which its rounding is followed through."""
        if case.function != "block":
            return self.oracle_answer(case), {}
        points = points_in_block(experts=self.subject.model.config.n_experts > 0)
        inner = {point.name: point.name for point in points if point.name != "out"}
        made = self.oracle_answer(replace(case, taps={**inner, **case.taps}))
        steps = {name: made.get(name, made.get(case.taps.get(name, name))) for name in inner}
        return {name: made[name] for name in (*case.taps.values(), *case.returns)}, steps

    def oracle_answer(self, case: Case) -> dict[str, Any]:
        """What the oracle computes of a case; for what it has no function, what llama.cpp recorded.

        Raises:
            OptionError: there is neither.
        """
        function = oracle_function(case.function)
        if function is not None:
            return run_case(function, case)
        recorded = {name: self.judge.reference(name) for name in case.returns}
        if any(array is None for array in recorded.values()):
            wanted = "one in a module of llama_ckpt/oracle/"
            raise OptionError("the oracle", got=f"no function {case.function}", wanted=wanted)
        return recorded

    def shows_inner_points(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint's function has more to show on this recording than it returns."""
        return any(case.taps for case in checkpoint.cases(torch_given(self.recording, self.subject.at_work)))

    def verdicts(
        self,
        checkpoint: Checkpoint,
        made: Mapping[str, Any],
        wanted: Mapping[str, Any],
        spreads: Mapping[str, Spread],
    ) -> Iterator[PointVerdict]:
        """Judge what one call made of recorded inputs, by full name."""

        def judged(name: str) -> PointVerdict:
            return self.verdict(checkpoint, name, made[name], wanted[name], "own", spreads.get(name))

        yield from side_by_side(judged, made, elements=self.elements)

    def _as_judged(self, x: Any) -> tuple[NDArray[Any] | None, str]:
        """A tensor as an array, and the dtype that it is judged as."""
        array, dtype = as_numpy(x)
        if self.declared is not None and dtype == self.dtype:
            dtype = "float32"  # whatever it is kept in is declared, and float32's limits hold beside that
        return array, dtype

    def verdict(
        self,
        checkpoint: Checkpoint | None,
        name: str,
        x: Any,
        o: Any,
        error_kind: ErrorKind,
        spread: Spread | None = None,
    ) -> PointVerdict:
        """Hold one tensor against the oracle's and, where there is one, llama.cpp's."""
        max_abs = checkpoint.max_abs if checkpoint else None
        array, dtype = self._as_judged(x)
        self.observer.saw(self.recording.label, name, error_kind, array, o, self.judge.mask(name))
        return self.judge.verdict(name, array, o, error_kind, max_abs=max_abs, dtype=dtype, spread=spread)

    def judge_total(self, name: str) -> Iterator[PointVerdict]:
        """The same point in the model's own run from the tokens."""
        if self.broken is not None:
            if name == "greedy_tokens" or name in self.exact:
                yield rejected(name, "total", self.broken)
            return
        if name == "greedy_tokens":
            yield judge_greedy(
                self.whole_run["logits"], self.exact["logits"], self.recording, self.judge.noise
            )
        elif name in self.exact:
            yield self.verdict(None, name, self.whole_run.get(name), self.exact[name], "total")
            yield from self.judge.last_row(name, *self._as_judged(self.whole_run.get(name)))
            if name == "logits":
                if self.implementation is not None:
                    return  # the same function: whether it is asked to show its steps is its own business
                found = self.verdict(None, name, self.untapped, self.exact[name], "total")
                yield replace(found, variant="untapped")

    @cached_property
    def whole_run(self) -> dict[str, torch.Tensor]:
        """Every recorded point of the model's own run."""
        return self._whole_run()

    def _whole_run(self) -> dict[str, torch.Tensor]:
        seen: dict[str, torch.Tensor] = {}
        model, recording = self.subject.at_work, self.recording
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
    def untapped(self) -> torch.Tensor:
        """The logits of the model's own run when nobody looks on."""
        return self._untapped()

    def _untapped(self) -> torch.Tensor:
        return self.subject.at_work.logits(self.recording.token_ids, self.recording.positions)

    def run_ahead(self, which: Literal["whole_run", "untapped"]) -> None:
        """Make one of the runs before it is asked for.

        Several trials' runs may wait for one another then, and a cached_property lets one in at a time.
        """
        vars(self)[which] = self._whole_run() if which == "whole_run" else self._untapped()

    @cached_property
    def broken(self) -> Rejected | None:
        """Why the whole run came to nothing, where an implementation's fault it is."""
        try:
            _ = self.whole_run
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
        return self.judge.exact

    def end_to_end(self, case: Case) -> Iterator[PointVerdict]:
        """The greedy continuation and its text."""
        case = replace(case, arguments={**case.arguments, "model": self.subject.writing})
        yield from judge_continuation(
            self.subject.model,
            self.subject.weights,
            self.recording,
            case,
            noise=self.judge.noise,
            whole=self.whole_text,
        )


def run_case(function: Any, case: Case, *, taps: bool = True) -> dict[str, Any]:
    """A case's answers without autograd's bookkeeping."""
    with torch.inference_mode():
        return case.run(function, taps=taps)
