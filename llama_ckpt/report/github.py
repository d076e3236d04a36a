"""Annotations as GitHub Actions reads them on standard output: the failures stand on the run's page.

Source: "Workflow commands for GitHub Actions" in GitHub's documentation: `::error title={title}::{message}`,
with %, CR and LF escaped in the message, and : and , in a property as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from llama_ckpt.report.headline import Record, failures, headline

__all__ = ["workflow_commands"]

MOST = 10
"""GitHub shows so many errors of a step."""


def workflow_commands(report: Record) -> Iterator[str]:
    """A line for each failure, at most ten; of undeclared arithmetic a warning; nothing of a pass.

    Args:
        report: the JSON of a ladder's or of a comparison's report.
    """
    if report.get("verdict") == "arithmetic":
        yield _command("warning", "llama_ckpt", headline(report))
        return
    found = list(islice(failures(report), MOST))
    if not found and headline(report).startswith("fail"):
        yield _command("error", "llama_ckpt", headline(report))
    for one in found:
        title = f"llama_ckpt: {one.where}" if one.where else "llama_ckpt"
        yield _command("error", title, f"{one.sentence}; {one.hint}" if one.hint else one.sentence)


def _command(level: str, title: str, message: str) -> str:
    return f"::{level} title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
