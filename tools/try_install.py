"""The built wheel in empty environments: what a plain install can do, and what it says of what it lacks.

    python -m tools.try_install                                   # this Python
    python -m tools.try_install --python python3.11 python3.13    # these

Each environment is made, the wheel installed with what it requires and nothing else, and every command run in
an empty folder: those of the light install must work, the others must say in one sentence what they miss and
the line that installs it. Exit code 0 where all do.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from reference_dumps import embedded_model

__all__ = ["Tried", "build_wheel", "tried"]

ROOT = Path(__file__).parents[1]

DUMP = """
import llama_ckpt as lc
from llama_ckpt.oracle import llama
from llama_ckpt.oracle.weights import OracleWeights
from reference_dumps import embedded_model
file = lc.open_gguf(embedded_model())
config = lc.LlamaConfig.from_gguf(file)
recorder = lc.Recorder()
llama.logits([1, 15043], OracleWeights(file, config), config=config, positions=[0, 1], tap=recorder.keep)
recorder.save("mine.safetensors", token_ids=[1, 15043])
assert lc.compare("mine.safetensors")
"""
"""A right dump of the embedded model, and its comparison from Python."""

LIGHT = (
    ("compare", "mine.safetensors"),
    ("export", "--model", "MODEL", "--out", "weights.safetensors"),
    ("inspect", "MODEL"),
    ("tokenize", "Hello"),
    ("explain", "1"),
    ("explain", "arithmetic"),
    ("example", "c++"),
)
LACKING = (
    ("validate", 'pip install "llama_ckpt[torch]"'),
    ("generate Hello", 'pip install "llama_ckpt[torch]"'),
    ("bench", 'pip install "llama_ckpt[torch]"'),
    ("mutants", 'pip install "llama_ckpt[torch]"'),
    ("check-worker", 'pip install "llama_ckpt[worker]"'),
    ("capture --model MODEL --tokens 1 --out dumps", "pip install llama-cpp-python=="),
)
"""Commands that need a part, and the line that they must name."""


@dataclass(frozen=True)
class Tried:
    """One command in one environment: whether it did what it should, and the last line that it said."""

    command: str
    works: bool
    said: str


def build_wheel(folder: Path) -> Path:
    """The wheel of a copy of the tracked tree: setuptools leaves folders of its own where it builds."""
    tree = folder / "tree"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*build, "-w", str(folder), str(tree)], check=True)
    (path,) = folder.glob("*.whl")
    return path


def tried(python: str, wheel: Path, folder: Path) -> Iterator[Tried]:
    """Everything that is tried with one Python."""
    start = time.monotonic()
    subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
    binaries = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, str(wheel)], check=True)
    size = sum(path.stat().st_size for path in (folder / "venv").rglob("*") if path.is_file())
    yield Tried("pip install", True, f"{size / 1e6:.0f} MB in {time.monotonic() - start:.0f} s")
    work = folder / "work"
    work.mkdir()
    done = subprocess.run(
        [str(binaries / "python"), "-c", DUMP], cwd=work, check=False, text=True, capture_output=True
    )
    yield Tried("a dump, from Python", done.returncode == 0, _last(done.stderr or "passes"))
    for words in LIGHT:
        done = _command(binaries, work, words)
        yield Tried(" ".join(words), done.returncode == 0 and _clean(done), _last(done.stdout + done.stderr))
    for line, installs in LACKING:
        done = _command(binaries, work, tuple(line.split()))
        said = done.stderr.strip()
        yield Tried(line, done.returncode == 2 and installs in said and _clean(done), _last(said))


def _command(binaries: Path, work: Path, words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    model = str(embedded_model())
    given = [model if word == "MODEL" else word for word in words]
    return subprocess.run(
        [str(binaries / "llama-ckpt"), *given], cwd=work, check=False, text=True, capture_output=True
    )


def _clean(done: subprocess.CompletedProcess[str]) -> bool:
    return "Traceback" not in done.stdout + done.stderr


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:100] if lines else ""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", nargs="*", default=[sys.executable], help="the Pythons to try")
    wrong = 0
    with TemporaryDirectory(prefix="llama-ckpt-install-") as scratch:
        wheel = build_wheel(Path(scratch))
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
        for number, python in enumerate(parser.parse_args().python):
            print(python)
            folder = Path(scratch) / str(number)
            folder.mkdir()
            for one in tried(python, wheel, folder):
                wrong += not one.works
                print(f"  {'ok  ' if one.works else 'FAIL'} {one.command:<48} {one.said}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
