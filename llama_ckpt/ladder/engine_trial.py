"""The engine on trial: its fused kernels on recorded inputs, and its own run from the tokens.

It climbs the same ladder. A fused kernel shows less than a layer, so own errors are judged block by block:
every block gets its recorded input, and each of its points that the engine shows is held against the
oracle's block on the same input. Points that live only in registers are reported as not observable;
what comes after them is judged. Choosing tokens from logits is the layers' own work, on trial as theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama_ckpt.engine.engine import OBSERVABLE, Engine
from llama_ckpt.engine.forced import forced_block, forced_logits
from llama_ckpt.engine.session import Session
from llama_ckpt.judging.limits import ErrorKind
from llama_ckpt.judging.verdict import PointVerdict, judge
from llama_ckpt.ladder.continuation import judge_continuation, judge_greedy
from llama_ckpt.ladder.judge import RecordingJudge
from llama_ckpt.ladder.observer import Observer
from llama_ckpt.ladder.recording import Recording, torch_given
from llama_ckpt.ladder.side_by_side import side_by_side
from llama_ckpt.ladder.subject import Subject, keeper
from llama_ckpt.ladder.trial import Trial
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import Checkpoint, block_point, split_name

__all__ = ["EngineTrial"]

HOST = ("tokenize", "argmax", "softmax")
"""Functions that the engine's users call as the layers' do."""

ON_HOST = ("token_ids", "sampling", "continuation", "text")
"""Points that these functions and the loop of `generate` make."""


@dataclass(frozen=True)
class EngineTrial:
    """An engine and one recording; its runs are made once and shared by all checkpoints."""

    subject: Subject
    recording: Recording
    engine: Engine
    observer: Observer = field(default_factory=Observer)

    def run(self, checkpoint: Checkpoint) -> Iterator[PointVerdict]:
        """Judge every point of a checkpoint that the engine shows, and name the others."""
        names = [name for name in self.names(checkpoint) if split_name(name)[1] in OBSERVABLE]
        yield from self.host_functions(checkpoint)
        forced, wanted, whole, exact = self.forced, self.forced_exact, self.whole_run, self.exact
        elements = self.layers.elements
        yield from side_by_side(
            lambda name: self.verdict(name, forced.get(name), wanted[name], "own"),
            names,
            elements=elements,
        )
        yield from side_by_side(
            lambda name: self.verdict(name, whole.get(name), exact[name], "total"), names, elements=elements
        )
        for name in names:
            yield from self.judge.last_row(name, whole[name].cpu().numpy())
        if checkpoint.function.__name__ == "last_logits":
            yield self.last_row()
        if checkpoint.function.__name__ == "argmax":
            yield from self.greedy()

    @staticmethod
    def hidden_points(checkpoint: Checkpoint) -> tuple[str, ...]:
        """A checkpoint's points that the engine does not show; most live in registers of a fused kernel."""
        return tuple(point for point in checkpoint.points if point not in (*OBSERVABLE, *ON_HOST))

    def names(self, checkpoint: Checkpoint) -> list[str]:
        """The full names of a checkpoint's points that are tensors and were recorded."""
        first_block = checkpoint.function.__name__ == "block"
        names = []
        for name in self.exact:
            number, point = split_name(name)
            if point in checkpoint.points and (not first_block or number == 0):
                names.append(name)
        return names

    def host_functions(self, checkpoint: Checkpoint) -> Iterator[PointVerdict]:
        """What is computed outside the engine: as in a trial of the layers; the text through the engine."""
        for case in checkpoint.cases(torch_given(self.recording, self.subject.model)):
            if case.function == "generate":
                session = Session(self.subject.model, self.engine)
                runs = replace(case, arguments={**case.arguments, "model": session})
                yield from judge_continuation(
                    self.subject.model, self.subject.weights, self.recording, runs, noise=self.judge.noise
                )
            elif case.function in HOST:
                yield from self.layers.judge_own(checkpoint, only=case.function)
                return

    def verdict(self, name: str, x: Any, o: NDArray[np.float64], error_kind: ErrorKind) -> PointVerdict:
        """Hold one tensor of the engine's against the oracle's and, where there is one, llama.cpp's."""
        array = None if x is None else x.cpu().numpy()
        self.observer.saw(self.recording.label, name, error_kind, array, o, self.judge.mask(name))
        return self.judge.verdict(name, array, o, error_kind)

    @cached_property
    def judge(self) -> RecordingJudge:
        """What its tensors are held against, by the limits of the engine's precision."""
        return RecordingJudge(self.subject, self.recording, self.engine.precision)

    @cached_property
    def layers(self) -> Trial:
        """The trial of the layers on the same recording: what the engine leaves to them is on trial there."""
        return Trial(self.subject, self.recording, observer=self.observer)

    def last_row(self) -> PointVerdict:
        """The row that `prompt` returns, which computes the head for that row alone."""
        row = self.prompt()[None].cpu().numpy()
        recorded = self.recording.recorded
        reference = self.recording.tensors["last_logits"][None] if recorded else None
        found = judge(
            "logits", row, self.exact["logits"][-1:], limit=self.judge.limit("logits", "total"), r=reference
        )
        return replace(found, name="last_logits")

    def prompt(self) -> torch.Tensor:
        """The last row's logits after a prompt in an empty cache."""
        self.engine.reset()
        return self.engine.prompt(self.recording.token_ids, self.recording.positions)

    def greedy(self) -> Iterator[PointVerdict]:
        """The token after every row of its own logits, and the one that it chooses on the device."""
        yield judge_greedy(self.whole_run["logits"], self.exact["logits"], self.recording, self.judge.noise)
        self.prompt()
        row = self.engine.buffers.logits[0].cpu().numpy()
        chosen, wanted = int(self.engine.greedy(1)[0]), int(oracle.argmax(row))
        equal = chosen == wanted
        reason = "the token chosen on the device is that of the same logits"
        yield PointVerdict(
            "greedy_tokens",
            "total",
            "pass" if equal else "fail",
            "" if equal else "yours",
            reason if equal else f"got {chosen}, wanted {wanted} from the same logits",
            err=0.0 if equal else 1.0,
            limit=0.0,
            n_differ=int(not equal),
            n_judged=1,
        )

    @cached_property
    def whole_run(self) -> dict[str, torch.Tensor]:
        """Every recorded point that the engine shows, in its run from the tokens."""
        seen: dict[str, torch.Tensor] = {}
        recording = self.recording
        seen["logits"] = self.engine.logits(
            recording.token_ids, recording.positions, tap=keeper(seen, recording)
        )
        return seen

    @property
    def exact(self) -> dict[str, NDArray[np.float64]]:
        """The oracle's run from the same tokens."""
        return self.subject.exact(self.recording)

    @cached_property
    def forced(self) -> dict[str, torch.Tensor]:
        """Every point that the engine shows, of each block and of the head, on recorded inputs."""
        seen: dict[str, torch.Tensor] = {}
        keep = keeper(seen, self.recording)
        for number, x in enumerate(self.inputs()):
            if number < self.subject.model.config.n_layers:
                forced_block(self.engine, number, torch.from_numpy(x), list(self.recording.positions), keep)
            else:
                seen["logits"] = forced_logits(self.engine, torch.from_numpy(x))
        seen["embd"] = self.whole_run["embd"]  # a lookup has no inputs but the tokens
        return seen

    @property
    def forced_exact(self) -> Mapping[str, NDArray[np.float64]]:
        """The oracle's blocks and head on the same inputs."""
        label = f"{self.recording.label}, block by block"
        answers = self.subject.answers
        if label not in answers:
            answers[label] = dict(self.compute_forced_exact())
        return answers[label]

    def compute_forced_exact(self) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """Each point by its full name."""
        config, weights = self.subject.model.config, self.subject.weights
        yield "embd", self.exact["embd"]
        for number, x in enumerate(self.inputs()):
            if number == config.n_layers:
                yield "logits", oracle.output_logits(x, weights, config=config)
                return
            seen: dict[str, NDArray[np.float64]] = {}
            positions = self.recording.positions
            seen["out"] = oracle.block(
                x, weights.blocks[number], config=config, positions=positions, tap=seen.__setitem__
            )
            for point, array in seen.items():
                name = block_point(number, point)
                if point in OBSERVABLE and name in self.recording.tensors:
                    yield name, array

    def inputs(self) -> Iterator[NDArray[np.float32]]:
        """The residual stream as recorded before each block, and before the head."""
        yield np.array(self.recording.tensors["embd"])
        for number in range(self.subject.model.config.n_layers):
            yield np.array(self.recording.tensors[block_point(number, "out")])
