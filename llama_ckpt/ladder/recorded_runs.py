"""The committed runs of llama.cpp as situations: several calls with a cache, sequences, tokens taken back.

Each is of one small model that is there for this, whatever model the ladder is climbed on. Layers are called
as llama.cpp was, on what it recorded, and what they give is held against the oracle and against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama_ckpt.dumps.call_tensors import piece_of
from llama_ckpt.dumps.calls import RunTable
from llama_ckpt.dumps.run_table import run_table
from llama_ckpt.dumps.theirs import open_their_dump
from llama_ckpt.ladder.implementation import Implementation
from llama_ckpt.ladder.observer import Observer
from llama_ckpt.ladder.recording import Recording, oracle_given, torch_given
from llama_ckpt.ladder.situation_trial import OF_CALLS, SituationTrial, not_tried
from llama_ckpt.ladder.situations import Situation
from llama_ckpt.model import Model, load
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import Checkpoint
from llama_ckpt.weights.config import LlamaConfig
from reference_dumps import stand_in

__all__ = ["RecordedRun", "RunTrial", "recorded_runs", "run_trials"]


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """A run, and the model that it is of: what `Tried` asks for.

    Attributes:
        situation: how it calls layers. recording: the rows of all calls, one after the other.
    """

    situation: Situation
    recording: Recording
    model: Model
    exact: OracleWeights

    @property
    def config(self) -> LlamaConfig:
        """The model's sizes."""
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        """What layers compute in."""
        return self.model.dtype

    @property
    def device(self) -> str:
        """Where."""
        return str(self.model.device)

    def given(self, n: int, first: int, exactly: bool) -> Any:
        """All rows; how many there are, and where they stand, is the run's own."""
        if exactly:
            return oracle_given(self.recording, self.model, self.exact)
        return torch_given(self.recording, self.model)

    def recorded(self, name: str, rows: slice) -> NDArray[np.float32] | None:
        """A call's rows of a point, where it was recorded."""
        found = self.recording.tensors.get(name)
        return None if found is None else found[rows]


class RunTrial(SituationTrial):
    """A run on trial: of layers that see other rows. Others see no difference between calls."""

    def run(self, checkpoint: Checkpoint) -> Any:
        """As of `SituationTrial`."""
        if checkpoint.function.__name__ in OF_CALLS:
            yield from super().run(checkpoint)


def run_trials(
    implementation: Implementation | None,
    dtype: torch.dtype,
    device: str,
    observer: Observer,
    refusals: list[str],
) -> list[SituationTrial]:
    """A trial for each committed run.

    Somebody's layer is tried where it takes what a run needs, and of the layers attention alone: the model
    has divisors of RoPE's frequencies, of which a block that is written for another need not know.
    """
    own = implementation
    if own is not None and own.checkpoint.function.__name__ != "attention":
        return []
    runs = recorded_runs(dtype, device)
    return [
        RunTrial(one.situation, one, own, observer, refusals)
        for one in runs
        if own is None or not not_tried(own, [one.situation])
    ]


@cache
def recorded_runs(dtype: torch.dtype, device: str) -> tuple[RecordedRun, ...]:
    """All of them, with the model loaded once.

    Raises:
        DumpError: one is damaged.
    """
    folder = stand_in("llama-3")
    name = str(dtype).removeprefix("torch.")
    model = load(folder / "model.gguf", device=device, dtype=name)
    exact = OracleWeights(model.file, model.config)
    return tuple(_opened(path, model, exact) for path in sorted((folder / "runs").glob("*.safetensors")))


def _opened(path: Path, model: Model, exact: OracleWeights) -> RecordedRun:
    theirs = open_their_dump(path)
    table = run_table(theirs)
    assert table is not None and table.positions is not None and theirs.declared.token_ids is not None
    situation = situation_of(f"run/{path.stem}", table)
    tensors: dict[str, NDArray[np.float32]] = {}
    for point in theirs.stored:
        pieces = [piece_of(theirs, point, table, call) for call in table.numbers]
        tensors[point] = np.concatenate([piece.x for piece in pieces if piece is not None])
    recording = Recording(
        label=situation.label,
        prompt=None,
        token_ids=theirs.declared.token_ids,
        positions=table.positions,
        blocks=tuple(range(model.config.n_layers)),
        tensors=tensors,
        recorded=True,
        tight=True,
    )
    return RecordedRun(situation, recording, model, exact)


def situation_of(label: str, table: RunTable) -> Situation:
    """A run's table as a situation."""
    assert table.positions is not None
    calls = [table.rows_of(call) for call in table.numbers]
    removed, live = [], dict[int, int]()
    for rows in calls:
        first = {table.sequences[row]: table.positions[row] for row in reversed(rows)}
        removed.append(sum(live.get(number, 0) - at for number, at in first.items()))
        for row in rows:
            live[table.sequences[row]] = table.positions[row] + 1
    return Situation(
        label,
        rows=len(table.calls),
        calls=tuple(map(len, calls)),
        sequences=len(set(table.sequences)),
        shape=label,
        removed=tuple(removed),
        placed=tuple(zip(table.positions, table.sequences, strict=True)),
    )
