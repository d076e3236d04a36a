"""What looks like a slip of the recorder, told once it is known whether the tensors are right; each fails.

Not finite, never written, a buffer recorded twice, rows that are equal though their tokens are not, all
layers alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llama_ckpt.comparing.comparison import LintFinding
from llama_ckpt.comparing.scan import Scan
from llama_ckpt.listing import some
from llama_ckpt.points import split_name

__all__ = ["lint_scan"]

COPY = "copy a tensor at the moment it is made"


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
