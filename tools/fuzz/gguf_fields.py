"""A GGUF file as its fields, so that one can be changed and the others stay where they are to be found."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

from tools.fuzz.mutate import INTEGERS, TEXTS, changed_bytes

__all__ = ["Fields", "changed_gguf", "fields_of"]

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
ALIGNMENT = 32
TEXT = ("text", "item")
"""Fields with a length before them; an item is one of an array of texts."""


@dataclass
class Fields:
    """A header's fields in order, each its bytes and whether it is a text, and the data behind."""

    parts: list[tuple[str, bytes]] = field(default_factory=list)
    data: bytes = b""

    def bytes(self) -> bytes:
        """The file: texts with their lengths, and the data where the alignment puts it."""
        made = b"".join(
            struct.pack("<Q", len(part)) + part if kind in TEXT else part for kind, part in self.parts
        )
        return made + b"\0" * (-len(made) % ALIGNMENT) + self.data


def fields_of(data: bytes) -> Fields:
    """Take a sound file apart; of another one an IndexError, or the like, says that it cannot be."""
    walk = _Walk(data)
    walk.take("bytes", 4)
    walk.take("u32", 4)
    n_tensors, n_keys = walk.number(8), walk.number(8)
    for _ in range(n_keys):
        walk.text()
        walk.value(walk.number(4))
    for _ in range(n_tensors):
        walk.text()
        for _ in range(walk.number(4)):
            walk.number(8)
        walk.number(4)
        walk.number(8)
    walk.found.data = data[-(-walk.at // ALIGNMENT) * ALIGNMENT :]
    return walk.found


class _Walk:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.found = data, 0, Fields()

    def take(self, kind: str, n: int) -> bytes:
        part = self.data[self.at : self.at + n]
        if len(part) != n:
            raise IndexError("no sound file")
        self.found.parts.append((kind, part))
        self.at += n
        return part

    def number(self, n: int) -> int:
        return int.from_bytes(self.take("number", n), "little")

    def text(self, kind: str = "text") -> None:
        n = struct.unpack_from("<Q", self.data, self.at)[0]
        self.at += 8
        self.take(kind, n)

    def value(self, kind: int) -> None:
        if kind == 8:
            self.text()
        elif kind == 9:
            inner, n = self.number(4), self.number(8)
            for _ in range(n if inner == 8 else 0):
                self.text("item")
            if inner != 8:
                self.take("array", n * SIZES[inner])
        else:
            self.take("number", SIZES[kind])


def changed_gguf(fields: Fields, rng: random.Random) -> bytes:
    """A file with some fields changed; in a tenth of the cases any bytes of it."""
    parts, data = list(fields.parts), fields.data
    # What lies in arrays and in the data is believed by no header: such mutants mostly come further.
    inner = (
        [at for at, (kind, _) in enumerate(parts) if kind in ("item", "array")] if rng.random() < 0.6 else []
    )
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.choice(inner) if inner else rng.randrange(len(parts))
        kind, part = parts[at]
        if kind in TEXT:
            parts[at] = (kind, _text(part, rng))
        elif kind == "array":
            parts[at] = (kind, _same_length(part, rng))
        else:
            parts[at] = (kind, (rng.choice(INTEGERS) % 2 ** (8 * len(part))).to_bytes(len(part), "little"))
    if rng.random() < 0.3:
        data = _same_length(data, rng)
    made = Fields(parts, data).bytes()
    return changed_bytes(made, rng) if rng.random() < 0.1 else made


def _text(part: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    return changed_bytes(part, rng) if part else b"\xff\x00"


def _same_length(part: bytes, rng: random.Random) -> bytes:
    found = bytearray(part)
    for _ in range(rng.choice((1, 3, 20)) if found else 0):
        at = rng.randrange(len(found))
        found[at] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
    return bytes(found)
