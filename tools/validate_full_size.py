"""Validate Llama-2-7B, or another shape, at full size on a GPU: `make validate-7b`.

    python -m tools.validate_full_size --folder DIR               # models are made there once, 29 GB
    python -m tools.validate_full_size --folder DIR --type Q4_0   # one type; repeatable
    python -m tools.validate_full_size --folder DIR --type Q4_K_M --shape llama-3.1-8b \\
        --vocabulary ggml-vocab-llama-bpe.gguf                    # grouped heads, Llama 3's own vocabulary

For each file type llama.cpp is recorded on the GPU, in a process of its own; then three programs climb the
ladder against that recording and the float64 oracle, for their own errors and in total: our float32
layers, and the engine in both precisions. Several types are validated side by side. The figures go to
`docs/full_size.json`, or `docs/full_size_SHAPE.json`, from which `make docs` writes the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llama_ckpt.cores import usable_cpus
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.making.reference_quantizer import quantize_with_llama_cpp
from llama_ckpt.making.seeded_model import make_seeded

ROOT = Path(__file__).parents[1]
SHAPE = "llama-2-7b"
TYPES = ("F16", "Q8_0", "Q4_0", "Q4_K_M")
PROGRAMS = ("float32", "fast", "high")
"""Our layers in float32, and the engine's precisions."""

ACCURACY = {"float32": 3e-5, "fast": 3.5e-3, "high": 2e-4}
"""What is promised of the logits of 16 tokens: relative error against the oracle, at most."""

TEXT = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; "
    "and darkness was upon the face of the deep. "
)
ENDS = (0, 15, 31)
"""Blocks that long prompts are recorded in full at: the first, one in the middle, the last."""


def make_models(
    folder: Path, types: Iterable[str], shape: str = SHAPE, vocabulary: Path | None = None
) -> dict[str, Path]:
    """The seeded model in every type, made where it is missing; the F16 file's checksum is checked."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"{shape}.F16.gguf"
    if not source.exists():
        print("making the F16 model", file=sys.stderr)
        make_seeded(source, shape=shape, seed=1, type="F16", vocabulary=vocabulary)
    paths = {"F16": source}
    for kind in types:
        paths[kind] = folder / f"{shape}.{kind}.gguf"
        if not paths[kind].exists():
            print(f"quantizing to {kind}", file=sys.stderr)
            quantize_with_llama_cpp(source, kind, paths[kind])
    return paths


def record(model: Path, out: Path) -> None:
    """llama.cpp on the GPU: 2, 16 and 300 tokens, the context's end, and 64 greedy tokens in one pass."""
    from llama_ckpt.capture import Take, capture_takes
    from llama_ckpt.tokens.tokenizer import Tokenizer
    from llama_ckpt.weights.config import LlamaConfig

    file = open_gguf(model)
    ids = Tokenizer.from_gguf(file).encode(TEXT * 20)
    last = LlamaConfig.from_gguf(file).context_length - 16
    takes = [
        Take(prompt="Hello", name="2-tokens", max_tokens=16),
        Take(tokens=ids[:16], name="16-tokens", max_tokens=16),
        Take(tokens=ids[:300], name="300-tokens", max_tokens=0, blocks=ENDS),
        Take(tokens=ids[:16], positions_from=last, name="last-positions", max_tokens=0, blocks=ENDS),
        Take(tokens=ids[:16], forced=64, name="64-greedy", max_tokens=0, blocks=ENDS),
    ]
    capture_takes(model, takes, out=out, n_threads=usable_cpus(), n_gpu_layers=999)


KEPT = ("v", "q_rope", "k_rope", "attn_context", "ffn_inp", "ffn_swiglu", "out")
"""What is kept of a block in the committed dumps."""


def keep(dumps: Path, kind: str, folder: Path) -> None:
    """Keep the last row of the 16 tokens, at the first, middle and last block, for the repository."""
    from llama_ckpt.dumps.reference import keep_last_row, open_dumps

    keep_last_row(open_dumps(dumps), "16-tokens", folder / kind.lower(), blocks=ENDS, points=KEPT)


def climb_ladder(subject: Any, program: str) -> list[Any]:
    """Every checkpoint's result, of our float32 layers or of the engine."""
    import torch

    from llama_ckpt.ladder.climb import climb_all
    from llama_ckpt.ladder.discovery import ladder_of
    from llama_ckpt.ladder.observer import Observer
    from llama_ckpt.ladder.trials import subject_trials

    observer = Observer()
    trials = list(subject_trials(subject, None, observer, None if program == "float32" else program))
    results = list(climb_all(ladder_of(0), trials, observer))
    del trials
    torch.cuda.empty_cache()
    return results


def validate_type(model: Path, kind: str, kept: Path | None = None) -> dict[str, Any]:
    """Record and judge one type; what `--json` of the single process holds."""
    import torch

    from llama_ckpt.ladder.subjects import select

    seconds: dict[str, float] = {}
    programs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="llama-ckpt-") as scratch:
        dumps = Path(scratch) / kind
        with _timed(seconds, "recording llama.cpp"):
            record(model, dumps)
        if kept is not None:
            keep(dumps, kind, kept)
        with _timed(seconds, "loading"):
            selection = select(
                model, dumps, device="cuda", dtype="float32", oracle_only=False, scratch=Path(scratch)
            )
            (subject,) = selection.subjects
        for program in PROGRAMS:
            with _timed(seconds, program):
                programs[program] = [one.to_json() for one in climb_ladder(subject, program)]
        producer = json.loads((dumps / "manifest.json").read_text())["producer"]["version"]
    peak = torch.cuda.max_memory_allocated() / 1e9
    return {"type": kind, "seconds": seconds, "producer": producer, "gpu": torch.cuda.get_device_name(),
            "peak_gpu_gb": peak, "peak_host_gb": _peak_host_gb(), "programs": programs}  # fmt: skip


def _peak_host_gb() -> float:
    """The most memory that this process held, pages of the mapped file among it."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1e6


class _timed:
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = round(time.perf_counter() - self._begun, 1)
        print(f"{self._name}: {self._seconds[self._name]} s", file=sys.stderr, flush=True)


def run_types(
    paths: dict[str, Path], types: Iterable[str], jobs: int, kept: Path | None
) -> Iterator[dict[str, Any]]:
    """Each type in a process of its own, `jobs` at a time, cores shared out."""
    threads = str(max(1, usable_cpus() // jobs))
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    # Arrays of megabytes come and go: giving their pages back each time costs as much as the arithmetic.
    limits |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_ARENA_MAX": "1"}

    def run(kind: str) -> dict[str, Any]:
        command = [
            sys.executable,
            "-m",
            "tools.validate_full_size",
            "--one",
            kind,
            "--model",
            str(paths[kind]),
        ]
        command += ["--keep", str(kept)] if kept is not None else []
        done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, env=os.environ | limits, check=False)
        if done.returncode:
            return {"type": kind, "error": f"exit code {done.returncode}", "programs": {}}
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(run, types)


def summarize(found: dict[str, Any]) -> dict[str, Any]:
    """Of a type's verdicts, the largest errors at each point, and what fails."""
    if "error" in found:
        return found
    errors: dict[str, dict[str, list[float]]] = {}
    failures: list[str] = []
    sixteen: dict[str, float] = {}
    gains: dict[str, float] = {}
    verdicts: dict[str, dict[str, str]] = {}
    for program, checkpoints in found["programs"].items():
        verdicts[program] = {one["id"]: one["verdict"] for one in checkpoints}
        for one in checkpoints:
            for point in one["points"]:
                _take(errors, sixteen, program, one["id"], point)
                if program == "float32" and point["error_kind"] == "own" and point["gain"] is not None:
                    kind = point["name"].split(".")[-1]
                    gains[kind] = max(abs(point["gain"] - 1.0), gains.get(kind, 0.0))
                if point["verdict"] == "fail":
                    failures.append(
                        f"{program} {one['id']} {point['dump']} {point['name']}: {point['reason']}"
                    )
    kept = {
        name: found[name] for name in ("type", "seconds", "producer", "gpu", "peak_gpu_gb", "peak_host_gb")
    }
    return {
        **kept,
        "verdicts": verdicts,
        "logits_16_tokens": sixteen,
        "gains": gains,
        "errors": errors,
        "failures": failures,
    }


def _take(errors: Any, sixteen: dict[str, float], program: str, checkpoint: str, point: Any) -> None:
    """Count one verdict in: the largest errors of a point, and the logits of 16 tokens."""
    if point["err"] is None or not point["limit"]:
        return
    name = point["name"].split(".")
    kind = name[-1] if name[0] == "blk" else name[0]
    row = errors.setdefault(f"{checkpoint} {kind}", {})
    found = {f"{program} {point['error_kind']}": point["err"]}
    if program == "float32":  # layer by layer; the engine's verdicts are on whole blocks
        found[f"llama.cpp {point['error_kind']}"] = point["err_reference"]
    for who, err in found.items():
        if err is not None:
            row[who] = max(err, row.get(who, 0.0))
    if kind == "logits" and point["error_kind"] == "total" and point["dump"].endswith("/16-tokens"):
        sixteen[program] = max(point["err"], sixteen.get(program, 0.0))
        if point["err_reference"] is not None:
            sixteen["llama.cpp"] = point["err_reference"]


def judged(summary: dict[str, Any]) -> list[str]:
    """Why a type does not pass; empty where it does."""
    if "error" in summary:
        return [summary["error"]]
    missed = [
        f"logits of 16 tokens, {program}: {summary['logits_16_tokens'][program]:.2e} > {most:.1e}"
        for program, most in ACCURACY.items()
        if not summary["logits_16_tokens"][program] <= most
    ]
    return [*summary["failures"], *missed]


def main() -> int:
    """Make the models, validate every type, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "models", help="where the models are or go")
    parser.add_argument("--type", action="append", choices=TYPES, help="a type; all of them without it")
    parser.add_argument(
        "--jobs", type=int, default=3, help="types side by side; each takes up to 45 GB of GPU"
    )
    parser.add_argument("--shape", default=SHAPE, help="as make-seeded names them")
    parser.add_argument("--vocabulary", type=Path, help="a GGUF file with the shape's own vocabulary")
    parser.add_argument("--out", type=Path, help="where the figures go, into docs/ without it")
    parser.add_argument("--keep", type=Path, help="where small dumps go, to be committed")
    parser.add_argument("--one", choices=TYPES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(validate_type(options.model, options.one, options.keep)))
        return 0
    types = tuple(options.type or TYPES)
    paths = make_models(options.folder, types, options.shape, options.vocabulary)
    suffix = "" if options.shape == SHAPE else f"_{options.shape}"
    out = options.out or ROOT / "docs" / f"full_size{suffix}.json"
    begun = time.perf_counter()
    summaries = []
    for found in run_types(paths, types, options.jobs, options.keep):
        summary = summarize(found)
        summaries.append(summary)
        print(*_lines(summary), sep="\n", flush=True)
        seconds = round(time.perf_counter() - begun, 1)
        # Written each time: a run that is cut leaves what it has.
        written = {"shape": options.shape, "seconds": seconds, "types": summaries}
        out.write_text(json.dumps(written, indent=1) + "\n")
    print(f"{len(summaries)} types in {seconds} s")
    return int(any(judged(summary) for summary in summaries))


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    problems = judged(summary)
    yield f"{summary['type']}: {'FAIL' if problems else 'pass'} {summary.get('seconds', '')}"
    if "error" not in summary:
        for program, verdicts in summary["verdicts"].items():
            passed = sum(verdict in ("pass", "hidden") for verdict in verdicts.values())
            err = summary["logits_16_tokens"][program]
            yield f"    {program}: {passed} of {len(verdicts)} checkpoints, logits of 16 tokens {err:.1e}"
        yield f"    llama.cpp: logits of 16 tokens {summary['logits_16_tokens']['llama.cpp']:.1e}"
        yield f"    memory: {summary['peak_gpu_gb']:.0f} GB on the GPU, {summary['peak_host_gb']:.0f} GB host"
    yield from (f"    {problem}" for problem in problems[:20])


if __name__ == "__main__":
    sys.exit(main())
