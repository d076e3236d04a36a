"""The tree itself: sizes, one test module a checkpoint, no test without an assertion, no stray names."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
MAX_DUMPS = 6 * MIB
MAX_TREE = 20 * MIB
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


def asserts(function: ast.FunctionDef) -> bool:
    """Whether a test can fail by what it says: an assert, `pytest.raises`, or a helper called check_…."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("raises", "fail") or re.match(r"_?(assert|check|expect)", called):
                return True
    return False


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_asserts(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tests = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
    assert tests, "a test module without a test"
    assert not [test.name for test in tests if not asserts(test)]


def test_a_test_without_assertion_is_seen() -> None:
    silent, loud = ast.parse("def test_a():\n    print(1)\ndef test_b():\n    check_it()\n").body
    assert isinstance(silent, ast.FunctionDef) and isinstance(loud, ast.FunctionDef)
    assert not asserts(silent) and asserts(loud)


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
