"""The tree itself: sizes, one test module a checkpoint, no test without an assertion, no stray names."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_DUMPS = 9_000_000
MAX_TREE = 24_000_000
MAX_LINES = 400

TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))
SOURCES = sorted(
    path
    for folder in ("llama_ckpt", "checkpoints", "reference_dumps", "tests", "tools", "examples")
    for path in (ROOT / folder).rglob("*.py")
)


def tracked() -> list[Path]:
    """The files that git tracks; without git (an unpacked archive) there is nothing to measure."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_committed_dumps_are_small() -> None:
    folder = ROOT / "reference_dumps"
    dumps = [p for p in tracked() if p.is_relative_to(folder) and p.suffix in (".safetensors", ".json")]
    assert dumps, "no dumps are committed"
    assert sum(path.stat().st_size for path in dumps) <= MAX_DUMPS


def test_tracked_tree_is_small() -> None:
    assert sum(path.stat().st_size for path in tracked()) < MAX_TREE


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_file_is_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", sorted((ROOT / "checkpoints").glob("c*.py")), ids=lambda path: path.stem)
def test_every_checkpoint_has_a_test_module(path: Path) -> None:
    tests = ROOT / "tests" / "checkpoints" / f"test_{path.stem}.py"
    assert tests.is_file(), f"{path.name} has no tests/checkpoints/{tests.name}"


def asserts(function: ast.FunctionDef, helpers: frozenset[str] = frozenset()) -> bool:
    """Whether a test can fail by what it says.

    That is an assert, `pytest.raises`, a helper that is called check_… or the like, or one of `helpers`.
    """
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("raises", "fail", *helpers) or re.match(r"_?(assert|check|expect)", called):
                return True
    return False


def silent_tests(source: str) -> list[str] | None:
    """The tests of a module that assert nothing, themselves or in a function beside them; None: no tests."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    tests = [one for one in functions if one.name.startswith("test_")]
    helpers = frozenset(one.name for one in functions if one not in tests and asserts(one))
    return [test.name for test in tests if not asserts(test, helpers)] if tests else None


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_asserts(path: Path) -> None:
    assert silent_tests(path.read_text(encoding="utf-8")) == []


def test_a_test_without_assertion_is_seen() -> None:
    source = "def test_a():\n    print(1)\ndef test_b():\n    check_it()\ndef test_c():\n    refused()\n"
    assert silent_tests(source) == ["test_a", "test_c"]
    assert silent_tests(source + "def refused():\n    assert False\n") == ["test_a"]
    assert silent_tests("import os\n") is None


def test_ignored_names_do_not_hide_the_sources() -> None:
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "checkpoints/c99_new.py", "reference_dumps/new/model.gguf"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == ""


def test_skipped_tests_say_why() -> None:
    for path in TEST_FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "pytest.mark.skip",
                "pytest.mark.skipif",
            ):
                assert any(k.arg == "reason" for k in node.keywords), f"{path.name}:{node.lineno}"
