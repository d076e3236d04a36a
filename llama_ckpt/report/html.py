"""A report as one self-contained page: no script, nothing loaded, light and dark, printable.

page(report.to_json())        # of a ladder, of a comparison, or of several side by side
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llama_ckpt.report.page_of_one import page_of_one
from llama_ckpt.report.page_of_several import page_of_several
from llama_ckpt.results import SIDE_BY_SIDE

__all__ = ["page"]


def page(report: Mapping[str, Any], facts: Iterable[tuple[str, str]] = ()) -> str:
    """The whole page.

    Args:
        report: the JSON of a report, as read or as `to_json` gives it.
        facts: names and texts that are said with the provenance: the command, the day.
    """
    draw = page_of_several if report.get("kind") == SIDE_BY_SIDE else page_of_one
    return draw(report, facts)
