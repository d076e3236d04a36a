"""A layer in the situations of real runs: odd sizes, far positions, sequences, several calls with a cache.

No recording has them, so the oracle alone judges. A layer of somebody's that takes no cache, or no
sequences, is not tried with these, and the report says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama_ckpt.diagnose.records import Diagnosis, NamedBug
from llama_ckpt.judging.limits import Limit, limit_for, within
from llama_ckpt.judging.rounding import spreads_of
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.verdict import PointVerdict, judge
from llama_ckpt.ladder.implementation import Implementation, Rejected
from llama_ckpt.ladder.observer import Observer
from llama_ckpt.ladder.odd_model import Tried, odd_model
from llama_ckpt.ladder.situation_names import looks_like
from llama_ckpt.ladder.situations import BY_ROW, QUICK, THOROUGH, Call, Situation, Stretch, calls_of, placed
from llama_ckpt.ladder.steadiness import beside_itself
from llama_ckpt.oracle.functions import oracle_function
from llama_ckpt.points import POINTS, Case, Checkpoint, split_name

__all__ = ["OF_CALLS", "SituationTrial", "not_tried", "situation_trials"]

TRIED = frozenset({"rms_norm", "rope", "qkv", "attention", "swiglu", "block", "logits"})
"""Layers that take rows of tensors."""

OF_CALLS = frozenset({"attention", "block", "logits"})
"""Those that see other rows: caches and sequences are for them alone."""

OF_KEYS = frozenset({"attn_scores", "attn_probs"})


ROWS = BY_ROW | {"sequence_ids"}


@dataclass(frozen=True)
class _Wanted:
    """What a stretch of calls should give.

    Attributes:
        case: with the rows that are there together, as the oracle takes it.
        whole: its arguments with all rows, those that were taken out as well.
        made: what it gives for them. spreads: how far rounding may carry a layer from it.
    """

    stretch: Stretch
    case: Case
    whole: Mapping[str, Any]
    made: Mapping[str, NDArray[np.float64]]
    spreads: Mapping[str, Spread]

    def rows(self, of_all: slice) -> slice:
        """A call's rows among those of the stretch."""
        first, stop, _ = of_all.indices(max(self.stretch.rows) + 1)
        place = self.stretch.rows.index(first)
        return slice(place, place + stop - first)

    def left(self, rows: slice) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Keys and values that were taken out before, and that no row has come in place of."""
        gone = list(self.stretch.gone[rows.stop - self.stretch.kept :])
        if not gone or "k" not in self.whole:
            return None
        k, v = (np.asarray(self.whole[name])[gone] for name in "kv")
        return k, v


@dataclass(frozen=True)
class SituationTrial:
    """One situation on trial, in one precision.

    Attributes:
        situation: how layers are called. odd: the model.
        implementation: somebody's layer; None: ours.
        observer: is told what failures look like.
        refusals: what the layer raised in one call at these sizes: it is written for others, and says so.
    """

    situation: Situation
    odd: Tried
    implementation: Implementation | None = None
    observer: Observer = field(default_factory=Observer)
    refusals: list[str] = field(default_factory=list)

    @property
    def recording(self) -> Any:
        """What stands in the place of a recording: its label alone."""
        return SimpleNamespace(label=self.situation.label)

    @property
    def dtype(self) -> str:
        """The precision's name."""
        return str(self.odd.dtype).removeprefix("torch.")

    def run(self, checkpoint: Checkpoint) -> Iterator[PointVerdict]:
        """Judge what a checkpoint's layer gives in this situation."""
        function = checkpoint.function.__name__
        if function not in TRIED or (self.situation.needs and function not in OF_CALLS):
            return
        own = self.implementation
        inside = own is not None and own.checkpoint.function.__name__ in OF_CALLS
        if own is not None and inside and not_tried(own, [self.situation]):
            return
        if own is not None and not own.replaces(function) and own.checkpoint.id == checkpoint.id:
            return
        for case, exact in zip(self.cases(checkpoint, False), self.cases(checkpoint, True), strict=True):
            yield from self.judged(checkpoint, case, exact)

    def cases(self, checkpoint: Checkpoint, exactly: bool) -> Iterator[Case]:
        """The checkpoint's cases with all rows, for the layer or for the oracle."""
        given: Any = self.odd.given(self.situation.rows, self.situation.first, exactly)
        if checkpoint.function.__name__ == "logits":
            arguments = {
                "token_ids": given.token_ids,
                "weights": given.weights,
                "config": given.config,
                "positions": given.positions,
                **given.dtype_option,
            }
            yield Case("logits", arguments, ("logits",))
            return
        for case in checkpoint.cases(given):
            if case.function == checkpoint.function.__name__:
                yield case

    def judged(self, checkpoint: Checkpoint, case: Case, exact: Case) -> Iterator[PointVerdict]:
        """One case in all its calls."""
        ours = self.implementation is None
        stretches = [self.exactly(exact, stretch) for stretch in self.situation.stretches]
        of_call = {number: one for one in stretches for number in one.stretch.calls}
        for taps in (True, False) if ours and case.taps else (True,):
            for number, call in enumerate(calls_of(self.situation, case, self.odd)):
                yield from self.of_call(checkpoint, call, number, of_call[number], taps=taps)

    def exactly(self, exact: Case, stretch: Stretch) -> _Wanted:
        """What the oracle gives for the rows that are there together."""
        whole = placed(self.situation, exact.arguments, np.asarray, None)
        rows = list(stretch.rows)
        own = {key: np.asarray(x)[rows] if key in ROWS else x for key, x in whole.items()}
        case = replace(exact, arguments=own)
        answer = oracle_function(exact.function)
        assert answer is not None
        made = case.run(answer)
        ours = self.implementation is None
        return _Wanted(stretch, case, whole, made, spreads_of(case, made, self.dtype, exact_angles=ours))

    def of_call(
        self,
        checkpoint: Checkpoint,
        call: Call,
        number: int,
        wanted: _Wanted,
        *,
        taps: bool,
    ) -> Iterator[PointVerdict]:
        """What one call gave; a call after the first is said, and what a failure looks like."""
        own, case = self.implementation, call.case
        shown = [*case.taps.values(), *case.returns] if own is None or own.takes_tap else list(case.returns)
        try:
            made = self.called(checkpoint, case, taps=taps)
            # With a cache a second call is another one.
            once = own is None or bool(self.situation.calls)
            again = made if once else self.called(checkpoint, case, taps=taps)
        except Rejected as error:
            if str(error).startswith("raised ") and (self.refusals or not self.situation.needs):
                self.refusals.append(f"{self.situation.label}: {error}")
                return
            for name in case.returns:
                yield PointVerdict(name, "own", "fail", "yours", f"{self.which(number)}{error}")
            return
        rows = wanted.rows(call.rows)
        for name in shown if taps else case.returns:
            if split_name(name)[1] in OF_KEYS and self.situation.calls:
                continue  # a column for each slot of the cache
            right = wanted.made[name][rows]
            recorded = self.odd.recorded(name, call.rows)
            found = self.verdict(name, made.get(name), right, wanted.spreads.get(name), rows, recorded)
            found = beside_itself(found, made.get(name), again.get(name))
            if found.verdict == "fail":
                looks = self.looks_like(wanted, call, name, made.get(name), right, found)
                found = replace(found, reason=self.which(number) + looks + found.reason)
            yield found if taps else replace(found, variant="untapped")

    def looks_like(
        self, wanted: _Wanted, call: Call, name: str, x: Any, o: NDArray[np.float64], found: PointVerdict
    ) -> str:
        """What was done, where a tensor that the layer returned tells; with a semicolon behind it."""
        if x is None or name not in call.case.returns:
            return ""
        array = x.detach().double().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
        with np.errstate(all="ignore"):
            rows = wanted.rows(call.rows)
            looks, remaining = looks_like(
                self.situation, wanted.case, rows, array, o, found.limit, wanted.left(rows)
            )
        if not looks:
            return ""
        bug = NamedBug("situation", looks, remaining, explained=True)
        self.observer.noted(Diagnosis(name, found.err, named=[bug]))
        return f"{looks}; "

    def which(self, number: int) -> str:
        """Which call it was, where there are several."""
        return f"call {number + 1} of {len(self.situation.calls)}: " if self.situation.calls else ""

    def called(self, checkpoint: Checkpoint, case: Case, *, taps: bool) -> dict[str, Any]:
        """The layer on the call's own rows.

        Raises:
            Rejected: somebody's did not come to tensors.
        """
        own = self.implementation
        if own is not None and own.replaces(case.function):
            return own.call(case, self.odd.dtype, taps=taps)
        module = sys.modules[checkpoint.function.__module__]
        layer = getattr(module, case.function)  # as the module has it now: somebody may have put in another
        with torch.inference_mode():
            if own is None:
                return case.run(layer, taps=taps)
            with own.installed():
                return case.run(layer, taps=taps)

    def verdict(
        self,
        name: str,
        x: Any,
        o: NDArray[np.float64],
        spread: Spread | None,
        rows: slice,
        recorded: NDArray[np.float32] | None = None,
    ) -> PointVerdict:
        """Hold one tensor of a call against the oracle's rows."""
        mask = self.mask(name)
        limit: Limit
        if name == "logits":
            whole = limit_for(name, self.dtype, "total", n_layers=self.odd.config.n_layers)
            limit = replace(whole, error_kind="own")  # on the inputs of this very call
        else:
            limit = limit_for(name, self.dtype, "own")
            if spread is not None:
                limit = within(limit, spread.rows(rows), o, mask)
        array = x.detach().float().cpu().numpy() if isinstance(x, torch.Tensor) else x
        dtype = str(x.dtype).removeprefix("torch.") if isinstance(x, torch.Tensor) else None
        return judge(name, array, o, limit=limit, r=recorded, mask=mask, dtype=dtype)

    def mask(self, name: str) -> NDArray[np.bool_] | None:
        """Where scores are judged: at keys that a row sees."""
        point = split_name(name)[1]
        if point not in POINTS or not POINTS[point].causal:
            return None
        at, ids = self.situation.positions, self.situation.sequence_ids
        visible = at[None, :] <= at[:, None]
        if ids is not None:
            visible = visible & (ids[None, :] == ids[:, None])
        return np.asarray(visible[:, None, :])


def situation_trials(
    implementation: Implementation | None,
    dtype: torch.dtype,
    device: str,
    *,
    thorough: bool,
    observer: Observer | None = None,
    grouped: bool = True,
    context: int = 1 << 16,
) -> list[SituationTrial]:
    """A trial for each situation that a model has positions for; `grouped` as of `odd_model`."""
    chosen, told = THOROUGH if thorough else QUICK, observer or Observer()
    refusals: list[str] = []
    return [
        SituationTrial(one, odd_model(one.shape, dtype, device, grouped), implementation, told, refusals)
        for one in chosen
        if one.context <= context
    ]


def not_tried(implementation: Implementation, situations: Sequence[Situation]) -> list[str]:
    """The arguments that situations need and somebody's layer does not take."""
    needed = dict.fromkeys(name for one in situations for name in one.needs)
    return [name for name in needed if not implementation.takes(name)]
