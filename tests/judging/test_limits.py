"""The limits: a row for everything, each from a measurement that can be repeated, none loosened by hand."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from llama_ckpt.errors import OptionError
from llama_ckpt.judging.limits import (
    EXACT,
    MARGIN,
    MEASURED_LAYERS,
    ON_CUDA,
    STRUCTURE_FLOOR,
    ErrorKind,
    is_measured,
    limit_for,
    unmeasured,
)
from llama_ckpt.judging.measured import ENGINE, LAYERS, Measured, read_measured
from llama_ckpt.judging.rounding import angle_error
from llama_ckpt.judging.verdict import judge
from llama_ckpt.mutants.right_programs.torch_programs import correct_programs
from llama_ckpt.points import POINTS
from llama_ckpt.precisions import DTYPES
from tools.kept_reports import kept_report
from tools.measure_limits import Maxima, data, measure_sampling, measure_shape
from tools.measured_models import ALL_SHAPES

ROOT = Path(__file__).parents[2]
ERROR_KINDS: tuple[ErrorKind, ...] = ("own", "total")
ULP = {"float32": 2**-23, "float16": 2**-10, "bfloat16": 2**-7}
"""The spacing of numbers at 1."""


@pytest.mark.parametrize("error_kind", ERROR_KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("point", POINTS)
def test_every_point_has_a_limit_of_its_precisions_size(
    point: str, dtype: str, error_kind: ErrorKind
) -> None:
    limit = limit_for(f"blk.7.{point}", dtype, error_kind)
    assert (limit.point, limit.dtype, limit.error_kind) == (point, dtype, error_kind)
    assert len(limit.reason) > 60
    if point == "embd" and dtype == "float32":
        assert limit.exact
        return
    ulps = 80 if error_kind == "own" else 160  # the longest sums; 32 layers on top of each other
    assert ULP[dtype] / 8 < limit.err <= limit.row_err
    assert limit.err < ulps * ULP[dtype]
    assert limit.element_err > limit.err / 2
    assert limit.gain <= limit.err and limit.bias <= limit.err


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("point", EXACT)
def test_exact_points_are_exact_in_every_precision(point: str, dtype: str) -> None:
    limit = limit_for(point, dtype, "own")
    assert limit.exact
    assert limit.reason.startswith("exact")


def test_sampling_is_judged_in_float32_whatever_came_before() -> None:
    assert limit_for("sampling.3", "bfloat16", "own") == limit_for("sampling", "float32", "total")


@pytest.mark.parametrize("bad", [("nowhere", "float32"), ("q", "float8"), ("blk.q", "float32")])
def test_what_is_not_in_the_table_has_no_default(bad: tuple[str, str]) -> None:
    with pytest.raises(OptionError, match=r"wanted a row of the table; run `python -m tools.measure_limits`"):
        limit_for(*bad, "own")
    assert not is_measured(*bad, "own")


def test_what_was_not_measured_lets_nothing_pass() -> None:
    limit = unmeasured("blk.3.nowhere", "float32", "own")
    assert limit.reason.startswith("no limit was measured for nowhere in float32: run ")
    exact = np.ones((2, 4))
    found = judge("blk.3.nowhere", exact.astype(np.float32), exact, limit=limit)
    assert found.verdict == "fail" and found.err == 0


def test_limits_are_the_margin_times_the_measurement_and_no_more() -> None:
    assert MARGIN <= 4
    for dtype, error_kinds in LAYERS.errors.items():
        for error_kind in ERROR_KINDS:
            for point, largest in error_kinds[error_kind].items():
                limit = limit_for(point, dtype, error_kind)
                floor = STRUCTURE_FLOOR[error_kind] * limit.err
                most = [MARGIN * value for value in largest]
                most[3:] = [max(value, floor) for value in most[3:]]
                most[3] = max(most[3], MARGIN * ON_CUDA.get((dtype, error_kind, point), 0.0))
                found = [limit.err, limit.row_err, limit.element_err, limit.gain, limit.bias]
                assert found == pytest.approx(most, rel=1e-12), (dtype, error_kind, point)


def test_what_holds_on_cuda_alone_was_measured_there() -> None:
    """By `make validate-7b`, of the float32 layers fed from a recording, in every file type."""
    found = kept_report("full_size")
    for (dtype, error_kind, point), gain in ON_CUDA.items():
        assert (dtype, error_kind) == ("float32", "own")
        largest = max(one["gains"][point] for one in found["types"])
        assert largest <= gain < 1.05 * largest


def test_only_free_running_and_deeper_models_get_more() -> None:
    base = limit_for("logits", "float32", "total")
    for n_layers, times in ((1, 1.0), (MEASURED_LAYERS, 1.0), (80, math.sqrt(80 / 32))):
        limit = limit_for("logits", "float32", "total", n_layers=n_layers)
        assert limit.err == pytest.approx(times * base.err)
        assert limit_for("q", "float32", "own", n_layers=n_layers).err == pytest.approx(
            limit_for("q", "float32", "own").err
        )


def test_the_promised_limits_can_be_met() -> None:
    """float32, all 32 layers, free-running: at most 1e-5 at the logits."""
    assert limit_for("logits", "float32", "total").err <= 1e-5


REPEATED = [
    ("float32", "own", "attn_norm"),
    ("float32", "own", "ffn_out"),
    ("float32", "own", "attn_probs"),
    ("float32", "total", "logits"),
    ("float16", "own", "q"),
    ("float16", "total", "logits"),
    ("bfloat16", "own", "out"),
    ("bfloat16", "total", "out"),
]


@pytest.mark.parametrize("row", REPEATED, ids=" ".join)
def test_a_measurement_can_be_repeated(row: tuple[str, str, str]) -> None:
    """The run that a row of the table came from is that far off again, and within every limit."""
    dtype, error_kind, point = row
    name, seed, program = LAYERS.worst[row]
    shape = next(shape for shape in ALL_SHAPES if shape.name == name)
    maxima = Maxima()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measure_shape(maxima, shape, seed, [dtype], only=program)
    finally:
        torch.set_num_threads(threads)
    again = maxima.table[dtype][error_kind][point][0]
    # Another machine's BLAS adds in another order; a limit that somebody doubled is still found out.
    assert (
        LAYERS.errors[dtype][error_kind][point][0] / 2
        < again
        < LAYERS.errors[dtype][error_kind][point][0] * 2
    )
    for found_kind, points in maxima.table[dtype].items():
        for found_point, largest in points.items():
            limit = limit_for(found_point, dtype, found_kind)  # type: ignore[arg-type]
            most = (limit.err, limit.row_err, limit.element_err, limit.gain, limit.bias)
            assert all(a <= b for a, b in zip(largest, most, strict=True)), (found_kind, found_point)


def test_sampling_can_be_repeated() -> None:
    maxima = Maxima()
    for seed in range(3):
        measure_sampling(maxima, seed)
    again = maxima.table["float32"]["own"]["sampling"][0]
    limit = limit_for("sampling", "float32", "own").err
    assert limit / MARGIN / 8 < again < limit


def test_every_row_says_which_run_it_came_from() -> None:
    names = {shape.name for shape in ALL_SHAPES} | {"sampling"}
    programs = {*correct_programs(torch.float32), "plain"}
    for dtype, error_kinds in LAYERS.errors.items():
        for error_kind, points in error_kinds.items():
            for point, largest in points.items():
                if largest[0] > 0:
                    shape, seed, program = LAYERS.worst[dtype, error_kind, point]
                    assert shape in names and 0 <= seed < 10 and program in programs


FINGERPRINTS = {
    "measured_errors": (LAYERS, "cb3fe8487478aa7d5c804663d05fbc7942432d5a17957dd876d2972f74abe46a"),
    "measured_engine_errors": (ENGINE, "2fe26b4bda70266c43b62cdf500daca5af8e3d040f7a0b2618cd13c983841cf9"),
}
"""Of every figure's bits: whoever measures again, and only they, change these with the tables."""


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_the_tables_hold_what_was_measured_to_the_bit(name: str) -> None:
    measured, fingerprint = FINGERPRINTS[name]
    rows = [
        f"{dtype} {kind} {point} {' '.join(value.hex() for value in errors)}"
        for dtype, kinds in measured.errors.items()
        for kind, points in kinds.items()
        for point, errors in points.items()
    ]
    assert hashlib.sha256("\n".join(rows).encode()).hexdigest() == fingerprint


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_what_a_tool_writes_is_read_back_the_same(name: str, tmp_path: Path) -> None:
    measured: Measured = FINGERPRINTS[name][0]
    path = tmp_path / f"{name}.json"
    path.write_text(data(measured.errors, measured.on, measured.worst))
    assert read_measured(path) == measured
    assert path.read_bytes() == (ROOT / "llama_ckpt" / "judging" / path.name).read_bytes()


def test_the_first_pair_has_no_angle_to_round() -> None:
    """Its frequency is 1, or a power of 2: but where a cosine is a sine pi/2 further on, nothing rounds."""
    turns = 1e4 ** -(np.arange(4) / 4)
    off = angle_error([0, 3, 300], turns)
    once = 2.0**-24 * np.array([0, 3, 300])
    assert np.array_equal(off[:, 0], once) and not off[0].any() and np.all(off[1:, 1:] > 0)
    assert angle_error([300], turns / 4)[0, 0] == once[2] / 4
    assert angle_error([300], turns / 3)[0, 0] > 2 * once[2] / 3
    for f in (turns, turns / 4, turns / 3):
        built = np.float32([[300]]) * np.float32(f)
        assert np.all(np.abs(built - 300 * f) <= angle_error([300], f))
