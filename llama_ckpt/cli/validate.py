"""`llama-ckpt validate`: climb the ladder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import llama_ckpt
from llama_ckpt.arithmetic.profiles import read_arithmetic
from llama_ckpt.cli.console import Console
from llama_ckpt.cli.options import Device, Dtype, ModelFile, Precision, model_path
from llama_ckpt.cli.progress import ProgressBar
from llama_ckpt.cli.reports import HtmlFile, JsonFile, JunitFile, MarkdownFile, ReportFiles
from llama_ckpt.report import terminal
from llama_ckpt.report.repeat import repeat_command, started_as

if TYPE_CHECKING:
    from llama_ckpt.ladder.report import CheckpointResult, LadderReport

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "validate"
EXAMPLE = "Example: llama-ckpt validate 1 --impl mine.norms:rms_norm --html report.html"
STYLES = {"pass": "green", "fail": "bold red", "skipped": "yellow", "hidden": "dim"}


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
    engine: Annotated[
        Literal["layers", "fast"],
        typer.Option(help="On trial: the layers, or the fused kernels that generate on CUDA."),
    ] = "layers",
    precision: Precision = "fast",
    stop_on_failure: Annotated[
        bool, typer.Option("--stop-on-failure", help="Skip what comes after the first failure.")
    ] = False,
    oracle_only: Annotated[
        bool, typer.Option("--oracle-only", help="Judge by the float64 oracle, without llama.cpp.")
    ] = False,
    thorough: Annotated[
        bool,
        typer.Option("--thorough", help="Many more sizes, caches, sequences; texts generated whole."),
    ] = False,
    impl: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Your own layer in the place of one checkpoint's."),
    ] = None,
    arrays: Annotated[
        Literal["auto", "torch", "numpy"], typer.Option(help="What --impl is called with.")
    ] = "auto",
    arithmetic: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE|JSON", help="What --impl rounds on purpose; without it, what llama.cpp did."
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="All about a failure, not its first six lines.")
    ] = False,
    json_file: JsonFile = None,
    junit_file: JunitFile = None,
    html_file: HtmlFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Hold the checkpoints, or your layer, against references.

    These are the tensors of the real llama.cpp and a float64 oracle.

    Exit code 0 when all pass, 1 when one fails or nothing was compared, 2 for bad input.
    """
    from llama_ckpt.model import pick_device

    options: dict[str, Any] = {
        "model": model,
        "dumps": dumps,
        "device": str(pick_device(device)),
        "dtype": dtype,
        "oracle_only": oracle_only,
        "engine": engine,
        "precision": precision,
        "thorough": thorough,
    }
    layer: dict[str, Any] = {} if impl is None else {"implementation": impl, "arrays": arrays}
    if arithmetic is not None:
        read_arithmetic(arithmetic)  # a wrong name is told of before anything is loaded
        layer["arithmetic"] = arithmetic
    files = ReportFiles(json_file, junit_file, html_file, markdown_file)
    report = _climb(ids, options | layer, files, stop_on_failure=stop_on_failure, verbose=verbose)
    files.write(report.to_json())
    raise typer.Exit(report.exit_code)


def _climb(
    ids: list[str] | None,
    options: dict[str, Any],
    files: ReportFiles,
    *,
    stop_on_failure: bool,
    verbose: bool,
) -> LadderReport:
    """Climb the ladder, and show each checkpoint as soon as it stands."""
    with ProgressBar() as bar:
        console = Console(stderr=files.to_stdout, highlight=False, soft_wrap=True)
        screen = _Screen(console, bar, options, verbose)
        read = {"model": options["model"] and model_path(options["model"])}
        if "arithmetic" in options:
            read["arithmetic"] = read_arithmetic(options["arithmetic"])
        report = llama_ckpt.validate(
            ids,
            **{**options, **read},
            maps=files.html is not None,
            stop_on_failure=stop_on_failure,
            progress=bar,
            on_checkpoint=screen.show,
        )
    screen.finish(report)
    return report


class _Screen:
    """Prints each checkpoint as soon as it stands, and what it all comes to."""

    def __init__(self, console: Console, bar: ProgressBar, options: Mapping[str, Any], verbose: bool) -> None:
        self._console, self._bar, self._options, self._verbose = console, bar, options, verbose
        self._headed = False

    def show(self, result: CheckpointResult) -> None:
        """Print a checkpoint's row, and below it all about a failure."""
        self._bar.clear()
        if not self._headed:  # not sooner: bad input is one sentence and nothing else
            for line in terminal.header():
                self._print(line, "dim")
            self._headed = True
        self._print(terminal.checkpoint_row(result), STYLES[result.verdict])
        if result.verdict == "fail":
            ids = (*result.stands_on_failed, result.id)
            repeat = repeat_command(ids, program=started_as(), **self._options)
            where = {name: self._options[name] for name in ("device", "dtype")}
            for line in terminal.failure_lines(result, **where, repeat=repeat, verbose=self._verbose):
                self._print(line)

    def finish(self, report: LadderReport) -> None:
        """Print the totals and the notes."""
        self._print("")
        for line in terminal.summary_lines(report):
            self._print(line)

    def _print(self, line: str, style: str = "") -> None:
        self._console.say(line, style=style)
