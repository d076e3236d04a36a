"""What the README and docs/diagnosis.md show of a terminal is what the commands print today."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.comparing.their_programs import bug, run, write

ROOT = Path(__file__).parents[2]


def transcript(page: str, command: str) -> list[str]:
    """What stands below a command in a page, without what another machine computes otherwise."""
    text = (ROOT / page).read_text("utf-8")
    return settled(text.partition(f"$ {command}\n")[2].partition("```")[0])


def settled(text: str) -> list[str]:
    """Lines without seconds, and without the digits of an error that only rounding makes.

    Rounding depends on the machine's products. A letter of the strip is a power of ten, and stays.
    """
    text = re.sub(r"\d+\.\d s$", "N s", text, flags=re.M)
    text = re.sub(r"\d\.\d+e-0[6-9]", "N", text)
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.mark.parametrize(("page", "option"), [("README.md", []), ("docs/diagnosis.md", ["-v"])])
def test_a_wrong_dump_is_told_of_as_the_page_says(page: str, option: list[str], tmp_path: Path) -> None:
    made = write(tmp_path, run(wrong=bug("rope-half-split"), blocks=[7]))
    words = [sys.executable, "-m", "llama_ckpt", "compare", str(made), *option]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    wanted = transcript(page, " ".join(["llama-ckpt compare mine.safetensors", *option]))
    assert settled(done.stdout.replace(str(made), "mine.safetensors")) == wanted


def test_the_readme_shows_what_the_example_prints() -> None:
    command = "python examples/wrong_epsilon.py 0 1 2 --stop-on-failure"
    words = [sys.executable, *command.split()[1:], "--device", "cpu"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    shown = done.stdout.replace(sys.executable, "python")
    assert settled(shown) == transcript("README.md", command)


def test_a_table_in_the_readme_fits_a_terminal() -> None:
    for command in ("llama-ckpt compare mine.safetensors", "python examples/wrong_epsilon.py 0 1 2"):
        lines = (ROOT / "README.md").read_text("utf-8").partition(f"$ {command}")[2].partition("```")[0]
        for line in lines.splitlines():
            assert len(line) <= 80 or line.lstrip().startswith(("reference ", "looks like ")), line
