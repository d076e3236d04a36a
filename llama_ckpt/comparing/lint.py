"""What is wrong with a dump itself, told before anything is compared; each finding fails.

Of the run: BOS missing, other tokens, positions or weights than the reference's. Of the tensors, each
looked at once: not finite, never written, a buffer recorded twice, all layers alike, layers shifted by
one, points missing. What needs the oracle (a norm recorded before its weight) stands in `walk`.

Zeros and equal tensors or rows are suspicions at first: a program may compute them. So they are told after
the tensors were judged, and only of those that are not what they should be; `Scan.hear` takes the verdicts.
numpy only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.comparing.comparison import LintFinding
from llama_ckpt.dumps.theirs import Declared, TheirDump
from llama_ckpt.judging.limits import Limit
from llama_ckpt.judging.metrics import relative_error, row_scale
from llama_ckpt.listing import some
from llama_ckpt.points import BLOCK_POINTS, MODEL_POINTS, POINTS, block_point, split_name

__all__ = ["Scan", "find_shift", "lint_missing", "lint_run", "lint_scan", "scan", "wanted_points"]

AGAIN = "record again with the reference's"
COPY = "copy a tensor at the moment it is made"
COPYING = "llama_ckpt."
"""How the producers begin whose recorder copies each tensor when it is made: ours."""
MANY = 4
"""From so many kinds of missing points on they are told in one sentence."""


def lint_run(
    declared: Declared,
    *,
    token_ids: Sequence[int],
    positions: Sequence[int],
    weights_sha256: str | None,
) -> Iterator[LintFinding]:
    """Hold what a dump says of its run against the reference's manifest; what it leaves out passes here."""
    own = declared.token_ids
    if own is not None and own != tuple(token_ids):
        yield _other_tokens(own, tuple(token_ids))
    elif declared.positions is not None and declared.positions != tuple(positions):
        at = _first_difference(declared.positions, positions)
        message = f"positions are {_few(declared.positions)}, the reference's {_few(positions)}"
        yield LintFinding(
            "other_positions", "", f"{message}: they differ from row {at} on", f"{AGAIN} positions"
        )
    if weights_sha256 and declared.weights_sha256 not in (None, weights_sha256):
        message = f"weights_sha256 is {declared.weights_sha256}, the reference's {weights_sha256}"
        yield LintFinding("other_weights", "", message, f"{AGAIN} weights: llama-ckpt export writes them")


def _other_tokens(own: tuple[int, ...], wanted: tuple[int, ...]) -> LintFinding:
    if own == wanted[1:]:
        message = f"BOS is missing: tokens {_few(own)}, the reference's begin with {wanted[0]}"
        return LintFinding("missing_bos", "", message, f"put {wanted[0]} before the prompt's tokens")
    if own[1:] == wanted and own[0] == wanted[0]:
        message = f"BOS is there twice: tokens {_few(own)}, the reference's {_few(wanted)}"
        return LintFinding("other_tokens", "", message, "let either the tokenizer or the caller add BOS")
    at = _first_difference(own, wanted)
    message = f"tokens are {_few(own)}, the reference's {_few(wanted)}: they differ from row {at} on"
    return LintFinding("other_tokens", "", message, f"{AGAIN} tokens")


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    return next(
        (i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b))
    )


def _few(numbers: Sequence[int]) -> str:
    return f"[{some(numbers, 8)}]"


@dataclass
class Scan:
    """What one look at each tensor tells.

    Attributes:
        hashes: of each tensor's values.
        zeros: tensors of nothing but zeros.
        bad: for a tensor that is not finite the first place, what stands there, how many there are.
        rows: for a tensor with equal rows each pair of them, a row with the first one that is like it.
        verdicts: for what was judged whether it is right; by its own error, where that was judged.
        copied: whether the recorder is known to copy: what is alike then was made so.
    """

    hashes: dict[str, bytes] = field(default_factory=dict)
    zeros: list[str] = field(default_factory=list)
    bad: dict[str, tuple[tuple[int, ...], float, int]] = field(default_factory=dict)
    rows: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    verdicts: dict[str, bool] = field(default_factory=dict)
    judged_by_own: set[str] = field(default_factory=set)
    copied: bool = False

    def hear(self, name: str, right: bool, o: NDArray[Any], limit: Limit) -> None:
        """Take a verdict; one on the own error counts for more than one on the total, a later one of a kind.

        Args:
            name: the point. right: whether its error is allowed. o: the exact tensor, token first.
            limit: what was allowed.
        """
        if limit.error_kind == "total" and name in self.judged_by_own:
            return
        if limit.error_kind == "own":
            self.judged_by_own.add(name)
        self.verdicts[name] = right
        if name in self.rows and o.ndim > 1:
            flat = o.reshape(len(o), -1)
            allowed = limit.row_err if limit.rows is None else limit.rows
            most = np.broadcast_to(allowed, len(o)) * row_scale(flat)
            self.rows[name] = [
                (i, j)
                for i, j in self.rows[name]
                # Rows that are so much alike may be rounded to the same bytes.
                if max(i, j) < len(o) and np.linalg.norm(flat[i] - flat[j]) > most[i] + most[j]
            ]

    def are_right(self, names: Sequence[str]) -> bool:
        """Whether all of these were judged and found right."""
        return all(self.verdicts.get(name, False) for name in names)


def scan(theirs: TheirDump, progress: Callable[[str, int, int], None] | None = None) -> Scan:
    """Look at every tensor once, one in memory at a time."""
    found = Scan(copied=(theirs.declared.producer or "").startswith(COPYING))
    for number, name in enumerate(theirs.names):
        if progress:
            progress(f"looking at {name}", number, len(theirs.names))
        array = theirs.raw(name)
        written = array.any()
        found.hashes[name] = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()
        if not written:
            found.zeros.append(name)
        # A sum is finite where all terms are, unless it overflows.
        finite = np.True_ if np.isfinite(array.sum()) else np.isfinite(array) | _unseen(name, array)
        if not finite.all():
            at = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape))
            found.bad[name] = at, float(array[at]), int((~finite).sum())
        elif written and (pairs := _equal_rows(array)):
            found.rows[name] = pairs
    return found


def _unseen(name: str, array: NDArray[Any]) -> Any:
    """Where scores are those of later keys, which are often minus infinity, and which nobody judges."""
    if not POINTS[split_name(name)[1]].causal or array.ndim != 3 or array.shape[0] != array.shape[2]:
        return False
    return np.triu(np.ones((len(array), len(array)), bool), 1)[:, None]


def _equal_rows(array: NDArray[Any]) -> list[tuple[int, int]]:
    if array.ndim < 2 or array[0].size < 8:
        return []
    seen: dict[int, int] = {}
    pairs = []
    for row, key in enumerate(_row_hashes(array)):
        if key in seen and array[seen[key]].tobytes() == array[row].tobytes():
            pairs.append((seen[key], row))
        else:
            seen.setdefault(key, row)
    return pairs


def _row_hashes(array: NDArray[Any]) -> list[int]:
    """A number for each row, the same for rows of the same bytes: their words times odd numbers, summed."""
    rows = np.ascontiguousarray(array).reshape(len(array), -1)
    words: NDArray[Any] = rows.view(np.uint32 if rows.dtype.itemsize == 4 else np.uint64)
    odd = np.random.default_rng(0).integers(0, 1 << 31, words.shape[1], words.dtype) * words.dtype.type(2)
    odd += words.dtype.type(1)
    sums: Any = np.einsum("ij,j->i", words, odd)
    hashes: list[int] = sums.tolist()
    return hashes


def lint_scan(found: Scan, token_ids: Sequence[int], positions: Sequence[int]) -> Iterator[LintFinding]:
    """What the scan says, in the order of the data's flow within each kind."""
    bad = {name: what for name, what in found.bad.items() if not found.are_right([name])}
    if bad:
        name, (at, value, count) = next(iter(bad.items()))
        more = f", and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        message = (
            f"{name}{list(at)} is {value}, the first value that is not finite; {count} in that tensor{more}"
        )
        yield LintFinding("not_finite", name, message, "look at what this point is computed from")
    zeros = [name for name in found.zeros if not found.are_right([name])]
    for name in zeros[:1]:
        more = f", and {len(zeros) - 1} more" if len(zeros) > 1 else ""
        why = "the program made it so" if found.copied else "it was never written"
        hint = "look at what should write it" if found.copied else COPY
        yield LintFinding("unwritten", name, f"{name} is all zeros{more}: {why}", hint)
    yield from _alike(found, token_ids, positions)
    yield from _equal(found, token_ids, positions)


def _equal(found: Scan, token_ids: Sequence[int], positions: Sequence[int]) -> Iterator[LintFinding]:
    """The first tensor with rows that are equal and should not be."""
    for name, pairs in found.rows.items():
        for first, second in pairs:
            if not _rows_may_be_equal(name, token_ids, positions, first, second):
                what = f"rows {first} and {second} of {name} are equal byte for byte, though not their tokens"
                hint = "record each token's row, not one buffer"
                if found.copied:
                    what, hint = f"{what}: the program made them so", "look at what gives each token its row"
                yield LintFinding("stale_buffer", name, what, hint)
                return


def _rows_may_be_equal(
    name: str, token_ids: Sequence[int], positions: Sequence[int], first: int, second: int
) -> bool:
    """Where nothing has mixed the tokens yet, or all before are equal, equal tokens have equal rows.

    So have those of one token at one position: each begins a sequence of its own, or is padding.
    """
    block, point = split_name(name)
    if point == "attn_probs" or second >= len(token_ids):
        return True  # a saturated softmax; an axis that does not count tokens
    same = token_ids[first] == token_ids[second]
    unmixed = block in (None, 0) or positions[first] == positions[second]
    return same and unmixed or len(set(token_ids[: second + 1])) == 1


def _alike(found: Scan, token_ids: Sequence[int], positions: Sequence[int]) -> Iterator[LintFinding]:
    """Tensors that are equal byte for byte and should not be."""
    groups: dict[bytes, list[str]] = {}
    for name, key in found.hashes.items():
        if name not in found.zeros and name not in found.bad:
            groups.setdefault(key, []).append(name)
    identical: list[str] = []
    twice: dict[tuple[str, ...], list[list[str]]] = {}
    for names in groups.values():
        points = {split_name(name)[1] for name in names}
        if len(names) < 2 or _may_be_equal(points, len(token_ids), positions) or found.are_right(names):
            continue
        if len(points) == 1 and len(names) > 2 and len(names) == _recorded(found, *points):
            identical.append(names[0])
        else:
            twice.setdefault(tuple(sorted(points)), []).append(names)
    for each in twice.values():
        others = some(each[0][1:], 3)
        more = f"; so are {len(each) - 1} such pairs more" if len(each) > 1 else ""
        message = f"{each[0][0]} and {others} are equal byte for byte{more}: "
        message += "" if found.copied else "one buffer was recorded twice, or "
        message += "a step between does nothing"
        hint = "look at what is computed between them" if found.copied else COPY
        yield LintFinding("stale_buffer", each[0][0], message, hint)
    if identical:
        points = {split_name(name)[1] for name in identical}
        message = f"all layers are identical: every block has the same {', '.join(sorted(points))}"
        hint = "look at what goes from block to block" if found.copied else COPY
        yield LintFinding("layers_identical", identical[0], message, hint)


def _recorded(found: Scan, point: str) -> int:
    return sum(split_name(name)[1] == point for name in found.hashes)


def _may_be_equal(points: set[str], n: int, positions: Sequence[int]) -> bool:
    """One token attends to itself alone; position 0 is not turned; the rest is never equal."""
    alone = n == 1 and points <= {"attn_probs"} or n == 1 and points == {"v", "attn_context"}
    unturned = not any(positions) and points in ({"q", "q_rope"}, {"k", "k_rope"})
    return alone or unturned


def wanted_points(declared: Declared, n_layers: int) -> list[str]:
    """The points that a dump should hold: all, or those that it says it recorded."""
    points = declared.points
    blocks = range(n_layers) if declared.blocks is None else declared.blocks
    wanted = [point.name for point in MODEL_POINTS if points is None or point.name in points]
    inside = [point.name for point in BLOCK_POINTS if points is None or point.name in points]
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


def find_shift(
    theirs: Mapping[int, NDArray[Any]], right: Mapping[int, NDArray[Any]], most: float
) -> int | None:
    """By how many blocks their tensors of one point are displaced: -1, 1, or None where they are not.

    Args:
        theirs: their tensor by block; shapes as `right`'s.
        right: what each block should have; -1 for what goes into block 0.
        most: the relative error below which two tensors are the same.

    Returns:
        1 where their block N holds what belongs to block N + 1; -1 where it holds block N - 1's.
    """
    for shift in (1, -1):
        pairs = [(theirs[b], right[b + shift], right.get(b)) for b in theirs if b + shift in right]
        if pairs and all(relative_error(x, o) < most for x, o, _ in pairs):
            if all(own is None or relative_error(x, own) > most for x, _, own in pairs):
                return shift
    return None
