"""Where people read: lines out of which no name in a file can make two, or an escape code."""

from __future__ import annotations

import rich.console
from rich.text import Text

from llama_ckpt.plain_text import one_line

__all__ = ["Console"]


NAMES = 15
"""Columns that the name of a fact has."""

COMMAND = "llama-ckpt "


class Console(rich.console.Console):
    """rich's console that prints lines as they are, and leaves a broken pipe to the command line."""

    def on_broken_pipe(self) -> None:
        """Raise it again: rich would end the process with 1."""
        raise BrokenPipeError

    def say(self, *parts: str | tuple[str, str], style: str = "") -> None:
        """Print one line of texts, each alone or with its style."""
        plain = [one_line(part) if isinstance(part, str) else (one_line(part[0]), part[1]) for part in parts]
        self.print(self._fitted(Text.assemble(*plain, style=style)))

    def _fitted(self, text: Text) -> Text:
        """A line in the terminal's width: what is too long goes on below its beginning, by whole words.

        What goes into a file or another program stays a line, and so does a command: it is to be copied.
        """
        plain, begins = text.plain, len(text.plain) - len(text.plain.lstrip())
        if not self.is_terminal or text.cell_len <= self.width or COMMAND in plain:
            return text
        is_fact = begins < NAMES < len(plain) and plain[NAMES - 1] == " "
        indent = NAMES if is_fact else begins
        if self.width - indent < NAMES:
            return text
        whole = text[:indent]
        for number, part in enumerate(text[indent:].wrap(self, self.width - indent)):
            part.rstrip()
            whole = whole + Text("\n" + " " * indent) + part if number else whole + part
        return whole
