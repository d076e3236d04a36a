"""Half precision of which little was recorded: right programs pass as declared, or say what to declare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from tests.comparing.ported_llama import Array, Port, compared, prompt, seeded
from tests.comparing.rounding_ports import Bfloat16Port, Float16Port, HalfCachePort, TF32Port

HALF: dict[str, type[Port]] = {"bfloat16": Bfloat16Port, "float16": Float16Port}
FEW = [("logits",), (".out",), ("norm", ".out"), ("q_rope", "k_rope"), ("attn_probs", ".v", ".out")]
"""Ends of the names that are kept of a dump."""


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kept", FEW)
def test_few_points_that_were_made_float32_say_what_they_are(
    dtype: str, kept: tuple[str, ...], tmp_path: Path
) -> None:
    program = HALF[dtype](seeded(n_layers=2))
    report = compared(program, tmp_path, 9, kept=lambda name: name.endswith(kept), partial=True)
    assert (report.verdict, report.exit_code) == ("arithmetic", 3), report.reason
    assert report.reason.startswith("differs by arithmetic, no bug seen: ")
    assert report.next[-1].command.endswith((f"--dtype {dtype} --partial", f"{dtype}-torch --partial"))


def test_what_fell_in_a_step_that_was_not_recorded_is_right(tmp_path: Path) -> None:
    def few(name: str) -> bool:
        return name.endswith((".v", ".out"))

    program = Float16Port(seeded())
    report = compared(program, tmp_path, 30, kept=few, partial=True, arithmetic="float16-torch")
    assert report.verdict == "pass", report.reason


@pytest.mark.parametrize(
    ("port", "declared", "n"),
    [(HalfCachePort, {"keys": "float16", "values": "float16"}, 100), (TF32Port, "tf32", 40)],
)
def test_what_fell_goes_on_through_attention_and_products(
    port: type[Port], declared: object, n: int, tmp_path: Path
) -> None:
    program = port(seeded(head_dim=24))
    report = compared(program, tmp_path, n, kept=lambda x: x.endswith(".out"), arithmetic=declared)
    assert report.verdict == "pass", report.reason


class Divides(Float16Port):
    """Scores are divided by a root: one in a thousand is in the middle of two, and falls the other way."""

    def scaled(self, scores: torch.Tensor) -> torch.Tensor:
        return scores / self.config.head_dim**0.5


def test_a_score_that_fell_moves_all_probabilities_of_its_row(tmp_path: Path) -> None:
    report = compared(Divides(seeded(head_dim=8)), tmp_path, 60, arithmetic="float16-torch")
    assert report.verdict == "pass", report.reason


class WrongGate(Bfloat16Port):
    """A gate whose sigmoid is one of 1.702 times it, as GELU's is."""

    def gated(self, gate: Array, up: Array) -> Array:
        return super().gated(1.702 * gate, up) / np.float32(1.702)


def test_a_bug_behind_it_fails_where_it_is(tmp_path: Path) -> None:
    report = compared(
        WrongGate(seeded()), tmp_path, 12, kept=lambda x: x.endswith(("ffn_inp", ".out")), partial=True
    )
    assert report.exit_code == 1
    assert report.first_wrong is not None and report.first_wrong.name == "blk.0.out"


def stored(program: Port, n: int, kept: str, path: Path) -> Comparison:
    """Of a dump whose numbers are stored as float16."""
    tokens = prompt(n)
    seen = {name: x for name, x in program.run(tokens).items() if name.endswith(kept)}
    tensors = {name: np.ascontiguousarray(x, np.float16) for name, x in seen.items()}
    save_file(tensors, path, {"token_ids": ",".join(map(str, tokens))})
    return compare_dump(path, model=program.model, partial=True)


@pytest.mark.parametrize("kept", ["logits", "attn_probs"])
def test_what_may_be_wider_says_what_it_is_not_wider_than(kept: str, tmp_path: Path) -> None:
    report = stored(Float16Port(seeded()), 9, kept, tmp_path / "theirs.safetensors")
    assert (report.verdict, report.dtype) == ("pass", "float16"), report.reason
