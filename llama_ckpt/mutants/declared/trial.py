"""One bug in a program that rounds as it declares: recorded from the tokens on, and compared.

The program is the oracle that rounds as declared, over float32 sums in some order, with the bug laid over
it. Where the bug must be seen follows from the same program without float32's noise: it is the first point
that the bug moves by more than float32's rounding may. On a prompt where it moves none it is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.arithmetic.rounded_oracle import rounded_oracle
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.diagnose.bugs import Bug
from llama_ckpt.diagnose.patched_oracle import DoesNotApply, PatchedOracle
from llama_ckpt.diagnose.records import Diagnosis
from llama_ckpt.dumps.names_map import interleave_halves
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.mutants.real.models import tokens_of
from llama_ckpt.mutants.real.record import Prompt
from llama_ckpt.mutants.right_programs.catalogue import ROUNDING
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import POINTS, block_point, split_name
from llama_ckpt.weights.config import LlamaConfig

__all__ = ["DeclaredBench", "DeclaredRun", "run_declared", "run_right"]

Array: TypeAlias = NDArray[Any]

FLOAT32 = 2e-6
"""What moves every point by less, relatively, is hidden by float32's own rounding."""


OF_ITS_OWN = 0.5
"""A rounding that a program makes anyway moves fewer of a tensor's elements when it is made again: those that
float32's last bit puts on the other side of a middle."""

TURNED = ("q", "k")

OF_ROPE = ("turns", "rotation")
"""The lines of an arithmetic that are rounded inside RoPE."""


@dataclass(frozen=True)
class DeclaredRun:
    """One bug on one prompt, or a right program, compared as declared.

    Attributes:
        label: model, length, first position.
        at: the first point that the bug moves by more than float32 rounds; "" of a right program.
        moved: by how much, relatively.
        caught: it fails. seen: the first wrong point; "" where none is.
        names: what the diagnosis puts first: one bug, or several that it cannot tell apart.
        operator: of what kind the operator is that was identified, where it gives the tensors whole; "" else.
        said: its sentence, or the verdict's.
    """

    label: str
    at: str
    moved: float
    caught: bool
    seen: str
    names: tuple[str, ...]
    operator: str
    said: str

    @property
    def at_the_right_point(self) -> bool:
        """Whether it was first seen where it is made."""
        return self.caught and self.seen == self.at


@dataclass
class DeclaredBench:
    """One model and one prompt, on which programs of one arithmetic run.

    Attributes:
        arithmetic: what they round. model: a GGUF file. prompt: of how many tokens, from which position on.
        folder: for dumps.
    """

    arithmetic: Arithmetic
    model: Path
    prompt: Prompt
    folder: Path
    _right: dict[str, Array] = field(default_factory=dict)

    @cached_property
    def config(self) -> LlamaConfig:
        """The model's."""
        return LlamaConfig.from_gguf(open_gguf(self.model))

    @cached_property
    def weights(self) -> OracleWeights:
        """The model's."""
        return OracleWeights(open_gguf(self.model), self.config)

    @property
    def label(self) -> str:
        """Of the model and the prompt."""
        return f"{self.model.stem}/{self.prompt.n} from {self.prompt.first}"

    @cached_property
    def positions(self) -> Array:
        """`[n]`"""
        return self.prompt.first + np.arange(self.prompt.n)

    def run(self, program: PatchedOracle) -> dict[str, Array]:
        """Every point that a program shows of the prompt, in its order."""
        seen: dict[str, Array] = {}
        with np.errstate(all="ignore"):  # a bug may divide by zero
            seen["logits"] = program.logits(
                np.asarray(tokens_of(self.prompt)),
                self.weights,
                config=self.config,
                positions=self.positions,
                tap=seen.__setitem__,
            )
        return {name: np.asarray(x) for name, x in seen.items()}

    @cached_property
    def exact(self) -> PatchedOracle:
        """The program without float32's noise."""
        return rounded_oracle(self.arithmetic)

    def noisy(self, seed: int) -> PatchedOracle:
        """The program in float32, its sums in another order for each seed."""
        base = ROUNDING[seed % len(ROUNDING)].program
        plain = Arithmetic()
        if any(getattr(self.arithmetic, line) != getattr(plain, line) for line in OF_ROPE):
            base = base.without("rope")  # a rotation of its own would round nothing of what is declared
        return rounded_oracle(self.arithmetic, base=base)

    @cached_property
    def right(self) -> Mapping[str, Array]:
        """What is right, at every point."""
        return self.run(self.exact)

    def shown(self, bug: Bug) -> tuple[str, float] | None:
        """The first point that a bug moves by more than float32 rounds, and by how much.

        None where it moves none, or is a rounding that the program makes anyway.
        """
        try:
            wrong = self.run(bug.over(self.exact))
        except DoesNotApply:
            return None
        layout = TURNED if self._is_a_layout(wrong) else ()
        for name, o in self.right.items():
            if name not in wrong or split_name(name)[1] in layout:
                continue
            if (moved := self._moved(name, wrong[name], o)) > FLOAT32:
                made_anyway = bug.rounds and np.mean(wrong[name] != o) < OF_ITS_OWN
                return None if made_anyway else (name, moved)
        return None

    def _is_a_layout(self, wrong: Mapping[str, Array]) -> bool:
        """Whether queries and keys are right in half-split order, which by itself is no mistake."""
        first = {point: block_point(0, point) for point in TURNED}
        return all(
            wrong[name].shape == self.right[name].shape
            and not np.array_equal(wrong[name], self.right[name])
            and self._moved(name, interleave_halves(wrong[name]), self.right[name]) < FLOAT32
            for name in first.values()
        )

    def _moved(self, name: str, x: Array, o: Array) -> float:
        if x.shape != o.shape:
            return float("inf")
        if POINTS[split_name(name)[1]].causal:
            seen = (self.positions[:, None] >= self.positions)[:, None]
            x, o = np.where(seen, x, 0.0), np.where(seen, o, 0.0)
        moved = float(np.linalg.norm(x - o) / (np.linalg.norm(o) or 1.0))
        return moved if np.isfinite(moved) else float("inf")

    def compared(self, tensors: Mapping[str, Array]) -> Comparison:
        """What `compare --arithmetic` says of a program's tensors."""
        path = self.folder / "theirs.safetensors"
        kept = {name: np.asarray(x, np.float32) for name, x in tensors.items()}
        save_dump(
            path, kept, token_ids=list(tokens_of(self.prompt)), positions=[int(p) for p in self.positions]
        )
        return compare_dump(path, model=self.model, arithmetic=self.arithmetic)


def run_declared(bug: Bug, bench: DeclaredBench, seed: int) -> DeclaredRun | None:
    """A bug on one prompt; None where that cannot show it."""
    found = bench.shown(bug)
    if found is None:
        return None
    with np.errstate(all="ignore"):
        report = bench.compared(bench.run(bug.over(bench.noisy(seed))))
    return _told(bench.label, *found, report)


def run_right(bench: DeclaredBench, seed: int) -> DeclaredRun:
    """The program without a bug."""
    return _told(bench.label, "", 0.0, bench.compared(bench.run(bench.noisy(seed))))


def _told(label: str, at: str, moved: float, report: Comparison) -> DeclaredRun:
    seen = "" if report.first_wrong is None else report.first_wrong.name
    looks = report.diagnoses[0] if report.diagnoses else None
    said = report.reason if looks is None else looks.sentence() or report.reason
    operator = None if looks is None else looks.operator
    kind = operator.kind if operator is not None and operator.explained else ""
    return DeclaredRun(label, at, moved, report.exit_code != 0, seen, _names(looks), kind, said)


def _names(found: Diagnosis | None) -> tuple[str, ...]:
    if found is None or not found.named:
        return ()
    first = found.named[0].name
    return next((group for group in found.indistinguishable if first in group), (first,))
