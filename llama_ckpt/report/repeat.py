"""The command line that repeats a failure: what is printed as a repeat has to fail again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["repeat_command", "started_as"]

COMMAND = ("llama-ckpt", "validate")
WITH_A_VALUE = ("-W", "-X", "--check-hash-based-pycs")
"""The interpreter's options whose value is a word of its own."""

RUNNERS = ("", "llama_ckpt", "pytest", "coverage")
"""Modules started with `-m` that replace no layer themselves."""


def started_as(argv: Sequence[str] | None = None) -> tuple[str, ...]:
    """The words before a checkpoint's id that start this program anew.

    A script that replaces a layer and then runs the command line must be run again as itself: the
    command alone would try the right layer.

    Args:
        argv: the interpreter's own words, `sys.orig_argv`.

    Returns:
        the interpreter as it was typed, its options and the script or `-m module`; else the command.
    """
    words = list(sys.orig_argv if argv is None else argv)
    at = 1
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "-c", "-"):
        at += 2 if words[at] in WITH_A_VALUE else 1  # the interpreter's own options
    module = words[at : at + 1] == ["-m"]
    at += module
    program = words[at] if at < len(words) else ""
    others = program.partition(".")[0] in RUNNERS if module else Path(program).suffix != ".py"
    if others or Path(program).name == "__main__.py":
        return COMMAND
    given = words[at + 1 : at + 2] == ["validate"]  # typed by the user, or put there by the script itself
    return (*words[: at + 1], "validate") if given else tuple(words[: at + 1])


def repeat_command(
    checkpoints: Sequence[str],
    *,
    model: object,
    dumps: object,
    device: str,
    dtype: str,
    oracle_only: bool,
    thorough: bool = False,
    implementation: str | None = None,
    arrays: str = "auto",
    arithmetic: str | None = None,
    engine: str = "layers",
    precision: str = "fast",
    program: Sequence[str] = COMMAND,
) -> str:
    """The command line that runs a failing checkpoint again, on the same device in the same dtype.

    Args:
        checkpoints: ids; before the failing one those that failed and that it stands on, without which a
            checkpoint that only carries on their error passes.
        program: the words that start it.
        model, …: as `validate` takes them.
    """
    words = [*program, *checkpoints]
    for option, value in (("--model", model), ("--dumps", dumps), ("--device", device), ("--dtype", dtype)):
        words += [option, str(value)] if value is not None else []
    words += ["--arithmetic", arithmetic] if arithmetic is not None else []
    words += ["--engine", engine, "--precision", precision] if engine != "layers" else []
    words += ["--impl", implementation] if implementation is not None else []
    words += ["--thorough"] if thorough else []
    words += ["--arrays", arrays] if arrays != "auto" else []
    return shlex.join(words + (["--oracle-only"] if oracle_only else []))
