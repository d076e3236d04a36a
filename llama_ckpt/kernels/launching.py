"""How kernels are launched: how many rows and threads a program takes, by type and width of the weight.

Nothing is tuned at run time, so that the same model on the same GPU always computes the same bits. The
numbers were measured on an H200 (docs/performance.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llama_ckpt.kernels.compiler import INTERPRETED
from llama_ckpt.kernels.planes import Pack, Planes
from llama_ckpt.kernels.tiles import TILE_WIDTH

__all__ = [
    "Tile",
    "from_pieces",
    "launch_options",
    "matvec",
    "reading_arguments",
    "tile_for",
    "to_fragments",
    "to_pieces",
]


@dataclass(frozen=True)
class Tile:
    """What one program takes.

    Attributes:
        rows: of the weight; a power of two, at most the padding of planes.
        threads: a power of two; each takes 16 bytes of plain weights, or 32 packed weights, a step.
        unroll: steps whose loads are in flight together, for plain types.
    """

    rows: int
    threads: int
    unroll: int = 1


def tile_for(planes: Planes) -> Tile:
    """The tile for a weight: of its pack and width alone."""
    width, pack = planes.shape[1], planes.layout.pack
    if pack == Pack.TILES:
        return Tile(32, min(256, _power_of_two(width // 4)), 2)
    if pack == Pack.NIBBLE:
        return Tile(8, min(64, _power_of_two(width // 32)))
    if pack == Pack.BYTE:
        return Tile(4, min(128, _power_of_two(width // 32)))
    pieces = width // (4 if pack == Pack.FLOAT32 else 8)
    threads = min(128, _power_of_two(pieces))
    steps = -(-pieces // threads)
    return Tile(4, threads, 2 if steps % 2 == 0 else 1)


def _power_of_two(n: int) -> int:
    """The least power of two from 32 on that reaches n."""
    return max(32, 1 << (n - 1).bit_length())


def reading_arguments(planes: Planes, tile: Tile) -> dict[str, Any]:
    """The constants that tell a kernel how to read a weight."""
    width = planes.shape[1]
    pack = planes.layout.pack
    if pack == Pack.TILES:  # a warp takes 128 columns of 32 rows a step
        a_step = 4
    else:
        a_step = 32 if pack in (Pack.NIBBLE, Pack.BYTE) else 4 if pack == Pack.FLOAT32 else 8
    return {
        "PACK": int(pack),
        "MODE": int(planes.layout.mode),
        "OFFSET": planes.layout.offset,
        "R": tile.rows,
        "NT": tile.threads,
        "STEPS": -(-width // (a_step * tile.threads)),
        "UNROLL": tile.unroll,
    }


def launch_options(threads: int, pdl: bool) -> dict[str, Any]:
    """Launch options and the constants ASM and PDL."""
    if INTERPRETED:
        return {"ASM": False, "PDL": False}
    return {"ASM": True, "PDL": pdl, "num_warps": threads // 32, "launch_pdl": pdl}


def to_pieces(x: Tensor) -> Tensor:
    """Vectors [n, width] in the order in which kernels read them: see `reading`."""
    n, width = x.shape
    return x.reshape(n, width // 32, 8, 4).transpose(1, 2).reshape(n, width)


def from_pieces(x: Tensor) -> Tensor:
    """The inverse of `to_pieces`."""
    n, width = x.shape
    return x.reshape(n, 8, width // 32, 4).transpose(1, 2).reshape(n, width)


def to_fragments(x: Tensor) -> Tensor:
    """Vectors [n, width] as high and low bfloat16, in the order of `tensor_cores.fragment`: int32 [n, width].

    Zeros where the width is not whole chunks of 128: no kernel reads them then.
    """
    n, width = x.shape
    if width % TILE_WIDTH:
        return torch.zeros(n, width, dtype=torch.int32, device=x.device)
    high = x.bfloat16()
    parts = torch.stack((high, (x - high.float()).bfloat16()), dim=0)
    # [part, n, chunk, block, eight of 32, t, column of the pair] -> [n, chunk, block, part, t, eight, column]
    parts = parts.view(2, n, width // 128, 4, 4, 4, 2).permute(1, 2, 3, 0, 5, 4, 6)
    return parts.reshape(n, 2 * width).contiguous().view(torch.int32)


def matvec(planes: Planes, x: Tensor, *, out: Tensor | None = None, tile: Tile | None = None) -> Tensor:
    """W x for a few vectors, float32 sums of float32 products.

    Args:
        planes: the weight [rows, width].
        x: float32 [n, width].
        out: float32 [n, rows] to write to.
        tile: None takes the table's.

    Returns:
        float32 [n, rows].
    """
    from llama_ckpt.kernels.fused import matvec_kernel

    rows, width = planes.shape
    n = x.shape[0]
    y = x.new_empty(n, rows) if out is None else out
    tile = tile or tile_for(planes)
    grid = (n, -(-rows // tile.rows))
    pieces, fragments = to_pieces(x.to(torch.float32)), to_fragments(x.to(torch.float32))
    matvec_kernel[grid](
        planes.q, planes.scale, planes.super, pieces, fragments, pieces, y, rows, y.stride(0), 0.0,
        U=width // 32,
        NORM=False, PARTS=1, PARTS2=1,
        **reading_arguments(planes, tile), **launch_options(tile.threads, False),
    )  # fmt: skip
    return y
