"""The files that a report can be written to, the same for every command that judges."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from llama_ckpt.plain_text import one_line
from llama_ckpt.whole_files import check_writable, write_whole

__all__ = ["HtmlFile", "JsonFile", "JunitFile", "MarkdownFile", "ReportFiles"]

STDOUT = Path("-")

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON; - prints it.")
]
JunitFile = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Write it as JUnit XML, for a CI server.")
]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write it as one self-contained page.")
]


MarkdownFile = Annotated[
    Path | None,
    typer.Option("--markdown", metavar="FILE", help="Write a summary in Markdown, for a pull request."),
]


@dataclass(frozen=True)
class ReportFiles:
    """Where the report goes; a place that cannot be written is found before the work, a file appears whole.

    Under GitHub Actions, which sets GITHUB_ACTIONS, the failures are printed as annotations as well.

    Attributes:
        json, junit, html, markdown: None where it is not asked for; `json` may be "-".

    Raises:
        OptionError: a file could not be written.
    """

    json: Path | None
    junit: Path | None
    html: Path | None
    markdown: Path | None = None

    def __post_init__(self) -> None:
        for path in (self.json, self.junit, self.html, self.markdown):
            if path is not None and path != STDOUT:
                check_writable(path)

    @property
    def to_stdout(self) -> bool:
        """Whether standard output is the JSON's, so that people read on standard error."""
        return self.json == STDOUT

    def write(self, report: Mapping[str, Any]) -> None:
        """Write what was asked for.

        Args:
            report: as `to_json` of a ladder's or a comparison's report gives it.
        """
        if self.junit is not None:
            from llama_ckpt.report.junit import junit

            write_whole(self.junit, junit(report))
        if self.html is not None:
            from llama_ckpt.report.html import page

            write_whole(self.html, page(report, _facts()))
        if self.markdown is not None:
            from llama_ckpt.report.markdown import markdown

            write_whole(self.markdown, markdown(report))
        text = json.dumps(report, indent=1, allow_nan=False) + "\n"
        if self.to_stdout:
            sys.stdout.write(text)
        elif self.json is not None:
            write_whole(self.json, text)
        if os.environ.get("GITHUB_ACTIONS") == "true":
            self._annotate(report)

    def _annotate(self, report: Mapping[str, Any]) -> None:
        from llama_ckpt.report.github import workflow_commands

        for line in workflow_commands(report):
            print(one_line(line), file=sys.stderr if self.to_stdout else sys.stdout)  # the runner reads both


def _facts() -> list[tuple[str, str]]:
    """What was typed, when, and with which versions, for the page."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    runs_on = f"Python {platform.python_version()}, numpy {version('numpy')}, {platform.system()}"
    return [("command", f"llama-ckpt {shlex.join(sys.argv[1:])}"), ("made", now), ("with", runs_on)]
