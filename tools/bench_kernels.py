"""Time the packed-weight products by themselves, over tiles, with a cold L2, and check each against float64.

    python tools/bench_kernels.py [--types Q4_0,Q8_0,...] [--json FILE]

Every product is captured in a CUDA graph over several copies of the weight, more than the L2 holds, so
that each reads memory; the figure is the median of many replays. Random data: zeros run faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T

from llama_ckpt.kernels.launching import Tile, matvec, to_pieces
from llama_ckpt.kernels.planes import Planes, repack
from llama_ckpt.weights.quants import PackedWeight, Weight

SHAPES = {"output": (4096, 4096), "qkv": (12288, 4096), "gate_up": (22016, 4096), "down": (4096, 11008)}
FACTORS = {  # where the float16 factors of a block stand
    T.Q4_0: (0,), T.Q4_1: (0, 2), T.Q5_0: (0,), T.Q5_1: (0, 2), T.Q8_0: (0,), T.Q2_K: (80, 82),
    T.Q3_K: (108,), T.Q4_K: (0, 2), T.Q5_K: (0, 2), T.Q6_K: (208,), T.IQ4_NL: (0,), T.IQ4_XS: (0,),
}  # fmt: skip


def random_weight(kind: str, rows: int, width: int, device: str, seed: int = 0) -> Weight:
    """Random bytes with finite factors, or random numbers."""
    generator = torch.Generator(device=device).manual_seed(seed)
    if kind in ("F32", "F16", "BF16"):
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        return (torch.randn(rows, width, generator=generator, device=device) * 0.02).to(dtype)
    type = T[kind]
    block, block_bytes = GGML_QUANT_SIZES[type]
    n = rows * width // block
    raw = torch.randint(0, 256, (n, block_bytes), dtype=torch.uint8, generator=generator, device=device)
    for start in FACTORS[type]:
        factor = (torch.rand(n, 1, generator=generator, device=device) * 4e-3 + 1e-3).half()
        raw[:, start : start + 2] = factor.view(torch.uint8)
    return PackedWeight(raw.view(rows, -1), type, (rows, width))


def error(weight: Weight, planes: Planes, tile: Tile | None) -> float:
    """Relative error against float64, output poisoned."""
    x = torch.randn(3, planes.shape[1], device=planes.q.device)
    y = torch.full((3, planes.shape[0]), float("nan"), device=x.device)
    matvec(planes, x, out=y, tile=tile)
    exact = x.double() @ (weight.dequantize() if isinstance(weight, PackedWeight) else weight).double().T
    return float((y.double() - exact).norm() / exact.norm())


def microseconds(planes: Planes, tile: Tile | None) -> float:
    """Median time of one product, weights read from memory."""
    copies = max(2, -(-200_000_000 // planes.nbytes))
    sets = [Planes(planes.layout, planes.shape, planes.q.clone(), planes.scale.clone(), planes.super.clone())
            for _ in range(copies)]  # fmt: skip
    x = to_pieces(torch.randn(1, planes.shape[1], device=planes.q.device))
    y = torch.empty(1, planes.shape[0], device=x.device)
    run = lambda: [launch(p, x, y, tile) for p in sets]  # noqa: E731
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / copies)
    return statistics.median(times[3:])


def launch(planes: Planes, pieces: torch.Tensor, y: torch.Tensor, tile: Tile | None) -> None:
    """One product with overlapping starts, as in a step."""
    from llama_ckpt.kernels.fused import matvec_kernel
    from llama_ckpt.kernels.launching import launch_options, reading_arguments, tile_for

    tile = tile or tile_for(planes, fine=False)
    matvec_kernel[(1, -(-planes.shape[0] // tile.rows))](
        planes.q, planes.scale, planes.super, pieces, pieces, y, planes.shape[0], y.stride(0), 0.0,
        U=planes.shape[1] // 32, NORM=False, PARTS=1, PARTS2=1,
        **reading_arguments(planes, tile, fine=False), **launch_options(tile.threads, True, tile.registers),
    )  # fmt: skip


def aheads(planes: Planes, threads: int) -> tuple[int, ...]:
    """Numbers of steps read ahead that make sense."""
    if planes.layout.packed:
        return (1,)
    steps = -(-planes.shape[1] // (8 * threads))
    return tuple(n for n in (1, 2, 4) if steps % n == 0)


def main() -> None:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", default="F16,Q8_0,Q4_0,Q4_K,Q6_K")
    parser.add_argument("--rows", default="4,8,16")
    parser.add_argument("--threads", default="32,64,128,256")
    parser.add_argument("--json")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for kind in options.types.split(","):
        for name, (rows, width) in SHAPES.items():
            weight = random_weight(kind, rows, width, "cuda")
            planes = repack(weight)
            for threads in map(int, options.threads.split(",")):
                for r in map(int, options.rows.split(",")):
                    for ahead in aheads(planes, threads):
                        tile = Tile(r, threads, ahead=ahead)
                        took = microseconds(planes, tile)
                        results.append({"type": kind, "shape": name, "rows": r, "threads": threads,
                                        "ahead": ahead, "us": round(took, 2),
                                        "error": error(weight, planes, tile),
                                        "GB_s": round(planes.nbytes / took / 1e3)})  # fmt: skip
            best = sorted(
                (x for x in results if x["type"] == kind and x["shape"] == name), key=lambda x: x["us"]
            )
            for line in best[:3]:
                print(line, flush=True)
    if options.json:
        with open(options.json, "w") as out:
            json.dump(results, out, indent=0)


if __name__ == "__main__":
    main()
