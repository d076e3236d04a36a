"""docs/worker.md: its examples are run, and its tables are held against the code."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from llama_ckpt.worker.events import ErrorCode, StopReason
from llama_ckpt.worker.options import WorkerOptions, parse_options
from llama_ckpt.worker.replies import BODY_BYTES, CONSTRAINTS
from llama_ckpt.worker.requests import ExecuteRequest
from tests.worker.running_worker import RunningWorker

PAGE = (Path(__file__).parents[2] / "docs" / "worker.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
EXAMPLES = [
    (kind, code, shown)
    for (kind, code), (after, shown) in zip(BLOCKS, BLOCKS[1:], strict=False)
    if kind in ("sh", "python") and after == ""
]
NEEDS_CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose heading begins with that word."""
    (table,) = re.findall(rf"^\| {first} \|.*\n\| ---.*\n((?:\|.*\n)+)", PAGE, re.M)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def matches(shown: str, printed: str) -> bool:
    """Whether an output is the one that is shown, where … stands for anything within a line."""
    pattern = r"[^\n]*".join(map(re.escape, shown.strip().split("…")))
    return re.fullmatch(pattern, printed.strip()) is not None


@NEEDS_CURL
@pytest.mark.parametrize(("kind", "code", "shown"), EXAMPLES)
def test_an_example_prints_what_is_shown(kind: str, code: str, shown: str, worker: RunningWorker) -> None:
    code = code.replace("http://127.0.0.1:8080", worker.url)
    command = [sys.executable, "-c", code] if kind == "python" else ["bash", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert matches(shown, done.stdout), f"printed\n{done.stdout}\nshown\n{shown}"


def test_there_are_examples_and_a_wrong_one_is_seen() -> None:
    assert len(EXAMPLES) == 6 and len(BLOCKS) == 2 * 6 + 1
    assert matches("a…c\n", "abc") and not matches("a…c", "a\nc") and not matches("a.c", "abc")


def test_the_command_line_is_accepted() -> None:
    kind, command = BLOCKS[0]
    words = shlex.split(command)
    assert (kind, words[:3]) == ("sh", ["python", "-m", "llama_ckpt.worker"])
    assert parse_options(words[3:]).worker_id == "test"


def test_the_options_are_the_codes() -> None:
    options = parse_options(shlex.split(BLOCKS[0][1])[3:])
    listed = [(name, default) for names, default, _ in rows("option") for name in names.split(", ")]
    shown = {name.strip("`-").replace("-", "_"): default.strip("`") for name, default in listed}
    del shown["api_key_file"]  # more of the same
    shown["api_keys"], shown["metrics"] = shown.pop("api_key"), {"off": "True"}[shown.pop("no_metrics")]
    assert set(shown) == set(vars(options)) == set(vars(WorkerOptions("", "", 0, "")))
    for name, default in shown.items():
        value = getattr(options, name)
        if default in ("none", "off", "its own"):
            assert not value, name
        elif default not in ("required", "the model's"):
            assert default == (f"{value:g}" if isinstance(value, float) else str(value)), name


def test_the_fields_are_the_codes() -> None:
    shown = {name.strip("`"): default for name, default, _ in rows("field")}
    fields = ExecuteRequest.model_fields
    assert set(shown) == set(fields)
    for name, field in fields.items():
        default = "null" if field.default is None else str(field.default)
        assert shown[name] == ("required" if field.is_required() else default), name


def test_all_words_of_the_protocol_are_explained() -> None:
    words = {*get_args(StopReason), *get_args(ErrorCode)}
    words |= {*CONSTRAINTS.values(), "type"}
    sources = "".join(
        path.read_text("utf-8") for path in (Path(__file__).parents[2] / "llama_ckpt/worker").glob("*.py")
    )
    words |= set(re.findall(r'(?:Fault|_bad|UnavailableError)\(\s*(?:"\w+"|field),\s*"(\w+)"', sources))
    assert len(words) > 25
    assert not {word for word in words if f"`{word}`" not in PAGE}
    assert f"{BODY_BYTES:,}" in PAGE
