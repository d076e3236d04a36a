"""llama.cpp's CUDA program, explained: rows of products that it recorded on an H200, of few rows and of many.

The sample holds activations, the bytes of some rows of a weight, and what llama.cpp made of both;
`tools/measure_arithmetic.py` measures the whole, and docs/arithmetic.md has its table.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from llama_ckpt.arithmetic.profiles import PROFILES
from llama_ckpt.arithmetic.rounded_oracle import rounded_oracle
from llama_ckpt.arithmetic.turns import FAST_STEP, cos_and_sin
from llama_ckpt.comparing.declared import Declared
from llama_ckpt.oracle.patched_oracle import RIGHT, PatchedOracle
from llama_ckpt.oracle.weights import FileMatrix

SAMPLE = np.load(Path(__file__).parents[1] / "data" / "llama_cpp_cuda_products.npz")
CUDA = PROFILES["llama.cpp-cuda"]

TAKEN = [name.split(".")[:2] for name in SAMPLE.files if name.endswith(".x") and name.count(".") == 2]
"""Types, and of how many rows the product was."""

LEFT = {"F16": {40: 1e-4}}
"""More than float32 leaves: in running sums in float16 its last bit decides now and then."""


def weight(kind: str, raw: np.ndarray | None = None) -> FileMatrix:
    """The sample's rows of a weight, as from a file."""
    raw = SAMPLE[f"{kind}.weight"] if raw is None else raw
    matrix = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]).astype(np.float64)
    found = matrix.reshape(len(raw), -1).view(FileMatrix)
    found.weight_type, found._raw = kind, lambda: raw
    return found


def by_rows(n: int) -> PatchedOracle:
    """As for a product of n rows, of which the sample has some."""
    return rounded_oracle(replace(CUDA.for_rows(n), fewer_rows={}))


def relative(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


@pytest.mark.parametrize(("kind", "rows"), TAKEN)
def test_a_product_is_explained(kind: str, rows: str) -> None:
    n, w = int(rows), weight(kind)
    x, theirs = (SAMPLE[f"{kind}.{n}.{part}"].astype(np.float64) for part in "xy")
    left, error = relative(theirs, by_rows(n).linear(x, w)), relative(theirs, RIGHT.linear(x, w))
    assert left < LEFT.get(kind, {}).get(n, 1e-6)
    assert left < 0.1 * error or error < 1e-6
    if n > 3 or kind not in ("F32", "BF16"):
        assert error > 1e-4


@pytest.mark.parametrize(
    ("kind", "other"),
    [("F32", 40), ("F16", 40), ("Q4_0", 4), ("Q4_K", 4), ("Q2_K", 4), ("Q4_1", 4), ("Q5_1", 4)],
)
def test_the_kernel_for_another_number_of_rows_is_no_explanation(kind: str, other: int) -> None:
    x, theirs = (SAMPLE[f"{kind}.12.{part}"].astype(np.float64) for part in "xy")
    assert relative(theirs, by_rows(other).linear(x, weight(kind))) > 1e-4


@pytest.mark.parametrize(("what", "kind", "n"), [("fallen sum", "Q5_1", 12), ("fallen scale", "Q4_0", 40)])
def test_what_is_kept_in_float16_may_fall_either_way(what: str, kind: str, n: int) -> None:
    """A block's sum, or its scale, in the middle of two numbers: that is all that such a row is off by."""
    x, theirs = (SAMPLE[f"{what}.{part}"].astype(np.float64) for part in "xy")
    w = weight(kind, SAMPLE[f"{what}.weight"])
    off = np.abs(theirs - by_rows(n).linear(x, w))
    assert float(np.linalg.norm(off)) > 2e-5 * float(np.linalg.norm(theirs))
    ties = Declared(replace(CUDA.for_rows(n), fewer_rows={}), kind).product_ties(x, None, w)
    assert ties is not None and np.all(off < 1.01 * ties + 1e-6 * np.abs(theirs).max())
    assert np.all(ties < 3 * off.max())


def test_fast_cosines_are_of_angles_that_are_cut_off() -> None:
    """The first pair of a head turns by its position: by how many radians it lay beside that on an H200."""
    before, after = (SAMPLE[f"turned.{part}"].astype(np.float64)[:, 0] for part in ("before", "after"))
    came, went = (x[:, 0] + 1j * x[:, 1] for x in (before, after))
    turned = went / came
    for fast, most in ((True, FAST_STEP), (False, 10 * FAST_STEP)):
        cos, sin = cos_and_sin(range(40), [1.0], "float32", fast=fast)
        off = np.abs(turned - (cos + 1j * sin)[:, 0, 0])
        assert off.max() < most
    assert off.max() > 8 * FAST_STEP  # of exact cosines


@pytest.mark.parametrize("n", [4, 12, 40])
def test_scores_are_explained(n: int) -> None:
    q, k, theirs = (SAMPLE[f"scores.{n}.{part}"].astype(np.float64) for part in "qky")
    queries, keys = q.transpose(1, 0, 2), k.transpose(1, 0, 2)
    made = by_rows(n).scores(queries, keys).transpose(1, 0, 2)
    exact = RIGHT.scores(queries, keys).transpose(1, 0, 2)
    assert relative(theirs, made) < 1e-6
    assert relative(theirs, exact) > 1e-4
