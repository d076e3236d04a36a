"""A comparison and a validation as lines, JUnit and a page: everything is there, and readable anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import reference_dumps
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison, LayerErrors
from llama_ckpt.judging.error_maps import error_maps
from llama_ckpt.ladder.climb import validate
from llama_ckpt.ladder.report import LadderReport
from llama_ckpt.report import charts
from llama_ckpt.report.comparison import comparison_lines, strip
from llama_ckpt.report.github import workflow_commands
from llama_ckpt.report.html import page
from llama_ckpt.report.junit import junit
from llama_ckpt.report.markdown import markdown
from llama_ckpt.report.view import Curve, view
from tests.comparing.their_programs import bug, right_run, run, write

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A dump with a bug in one block, a point missing, and markup in its name."""
    tensors = run(wrong=bug("rope-half-split"), blocks=[7])
    tensors["blk.9.v"][0, 0, 0] = np.nan
    del tensors["blk.30.ffn_up"]
    return compare_dump(
        write(tmp_path_factory.mktemp("a<b>&c"), tensors, producer="<script>alert(1)</script>")
    )


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare_dump(write(tmp_path_factory.mktemp("right"), right_run()))


@pytest.fixture(scope="module")
def ladder() -> LadderReport:
    def wrong_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight

    dumps = reference_dumps.dump_folder("f32")
    return validate("1", implementation=wrong_norm, dumps=dumps, device="cpu", maps=True)


def text(report: Comparison) -> str:
    return "\n".join("".join(part for part, _ in line) for line in comparison_lines(report))


# -- the terminal ------------------------------------------------------------------------------------


def test_the_terminal_says_everything(wrong: Comparison) -> None:
    shown = text(wrong)
    for wanted in (
        "first wrong    blk.7.q_rope  made here: its inputs are right",
        "given your q",
        "looks like     RoPE turns pairs (i, i+d/2) instead of (2i, 2i+1): remaining error",
        "who is off     yours",
        "would pass     with ",
        "in the dump    not_finite  blk.9.v[0, 0, 0] is nan",
        "in the dump    missing_point  blk.30.ffn_up is missing",
        "compared 546 of 547 points",
        "next           llama-ckpt explain q_rope   # what people get wrong there",
        "note           not declared by the dump, so not checked: weights_sha256",
    ):
        assert wanted in shown, wanted
    assert re.search(r"^FAIL  blk.7.q_rope is the first wrong point, made here: RoPE turns", shown, re.M)


def test_the_strip_shows_own_against_inherited(wrong: Comparison) -> None:
    lines = {
        line[0][0].strip(): "".join(part for part, _ in line[1:]) for line in strip(wrong.layers) if line
    }
    own, inherited = lines["own"], lines["inherited"]
    assert len(own) == len(inherited) == 32
    assert [number for number, cell in enumerate(own) if cell != "·"][:1] == [7]
    assert set(inherited[:8]) == {"·"} and "·" not in inherited[8:]


def test_a_strip_goes_on_in_the_next_row() -> None:
    layers = [
        LayerErrors(n, own=1e-7, inherited=1e-7, total=1e-7, own_limit=1e-6, limit=1e-6) for n in range(80)
    ]
    rows = ["".join(part for part, _ in line) for line in strip(layers)]
    assert len(rows) == 10 and not any("reference" in row for row in rows)
    assert rows[1].strip() == "0123456789" * 6 + "0123" and rows[6].strip() == "4567890123456789"


def test_what_passes_is_short(right: Comparison) -> None:
    shown = text(right)
    assert re.search(r"^pass  every point within its limits\ncompared 547 of 547", shown, re.M)
    assert "first wrong" not in shown and "next  " not in shown and "in the dump" not in shown


# -- JUnit -------------------------------------------------------------------------------------------


def cases(xml: str) -> dict[str, str | None]:
    """Each case's name and the message of its failure."""
    root = ElementTree.fromstring(xml.encode())
    assert int(root.get("tests", "0")) == len(list(root.iter("testcase"))) > 0
    assert int(root.get("failures", "0")) == len(list(root.iter("failure")))
    found = {}
    for case in root.iter("testcase"):
        failure = case.find("failure")
        found[f"{case.get('classname')} {case.get('name')}"] = (
            None if failure is None else failure.get("message")
        )
    return found


def test_junit_of_a_comparison(wrong: Comparison, right: Comparison) -> None:
    record = wrong.to_json()
    found = cases(junit(record))
    assert "blk.9.v[0, 0, 0] is nan" in str(found["llama_ckpt.lint not_finite blk.9.v"])
    assert str(found["llama_ckpt.points q_rope"]).startswith(record["reason"])
    failing = {name.split()[-1] for name, message in found.items() if message and ".points" in name}
    assert failing == {one["point"] for one in record["points"] if one["made"] in ("here", "between")}
    assert found["llama_ckpt.points embd"] is None
    assert not any(cases(junit(right.to_json())).values())


def test_junit_of_a_validation(ladder: LadderReport) -> None:
    found = cases(junit(ladder.to_json()))
    assert "epsilon is 1e-6 for 1e-5" in str(found["llama_ckpt.1 f32/hello own attn_norm"])
    assert any(message is None for message in found.values())


def test_junit_of_what_was_skipped_and_of_what_has_no_points() -> None:
    skipped = {
        "id": "2",
        "title": "QKV",
        "verdict": "skipped",
        "reason": "1 failed",
        "seconds": 0.0,
        "points": [],
        "diagnoses": [],
    }
    failed = {**skipped, "id": "1", "verdict": "fail", "reason": "nothing\x00 was compared"}
    root = ElementTree.fromstring(junit({"checkpoints": [skipped, failed]}).encode())
    assert root.get("failures") == "1" and root.find("testsuite").get("skipped") == "1"  # type: ignore[union-attr]


JENKINS = {
    "testsuites": ({"name", "time", "tests", "failures", "errors", "disabled"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "time", "skipped", "timestamp", "hostname", "id", "package"},
        {"properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": (
        {"name", "classname", "time", "file", "line"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "failure": ({"type", "message"}, set()),
    "skipped": ({"type", "message"}, set()),
}
"""What junit-10.xsd of Jenkins' xUnit plugin allows: an element's attributes and children."""


def test_junit_is_what_jenkins_and_gitlab_take(wrong: Comparison, ladder: LadderReport) -> None:
    for record in (wrong.to_json(), ladder.to_json()):
        root = ElementTree.fromstring(junit(record).encode())
        assert root.tag == "testsuites"
        for element in root.iter():
            attributes, children = JENKINS[element.tag]
            assert set(element.keys()) <= attributes, element.tag
            assert {child.tag for child in element} <= children, element.tag
        for case in root.iter("testcase"):
            assert case.get("name") and case.get("classname") and len(case) <= 1
        for suite in root.iter("testsuite"):
            for kind in ("failure", "skipped"):
                counted = suite.get("failures" if kind == "failure" else kind)
                assert counted == str(len(list(suite.iter(kind))))


# -- annotations and Markdown ------------------------------------------------------------------------


def test_annotations_say_the_bug_and_nothing_of_what_passes(
    wrong: Comparison, right: Comparison, ladder: LadderReport
) -> None:
    found = list(workflow_commands(wrong.to_json()))
    assert found[0].startswith(
        "::error title=llama_ckpt%3A blk.7.q_rope::blk.7.q_rope is the first wrong point"
    )
    assert "RoPE turns pairs" in found[0] and len(found) <= 10
    assert all("\n" not in line and re.match(r"::error title=[^:,]*::", line) for line in found)
    assert list(workflow_commands(right.to_json())) == []
    assert "epsilon" in next(iter(workflow_commands(ladder.to_json())))


def test_a_message_of_several_lines_stays_one_annotation() -> None:
    record = {"checkpoints": [{"id": "1", "verdict": "fail", "reason": "50%\nof it", "points": []}]}
    (line,) = workflow_commands({**record, "checkpoints": [{**record["checkpoints"][0], "diagnoses": []}]})
    assert line == "::error title=llama_ckpt%3A checkpoint 1::50%25%0Aof it; llama-ckpt explain 1"


def test_markdown_begins_with_the_bug(wrong: Comparison, right: Comparison, ladder: LadderReport) -> None:
    lines = markdown(wrong.to_json()).splitlines()
    assert lines[0].endswith("FAIL") and lines[2].startswith("blk.7.q\\_rope is the first wrong point")
    assert any(line.startswith("| `blk.7.q_rope` | here |") for line in lines)
    assert not any("<script>" in line for line in lines)
    assert len(markdown(right.to_json()).splitlines()) <= 6
    assert any(line.startswith("- checkpoint 1: ") for line in markdown(ladder.to_json()).splitlines())


# -- the page ----------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects tags and text, and whether every tag is closed in order."""

    EMPTY = {"meta", "line", "circle", "rect", "polyline"}

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY or self.get_starttag_text() and not self.get_starttag_text().endswith("/>"):
            if tag not in self.EMPTY:
                self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.EMPTY:
            return
        assert self.open and self.open[-1] == tag, f"{tag} closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def pages(wrong: Comparison, right: Comparison, ladder: LadderReport) -> dict[str, str]:
    return {"wrong": page(wrong.to_json()), "right": page(right.to_json()), "ladder": page(ladder.to_json())}


@pytest.mark.parametrize("which", ["wrong", "right", "ladder"])
def test_the_page_stands_alone(which: str, pages: dict[str, str]) -> None:
    read = Reader(pages[which])
    assert not read.open, "every tag is closed"
    names = {tag for tag, _ in read.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "base"}
    for tag, attributes in read.tags:
        assert not {"src", "onload", "onclick", "xlink:href"} & set(attributes), (tag, attributes)
        if "href" in attributes:
            assert (attributes["href"] or "").startswith("#"), attributes
    style = pages[which].partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    for wanted in ("prefers-color-scheme: dark", "@media print", "max-width: 640px"):
        assert wanted in style
    assert len(pages[which]) < 1_000_000


def test_the_page_has_every_part(pages: dict[str, str]) -> None:
    read = Reader(pages["wrong"])
    for heading in (
        "The dump itself",
        "What it looks like",
        "Growth of the error",
        "Layers and points",
        "Tokens and layers",
        "Residuals",
        "Who is off",
        "Likeliest next tokens",
        "Provenance",
    ):
        assert heading in read.text, heading
    assert "RoPE turns pairs (i, i+d/2) instead of (2i, 2i+1)" in read.text
    assert "<script>alert(1)</script>" in read.text, "shown as text, never as markup"
    labels = {attributes.get("aria-label") for tag, attributes in read.tags if tag == "svg"}
    assert {"error by block", "own error over what is allowed, point by block"} <= labels
    assert any(
        label.startswith("error of the first wrong tensor, tokens by heads") for label in labels if label
    )
    targets = {attributes["href"] for tag, attributes in read.tags if tag == "a"}
    assert targets == {f"#{attributes['id']}" for tag, attributes in read.tags if tag == "section"}


def test_what_is_inherited_is_folded(wrong: Comparison, pages: dict[str, str]) -> None:
    shown = re.sub(r"<details>.*?</details>", "", pages["wrong"], flags=re.S)
    inherited = [point.name for point in wrong.points if point.made == "inherited"]
    assert inherited and not any(f">{name} total<" in shown for name in inherited)
    assert all(f">{name} total<" in pages["wrong"] for name in inherited[:5])
    assert wrong.first_wrong is not None and f">{wrong.first_wrong.name} own<" in shown


def test_the_page_says_the_command_where_it_knows_it(wrong: Comparison) -> None:
    text = page(wrong.to_json(), [("command", "llama-ckpt compare <mine>"), ("made", "2031-02-03")])
    assert "llama-ckpt compare &lt;mine&gt;" in text and "2031-02-03" in text


def test_where_in_a_tensor_its_error_lies() -> None:
    o = np.ones((3, 2, 70))
    x = o.copy()
    x[1, 1, 69] += 8e-3
    by_head, by_feature = error_maps(x, o, 1e-3, ("token", "head", "head_dim"))
    assert (by_head["rows"], by_head["columns"], by_head["step"]) == ("token", "head", 1)
    assert np.argwhere(np.array(by_head["ratios"])).tolist() == [[1, 1]]
    assert by_feature["step"] == 3 and np.shape(by_feature["ratios"]) == (2, 24)
    assert np.argwhere(np.array(by_feature["ratios"])).tolist() == [[1, 23]]
    assert np.isclose(by_head["ratios"][1][1], 8 / 70**0.5)
    assert (
        error_maps(x[0], o, 1e-3, ("token", "width")) == [] and error_maps(x, o * 0, 1e-3, ("a",) * 3) == []
    )


def test_the_page_of_a_ladder(pages: dict[str, str]) -> None:
    read = Reader(pages["ladder"])
    for wanted in ("Failing checkpoints", "The ladder", "attn_norm of f32/hello", "llama-ckpt explain 1"):
        assert wanted in read.text, wanted
    assert "the norm's epsilon is 1e-6 for 1e-5" in read.text


def test_the_view_has_points_in_the_order_of_the_flow(ladder: LadderReport) -> None:
    seen = view(ladder.to_json())
    assert seen.points() == ["attn_norm", "ffn_norm", "output_norm"] and seen.n_blocks == 32
    assert [curve.name for curve in seen.curves] == ["own", "total", "reference", "allowed"]


def test_levels_of_a_heat_map() -> None:
    levels = [charts.level(ratio) for ratio in (None, 0.0, 0.1, 0.4, 1.0, 1.01, 50.0, 5e2, 5e3, float("inf"))]
    assert levels == ["none", "l0", "l0", "l1", "l2", "l3", "l4", "l5", "l6", "bad"]
    assert len(charts.LEVELS) == 7


def test_a_map_of_many_rows_is_no_taller_than_a_page() -> None:
    few, many = (charts.heat_map([(f"r{n}", [(1.0, "")])] * n, "x") for n in (8, 64))
    tall = [float(re.search(r'viewBox="0 0 420 ([\d.]+)"', one)[1]) for one in (few, many)]  # type: ignore[index]
    assert tall[0] == 8 * 15 + 22 and tall[1] <= 445
    assert few.count(">r8<") == 8 and 30 <= many.count(">r64<") <= 32, "labels do not overlap"


def test_curves_leave_gaps_and_nothing_is_drawn_of_nothing() -> None:
    drawn = charts.curves([Curve("own", [1e-7, None, 0.0, 1e-6, 1e-5])], "x")
    assert drawn.count("<polyline") == 2 and drawn.count("<circle") == 3
    assert charts.curves([Curve("own", [None, None])], "x") == ""
    assert charts.heat_map([], "x") == ""


def keys(record: Any, path: str = "") -> Iterator[str]:
    if isinstance(record, dict):
        for key, value in record.items():
            yield key
            if key != "parameters":  # an operator's own
                yield from keys(value)
    elif isinstance(record, list):
        for value in record:
            yield from keys(value)


def test_every_key_of_the_json_is_documented(wrong: Comparison, ladder: LadderReport) -> None:
    documented = set(re.findall(r"`([\w.]+)`", (DOCS / "report_schema.md").read_text("utf-8")))
    for report in (wrong.to_json(), ladder.to_json()):
        missing = set(keys(report)) - documented
        assert not missing, f"docs/report_schema.md lacks {sorted(missing)}"
