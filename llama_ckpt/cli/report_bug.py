"""`llama-ckpt report-bug`: what to attach to a report of a fault in this program. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llama_ckpt.results import load_result
from llama_ckpt.whole_files import write_whole

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "report-bug"
EXAMPLE = "Example: llama-ckpt report-bug report.json --out bug.json"


def command(
    report: Annotated[
        Path | None, typer.Argument(metavar="REPORT.json", help="What --json wrote, where there is one.")
    ] = None,
    typed: Annotated[str, typer.Option("--command", metavar="TEXT", help="What you typed.")] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there; else it is printed.")
    ] = None,
) -> None:
    """Collect what to attach to a report of a fault.

    Versions, machine, shapes and verdicts as JSON; no weights, no tensors, no texts, no paths.
    """
    from llama_ckpt.report.bug_report import bug_report

    record = bug_report(None if report is None else load_result(report).to_json(), typed)
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    if out is None:
        print(text, end="")
    else:
        write_whole(out, text)
