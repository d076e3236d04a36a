"""Comparing a dump of several sequences, or with padding: each sequence as a prompt of its own.

The report is that of the first one that is wrong, or of the first, and says of each whether it passes. numpy
only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.comparison import Comparison, LintFinding, SequenceVerdict
from llama_ckpt.dumps.sequences import SequenceDump, seen_of_others
from llama_ckpt.dumps.theirs import TheirDump
from llama_ckpt.judging.metrics import relative_error
from llama_ckpt.points import block_point, split_name

__all__ = ["of_sequences"]

GRAVITY = {"pass": 0, "arithmetic": 1, "fail": 2}
SAYS = {"pass": "passes", "arithmetic": "differs by arithmetic", "fail": "FAILS"}

HINT = "mask what is not of a row's own sequence"
FEW = 2
"""So many places are named where a row sees what it should not."""

ATTENDED = ("q_rope", "k_rope", "v", "attn_context")
"""What attention reads, and what it gives."""

SAME = 0.01
"""Relative error below which a context is taken for another mask's: any precision is nearer than that."""

MOST_SCORES = 1 << 23
"""Of more, another mask is not tried."""


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
    leaks = list(_leaks(whole)) or ([] if shown.verdict == "pass" else list(_as_without_mask(whole, parts)))
    shown.findings[:0] = [*leaks, *(found for part in parts for found in _counted_padding(part))]
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
        yield LintFinding("sees_others", leak.name, message, HINT)


def _as_without_mask(whole: TheirDump, parts: Sequence[SequenceDump]) -> Iterator[LintFinding]:
    """Where no probability was recorded: a context that comes to what all rows before a row give.

    Scores need no order of features, as long as q and k have the same.
    """
    recorded = {split_name(name) for name in whole.names}
    blocks = [b for b, _ in recorded if b is not None and all((b, point) in recorded for point in ATTENDED)]
    if not blocks:
        return
    block = min(blocks)
    q, k, v, context = (np.asarray(whole.raw(block_point(block, point)), np.float64) for point in ATTENDED)
    n = parts[0].n_rows
    if any(x.ndim != 3 or len(x) != n for x in (q, k, v)) or context.size != q.size:
        return
    if q.shape[1] % k.shape[1] or k.shape != v.shape or q.shape[1] * n * n > MOST_SCORES:
        return
    before = np.tri(n, dtype=bool)
    for part in parts:
        rows = list(part.rows)
        own = before & np.isin(np.arange(n), rows)
        theirs = context.reshape(n, -1)[rows]
        seen_all, seen_own = (_context(q, k, v, visible)[rows] for visible in (before, own))
        if relative_error(theirs, seen_all) < SAME < relative_error(theirs, seen_own):
            name = block_point(block, ATTENDED[-1])
            message = f"{name}: rows see every row before them, also those of padding and of other sequences"
            yield LintFinding("sees_others", name, message, HINT)
            return


def _context(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], visible: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Attention's context `[n, n_heads * head_dim]` with a mask `[n, n]`."""
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    with np.errstate(all="ignore"):  # padding may hold anything, and see nothing
        scores = np.where(visible, np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1]), -np.inf)
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        made = np.einsum(
            "hqk,khd->qhd", probs / probs.sum(-1, keepdims=True), np.where(np.isfinite(v), v, 0.0)
        )
    return np.asarray(made.reshape(len(q), -1))


def _counted_padding(part: SequenceDump) -> Iterator[LintFinding]:
    """Positions that begin where the padding before them ends."""
    before, positions = part.padding_before, part.declared.positions
    if before and positions is not None and positions[0] == before:
        message = f"positions begin at {before}, since the {before} rows of padding before them are counted"
        yield LintFinding("other_positions", "", message, "count from a sequence's first token on")
