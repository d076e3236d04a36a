"""Draw faults of each family and say how often just the drawn one is recovered: docs/identifiers.md.

    python -m tools.measure_identifiers                 # 300 draws of each family
    python -m tools.measure_identifiers --draws 50 keys norm
    python -m tools.measure_identifiers --write         # the page as well

Each draw has one of three shapes and one of two prompts. What is discrete must be recovered exactly, a
number to as many digits as float32 leaves. Draws that change nothing are drawn again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.curves import CURVES, sigmoid
from llama_ckpt.identify.record import Identified
from llama_ckpt.identify.turns import layouts, turned
from tests.identify.attention_faults import SHAPES, attended, attention_case, found_in, normed_case, rope_case
from tests.identify.product_faults import SHAPES as MODELS
from tests.identify.product_faults import asked_of, call_of, given, said_of
from tests.identify.test_residual import _found as found_in_block
from tests.identify.test_residual import _sums as sums

Array: TypeAlias = NDArray[Any]
Draw: TypeAlias = Callable[[np.random.Generator], "bool | None"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "identifiers.md"


def _pick(rng: np.random.Generator, among: Any) -> Any:
    return list(among)[int(rng.integers(len(list(among))))]


# -- RoPE --------------------------------------------------------------------------------------------


def _turned(case: Any, angles: Array) -> Identified | None:
    right = case.arguments["positions"][:, None] * case.arguments["frequencies"]
    wrong = {}
    for point in "qk":
        x = case.arguments[point]
        wrong[f"{point}_rope"] = turned(x, next(layouts(x.shape[-1])), np.cos(angles), np.sin(angles))
    return None if np.allclose(right, angles) else found_in(case, wrong).best


def _rope_case(rng: np.random.Generator) -> Any:
    return rope_case(_pick(rng, SHAPES), *_pick(rng, ((9, 0), (24, 100))))


def positions_of_runs(rng: np.random.Generator) -> bool | None:
    """Runs of rows, each turned at positions of its own."""
    case = _rope_case(rng)
    own = case.arguments["positions"]
    cuts = np.sort(rng.choice(np.arange(1, len(own)), int(rng.integers(0, 4)), replace=False))
    at = own + np.repeat(rng.integers(-5, 41, len(cuts) + 1), np.diff([0, *cuts, len(own)]))
    return None if (at == own).all() else _has_positions(case, at)


def positions_in_any_order(rng: np.random.Generator) -> bool | None:
    """The positions of the rows in any order."""
    case = _rope_case(rng)
    return _has_positions(case, rng.permutation(case.arguments["positions"]))


def _has_positions(case: Any, at: Array) -> bool:
    best = _turned(case, at[:, None] * case.arguments["frequencies"])
    return best is not None and best.explained and best.parameters.get("positions") == at.tolist()


def theta(rng: np.random.Generator) -> bool | None:
    """Any theta from 1,000 to 10,000,000, of four digits."""
    case = _rope_case(rng)
    value = float(f"{10 ** rng.uniform(3, 7):.4g}")
    pairs = len(case.arguments["frequencies"])
    at = case.arguments["positions"][:, None] * value ** (-np.arange(pairs) / pairs)
    best = _turned(case, at)
    return best is not None and best.explained and abs(best.parameters.get("theta", 0) / value - 1) < 1e-4


def slower(rng: np.random.Generator) -> bool | None:
    """All pairs slower or faster by one factor, of three digits."""
    case = _rope_case(rng)
    factor = float(f"{_pick(rng, (rng.uniform(0.05, 0.95), rng.uniform(1.1, 9))):.3g}")
    best = _turned(case, case.arguments["positions"][:, None] * case.arguments["frequencies"] * factor)
    known = {2.0: "twice"}.get(factor, "")
    return (
        best is not None
        and best.explained
        and (
            abs(best.parameters.get("factor", 0) / factor - 1) < 1e-4
            or bool(known and known in best.sentence)
        )
    )


# -- products ----------------------------------------------------------------------------------------


def _model(rng: np.random.Generator) -> tuple[Any, int]:
    return given(_pick(rng, sorted(MODELS)), int(rng.integers(2))), _pick(rng, (2, 8))


def _product(rng: np.random.Generator, function: str, point: str, make: Any) -> Identified | None:
    on, rows = _model(rng)
    case = call_of(function, on, rows)
    fields = {"q": "wq", "ffn_up": "w_up", "ffn_gate": "w_gate"}
    x, w = case.arguments["x"], case.arguments[fields[point]]
    return said_of(asked_of(case, on, {point: lambda right: make(x, w).reshape(right.shape)})).best


def columns_left_out(rng: np.random.Generator) -> bool | None:
    """Any set of up to 20 columns left out of the sum."""
    weights = np.ones(64)
    weights[rng.choice(64, int(rng.integers(1, 21)), replace=False)] = 0
    return _has(_product(rng, "qkv", "q", lambda x, w: (x * weights) @ w.T), "columns", weights)


def a_run_of_columns(rng: np.random.Generator) -> bool | None:
    """A run of columns that count otherwise: not, twice, four times, half, negative."""
    first, last = np.sort(rng.choice(65, 2, replace=False))
    weights = np.ones(64)
    weights[first:last] = _pick(rng, (0.0, 2.0, 4.0, 0.5, -1.0))
    if last - first == 64:
        return None
    return _has(_product(rng, "qkv", "q", lambda x, w: (x * weights) @ w.T), "columns", weights)


def columns_in_any_order(rng: np.random.Generator) -> bool | None:
    """The matrix's columns in any order."""
    order = rng.permutation(64)
    return _has(_product(rng, "qkv", "q", lambda x, w: x[:, order] @ w.T), "inputs", order)


def outputs_in_any_order(rng: np.random.Generator) -> bool | None:
    """The matrix's rows in any order."""
    order = rng.permutation(96)
    return _has(_product(rng, "swiglu", "ffn_up", lambda x, w: x @ w[order].T), "rows", order)


def outputs_exchanged(rng: np.random.Generator) -> bool | None:
    """Two to eight of the matrix's rows that change places."""
    order = np.arange(96)
    few = rng.choice(96, int(rng.integers(2, 9)), replace=False)
    order[few] = np.roll(few, 1)
    return _has(_product(rng, "swiglu", "ffn_gate", lambda x, w: x @ w[order].T), "rows", order)


def _has(best: Identified | None, name: str, wanted: Array) -> bool:
    if best is None or not best.explained or name not in best.parameters:
        return False
    got = np.asarray(best.parameters[name])
    return got.shape == wanted.shape and bool(np.allclose(got, wanted, atol=1e-3))


# -- attention ---------------------------------------------------------------------------------------


def any_keys(rng: np.random.Generator) -> bool | None:
    """Any set of earlier keys for each row, itself among them."""
    n = _pick(rng, (9, 20))
    causal = np.tril(np.ones((n, n), bool))
    return _sees(rng, n, (rng.random((n, n)) < rng.uniform(0.2, 0.95)) & causal | np.eye(n, dtype=bool))


def keys_by_a_rule(rng: np.random.Generator) -> bool | None:
    """A window, keys from later on, a cache reset, masks aligned otherwise or lost."""
    n = _pick(rng, (9, 20))
    row, key, k = np.arange(n)[:, None], np.arange(n), int(rng.integers(1, n - 1))
    rules = (
        (key <= row) & (row - key < k),
        key <= row + k,
        (key <= row) & ~((row >= k) & (key < k)),
        np.where(row >= k, key <= row - k, key <= row),
        np.ones((n, n), bool),
    )
    return _sees(rng, n, _pick(rng, rules))


def _sees(rng: np.random.Generator, n: int, seen: Array) -> bool | None:
    if (seen == np.tril(np.ones((n, n), bool))).all() or not seen.any(axis=1).all():
        return None
    case = attention_case(_pick(rng, SHAPES), n)
    best = found_in(case, attended(case, seen=seen)).best
    if best is None or not best.explained or "keys_seen" not in best.parameters:
        return False
    made = np.zeros((n, n), bool)
    for at, runs in enumerate(best.parameters["keys_seen"]):
        for first, last in runs:
            made[at, first : last + 1] = True
    return bool((made == seen).all())


def other_heads(rng: np.random.Generator) -> bool | None:
    """Any key head for each head."""
    heads, kv_heads, _ = shape = _pick(rng, SHAPES[:2])
    case, own = attention_case(shape, _pick(rng, (9, 20))), np.arange(heads) // (heads // kv_heads)
    reads = rng.integers(0, kv_heads, heads)
    if (reads == own).all():
        return None
    best = found_in(case, attended(case, reads=reads)).best
    right = best is not None and best.explained and best.kind == "attention.heads"
    wrong = np.flatnonzero(reads != own)
    named = () if best is None else best.place.heads or ()
    return right and [h for first, last in named for h in range(first, last + 1)] == wrong.tolist()


# -- norms, activations, sums ------------------------------------------------------------------------


def norms(rng: np.random.Generator) -> bool | None:
    """Another epsilon, another width of the mean, a weight that is moved along."""
    case = normed_case(_pick(rng, (32, 64, 160)), _pick(rng, (2, 24)), 1.0)
    x, weight = case.arguments["x"], case.arguments["weight"]
    square = np.mean(x * x, axis=-1, keepdims=True)
    what = _pick(rng, ("epsilon", "width", "weight"))
    if what == "epsilon":
        eps = float(10 ** rng.uniform(-4, -1))
        best = found_in(case, {"ffn_norm": x / np.sqrt(square + eps) * weight}).best
        return _near(best, "epsilon", eps, 2e-2)
    if what == "width":
        last = int(rng.integers(1, x.shape[1] - 1))
        part = np.mean(x[:, : last + 1] ** 2, axis=-1, keepdims=True)
        return _near(found_in(case, {"ffn_norm": x / np.sqrt(part + 1e-5) * weight}).best, "last", last)
    by = int(rng.integers(1, x.shape[1]))
    best = found_in(case, {"ffn_norm": x / np.sqrt(square + 1e-5) * np.roll(weight, by)}).best
    by = by if by <= x.shape[1] // 2 else by - x.shape[1]
    return best is not None and best.explained and f"shifted by {by} feature" in best.sentence


def _near(best: Identified | None, name: str, wanted: float, most: float = 1e-4) -> bool:
    right = best is not None and best.explained and name in best.parameters
    return bool(right and best is not None and abs(best.parameters[name] / wanted - 1) < most)


def activations(rng: np.random.Generator) -> bool | None:
    """Any known curve, or SiLU with another slope in its exponent."""
    on, rows = _model(rng)
    case = call_of("swiglu", on, rows)
    g = case.arguments
    gate, up = g["x"] @ g["w_gate"].T, g["x"] @ g["w_up"].T
    if rng.random() < 0.5:
        curve = _pick(rng, CURVES[1:])
        best = said_of(asked_of(case, on, {"ffn_swiglu": curve.function(gate) * up})).best
        return best is not None and best.explained and curve.name in best.sentence
    slope = float(rng.uniform(0.3, 3))
    if abs(slope - 1) < 0.01 or abs(slope - 1.702) < 1e-3:
        return None
    best = said_of(asked_of(case, on, {"ffn_swiglu": gate * sigmoid(slope * gate) * up})).best
    return best is not None and best.explained and f"sigmoid({slope:.5g} a)" in best.sentence


WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0, 0.5, -1.0, 0.22)


def residuals(rng: np.random.Generator) -> bool | None:
    """The two terms of either sum, each so many times."""
    a, b = (_pick(rng, WEIGHTS) for _ in "ab")
    if (a, b) in ((1, 1), (0, 0)):
        return None
    where = (_pick(rng, sorted(MODELS)), int(rng.integers(2)), _pick(rng, (2, 8)))
    first = bool(rng.integers(2))
    program = sums((a, b), (1, 1)) if first else sums((1, 1), (a, b))
    best = found_in_block(where, program, "ffn_inp" if first else "out")
    names = ("in", "attn_out") if first else ("ffn_inp", "ffn_out")
    terms = {} if best is None or not best.explained else best.parameters.get("terms", {})
    return bool(terms) and all(abs(terms.get(n, 0.0) - w) < 1e-4 for n, w in zip(names, (a, b), strict=True))


FAMILIES: Mapping[str, Draw] = {
    "RoPE, runs": positions_of_runs,
    "RoPE, order": positions_in_any_order,
    "RoPE, theta": theta,
    "RoPE, factor": slower,
    "columns, set": columns_left_out,
    "columns, run": a_run_of_columns,
    "columns, order": columns_in_any_order,
    "outputs, order": outputs_in_any_order,
    "outputs, few": outputs_exchanged,
    "keys, set": any_keys,
    "keys, rule": keys_by_a_rule,
    "heads": other_heads,
    "norm": norms,
    "activation": activations,
    "residual": residuals,
}
"""What is drawn, by a short name."""


def measured(name: str, draws: int, *, seed: int = 0) -> list[int]:
    """Which draws of a family were not recovered, by number; draw i depends on seed and i alone."""
    missed, done, number = [], 0, 0
    while done < draws:
        recovered = FAMILIES[name](np.random.default_rng([seed, number]))
        if recovered is not None:
            done += 1
            if not recovered:
                missed.append(number)
        number += 1
    return missed


HEAD = """<!-- Generated by `python -m tools.measure_identifiers --write`. -->

# Drawn faults, recovered

Faults drawn at random within the family of one operator, {draws} of each, on three shapes and two prompts:
how many were said exactly as they were drawn, the discrete ones to the last number.

| family | what is drawn | recovered |
| --- | --- | --- |
"""


def page(found: Mapping[str, list[int]], draws: int) -> str:
    """The page."""
    rows = []
    for name, missed in found.items():
        what = (FAMILIES[name].__doc__ or "").rstrip(".")
        rows.append(f"| {name} | {what} | {100 * (1 - len(missed) / draws):.4g}% |\n")
    return HEAD.format(draws=draws) + "".join(rows)


def main() -> None:
    """Draw, print, and write the page where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("families", nargs="*", help="words of the families' names; else all")
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write docs/identifiers.md")
    options = parser.parse_args()
    found = {}
    for name in FAMILIES:
        if not options.families or any(word in name for word in options.families):
            missed = found[name] = measured(name, options.draws, seed=options.seed)
            share = 100 * (1 - len(missed) / options.draws)
            few = f", not {missed[:8]}" if missed else ""
            print(f"{name:16s} {share:6.2f}% of {options.draws}{few}", flush=True)
    if options.write:
        PAGE.write_text(page(found, options.draws), encoding="utf-8")


if __name__ == "__main__":
    main()
