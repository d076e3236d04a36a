"""The files that a report can be written to, the same for every command that judges."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["HtmlFile", "JsonFile", "JunitFile", "ReportFiles"]

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON; - prints it.")
]
JunitFile = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Write it as JUnit XML, for a CI server.")
]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write it as one self-contained page.")
]


@dataclass(frozen=True)
class ReportFiles:
    """Where the report goes; each is made at once, so that one that cannot be written is found early.

    Attributes:
        json, junit, html: None where it is not asked for; `json` may be "-".
    """

    json: Path | None
    junit: Path | None
    html: Path | None

    def __post_init__(self) -> None:
        for path in (self.json, self.junit, self.html):
            if path is not None and path != Path("-"):
                path.touch()

    @property
    def to_stdout(self) -> bool:
        """Whether standard output is the JSON's, so that people read on standard error."""
        return self.json == Path("-")

    def write(self, report: Mapping[str, Any]) -> None:
        """Write what was asked for.

        Args:
            report: as `to_json` of a ladder's or a comparison's report gives it.
        """
        if self.junit is not None:
            from llama_ckpt.report.junit import junit

            self.junit.write_text(junit(report), encoding="utf-8")
        if self.html is not None:
            from llama_ckpt.report.html import page

            self.html.write_text(page(report), encoding="utf-8")
        text = json.dumps(report, indent=1, allow_nan=False) + "\n"
        if self.to_stdout:
            sys.stdout.write(text)
        elif self.json is not None:
            self.json.write_text(text, encoding="utf-8")
