"""`llama-ckpt mutants`: put the catalogues of bugs and of benign variants to the test."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from llama_ckpt.cli.progress import ProgressBar
from llama_ckpt.errors import OptionError

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
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON; - prints it.")
    ] = None,
) -> None:
    """Show that every known bug is caught and named.

    And that nothing right is condemned.

    A row a bug: the checkpoint that killed it, the point and the metrics that saw it, what the
    diagnosis called it. Then a row a benign variant, and what other tools' metrics make of all.

    Exit code 0 when every bug is killed by the checkpoint that it names, 95% are named first and
    there is no false alarm; else 1.
    """
    from llama_ckpt.diagnose.bugs import catalogue
    from llama_ckpt.mutants.report import run_mutants
    from llama_ckpt.mutants.right_programs.catalogue import VARIANTS
    from llama_ckpt.report import mutants as rows

    known = {bug.name: bug for bug in catalogue()}
    for name in bugs or ():
        if name not in known:
            raise OptionError("bug", got=name, wanted="a name from docs/bugs.md")
    to_stdout = json_file == Path("-")
    if json_file is not None and not to_stdout:
        json_file.touch()  # now, not after a minute of work, is the time to find that it cannot be written
    with ProgressBar() as bar:
        chosen = [known[name] for name in bugs] if bugs else None
        variants = () if bugs else VARIANTS
        report = run_mutants(seeds, embedded=embedded, bugs=chosen, variants=variants, progress=bar)
    console = Console(stderr=to_stdout, highlight=False, soft_wrap=True)
    for line, style in rows.lines(report):
        console.print(Text(line, style))
    text = json.dumps(report.to_json(), ensure_ascii=False, separators=(",", ":")) + "\n"
    if to_stdout:
        sys.stdout.write(text)
    elif json_file is not None:
        json_file.write_text(text, encoding="utf-8")
    raise typer.Exit(report.exit_code)
