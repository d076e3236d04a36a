"""How a command begins and ends, whatever its streams are and whoever ends it.

Exit codes as a shell counts them: 2 where the output cannot be written, 130 and 143 for an interrupt and a
termination, 141 where nobody reads the output any more. Each but the last has a sentence on standard error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TextIO

import typer

from llama_ckpt.cli.ascii_letters import ASCII_LETTERS
from llama_ckpt.plain_text import shortened

__all__ = ["BAD_INPUT", "BROKEN_PIPE", "INTERRUPTED", "TERMINATED", "endings", "prepared", "say"]

LONGEST = 470
"""Characters of what is said, a file's name of thousands among it."""

BAD_INPUT = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143
"""128 and the number of the signal, as a shell counts it."""


def prepared() -> None:
    """Make the streams and the environment such that any command can run, and be ended by SIGTERM."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character is no reason to stop.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ASCII_LETTERS)
    columns = os.environ.get("COLUMNS", "80")
    if not (columns.isascii() and columns.isdigit() and int(columns[:9]) > 0):
        del os.environ["COLUMNS"]  # nothing can be laid out in no columns
    with contextlib.suppress(ValueError):  # no main thread: whoever calls us here has its own ways
        signal.signal(signal.SIGTERM, _terminated)


@contextmanager
def endings() -> Iterator[None]:
    """What ends a command from outside becomes a sentence and a `typer.Exit`."""
    try:
        yield
    except BrokenPipeError:
        _leave_output(BROKEN_PIPE)
    except KeyboardInterrupt:
        say("interrupted")
        _leave_output(INTERRUPTED)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        what = "the output cannot be written" if error.filename is None else str(error.filename)
        say(f"{what}: {reason}")
        _leave_output(BAD_INPUT)


def say(sentence: str) -> None:
    """One line on standard error, where that can be written."""
    with contextlib.suppress(OSError, ValueError):
        print(f"llama-ckpt: error: {shortened(sentence, LONGEST)}", file=sys.stderr)
    _written_or_dropped(sys.stderr)


def _leave_output(code: int) -> NoReturn:
    """End; what standard output still holds, and Python would flush as it ends, is written if it can be."""
    for stream in (sys.stdout, sys.stderr):
        _written_or_dropped(stream)
    raise typer.Exit(code)


def _written_or_dropped(stream: TextIO) -> None:
    """Write what a stream still holds; where that fails it would fail again as Python ends, with code 120."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _terminated(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever asks twice need not wait for what is cleaned up
    say("terminated")
    raise SystemExit(TERMINATED)


def _open_closed_streams() -> None:
    """A stream that was closed is nowhere; else the next file that is opened would take its place."""
    for number, mode in ((0, "r"), (1, "w"), (2, "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
