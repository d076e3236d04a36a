"""What a result gives in Python and in a notebook, and the notebook of the examples, run."""

from __future__ import annotations

import ast
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama_ckpt as lc
from llama_ckpt.errors import MissingPartError, OptionError
from llama_ckpt.results import SavedResult, load_result
from tests.comparing.ported_llama import Port, prompt, seeded

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"
TOKENS = prompt(6)


class NoScale(Port):
    """A port whose scores are not scaled."""

    def probabilities(self, scores: Any, visible: Any) -> Any:
        return super().probabilities(scores * np.float32(self.config.head_dim**0.5), visible)


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    return NoScale(seeded()).run(TOKENS, list(range(6)))


@pytest.fixture(scope="module")
def wrong(arrays: dict[str, Any]) -> Any:
    return lc.compare(arrays, token_ids=TOKENS, model=seeded())


@pytest.fixture(scope="module")
def right() -> Any:
    return lc.compare(Port(seeded()).run(TOKENS, list(range(6))), token_ids=TOKENS, model=seeded())


def test_it_is_true_where_it_passed(right: Any, wrong: Any) -> None:
    assert right and right.passed and not wrong and not wrong.passed


def test_it_is_one_line(right: Any, wrong: Any) -> None:
    assert repr(right) == "<Comparison pass: every point within its limits>"
    assert repr(wrong).startswith("<Comparison fail: blk.0.attn_probs is the first wrong point, made here: ")
    assert all("\n" not in repr(one) and len(repr(one)) <= 200 for one in (right, wrong))


class Tags(HTMLParser):
    """Whether every tag that is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_in_a_notebook_it_is_the_pages_heart(right: Any, wrong: Any) -> None:
    for one in (right, wrong):
        text = one._repr_html_()
        assert not Tags(text).open and len(text) < 10_000 and "<script" not in text
    text = wrong._repr_html_()
    assert "FAIL" in text and "blk.0.attn_probs" in text and "▁" in right._repr_html_() + text + "▁"
    assert "layer       0" in text and "in memory" in text
    assert "PASS" in right._repr_html_()


def test_it_escapes_what_a_file_says(arrays: dict[str, Any]) -> None:
    found = lc.compare({**arrays, "logits": arrays["logits"][:, :5]}, token_ids=TOKENS, model=seeded())
    found.theirs = {**found.theirs, "path": "<script>alert(1)</script>"}
    assert "<script" not in found._repr_html_()


def test_it_is_saved_and_read(wrong: Any, right: Any, tmp_path: Path) -> None:
    for one in (wrong, right):
        one.save(tmp_path / "found.json")
        read = load_result(tmp_path / "found.json")
        assert read.to_dict() == one.to_dict() == one.to_json()
        assert (read.verdict, read.reason, read.exit_code) == (one.verdict, one.reason, one.exit_code)
        assert read._repr_html_() == one._repr_html_() and read.to_rows() == one.to_rows()
        assert read.to_html() == one.to_html(tmp_path / "found.html")
        assert (tmp_path / "found.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert repr(read) == repr(right).replace("Comparison", "SavedResult")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "[" * 100_000, '{"kind": "inspection"}', '{"kind": "comparison"}', '{"kind": []}', None],
)
def test_what_is_no_report_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "found.json").write_text(text)
    with pytest.raises(OptionError, match=r"wanted a report that save\(\) or --json wrote"):
        load_result(tmp_path / "found.json")


def test_its_rows_are_flat(wrong: Any) -> None:
    rows = wrong.to_rows()
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    failing = [row for row in rows if row["verdict"] == "fail" and row["kind"] == "own"]
    assert failing[0]["name"] == "blk.0.attn_probs" and failing[0]["made"] == "here"
    assert failing[0]["err"] > failing[0]["limit"] > 0


def test_without_pandas_a_frame_is_refused_in_a_sentence(wrong: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingPartError, match="pip install pandas, or take to_rows"):
        wrong.to_frame()


def test_a_ladder_has_the_same(tmp_path: Path) -> None:
    found = lc.validate("11", device="cpu", oracle_only=True)
    assert found and repr(found) == "<LadderReport pass: 1 of 1 checkpoints pass>"
    assert "softmax" in found._repr_html_() and not Tags(found._repr_html_()).open
    found.save(tmp_path / "found.json")
    read = load_result(tmp_path / "found.json")
    assert isinstance(read, SavedResult) and read.passed and read.verdict == "pass"
    assert found.to_rows() and found.to_rows()[0]["checkpoint"] == "11"


def test_what_is_in_memory_is_compared(arrays: dict[str, Any], wrong: Any, tmp_path: Path) -> None:
    recorder = lc.Recorder()
    for name, array in arrays.items():
        recorder.keep(name, array)
    recorder.save(tmp_path / "mine.safetensors", token_ids=TOKENS)
    of_a_file = lc.compare(tmp_path / "mine.safetensors", model=seeded())
    kept = lc.compare(recorder, token_ids=TOKENS, model=seeded())
    beside = lc.compare({**arrays, "token_ids": np.array(TOKENS)}, model=seeded())
    assert {one.reason for one in (wrong, of_a_file, kept, beside)} == {wrong.reason}
    assert all("in memory" not in step.command and "/" not in step.command for step in kept.next[:1])
    batched = {name: array[None] for name, array in arrays.items()}
    assert lc.compare(batched, token_ids=TOKENS, model=seeded()).reason == wrong.reason
    with pytest.raises(OptionError, match="wanted them with arrays or a Recorder alone"):
        lc.compare(tmp_path / "mine.safetensors", token_ids=TOKENS, model=seeded())
    with pytest.raises(OptionError, match="a dump: got int, wanted a file, arrays by name"):
        lc.compare(5, model=seeded())  # type: ignore[arg-type]


def test_a_map_goes_by_either_name(arrays: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "map.toml"
    path.write_text('[[tensor]]\nname = "head"\npoint = "logits"\n')
    mine = {"head": arrays["logits"]}
    for options in ({"map": path}, {"names": path}):
        found = lc.compare(mine, token_ids=TOKENS, model=seeded(), **options)  # type: ignore[arg-type]
        assert [point.name for point in found.points] == ["logits"]
    with pytest.raises(OptionError, match="map: got names as well"):
        lc.compare(mine, token_ids=TOKENS, map=path, names=path)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") for cell in cells), "outputs are not committed"
    space: dict[str, Any] = {}
    shown = [run_cell("".join(cell["source"]), space) for cell in cells if cell["cell_type"] == "code"]
    pages = [one._repr_html_() for one in shown if hasattr(one, "_repr_html_")]
    assert len(pages) == 2 and all("FAIL" in page for page in pages)
    name, sentence = next(one for one in shown if isinstance(one, tuple))
    assert name == "blk.0.attn_norm" and sentence.startswith("the norm subtracts the mean")
    assert {"found.json", "found.html"} == {path.name for path in tmp_path.iterdir()}


def run_cell(source: str, space: dict[str, Any]) -> Any:
    """Run a cell; what its last expression gives, as a notebook shows it."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), space)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), space)
