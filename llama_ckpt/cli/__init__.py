"""The command `llama-ckpt`: one module a command, loaded when that command is asked for.

Exit codes: 0 all is well; 1 a checkpoint fails; 2 bad input, said in one sentence on standard
error; 3 a dump differs by rounding that it does not declare, and by nothing else; 130 interrupted;
141 nobody reads the output any more; 143 terminated.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final

import typer

from llama_ckpt.cli.adapters import Command
from llama_ckpt.cli.boundary import CommandGroup
from llama_ckpt.cli.endings import prepared
from llama_ckpt.version import __version__

__all__ = ["COMMANDS", "app", "main"]

COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "validate": "Hold the checkpoints, or your layer, against references.",
        "compare": "Judge the tensors that your program wrote.",
        "compare-weights": "Say which tensors of two models differ, and by how much.",
        "explain": "Print the page of a checkpoint, a point or a bug.",
        "generate": "Continue a prompt, printing as it goes.",
        "tokenize": "Print the token ids of texts as JSON.",
        "inspect": "Show what a GGUF file holds.",
        "export": "Write a model's weights as safetensors.",
        "capture": "Record llama.cpp's tensors on a prompt.",
        "make-seeded": "Make a model of any shape from a seed.",
        "mutants": "Show that every known bug is caught and named.",
        "bench": "Measure loading, prefill and decoding on the GPU.",
        "check-worker": "Start a worker, try it, and stop it.",
        "example": "Print a writer of dumps to copy into your program.",
        "report-bug": "Collect what to attach to a report of a fault.",
    }
)
"""The names of the commands, in the order of the help, and the first line of each one's own, so that the list
appears at once; the module of "make-seeded" is `cli.make_seeded`."""

STYLE: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}


class Commands(CommandGroup):
    """Loads a command's module when that command runs: `explain` need not wait for what `capture` imports."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands, in the order of the help."""
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list of commands in the help, for which none is loaded."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name.replace('-', '_')}")
        alone = typer.Typer(**STYLE)
        alone.command(module.NAME, cls=Command, epilog=module.EXAMPLE)(module.command)
        return typer.main.get_command(alone)


app = typer.Typer(
    name="llama-ckpt",
    cls=Commands,
    no_args_is_help=True,
    **STYLE | {"add_completion": True},  # of the program; a command alone has none to install
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


def main() -> None:
    """Run the command line in `sys.argv` and end the process with its exit code."""
    prepared()
    app()
