"""Comparing a dump of several sequences or calls, or with padding: each sequence as a prompt of its own.

The report is that of the first one that is wrong, or of the first, and says of each whether it passes, and in
which call its first error is made. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from llama_ckpt.comparing.cache_faults import cache_fault
from llama_ckpt.comparing.cache_slots import wrong_slots
from llama_ckpt.comparing.comparison import Comparison, LintFinding, SequenceVerdict
from llama_ckpt.dumps.sequences import Leak, SequenceDump, seen_of_others
from llama_ckpt.dumps.theirs import TheirDump
from llama_ckpt.listing import which
from llama_ckpt.points import split_name

__all__ = ["of_sequences"]

GRAVITY = {"pass": 0, "arithmetic": 1, "fail": 2}
SAYS = {"pass": "passes", "arithmetic": "differs by arithmetic", "fail": "FAILS"}

HINT = "mask what is not of a row's own sequence"
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
    number = min(range(len(parts)), key=lambda i: _gravest(parts[i], results[i]))
    shown = results[number]
    shown.sequences = [_verdict(part, one, one is shown) for part, one in zip(parts, results, strict=True)]
    shown.notes[:0] = _sentences(whole, shown.sequences)
    shown.findings[:0] = _findings(parts, parts[number], shown)
    if shown.first_wrong is not None:
        shown.where = _where(parts[number], shown.wrong_rows)
    return shown


def _gravest(part: SequenceDump, one: Comparison) -> tuple[int, int]:
    """Sorts what is wrong before what is right, and by where in the run it begins."""
    begins = part.rows[min(one.wrong_rows)] if one.wrong_rows else part.rows[0]
    return -GRAVITY[one.verdict], begins


def _findings(parts: Sequence[SequenceDump], part: SequenceDump, shown: Comparison) -> list[LintFinding]:
    """What is said of caches, masks and padding."""
    leaks = [_leak(leak) for leak in islice(seen_of_others(list(parts)), FEW)]
    first, fault = shown.first_wrong, None
    if first is not None and shown.verdict != "pass":
        fault = cache_fault(parts, part, first.name)
    if fault is not None:
        shown.run_fault = fault.message.partition(": ")[2]
        # A leak says the same with numbers; what it can't say is said besides.
        if not leaks or fault.kind != "sees_others":
            leaks = [fault, *leaks]
    nan = list(_reached_by_nan(part))
    return [*leaks, *nan, *wrong_slots(parts), *(one for each in parts for one in _counted_padding(each))]


def _verdict(part: SequenceDump, one: Comparison, shown: bool) -> SequenceVerdict:
    return SequenceVerdict(
        part.number,
        part.rows,
        one.verdict,
        one.compared,
        one.of,
        None if one.first_wrong is None else one.first_wrong.name,
        shown,
        part.calls,
        part.history.rolled_back,
    )


def _sentences(whole: TheirDump, sequences: Sequence[SequenceVerdict]) -> Iterator[str]:
    padding = sum(whole.declared.padding or ())
    if padding:
        yield f"{padding} of {len(whole.declared.padding or ())} rows are padding, and not judged"
    if len(sequences) > 1:
        of_each = [
            f"{one.number} ({len(one.rows)} rows{_until(one)}) {SAYS[one.verdict]}"
            f", {one.compared} of {one.of} points{', shown' if one.shown else ''}"
            for one in sequences
        ]
        yield f"{len(sequences)} sequences, each judged as a prompt of its own: {'; '.join(of_each)}"
    elif len(sequences[0].calls) > 1:
        yield f"{len(sequences[0].calls)} calls, judged as the one pass that they come to"


def _until(one: SequenceVerdict) -> str:
    return "" if one.rolled_back is None else f", some rolled back before call {one.rolled_back}"


def _where(part: SequenceDump, wrong: Sequence[int]) -> str:
    """Where a run of several calls or sequences goes wrong, by the first of the wrong rows."""
    several = len(part.table.numbers) > 1
    row = part.rows[min(wrong, default=0)]
    call = part.table.calls[row]
    own = [place for place, one in enumerate(part.rows) if part.table.calls[one] == call]
    words = f" in call {call} ({_kind(own, len(part.rows))})" if several else ""
    if part.table.several:
        words += f"{',' if several else ' in'} sequence {part.table.sequences[row]}"
    positions = part.table.positions
    at = min(wrong, default=0) if positions is None else positions[row]
    return words and f"{words}, position {at}"


def _kind(places: Sequence[int], n: int) -> str:
    if len(places) == 1:
        return f"decode of token {places[0]}" if places[0] else "token 0"
    return which("token", places, max(n, len(places) + 1))


def _leak(leak: Leak) -> LintFinding:
    """Where a row sees what is not of its sequence."""
    table = leak.part.table
    at, call = leak.column if leak.key is None else leak.key, table.calls[leak.row]
    what = {
        "padding": "which is padding",
        "another sequence": "which is of another sequence",
        "removed": "which was removed before",
        "no row": "which is no row's key",
    }[leak.to]
    where = "column" if leak.key is None else "row"
    message = f"{leak.name}[{leak.row}, {leak.head}, {leak.column}] is {leak.value:.3g}: "
    message += f"row {leak.row} sees {where} {at}, {what}"
    if len(table.numbers) > 1:
        message += f"; in call {call}, sequence {table.sequences[leak.row]}"
    return LintFinding("sees_others", leak.name, message, HINT)


def _reached_by_nan(part: SequenceDump) -> Iterator[LintFinding]:
    """Where a NaN that a row of padding has reaches a row that is none."""
    table = part.table
    if not any(table.padding):
        return
    born: tuple[str, int] | None = None
    for name in part.names:
        if split_name(name)[1] in ("attn_scores", "attn_probs"):
            continue
        for call in part.calls:
            piece = part.piece_in(name, call)
            if piece is None:
                continue
            of_call = table.rows_of(call)
            bad = [
                row
                for row, x in zip(of_call, piece.x, strict=True)
                if not np.isfinite(x.astype(np.float64)).all()
            ]
            reached = [row for row in bad if row in part.rows]
            padded = [row for row in bad if table.padding[row]]
            if reached and born is not None:
                message = f"{name}: a NaN reaches row {reached[0]}, which is none of padding; it was born in "
                message += f"row {born[1]} of padding, in {born[0]}: 0 times NaN is NaN"
                hint = "give padding's rows a finite value: let each see itself, or set them to 0"
                yield LintFinding("nan_of_padding", name, message, hint)
                return
            if padded and born is None:
                born = name, padded[0]


def _counted_padding(part: SequenceDump) -> Iterator[LintFinding]:
    """Where a left-padded sequence's positions begin behind the padding, which is to count for nothing."""
    before, positions = part.padding_before, part.declared.positions
    if before and positions is not None and positions[0] == before:
        message = f"positions begin at {before}, since the {before} rows of padding before them are counted"
        yield LintFinding("other_positions", "", message, "count from a sequence's first token on")
