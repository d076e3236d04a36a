"""Measure how far from exact correct programs are, and write the table that the limits stand on.

    python -m tools.measure_limits            # 15 minutes; writes llama_ckpt/judging/measured_errors.json
    python -m tools.measure_limits --print    # the same, to the terminal only

Every correct program (see `correct_programs`) runs every layer on inputs from the oracle, and whole
models from their tokens; the largest error of each kind at each point is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from llama_ckpt.judging.measured import Errors
from llama_ckpt.judging.measured import Table as MeasuredTable
from llama_ckpt.judging.metrics import averaging, causal_mask, measure
from llama_ckpt.ladder.discovery import discover
from llama_ckpt.mutants.right_programs.torch_programs import ORDERS, PlainProgram, correct_programs
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.functions import oracle_function
from llama_ckpt.oracle.weights import OracleBlockWeights
from llama_ckpt.points import BLOCK_POINTS, EXPERT_POINTS, POINTS, SAMPLED, Case, Checkpoint, split_name
from tools.measured_models import ALL_SHAPES, MIXTURE, Shape, model_for

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SEEDS = range(10)
Table = dict[str, dict[str, dict[str, Errors]]]
"""dtype -> error_kind -> point -> errors."""


@dataclass(frozen=True)
class Prompt:
    """Tokens, their positions, and which run they belong to: shape, seed and program."""

    token_ids: Any
    positions: Any
    run: tuple[str, int, str]

    @property
    def at(self) -> torch.Tensor:
        """The positions as a tensor."""
        return torch.as_tensor(self.positions)


@dataclass(frozen=True)
class GivenExact:
    """A made model's exact tensors, as a checkpoint's `cases` are given them: a `points.Given`."""

    config: Any
    weights: Any
    get: Callable[[str], Any]
    token_ids: Any
    positions: Any
    rope_frequencies: Any
    dtype_option: Mapping[str, Any]
    prompt: str | None = None
    tokenizer: Any = None
    model: Any = None
    n_choices: int = 0
    sampling: tuple[Mapping[str, Any], ...] = ()

    def __getitem__(self, point: str) -> Any:
        return self.get(point)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The first, the last and one between."""
        n = self.config.n_layers
        return tuple(sorted({0, n // 2, n - 1}))

    @property
    def token_id_list(self) -> list[int]:
        """The token ids as plain integers."""
        return [int(token) for token in self.token_ids]

    @property
    def first_position(self) -> int:
        """The position of the first token."""
        return int(self.positions[0])


_OF_EXPERTS = frozenset(point.name for point in EXPERT_POINTS)


class Maxima:
    """The largest errors seen, by dtype, error_kind and point; and which run had the largest err."""

    def __init__(self) -> None:
        self.table: Table = {}
        self.worst: dict[tuple[str, str, str], tuple[str, int, str]] = {}

    def see(self, dtype: str, error_kind: str, name: str, x: torch.Tensor, o: Any, prompt: Prompt) -> None:
        """Take in one tensor of a correct program."""
        point = split_name(name)[1].split(".")[0]
        if point == "ffn_chosen" or (prompt.run[0] == MIXTURE.name and point not in _OF_EXPERTS):
            return  # the one is equal or not; the others are measured of dense models, which never choose
        causal = point in POINTS and POINTS[point].causal
        found = measure(x.double().numpy(), o, causal_mask(prompt.positions) if causal else None)
        gain = abs(found.gain) / averaging(found.n_gain)
        bias = abs(found.bias) / averaging(found.n)
        if self.add(dtype, error_kind, point, (found.err, found.row_err, found.element_err, gain, bias)):
            self.worst[dtype, error_kind, point] = prompt.run

    def add(self, dtype: str, error_kind: str, point: str, now: Errors) -> bool:
        """Count one measurement in; whether its err is the largest yet."""
        points = self.table.setdefault(dtype, {}).setdefault(error_kind, {})
        before = points.get(point, (0.0,) * 5)
        err, row_err, element_err, gain, bias = map(max, before, now)
        points[point] = (err, row_err, element_err, gain, bias)
        return now[0] > before[0]


def measure_shape(
    maxima: Maxima, shape: Shape, seed: int, dtypes: Iterable[str] = DTYPES, only: str | None = None
) -> None:
    """Correct programs, all or only one, on one shape with one seed: its weights and its tokens."""
    config, weights = model_for(shape, seed)
    n = shape.tokens[seed % len(shape.tokens)]
    token_ids = np.random.default_rng(seed).integers(0, config.vocab_size, n)
    positions = shape.first_position + np.arange(n)
    exact: dict[str, Any] = {}
    wide = numpy_weights(weights)
    options = {"config": config, "positions": positions}
    exact["logits"] = oracle.logits(token_ids, wide, **options, tap=exact.__setitem__)
    exact["last_logits"] = exact["logits"][-1]
    for dtype in dtypes:
        for name, program in correct_programs(DTYPES[dtype]).items():
            if only in (None, name) and not (shape.n_experts and isinstance(program, PlainProgram)):
                prompt = Prompt(token_ids, positions, (shape.name, seed, name))
                judge_own(maxima, dtype, program, (config, weights, wide), exact, prompt)
                if shape.free:
                    judge_total(maxima, dtype, program, (config, weights), exact, prompt)


def numpy_weights(weights: Any) -> Any:
    """The same values as arrays, which the oracle widens where it uses them."""

    def arrays(tensors: Any) -> dict[str, Any]:
        return {k: None if v is None else v.numpy() for k, v in vars(tensors).items() if k != "blocks"}

    plain, blocks = arrays(weights), [OracleBlockWeights(**arrays(block)) for block in weights.blocks]
    return SimpleNamespace(blocks=blocks, **plain)


def judge_own(maxima: Maxima, dtype: str, program: Any, model: Any, exact: Any, prompt: Prompt) -> None:
    """Each layer on exact inputs, rounded to the precision for the oracle as for the layer."""
    config, weights, wide = model
    frequencies = oracle.rope_frequencies(config)

    def rounded(point: str) -> torch.Tensor:
        return torch.from_numpy(exact[point]).to(torch.float32 if point in SAMPLED else DTYPES[dtype])

    def widened(point: str) -> Any:
        return rounded(point).double().numpy()

    turns, ids, as_in = torch.from_numpy(frequencies), torch.as_tensor(prompt.token_ids), DTYPES[dtype]
    ours = GivenExact(config, weights, rounded, ids, prompt.at, turns, {"dtype": as_in})
    theirs = GivenExact(config, wide, widened, prompt.token_ids, prompt.positions, frequencies, {})
    embd = program.embed(ids, weights.token_embd)
    maxima.see(dtype, "own", "embd", embd, exact["embd"], prompt)
    for checkpoint in checkpoints_with_layers():
        for case, twin in zip(checkpoint.cases(ours), checkpoint.cases(theirs), strict=True):
            function = program_function(program, checkpoint, case.function)
            exact_function = oracle_function(case.function)
            if function is None or exact_function is None:
                continue
            wanted = answers(exact_function, twin, taps=True)
            fused = (True, False) if case.taps and not isinstance(program, PlainProgram) else (True,)
            for taps in fused:
                made = answers(function, case, taps=taps)
                if _chose_otherwise(made, wanted):
                    continue
                for name, x in made.items():
                    maxima.see(dtype, "own", name, x, wanted[name], prompt)


def _chose_otherwise(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a router chose other experts near a tie: what came of that is no rounding."""
    chosen = [name for name in made if name.endswith("ffn_chosen")]
    return any(not np.array_equal(np.asarray(made[name]), wanted[name]) for name in chosen)


def checkpoints_with_layers() -> Iterable[Checkpoint]:
    """Those that compute something to be measured here; embedding and sampling are measured apart."""
    return [one for one in discover() if one.max_abs > 0 and "sampling" not in one.points]


def program_function(program: Any, checkpoint: Checkpoint, name: str) -> Callable[..., Any] | None:
    """A correct program's function; a checkpoint's own where it is new, which a plain program lacks: None."""
    found: Callable[..., Any] | None = getattr(program, name, None)
    if found is None and not isinstance(program, PlainProgram):
        found = getattr(sys.modules[checkpoint.function.__module__], name, None)
    return found


def answers(function: Any, case: Case, *, taps: bool) -> dict[str, Any]:
    """What a function returns and, with `taps`, shows, by full point name."""
    seen: dict[str, Any] = {}

    def tap(point: str, value: Any) -> None:
        if point in case.taps:
            seen[case.taps[point]] = value

    returned = function(**case.arguments, **({"tap": tap} if case.taps and taps else {}))
    results = returned if isinstance(returned, tuple) else (returned,)
    return {**seen, **dict(zip(case.returns, results, strict=True))}


def judge_total(maxima: Maxima, dtype: str, program: Any, model: Any, exact: Any, prompt: Prompt) -> None:
    """The whole model from its tokens."""
    config, weights = model
    seen: dict[str, torch.Tensor] = {}
    token_ids, options = torch.as_tensor(prompt.token_ids), {"config": config, "positions": prompt.at}
    seen["logits"] = program.logits(token_ids, weights, **options, tap=seen.__setitem__)
    if _chose_otherwise(seen, exact):
        return
    for name, x in seen.items():
        maxima.see(dtype, "total", name, x, exact[name], prompt)
    if not isinstance(program, PlainProgram):
        fused = program.logits(token_ids, weights, **options)
        maxima.see(dtype, "total", "logits", fused, exact["logits"], prompt)


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
        both = {"layers": softmax(torch.from_numpy(logits), **options), "plain": torch.from_numpy(plain)}
        for name, x in both.items():
            prompt = Prompt((), (), ("sampling", seed, name))
            maxima.see("float32", "own", "sampling", x, exact, prompt)


def measured_on(n_seeds: int) -> str:
    """What the figures are the largest of, for the table and for every limit's reason."""
    shapes = f"{len(ALL_SHAPES)} shapes (widths 64 to 4096, up to 32 layers)"
    return f"{n_seeds} seeds, {len(ORDERS)} summation orders and the layers here, {shapes}"


def measure_all(shapes: Iterable[Shape] = ALL_SHAPES, seeds: Iterable[int] = SEEDS) -> Maxima:
    """Measure every shape with every seed."""
    maxima = Maxima()
    for shape in shapes:
        for seed in seeds:
            print(f"{shape.name}, seed {seed}", file=sys.stderr)
            measure_shape(maxima, shape, seed)
    for seed in seeds:
        measure_sampling(maxima, seed)
    return maxima


ORDER = (
    "embd",
    *(point.name for point in (*BLOCK_POINTS, *EXPERT_POINTS)),
    "output_norm",
    "logits",
    "sampling",
)


def table_lines(table: MeasuredTable) -> list[str]:
    """A table as JSON, a line each point, so that a change reads well."""
    lines = []
    for dtype, error_kinds in table.items():
        kinds = []
        for error_kind, points in error_kinds.items():
            order = dict.fromkeys([*(point for point in ORDER if point in points), *points])
            rows = [f'    "{point}": {row(points[point])}' for point in order]
            kinds.append(f'   "{error_kind}": {{\n' + ",\n".join(rows) + "\n   }")
        lines.append(f'  "{dtype}": {{\n' + ",\n".join(kinds) + "\n  }")
    return lines


def row(errors: Errors) -> str:
    """Five figures, of two digits each."""
    return "[" + ", ".join(f"{error:.1e}" for error in errors) + "]"


def data(
    table: MeasuredTable, on: str, worst: Mapping[tuple[str, str, str], tuple[str, int, str]] | None = None
) -> str:
    """The text of a data file that `llama_ckpt.judging.measured` reads."""
    parts = [f' "on": {json.dumps(on)}', ' "errors": {\n' + ",\n".join(table_lines(table)) + "\n }"]
    if worst:
        runs = ["  " + json.dumps([*where, *run]) for where, run in worst.items()]
        parts.append(' "worst": [\n' + ",\n".join(runs) + "\n ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Measure, and write or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--print", action="store_true", help="to the terminal only")
    options = parser.parse_args()
    torch.set_num_threads(1)  # small products: two threads mostly wait for each other
    maxima = measure_all()
    text = data(maxima.table, measured_on(len(SEEDS)), maxima.worst)
    if options.print:
        print(text, end="")
    else:
        (Path(__file__).parents[1] / "llama_ckpt" / "judging" / "measured_errors.json").write_text(text)


if __name__ == "__main__":
    main()
