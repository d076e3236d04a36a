"""Where errors become one sentence and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.parts import missing_part
from llama_ckpt.shadowing import check_checkpoints

__all__ = ["BAD_INPUT", "BROKEN_PIPE", "INTERRUPTED", "CommandGroup"]

BAD_INPUT = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
"""128 and the number of the signal, as a shell counts it."""


class CommandGroup(TyperGroup):
    """Commands in the order in which they are given, and no traceback for what a user caused."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn what it raises into a sentence on standard error and an exit code."""
        try:
            return self._invoke(ctx)
        except LlamaCkptError as error:
            _say(str(error))
        except BrokenPipeError:
            # Python flushes standard output once more as it ends; let that go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            if error.filename is None:
                raise
            _say(f"{error.filename}: {error.strerror}")
        except RuntimeError as error:
            # torch's, by name: torch need not be loaded here.
            if type(error).__name__ != "OutOfMemoryError":
                raise
            _say("the device's memory is full; a smaller model or --device cpu needs less of it")
        raise typer.Exit(BAD_INPUT)

    def _invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ImportError as error:
            if said := missing_part(error, f"llama-ckpt {ctx.invoked_subcommand}"):
                raise said from error
            if (error.name or "").partition(".")[0] == "checkpoints":
                check_checkpoints()  # raises the sentence, if it is another package of that name
            raise
        finally:
            sys.stdout.flush()  # here, where a broken pipe can still be answered


def _say(sentence: str) -> None:
    print(f"llama-ckpt: error: {sentence}", file=sys.stderr)
