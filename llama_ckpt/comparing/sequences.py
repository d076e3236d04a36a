"""Comparing a dump of several sequences, or with padding: each sequence as a prompt of its own.

The report is that of the first one that is wrong, or of the first, and says of each whether it passes. numpy
only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from llama_ckpt.comparing.comparison import Comparison, LintFinding, SequenceVerdict
from llama_ckpt.dumps.sequences import SequenceDump, seen_of_others
from llama_ckpt.dumps.theirs import TheirDump

__all__ = ["of_sequences"]

GRAVITY = {"pass": 0, "arithmetic": 1, "fail": 2}
SAYS = {"pass": "passes", "arithmetic": "differs by arithmetic", "fail": "FAILS"}

FEW = 2
"""So many places are named where a row sees what it should not."""


def of_sequences(
    whole: TheirDump, parts: Sequence[SequenceDump], compared: Callable[[TheirDump], Comparison]
) -> Comparison:
    """One comparison of all sequences.

    Args:
        whole: the dump; parts: its sequences.
        compared: judges one of them.
    """
    results = [compared(part) for part in parts]
    shown = max(results, key=lambda one: GRAVITY[one.verdict])  # the first of equals
    shown.sequences = [
        SequenceVerdict(
            part.number,
            part.rows,
            one.verdict,
            one.compared,
            one.of,
            None if one.first_wrong is None else one.first_wrong.name,
            one is shown,
        )
        for part, one in zip(parts, results, strict=True)
    ]
    shown.notes[:0] = _sentences(whole, shown.sequences)
    shown.findings[:0] = [*_leaks(whole), *(found for part in parts for found in _counted_padding(part))]
    return shown


def _sentences(whole: TheirDump, sequences: Sequence[SequenceVerdict]) -> Iterator[str]:
    padding = sum(whole.declared.padding or ())
    if padding:
        yield f"{padding} of {len(whole.declared.padding or ())} rows are padding, and not judged"
    if len(sequences) > 1:
        of_each = [
            f"{one.number} ({len(one.rows)} rows) {SAYS[one.verdict]}"
            f", {one.compared} of {one.of} points{', shown' if one.shown else ''}"
            for one in sequences
        ]
        yield f"{len(sequences)} sequences, each judged as a prompt of its own: {'; '.join(of_each)}"


def _leaks(whole: TheirDump) -> Iterator[LintFinding]:
    """Where rows see what is not of their sequence."""
    for leak in islice(seen_of_others(whole), FEW):
        key = "which is padding" if leak.to_padding else "which is of another sequence"
        message = f"{leak.name}[{leak.row}, {leak.head}, {leak.key}] is {leak.value:.3g}"
        message += f": row {leak.row} sees row {leak.key}, {key}"
        yield LintFinding("sees_others", leak.name, message, "mask what is not of a row's own sequence")


def _counted_padding(part: SequenceDump) -> Iterator[LintFinding]:
    """Positions that begin where the padding before them ends."""
    before, positions = part.padding_before, part.declared.positions
    if before and positions is not None and positions[0] == before:
        message = f"positions begin at {before}, since the {before} rows of padding before them are counted"
        yield LintFinding("other_positions", "", message, "count from a sequence's first token on")
