"""`llama-ckpt validate`: climb the ladder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import llama_ckpt
from llama_ckpt.cli.options import Device, Dtype, ModelFile
from llama_ckpt.cli.progress import ProgressBar

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "validate"
EXAMPLE = "Example: llama-ckpt validate 1 1B --model llama-2-7b.Q4_0.gguf --json report.json"
STYLES = {"pass": "green", "fail": "bold red", "skipped": "yellow"}


def command(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Checkpoints, such as 1 1B 3; all without any.")
    ] = None,
    model: ModelFile = None,
    dumps: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Reference dumps; else a given model is recorded first."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    stop_on_failure: Annotated[
        bool, typer.Option("--stop-on-failure", help="Skip what comes after the first failure.")
    ] = False,
    oracle_only: Annotated[
        bool, typer.Option("--oracle-only", help="Judge by the float64 oracle, without llama.cpp.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON; - prints it.")
    ] = None,
) -> None:
    """Hold every checkpoint against its references.

    These are the tensors of the real llama.cpp and a float64 oracle.

    Exit code 0 when all pass, 1 when one fails, 2 for bad input.
    """
    to_stdout = json_file == Path("-")
    console = Console(stderr=to_stdout, highlight=False, soft_wrap=True)
    report = _climb(ids, model, dumps, device, dtype, stop_on_failure, oracle_only, console)
    text = json.dumps(report.to_json(), indent=1) + "\n"
    if to_stdout:
        sys.stdout.write(text)
    elif json_file is not None:
        json_file.write_text(text, encoding="utf-8")
    raise typer.Exit(report.exit_code)


def _climb(
    ids: list[str] | None,
    model: Path | None,
    dumps: Path | None,
    device: str,
    dtype: str,
    stop_on_failure: bool,
    oracle_only: bool,
    console: Console,
) -> llama_ckpt.LadderReport:
    """Validate, and print each checkpoint as soon as it stands."""
    from llama_ckpt.ladder import CheckpointResult
    from llama_ckpt.report import terminal

    def show(result: CheckpointResult) -> None:
        bar.clear()
        console.print(Text(terminal.checkpoint_row(result), STYLES[result.verdict]))
        if result.verdict == "fail":
            repeat = terminal.repeat_command(
                result.id, model=model, dumps=dumps, device=device, dtype=dtype, oracle_only=oracle_only
            )
            for line in terminal.failure_lines(result, device=device, dtype=dtype, repeat=repeat):
                console.print(Text(line))

    with ProgressBar() as bar:
        console.print(Text(terminal.header(), "dim"))
        report = llama_ckpt.validate(
            ids,
            model=model,
            dumps=dumps,
            device=device,
            dtype=dtype,
            stop_on_failure=stop_on_failure,
            oracle_only=oracle_only,
            progress=bar,
            on_checkpoint=show,
        )
    for line in terminal.summary_lines(report):
        console.print(Text(line))
    return report
