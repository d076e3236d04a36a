"""What `compare` says of programs whose RoPE is wrong, or right and of limited accuracy.

Each is a port of its own in float32, with one method overridden; the model has grouped heads and a theta
of 500,000.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.judging.to_precision import to_bfloat16, to_float16
from llama_ckpt.report.comparison import comparison_lines
from tests.comparing.ported_llama import Array, F, Port, compared, seeded
from tests.comparing.rounding_ports import Float16Port

LEFT = re.compile(r"(.*): remaining error (\d\.\de-\d\d)")


def sentence(report: Comparison) -> str:
    """The headline's explanation; what it leaves is within what float32 rounds."""
    found = LEFT.fullmatch(report.diagnoses[0].sentence())
    assert found, report.diagnoses[0].sentence()
    assert float(found[2]) < 1e-6
    assert report.reason.endswith(found[0])
    return found[1]


def changed(**methods: Any) -> type[Port]:
    return type("Changed", (Port,), methods)


def own(model: Port) -> Array:
    return Port.frequencies(model)


def theta(value: float) -> type[Port]:
    return changed(frequencies=lambda self: value ** (-np.arange(8) / 8))


def rounded(what: str, to: Any) -> type[Port]:
    """Frequencies, positions, angles, all of these, the table, its cosines or its sines in half precision."""

    def angles(self: Port, positions: Array) -> Array:
        at = to(positions.astype(F)) if what in ("positions", "all") else positions
        f = to(own(self)) if what in ("frequencies", "all") else own(self)
        return to(at[:, None] * f) if what in ("angles", "all") else at[:, None] * f

    def table(self: Port, positions: Array) -> tuple[Array, Array]:
        a = self.angles(positions)
        cos, sin = np.cos(a), np.sin(a)
        cos = to(cos) if what in ("table", "cosines") else cos
        return cos.astype(F), (to(sin) if what in ("table", "sines") else sin).astype(F)

    return changed(angles=angles, table=table)


WHAT = {
    "frequencies": "RoPE's frequencies are rounded to {}",
    "positions": "RoPE's positions are rounded to {}",
    "angles": "RoPE's angles are rounded to {}",
    "all": "RoPE's positions, frequencies and angles are in {}",
    "table": "RoPE's table of cosines and sines is rounded to {}",
    "cosines": "RoPE's cosines are rounded to {}",
    "sines": "RoPE's sines are rounded to {}",
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("what", WHAT)
def test_rounding_to_half_precision_is_named(what: str, dtype: str, tmp_path: Path) -> None:
    to = {"bfloat16": to_bfloat16, "float16": to_float16}[dtype]
    # Whole numbers are lost from 257 and 2,049 on: odd ones there show it.
    first = 2051 if what in ("positions", "all") else 3
    report = compared(rounded(what, to)(seeded()), tmp_path, 6, first=first)
    assert report.first_wrong is not None and report.first_wrong.name == "blk.0.q_rope"
    assert sentence(report) == WHAT[what].format(dtype)


def test_two_roundings_at_once_are_named(tmp_path: Path) -> None:
    both = changed(
        frequencies=lambda self: to_bfloat16(own(self)),
        table=lambda self, at: tuple(to_bfloat16(one) for one in Port.table(self, at)),
    )
    said = sentence(compared(both(seeded()), tmp_path, 24))
    assert said == "RoPE's frequencies and table of cosines and sines are rounded to bfloat16"


def test_halves_of_another_theta_are_two_bugs(tmp_path: Path) -> None:
    class Both(Port):
        def turn(self, x: Array, positions: Array) -> Array:
            halves = theta(1e4)(self.model)
            halves.halves = True
            return halves.turn(x, positions)

    said = sentence(compared(Both(seeded()), tmp_path, 12))
    assert said == "RoPE turns pairs (i, i+d/2) instead of (2i, 2i+1), and RoPE's theta is 10,000"


def in_float32(self: Port, positions: Array) -> Array:
    return positions.astype(F)[:, None] * own(self).astype(F)


def in_float32_throughout(self: Port, positions: Array) -> Array:
    c = self.config
    powers = F(c.rope_theta) ** (np.arange(0, c.head_dim, 2).astype(F) / F(c.head_dim))
    return positions.astype(F)[:, None] * (F(1) / powers)


def by_multiplication(self: Port, positions: Array) -> Array:
    c = self.config
    angles, step = [positions.astype(F)], F(c.rope_theta ** (-2 / c.head_dim))
    while len(angles) < c.head_dim // 2:
        angles.append(angles[-1] * step)
    return np.stack(angles, axis=1)


@pytest.mark.parametrize("first", [0, 250, 1000, 4000, 31990])
@pytest.mark.parametrize("angles", [in_float32, in_float32_throughout, by_multiplication])
def test_float32_angles_pass_and_the_report_says_what_they_cost(
    angles: Any, first: int, tmp_path: Path
) -> None:
    report = compared(changed(angles=angles)(seeded()), tmp_path, 6, first=first)
    assert report.verdict == "pass", report.reason
    notes = [note for note in report.notes if note.startswith("RoPE's angles")]
    assert len(notes) == (first >= 250)
    if notes:
        way = "by repeated multiplication in float32" if angles is by_multiplication else "in float32"
        cost = rf"RoPE's angles {way}: (\de-\d) here, at position {first + 5:,}, (\de-\d) at 32,000"
        found = re.fullmatch(cost, notes[0])
        assert found, notes
        here, far = float(found[1]), float(found[2])
        assert 1e-6 * first / 10_000 < here < 1e-4 * first / 10_000
        assert 0.25 < far / here * (first + 5) / 32_000 < 4


def test_of_half_precision_nothing_is_said_of_angles(tmp_path: Path) -> None:
    """What it rounds hides what angles in float32 cost, and was taken for that: 5e-1 at 32,000."""
    report = compared(Float16Port(seeded()), tmp_path, 20, dtype="float16")
    assert report.verdict == "pass" and not any("angles" in note for note in report.notes)


def test_exact_angles_cost_nothing(tmp_path: Path) -> None:
    report = compared(Port(seeded()), tmp_path, 8, first=31992)
    assert report.verdict == "pass" and not [note for note in report.notes if "angles" in note]


def turning(pairs: tuple[Array, Array], frequencies: Array) -> type[Port]:
    """Some pairs are turned, the rest of the head stays."""

    def turn(self: Port, x: Array, positions: Array) -> Array:
        angle = positions[:, None] * frequencies
        cos, sin = np.cos(angle).astype(F)[:, None], np.sin(angle).astype(F)[:, None]
        y = x.copy()
        a, b = x[..., pairs[0]], x[..., pairs[1]]
        y[..., pairs[0]], y[..., pairs[1]] = a * cos - b * sin, b * cos + a * sin
        return y

    return changed(turn=turn)


@pytest.mark.parametrize("rotary", [4, 8, 12])
def test_a_partial_rotary_is_named_with_its_features(rotary: int, tmp_path: Path) -> None:
    i = np.arange(rotary // 2)
    f = 5e5 ** (-2 * i / rotary)
    few = f"RoPE turns only the first {rotary} of a head's 16 features"
    neighbours, halves = turning((2 * i, 2 * i + 1), f), turning((i, i + rotary // 2), f)
    assert sentence(compared(neighbours(seeded()), tmp_path, 12)) == few
    assert sentence(compared(halves(seeded()), tmp_path, 12)) == f"{few}, as pairs (i, i+{rotary // 2})"
    halves.halves = True
    said = sentence(compared(halves(seeded()), tmp_path, 12))
    assert said == f"{few} in Hugging Face's order, as pairs (i, i+{rotary // 2})"
    whole = turning((2 * i, 2 * i + 1), 5e5 ** (-2 * i / 16))
    said = sentence(compared(whole(seeded()), tmp_path, 12))
    half = "RoPE turns only the first half of each head"
    assert said == (half if rotary == 8 else f"{few}, with the whole head's frequencies")


@pytest.mark.parametrize("only", ["qk", "k"])
def test_other_pairs_of_float32_angles_are_the_whole_of_it(only: str, tmp_path: Path) -> None:
    class Halves(Port):
        def angles(self, positions: Array) -> Array:
            return np.asarray(positions.astype(F)[:, None] * self.frequencies().astype(F))

        def turn(self, x: Array, positions: Array) -> Array:
            self.halves = only == "qk" or x.shape[1] == self.config.n_kv_heads
            try:
                return super().turn(x, positions)
            finally:
                self.halves = False

    report = compared(Halves(seeded()), tmp_path, 100)
    where = "in k only: " if only == "k" else ""
    assert sentence(report) == f"{where}RoPE turns pairs (i, i+d/2) instead of (2i, 2i+1)"
    told = [line[0][0] for line in comparison_lines(report, verbose=True) if line]
    assert any(one.startswith("would pass") for one in told)


def test_a_table_that_is_turned_on_step_by_step_is_named(tmp_path: Path) -> None:
    class Drifting(Port):
        def table(self, positions: Array) -> tuple[Array, Array]:
            step, now = np.exp(1j * self.frequencies()).astype(np.complex64), np.ones(8, np.complex64)
            rows = []
            for _ in positions:
                rows.append(now)
                now = now * step
            return np.real(rows).astype(F), np.imag(rows).astype(F)

    said = "RoPE's cosines and sines are turned on from position to position in float32, and drift"
    assert sentence(compared(Drifting(seeded()), tmp_path, 300)) == said


@pytest.mark.parametrize("n", [2, 8])
def test_a_layout_takes_the_headline(n: int, tmp_path: Path) -> None:
    class NeighboursOfHalves(Port):
        halves = True

        def turn(self, x: Array, positions: Array) -> Array:
            return Port(self.model).turn(x, positions)

    class HalvesOfNeighbours(Port):
        def turn(self, x: Array, positions: Array) -> Array:
            other = Port(self.model)
            other.halves = True
            return other.turn(x, positions)

    report = compared(NeighboursOfHalves(seeded()), tmp_path, n)
    said = "RoPE turns neighbours (2i, 2i+1) of heads in Hugging Face's order, for pairs (i, i+d/2)"
    assert sentence(report) == said
    assert [finding.kind for finding in report.findings] == ["mixed_layout"]
    report = compared(HalvesOfNeighbours(seeded()), tmp_path, n)
    assert sentence(report) == "RoPE turns pairs (i, i+d/2) instead of (2i, 2i+1)"
    without = {"kept": lambda name: not name.endswith((".q", ".k")), "partial": True}
    report = compared(NeighboursOfHalves(seeded()), tmp_path, n, **without)
    assert "Hugging Face's order" in sentence(report)


def test_only_the_second_of_two_tokens_is_no_finding_of_a_rotation(tmp_path: Path) -> None:
    class Shuffled(Port):
        def turn(self, x: Array, positions: Array) -> Array:
            y = Port.turn(self, x, positions)
            return np.where((positions == 0)[:, None, None], y, y[..., ::-1] ** 2)

    report = compared(Shuffled(seeded()), tmp_path, 2)
    assert report.first_wrong is not None and report.first_wrong.name == "blk.0.q_rope"
    assert not any("token 1" in one.sentence() for one in report.diagnoses)


THETAS = {10_000.0: "10,000, whatever the file says", 500_000.0: "500,000, Llama 3's", 1e6: "1,000,000"}


@pytest.mark.parametrize("right", THETAS)
@pytest.mark.parametrize("wrong", [*THETAS, 20_000.0, 499_712.0])
def test_a_theta_is_named_and_never_the_models_own(right: float, wrong: float, tmp_path: Path) -> None:
    report = compared(theta(wrong)(seeded(rope_theta=right)), tmp_path, 12)
    if right == wrong:
        assert report.verdict == "pass" and not report.diagnoses
        return
    said = sentence(report)
    if wrong == 499_712.0 and right == 500_000.0:
        assert said == "RoPE's theta is rounded to bfloat16"
    else:
        assert said.startswith(f"RoPE's theta is {THETAS.get(wrong, f'{wrong:,.0f}')}")
    for bug in report.diagnoses[0].named:
        assert not re.search(rf"theta is ({right:.6g}|{right:,.0f})\b", bug.sentence)


SCALED: dict[str, tuple[float, Any, str]] = {
    "ignored": (4.0, lambda f: f * 4, "the file's linear scaling of RoPE is ignored"),
    "inverted": (4.0, lambda f: f * 16, "RoPE's scaling multiplies where it divides"),
    "twice": (4.0, lambda f: f / 4, "RoPE's scaling is applied twice"),
    "made up": (1.0, lambda f: f / 8, "RoPE's frequencies are multiplied by 0.125"),
    "NTK": (
        1.0,
        lambda f: (5e5 * 8 ** (16 / 14)) ** (-np.arange(8) / 8),
        "RoPE's theta is 5,383,600, as NTK scaling by 8 makes it",
    ),
    "whole numbers": (
        1.0,
        np.trunc,
        "RoPE turns the first pair alone: frequencies cut to integers, or theta beyond its format",
    ),
    "exponents": (
        1.0,
        np.ones_like,
        "every pair of RoPE turns by 1 a token: the exponents are divided as integers",
    ),
}


@pytest.mark.parametrize("name", SCALED)
def test_other_frequencies_are_named(name: str, tmp_path: Path) -> None:
    scale, change, said = SCALED[name]
    program = changed(frequencies=lambda self: change(own(self)))(seeded(rope_scale=scale))
    assert sentence(compared(program, tmp_path, 12)) == said


@pytest.mark.parametrize("factor", [8, 32])
def test_llama_3s_scaling_is_named(factor: int, tmp_path: Path) -> None:
    def frequencies(self: Port) -> Array:
        f, turns = own(self), 8192 * own(self) / (2 * np.pi)
        between = (turns - 1) / (4 - 1) * f + (4 - turns) / (4 - 1) * f / factor
        return np.where(turns > 4, f, np.where(turns < 1, f / factor, between))

    report = compared(changed(frequencies=frequencies)(seeded()), tmp_path, 12, first=700)
    assert sentence(report) == f"RoPE's frequencies are scaled by {factor} as Llama 3.1's are"


@pytest.mark.parametrize("offset", [-3, 1, 4])
def test_an_offset_is_named(offset: int, tmp_path: Path) -> None:
    program = changed(turn=lambda self, x, at: Port.turn(self, x, at + offset))(seeded())
    said = "RoPE's positions begin at 1" if offset == 1 else f"RoPE's positions are off by {offset:+d}"
    assert sentence(compared(program, tmp_path, 12, first=5)) == said


def test_a_small_fault_in_half_split_order_is_told_apart_from_the_order(tmp_path: Path) -> None:
    class Halves(Port):
        halves = True

        def frequencies(self) -> Array:
            return 1.001 * super().frequencies()

    report = compared(Halves(seeded()), tmp_path, 9, kept=lambda name: name.endswith("q_rope"), partial=True)
    assert any("half-split order" in note for note in report.notes)
    assert report.first_wrong is not None and report.first_wrong.name == "blk.0.q_rope"
    assert report.first_wrong.leading.err < 1e-2
    assert "frequencies are multiplied by 1.001" in sentence(report)
