"""`llama-ckpt compare A B …`: where two dumps first differ, or several side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_ckpt.cli.console import Console
from llama_ckpt.cli.progress import ProgressBar
from llama_ckpt.cli.reports import ReportFiles
from llama_ckpt.comparing.side_by_side import labels, side_by_side
from llama_ckpt.comparing.two_dumps import compare_two
from llama_ckpt.errors import OptionError
from llama_ckpt.report.side_by_side import side_by_side_lines
from llama_ckpt.whole_files import write_whole

__all__ = ["compare_several"]


def compare_several(
    dumps: Sequence[Path], names: Path | None, files: ReportFiles, options: Mapping[str, Any]
) -> int:
    """Two dumps of one program alone: where they first differ. A page, a model or three dumps: side by side.

    Args:
        names: as `--map`. options: of `side_by_side`.

    Returns:
        The exit code.

    Raises:
        OptionError: a report that is of one dump alone.
    """
    for option, path in (("--junit", files.junit), ("--markdown", files.markdown)):
        if path is not None:
            wanted = "--html or --json of several dumps"
            raise OptionError(option, got=f"{len(dumps)} dumps", wanted=wanted, hint="compare each by itself")
    if len(dumps) == 2 and files.html is None and not any(options.values()):
        return _two(dumps[0], dumps[1], names, files)
    with ProgressBar() as bar:
        named = dict(zip(labels(dumps), dumps, strict=True))
        found = side_by_side(named, names=names, progress=bar, **options)
    report = found.to_json()
    console = Console(stderr=files.to_stdout, highlight=False, soft_wrap=True)
    for line in side_by_side_lines(report):
        console.say(*line)
    files.write(report)
    return found.exit_code


def _two(first: Path, second: Path, names: Path | None, files: ReportFiles) -> int:
    """Where they first differ, and nothing of who is right."""
    found = compare_two(first, second, names)
    console = Console(stderr=files.to_stdout, highlight=False, soft_wrap=True)
    for line in found.lines():
        console.say(line)
    text = json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n"
    if files.to_stdout:
        sys.stdout.write(text)
    elif files.json is not None:
        write_whole(files.json, text)
    return found.exit_code
