"""The command `llama-ckpt`: one module a command, loaded whole, though torch only by those that compute.

Exit codes: 0 all is well; 1 a checkpoint fails; 2 bad input, said in one sentence on standard
error; 130 interrupted; 141 nobody reads the output any more.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from llama_ckpt.cli import (
    bench,
    capture,
    compare,
    explain,
    export,
    generate,
    inspect,
    make_seeded,
    mutants,
    tokenize,
    validate,
)
from llama_ckpt.cli.boundary import CommandGroup
from llama_ckpt.version import __version__

__all__ = ["COMMANDS", "app", "main"]

app = typer.Typer(
    name="llama-ckpt",
    cls=CommandGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Example: llama-ckpt validate --model llama-2-7b.Q4_0.gguf --device cuda",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"llama_ckpt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Name the first layer of a Llama-2 that is wrong, by how much, and compared with what."""


_MODULES = (
    *(validate, compare, explain, generate, tokenize, inspect),
    *(export, capture, make_seeded, mutants, bench),
)
for _module in _MODULES:
    app.command(_module.NAME, epilog=_module.EXAMPLE)(_module.command)

COMMANDS: tuple[str, ...] = tuple(module.NAME for module in _MODULES)
"""The names of the commands, in the order of the help."""


def main() -> None:
    """Run the command line in `sys.argv` and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character is no reason to stop.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app()
