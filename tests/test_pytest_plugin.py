"""The pytest plugin, by the example project: one right layer, one wrong one, in a suite of somebody's own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from llama_ckpt.pytest_plugin import in_order
from reference_dumps import dump_folder

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "examples" / "pytest_project"
F32 = str(dump_folder("f32"))
"""Enough of the recordings where it is not the ladder that is tried; the project's own tests take all."""
NAMED = "looks like  RoPE turns pairs (i, i+d/2) instead of (2i, 2i+1): remaining error"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy, so that a run leaves nothing in the tree."""
    copy = tmp_path / "project"
    shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    return copy


def pytest_says(project: Path, *options: str) -> tuple[int, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_it_is_registered() -> None:
    (found,) = [one for one in entry_points(group="pytest11") if one.name == "llama_ckpt"]
    assert found.value == "llama_ckpt.pytest_plugin"


def test_the_example_projects_own_tests(project: Path) -> None:
    code, shown = pytest_says(project)
    assert code == 1 and "1 failed, 1 passed" in shown, shown
    assert "FAILED test_layers.py::test_rope" in shown and NAMED in shown
    assert "Traceback" not in shown and "During handling" not in shown


def test_layers_given_as_options(project: Path) -> None:
    options = [
        "--llama-ckpt-impl",
        "layers:rms_norm",
        "--llama-ckpt-impl",
        "1B=layers:rope",
        "--llama-ckpt-dumps",
        F32,
    ]
    code, shown = pytest_says(project, "-k", "llama_ckpt", *options)
    assert code == 1 and "1 failed, 1 passed, 2 deselected" in shown, shown
    assert "llama_ckpt[1B=layers:rope]" in shown and NAMED in shown
    # On a CI pytest repeats a failure's whole text in its summary.
    (repeat,) = set(re.findall("repeat      llama-ckpt (validate 1B .*--impl layers:rope.*)", shown))
    command = [sys.executable, "-m", "llama_ckpt", *shlex.split(repeat)]
    again = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert again.returncode == 1 and "1B  RoPE" in again.stdout and NAMED in again.stdout, again.stderr


def test_layers_of_the_ini_file_without_a_line_of_test(project: Path) -> None:
    (project / "test_layers.py").unlink()
    with (project / "pytest.ini").open("a") as ini:
        ini.write("llama_ckpt_impl =\n    layers:rms_norm\n")
    code, shown = pytest_says(project, f"--llama-ckpt-dumps={F32}")
    assert code == 0 and "1 passed" in shown, shown
    code, shown = pytest_says(project, "--llama-ckpt-dtype", "float64")
    assert code == 1 and "dtype: got float64, wanted one of float32, float16, bfloat16" in shown


def test_what_cannot_be_tried_is_one_sentence(project: Path) -> None:
    options = ["--llama-ckpt-impl", "1=layers:none", "--llama-ckpt-impl", "1=layers:rms_norm"]
    code, shown = pytest_says(project, "-k", "llama_ckpt", "--llama-ckpt-model", "none.gguf", *options)
    assert code == 1 and "no none in layers" in shown and "none.gguf cannot be opened" in shown
    assert "Traceback" not in shown


def test_the_plugin_alone_loads_no_torch() -> None:
    code = "import llama_ckpt.pytest_plugin, sys\n"
    code += "print(*[m for m in ('torch', 'checkpoints') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_layer_and_checkpoint_in_either_order() -> None:
    assert in_order((len,)) == (None, len) and in_order(("mine:f",)) == (None, "mine:f")
    for given in (("1B", len), (len, "1B")):
        assert in_order(given) == ("1B", len)
    for given in (("1B", "mine:f"), ("mine:f", "1B")):
        assert in_order(given) == ("1B", "mine:f")
