"""A report as JUnit XML, which every CI server reads.

A suite for each checkpoint (one for a compared dump, with what the lint found), a case for each kind of
point and of error, own or total; a failing case names the first point that fails and how many do. The case of
the first wrong point begins with the bug that it looks like; what is only inherited is skipped, with a word.
Elements and attributes are those that the schema of Jenkins' xUnit plugin (junit-10.xsd), pytest's xunit2
and GitLab have in common.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

from llama_ckpt.report.headline import Record

__all__ = ["junit"]


def junit(report: Record) -> str:
    """The report as an XML document.

    Args:
        report: the JSON of a ladder's or of a comparison's report.
    """
    root = ElementTree.Element("testsuites", name="llama_ckpt")
    suites = (
        [_compared(report)] if report.get("kind") == "comparison" else map(_checkpoint, report["checkpoints"])
    )
    totals = {"tests": 0, "failures": 0, "errors": 0}  # no "skipped": Jenkins refuses it here
    for suite in suites:
        root.append(suite)
        totals = {key: value + int(suite.get(key, "0")) for key, value in totals.items()}
    for key, value in totals.items():
        root.set(key, str(value))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(name: str, seconds: float, cases: Sequence[ElementTree.Element]) -> ElementTree.Element:
    suite = ElementTree.Element(
        "testsuite", name=name, time=f"{seconds:.3f}", tests=str(len(cases)), errors="0"
    )
    for kind in ("failure", "skipped"):
        found = sum(case.find(kind) is not None for case in cases)
        suite.set("failures" if kind == "failure" else kind, str(found))
    suite.extend(cases)
    return suite


def _case(suite: str, name: str, failure: str | None = None, detail: str = "") -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=f"llama_ckpt.{suite}", name=name)
    if failure is not None:
        element = ElementTree.SubElement(case, "failure", message=_allowed(failure))
        element.text = _allowed(detail or failure)
    return case


def _skipped(suite: str, name: str, why: str) -> ElementTree.Element:
    case = _case(suite, name)
    ElementTree.SubElement(case, "skipped", message=_allowed(why))
    return case


def _allowed(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def _checkpoint(record: Record) -> ElementTree.Element:
    """One checkpoint: its points by recording, own or total, and kind."""
    name = f"{record['id']} {record['title']}"
    if record["verdict"] in ("skipped", "hidden"):
        return _suite(name, record["seconds"], [_skipped(record["id"], record["title"], record["reason"])])
    groups: dict[str, list[Record]] = {}
    for point in record["points"]:
        groups.setdefault(f"{point['dump']} {point['error_kind']} {_kind(point['name'])}", []).append(point)
    looks = {one["point"]: one["sentence"] for one in reversed(record["diagnoses"]) if one["sentence"]}
    cases = [_grouped(record["id"], group, points, looks) for group, points in groups.items()]
    if record["verdict"] == "fail" and not any(case.find("failure") is not None for case in cases):
        cases.append(_case(record["id"], record["title"], record["reason"]))
    return _suite(name, record["seconds"], cases)


def _kind(name: str) -> str:
    return re.sub(r"^blk\.\d+\.", "", name)


def _grouped(
    suite: str, name: str, points: Sequence[Record], looks: Mapping[str, str]
) -> ElementTree.Element:
    """A kind of point; `looks`: point to the bug that it looks like, which then stands in the first line."""
    failing = [point for point in points if point["verdict"] == "fail"]
    if not failing:
        return _case(suite, name)
    if all(point.get("made") == "inherited" for point in failing):
        return _skipped(suite, name, f"inherited: {failing[0]['name']} is off because its inputs are")
    named = [point for point in failing if point["name"] in looks]
    failing = named + [point for point in failing if point["name"] not in looks]
    lines = [f"{point['name']}: {point['reason']}" for point in failing[:20]]
    lines += [f"and {len(failing) - 20} more"] if len(failing) > 20 else []
    said = looks.get(failing[0]["name"], failing[0]["reason"])
    said = said if said.startswith(failing[0]["name"]) else f"{failing[0]['name']}: {said}"
    message = f"{said}; {len(failing)} of {len(points)} fail"
    return _case(suite, name, message, "\n".join(lines))


def _compared(report: Record) -> ElementTree.Element:
    """A dump: each finding of the lint, then the points by kind, then the greedy tokens."""
    cases = [
        _case("lint", f"{finding['kind']} {finding['point']}".strip(), finding["message"], finding["hint"])
        for finding in report["findings"]
    ]
    groups: dict[str, list[Record]] = {}
    for point in report["points"]:
        groups.setdefault(point["point"], []).append(point | {"reason": _reason(point)})
    looks = {one["point"]: one["sentence"] for one in reversed(report["diagnoses"]) if one["sentence"]}
    if report["first_wrong"]:
        looks[report["first_wrong"]] = report["reason"]
    cases += [_grouped("points", kind, points, looks) for kind, points in groups.items()]
    for kind in dict.fromkeys(_kind(name) for name in report["skipped"]):
        if kind not in groups:
            cases.append(_skipped("points", kind, "not recorded"))
    cases += list(_tokens(report))
    if report["verdict"] == "fail" and not any(case.find("failure") is not None for case in cases):
        cases.append(_case("points", "verdict", report["reason"]))
    return _suite(str(report["yours"]["path"]), report["seconds"], cases)


def _reason(point: Record) -> str:
    """Why a point fails, with whether the error is made there."""
    leading = next((one for one in (point["own"], point["total"]) if one and one["verdict"] == "fail"), None)
    return f"{point['made']}: {leading['reason']}" if leading else ""


def _tokens(report: Record) -> Iterator[ElementTree.Element]:
    if not report["tokens"]:
        return
    wrong = [token for token in report["tokens"] if token["blame"] == "yours"]
    text = "; ".join(f"after row {t['row']}: got {t['got']}, wanted {t['wanted']}" for t in wrong[:20])
    yield _case("tokens", "greedy tokens", text if wrong else None)
