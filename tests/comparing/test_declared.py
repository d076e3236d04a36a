"""Programs that round on purpose, held to what they declare: bugs are found behind it, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_ckpt.arithmetic.profiles import read_arithmetic
from llama_ckpt.capture import Take, capture_takes
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.errors import OptionError
from llama_ckpt.making.derive import derive
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.report.comparison import comparison_lines
from llama_ckpt.report.html import page
from reference_dumps import dump_folder, embedded_model
from tests.comparing.ported_llama import Port, compared, seeded
from tests.comparing.rounding_ports import (
    Bfloat16Port,
    Float16Port,
    HalfCachePort,
    IntegerPort,
    TF32Port,
)

PORTS: dict[str, tuple[type[Port], Any]] = {
    "TF32": (TF32Port, "tf32"),
    "W8A8": (IntegerPort, "w8a8-per-token"),
    "half cache": (HalfCachePort, {"keys": "float16", "values": "float16"}),
    "bfloat16": (Bfloat16Port, "bfloat16-torch"),
    "float16": (Float16Port, "float16-torch"),
}
"""Right programs, and what each declares."""


def as_theirs(folder: Path, name: str, path: Path, **changed: Any) -> Path:
    """A recording of llama.cpp as somebody's dump; tensors may be changed."""
    dump = open_dumps(folder).dump(name)
    tensors = {point: np.array(dump[point]) for point in dump if point != "last_logits"}
    for point, change in changed.items():
        tensors[point.replace("_in_", ".")] = change(tensors[point.replace("_in_", ".")])
    save_dump(path, tensors, token_ids=dump.entry.token_ids, positions=dump.entry.positions)
    return path


@pytest.mark.parametrize("program", PORTS)
@pytest.mark.parametrize(("n", "first"), [(3, 700), (24, 0)])
def test_a_right_program_passes_as_it_declares(program: str, n: int, first: int, tmp_path: Path) -> None:
    port, declared = PORTS[program]
    report = compared(port(seeded()), tmp_path, n, first=first, arithmetic=declared)
    assert report.verdict == "pass", report.reason
    assert report.arithmetic is not None
    assert report.arithmetic.costs > 1e-5
    assert report.arithmetic.left < report.arithmetic.costs / 4


@pytest.mark.parametrize("type", ["F16", "Q8_0", "Q4_0"])
def test_llama_cpps_own_dump_passes_as_somebodys(type: str, tmp_path: Path) -> None:
    model = derive(embedded_model(), type, tmp_path / "model.gguf").path
    theirs = as_theirs(dump_folder(type.lower()), "hello", tmp_path / "theirs.safetensors")
    report = compare_dump(theirs, model=model, arithmetic="llama.cpp-cpu", partial=True)
    assert report.verdict == "pass", report.reason
    assert report.compared == 99


@pytest.mark.llama_cpp
def test_a_mix_of_types_recorded_here_passes_and_a_changed_product_does_not(tmp_path: Path) -> None:
    model, tokens = tmp_path / "model.gguf", tuple(1 + 7 * i % 300 for i in range(20))
    make_seeded(
        model, width=256, n_heads=4, n_kv_heads=2, ffn=512, n_layers=2, vocab=320, seed=2, type="Q4_K_M"
    )
    capture_takes(model, [Take(tokens=tokens, max_tokens=0, name="one")], out=tmp_path / "dumps")
    theirs = tmp_path / "theirs.safetensors"
    options: dict[str, Any] = {"model": model, "arithmetic": "llama.cpp-cpu"}
    right = compare_dump(as_theirs(tmp_path / "dumps", "one", theirs), **options)
    assert right.verdict == "pass", right.reason
    assert right.arithmetic is not None
    assert right.arithmetic.costs > 1e-3 > 1e-6 > right.arithmetic.left
    found = compare_dump(theirs, model=model)
    assert (found.verdict, found.exit_code) == ("arithmetic", 3)
    assert found.reason.endswith("declare it: --arithmetic llama.cpp-cpu")
    as_theirs(tmp_path / "dumps", "one", theirs, blk_in_1_in_ffn_up=lambda x: x * (1 + 1e-4))
    wrong = compare_dump(theirs, **options)
    assert (wrong.verdict, wrong.first_wrong and wrong.first_wrong.name) == ("fail", "blk.1.ffn_up")


class WrongEpsilon(IntegerPort):
    """W8A8 with another epsilon than the file's."""

    def norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        scale = 1 / np.sqrt(np.mean(x * x, -1, keepdims=True, dtype=np.float32) + np.float32(3e-5))
        return np.asarray(x * scale * weight.astype(np.float32))


class SwappedNibble(IntegerPort):
    """W8A8 whose up projection has two columns in each other's place."""

    def feed_forward(self, x: np.ndarray, weights: Any, at: str) -> np.ndarray:
        up, columns = np.array(weights.w_up), [1, 0, *range(2, weights.w_up.shape[1])]
        gate = self.keep(at + "ffn_gate", self.product(x, weights.w_gate))
        wrong = self.keep(at + "ffn_up", self.product(x, up[:, columns]))
        return self.product(self.keep(at + "ffn_swiglu", self.gated(gate, wrong)), weights.w_down)


class HalfSplitPairs(HalfCachePort):
    """A float16 cache, and RoPE's pairs in halves."""

    halves = True

    def projections(self, weights: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return weights.wq, weights.wk, weights.wv


@pytest.mark.parametrize(
    ("program", "declared", "point", "words"),
    [
        (WrongEpsilon, "w8a8-per-token", "blk.0.attn_norm", "eps"),
        (SwappedNibble, "w8a8-per-token", "blk.0.ffn_up", ""),
        (HalfSplitPairs, {"keys": "float16", "values": "float16"}, "blk.0.q_rope", "pairs"),
    ],
)
def test_a_bug_shows_behind_the_rounding_and_is_named(
    program: type[Port], declared: Any, point: str, words: str, tmp_path: Path
) -> None:
    report = compared(program(seeded()), tmp_path, 12, arithmetic=declared)
    assert report.first_wrong is not None
    assert report.first_wrong.name == point
    assert words in report.reason


FOUND = {
    "TF32": ("--arithmetic tf32", "TF32"),
    "W8A8": ("--arithmetic w8a8-per-token", "int8"),
    "half cache": (
        """--arithmetic '{"keys": "float16", "values": "float16"}'""",
        "keys and values in float16",
    ),
    "bfloat16": ("--arithmetic bfloat16-torch", "bfloat16"),
    "float16": ("--arithmetic float16-torch", "float16"),
}
"""What is said of a right program that declares nothing."""


@pytest.mark.parametrize("program", PORTS)
def test_what_is_not_declared_is_found_out(program: str, tmp_path: Path) -> None:
    report = compared(PORTS[program][0](seeded()), tmp_path, 9)
    option, words = FOUND[program]
    assert (report.verdict, report.exit_code) == ("arithmetic", 3)
    assert report.reason.startswith("differs by arithmetic, no bug seen: ")
    assert words in report.reason and report.reason.endswith(f"declare it: {option}")
    assert report.next[-1].command.endswith(option)


class HalfCacheTF32(TF32Port):
    """TF32 products with weights; keys and values in float16."""

    multiplied = HalfCachePort.multiplied
    cached = HalfCachePort.cached


def test_a_mixture_is_found_place_by_place(tmp_path: Path) -> None:
    report = compared(HalfCacheTF32(seeded()), tmp_path, 9)
    assert report.verdict == "arithmetic", report.reason
    assert "products in TF32, keys and values in float16" in report.reason
    assert report.arithmetic is not None
    again = read_arithmetic(report.arithmetic.option.removeprefix("--arithmetic ").strip("'"))
    assert compared(HalfCacheTF32(seeded()), tmp_path, 9, arithmetic=again).verdict == "pass"


@pytest.mark.parametrize("kept", [".out", "logits"])
def test_it_is_found_of_few_points_too(kept: str, tmp_path: Path) -> None:
    def few(name: str) -> bool:
        return name.endswith((kept, "embd", "output_norm"))

    report = compared(IntegerPort(seeded(n_layers=1)), tmp_path, 9, kept=few)
    assert report.verdict == "arithmetic", report.reason
    assert "w8a8-per-token" in report.reason


@pytest.mark.parametrize("type", ["F16", "Q8_0", "Q4_0"])
def test_llama_cpps_own_dump_says_what_it_is(type: str, tmp_path: Path) -> None:
    model = derive(embedded_model(), type, tmp_path / "model.gguf").path
    theirs = as_theirs(dump_folder(type.lower()), "hello", tmp_path / "theirs.safetensors")
    report = compare_dump(theirs, model=model, partial=True)
    assert report.verdict == "arithmetic", report.reason
    assert "--arithmetic llama.cpp-cpu" in report.reason


def test_a_bug_behind_what_is_not_declared_is_named_and_fails(tmp_path: Path) -> None:
    report = compared(WrongEpsilon(seeded()), tmp_path, 12)
    assert (report.verdict, report.exit_code) == ("fail", 1)
    assert report.first_wrong is not None and report.first_wrong.name == "blk.0.attn_norm"
    assert "eps" in report.reason and "behind arithmetic: " in report.reason
    assert "w8a8-per-token" in report.reason


def said(report: Comparison) -> str:
    return "\n".join("".join(text for text, _ in line) for line in comparison_lines(report))


def test_both_numbers_stand_in_every_report(tmp_path: Path) -> None:
    report = compared(HalfCachePort(seeded()), tmp_path, 6, arithmetic={"name": "mine", "keys": "float16"})
    assert report.verdict == "fail"  # its values are rounded as well
    assert "declared: mine costs" in said(report)
    found = report.to_json()["arithmetic"]
    assert 1e-5 < found["costs"] < 1e-3
    assert found["left"] < 1e-6
    assert found["lines"].items() >= {"name": "mine", "keys": "float16"}.items()
    assert "left unexplained" in page(report.to_json())


def test_a_dump_declares_its_arithmetic_in_its_header(tmp_path: Path) -> None:
    port, path = IntegerPort(seeded()), tmp_path / "theirs.safetensors"
    for declared in ("w8a8-per-token", {"like": "w8a8-per-token", "name": "mine"}):
        save_dump(path, port.run([1, 5, 9]), token_ids=[1, 5, 9], positions=range(3), arithmetic=declared)
        assert compare_dump(path, model=port.model).verdict == "pass"
    report = compare_dump(path, model=port.model, arithmetic="float32")  # what is asked for comes first
    assert report.verdict == "fail"


def test_what_no_arithmetic_is_says_so(tmp_path: Path) -> None:
    port, path = Port(seeded()), tmp_path / "theirs.safetensors"
    save_dump(path, port.run([1, 5]), token_ids=[1, 5], positions=[0, 1], arithmetic="w8a8-per-row")
    with pytest.raises(OptionError, match="w8a8-per-token"):
        compare_dump(path, model=port.model)
    save_dump(path, port.run([1, 5]), token_ids=[1, 5], positions=[0, 1], arithmetic=json.dumps({"key": 1}))
    with pytest.raises(OptionError, match="did you mean keys"):
        compare_dump(path, model=port.model)
