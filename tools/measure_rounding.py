"""How much of their limits right programs use: the constants of `judging/rounding_steps.py` on trial.

    python -m tools.measure_rounding                            # 100,000 judged points, to the terminal
    python -m tools.measure_rounding 25000 --start 2000 --out a.json     # a piece, other draws
    python -m tools.measure_rounding --page a.json b.json       # writes docs/rounding.md from pieces

Steps of a Llama are drawn (`measured_draws`), computed by right programs in every order of sums and in
every way that frameworks treat half precision, and judged as `compare` judges them. For each precision,
step and measure it is kept how much of the limit the worst one used; more than 1 is a false alarm.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llama_ckpt.diagnose.patched_oracle import RIGHT
from llama_ckpt.judging.limits import Limit, limit_for, within
from llama_ckpt.judging.metrics import causal_mask
from llama_ckpt.judging.rounding import spreads_of
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.step_spreads import sum_spread
from llama_ckpt.points import POINTS
from llama_ckpt.precisions import DTYPES
from tools.measured_draws import STEPS, Draw, draw_case, programs

__all__ = ["METRICS", "Most", "judged", "measure_draws"]

METRICS = ("err", "row_err", "element_err", "gain", "bias", "turn")

DOCS = Path(__file__).parents[1] / "docs" / "rounding.md"
"""The page."""

OVERFLOWS = {"float32": 1e37, "float16": 2.0**12, "bfloat16": 1e37}
"""Draws with larger numbers are left out: float16 holds nothing above 65,504, and scores are larger yet."""

PROGRAMS_A_DRAW = 6
"""So many of the right programs, others each time, compute a draw."""


@dataclass(frozen=True)
class Use:
    """One judged point: how much of each limit it used."""

    step: str
    dtype: str
    point: str
    program: str
    number: int
    used: tuple[float, ...]


def exact_answers(draw: Draw) -> tuple[dict[str, Any], Mapping[str, Spread]]:
    """The oracle's answers and what rounding may leave of them."""
    case = draw.case
    if case.function == "add":
        a, b = case.arguments["a"], case.arguments["b"]
        return {case.returns[0]: a + b}, {case.returns[0]: sum_spread(a, b, draw.dtype)}
    exact = RIGHT.answers(case)
    return exact, spreads_of(case, exact, draw.dtype)


def judged(number: int, step: str, dtype: str) -> Iterator[Use]:
    """A draw's points, computed by some of the right programs."""
    draw = draw_case(number, step, dtype)
    exact, spreads = exact_answers(draw)
    if not max(float(np.abs(o).max(initial=0.0)) for o in exact.values()) <= OVERFLOWS[dtype]:
        return
    limits: dict[str, tuple[Limit, Any]] = {}
    for name, o in exact.items():
        mask = causal_mask(draw.positions) if POINTS[name].causal else None
        limits[name] = within(limit_for(name, dtype, "own"), spreads[name], o, mask), mask
    everyone = programs(dtype)
    chosen = np.random.default_rng(number).permutation(list(everyone))[:PROGRAMS_A_DRAW]
    for program in chosen:
        for name, x in everyone[program](draw.case).items():
            limit, mask = limits[name]
            found = limit.measure(np.float32(x), exact[name], mask)
            used = limit.measured(found)
            share = tuple(_share(*used.get(metric, (0.0, 1.0))) for metric in METRICS)
            yield Use(step, dtype, name, str(program), number, share)


def _share(got: float, most: float) -> float:
    return got / most if most else 0.0


@dataclass(frozen=True)
class Piece:
    """What is kept of draws: how many points, the false alarms, and the largest uses.

    Attributes:
        worst: precision, step, and for each metric the share of the limit that was used.
    """

    points: int
    alarms: list[str]
    worst: list[tuple[str, str, list[float]]]


@dataclass
class Most:
    """The largest uses so far, by precision, step and point, for each metric; and where they were."""

    points: int = 0
    alarms: list[Use] = field(default_factory=list)
    worst: dict[tuple[str, str, str], list[Use]] = field(default_factory=dict)

    def see(self, use: Use) -> None:
        """Count one point in."""
        self.points += 1
        if not max(use.used) <= 1:
            self.alarms.append(use)
        kept = self.worst.setdefault((use.dtype, use.step, use.point), [use] * len(METRICS))
        for at, share in enumerate(use.used):
            if not share <= kept[at].used[at]:
                kept[at] = use

    def piece(self) -> Piece:
        """As it is kept in a file."""
        steps: dict[tuple[str, str], list[float]] = {}
        for (dtype, step, _), kept in self.worst.items():
            before = steps.setdefault((dtype, step), [0.0] * len(METRICS))
            steps[dtype, step] = [
                max(old, use.used[at]) for at, (old, use) in enumerate(zip(before, kept, strict=True))
            ]
        alarms = [
            f"{one.dtype} {one.step} {one.point}, {one.program}, draw {one.number}" for one in self.alarms
        ]
        return Piece(self.points, alarms, [(*key, used) for key, used in steps.items()])


def measure_draws(
    points: int, start: int = 0, steps: Any = STEPS, dtypes: Any = DTYPES, out: Path | None = None
) -> Most:
    """Draw until so many points are judged; out: where what was seen so far is kept as well."""
    most, number = Most(), start
    while most.points < points:
        for step in steps:
            for dtype in dtypes:
                for use in judged(number, step, dtype):
                    most.see(use)
        number += 1
        if out is not None and (number % 10 == 0 or most.points >= points):
            out.write_text(json.dumps({"draws": [start, number], **asdict(most.piece())}), encoding="utf-8")
    return most


PAGE = """<!-- Generated by `python -m tools.measure_rounding --page`. -->

# How close right programs come to their limits

Steps of a Llama on random numbers, from {draws} draws: widths of 32 to 4,096, heads of 8 to 128 features,
alone or in groups, 1 to 1,000 keys, weights and inputs with and without a mean, features and tokens that
dwarf the rest, tokens that repeat, positions near and far. Each is computed by right programs, six a draw,
drawn from {programs} ways to sum, to round and to build angles, and judged as `compare` judges it.

**{points:,} judged points, {alarms} false alarms.** Of what it is allowed the worst used, 1.00 being all:

| precision | step | {metrics} |
| --- | --- | {lines} |
{rows}

The measures are those of [metrics](metrics.md); *turn* is RoPE's angles. In half precision a limit is nearer
to what happens than in float32, where many orders of summation are right.

What small changes these limits still catch is told in [sensitivity](sensitivity.md).
"""


def page(pieces: Sequence[Path]) -> str:
    """A page of the documentation from what pieces found."""
    points, alarms, draws, worst = 0, 0, 0, dict[tuple[str, str], Any]()
    for piece in pieces:
        found = json.loads(piece.read_text(encoding="utf-8"))
        points, alarms = points + found["points"], alarms + len(found["alarms"])
        draws += found["draws"][1] - found["draws"][0]
        for dtype, step, used in found["worst"]:
            before = worst.get((dtype, step), [0.0] * len(METRICS))
            worst[dtype, step] = [max(pair) for pair in zip(before, used, strict=True)]
    rows = "\n".join(
        f"| {dtype} | {step} | "
        + " | ".join(f"{share:.2f}" if share else "" for share in worst[dtype, step])
        + " |"
        for dtype in DTYPES
        for step in STEPS
        if (dtype, step) in worst
    )
    return PAGE.format(
        points=points,
        alarms=alarms,
        draws=f"{draws * len(STEPS) * len(DTYPES):,}",
        programs=len({name for dtype in DTYPES for name in programs(dtype)}),
        metrics=" | ".join(METRICS),
        lines=" | ".join("---" for _ in METRICS),
        rows=rows,
    )


def closest(most: Most, how_many: int = 12) -> Iterator[str]:
    """The judged points that came closest to their limits."""
    uses = {id(use): use for kept in most.worst.values() for use in kept}
    for use in sorted(uses.values(), key=lambda one: -max(one.used))[:how_many]:
        shares = ", ".join(f"{metric} {share:.2f}" for metric, share in zip(METRICS, use.used, strict=True))
        yield f"{use.dtype} {use.step} {use.point}, {use.program}, draw {use.number}: {shares}"
        yield f"    {draw_case(use.number, use.step, use.dtype).about}"


def lines(most: Most) -> Iterator[str]:
    """The table for a reader."""
    yield f"{most.points} judged points, {len(most.alarms)} false alarms"
    yield f"{'':10s} {'step':14s} {'point':13s} " + " ".join(f"{metric:>11s}" for metric in METRICS)
    for (dtype, step, point), kept in most.worst.items():
        shares = " ".join(f"{use.used[at]:11.2f}" for at, use in enumerate(kept))
        yield f"{dtype:10s} {step:14s} {point:13s} {shares}"


def main() -> None:
    """Measure and print, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("points", nargs="?", type=int, default=100_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep what was found there")
    parser.add_argument("--page", type=Path, nargs="+", help="draw nothing: docs/rounding.md from these")
    parser.add_argument("--steps", nargs="*", default=STEPS)
    parser.add_argument("--dtypes", nargs="*", default=DTYPES)
    options = parser.parse_args()
    if options.page:
        DOCS.write_text(page(options.page), encoding="utf-8")
        return
    torch.set_num_threads(1)
    most = measure_draws(options.points, options.start, options.steps, options.dtypes, options.out)
    print("\n".join(lines(most)))
    print("\n".join(closest(most)))


if __name__ == "__main__":
    main()
