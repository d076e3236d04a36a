"""The generated pages under docs/ say what the code says, and the README what the tree says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llama_ckpt.ladder.discovery import discover
from llama_ckpt.report.checkpoint_sources import checkpoint_sources
from llama_ckpt.report.pages import ladder_table, page, torch_functions
from tools import make_docs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_docs_are_up_to_date() -> None:
    assert make_docs.stale() == [], "run `make docs`"


def test_a_changed_a_missing_and_a_stray_page_are_seen(tmp_path: Path) -> None:
    for name, text in make_docs.documents().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert make_docs.stale(tmp_path) == []
    (tmp_path / "cli.md").write_text("old", encoding="utf-8")
    (tmp_path / "checkpoints" / "c01_rms_norm.md").unlink()
    (tmp_path / "checkpoints" / "c04_gone.md").touch()
    changed = ["checkpoints/c01_rms_norm.md", "cli.md", "checkpoints/c04_gone.md"]
    assert make_docs.stale(tmp_path) == changed


@pytest.mark.parametrize("checkpoint", checkpoint_sources(), ids=lambda checkpoint: checkpoint.id)
def test_a_page_has_all_that_is_known(checkpoint) -> None:  # type: ignore[no-untyped-def]
    text = page(checkpoint)
    for wanted in (*checkpoint.mistakes, *checkpoint.points, checkpoint.torch_function):
        assert wanted in text
    for heading in ("The function", "Stands on", "Limits", "The torch function", "What people get wrong"):
        assert f"\n## {heading}\n" in text
    assert checkpoint.torch_function in torch_functions()
    assert f"| {checkpoint.id} | {checkpoint.title} |" in ladder_table()


def test_the_readme_lists_the_ladder_and_the_tree() -> None:
    for checkpoint in discover():
        assert re.search(rf"^\| {checkpoint.id} \|.*`{checkpoint.function.__name__}`", README, re.M), (
            checkpoint.id
        )
    for path in sorted(ROOT.glob("llama_ckpt/*.py")):
        assert path.name in README, f"README.md's tree lacks {path.name}"
    for package in sorted(ROOT.glob("llama_ckpt/*/__init__.py")):
        assert f" {package.parent.name}/ " in README, f"README.md's tree lacks {package.parent.name}/"


def test_the_readme_names_only_files_that_exist() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    for name in re.findall(r"[\w.]+(?:/|\.py)", tree):
        assert (ROOT / name).exists() or (ROOT / "llama_ckpt" / name).exists(), f"README.md's tree has {name}"
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), f"README.md links to {target}"


def test_the_readme_has_the_two_commands() -> None:
    assert "\nmake validate-all" in README and "\nmake test " in README
