"""`llama-ckpt compare`: judge a dump that any program wrote. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from llama_ckpt.arithmetic.profiles import read_arithmetic
from llama_ckpt.cli.compare_several import compare_several
from llama_ckpt.cli.console import Console
from llama_ckpt.cli.options import file_of
from llama_ckpt.cli.progress import ProgressBar
from llama_ckpt.cli.reports import HtmlFile, JsonFile, JunitFile, MarkdownFile, ReportFiles
from llama_ckpt.errors import OptionError
from llama_ckpt.outside import whole_number
from llama_ckpt.ranks.any_run import compare
from llama_ckpt.report.comparison import comparison_lines

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "compare"
EXAMPLE = (
    "Example: llama-ckpt compare mine.safetensors --model mine.gguf --reference dumps --html report.html"
)


def command(
    dumps: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DUMP", help="A safetensors file of your tensors; several: see above.", show_default=False
        ),
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

    Two dumps of one program, and no more: where they first differ. Three and more, or with --html or a model:
    side by side, who is nearest to what is exact where.

    Exit code 0 when all is right, 1 when not, 2 for bad input, 3 where all that differs is arithmetic that
    was not declared.
    """
    files = ReportFiles(json_file, junit_file, html_file, markdown_file)
    rounded = None if arithmetic is None else read_arithmetic(arithmetic)
    options: dict[str, Any] = {
        "reference": reference,
        "model": None if model is None else file_of(model),
        "dump": dump,
        "dtype": dtype,
        "arithmetic": rounded,
        "partial": partial,
    }
    ranks = ranks_of(rank)
    several = dumps is not None and len(dumps) > 1
    if several and (ranks or plan):
        raise OptionError("--rank", got=f"{len(dumps or ())} dumps as well", wanted="the dumps of one run")
    if dumps is not None and several:
        raise typer.Exit(compare_several(dumps, names, files, options))
    with ProgressBar() as bar:
        report = compare(
            dumps[0] if dumps else None, ranks=ranks, plan=plan, names=names, progress=bar, **options
        )
    console = Console(stderr=files.to_stdout, highlight=False, soft_wrap=True)
    for line in comparison_lines(report, verbose=verbose):
        console.say(*line)
    files.write(report.to_json())
    raise typer.Exit(report.exit_code)


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
