"""Programs that round, say nothing, and record little: proved where no tie fell, else what is true."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.dumps.theirs import open_their_dump, save_dump
from llama_ckpt.making.derive import derive
from llama_ckpt.report.comparison import comparison_lines
from reference_dumps import dump_folder, embedded_model
from tests.comparing.ported_llama import Array, F, Port, compared, prompt, seeded
from tests.comparing.rounding_ports import HalfCachePort, IntegerPort, TF32Port
from tests.comparing.test_declared import SwappedNibble, WrongEpsilon, as_theirs


def only(*names: str) -> Callable[[str], bool]:
    return lambda name: name in names


def last_logits(program: Port, n: int, path: Path) -> Comparison:
    """Of a dump of the last token's logits."""
    tokens = prompt(n)
    save_dump(path, {"logits": program.run(tokens)["logits"][-1]}, token_ids=tokens)
    return compare_dump(path, model=program.model, partial=True)


@pytest.mark.parametrize("port", [IntegerPort, HalfCachePort])
def test_logits_alone_are_explained_whole_where_no_tie_fell(port: type[Port], tmp_path: Path) -> None:
    """A machine's own order of sums says which ties fall: of a few prompts some have none."""
    program = port(seeded())
    lengths = (2, 3, 5, 8, 12)
    reports = [compared(program, tmp_path, n, kept=only("logits"), partial=True) for n in lengths]
    assert all(report.exit_code in (1, 3) for report in reports)
    whole = [one for one in reports if one.arithmetic is not None and one.arithmetic.left < 1e-6]
    assert whole
    for report in whole:
        assert (report.verdict, report.exit_code) == ("arithmetic", 3), report.reason
        assert report.arithmetic is not None and report.arithmetic.of > 1e-5
        assert f" of {report.arithmetic.of:.1e}; declare it: --arithmetic" in report.reason
    last = [last_logits(program, n, tmp_path / "last.safetensors").exit_code for n in lengths]
    assert 3 in last and {*last} <= {1, 3}


def test_of_probabilities_alone_the_first_rows_see_the_first_keys(tmp_path: Path) -> None:
    report = compared(IntegerPort(seeded()), tmp_path, 12, kept=only("blk.1.attn_probs"), partial=True)
    assert report.exit_code == 3 and "int8 per row" in report.reason, report.reason


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("kept", [("logits",), ("blk.5.out", "blk.20.out")])
def test_llama_cpps_own_are_explained_over_32_blocks(
    type: str, kept: tuple[str, ...], tmp_path: Path
) -> None:
    model = derive(embedded_model(), type, tmp_path / "model.gguf").path
    whole = as_theirs(dump_folder(type.lower()), "hello", tmp_path / "whole.safetensors")
    report = compare_dump(cut(whole, kept), model=model, partial=True)
    assert (report.verdict, report.exit_code) == ("arithmetic", 3), report.reason
    assert report.reason.endswith("declare it: --arithmetic llama.cpp-cpu")


def cut(path: Path, kept: tuple[str, ...]) -> Path:
    """A dump with some of its tensors."""
    whole = open_their_dump(path)
    few = path.with_name("few.safetensors")
    declared = whole.declared
    save_dump(few, {name: whole.raw(name) for name in kept}, token_ids=declared.token_ids or ())
    return few


def test_where_ties_fell_it_says_how_far_roundings_would_put_it(tmp_path: Path) -> None:
    program = TF32Port(seeded())
    report = compared(program, tmp_path, 12, kept=only("logits"), partial=True)
    assert (report.verdict, report.exit_code) == ("fail", 1)
    assert "as far from exact as weights and activations of products in TF32" in report.reason
    assert report.reason.endswith(
        "a bug smaller than that can't be seen; record blk.0.q, which tells, or declare it: --arithmetic tf32"
    )
    assert "they cost" in report.reason  # and, where a machine sums so that some rows have no tie, which
    assert any("not declared, not proved" in str(line) for line in comparison_lines(report))
    more = compared(program, tmp_path, 12, kept=only("blk.0.q"), partial=True)
    assert more.exit_code == 3 and "products in TF32" in more.reason


def test_declared_it_passes_and_says_what_cannot_be_seen(tmp_path: Path) -> None:
    report = compared(TF32Port(seeded()), tmp_path, 12, kept=only("logits"), partial=True, arithmetic="tf32")
    assert report.exit_code == 0
    assert any(line.startswith("logits: ties fell otherwise") for line in report.cannot_tell)
    proved = compared(
        IntegerPort(seeded()), tmp_path, 12, kept=only("logits"), partial=True, arithmetic="w8a8-per-token"
    )
    assert proved.exit_code == 0 and not any("ties" in line for line in proved.cannot_tell)


def test_what_a_step_has_shown_is_proved_over_blocks_too(tmp_path: Path) -> None:
    """A step's roundings are no excuse for what whole blocks lie before."""
    for port, code in ((IntegerPort, 3), (TF32Port, 1)):
        report = compared(port(seeded()), tmp_path, 12, kept=only("blk.0.q", "logits"), partial=True)
        assert report.exit_code == code, report.reason
    assert report.reason.startswith("logits is as far from exact as ")
    assert "record blk.1.out, which halves where that is" in report.reason


class OtherTheta(IntegerPort):
    """W8A8 and a base of RoPE that is not the file's, by a thousandth."""

    def frequencies(self) -> Array:
        pairs = np.arange(self.config.head_dim // 2)
        return super().frequencies() * 1.001 ** (-2 * pairs / self.config.head_dim)


class Unscaled(IntegerPort):
    """W8A8 whose scores are not divided."""

    def probabilities(self, scores: Array, visible: Array) -> Array:
        return super().probabilities(scores * F(self.config.head_dim**0.5), visible)


class OfTheFirstBlock(WrongEpsilon):
    """An epsilon that is wrong in the first block alone."""

    def block(self, x: Array, weights: Any, positions: Array, at: str) -> Array:
        if at == "blk.0.":
            return super().block(x, weights, positions, at)
        right = IntegerPort(self.model)
        made = right.block(x, weights, positions, at)
        self.seen |= right.seen
        return made


@pytest.mark.parametrize("wrong", [WrongEpsilon, SwappedNibble, OtherTheta, Unscaled, OfTheFirstBlock])
@pytest.mark.parametrize("kept", [("logits",), ("blk.1.out", "blk.2.out"), ("blk.1.q", "logits")])
def test_no_bug_hides_behind_roundings_that_are_not_declared(
    wrong: type[Port], kept: tuple[str, ...], tmp_path: Path
) -> None:
    report = compared(wrong(seeded()), tmp_path, 12, kept=only(*kept), partial=True)
    assert (report.verdict, report.exit_code) == ("fail", 1), report.reason


def test_a_bug_that_rounds_nothing_is_named_and_no_rounding_beside_it(tmp_path: Path) -> None:
    class Epsilon(Port):
        def norm(self, x: Array, weight: Array) -> Array:
            scale = 1 / np.sqrt(np.mean(x * x, -1, keepdims=True, dtype=F) + F(1e-6))
            return np.asarray(x * scale * weight.astype(F))

    report = compared(Epsilon(seeded()), tmp_path, 12, kept=only("logits"), partial=True)
    assert report.exit_code == 1
    assert "epsilon" in report.reason and "as far from exact" not in report.reason
