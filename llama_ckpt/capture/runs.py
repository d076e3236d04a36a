"""A run of several calls through llama.cpp's own batch, memory and sequence functions, recorded call by call.

Runs in the recorder's process. What is kept are each call's tensors, `call.2.blk.0.q`, and for every row its
call, sequence and position, as `compare` reads them of any program.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.capture.plan import Copy, Decode, Remove, Rows
from llama_ckpt.capture.request import Request
from llama_ckpt.capture.session import Context, ReferenceModel
from llama_ckpt.capture.tap import PointTap
from llama_ckpt.points import split_name

__all__ = ["record_run"]


@dataclass
class _Run:
    """What has been done of a plan."""

    context: Context
    tap: PointTap
    points: frozenset[str]
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    greedy: list[tuple[int, int]] = field(default_factory=list)
    calls: int = 0

    def call(self, rows: tuple[tuple[int, int], ...]) -> None:
        """Compute rows, and keep what was seen."""
        positions = []
        for sequence, _ in rows:
            positions.append(self.lengths.get(sequence, 0))
            self.lengths[sequence] = positions[-1] + 1
        self.tap.clear()
        self.tap.recording = True
        self.context.decode_rows(rows, positions)
        self.tap.recording = False
        for name, array in self.tap.points(None).items():
            if split_name(name)[1] in self.points:
                self.tensors[f"call.{self.calls}.{name}"] = np.ascontiguousarray(array)
        last = {sequence: row for row, (sequence, _) in enumerate(rows)}
        self.greedy = [(sequence, self.context.greedy(row)) for sequence, row in sorted(last.items())]
        facts = {
            "token_ids": [token for _, token in rows],
            "positions": positions,
            "sequences": [sequence for sequence, _ in rows],
            "calls": [self.calls] * len(rows),
        }
        for key, numbers in facts.items():
            self.rows.setdefault(key, []).extend(numbers)
        self.calls += 1

    def copy(self, op: Copy) -> None:
        """Give a sequence another's first keys."""
        self.context.copy(op.source, op.target, op.end)
        self.lengths[op.target] = op.end
        self.rows.setdefault("copies", []).extend([self.calls, op.source, op.target, 0, op.end])

    def remove(self, op: Remove) -> None:
        """Take the last tokens of a sequence out."""
        self.context.remove(op.sequence, op.first)
        self.lengths[op.sequence] = op.first


def record_run(loaded: ReferenceModel, request: Request) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Make a plan's calls.

    Returns:
        Of every row what `compare` is told, and every call's tensors.
    """
    blocks = range(loaded.n_layers) if request.blocks is None else request.blocks
    tap = PointTap(loaded.library, loaded.n_layers, blocks, request)
    n_rows = sum(len(op.rows) if isinstance(op, Rows) else 0 for op in request.plan)
    steps = sum(op.steps for op in request.plan if isinstance(op, Decode))
    sequences = {s for op in request.plan if isinstance(op, Rows) for s, _ in op.rows}
    with Context(loaded, request, n_rows + steps * len(sequences), tap, len(sequences)) as context:
        run = _Run(context, tap, frozenset(request.points))
        for op in request.plan:
            if isinstance(op, Rows):
                run.call(op.rows)
            elif isinstance(op, Decode):
                for _ in range(op.steps):
                    run.call(tuple(run.greedy))
            elif isinstance(op, Remove):
                run.remove(op)
            else:
                run.copy(op)
    return {"rows": run.rows, "n_layers": loaded.n_layers}, run.tensors
