"""`llama-ckpt check-worker`: the worker's own check, apart from the ladder."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from llama_ckpt.cli import app


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["check-worker", *words])
    return done.exit_code, done.stdout


def test_the_embedded_model_is_served() -> None:
    code, shown = run("--device", "cpu")
    lines = shown.splitlines()
    assert code == 0, shown
    assert all(line.startswith("pass  ") for line in lines[:-1]) and len(lines) > 2
    assert lines[-1].endswith("steps of the worker pass: model.gguf")


def test_a_file_that_is_no_model_fails(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not a model")
    code, shown = run("--device", "cpu", "--model", str(tmp_path / "text.gguf"))
    assert code == 1 and "FAIL  " in shown
