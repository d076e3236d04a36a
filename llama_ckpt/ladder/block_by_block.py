"""The ladder climbed block by block: of a large model each block is made once for all that is asked of it.

Every checkpoint's cases, of every recording, the layers' whole runs and the oracle's go through the model
together (`lockstep`), before the first checkpoint is reported; texts are written together, too. What they
find is kept by the trials and handed out in the ladder's order. A checkpoint that fails is judged again in
its turn: what the failure looks like is told there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.ladder.lockstep import Lockstep
from llama_ckpt.ladder.observer import Observer
from llama_ckpt.ladder.subject import Subject
from llama_ckpt.ladder.trial import Trial
from llama_ckpt.oracle.on_cpu import HostOracleWeights
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import Checkpoint

__all__ = ["BlockByBlock", "Progress", "together"]

Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how far it is, and of how many steps."""


def together(
    weights: OracleWeights,
    functions: Sequence[Callable[[], Result]],
    what: str,
    progress: Progress | None = None,
) -> list[Result]:
    """What some functions return that go through one model: side by side where its blocks are made for that.

    Args:
        weights: the oracle's. functions: none waits for another. what: is done, for the progress.
    """
    if not isinstance(weights, HostOracleWeights):
        return [function() for function in functions]
    blocks: Any = weights.unpacked.blocks

    def seen(number: int) -> None:
        if progress is not None:
            progress(f"{what}, block by block", max(number, 0), len(blocks))

    return Lockstep(blocks, seen).run(functions)


@dataclass
class BlockByBlock:
    """Looks ahead for trials of large models.

    Attributes:
        ladder: the checkpoints that are climbed. trials: all, of which those of other models are left alone.
        stops: nothing is asked above a checkpoint that failed.
    """

    ladder: Sequence[Checkpoint]
    trials: Sequence[Any]
    stops: bool = False
    progress: Progress | None = None
    _failed: list[int] = field(default_factory=list)
    _begun: set[bool] = field(default_factory=set)

    def before(self, checkpoint: Checkpoint) -> None:
        """Have done what a checkpoint needs, with all that goes through the model at the same time."""
        writes = _writes(checkpoint)
        if writes in self._begun:
            return
        self._begun.add(writes)
        for subject, trials in self._large():
            jobs = [job for trial in trials for job in self._jobs(trial, writes)]
            what = "writing texts" if writes else "every checkpoint"
            together(subject.weights, jobs, what, self.progress)

    def _large(self) -> Iterator[tuple[Subject, list[Trial]]]:
        groups: dict[int, tuple[Subject, list[Trial]]] = {}
        for one in self.trials:
            if isinstance(one, Trial) and one.implementation is None and not one.observer.keep_tally:
                if isinstance(one.subject.weights, HostOracleWeights):
                    groups.setdefault(id(one.subject), (one.subject, []))[1].append(one)
        return iter(groups.values())

    def _jobs(self, trial: Trial, writes: bool) -> Iterator[Callable[[], object]]:
        if not writes:
            yield partial(trial.run_ahead, "whole_run")
            yield partial(trial.run_ahead, "untapped")
            yield lambda: trial.exact
        for place, checkpoint in enumerate(self.ladder):
            if _writes(checkpoint) == writes:
                yield partial(self._own, trial, checkpoint, place)

    def _own(self, trial: Trial, checkpoint: Checkpoint, place: int) -> None:
        """A checkpoint's own errors, kept where nothing fails."""
        found: list[PointVerdict] = []
        for verdict in trial.judge_own(checkpoint, observer=Observer()):
            found.append(verdict)
            if verdict.verdict == "fail":
                self._failed.append(place)
                return
            if self.stops and self._failed and min(self._failed) < place:
                return
        trial.found_ahead[checkpoint.id] = found


def _writes(checkpoint: Checkpoint) -> bool:
    """Whether it goes through the model once a token, and not once."""
    return checkpoint.function.__name__ == "generate"
