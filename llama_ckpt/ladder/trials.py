"""What the ladder is climbed with: a trial for each recording, of the layers or of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from llama_ckpt.errors import DeviceError, OptionError
from llama_ckpt.ladder.implementation import Implementation
from llama_ckpt.ladder.observer import Observer
from llama_ckpt.ladder.situation_trial import SituationTrial
from llama_ckpt.ladder.subject import Subject
from llama_ckpt.ladder.subjects import Selection
from llama_ckpt.ladder.trial import Trial
from llama_ckpt.precisions import ENGINE_PRECISIONS

if TYPE_CHECKING:
    from llama_ckpt.engine.engine import Precision
    from llama_ckpt.ladder.engine_trial import EngineTrial

__all__ = ["check_engine", "open_trials", "subject_trials"]


def open_trials(
    selection: Selection,
    progress: Callable[[str, int, int], None] | None,
    implementation: Implementation | None,
    observer: Observer,
    engine: str | None = None,
    *,
    thorough: bool = True,
) -> list[Trial | SituationTrial | EngineTrial]:
    """A trial for each recording of each subject: of the layers, or of the engine in that precision.

    Where it need not be `thorough`, our layers generate the whole text of the first recording alone.
    """
    trials: list[Trial | SituationTrial | EngineTrial] = []
    for subject in selection.subjects:
        if progress:
            progress(f"loading {subject.label}", 0, 0)
        for trial in subject_trials(subject, implementation, observer, engine):
            if isinstance(trial, Trial) and trials and implementation is None and not thorough:
                trial = replace(trial, whole_text=False)
            trials.append(trial)
    return trials


def subject_trials(
    subject: Subject, implementation: Implementation | None, observer: Observer, engine: str | None
) -> Iterator[Trial | EngineTrial]:
    """A trial for each recording of one subject.

    Raises:
        DeviceError, UnsupportedModelError: the engine cannot run the model.
    """
    if engine is None:
        for recording in subject.recordings:
            yield Trial(subject, recording, implementation, observer)
        return
    from llama_ckpt.engine.engine import Engine
    from llama_ckpt.ladder.engine_trial import EngineTrial

    # No larger a cache than the recordings need: that of 4,096 tokens takes gigabytes.
    needed = max(len(one.token_ids) + one.n_choices + 1 for one in subject.recordings)
    capacity = min(subject.model.config.context_length, needed)
    kernels = Engine(subject.model, cast("Precision", engine), capacity=capacity)
    for recording in subject.recordings:
        yield EngineTrial(subject, recording, kernels, observer)


def check_engine(
    engine: str, precision: str, implementation: Implementation | None, *, device: str, dtype: str
) -> None:
    """Refuse unknown names, and what the engine cannot be tried with, before anything is loaded.

    Raises:
        OptionError: an unknown engine or precision; somebody's own layer, or another dtype, with the engine.
        DeviceError: the engine without a CUDA device.
    """
    if engine not in ("layers", "fast"):
        raise OptionError("engine", got=engine, wanted="layers or fast")
    if precision not in ENGINE_PRECISIONS:
        raise OptionError("precision", got=precision, wanted="fast or high")
    if engine == "fast" and implementation is not None:
        raise OptionError("engine", got="fast with an implementation", wanted="layers with it, or fast alone")
    if engine == "fast" and dtype != "float32":
        raise OptionError(
            "dtype with engine fast", got=dtype, wanted="float32", hint="its precision is fast or high"
        )
    if engine != "fast" or device.startswith("cuda"):
        return
    from llama_ckpt.kernels.compiler import INTERPRETED  # loads triton, which the layers do not need

    if not INTERPRETED:
        raise DeviceError(
            "device for engine fast", got=device, wanted="cuda", hint="engine layers runs anywhere"
        )
