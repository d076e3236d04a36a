"""Pieces of generated text, one after another, to text that is safe to show.

A token's piece may end inside a character, and a stop string may be spread over several tokens. So a tail
is held back: bytes until their character is whole, characters as long as a stop string can begin in them.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence

from llama_ckpt.errors import OptionError

__all__ = ["TextStream"]


class TextStream:
    """Turns pieces into text and watches for stop strings.

    The stop string that is complete first wins; of two that are complete with the same character, the
    longer, which begins earlier. So the text does not depend on how it was cut into pieces.

    Args:
        stop: the strings that end the text; one string may be given alone.

    Attributes:
        stopped: the stop string that was met, None until then.

    Raises:
        OptionError: a stop string is no text, or empty, which would end every text before it begins.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if not isinstance(stop, Iterable) or not all(isinstance(one, str) for one in stop):
            raise OptionError("stop strings", got=repr(stop)[:40], wanted="texts")
        self._stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(self._stops):
            raise OptionError(
                "a stop string is empty", got=repr(self._stops), wanted="at least one character each"
            )
        # "replace": bytes that can be no character become U+FFFD, as soon as that is certain.
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped: str | None = None

    def push(self, piece: bytes) -> str:
        """Take the next piece; the text that is now certain, possibly empty. After a stop string: nothing."""
        return self._advance(piece, final=False)

    def finish(self) -> str:
        """The rest of the text, which was held back for nothing; a broken last character is U+FFFD."""
        return self._advance(b"", final=True)

    def _advance(self, piece: bytes, *, final: bool) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + self._decoder.decode(piece, final)
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, end, self.stopped = min(found)
            self._held = ""
            return text[:end]
        end = len(text) if final else len(text) - self._begun(text)
        self._held = text[end:]
        return text[:end]

    def _begun(self, text: str) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        longest = max(map(len, self._stops), default=0)
        tails = range(min(len(text), longest - 1), 0, -1)
        return next((n for n in tails if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
