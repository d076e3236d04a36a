"""A PNG of few colours from one of many: a photograph of a page in a third of the room.

small = few_colours(page.photograph())
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["few_colours"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = 16
"""Four bits a pixel."""


def few_colours(png: bytes) -> bytes:
    """The same picture in `COLOURS` colours, those that stand for its own best.

    Args:
        png: 8 bits a channel, RGB or RGBA without transparency, not interlaced, as a browser writes it.
    """
    pixels = _pixels(png)
    palette, which = _palette(pixels)
    which = np.pad(which, ((0, 0), (0, which.shape[1] % 2)))
    packed = (which[:, 0::2] << 4 | which[:, 1::2]).astype(np.uint8)
    rows = np.hstack([np.zeros((len(packed), 1), np.uint8), packed])
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", palette.tobytes()), (b"IDAT", zlib.compress(rows.tobytes(), 9)))
    return SIGNATURE + b"".join(_chunk(kind, body) for kind, body in (*chunks, (b"IEND", b"")))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += length + 12


def _pixels(png: bytes) -> NDArray[np.uint8]:
    """Height, width, RGB: each row as the difference from its neighbours that its first byte names."""
    chunks = list(_chunks(png))
    width, height, _, kind = struct.unpack_from(">IIBB", dict(chunks)[b"IHDR"])
    step = {2: 3, 6: 4}[kind]
    data = zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT"))
    rows = np.frombuffer(data, np.uint8).reshape(height, 1 + width * step)
    above = [0] * (width * step)
    found = np.empty((height, width * step), np.uint8)
    for y, row in enumerate(rows.tolist()):
        above = _row(row[0], row[1:], above, step)
        found[y] = above
    return found.reshape(height, width, step)[..., :3]


def _row(how: int, row: list[int], above: list[int], step: int) -> list[int]:
    """PNG's five filters undone: none, left, above, their mean, Paeth's choice."""
    made = [0] * step + row
    for x in range(step, len(made)):
        left, up, corner = made[x - step], above[x - step], above[x - 2 * step] if x >= 2 * step else 0
        near = min((left, up, corner), key=lambda one: abs(left + up - corner - one))
        made[x] = (made[x] + (0, left, up, (left + up) // 2, near)[how]) & 255
    return made[step:]


def _palette(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """Colours, the most frequent first and the others far from those chosen; which each pixel has."""
    colours, place, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    known = colours.astype(float)
    chosen = known[[counts.argmax()]]
    while len(chosen) < min(COLOURS, len(known)):
        far = ((known[:, None] - chosen) ** 2).sum(-1).min(1)
        chosen = np.vstack([chosen, known[(far * np.sqrt(counts)).argmax()]])
    for _ in range(8):  # each to the middle of the colours that it stands for
        nearest = ((known[:, None] - chosen) ** 2).sum(-1).argmin(1)
        for number in set(nearest.tolist()):
            mine = nearest == number
            chosen[number] = np.average(known[mine], axis=0, weights=counts[mine])
    return chosen.round().astype(np.uint8), nearest[place.reshape(-1)].reshape(pixels.shape[:2])
