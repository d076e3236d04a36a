"""A map from the names, axes and layouts of somebody's dump to the neutral ones; a small TOML file.

    first_block = 1                                    # their first block is number 1; 0 without it

    [[tensor]]
    name = "model.layers.{N}.self_attn.q_proj"         # {N} is the block's number
    point = "blk.{N}.q"
    axes = "1 token (head head_dim)"                   # as they store it, slowest first
    layout = "half-split"                              # pairs (i, i + head_dim/2), as Hugging Face has them

`axes` names the axes as they lie in the file, row-major: `1` for an axis of size one, parentheses around
axes that lie flat in one, and the words of `points.py` (token, head, kv_head, head_dim, key, width,
q_width, ffn, vocab). Without it the axes are the point's own. `layout` is one or a list of:

    half-split    pairs of RoPE are (i, i + head_dim/2): put into GGUF's order (2i, 2i+1)
    ne            the shape is written fastest axis first, as ggml prints it; the bytes are row-major
    scaled        scores after the scale 1/sqrt(head_dim): multiplied by sqrt(head_dim)

numpy only; reads one small file.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.errors import OptionError
from llama_ckpt.outside import MOST_LAYERS, quoted, read_text
from llama_ckpt.plain_text import shortened
from llama_ckpt.points import ALL_BLOCK_POINTS, ALL_POINTS, MODEL_POINTS, block_point, split_name

__all__ = ["LAYOUTS", "DumpMap", "Rule", "interleave_halves", "pair_kind", "read_map"]

MOST_BYTES = 1 << 20
"""Of a map, which has some twenty rules."""

MOST_RULES = 2048
"""Each is tried on each tensor's name."""

MOST_NAME = 256
"""Characters of a name, or of its axes."""

LAYOUTS = ("half-split", "ne", "scaled")
"""What a map may say of how values are stored."""

BLOCK = "{N}"


def interleave_halves(x: NDArray[Any]) -> NDArray[Any]:
    """Put the last axis from half-split order (all first members, then all second) into pairs."""
    half = x.shape[-1] // 2
    return np.stack((x[..., :half], x[..., half:]), axis=-1).reshape(x.shape)


def pair_kind(before: NDArray[Any], after: NDArray[Any], positions: Sequence[int]) -> str | None:
    """Which features RoPE turned together: "neighbours", "half-split", or None where nothing tells.

    A rotation keeps the length of each pair, whatever its angle. One token at position 0 is not turned,
    and heads of two features have one pair in either order.

    Args:
        before, after: `[n, heads, head_dim]`, q and q_rope, in one layout.
        positions: of the tokens.
    """
    turned = np.asarray(positions) != 0
    if not turned.any() or before.shape[-1] < 4:
        return None
    a, b = before[turned].astype(np.float64), after[turned].astype(np.float64)
    half = a.shape[-1] // 2
    lengths = {
        "neighbours": [np.hypot(x[..., 0::2], x[..., 1::2]) for x in (a, b)],
        "half-split": [np.hypot(x[..., :half], x[..., half:]) for x in (a, b)],
    }
    off = {k: float(np.linalg.norm(x - y) / (np.linalg.norm(x) or 1)) for k, (x, y) in lengths.items()}
    kind = min(off, key=off.__getitem__)
    other = max(off.values())
    return kind if off[kind] < 0.03 and other > 3 * off[kind] else None


@dataclass(frozen=True)
class Rule:
    """What one kind of tensor is called and how it lies in their file.

    Attributes:
        name: their name, `{N}` for the block's number.
        point: the neutral name, `{N}` for the block's number.
        axes: their axes, slowest first, each a tuple of the axes that lie flat in it; None: the point's.
        layout: of `LAYOUTS`.
    """

    name: str
    point: str
    axes: tuple[tuple[str, ...], ...] | None = None
    layout: tuple[str, ...] = ()

    def match(self, name: str, first_block: int = 0) -> str | None:
        """The full neutral name of their tensor `name`; None where it is not of this rule."""
        pattern = re.escape(self.name).replace(re.escape(BLOCK), r"([0-9]{1,9})", 1)
        found = re.fullmatch(pattern, name)
        if not found:
            return None
        if not found.groups():
            return self.point
        number = int(found.group(1)) - first_block
        return self.point.replace(BLOCK, str(number)) if number >= 0 else None

    def apply(self, x: NDArray[Any], sizes: Mapping[str, int]) -> NDArray[Any]:
        """Their array with the point's own axes; as it is stored where it does not fit them.

        Args:
            x: as it is stored.
            sizes: how long each axis is, by its name.
        """
        if "ne" in self.layout:
            x = x.reshape(x.shape[::-1])
        if self.axes is not None:
            x = self._ordered(x, self.axes, {**sizes, "1": 1})
        if "half-split" in self.layout and x.shape[-1] % 2 == 0:
            x = interleave_halves(x)
        if "scaled" in self.layout:
            x = x * math.sqrt(sizes["head_dim"])
        return x

    def _ordered(
        self, x: NDArray[Any], axes: Sequence[tuple[str, ...]], sizes: Mapping[str, int]
    ) -> NDArray[Any]:
        if x.shape != tuple(math.prod(sizes[axis] for axis in group) for group in axes):
            return x  # whoever compares shapes says so, with the shape as it is in the file
        flat = [axis for group in axes for axis in group]
        own = ALL_POINTS[split_name(self.point.replace(BLOCK, "0"))[1]].axes
        order = [flat.index(axis) for axis in own] + [i for i, axis in enumerate(flat) if axis == "1"]
        ordered = x.reshape([sizes[axis] for axis in flat]).transpose(order)
        return ordered.reshape([sizes[axis] for axis in own])


@dataclass(frozen=True)
class DumpMap:
    """Rules for a whole dump; an empty one takes every name as it is.

    Attributes:
        rules: the first that matches counts.
        first_block: the number of their first block.
        path: where it was read, for messages.
    """

    rules: tuple[Rule, ...] = ()
    first_block: int = 0
    path: str = ""

    def find(self, name: str) -> tuple[str, Rule] | None:
        """The neutral name of their tensor and its rule; None where nothing says what it is."""
        for rule in self.rules:
            if (point := rule.match(name, self.first_block)) is not None:
                return point, rule
        number, point = split_name(name)
        if number is None:
            return (name, Rule(name, name)) if point in _OUTSIDE_BLOCKS else None
        if point not in _IN_BLOCKS or number < self.first_block:
            return None
        neutral = block_point(number - self.first_block, point)
        return neutral, Rule(name, neutral)


_IN_BLOCKS = {point.name for point in ALL_BLOCK_POINTS}
_OUTSIDE_BLOCKS = {point.name for point in MODEL_POINTS}


def read_map(path: str | Path) -> DumpMap:
    """Read a map.

    Raises:
        OptionError: no TOML, or a name, point, axis or layout that there is not.
    """
    document = _toml(path)
    known = {"first_block", "tensor"}
    if extra := sorted(document.keys() - known):
        raise OptionError(f"{path}", got=quoted(extra[0]), wanted="first_block and [[tensor]]")
    first = document.get("first_block", 0)
    if type(first) is not int or not 0 <= first <= MOST_LAYERS:
        wanted = f"a whole number from 0 to {MOST_LAYERS}"
        raise OptionError(f"{path}: first_block", got=quoted(first), wanted=wanted)
    tables = document.get("tensor", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise OptionError(f"{path}: tensor", got=quoted(tables), wanted="[[tensor]], with two brackets")
    if len(tables) > MOST_RULES:
        raise OptionError(f"{path}: [[tensor]]", got=len(tables), wanted=f"{MOST_RULES} at most")
    rules = tuple(_rule(table, f"{path}: [[tensor]] {number + 1}") for number, table in enumerate(tables))
    return DumpMap(rules, first, str(path))


def _toml(path: str | Path) -> dict[str, Any]:
    text = read_text(path, OptionError, "a map, a TOML file", most=MOST_BYTES)
    try:
        return tomllib.loads(text)
    except RecursionError:
        reason = "brackets within brackets without end"
    except (ValueError, OverflowError) as error:  # a damaged date, a number of thousands of digits
        reason = str(error)
    raise OptionError(f"{path} cannot be read as a map", got=shortened(reason, 120), wanted="a TOML file")


def _rule(table: Mapping[str, Any], where: str) -> Rule:
    for key in table:
        if key not in ("name", "point", "axes", "layout"):
            raise OptionError(where, got=quoted(key), wanted="name, point, axes or layout")
    name, point = table.get("name"), table.get("point")
    if not isinstance(name, str) or not isinstance(point, str):
        raise OptionError(where, got="no name or no point", wanted="both, each a text")
    if max(len(name), len(point)) > MOST_NAME:
        raise OptionError(where, got="a name of more than that", wanted=f"{MOST_NAME} characters at most")
    if name.count(BLOCK) > 1 or name.count(BLOCK) != point.count(BLOCK):
        raise OptionError(where, got=f"{name} and {point}", wanted="{N} once in both, or in neither")
    number, neutral = split_name(point.replace(BLOCK, "0"))
    if neutral not in (_OUTSIDE_BLOCKS if number is None else _IN_BLOCKS):
        raise OptionError(f"{where}: point", got=point, wanted="a point, such as blk.{N}.q or logits")
    layout = table.get("layout", [])
    layouts = tuple(layout) if isinstance(layout, list) else (layout,)
    for one in layouts:
        if one not in LAYOUTS:
            raise OptionError(f"{where}: layout", got=quoted(one), wanted="one of " + ", ".join(LAYOUTS))
    axes = table.get("axes")
    return Rule(name, point, None if axes is None else _axes(axes, neutral, f"{where}: axes"), layouts)


def _axes(text: Any, point: str, where: str) -> tuple[tuple[str, ...], ...]:
    """`"1 token (head head_dim)"` as groups; every axis of the point must be there once."""
    words = re.findall(r"[()]|\w+|\S", text) if isinstance(text, str) and len(text) <= MOST_NAME else ["?"]
    groups = _groups(words)
    if groups is None:
        raise OptionError(where, got=quoted(text), wanted='words as in "1 token (head head_dim)"')
    named = sorted(axis for group in groups for axis in group if axis != "1")
    wanted = ALL_POINTS[point].axes
    if named != sorted(wanted):
        raise OptionError(where, got=text, wanted=f"{' '.join(wanted)}, each once, in any order")
    return groups


def _groups(words: Sequence[str]) -> tuple[tuple[str, ...], ...] | None:
    """Words, those in parentheses together, in one walk; None where they are no such thing."""
    groups: list[tuple[str, ...]] = []
    inner: list[str] | None = None
    for word in words:
        if word == "(" and inner is None:
            inner = []
        elif word == ")" and inner:
            groups.append(tuple(inner))
            inner = None
        elif not re.fullmatch(r"\w+", word):
            return None
        elif inner is not None:
            inner.append(word)
        else:
            groups.append((word,))
    return tuple(groups) if groups and inner is None else None
