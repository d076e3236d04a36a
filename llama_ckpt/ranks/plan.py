"""How a model lies over its ranks: a line for each point on how it is cut, and the blocks of each stage.

    # what is not said is as Megatron cuts it, which is the default without a plan
    q: heads                    # each rank has heads of its own, one after the other
    ffn_gate: features          # each has features of its own
    attn_out: partial sums      # each has its part of a sum over all
    logits: vocabulary 334 333  # as features; how many each rank has, where it is padded one by one
    embd: replicated            # every rank has the same
    blocks: 0-1                 # the first pipeline stage; a line, or a range behind a comma, for each
    blocks: 2-3

Ranks are numbered as they are given, those of the first stage first. A point that every rank has whole,
as logits are once they are gathered, may be called cut: its shape tells. No tensors here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from llama_ckpt.errors import OptionError
from llama_ckpt.outside import quoted, read_text
from llama_ckpt.points import POINTS

__all__ = ["DEFAULT", "Cut", "Plan", "read_plan"]

HEADS, FEATURES, VOCABULARY = "heads", "features", "vocabulary"
PARTIAL, REPLICATED = "partial sums", "replicated"

FITS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        HEADS: frozenset("q k v q_rope k_rope attn_scores attn_probs attn_context".split()),
        FEATURES: frozenset("attn_context ffn_gate ffn_up ffn_swiglu embd attn_norm ffn_norm".split()),
        VOCABULARY: frozenset({"logits"}),
        PARTIAL: frozenset("embd attn_out ffn_out".split()),
        REPLICATED: frozenset(POINTS),
    }
)
"""Each way of cutting, and the points that can be cut so."""

NOT_SUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "expert": "expert parallel",
        "sequence": "sequence parallel",
        "token": "sequence parallel",
        "row": "sequence parallel",
        "context": "context parallel",
        "batch": "data parallel",
    }
)
"""How a word of a cut begins that we know of and do not read, and what it is called."""


_MOST_BYTES = 1 << 20
"""Of a plan, which has some twenty lines."""


@dataclass(frozen=True)
class Cut:
    """How one point is cut.

    Attributes:
        how: "heads", "features", "vocabulary", "partial sums" or "replicated".
        lengths: how many of the model's own each rank of a stage has; None: as many as its dump holds.
    """

    how: str
    lengths: tuple[int, ...] | None = None

    @property
    def is_shard(self) -> bool:
        """Whether each rank has a piece of the tensor."""
        return self.how in (HEADS, FEATURES, VOCABULARY)


DEFAULT: Mapping[str, Cut] = MappingProxyType(
    {
        **dict.fromkeys(POINTS, Cut(REPLICATED)),
        **dict.fromkeys("q k v q_rope k_rope attn_scores attn_probs".split(), Cut(HEADS)),
        **dict.fromkeys("attn_context ffn_gate ffn_up ffn_swiglu".split(), Cut(FEATURES)),
        **dict.fromkeys("attn_out ffn_out".split(), Cut(PARTIAL)),
        "logits": Cut(VOCABULARY),
    }
)
"""Matrices cut by their outputs before attention and in the feed-forward's first half, by their inputs after
it: the plan of Megatron-LM, and of nearly everybody since."""


@dataclass(frozen=True)
class Plan:
    """How a model lies over ranks.

    Attributes:
        cuts: of each point by its neutral name.
        stages: the blocks of each pipeline stage; empty: as the dumps have them.
        path: where it was read, for commands; "" for the default.
    """

    cuts: Mapping[str, Cut] = field(default_factory=lambda: DEFAULT)
    stages: tuple[range, ...] = ()
    path: str = ""


def read_plan(path: str | Path) -> Plan:
    """Read a plan.

    Raises:
        OptionError: a file that cannot be read, a line that says nothing, a point or a cut that there is not,
            a cut that a point cannot have, or one that is not supported.
    """
    text = read_text(path, OptionError, "a plan, lines of text", most=_MOST_BYTES)
    cuts, stages = dict(DEFAULT), list[range]()
    for number, line in enumerate(text.splitlines(), 1):
        said = line.partition("#")[0].strip()
        if not said:
            continue
        key, colon, value = (part.strip() for part in said.partition(":"))
        where = f"{path}, line {number}"
        if not colon or not value:
            raise OptionError(where, got=quoted(said), wanted="a point and how it is cut, such as q: heads")
        if key == "blocks":
            stages += [_blocks(one, where) for one in value.split(",")]
        else:
            cuts |= {point: _cut(point, value, where) for point in _points(key, where)}
    _check_stages(stages, str(path))
    return Plan(MappingProxyType(cuts), tuple(stages), str(path))


def _points(key: str, where: str) -> list[str]:
    """One name, or several with spaces or commas between."""
    names = [re.sub(r"^blk\.(\{N\}|\*)\.", "", name) for name in re.split(r"[\s,]+", key)]
    for name in names:
        if name not in POINTS:
            if refused := _refused(name):
                raise OptionError(
                    where, got=f"{key}, {refused}", wanted="a plan without: it is not supported"
                )
            raise OptionError(where, got=quoted(name), wanted="blocks, or one of " + ", ".join(POINTS))
    return names


def _refused(words: str) -> str | None:
    found = (
        name
        for word in words.lower().split()
        for start, name in NOT_SUPPORTED.items()
        if word.startswith(start)
    )
    return next(found, None)


def _cut(point: str, value: str, where: str) -> Cut:
    how = re.sub(r"[\s,0-9]+$", "", value).replace("_", " ").replace("-", " ").lower()
    numbers = tuple(int(one[:9]) for one in re.findall(r"[0-9]+", value[len(how) :]))
    how = {"partial": PARTIAL, "partial sum": PARTIAL, "vocab": VOCABULARY, "head": HEADS}.get(how, how)
    if how not in FITS:
        refused = _refused(how)
        wanted = ", ".join(FITS)
        if refused:
            raise OptionError(
                f"{where}: {point}", got=refused, wanted=wanted, hint=f"{refused} is not supported"
            )
        raise OptionError(f"{where}: {point}", got=quoted(value), wanted=wanted)
    if point not in FITS[how]:
        fitting = ", ".join(name for name, points in FITS.items() if point in points)
        raise OptionError(f"{where}: {point}", got=how, wanted=fitting)
    if numbers and how in (PARTIAL, REPLICATED):
        raise OptionError(f"{where}: {point}", got=quoted(value), wanted=f"{how} alone, which has no lengths")
    return Cut(how, numbers or None)


def _blocks(text: str, where: str) -> range:
    found = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9}))?\s*", text)
    if found is None or int(found[2] or found[1]) < int(found[1]):
        raise OptionError(f"{where}: blocks", got=quoted(text.strip()), wanted="a range, such as 0-1")
    return range(int(found[1]), int(found[2] or found[1]) + 1)


def _check_stages(stages: list[range], path: str) -> None:
    next_one = 0
    for stage in stages:
        if stage.start != next_one:
            got = f"a stage from {stage.start} where the one before ends at {next_one - 1}"
            raise OptionError(f"{path}: blocks", got=got, wanted="every block once, from 0 on, in order")
        next_one = stage.stop
