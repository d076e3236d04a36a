"""Where the error of a point is made, by its two verdicts and by what was recorded before it. No tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llama_ckpt.comparing.comparison import ComparedPoint
from llama_ckpt.comparing.nearest import DataFlow, Nearest
from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.points import BLOCK_INPUT, split_name

__all__ = ["compared_point"]


def compared_point(
    name: str,
    own: PointVerdict | None,
    total: PointVerdict | None,
    since: Nearest,
    flow: DataFlow,
    recorded: Mapping[str, bool],
) -> ComparedPoint:
    """One point with what is said of where its error is made.

    Args:
        name: its full name; own, total: its verdicts; since: the nearest points before it to rely on.
        flow: what each point is made from.
        recorded: every point gone through that they recorded, and whether it can be relied on.
    """
    read = flow.step_reads(split_name(name)[1])
    full = dict(zip(read, flow.reads(name), strict=False))
    unseen = tuple(one for one in read if full.get(one) in since.unseen and one != BLOCK_INPUT)
    point = ComparedPoint(name, own, total, read, unseen, since=since)
    return replace(point, made=_made(point, flow, recorded))


def _made(point: ComparedPoint, flow: DataFlow, recorded: Mapping[str, bool]) -> Any:
    """Whether the error is made here, and from where on; what follows a NaN was not."""
    wrong_total = point.total is not None and point.total.verdict == "fail"
    if point.own is None:
        return "unknown" if wrong_total else ""
    if point.own.verdict == "pass":
        return "inherited" if wrong_total else ""
    before = flow.nearest(point.name, recorded).recorded
    if not all(recorded[name] for name in before):
        return "inherited"
    return "here" if len(point.since.unseen) == 1 else "between"
