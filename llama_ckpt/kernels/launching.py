"""How kernels are launched: how many rows and threads a program takes, by type and width of the weight.

Nothing is tuned at run time, so that the same model on the same GPU always computes the same bits: another
tile adds up in another order. The numbers were measured on an H200: steps 8, 18 and 19 of
docs/speed_steps.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llama_ckpt.kernels.compiler import INTERPRETED
from llama_ckpt.kernels.planes import Layout, Mode, Pack, Planes

__all__ = [
    "HOPPER",
    "WARP",
    "Tile",
    "from_pieces",
    "launch_options",
    "matvec",
    "reading_arguments",
    "tile_for",
    "to_pieces",
    "power_of_two",
]


WARP = 32
"""Threads that run in step; Triton counts programs' threads in warps."""

HOPPER = (9, 0)
"""The compute capability from which on kernels overlap and add pairs of 16-bit integers."""


@dataclass(frozen=True)
class Tile:
    """What one program takes.

    Attributes:
        rows: of the weight; a power of two, at most the padding of planes.
        threads: a power of two; each takes 16 bytes of plain weights, or 32 packed weights, a step.
        passes: in which a step takes the rows, a power of two: what a thread made of its share of the
            vector serves all of them, and only the words of a pass or two are in registers.
        ahead: passes whose weights are read before they are needed; 1 or more.
        registers: the most a thread takes, so that more programs run side by side; None leaves it open.
    """

    rows: int
    threads: int
    passes: int = 1
    ahead: int = 1
    registers: int | None = None


FEW_ROWS = 8192
"""Up to so many rows a weight's programs are all in progress at once, and none need make room for another."""


def tile_for(planes: Planes, *, fine: bool) -> Tile:
    """The tile for a weight: of its layout and shape alone, and of the vector's precision."""
    # Of the layout and the shape, not of the file: a matrix has the same bits alone and among others. Threads
    # beyond a row's pieces would have nothing to do, and passes read ahead beyond its end nothing to read.
    (rows, width), layout = planes.shape, planes.layout
    few, pieces = rows <= FEW_ROWS, width // layout.piece
    if layout.packed:
        tile = _packed_tile(layout, few=few, one_step=pieces <= 128, fine=fine)
        if layout.mode >= Mode.K_PAIR and not fine:
            tile = _beside_7b(tile, rows, pieces)
    else:
        tile = Tile(8, 128, ahead=2 if few else 1)
    threads = min(tile.threads, power_of_two(pieces, WARP))
    return replace(tile, threads=threads, ahead=min(tile.ahead, tile.passes * -(-pieces // threads)))


MANY_ROWS, LONG_ROWS = 24_000, 384
"""More rows than gate and up of Llama-2-7B have together, and more pieces to a row than its down."""


def _beside_7b(tile: Tile, rows: int, pieces: int) -> Tile:
    """The tile for the K-quants' larger matrices, as Llama-3.1-8B has them; `tile` is for those of 7B."""
    # Step 24: 622 tokens a second to 653; without either of them 643.
    if pieces > LONG_ROWS:
        return Tile(8, 128, passes=2, ahead=2)
    return Tile(8, 128) if rows > MANY_ROWS and rows < VOCABULARIES else tile


VOCABULARIES = 32_000
"""Rows of output heads, from which on no other tile was faster."""


def _packed_tile(layout: Layout, *, few: bool, one_step: bool, fine: bool) -> Tile:
    """As measured, for rows of thousands of weights; `one_step`: 128 threads take a whole row at once."""
    # Step 19, tokens a second of Llama-2-7B before and after: Q8_0 535 to 538 (`fast`), 506 to 524 (`high`).
    if layout.pack == Pack.BYTE:
        return Tile(16, 128, passes=4, ahead=4) if few else Tile(16, 128, passes=4, registers=128)
    # Q6_K keeps step 18's tile where 128 threads take a whole row; longer rows (down) and Q4_K gained by two
    # passes.
    if layout.pack == Pack.SIX:
        return Tile(8, 128) if one_step else Tile(16, 128, passes=2)
    if layout.mode == Mode.K_PAIR:
        return Tile(16, 128, passes=2)
    # Q4_0 and its like. `high` does most arithmetic and gains most by small passes: 701 to 765, with fewer
    # registers so that more programs run. `fast` gained by passes in wo and down alone: 814 to 819.
    if fine:
        return Tile(16, 128, passes=8, ahead=4) if few else Tile(16, 128, passes=8, ahead=2, registers=80)
    return Tile(16, 128, passes=8, ahead=3, registers=168) if few else Tile(8, 64)


def power_of_two(n: int, least: int = 1) -> int:
    """The least power of two from `least` on that reaches n: Triton's tiles have such lengths alone."""
    return max(least, 1 << max(0, n - 1).bit_length())


def reading_arguments(planes: Planes, tile: Tile, *, fine: bool) -> dict[str, Any]:
    """The constants that tell a kernel how to read a weight, and the vector: see `integer_vector`."""
    width, layout = planes.shape[1], planes.layout
    return {
        "PACK": int(layout.pack),
        "MODE": int(layout.mode),
        "OFFSET": layout.offset,
        "R": tile.rows,
        "PASSES": tile.passes,
        "NT": tile.threads,
        "STEPS": -(-width // (layout.piece * tile.threads)),
        "AHEAD": tile.ahead,
        "FINE": fine,
    }


def launch_options(threads: int, pdl: bool, registers: int | None = None) -> dict[str, Any]:
    """Launch options and the constants ASM (0: the interpreter; 2: instructions of Hopper, too) and PDL."""
    if INTERPRETED:
        return {"ASM": 0, "PDL": False}
    limit = {} if registers is None else {"maxnreg": registers}
    return {
        "ASM": 2 if torch.cuda.get_device_capability() >= HOPPER else 1,
        "PDL": pdl,
        "num_warps": threads // WARP,
        "launch_pdl": pdl,
        "enable_fp_fusion": True,  # Triton's default, but not for good
        **limit,
    }


def to_pieces(x: Tensor) -> Tensor:
    """Vectors [n, width] in the order in which kernels read them: see `reading`."""
    n, width = x.shape
    return x.reshape(n, width // 32, 8, 4).transpose(1, 2).reshape(n, width)


def from_pieces(x: Tensor) -> Tensor:
    """The inverse of `to_pieces`."""
    n, width = x.shape
    return x.reshape(n, 8, width // 32, 4).transpose(1, 2).reshape(n, width)


def matvec(
    planes: Planes, x: Tensor, *, fine: bool = True, out: Tensor | None = None, tile: Tile | None = None
) -> Tensor:
    """W x for a few vectors, summed in float32.

    Args:
        planes: the weight [rows, width].
        x: float32 [n, width].
        fine: keep 23 bits of x where weights are packed, not 16.
        out: float32 [n, rows] to write to.
        tile: None takes the table's.

    Returns:
        float32 [n, rows].
    """
    from llama_ckpt.kernels.fused import matvec_kernel

    rows, width = planes.shape
    n = x.shape[0]
    y = x.new_empty(n, rows) if out is None else out
    tile = tile or tile_for(planes, fine=fine)
    grid = (n, -(-rows // tile.rows))
    pieces = to_pieces(x.to(torch.float32))
    matvec_kernel[grid](
        planes.q, planes.scale, planes.super, pieces, pieces, y, rows, y.stride(0), 0.0,
        U=width // 32,
        NORM=False, PARTS=1, PARTS2=1,
        **reading_arguments(planes, tile, fine=fine), **launch_options(tile.threads, False, tile.registers),
    )  # fmt: skip
    return y
