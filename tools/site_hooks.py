"""What mkdocs does to a page before it is set: links to files of the repository become their names.

A page under docs/ is read in the repository as well, where such a link leads somewhere; the site holds docs/
alone.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

__all__ = ["on_page_markdown"]

LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """mkdocs' hook: gets a page's text, gives the text that is set."""
    folder = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        text, target = found.group(1), found.group(2)
        outside = posixpath.normpath(posixpath.join(folder, target)).startswith("..")
        return f"`{text.strip('`')}`" if outside else found.group(0)

    return LINK.sub(link, markdown)
