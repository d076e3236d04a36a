"""The one sentence of a report that somebody must read, and the failures behind it, from the JSON alone.

JUnit, annotations and the Markdown summary all begin with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from llama_ckpt.results import SIDE_BY_SIDE

__all__ = ["Failure", "Record", "failures", "headline"]

Record: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """One thing that is wrong: where ("" for the whole dump), what is said of it, and what to do ("")."""

    where: str
    sentence: str
    hint: str = ""


def headline(report: Record) -> str:
    """The verdict and its reason in one line.

    Args:
        report: the JSON of a ladder's, a comparison's or several dumps' report.
    """
    if report.get("kind") in ("comparison", SIDE_BY_SIDE):
        return f"{report['verdict']}: {report['reason']}"
    failed = list(failures(report))
    tried = [one for one in report["checkpoints"] if one["verdict"] in ("pass", "fail")]
    passed = sum(one["verdict"] == "pass" for one in tried)
    counts = f"{passed} of {len(tried)} checkpoints pass"
    return f"fail: {failed[0].where}: {failed[0].sentence}; {counts}" if failed else f"pass: {counts}"


def failures(report: Record) -> Iterator[Failure]:
    """What is wrong, what to look at first at the front; what is only inherited is left out."""
    if report.get("kind") == "comparison":
        yield from _of_a_dump(report)
        return
    if report.get("kind") == SIDE_BY_SIDE:
        for one in report["dumps"]:
            of_it = list(failures(one["report"]))[:1]
            yield from (replace(found, where=f"{one['name']}: {found.where}") for found in of_it)
        return
    for one in report["checkpoints"]:
        if one["verdict"] == "fail":
            yield Failure(f"checkpoint {one['id']}", _of_a_checkpoint(one), f"llama-ckpt explain {one['id']}")


def _of_a_dump(report: Record) -> Iterator[Failure]:
    said = {one["point"]: one["sentence"] for one in reversed(report["diagnoses"]) if one["sentence"]}
    if report["first_wrong"]:
        yield Failure(report["first_wrong"], report["reason"])
    for finding in report["findings"]:
        yield Failure(finding["point"], finding["message"], finding["hint"])
    for point in report["points"]:
        own = point["made"] in ("here", "between") and point["name"] != report["first_wrong"]
        if own and point["name"] in said:
            yield Failure(point["name"], said[point["name"]])


def _of_a_checkpoint(record: Record) -> str:
    """The first failing point and what it looks like; without a point, the reason."""
    failing = [point for point in record["points"] if point["verdict"] == "fail"]
    if not failing:
        return str(record["reason"])
    looks = next((one["sentence"] for one in record["diagnoses"] if one["sentence"]), "")
    return f"{failing[0]['name']}: {looks or failing[0]['reason']}"
