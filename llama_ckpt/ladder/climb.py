"""The climb: runs the checkpoints in order and totals what they say.

report = validate()                       # the embedded model, every checkpoint
report = validate(["1", "1B"], model="mine.gguf", dtype="float16")
report = validate("1", implementation=my_rms_norm)   # somebody's own layer in the place of ours
report.exit_code                          # 0 all pass, 1 one fails
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_ckpt.arithmetic.profiles import arithmetic_of
from llama_ckpt.arithmetic.record import Arithmetic, arithmetic_lines
from llama_ckpt.comparing.arithmetic_costs import ArithmeticCosts
from llama_ckpt.errors import OptionError
from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.ladder.block_by_block import BlockByBlock
from llama_ckpt.ladder.discovery import discover, normalize_ids
from llama_ckpt.ladder.hands import many_hands
from llama_ckpt.ladder.implementation import Implementation, load_implementation
from llama_ckpt.ladder.observer import Observer
from llama_ckpt.ladder.recorded_runs import run_trials
from llama_ckpt.ladder.report import CheckpointResult, JudgedPoint, LadderReport
from llama_ckpt.ladder.situation_trial import OF_CALLS, SituationTrial, not_tried, situation_trials
from llama_ckpt.ladder.subject import Subject
from llama_ckpt.ladder.subjects import Selection, select
from llama_ckpt.ladder.trial import Trial
from llama_ckpt.ladder.trials import check_engine, open_trials
from llama_ckpt.model import pick_device, pick_dtype
from llama_ckpt.points import Checkpoint
from llama_ckpt.threads import fitted_threads, model_bytes
from llama_ckpt.whole_files import temporary_folder
from reference_dumps import embedded_model

if TYPE_CHECKING:
    from llama_ckpt.ladder.engine_trial import EngineTrial

__all__ = ["climb_all", "conclude", "validate"]


def validate(
    ids: str | Iterable[str] | None = None,
    *,
    model: str | Path | None = None,
    dumps: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    implementation: str | Callable[..., Any] | None = None,
    checkpoint: str | None = None,
    arrays: str = "auto",
    arithmetic: object = None,
    engine: str = "layers",
    precision: str = "fast",
    stop_on_failure: bool = False,
    oracle_only: bool = False,
    maps: bool = False,
    thorough: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    on_checkpoint: Callable[[CheckpointResult], None] | None = None,
) -> LadderReport:
    """Climb the ladder.

    Args:
        ids: the checkpoints, or a single one; None climbs all of them.
        model: a GGUF file, or a folder of Hugging Face's; None takes the embedded model and its dumps.
        dumps: a folder of reference dumps; None captures a given model's first.
        device: "auto", "cpu" or "cuda". dtype: "float32", "float16" or "bfloat16".
        implementation: somebody's layer function in the place of one checkpoint's, or "module:function";
            without `ids` the checkpoint is the one whose function has the same name. "3=module:function" is
            checkpoint 3's whatever `ids` are: it stands in its place while those are climbed.
        checkpoint: the same for a function: whose place it takes.
        arrays: what it is called with: "torch", "numpy", or "auto".
        arithmetic: what it rounds on purpose: an `Arithmetic`, a profile's name, or lines as JSON has them;
            without an implementation, what the recorded llama.cpp rounds, where its recording does not tell.
        engine: "layers", or "fast": the fused kernels that generate on CUDA; with dtype float32.
        precision: of the engine, "fast" or "high".
        stop_on_failure: skip what comes after the first failing checkpoint. oracle_only: no llama.cpp.
        thorough: every layer in many more situations: rows up to 300, three odd shapes, caches, sequences;
            and every recorded text generated whole, a token at a time.
        maps: keep histograms and errors by token for a page.
        progress: called with what is being done, how far it is, and of how many steps.
        on_checkpoint: called with each result as soon as it stands.

    Raises:
        LlamaCkptError: bad input: a file, an option, a device, a dump of other weights.
    """
    began = time.perf_counter()
    ids = [ids] if isinstance(ids, str) else ids
    declared = None if arithmetic is None else arithmetic_of(arithmetic)
    named = re.fullmatch(r"(\w{1,3})=(.+)", implementation) if isinstance(implementation, str) else None
    if named is not None:
        checkpoint, implementation = named[1], named[2]
    asked = ids if checkpoint is None else [checkpoint]
    own = None if implementation is None else implemented(implementation, asked, arrays, declared)
    ladder = _rungs(ids if own is None or (checkpoint and ids) else [own.checkpoint.id])
    picked = str(pick_device(device))
    pick_dtype(dtype)
    check_engine(engine, precision, own, device=picked, dtype=dtype)
    size = model_bytes(embedded_model() if model is None else Path(model))
    with fitted_threads(size) as room, temporary_folder("recorded") as scratch:
        selection = select(
            model,
            dumps,
            device=picked,
            dtype=dtype,
            oracle_only=oracle_only,
            scratch=scratch,
            progress=progress,
        )
        if own is None and declared is not None:
            selection = replace(selection, subjects=rounding_as(selection.subjects, declared))
        observer = Observer(keep_tally=maps, costs=costs_of(own))
        report = _report_on(selection, own, picked, dtype, None if engine == "layers" else precision)
        trials = open_trials(selection, progress, own, observer, report.engine, thorough=thorough)
        refusals = list[str]()
        if own is not None:
            layers = (one for one in trials if isinstance(one, Trial))
            inner = not own.takes_tap and any(one.shows_inner_points(own.checkpoint) for one in layers)
            report.notes += own.notes(inner_points=inner)
        ladder = _of_model(ladder, trials, asked=bool(ids) or own is not None)
        if report.engine is None and declared is None:  # the situations' oracle rounds nothing
            otherwise = _in_situations(trials, own, report, observer, thorough=thorough)
            trials += otherwise
            refusals = otherwise[0].refusals if otherwise else []
        alone = own is not None or report.engine is not None or maps or picked != "cpu"
        processes = 1 if alone else room  # figures for a page are collected in one
        for result in climb_all(ladder, trials, observer, stop_on_failure, progress, processes):
            report.checkpoints.append(result)
            if on_checkpoint:
                on_checkpoint(result)
    if refusals:
        report.notes.append(
            f"it refuses sizes that it is not written for, and is not tried there: {refusals[0]}"
        )
    report.maps = observer.tally.to_json() if maps else None
    report.seconds = time.perf_counter() - began
    if observer.costs is not None:
        report.arithmetic = observer.costs
        report.notes.append(f"declared: {observer.costs.sentence()}")
    return report


def _in_situations(
    trials: Sequence[Trial | SituationTrial | EngineTrial],
    own: Implementation | None,
    report: LadderReport,
    observer: Observer,
    *,
    thorough: bool,
) -> list[SituationTrial]:
    """The layers on trial in other sizes, caches and sequences, and on llama.cpp's runs of several calls.

    The report notes which are not tried.
    """
    configs = [one.subject.model.config for one in trials if isinstance(one, Trial)]
    found = situation_trials(
        own,
        pick_dtype(report.dtype),
        report.device,
        thorough=thorough,
        observer=observer,
        grouped=any(one.n_heads != one.n_kv_heads for one in configs),
        context=min(one.context_length for one in configs),
    )
    report.notes += _not_tried(own, found)
    if own is None or any(one.n_heads != one.n_kv_heads for one in configs):
        found += run_trials(own, pick_dtype(report.dtype), report.device, observer, found[0].refusals)
    return found


def costs_of(own: Implementation | None) -> ArithmeticCosts | None:
    """The two numbers of what an implementation declares, to be filled in."""
    found = None if own is None else own.arithmetic
    return None if found is None else ArithmeticCosts(found.name, found.source, arithmetic_lines(found))


def rounding_as(subjects: Iterator[Subject], arithmetic: Arithmetic) -> Iterator[Subject]:
    """Subjects whose recorded llama.cpp rounds so."""
    for subject in subjects:
        recordings = (replace(one, arithmetic=arithmetic) for one in subject.recordings)
        yield replace(subject, recordings=tuple(recordings))


def _rungs(ids: Iterable[str] | None) -> list[Checkpoint]:
    """The checkpoints of those ids, or all, in the ladder's order."""
    wanted = normalize_ids(ids)
    return [checkpoint for checkpoint in discover() if checkpoint.id in wanted]


def _of_model(
    ladder: list[Checkpoint], trials: Sequence[Trial | SituationTrial | EngineTrial], *, asked: bool
) -> list[Checkpoint]:
    """Those that the model has.

    Raises:
        OptionError: one was asked for that it has not.
    """
    of_files = (one for one in trials if not isinstance(one, SituationTrial))
    n_experts = next(of_files).subject.model.config.n_experts
    found = [one for one in ladder if one.holds_for(n_experts)]
    if asked and (others := [one.id for one in ladder if one not in found]):
        kind = "a mixture of experts" if n_experts else "no mixture of experts"
        wanted = "6B" if n_experts else "6"
        raise OptionError(f"checkpoint {others[0]} of {kind}", got=others[0], wanted=wanted)
    return found


def _not_tried(own: Implementation | None, trials: Sequence[SituationTrial]) -> list[str]:
    """What somebody's layer cannot be asked."""
    if own is None or own.checkpoint.function.__name__ not in OF_CALLS:
        return []
    missing = not_tried(own, [trial.situation for trial in trials])
    what = {"cache": "several calls with a cache are", "sequence_ids": "several sequences are"}
    return [f"it takes no {name}, so {what[name]} not tried" for name in missing]


def _report_on(
    selection: Selection, own: Implementation | None, device: str, dtype: str, engine: str | None
) -> LadderReport:
    """The report of a climb that begins."""
    report = LadderReport(selection.name, device, dtype, list(selection.notes), selection.compared, [])
    report.engine = engine
    if own is not None:
        report.implementation = own.name
    return report


def climb_all(
    ladder: Iterable[Checkpoint],
    trials: Sequence[Trial | SituationTrial | EngineTrial],
    observer: Observer,
    stop_on_failure: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    processes: int = 1,
) -> Iterator[CheckpointResult]:
    """Every checkpoint's result as soon as it stands; by several processes, where they may be forked."""
    failed: list[str] = []
    rungs = list(ladder)
    ahead = BlockByBlock(rungs, trials, stop_on_failure, progress)
    with many_hands(rungs, trials, processes) as hands:
        for place, checkpoint in enumerate(rungs):
            result = CheckpointResult(checkpoint.id, checkpoint.title)
            if stop_on_failure and failed:
                result.reason = f"skipped: checkpoint {failed[0]} failed"
            else:
                ahead.before(checkpoint)
                climb(checkpoint, trials, result, progress, partial(hands.judged, place) if hands else None)
                conclude(result, checkpoint, failed)
                result.diagnoses = observer.take()
            if result.verdict == "fail":
                failed.append(result.id)
            yield result


def implemented(
    given: str | Callable[..., Any],
    ids: Iterable[str] | None,
    arrays: str,
    arithmetic: Arithmetic | None = None,
) -> Implementation:
    """Somebody's function, and the checkpoint that it is for.

    Raises:
        OptionError: not one checkpoint, or a function that cannot be loaded.
    """
    name = given.rpartition(":")[2] if isinstance(given, str) else getattr(given, "__name__", "")
    asked = [str(one) for one in ids or ()]
    if not asked:
        asked = [one.id for one in discover() if one.function.__name__ == name]
    if len(asked) != 1:
        wanted = "the one that it is for, such as 1"
        raise OptionError(f"checkpoint of the implementation {name}", got=asked or "none", wanted=wanted)
    (wanted_id,) = normalize_ids(asked)
    checkpoint = next(one for one in discover() if one.id == wanted_id)
    return replace(load_implementation(given, checkpoint, arrays=arrays), arithmetic=arithmetic)


def climb(
    checkpoint: Checkpoint,
    trials: Sequence[Trial | SituationTrial | EngineTrial],
    result: CheckpointResult,
    progress: Callable[[str, int, int], None] | None,
    judged: Callable[[int], list[PointVerdict] | None] | None = None,
) -> None:
    """Run one checkpoint on every recording and keep what it says; `judged`: what others found of a trial."""
    began = time.perf_counter()
    for number, trial in enumerate(trials):
        if progress:
            progress(f"checkpoint {checkpoint.id} on {trial.recording.label}", number, len(trials))
        there = None if judged is None else judged(number)
        found = trial.run(checkpoint) if there is None else there
        result.points += [JudgedPoint(trial.recording.label, verdict) for verdict in found]
        if not isinstance(trial, Trial | SituationTrial):
            result.hidden = trial.hidden_points(checkpoint)
    result.seconds = time.perf_counter() - began


def conclude(result: CheckpointResult, checkpoint: Checkpoint, failed: Sequence[str]) -> None:
    """Total a checkpoint's points: a verdict, and one sentence for it.

    A checkpoint whose whole run only carries on an error fails with what it stands on, and where that is
    right, as RMSNorm is below a wrong RoPE, it passes: the error is made elsewhere.
    """
    result.of = len(result.points)
    result.compared = sum(point.verdict.n_judged > 0 for point in result.points)
    bad = [point for point in result.points if point.verdict.verdict == "fail"]
    carried = [point for point in result.points if point.verdict.inherited]
    below = [one for one in checkpoint.stands_on if one in failed]
    if result.hidden and not result.points:
        result.verdict, result.reason = "hidden", f"the engine does not show {', '.join(result.hidden)}"
    elif bad or (carried and below):
        first = [*bad, *carried][0]
        result.verdict = "fail"
        result.reason = (
            f"{first.verdict.shown_name} of {first.dump} ({first.verdict.error_kind}): {first.verdict.reason}"
        )
        result.stands_on_failed = tuple(below)
        if below:
            result.reason += f"; it stands on {', '.join(below)}, which failed"
    elif not result.compared:
        result.verdict, result.reason = "fail", "nothing was compared"
    else:
        result.verdict = "pass"
        result.reason = of_llama_cpp(result.points) or "every point within its limits"
        if carried:
            result.reason = f"right, but {len(carried)} points carry on an error made elsewhere"
        if result.hidden:
            result.reason += f"; not observable: {', '.join(result.hidden)}"


def of_llama_cpp(points: Sequence[JudgedPoint]) -> str:
    """Where llama.cpp is off, and whether its arithmetic explains that; "" where it is off nowhere."""
    off = [point for point in points if point.verdict.blame == "reference"]
    asked = [point for point in off if point.verdict.explained is not None]
    wrong = [point for point in asked if not point.verdict.explained]
    if not off or not asked:
        return f"llama.cpp is off at {len(off)} points" if off else ""
    if wrong:
        first = wrong[0].verdict
        where = f"{first.name} of {wrong[0].dump}, left {first.left:.1e}"
        return f"llama.cpp is off at {len(off)} points, at {len(wrong)} beyond its arithmetic: {where}"
    costs, left = (max(getattr(one.verdict, key) for one in asked) for key in ("costs", "left"))
    names = ", ".join(sorted({one.verdict.arithmetic for one in asked}))
    return (
        f"llama.cpp is off at {len(off)} points: its arithmetic, {names}, costs {costs:.1e}, left {left:.1e}"
    )
