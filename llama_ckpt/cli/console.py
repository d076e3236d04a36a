"""Where people read: lines out of which no name in a file can make two, or an escape code."""

from __future__ import annotations

import rich.console
from rich.text import Text

from llama_ckpt.plain_text import one_line

__all__ = ["Console"]


class Console(rich.console.Console):
    """rich's console that prints lines as they are, and leaves a broken pipe to the command line."""

    def on_broken_pipe(self) -> None:
        """Raise it again: rich would end the process with 1."""
        raise BrokenPipeError

    def say(self, *parts: str | tuple[str, str], style: str = "") -> None:
        """Print one line of texts, each alone or with its style."""
        plain = [one_line(part) if isinstance(part, str) else (one_line(part[0]), part[1]) for part in parts]
        self.print(Text.assemble(*plain, style=style))
