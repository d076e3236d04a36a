"""How fast the engine is on a model, beside what the machine allows, and llama.cpp on the same file.

Every figure is the median of several runs after a warm-up, with its spread. Speeds are tokens a second.
Each prefill is of tokens that were not seen before. Prompts of one size, in steps of 128 tokens, share
their captured launches; the first of a size has none, and is shown beside the others.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from checkpoints.c12_end_to_end import generate
from llama_ckpt.engine.engine import Engine, Precision
from llama_ckpt.engine.session import Session
from llama_ckpt.errors import OptionError, ReferenceCrashedError
from llama_ckpt.model import Model, load
from llama_ckpt.weights.loading import Progress

__all__ = ["DEPTHS", "PROMPTS", "Figure", "llama_cpp_figures", "measure"]

PROMPTS = (512, 2048)
DEPTHS = (0, 2048, 4000, 16000)
WARM_UP = 2  # runs that do not count
DECODED = 128  # tokens a decoding run generates; fewer where the context ends


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        name: what was measured.
        unit: of median and spread.
        median: of the runs.
        spread: largest less smallest.
        share: of the measured ceiling that limits it, or None.
    """

    name: str
    unit: str
    median: float
    spread: float
    share: float | None = None


def measure(
    path: Path, precision: Precision = "fast", repeats: int = 5, progress: Progress | None = None
) -> Iterator[Figure]:
    """Load a model and yield its figures one by one.

    Args:
        path: a GGUF file.
        precision: the engine's.
        repeats: runs a figure; 1 or more.
        progress: of loading, as `load` calls it.

    Raises:
        OptionError: fewer than one run.
        DeviceError: no CUDA device.
    """
    if repeats < 1:
        raise OptionError("repeats", got=repeats, wanted="1 or more")
    torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    model = load(path, device="cuda", progress=progress)
    engine = Engine(model, precision)
    torch.cuda.synchronize()
    took = time.perf_counter() - begun
    yield Figure("loading", "s", took, 0.0)
    yield Figure("loading", "GB/s", path.stat().st_size / took / 1e9, 0.0)
    yield Figure("peak host memory, loading", "GB", _peak_host_bytes() / 1e9, 0.0)
    bandwidth, arithmetic = ceilings()
    yield Figure("memory, read and written", "GB/s", bandwidth / 1e9, 0.0)
    yield Figure("float16 products", "TFLOP/s", arithmetic / 1e12, 0.0)
    yield from _speeds(model, engine, repeats, bandwidth, arithmetic)
    yield Figure("peak memory", "GB", torch.cuda.max_memory_allocated() / 1e9, 0.0)


def ceilings() -> tuple[float, float]:
    """Bytes a second of a large copy, read and written, and operations a second of a float16 product."""
    source = torch.randint(0, 255, (2 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.numel() / statistics.median(_times(lambda: target.copy_(source), 10))
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.float16) for _ in range(2))
    return copied, 2 * side**3 / statistics.median(_times(lambda: a @ b, 10))


def _speeds(
    model: Model, engine: Engine, repeats: int, bandwidth: float, arithmetic: float
) -> Iterator[Figure]:
    config = model.config
    a_token = 2 * sum(w.numel() for w in _matrices(engine))  # operations
    for n in (n for n in PROMPTS if n < engine.capacity):
        prompts = [torch.randint(0, config.vocab_size, (n,)).tolist() for _ in range(repeats + WARM_UP + 1)]

        def prefill(prompts: list[list[int]] = prompts) -> None:
            engine.reset()
            engine.prompt(prompts.pop())

        if n == PROMPTS[0]:  # a prompt of another size has its kernels compiled
            engine.reset()
            engine.prompt(prompts[0][: n // 2])
            yield _speed(f"prefill {n}, first of its size", n, _times(prefill, 1, 0), a_token / arithmetic)
        times = _times(prefill, repeats)
        yield _speed(f"prefill {n}", n, times, a_token / arithmetic)
        if n == PROMPTS[0]:
            spread = max(times) - min(times)
            yield Figure(f"first token after {n}", "ms", statistics.median(times) * 1e3, spread * 1e3)
    for depth in (depth for depth in DEPTHS if depth + 2 < engine.capacity):
        count = min(DECODED, engine.capacity - depth)
        ids = torch.randint(0, config.vocab_size, (max(1, depth),)).tolist()
        engine.reset()
        engine.prompt(ids)

        def decode(depth: int = max(1, depth), count: int = count) -> None:
            engine.rewind(depth)
            engine.greedy(count)

        yield _speed(
            f"decode at {depth}", count - 1, _times(decode, repeats), engine.weights.nbytes / bandwidth
        )
    yield _whole(model, engine, repeats, bandwidth)


def _whole(model: Model, engine: Engine, repeats: int, bandwidth: float) -> Figure:
    """What a user of `generate` sees: each token read back and turned into text before the next begins."""
    session, count = Session(model, engine), min(DECODED, engine.capacity - 1)

    def write() -> None:
        for _ in generate(session, [0], max_tokens=count, ignore_eos=True):
            pass

    return _speed("generate, as text", count, _times(write, repeats), engine.weights.nbytes / bandwidth)


def _matrices(engine: Engine) -> Iterator[torch.Tensor]:
    """Stand-ins with as many elements as the matrices that a token meets, without the output head."""
    for block in engine.weights.blocks:
        for planes in (*(p for _, p in block.qkv), block.wo, block.gate_up, block.down):
            yield torch.empty(planes.shape, device="meta")


def _speed(name: str, tokens: int, times: list[float], ideal: float) -> Figure:
    """Tokens a second; `ideal` is the seconds a token that the ceiling allows."""
    speeds = [tokens / t for t in times]
    median = statistics.median(speeds)
    return Figure(name, "tokens/s", median, max(speeds) - min(speeds), median * ideal)


def _times(run: Callable[[], Any], repeats: int, warm_up: int = WARM_UP) -> list[float]:
    """Seconds of each run, after some that do not count (compilation, capture)."""
    times = []
    for number in range(repeats + warm_up):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if number >= warm_up:
            times.append(time.perf_counter() - begun)
    return times


def _peak_host_bytes() -> int:
    """The most memory this process ever held, pages of mapped files included."""
    import resource  # not every system has it, and the command is listed on all

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def llama_cpp_figures(folder: Path, path: Path, repeats: int = 5) -> Iterator[Figure]:
    """The same from llama.cpp's own `llama-bench` in `folder`, on the GPU, with flash attention.

    Raises:
        OptionError: there is no `llama-bench`.
        ReferenceCrashedError: it failed.
    """
    program = folder / "llama-bench"
    if not program.is_file():
        raise OptionError("--against", got=folder, wanted="a folder with llama.cpp's llama-bench")
    prompts = ["-p", ",".join(map(str, PROMPTS)), "-n", "0"]
    decoding = ["-p", "0", "-n", str(DECODED), "-d", ",".join(map(str, DEPTHS))]
    for arguments in (prompts, decoding):
        for run in _llama_bench(program, path, [*arguments, "-r", str(repeats)]):
            name = f"decode at {run['n_depth']}" if run["n_gen"] else f"prefill {run['n_prompt']}"
            speeds = run["samples_ts"]
            yield Figure(name, "tokens/s", statistics.median(speeds), max(speeds) - min(speeds))


def _llama_bench(program: Path, path: Path, arguments: list[str]) -> list[dict[str, Any]]:
    command = [str(program), "-m", str(path), "-ngl", "99", "-fa", "1", "-o", "json", *arguments]
    libraries = [str(program.parent), *_cuda_libraries(), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, libraries))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise ReferenceCrashedError(
            "llama-bench", got=f"exit code {done.returncode}: {done.stderr[-300:]}", wanted="exit code 0"
        )
    runs: list[dict[str, Any]] = json.loads(done.stdout)
    return runs


def _cuda_libraries() -> list[str]:
    """Where torch's wheels keep the CUDA libraries that llama.cpp needs too."""
    found = importlib.util.find_spec("nvidia")
    roots = found.submodule_search_locations if found else None
    return [str(lib) for root in roots or () for lib in sorted(Path(root).glob("*/lib"))]
