"""The smallest change that is caught at each checkpoint: with limits from the table, and from the data.

    python -m tools.measure_sensitivity               # 2 and 300 tokens of the embedded model
    python -m tools.measure_sensitivity 2 20          # other lengths
    python -m tools.measure_sensitivity --dtype float16
    python -m tools.measure_sensitivity --page        # docs/sensitivity.md

A right program is changed by a factor of 1 + g at one place: a gain, an epsilon, the
scale of the scores, theta, a temperature. The smallest g that some point of the checkpoint's cases fails
is found by halving, once with the same limit for every row and element that was measured of right programs
in general (`limit_for`, all there was before), once with what follows from the data (`within`).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from llama_ckpt.diagnose.patched_oracle import RIGHT, Patch, PatchedOracle
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.judging.limits import Limit, limit_for, within
from llama_ckpt.judging.metrics import causal_mask
from llama_ckpt.judging.rounding import spreads_of
from llama_ckpt.ladder.discovery import discover
from llama_ckpt.mutants.models import GivenPrompt, embedded_tokenizer
from llama_ckpt.mutants.right_programs.catalogue import VARIANTS
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import POINTS, Case, split_name
from llama_ckpt.precisions import DTYPES
from llama_ckpt.weights.config import LlamaConfig
from reference_dumps import embedded_model

__all__ = ["CHANGES", "Change", "embedded_prompt", "smallest_caught"]


ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Change:
    """A program changed at one place.

    Attributes:
        checkpoint: the id of the one that should see it.
        what: what is multiplied by 1 + g.
        makes: the patches of the oracle for a g.
    """

    checkpoint: str
    what: str
    makes: Callable[[float], Mapping[str, Patch]]


def gain(function: str) -> Callable[[float], Mapping[str, Patch]]:
    """What a function returns is too large."""

    def makes(g: float) -> Mapping[str, Patch]:
        def patch(right: PatchedOracle, *args: Any, **options: Any) -> Any:
            made = getattr(right, function)(*args, **options)
            # In float64, where 1 + g is no 1 even if g is less than float32 shows.
            made = tuple(np.float32(np.float64(one) * (1 + g)) for one in _each(made))
            return made if len(made) > 1 else made[0]

        return {function: patch}

    return makes


def _each(made: Any) -> tuple[Any, ...]:
    return made if isinstance(made, tuple) else (made,)


def argument(
    function: str, name: str, default: float | None = None
) -> Callable[[float], Mapping[str, Patch]]:
    """A number or an array that a function is given is too large."""

    def makes(g: float) -> Mapping[str, Patch]:
        def patch(right: PatchedOracle, *args: Any, **options: Any) -> Any:
            if name in options:
                options = {**options, name: options[name] * (1 + g)}
            elif default is not None:
                options = {**options, name: default * (1 + g)}
            else:
                args = (args[0] * (1 + g), *args[1:])
            return getattr(right, function)(*args, **options)

        return {function: patch}

    return makes


def theta(g: float) -> Mapping[str, Patch]:
    """RoPE's theta is too large: frequencies turn slower, the more the later their pair."""

    def patch(right: PatchedOracle, q: Any, k: Any, positions: Any, frequencies: Any, tap: Any = None) -> Any:
        pair = np.arange(len(frequencies)) / len(frequencies)
        return right.rope(q, k, positions, frequencies * (1 + g) ** -pair)

    return {"rope": patch}


CHANGES: tuple[Change, ...] = (
    Change("1", "the norm", gain("rms_norm")),
    Change("1", "the norm's epsilon", argument("rms_norm", "eps")),
    Change("1B", "queries and keys", gain("rope")),
    Change("1B", "the angles", argument("rope", "frequencies")),
    Change("1B", "theta", theta),
    Change("2", "queries, keys and values", gain("qkv")),
    Change("3", "the scale of the scores", argument("normalized_exp", "x")),
    Change("3", "the probabilities", gain("normalized_exp")),
    Change("3", "attention's output", gain("attention")),
    Change("6", "the gate's sigmoid", gain("sigmoid")),
    Change("6", "the feed-forward's output", gain("swiglu")),
    Change("7", "attention beside the residual", gain("attention")),
    Change("7", "the feed-forward beside the residual", gain("swiglu")),
    Change("7", "the norms' epsilon", argument("rms_norm", "eps")),
    Change("8", "a block's feed-forward", gain("swiglu")),
    Change("8", "the logits", gain("output_logits")),
    Change("8", "the norms' epsilon", argument("rms_norm", "eps")),
    Change("11", "the temperature", argument("softmax", "temperature", 1.0)),
)
"""Of every checkpoint that rounds."""


def embedded_prompt(n: int) -> GivenPrompt:
    """The embedded model on `n` random tokens; what is recorded is the oracle's, rounded to float32."""
    file = open_gguf(embedded_model())
    config = LlamaConfig.from_gguf(file)
    weights = OracleWeights(file, config)
    token_ids, positions = np.random.default_rng(n).integers(3, config.vocab_size, n), np.arange(n)
    tensors: dict[str, Any] = {}
    options: dict[str, Any] = {"config": config, "positions": positions}
    logits = oracle.logits(token_ids, weights, **options, tap=_kept(tensors, BLOCKS))
    tensors |= {"logits": np.float32(logits), "last_logits": np.float32(logits[-1])}
    model = SimpleNamespace(config=config, weights=weights, eog_ids=frozenset())
    return GivenPrompt(
        label=f"{n} tokens",
        config=config,
        weights=weights,
        tensors=tensors,
        recorded=False,
        token_ids=token_ids,
        positions=positions,
        blocks=BLOCKS,
        prompt="",
        tokenizer=embedded_tokenizer(),
        model=model,
        n_choices=0,
    )


BLOCKS = (0, 15, 31)
"""The first, one between and the last are looked at."""


def _kept(tensors: dict[str, Any], blocks: Sequence[int]) -> Callable[[str, Any], None]:
    def tap(name: str, array: Any) -> None:
        block, point = split_name(name)
        if block is None or block in blocks or point == "out":
            tensors[name] = array.astype(np.float32)

    return tap


@dataclass(frozen=True)
class _Judged:
    """One call: what is exact, and each point's mask and limits, the table's and the data's."""

    case: Case
    exact: Mapping[str, Any]
    masks: Mapping[str, Any]
    limits: Mapping[str, tuple[Limit, Limit]]


def judged_cases(given: GivenPrompt, checkpoint: str) -> Iterator[_Judged]:
    """The calls of a checkpoint; of checkpoint 8 the blocks that are looked at, and the head."""
    record = next(one for one in discover() if one.id == checkpoint)
    for case in record.cases(given):
        block = split_name(case.returns[0])[0]
        if block is not None and block not in BLOCKS:
            continue
        exact = RIGHT.answers(case)
        spreads = spreads_of(case, exact, given.dtype)
        masks, limits = {}, {}
        for name, o in exact.items():
            point = split_name(name)[1].split(".")[0]
            causal = point in POINTS and POINTS[point].causal
            masks[name] = causal_mask(given.positions) if causal else None
            table = limit_for(name, given.dtype, "own", n_layers=given.config.n_layers)
            data = within(table, spreads[name], o, masks[name]) if name in spreads else table
            limits[name] = (table, data)
        yield _Judged(case, exact, masks, limits)


def uses(program: PatchedOracle, calls: Sequence[_Judged]) -> tuple[float, float]:
    """How much of the table's and of the data's limits a program uses at its worst point."""
    worst = [0.0, 0.0]
    for one in calls:
        for name, x in program.answers(one.case).items():
            if one.limits[name][0].exact:
                continue
            for which, limit in enumerate(one.limits[name]):
                o, mask = one.exact[name], one.masks[name]
                found = limit.measure(np.float32(x), o, mask)
                used = max(got / most for got, most in limit.measured(found).values())
                worst[which] = max(worst[which], used)
    return worst[0], worst[1]


STEPS = 14
"""Halvings of the factor between caught and not caught: to 0.2% of 1e-10 to 1."""


RIGHT_PROGRAM = {dtype: next(one for one in VARIANTS if one.dtype == dtype) for dtype in DTYPES}
"""What is changed: of each precision the first right program of the catalogue."""


def smallest_caught(change: Change, calls: Sequence[_Judged], dtype: str = "float32") -> tuple[float, float]:
    """The smallest g of either sign that is caught, by the table's limits and by the data's."""
    program = RIGHT_PROGRAM[dtype].program
    return _smallest(change, calls, program, 0), _smallest(change, calls, program, 1)


def _smallest(change: Change, calls: Sequence[_Judged], program: PatchedOracle, which: int) -> float:
    low, high = math.log(1e-10), 0.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        g = math.exp(middle)
        changed = (PatchedOracle(change.makes(sign * g), program) for sign in (1, -1))
        caught = max(uses(one, calls)[which] for one in changed)
        low, high = (low, middle) if caught > 1 else (middle, high)
    return math.exp(high)


PAGE = """<!-- Generated by `python -m tools.measure_sensitivity --page`. -->

# The smallest change that is caught

A right program in float32 on the embedded model, changed at one place by a factor of 1 + g: the smallest g,
of either sign, that a checkpoint condemns. *One set* are limits that hold for all models; *the data's* follow
from the tensors that a point is made of, and are what is held to. How close right programs come to these is
told in [rounding](rounding.md). For comparison: a rounding of float32 is 6e-8.

{table}

An epsilon counts by how much it is off, as a share of itself. Of angles over many tokens one set of limits
sees less than float32's rounding of an angle, which right programs have: it would condemn these.
"""


def page(found: Mapping[tuple[str, str], Sequence[tuple[float, float]]], lengths: Sequence[int]) -> str:
    """A page of the documentation.

    Args:
        found: for a checkpoint and what is too large there, the smallest g by both limits, by length.
        lengths: of the prompts, in tokens.
    """
    heads = "".join(f" one set, {n} tokens | the data's |" for n in lengths)
    lines = [f"| checkpoint | what is too large |{heads}", "| --- | --- |" + " --- | --- |" * len(lengths)]
    for (checkpoint, what), smallest in found.items():
        numbers = "".join(f" {table:.1e} | {data:.1e} |" for table, data in smallest)
        lines.append(f"| {checkpoint} | {what} |{numbers}")
    return PAGE.format(table="\n".join(lines))


def main() -> None:
    """Measure and print a table for every length, and write the page where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tokens", nargs="*", type=int, default=[2, 300])
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--page", action="store_true", help="write docs/sensitivity.md")
    options = parser.parse_args()
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for n in options.tokens:
        given = replace(embedded_prompt(n), sampling=({"temperature": 1.0},)).rounded_to(options.dtype)
        print(f"\n{n} tokens, {options.dtype}")
        print(f"{'checkpoint':11s} {'what is too large by':38s} {'table':>9s} {'data':>9s}")
        calls: dict[str, list[_Judged]] = {}
        for change in CHANGES:
            if change.checkpoint not in calls:
                calls = {change.checkpoint: list(judged_cases(given, change.checkpoint))}
            table, data = smallest_caught(change, calls[change.checkpoint], options.dtype)
            found.setdefault((change.checkpoint, change.what), []).append((table, data))
            worse = "  wider" if data > table * 1.01 else ""
            print(f"{change.checkpoint:11s} {change.what:38s} {table:9.1e} {data:9.1e}{worse}", flush=True)
    if options.page:
        (ROOT / "docs" / "sensitivity.md").write_text(page(found, options.tokens), encoding="utf-8")


if __name__ == "__main__":
    main()
