"""What `compare` costs: seconds and memory of right and wrong dumps, long prompts above all.

    python -m tools.measure_compare                     # every case
    python -m tools.measure_compare embedded-300        # one

Each case is a plain program in numpy float32 that records everything; it is compared in a process of its
own with one thread. Memory is what the process grows by after its imports, at its peak. Nothing but time and
memory is looked at, and whether a right program passes and a wrong one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.weights.config import LlamaConfig
from reference_dumps import embedded_model

Array = np.ndarray[Any, np.dtype[Any]]

COMPARE = """
import json, sys, time
from llama_ckpt.comparing.compare_dump import compare_dump

def memory(key):
    # Not getrusage: what it says of the peak includes that of the process which started this one.
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 2**20

before, start, used = memory("VmRSS"), time.perf_counter(), time.process_time()
report = compare_dump(sys.argv[1], model=sys.argv[2])
seconds, used = time.perf_counter() - start, time.process_time() - used
first = report.first_wrong
print(json.dumps({"seconds": seconds, "used": used, "gb": memory("VmHWM") - before,
                  "verdict": report.verdict, "first": first and f"{first.name}, {first.where}"}))
"""


@dataclass(frozen=True)
class Case:
    """A model, a prompt's length, and the point that is put wrong.

    Attributes:
        model: keyword arguments of `make_seeded`; None for the embedded one.
        n: tokens.
        wrong: the full name of a point that is wrong, and all after it with it; "" for a right program.
    """

    n: int
    model: dict[str, Any] | None = None
    wrong: str = ""


FOUR = {"width": 256, "n_heads": 8, "ffn": 704, "n_layers": 4, "vocab": 2000, "type": "F32", "seed": 1}
WIDE = {"width": 2048, "n_heads": 32, "ffn": 5632, "n_layers": 2, "vocab": 320, "type": "F16", "seed": 1}

CASES = {
    "embedded-300": Case(300),
    "embedded-300-wrong": Case(300, wrong="blk.13.ffn_gate"),
    "four-layers-600": Case(600, FOUR),
    "four-layers-600-wrong-q_rope": Case(600, FOUR, "blk.1.q_rope"),
    "four-layers-600-wrong-attn_probs": Case(600, FOUR, "blk.1.attn_probs"),
    "four-layers-600-wrong-ffn_swiglu": Case(600, FOUR, "blk.1.ffn_swiglu"),
    "four-layers-600-wrong-out": Case(600, FOUR, "blk.1.out"),
    "wide-2048": Case(2048, WIDE),
    "wide-2048-wrong": Case(2048, WIDE, "blk.1.attn_probs"),
}


def main() -> int:
    """Measure the cases that were asked for; 1 where a right program fails or a wrong one passes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="all without any")
    failed = False
    print(f"{'case':<36}{'seconds':>8}{'of CPU':>8}{'GB':>7}{'dump GB':>9}  verdict")
    for name in parser.parse_args().cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            found, size = measured(CASES[name], Path(folder))
        wanted = "fail" if CASES[name].wrong else "pass"
        failed |= found["verdict"] != wanted
        told = f"{found['verdict']}  {found['first'] or ''}"
        numbers = f"{found['seconds']:>8.1f}{found['used']:>8.1f}{found['gb']:>7.2f}{size:>9.2f}"
        print(f"{name:<36}{numbers}  {told}", flush=True)
    return int(failed)


def measured(case: Case, folder: Path) -> tuple[dict[str, Any], float]:
    """Seconds, growth in GB and the verdict of one comparison, and the size of its dump in GB."""
    model = embedded_model()
    if case.model is not None:
        model = folder / "model.gguf"
        make_seeded(model, **case.model)
    dump = folder / "theirs.safetensors"
    record(model, case, dump)
    size = dump.stat().st_size / 2**30
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    words = [sys.executable, "-c", COMPARE, str(dump), str(model)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found, size


def record(model: Path, case: Case, out: Path) -> None:
    """Run a plain float32 program on a prompt of random tokens, and write all its tensors."""
    file = open_gguf(model)
    config = LlamaConfig.from_gguf(file)
    weights = OracleWeights(file, config)
    draw = np.random.default_rng(case.n)
    tokens = [1, *draw.integers(3, config.vocab_size, case.n - 1).tolist()]
    program = Program(config, case.wrong)
    x = program.keep("embd", np.float32(weights.token_embd[np.asarray(tokens)]))
    for number, block in enumerate(weights.blocks):
        x = program.block(number, x, block)
    normed = program.keep("output_norm", program.norm(x, weights.output_norm))
    program.keep("logits", normed @ np.float32(weights.output).T)
    save_dump(out, program.kept, token_ids=tokens, positions=range(case.n), dtype="float32")


class Program:
    """A Llama in numpy float32 that keeps all that it makes; `wrong` is made a tenth too large."""

    def __init__(self, config: LlamaConfig, wrong: str) -> None:
        self.config, self.wrong, self.kept = config, wrong, dict[str, Array]()

    def keep(self, name: str, x: Array) -> Array:
        """Keep a tensor, and go on with it."""
        self.kept[name] = np.float32(1.1) * x if name == self.wrong else x
        return self.kept[name]

    def norm(self, x: Array, weight: Array) -> Array:
        """RMS norm."""
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return np.asarray(x / np.sqrt(mean + np.float32(self.config.rms_norm_eps)) * np.float32(weight))

    def block(self, number: int, x: Array, weights: Any) -> Array:
        """One block, all of whose points are kept."""
        n, heads, kv_heads = len(x), self.config.n_heads, self.config.n_kv_heads

        def keep(point: str, array: Array) -> Array:
            return self.keep(f"blk.{number}.{point}", array)

        def times(array: Array, name: str) -> Array:
            return np.asarray(array @ np.float32(getattr(weights, name)).T)

        normed = keep("attn_norm", self.norm(x, weights.attn_norm))
        q = keep("q", times(normed, "wq").reshape(n, heads, -1))
        k = keep("k", times(normed, "wk").reshape(n, kv_heads, -1))
        v = keep("v", times(normed, "wv").reshape(n, kv_heads, -1))
        q, k = keep("q_rope", self.turned(q)), keep("k_rope", self.turned(k))
        context = self.attended(keep, q, k, v)
        mixed = keep("ffn_inp", x + keep("attn_out", times(context, "wo")))
        normed = keep("ffn_norm", self.norm(mixed, weights.ffn_norm))
        gate, up = keep("ffn_gate", times(normed, "w_gate")), keep("ffn_up", times(normed, "w_up"))
        product = keep("ffn_swiglu", gate / (1 + np.exp(-gate)) * up)
        return keep("out", mixed + keep("ffn_out", times(product, "w_down")))

    def turned(self, x: Array) -> Array:
        """RoPE on neighbours, angles in float64."""
        pair = np.arange(self.config.head_dim // 2) / (self.config.head_dim // 2)
        angle = np.arange(len(x))[:, None] * self.config.rope_theta**-pair / self.config.rope_scale
        cos, sin = np.float32(np.cos(angle))[:, None], np.float32(np.sin(angle))[:, None]
        made = np.empty_like(x)
        made[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
        made[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
        return made

    def attended(self, keep: Callable[[str, Array], Array], q: Array, k: Array, v: Array) -> Array:
        """Scores, probabilities and the context, head by head."""
        n, heads, head_dim = q.shape
        group = heads // k.shape[1]
        scores = np.empty((n, heads, n), np.float32)
        for head in range(heads):
            scores[:, head] = q[:, head] @ k[:, head // group].T
        scores = keep("attn_scores", scores)
        probs, hidden = np.empty_like(scores), ~np.tri(n, dtype=bool)
        for head in range(heads):
            scaled = scores[:, head] / np.float32(head_dim**0.5)
            scaled[hidden] = -np.inf
            e = np.exp(scaled - scaled.max(axis=1, keepdims=True))
            probs[:, head] = e / e.sum(axis=1, keepdims=True)
        probs = keep("attn_probs", probs)
        context = np.stack([probs[:, head] @ v[:, head // group] for head in range(heads)], axis=1)
        return keep("attn_context", context.reshape(n, -1))


if __name__ == "__main__":
    sys.exit(main())
