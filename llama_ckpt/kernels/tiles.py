"""Four-bit weights in tiles of 32 rows and 128 columns, in the order of the tensor cores' fragments.

A tile is two halves of 16 rows, and a half is 256 words: two runs of 32 lanes times 4 words. Lane 4 g + t
of half h holds rows 4 g + 2 h and the next, and of each 16 columns 2 t, 2 t + 1,
2 t + 8 and 2 t + 9: eight weights, one word. A pair of neighbouring columns
stands in bits 3 to 6 and 19 to 22, the pair number p of four turned left by 4 p bits.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["TILE_ROWS", "TILE_WIDTH", "tiled_entries", "tiled_words"]

TILE_ROWS: Final = 32
TILE_WIDTH: Final = 128


def tiled_words(q: Tensor) -> Tensor:
    """Integers of 0 to 15, uint8 [rows, width] -> int32 [rows, width / 8], a tile after the other."""
    rows, width = q.shape
    tiles, chunks = rows // TILE_ROWS, width // TILE_WIDTH
    # [tile, g, half, row of the pair, chunk, block, sixteen, eight, t, column of the pair]
    pairs = q.to(torch.int32).view(tiles, 8, 2, 2, chunks, 4, 2, 2, 4, 2)
    low, high = pairs[..., 0], pairs[..., 1]
    word = torch.zeros_like(low[:, :, :, 0, :, :, :, 0])
    for eight in range(2):
        for row in range(2):
            a, b = low[:, :, :, row, :, :, :, eight], high[:, :, :, row, :, :, :, eight]
            turn = 4 * (2 * eight + row)
            word |= a << (3 + turn)
            # The last pair's second number is turned over the end: one bit at the top, three at the bottom.
            word |= (b << (19 + turn)) if turn < 12 else (b << 31) | (b >> 1)
    # [tile, g, half, chunk, block, sixteen, t] -> [tile, half, chunk, run, g, t, word], two blocks a run
    word = word.view(tiles, 8, 2, chunks, 2, 4, 4).permute(0, 2, 3, 4, 1, 6, 5)
    return word.reshape(rows, width // 8)


def tiled_entries(entries: Tensor, lanes: int) -> Tensor:
    """Entries of a scale plane, int16 or int32 [rows, n], as lanes read them.

    Args:
        entries: for each row one every 32 weights (`lanes` 4: one for each t) or every 256 (1).
        lanes: how many neighbours of a row belong to the same step.

    Returns:
        int32 [rows, ...]: both rows of a lane together.
    """
    rows, n = entries.shape
    if n == 0:
        return entries
    # [tile, g, half, row of the pair, step, t] -> [tile, half, step, g, t, row of the pair]
    order = entries.view(rows // TILE_ROWS, 8, 2, 2, n // lanes, lanes).permute(0, 2, 4, 1, 5, 3)
    return order.reshape(rows, n).contiguous().view(torch.int32)
