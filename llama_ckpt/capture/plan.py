"""A run of several calls, as llama.cpp is asked to make it: what to compute, to remove and to copy.

    (Rows(((0, 1), (0, 15043))), Decode(3), Remove(0, 3), Rows(((0, 29892),)), Copy(0, 1, 3))

Plain numbers, so that a plan goes to the recorder's process as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from llama_ckpt.errors import OptionError

__all__ = ["Copy", "Decode", "Op", "Plan", "Remove", "Rows", "plan_from_json", "plan_of", "plan_to_json"]


@dataclass(frozen=True)
class Rows:
    """One call: each row's sequence and token, after what the sequence has."""

    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Decode:
    """So many calls of one row, each the greedy token of the call before, for each sequence of that."""

    steps: int


@dataclass(frozen=True)
class Remove:
    """The last tokens of a sequence are taken out of the cache: what stands from `first` on."""

    sequence: int
    first: int


@dataclass(frozen=True)
class Copy:
    """A sequence gets another's keys and values up to before `end`."""

    source: int
    target: int
    end: int


Op: TypeAlias = Rows | Decode | Remove | Copy
Plan: TypeAlias = tuple[Op, ...]

KINDS: dict[str, Any] = {"Rows": Rows, "Decode": Decode, "Remove": Remove, "Copy": Copy}


def plan_to_json(plan: Plan) -> list[Any]:
    """A plan as lists and numbers."""
    return [[type(op).__name__, asdict(op)] for op in plan]


def plan_from_json(document: Sequence[Any]) -> Plan:
    """The plan that `plan_to_json` gave."""
    made: list[Op] = []
    for name, fields in document:
        if name == "Rows":
            fields = {"rows": tuple((int(s), int(t)) for s, t in fields["rows"])}
        made.append(KINDS[name](**fields))
    return tuple(made)


def plan_of(
    sequences: Sequence[Sequence[int]],
    *,
    chunks: Sequence[int] = (),
    decode: int = 0,
    rollback: int = 0,
    then: Sequence[int] = (),
    share: int = 0,
    continued: Sequence[int] = (),
) -> Plan:
    """The plan that the command's options ask for.

    Args:
        sequences: the prompts; several go through llama.cpp in one batch, their tokens in turn.
        chunks: how many tokens each call takes of every prompt; the last takes what is left.
        decode: so many greedy tokens, one call each.
        rollback: so many of the last tokens are removed; then: these follow, in one call.
        share: so many of the first tokens are copied to another sequence, which goes on with `continued`.

    Raises:
        OptionError: a number that there are not so many tokens for.
    """
    longest = max(len(tokens) for tokens in sequences)
    ops: list[Op] = []
    start = 0
    for size in [*chunks, longest]:
        if size < 1:
            raise OptionError("--chunks", got=size, wanted="tokens of a call, 1 and more")
        rows = _in_turn([tokens[start : start + size] for tokens in sequences])
        if rows:
            ops.append(Rows(rows))
        start += size
    if decode:
        ops.append(Decode(decode))
    length = len(sequences[0]) + decode
    if rollback:
        if not 0 < rollback < length:
            raise OptionError("--rollback", got=rollback, wanted=f"1 to {length - 1}")
        ops.append(Remove(0, length - rollback))
        if then:
            ops.append(Rows(tuple((0, token) for token in then)))
    if share:
        length -= rollback - len(then) if rollback else 0
        if not 0 < share <= length or not continued:
            raise OptionError("--share", got=share, wanted=f"1 to {length}, and tokens to go on with")
        target = len(sequences)
        ops += [Copy(0, target, share), Rows(tuple((target, token) for token in continued))]
    return tuple(ops)


def _in_turn(parts: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """One token of each sequence, then the next of each."""
    longest = max((len(part) for part in parts), default=0)
    return tuple(
        (number, part[i]) for i in range(longest) for number, part in enumerate(parts) if i < len(part)
    )
