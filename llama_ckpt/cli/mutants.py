"""`llama-ckpt mutants`: put the catalogues of bugs and of benign variants to the test."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from llama_ckpt.cli.console import Console
from llama_ckpt.cli.progress import ProgressBar
from llama_ckpt.errors import OptionError
from llama_ckpt.whole_files import temporary_folder, write_whole

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "mutants"
EXAMPLE = "Example: llama-ckpt mutants rope-half-split norm-eps-other --seeds 3"


def command(
    bugs: Annotated[
        list[str] | None,
        typer.Argument(metavar="BUG", help="Names of bugs, to try them alone; else all, and what is benign."),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="How many seeds to make models of.")] = 10,
    embedded: Annotated[
        bool, typer.Option(help="Try the embedded model's dumps too, beside small seeded models.")
    ] = True,
    real: Annotated[
        bool,
        typer.Option("--real", help="The corpus of faults that people reported, instead of the catalogues."),
    ] = False,
    arithmetic: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FILE|JSON", help="Plant bugs in a program that rounds so; repeatable."),
    ] = None,
    runs: Annotated[
        bool, typer.Option("--runs", help="Faults of caches, sequences, odd sizes and ranks instead.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON; - prints it.")
    ] = None,
) -> None:
    """Show that every known bug is caught and named.

    And that nothing right is condemned.

    A row a bug: the checkpoint that killed it, the point and the metrics that saw it, what the
    diagnosis called it. Then a row a benign variant, and what other tools' metrics make of all.

    With --real the corpus: faults from public reports, each a program of its own, put through
    `compare`; what was caught, at the right point, and how it was named (see docs/real_bugs.md).

    With --arithmetic the catalogue planted in programs that round on purpose, each compared as it
    declares: what was caught, at the right point, and how it was named (see docs/arithmetic.md).

    With --runs what one prompt in one call on one rank does not show: wrong layers in the situations
    that `validate` tries, and programs on several ranks, wrong and right.

    Exit code 0 when every bug is killed by the checkpoint that it names, 95% are named first and
    there is no false alarm; of the corpus when 98% are caught and 90% named; behind
    an arithmetic when 98% are caught and 95% named; else 1.
    """
    if runs:
        _run_runs(json_file)
    if real:
        _run_corpus(bugs or (), json_file)
    if arithmetic:
        _run_planted(arithmetic, bugs or (), json_file)
    from llama_ckpt.diagnose.bugs import catalogue
    from llama_ckpt.mutants.report import run_mutants
    from llama_ckpt.mutants.right_programs.catalogue import VARIANTS
    from llama_ckpt.report import mutants as rows

    known = {bug.name: bug for bug in catalogue()}
    for name in bugs or ():
        if name not in known:
            raise OptionError("bug", got=name, wanted="a name from docs/bugs.md")
    _touch(json_file)
    with ProgressBar() as bar:
        chosen = [known[name] for name in bugs] if bugs else None
        variants = () if bugs else VARIANTS
        report = run_mutants(seeds, embedded=embedded, bugs=chosen, variants=variants, progress=bar)
    _show(rows.lines(report), report.to_json(), json_file)
    raise typer.Exit(report.exit_code)


def _run_corpus(names: Sequence[str], json_file: Path | None) -> NoReturn:
    """`--real`: some entries, or all and the right programs."""
    from llama_ckpt.mutants.real.catalogue import real_bugs
    from llama_ckpt.mutants.real.report import run_real
    from llama_ckpt.report.real_bugs import lines

    known = {bug.name: bug for bug in real_bugs()}
    for name in names:
        if name not in known:
            raise OptionError("an entry of the corpus", got=name, wanted="a name from docs/real_bugs.md")
    _touch(json_file)
    chosen = [known[name] for name in names] if names else None
    with ProgressBar() as bar, temporary_folder("real") as folder:
        report = run_real(folder, bugs=chosen, right=() if names else None, progress=bar)
    _show(lines(report), report.to_json(), json_file)
    raise typer.Exit(report.exit_code)


def _run_planted(arithmetic: Sequence[str], names: Sequence[str], json_file: Path | None) -> NoReturn:
    """`--arithmetic`: some bugs, or all."""
    from llama_ckpt.arithmetic.profiles import read_arithmetic
    from llama_ckpt.mutants.declared.report import planted_bugs, run_planted
    from llama_ckpt.report.planted import planted_lines

    programs = [read_arithmetic(one) for one in arithmetic]
    known = {bug.name: bug for bug in planted_bugs()}
    for name in names:
        if name not in known:
            wanted = "a bug of a whole run, from docs/bugs.md"
            raise OptionError("bug behind an arithmetic", got=name, wanted=wanted)
    _touch(json_file)
    chosen = [known[name] for name in names] if names else None
    with ProgressBar() as bar, temporary_folder("planted") as folder:
        report = run_planted(programs, folder, bugs=chosen, progress=bar)
    _show(planted_lines(report), report.to_json(), json_file)
    raise typer.Exit(report.exit_code)


def _run_runs(json_file: Path | None) -> NoReturn:
    """`--runs`: all of them."""
    from llama_ckpt.mutants.runs.report import run_runs

    _touch(json_file)
    with ProgressBar() as bar, temporary_folder("runs") as folder:
        report = run_runs(folder, progress=bar)
    _show(report.lines(), report.to_json(), json_file)
    raise typer.Exit(report.exit_code)


def _touch(json_file: Path | None) -> None:
    if json_file is not None and json_file != Path("-"):
        json_file.touch()  # now, not after a minute of work, is the time to find that it cannot be written


def _show(lines: Iterable[tuple[str, str]], record: dict[str, Any], json_file: Path | None) -> None:
    """The table, and the JSON where it is wanted."""
    to_stdout = json_file == Path("-")
    console = Console(stderr=to_stdout, highlight=False, soft_wrap=True)
    for line, style in lines:
        console.say(line, style=style)
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
    if to_stdout:
        sys.stdout.write(text)
    elif json_file is not None:
        write_whole(json_file, text)
