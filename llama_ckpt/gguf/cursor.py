"""Reading a GGUF header step by step, never past the end of the file and never more than it holds."""

from __future__ import annotations

import mmap
import struct
from typing import Final

import numpy as np

from llama_ckpt.errors import ModelFileError

__all__ = ["AGAIN", "Cursor", "shown"]

_U64: Final = struct.Struct("<Q")

AGAIN: Final = "copy or download the file again"
"""What to do about a file that is not whole."""


def shown(value: object) -> str:
    """A name or a value out of a file for a message: short, printable, on one line."""
    if isinstance(value, (list, np.ndarray)):
        return f"an array of {len(value)}"
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Cursor:
    """A place in the header of a mapped file that never passes its end.

    Args:
        data: the whole file.
        limit: the most bytes that a header may have.
        strings: the most strings that arrays may hold, all arrays of the header together.

    Attributes:
        data: the file.
        end: where the header has to have ended: with the file, or at the limit.
        at: the next byte.
        strings_left: how many strings arrays may still hold.
    """

    def __init__(self, data: mmap.mmap, *, limit: int, strings: int) -> None:
        self.data: Final = data
        self.end: Final = min(len(data), limit)
        self.at = 0
        self.strings_left = strings

    def advance(self, n_bytes: int, what: str) -> int:
        """Step over `n_bytes` and return where they start."""
        start, left = self.at, self.end - self.at
        if n_bytes > left and n_bytes <= len(self.data) - start:
            raise ModelFileError(
                f"the header is too long, in {what} at byte {start}",
                got=f"{n_bytes} bytes more",
                wanted=f"at most {self.end} bytes in all",
            )
        if n_bytes > left:
            raise ModelFileError(
                f"the file ends within its header, in {what} at byte {start}",
                got=f"{left} bytes",
                wanted=f"{n_bytes}",
                hint=AGAIN,
            )
        self.at = start + n_bytes
        return start

    def u32(self, what: str) -> int:
        """The next four bytes, little-endian."""
        return int(struct.unpack_from("<I", self.data, self.advance(4, what))[0])

    def u64(self, what: str) -> int:
        """The next eight bytes, little-endian."""
        return int(struct.unpack_from("<Q", self.data, self.advance(8, what))[0])

    def count(self, what: str, *, smallest: int, limit: int) -> int:
        """A count of things that take at least `smallest` bytes each in what is left of the file."""
        n = self.u64(what)
        left = self.end - self.at
        most = min(limit, left // smallest)
        if n > most:
            raise ModelFileError(
                what,
                got=n,
                wanted=f"at most {most} in the {left} bytes that follow",
                hint=AGAIN if n <= limit else None,
            )
        return n

    def string(self, what: str, limit: int | None = None) -> bytes:
        """A string, as bytes; copied out of the file only when the file holds all of it."""
        n = self.u64(f"the length of {what}")
        if limit is not None and n > limit:
            raise ModelFileError(f"the length of {what}", got=n, wanted=f"at most {limit} bytes")
        start = self.advance(n, what)
        return self.data[start : start + n]

    def strings(self, n: int, what: str) -> list[bytes]:
        """`n` strings, as bytes; a vocabulary has tens of thousands, so the steps are taken here."""
        data, at, end, read = self.data, self.at, self.end, _U64.unpack_from
        found: list[bytes] = []
        for _ in range(n):
            start = at + 8
            after = start + read(data, at)[0] if start <= end else end + 1
            if after > end:
                self.at = at
                return [*found, self.string(what)]  # which raises, and says why
            found.append(data[start:after])
            at = after
        self.at = at
        return found
