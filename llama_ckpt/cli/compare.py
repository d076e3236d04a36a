"""`llama-ckpt compare`: judge a dump that any program wrote. Loads no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from llama_ckpt.arithmetic.profiles import read_arithmetic
from llama_ckpt.cli.console import Console
from llama_ckpt.cli.options import file_of
from llama_ckpt.cli.progress import ProgressBar
from llama_ckpt.cli.reports import HtmlFile, JsonFile, JunitFile, MarkdownFile, ReportFiles
from llama_ckpt.comparing.two_dumps import compare_two
from llama_ckpt.errors import OptionError
from llama_ckpt.outside import whole_number
from llama_ckpt.ranks.any_run import compare
from llama_ckpt.report.comparison import comparison_lines
from llama_ckpt.whole_files import write_whole

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "compare"
EXAMPLE = (
    "Example: llama-ckpt compare mine.safetensors --model mine.gguf --reference dumps --html report.html"
)


def command(
    theirs: Annotated[
        Path | None, typer.Argument(metavar="DUMP", help="A safetensors file of your tensors.")
    ] = None,
    other: Annotated[
        Path | None,
        typer.Argument(metavar="OTHER", help="Another one of the same program: where they first differ."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="DIR", help="llama.cpp's dumps, from llama-ckpt capture.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="M.gguf", help="The model, a file or a folder, for the oracle.")
    ] = None,
    names: Annotated[
        Path | None, typer.Option("--map", metavar="FILE", help="What your names, axes and layouts mean.")
    ] = None,
    dump: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of the reference's dumps; else by the tokens.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="What you compute in; else as declared or stored."),
    ] = None,
    arithmetic: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE|JSON", help="What you round on purpose; see `explain arithmetic`."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Only some points were recorded: the others are not missing.")
    ] = False,
    rank: Annotated[
        list[str] | None, typer.Option(metavar="N=DUMP", help="One rank's dump, instead of DUMP; repeat.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="How points are cut over ranks; else as Megatron-LM's."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="All about what is wrong, not its first six lines.")
    ] = False,
    json_file: JsonFile = None,
    junit_file: JunitFile = None,
    html_file: HtmlFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Judge the tensors that your program wrote.

    The first wrong point, whether the error is made there or inherited, who is off, and the bug that it
    looks like. Without --reference and --model: a dump of the embedded model.

    With OTHER, a second dump of one program, it says where the two first differ.

    Exit code 0 when all is right, 1 when not, 2 for bad input, 3 where all that differs is arithmetic that
    was not declared.
    """
    files = ReportFiles(json_file, junit_file, html_file, markdown_file)
    if other is not None:
        pages = any(one is not None for one in (junit_file, html_file, markdown_file))
        _two(theirs, other, names, files, pages=pages, model=model)
    ranks = ranks_of(rank)
    with ProgressBar() as bar:
        report = compare(
            theirs,
            ranks=ranks,
            plan=plan,
            reference=reference,
            model=None if model is None else file_of(model),
            names=names,
            dump=dump,
            dtype=dtype,
            arithmetic=None if arithmetic is None else read_arithmetic(arithmetic),
            partial=partial,
            progress=bar,
        )
    console = Console(stderr=files.to_stdout, highlight=False, soft_wrap=True)
    for line in comparison_lines(report, verbose=verbose):
        console.say(*line)
    files.write(report.to_json())
    raise typer.Exit(report.exit_code)


def _two(
    first: Path | None,
    second: Path,
    names: Path | None,
    files: ReportFiles,
    *,
    pages: bool,
    model: Path | None,
) -> NoReturn:
    """Two dumps of one program: where they first differ, and nothing of who is right."""
    if first is None or pages or model is not None:
        got = "a page or a model" if pages or model is not None else "one"
        wanted = "the two alone, with --map and --json at most"
        raise OptionError("two dumps", got=got, wanted=wanted, hint="compare each by itself for the rest")
    found = compare_two(first, second, names)
    console = Console(stderr=files.to_stdout, highlight=False, soft_wrap=True)
    for line in found.lines():
        console.say(line)
    text = json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n"
    if files.to_stdout:
        sys.stdout.write(text)
    elif files.json is not None:
        write_whole(files.json, text)
    raise typer.Exit(found.exit_code)


def ranks_of(given: list[str] | None) -> dict[int, Path] | None:
    """`--rank 0=A --rank 1=B` as a dump for each number; None without any.

    Raises:
        OptionError: no number, no file, or a number twice.
    """
    found: dict[int, Path] = {}
    for one in given or ():
        number, _, path = one.partition("=")
        if whole_number(number.strip()) is None or not path:
            raise OptionError(
                "--rank", got=repr(one), wanted="a rank's number and its dump, 0=rank0.safetensors"
            )
        if int(number) in found:
            raise OptionError("--rank", got=f"{number} twice", wanted="each rank once")
        found[int(number)] = Path(path)
    return found or None
