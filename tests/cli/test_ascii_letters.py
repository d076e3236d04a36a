"""A terminal without our letters shows one of its own for each."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from llama_ckpt.cli.ascii_letters import ASCII_LETTERS, LETTERS
from llama_ckpt.cli.console import Console
from llama_ckpt.report.comparison import CELLS
from reference_dumps import dump_folder

PACKAGE = Path(__file__).parents[2] / "llama_ckpt"


def test_every_cell_of_a_strip_is_one_letter_of_its_own() -> None:
    shown = CELLS.encode("ascii", ASCII_LETTERS).decode()
    assert shown == ".-1234567" and len(set(shown)) == len(CELLS)


def test_what_is_not_ours_is_written_as_python_writes_it() -> None:
    text = "own ·█ of a €, ‖x‖ ≤ 10⁻⁷…é"
    assert text.encode("ascii", ASCII_LETTERS) == b"own .7 of a \\u20ac, |x| <= 10-7...\\xe9"
    assert text.encode("latin-1", ASCII_LETTERS).decode("latin-1").startswith("own ·7 of a \\u20ac, |x|")


def test_every_letter_that_the_terminal_is_sent_has_one() -> None:
    sources = [*(PACKAGE / "cli").glob("*.py"), PACKAGE / "report" / "comparison.py"]
    sources += [PACKAGE / "report" / "terminal.py", PACKAGE / "report" / "words.py", PACKAGE / "listing.py"]
    for path in sources:
        others = {one for one in path.read_text(encoding="utf-8") if ord(one) > 127} - LETTERS.keys()
        assert not others, f"{path.name}: {others}"


def test_a_comparison_reads_in_ascii() -> None:
    command = [sys.executable, "-m", "llama_ckpt", "compare", str(dump_folder("f32") / "hello.safetensors")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True)
    text = done.stdout.decode("ascii")
    assert f"own            {'.' * 32}\n" in text and "\\x" not in text and "\\u" not in text
    assert ". to 0.5, - to 1 (passes), 1 to 10, 2 to 100, ... 7 from 1e6" in text


def test_a_terminal_gets_lines_of_its_width_and_a_file_whole_ones() -> None:
    fact = "23 tensors are no points and were left out: penalized.0.ids, penalized.0.probabilities and more"
    for terminal, lines in ((True, 3), (False, 1)):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=60, color_system=None, soft_wrap=True)
        console.say((f"{'note':<15}", "dim"), (fact, ""))
        printed = out.getvalue().splitlines()
        assert len(printed) == lines
        assert " ".join(line[15:] for line in printed) == fact
        assert not terminal or all(len(line) <= 60 and not line[:15].strip() for line in printed[1:])
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=40, color_system=None, soft_wrap=True)
    console.say("next           llama-ckpt compare mine.safetensors --model mine.gguf   # why")
    assert len(out.getvalue().splitlines()) == 1, "a command is to be copied"
