"""Measure how far from exact correct programs are, and write the table that the limits stand on.

    python -m tools.measure_limits            # about 15 minutes on 2 cores; writes measured_errors.py
    python -m tools.measure_limits --print    # the same, to the terminal only

Every correct program (see `correct_programs`) runs every layer on inputs from the oracle, and whole
models from their tokens; the largest error of each kind at each point is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from llama_ckpt import oracle
from llama_ckpt.config import LlamaConfig
from llama_ckpt.gguf_file import open_gguf
from llama_ckpt.ladder import discover
from llama_ckpt.metrics import averaging, causal_mask, measure
from llama_ckpt.points import BLOCK_POINTS, POINTS, Case, Checkpoint, split_name
from llama_ckpt.weights import load_weights
from tools.correct_programs import ORDERS, PlainProgram, correct_programs

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SEEDS = range(10)
Errors = tuple[float, float, float, float, float]
"""err, row_err, element_err, and |gain| and |bias| as of 4,096 elements."""
Table = dict[str, dict[str, dict[str, Errors]]]
"""dtype -> forcing -> point -> errors."""


@dataclass(frozen=True)
class Shape:
    """A model to measure on.

    Attributes:
        score: standard deviation of the scaled attention scores; trained models reach 2 to 3.
        outlier: how far beyond the others one feature of every embedding lies, as in trained models.
        tokens: how many tokens; a tuple is gone through seed by seed.
        free: whether it also runs free, through all its layers.
    """

    name: str
    width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn: int
    n_layers: int = 1
    vocab: int = 512
    score: float = 1.0
    outlier: float = 1.0
    first_position: int = 0
    tokens: tuple[int, ...] = (1, 2, 8, 24)
    free: bool = False


EMBEDDED = Path(__file__).parents[1] / "reference_dumps" / "tiny-32l" / "model.gguf"

SHAPES = (
    Shape("trained", 64, 4, 4, 16, 192, n_layers=32, free=True),
    Shape("random", 64, 4, 4, 16, 192, n_layers=32, free=True),
    Shape("steep", 64, 4, 4, 16, 192, score=2.5, first_position=4000),
    Shape("grouped", 256, 8, 2, 64, 704, n_layers=32, score=2.0, free=True),
    Shape("outlier", 256, 4, 4, 64, 704, outlier=100.0, score=2.0),
    Shape("wide", 4096, 4, 2, 128, 512, score=2.0),
    Shape("wide ffn", 128, 4, 4, 32, 11008, score=2.0),
)
"""The embedded model itself, and random weights in its shape; far positions; grouped heads; a feature
that dwarfs the rest; and the longest sums of Llama-2-7B, over 4,096 and 11,008 products, with few rows
so that they take seconds."""


def made_model(shape: Shape, seed: int) -> tuple[Any, Any]:
    """A config and float32 weights; every sublayer adds about a third of the residual's norm."""
    g = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=g) * (gain / columns**0.5)

    def norm() -> torch.Tensor:
        return 1 + 0.2 * torch.randn(shape.width, generator=g)

    q_width, kv_width = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim

    def block() -> SimpleNamespace:
        return SimpleNamespace(
            attn_norm=norm(),
            wq=matrix(q_width, shape.width, shape.score),
            wk=matrix(kv_width, shape.width),
            wv=matrix(kv_width, shape.width),
            wo=matrix(shape.width, q_width, 0.5),
            ffn_norm=norm(),
            w_gate=matrix(shape.ffn, shape.width, 1.5),
            w_up=matrix(shape.ffn, shape.width),
            w_down=matrix(shape.width, shape.ffn, 0.5),
        )

    token_embd = torch.randn(shape.vocab, shape.width, generator=g)
    token_embd[:, shape.width // 3] *= shape.outlier
    weights = SimpleNamespace(
        token_embd=token_embd,
        blocks=[block() for _ in range(shape.n_layers)],
        output_norm=norm(),
        output=matrix(shape.vocab, shape.width),
    )
    config = LlamaConfig(
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        width=shape.width,
        ffn=shape.ffn,
        vocab_size=shape.vocab,
        context_length=8192,
        rms_norm_eps=1e-5,
    )
    return config, weights


@dataclass(frozen=True)
class Prompt:
    """Tokens, their positions, and a label that says which run they belong to."""

    token_ids: Any
    positions: Any
    label: str

    @property
    def at(self) -> torch.Tensor:
        """The positions as a tensor."""
        return torch.as_tensor(self.positions)


def file_model(path: Path) -> tuple[Any, Any]:
    """Config and weights of a GGUF file whose matrices are not quantized."""
    file = open_gguf(path)
    config = LlamaConfig.from_gguf(file)
    return config, load_weights(file, config)


class Given:
    """A made model's exact tensors, as a checkpoint's `cases` want them; `get` gives each in one form."""

    def __init__(self, config: Any, weights: Any, get: Callable[[str], Any], **plain: Any) -> None:
        self.config, self.weights, self._get = config, weights, get
        self.positions, self.rope_frequencies = plain["positions"], plain["frequencies"]
        n = config.n_layers
        self.blocks = tuple(sorted({0, n // 2, n - 1}))

    def __getitem__(self, point: str) -> Any:
        return self._get(point)

    @staticmethod
    def block_input(number: int) -> str:
        return f"blk.{number - 1}.out" if number else "embd"


class Maxima:
    """The largest errors seen, by dtype, forcing and point; and which run had the largest err."""

    def __init__(self) -> None:
        self.table: Table = {}
        self.worst: dict[tuple[str, str, str], str] = {}

    def see(self, dtype: str, forcing: str, name: str, x: torch.Tensor, o: Any, prompt: Prompt) -> None:
        """Take in one tensor of a correct program."""
        point = split_name(name)[1].split(".")[0]
        causal = point in POINTS and POINTS[point].causal
        found = measure(x.double().numpy(), o, causal_mask(prompt.positions) if causal else None)
        gain = abs(found.gain) / averaging(found.n_gain)
        bias = abs(found.bias) / averaging(found.n)
        now = (found.err, found.row_err, found.element_err, gain, bias)
        points = self.table.setdefault(dtype, {}).setdefault(forcing, {})
        before = points.get(point, (0.0,) * 5)
        if now[0] > before[0]:
            self.worst[dtype, forcing, point] = prompt.label
        points[point] = tuple(map(max, before, now))  # type: ignore[assignment]


def measure_model(maxima: Maxima, config: Any, weights: Any, prompt: Prompt, *, free: bool) -> None:
    """Every correct program of every precision on one model and one prompt."""
    exact: dict[str, Any] = {}
    wide = numpy_weights(weights)
    options = {"config": config, "positions": prompt.positions}
    exact["logits"] = oracle.logits(prompt.token_ids, wide, **options, tap=exact.__setitem__)
    for dtype in DTYPES:
        for name, program in correct_programs(DTYPES[dtype]).items():
            run = replace(prompt, label=f"{prompt.label}, {name}")
            teacher_forced(maxima, dtype, program, (config, weights, wide), exact, run)
            if free:
                free_running(maxima, dtype, program, (config, weights), exact, run)


def numpy_weights(weights: Any) -> Any:
    """The same values as arrays, which the oracle widens where it uses them."""
    plain = {k: v.numpy() for k, v in vars(weights).items() if k != "blocks"}
    blocks = [SimpleNamespace(**{k: v.numpy() for k, v in vars(b).items()}) for b in weights.blocks]
    return SimpleNamespace(blocks=blocks, **plain)


def teacher_forced(
    maxima: Maxima, dtype: str, program: Any, model: Any, exact: Any, prompt: Prompt
) -> None:
    """Each layer on exact inputs, rounded to the precision for the oracle as for the layer."""
    config, weights, wide = model
    frequencies = oracle.rope_frequencies(config)

    def rounded(point: str) -> torch.Tensor:
        return torch.from_numpy(exact[point]).to(DTYPES[dtype])

    def widened(point: str) -> Any:
        return rounded(point).double().numpy()

    turns = torch.from_numpy(frequencies)
    ours = Given(config, weights, rounded, positions=prompt.at, frequencies=turns)
    theirs = Given(config, wide, widened, positions=prompt.positions, frequencies=frequencies)
    embd = program.embed(torch.as_tensor(prompt.token_ids), weights.token_embd)
    maxima.see(dtype, "teacher", "embd", embd, exact["embd"], prompt)
    for checkpoint in checkpoints_with_layers():
        for case, twin in zip(checkpoint.cases(ours), checkpoint.cases(theirs), strict=True):
            wanted = answers(getattr(oracle, case.function), twin, taps=True)
            fused = (True, False) if case.taps and not isinstance(program, PlainProgram) else (True,)
            for taps in fused:
                for name, x in answers(getattr(program, case.function), case, taps=taps).items():
                    maxima.see(dtype, "teacher", name, x, wanted[name], prompt)


def checkpoints_with_layers() -> Iterable[Checkpoint]:
    return [c for c in discover() if c.id in ("1", "1B", "2", "3", "6", "7", "8")]


def answers(function: Any, case: Case, *, taps: bool) -> dict[str, Any]:
    """What a function returns and, with `taps`, shows, by full point name."""
    seen: dict[str, Any] = {}

    def tap(point: str, value: Any) -> None:
        if point in case.taps:
            seen[case.taps[point]] = value

    returned = function(**case.arguments, **({"tap": tap} if case.taps and taps else {}))
    results = returned if isinstance(returned, tuple) else (returned,)
    return {**seen, **dict(zip(case.returns, results, strict=True))}


def free_running(
    maxima: Maxima, dtype: str, program: Any, model: Any, exact: Any, prompt: Prompt
) -> None:
    """The whole model from its tokens."""
    config, weights = model
    seen: dict[str, torch.Tensor] = {}
    token_ids, options = torch.as_tensor(prompt.token_ids), {"config": config, "positions": prompt.at}
    seen["logits"] = program.logits(token_ids, weights, **options, tap=seen.__setitem__)
    for name, x in seen.items():
        maxima.see(dtype, "free", name, x, exact[name], prompt)
    if not isinstance(program, PlainProgram):
        fused = program.logits(token_ids, weights, **options)
        maxima.see(dtype, "free", "logits", fused, exact["logits"], prompt)


SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.5, "top_p": 0.5},
)


def measure_sampling(maxima: Maxima, seed: int) -> None:
    """Probabilities from float32 logits like a trained model's, over the whole vocabulary."""
    generator = np.random.default_rng(seed)
    logits = (generator.standard_normal(32000) * 2.5 - 3).astype(np.float32)
    logits[generator.integers(0, 32000, 5)] += 12
    softmax = correct_programs(torch.float32)["layers"].softmax
    for options in SETTINGS:
        exact = oracle.softmax(logits, **options)
        kept = exact > 0
        x = logits[kept] / np.float32(options["temperature"])
        e = np.exp(x - x.max())
        plain = np.zeros_like(logits)
        plain[kept] = e / e.sum()  # pairwise: one float32 accumulator is off by 1e-4 after 32,000 terms
        prompt = Prompt((), (), f"sampling, seed {seed}, {options}")
        for given in (softmax(torch.from_numpy(logits), **options), torch.from_numpy(plain)):
            maxima.see("float32", "teacher", "sampling", given, exact, prompt)


def measured_on(n_seeds: int) -> str:
    """What the figures are the largest of, for the table and for every limit's reason."""
    shapes = f"{len(SHAPES)} shapes (widths 64 to 4096, up to 32 layers)"
    return f"{n_seeds} seeds, {len(ORDERS)} summation orders and the layers here, {shapes}"


def measure_shape(maxima: Maxima, shape: Shape, seed: int) -> None:
    """One shape with one seed: its weights, its tokens, and how many they are."""
    config, weights = file_model(EMBEDDED) if shape.name == "trained" else made_model(shape, seed)
    n = shape.tokens[seed % len(shape.tokens)]
    token_ids = np.random.default_rng(seed).integers(0, config.vocab_size, n)
    label = f"{shape.name}, seed {seed}, {n} tokens"
    print(label, file=sys.stderr)
    prompt = Prompt(token_ids, shape.first_position + np.arange(n), label)
    measure_model(maxima, config, weights, prompt, free=shape.free)


def measure_all(shapes: Iterable[Shape] = SHAPES, seeds: Iterable[int] = SEEDS) -> Maxima:
    """Measure every shape with every seed."""
    maxima = Maxima()
    for shape in shapes:
        for seed in seeds:
            measure_shape(maxima, shape, seed)
    for seed in seeds:
        measure_sampling(maxima, seed)
    return maxima


def table_lines(table: Table) -> Iterator[str]:
    """The source of `measured_errors.py`'s table."""
    order = ["embd", *(point.name for point in BLOCK_POINTS), "output_norm", "logits", "sampling"]
    for dtype, forcings in table.items():
        yield f'    "{dtype}": {{'
        for forcing in ("teacher", "free"):
            yield f'        "{forcing}": {{'
            points = forcings.get(forcing, {})
            for point in sorted(points, key=order.index):
                yield f'            "{point}": ({", ".join(f"{value:.1e}" for value in points[point])}),'
            yield "        },"
        yield "    },"


HEADER = '''"""The largest errors measured of correct programs, written by `tools/measure_limits.py`.

MEASURED[dtype][forcing][point] is err, row_err, element_err, |gain|, |bias|, as `metrics` defines them,
gain and bias as of 4,096 elements.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MEASURED", "MEASURED_ON"]

MEASURED_ON: Final = "{on}"
"""What the figures are the largest of."""

MEASURED: Final[dict[str, dict[str, dict[str, tuple[float, float, float, float, float]]]]] = {{
{lines}
}}
'''


def main() -> None:
    """Measure, and write or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--print", action="store_true", help="to the terminal only")
    parser.add_argument("--shapes", nargs="*", default=[shape.name for shape in SHAPES])
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args()
    torch.set_num_threads(1)  # small products: two threads mostly wait for each other
    maxima = measure_all([s for s in SHAPES if s.name in options.shapes], range(options.seeds))
    text = HEADER.format(on=measured_on(options.seeds), lines="\n".join(table_lines(maxima.table)))
    for (dtype, forcing, point), label in maxima.worst.items():
        largest = maxima.table[dtype][forcing][point][0]
        print(f"{dtype} {forcing} {point}: {largest:.1e} in {label}", file=sys.stderr)
    if options.print:
        print(text)
    else:
        (Path(__file__).parents[1] / "llama_ckpt" / "measured_errors.py").write_text(text)


if __name__ == "__main__":
    main()
