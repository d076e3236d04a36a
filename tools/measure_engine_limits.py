"""Measure how far from exact the engine's kernels are, and write the table that its limits stand on.

    python -m tools.measure_engine_limits            # needs a GPU, a minute
    python -m tools.measure_engine_limits --out F    # to F, not into llama_ckpt/judging

The shapes of `measured_models`, in several file types; every block on inputs from the oracle, and whole
models from their tokens, through the few-row kernels and through the tensor cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from llama_ckpt.engine.engine import Engine, Precision, engine_points
from llama_ckpt.engine.forced import forced_block, forced_logits
from llama_ckpt.model import Model, load
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import split_name
from llama_ckpt.precisions import ENGINE_PRECISIONS
from llama_ckpt.weights.quants import PackedWeight, Weight
from llama_ckpt.weights.records import BlockWeights, ModelWeights
from tools.measure_limits import Maxima, Prompt, Table, data
from tools.measured_models import EMBEDDED, SHAPES, Shape, model_for

KINDS = ("F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K")
SEEDS = range(2)
TOKENS = (2, 17, 300)
"""Up to 16 go through the few-row kernels. The last only where a row of logits is short."""

ENGINE_SHAPES = (*SHAPES, Shape("K-quants", 256, 4, 4, 64, 768, n_layers=32, free=True))
"""One more, whose widths are whole blocks of 256, at full depth."""

MATRICES = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
ORDER = (*engine_points(), "logits")


def converted(kind: str, matrix: torch.Tensor, seed: int) -> Weight:
    """A matrix in a file type; random K-quant blocks of the same spread, which `gguf` cannot write."""
    if kind == "F16":
        return matrix.half().cuda()
    if kind in ("Q4_K", "Q6_K"):
        return _random_k_blocks(kind, matrix, seed)
    type = GGMLQuantizationType[kind]
    raw = torch.from_numpy(quantize(matrix.float().numpy(), type))
    return PackedWeight(raw.cuda(), type, (matrix.shape[0], matrix.shape[1]))


def _random_k_blocks(kind: str, matrix: torch.Tensor, seed: int) -> PackedWeight:
    """Uniform quants about zero: minima equal scales in Q4_K, with 7.5 times their factor."""
    rows, width = matrix.shape
    generator = torch.Generator().manual_seed(seed)
    n, size = rows * width // 256, 144 if kind == "Q4_K" else 210
    raw = torch.randint(0, 256, (n, size), dtype=torch.uint8, generator=generator)
    spread = float(matrix.float().std())
    if kind == "Q4_K":
        raw[:, 8:12] = raw[:, 4:8]
        raw[:, 12:16] = (raw[:, 12:16] & 15) * 17
        factors = torch.tensor([spread / 170, 7.5 * spread / 170]).half().view(torch.uint8)
        raw[:, :4] = factors
    else:
        raw[:, 192:208] = raw[:, 192:208] // 2  # scales, not negative
        raw[:, 208:] = torch.tensor([spread / 1350]).half().view(torch.uint8)
    return PackedWeight(raw.view(rows, -1).cuda(), GGMLQuantizationType[kind], (rows, width))


def models(shape: Shape, seed: int, tiny: Model) -> Iterator[tuple[str, Model]]:
    """The shape in every file type that its widths admit."""
    config, weights = model_for(shape, seed)
    widths = (config.width, config.q_width, config.ffn)
    for kind in KINDS:
        if shape.name == "trained" and kind in ("Q4_K", "Q6_K"):
            continue  # its weights are its own
        if shape.n_layers == 1 and kind in ("Q8_0", "Q6_K"):
            continue  # one layer each for the types in between: the long sums are what counts there
        if any(width % (256 if kind in ("Q4_K", "Q6_K") else 32) for width in widths):
            continue
        blocks = tuple(_block(kind, block, seed + 10 * number) for number, block in enumerate(weights.blocks))
        on_gpu = ModelWeights(
            weights.token_embd.float().cuda(), blocks, weights.output_norm.float().cuda(),
            converted(kind, weights.output, seed + 1),
        )  # fmt: skip
        yield kind, replace(tiny, config=config, weights=on_gpu)


def _block(kind: str, block: Any, seed: int) -> BlockWeights:
    matrices = {name: converted(kind, getattr(block, name), seed + i) for i, name in enumerate(MATRICES)}
    norms = {name: getattr(block, name).float().cuda() for name in ("attn_norm", "ffn_norm")}
    return BlockWeights(**norms, **matrices)


def exact_weights(model: Model) -> Any:
    """The same values for the oracle."""

    def array(w: Weight) -> Any:
        return (w.dequantize(torch.float32) if isinstance(w, PackedWeight) else w).double().cpu().numpy()

    plain = {name: array(getattr(model.weights, name)) for name in ("token_embd", "output_norm", "output")}
    blocks = [
        SimpleNamespace(**{name: array(getattr(b, name)) for name in (*MATRICES, "attn_norm", "ffn_norm")})
        for b in model.weights.blocks
    ]
    return SimpleNamespace(blocks=blocks, **plain)


def measure_model(maxima: Maxima, shape: Shape, seed: int, kind: str, model: Model) -> None:
    """Both precisions, few and many tokens, forced and free."""
    wide = exact_weights(model)
    engines = {precision: Engine(model, precision, capacity=512) for precision in ENGINE_PRECISIONS}
    for n in TOKENS if model.config.vocab_size < 10_000 else TOKENS[:-1]:
        token_ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, n)
        positions = shape.first_position + np.arange(n)
        exact: dict[str, Any] = {}
        options = {"config": model.config, "positions": positions}
        exact["logits"] = oracle.logits(token_ids, wide, **options, tap=exact.__setitem__)
        prompt = Prompt(token_ids, positions, (f"{shape.name}, {kind}, {n} tokens", seed, "engine"))
        forced_exact = _forced_exact(exact, wide, options)
        for precision, engine in engines.items():
            see = _seer(maxima, precision, "own", forced_exact, prompt)
            _forced(engine, exact, positions, see)
            if shape.free:
                see = _seer(maxima, precision, "total", exact, prompt)
                see("logits", engine.logits(token_ids.tolist(), positions.tolist(), tap=see))


def _seer(
    maxima: Maxima, precision: Precision, error_kind: str, exact: Any, prompt: Prompt
) -> Callable[[str, torch.Tensor], None]:
    def see(name: str, x: torch.Tensor) -> None:
        if split_name(name)[1] in ORDER:
            maxima.see(precision, error_kind, name, x.cpu(), exact[name], prompt)

    return see


def _stream(exact: Any, number: int) -> Any:
    return exact["embd" if number == 0 else f"blk.{number - 1}.out"].astype(np.float32)


def _forced_exact(exact: Any, wide: Any, options: Any) -> dict[str, Any]:
    """The oracle's blocks and head on the float32 stream that the engine gets."""
    found = {"embd": exact["embd"]}
    for number, block in enumerate(wide.blocks):

        def tap(point: str, array: Any, number: int = number) -> None:
            found[f"blk.{number}.{point}"] = array

        tap("out", oracle.block(_stream(exact, number), block, **options, tap=tap))
    found["logits"] = oracle.output_logits(_stream(exact, len(wide.blocks)), wide, config=options["config"])
    return found


def _forced(engine: Engine, exact: Any, positions: Any, see: Callable[[str, torch.Tensor], None]) -> None:
    for number in range(engine.config.n_layers):
        forced_block(engine, number, torch.from_numpy(_stream(exact, number)), positions.tolist(), see)
    see("logits", forced_logits(engine, torch.from_numpy(_stream(exact, engine.config.n_layers))))
    see("embd", torch.from_numpy(exact["embd"].astype(np.float32)))  # a lookup in float32: nothing is rounded


def measure_one(shape: Shape, seed: int) -> Table:
    """One shape with one seed, in every type; a process of its own."""
    maxima, tiny = Maxima(), load(EMBEDDED, device="cuda")
    for kind, model in models(shape, seed, tiny):
        begun = time.perf_counter()
        measure_model(maxima, shape, seed, kind, model)
        took = time.perf_counter() - begun
        print(f"{shape.name}, seed {seed}, {kind}: {took:.1f} s", file=sys.stderr, flush=True)
    return maxima.table


def measure_all(jobs: int) -> Table:
    """Every shape, seed and type."""
    runs = [(shape, seed) for shape in reversed(ENGINE_SHAPES) for seed in SEEDS]  # the largest first
    maxima = Maxima()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for table in pool.map(measure_one, *zip(*runs, strict=True)):
            for dtype, error_kinds in table.items():
                for error_kind, points in error_kinds.items():
                    for point, errors in points.items():
                        maxima.add(dtype, error_kind, point, errors)
    return maxima.table


def measured_on() -> str:
    """What the figures are the largest of."""
    return f"{len(SEEDS)} seeds, {len(ENGINE_SHAPES)} shapes, {len(KINDS)} types, 2 to 300 tokens, on a GPU"


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    default = Path(__file__).parents[1] / "llama_ckpt" / "judging" / "measured_engine_errors.json"
    parser.add_argument("--out", type=Path, default=default, help="where to write")
    parser.add_argument("--jobs", type=int, default=4, help="shapes measured side by side")
    options = parser.parse_args()
    options.out.write_text(data(measure_all(options.jobs), measured_on()), encoding="utf-8")


if __name__ == "__main__":
    main()
