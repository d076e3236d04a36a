"""Which points a dump should hold: all, those that it says it recorded, or those that its kind has.

A dump of what stands on the stream from block to block, ends and norms, or of logits alone, is complete of
its kind, whichever blocks it has: it is what people write first, and what is not there was not meant to be.
One that looks into the steps of a block and lacks some of them may have lost them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from llama_ckpt.comparing.comparison import LintFinding
from llama_ckpt.dumps.theirs import Declared, TheirDump
from llama_ckpt.listing import some
from llama_ckpt.points import MODEL_POINTS, block_point, points_in_block, split_name

__all__ = ["is_complete_of_its_kind", "lint_missing", "wanted_of"]

MANY = 4
"""From so many kinds of missing points on they are told in one sentence."""

STREAM = frozenset({"embd", "attn_norm", "ffn_inp", "ffn_norm", "out", "output_norm", "logits"})
"""What the first dump of a port shows: what goes from layer to layer, and the norms of that."""


def is_complete_of_its_kind(theirs: TheirDump) -> bool:
    """Whether what is there says what was to be recorded, so that nobody has to declare it."""
    return theirs.declared.points is None and {split_name(name)[1] for name in theirs.names} <= STREAM


def wanted_of(theirs: TheirDump, n_layers: int, *, experts: bool = False) -> list[str]:
    """The full names of the points that a dump of a model of `n_layers` blocks should hold.

    Args:
        experts: of a mixture of experts.
    """
    declared = theirs.declared
    if not is_complete_of_its_kind(theirs):
        return _wanted_points(declared, n_layers, experts)
    if declared.blocks is None:
        return list(theirs.names)
    points = dict.fromkeys(split_name(name)[1] for name in theirs.names)
    return _wanted_points(replace(declared, points=tuple(points)), n_layers, experts)


def _wanted_points(declared: Declared, n_layers: int, experts: bool) -> list[str]:
    """The points that a dump should hold: all, or those that it says it recorded."""
    points = declared.points
    blocks = range(n_layers) if declared.blocks is None else declared.blocks
    wanted = [point.name for point in MODEL_POINTS if points is None or point.name in points]
    inside = [
        point.name for point in points_in_block(experts=experts) if points is None or point.name in points
    ]
    names = [block_point(block, point) for block in blocks for point in inside]
    return [*(p for p in wanted if p == "embd"), *names, *(p for p in wanted if p != "embd")]


def lint_missing(names: Sequence[str], wanted: Sequence[str]) -> Iterator[LintFinding]:
    """The points that should be there and are not, a finding for each kind, or one for many."""
    missing: dict[str, list[str]] = {}
    for name in wanted:
        if name not in names:
            missing.setdefault(split_name(name)[1], []).append(name)
    hint = "record them, or say that only some were recorded: --partial"
    if len(missing) >= MANY:
        total = sum(len(each) for each in missing.values())
        kinds = some(list(missing), 6)
        message = f"{total} of {len(wanted)} points are missing: {kinds}"
        yield LintFinding("missing_point", next(iter(missing.values()))[0], message, hint)
        return
    for point, each in missing.items():
        if len(each) == 1:
            message = f"{each[0]} is missing"
        else:
            numbers = [split_name(name)[0] or 0 for name in each]
            message = f"{point} is missing in {len(each)} blocks, {_ranges(numbers)}"
        yield LintFinding("missing_point", each[0], message, hint)


def _ranges(numbers: Sequence[int]) -> str:
    """`[0, 1, 2, 5]` as "0-2, 5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
