"""An environment of its own for each program: `.others/<name>`, from requirements/other_llamas/<name>.txt.

Every version is pinned and nothing is resolved (`--no-deps`): torch, of which most other builds are
gigabytes, is the one that runs this tool, and what the tool's own environment holds can be imported from
every other, behind what that installs itself.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tools.other_llamas.catalogue import keys, program

__all__ = ["OTHERS", "environment_of", "prepared", "run_in"]

ROOT = Path(__file__).parents[2]
OTHERS = ROOT / ".others"
REQUIREMENTS = ROOT / "requirements" / "other_llamas"
STAMP = "installed.txt"


def environment_of(key: str) -> str:
    """The name of a program's environment."""
    return program(key).environment


def prepared(name: str) -> Path:
    """The environment's folder, set up if it is not there or its requirements have changed.

    Raises:
        SystemExit: a package that cannot be installed.
    """
    folder, wanted = OTHERS / name, REQUIREMENTS / f"{name}.txt"
    stamp = folder / STAMP
    state = hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == state:
        return folder
    folder.parent.mkdir(exist_ok=True)
    _done(name, [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)])
    _share(folder)  # first: what is built from source finds setuptools there
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python(folder))]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--only-binary", ":all:"]
    _done(name, [*pip, "install", *options, "-r", str(wanted)])
    stamp.write_text(state, encoding="utf-8")
    return folder


def _done(name: str, command: list[str]) -> None:
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"the environment {name} cannot be set up: {' '.join(command)}")


def python(folder: Path) -> Path:
    """The environment's own Python."""
    return folder / "bin" / "python"


def _share(folder: Path) -> None:
    """Let the environment import what this one has, behind its own packages."""
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    (Path(own) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")


def run_in(name: str, module: str, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a module of this tree in an environment; one thread, no network for models."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [str(python(prepared(name))) if name else sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, env=environment, cwd=ROOT, text=True, capture_output=True, check=False, timeout=timeout
    )


def main() -> None:
    """Set up every environment."""
    for name in sorted({environment_of(key) for key in keys()} - {""}):
        print(prepared(name))


if __name__ == "__main__":
    main()
