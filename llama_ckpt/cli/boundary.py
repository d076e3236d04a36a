"""Where errors become one sentence and an exit code."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from llama_ckpt.cli.adapters import SparedAdapters
from llama_ckpt.cli.endings import BAD_INPUT, BROKEN_PIPE, INTERRUPTED, endings, say
from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.parts import missing_part
from llama_ckpt.shadowing import check_checkpoints

__all__ = ["BAD_INPUT", "BROKEN_PIPE", "INTERRUPTED", "CommandGroup"]


class CommandGroup(SparedAdapters, TyperGroup):
    """Commands in the order in which they are given, and no traceback for what a user caused."""

    def make_context(self, *words: Any, **extra: Any) -> Any:
        """Read the command line; `--help` is printed here."""
        with endings():
            return super().make_context(*words, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn what it raises into a sentence on standard error and an exit code."""
        try:
            with endings():
                return self._invoke(ctx)
        except LlamaCkptError as error:
            say(str(error))
        except RuntimeError as error:
            # torch's, by name: torch need not be loaded here.
            if type(error).__name__ != "OutOfMemoryError":
                raise
            say("the device's memory is full; a smaller model or --device cpu needs less of it")
        except MemoryError:
            say("the memory is full; a smaller model, or a shorter prompt, needs less of it")
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
