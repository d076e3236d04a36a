"""Every command on the site is run, in a folder that has the files that it names, or it is said why not.

What the pages show of a terminal is held by tests/report/test_transcripts.py, docs/worker.md with its answers
by tests/worker/test_docs.py, the program of docs/first_dump.md by tests/meta/test_site.py.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import reference_dumps
from llama_ckpt.cli import app
from tests.comparing.their_programs import bug, right_run, run, write

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(set(DOCS.rglob("*.md")) - {DOCS / "cli.md", DOCS / "worker.md"})
PROGRAMS = r"(?:llama-ckpt|python|pip|make|pytest|curl)(?= )"

SEEDED = (
    "llama-ckpt make-seeded --width 64 --heads 4 --kv-heads 2 --layers 4 --ffn 128 --vocab 2000 "
    "--out gqa.gguf"
)
RUN = {
    'python -c "from reference_dumps import embedded_model; print(embedded_model())"': (0, "model.gguf"),
    "llama-ckpt export --out weights.safetensors": (0, "weights.safetensors: "),
    "llama-ckpt export --layout hf --out hf/model.safetensors": (0, "model.safetensors: "),
    "llama-ckpt export --layout hf --out folder/model.safetensors": (0, "model.safetensors: "),
    "llama-ckpt compare mine.safetensors": (1, "FAIL blk.7.q_rope is the first wrong point"),
    "llama-ckpt compare mine.safetensors --html report.html": (1, "FAIL blk.7.q_rope"),
    'llama-ckpt compare mine.safetensors --junit report.xml --markdown "$GITHUB_STEP_SUMMARY"': (1, "FAIL"),
    "llama-ckpt compare mine.safetensors --reference dumps --model mine.gguf": (1, "FAIL blk.7.q_rope"),
    "llama-ckpt compare dumps/prompt.safetensors --reference dumps --model mine.gguf": (
        0,
        "every point within its limits",
    ),
    "llama-ckpt compare a.safetensors b.safetensors": (1, "they first differ at blk."),
    "llama-ckpt compare before.safetensors after.safetensors --html page.html": (1, "they part at blk.7"),
    "llama-ckpt compare cpu.safetensors cuda.safetensors metal.safetensors --html page.html": (0, "pass"),
    "llama-ckpt compare v1.safetensors v2.safetensors v3.safetensors --html page.html": (1, "v3 is off"),
    SEEDED: (0, "gqa.gguf: 854112 bytes"),
    "llama-ckpt compare-weights A B": (0, "equal"),
    "llama-ckpt explain 1": (0, "RMSNorm"),
    "llama-ckpt explain q_rope": (0, "RoPE"),
    "llama-ckpt explain arithmetic": (0, "tf32"),
    "llama-ckpt example c++": (0, "class DumpWriter"),
    "llama-ckpt example c++ > write_dump.hpp": (0, "class DumpWriter"),
    "llama-ckpt example python": (0, "def write_dump"),
    "llama-ckpt report-bug report.json": (0, '"verdict": "fail"'),
}
"""A command, its exit code and words that it prints."""

NOT_RUN = {
    r"pip install .": "from the built wheel in empty environments: python -m tools.try_install",
    r"make ": "a target of the Makefile; continuous integration runs those that need no GPU",
    r"python -m (tools|tests)\.": "measures for minutes and writes the page that names it",
    r"llama-ckpt capture .": "needs llama.cpp: tests/capture, where it is installed",
    r"llama-ckpt validate .*--device cuda": "needs a GPU: tests marked cuda",
    r"llama-ckpt validate 1 --impl": "tests/test_pytest_plugin.py repeats one of its layers so",
    r"llama-ckpt (mutants|bench|check-worker)": "takes minutes; tests/mutants, tests/engine, tests/cli",
    r"llama-ckpt compare .*--rank ": "two processes' dumps: tests/ranks runs the example of two ranks",
    r"pytest ": "tests/test_pytest_plugin.py, on examples/pytest_project",
    r"llama-ckpt (validate|compare) --json FILE$": "says the option's name; tests/cli run it",
    r"(llama-ckpt (compare|inspect|capture)|pip install)$": "is only called by its name",
    r"llama-ckpt explain NAME$": "stands for a name of arithmetic's page",
}
"""A pattern of what is not run here, and why."""


def commands() -> Iterator[str]:
    """Those of code blocks, and those that stand in a sentence with words of their own."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
            for line in block.splitlines() if language in ("", "sh", "console", "bash") else ():
                if re.match(PROGRAMS, line):
                    yield re.sub(r"\s+#.*", "", line).strip()
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        yield from re.findall(rf"`({PROGRAMS}[^`]+)`", prose)


def test_no_command_is_forgotten_and_none_is_gone() -> None:
    found = set(commands())
    assert len(found) > 40
    unknown = [one for one in found - set(RUN) if not any(re.match(pattern, one) for pattern in NOT_RUN)]
    assert not unknown, "run it here, or say why not"
    assert not set(RUN) - found, "no page has it any more"
    assert all(any(re.match(pattern, one) for one in found) for pattern in NOT_RUN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages' reader has: a program's dumps, right and wrong, a model with its recording, a layer."""
    made = tmp_path_factory.mktemp("reader")
    right, wrong = right_run(), run(wrong=bug("rope-half-split"), blocks=[7])
    write(made, wrong).rename(made / "mine.safetensors")
    few = [name for name in right if name.startswith("blk.7.")]
    facts = {"blocks": [7], "points": [name.removeprefix("blk.7.") for name in few]}
    for tensors, names in (
        (right, ("before", "cpu", "cuda", "metal", "v1", "v2", "a")),
        (wrong, ("after", "v3", "b")),
    ):
        for name in names:
            write(made, {one: tensors[one] for one in few}, **facts).rename(made / f"{name}.safetensors")
    (made / "dumps").symlink_to(reference_dumps.dump_folder("f32"))
    for name in ("mine.gguf", "A", "B"):
        (made / name).symlink_to(reference_dumps.embedded_model())
    for name in ("hf", "folder"):
        (made / name).mkdir()
    CliRunner().invoke(app, ["compare", str(made / "mine.safetensors"), "--json", str(made / "report.json")])
    return made


@pytest.mark.parametrize("command", RUN)
def test_a_command_does_what_its_page_says(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = RUN[command]
    monkeypatch.chdir(folder)
    named = command.replace("$GITHUB_STEP_SUMMARY", "summary.md").replace("dumps/prompt", "dumps/hello")
    program, *words = shlex.split(named.partition(" > ")[0])
    if program == "python":
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=DOCS.parent)
        found, printed = done.returncode, done.stdout
    else:
        ran = CliRunner().invoke(app, words)
        found, printed = ran.exit_code, ran.output
    assert found == code and said in " ".join(printed.split()), printed
    for option in ("--html", "--junit", "--markdown", "--out"):
        if option in words:
            assert (folder / words[words.index(option) + 1]).stat().st_size > 400


@pytest.mark.parametrize("page", [*PAGES, DOCS / "worker.md"], ids=lambda path: path.stem)
def test_programs_on_the_pages_are_python(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
        assert ast.parse(block).body
