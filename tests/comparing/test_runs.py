"""Runs of several calls, sequences and prefixes: right programs pass, wrong ones are told where and what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.report.comparison import comparison_lines
from tests.comparing.cache_bugs import CATALOGUE, PLANS, Fault, OthersCache
from tests.comparing.cached_port import CachedPort, judged
from tests.comparing.kept_bugs import KEPT
from tests.comparing.ported_llama import Array, Port, prompt, seeded
from tests.draws import draws

N_PAD = 3
FAULTS = [*CATALOGUE, *KEPT]


@pytest.mark.parametrize("stacked", [False, True], ids=["apart", "stacked"])
@pytest.mark.parametrize("plan", PLANS)
def test_a_right_program_passes(tmp_path: Path, plan: str, stacked: bool) -> None:
    report = judged(CachedPort(seeded()), tmp_path, PLANS[plan], stacked=stacked)
    assert report.verdict == "pass", report.reason
    assert not report.findings and report.where == ""
    assert all(one.verdict == "pass" and one.compared == one.of for one in report.sequences)


def test_the_slots_of_a_cache_may_be_declared(tmp_path: Path) -> None:
    """A column for each slot, in any order."""
    program = CachedPort(seeded())
    program.go(PLANS["decode"])
    order = np.random.default_rng(0).permutation(12)[:8]
    tensors = {}
    for number, call in enumerate(program.calls):
        for name, x in call.items():
            if name.endswith(("scores", "probs")):
                wide = np.zeros((*x.shape[:2], 12), np.float32)
                wide[..., order[: x.shape[2]]] = x
                x = wide
            tensors[f"call.{number}.{name}"] = x
    save_dump(tmp_path / "t", tensors, **program.facts, slots=order.tolist())  # type: ignore[arg-type]
    report = compare_dump(tmp_path / "t", model=program.model)
    assert report.verdict == "pass", report.reason


@pytest.mark.parametrize("fault", FAULTS[:: draws(3, 1)], ids=lambda fault: fault.name)
def test_a_wrong_one_is_found_in_its_call_and_named(tmp_path: Path, fault: Fault) -> None:
    stacked = FAULTS.index(fault) % 2 == 1
    report = judged(fault.program(seeded()), tmp_path, PLANS[fault.plan], stacked=stacked)
    assert report.verdict == "fail" and report.first_wrong is not None
    assert report.first_wrong.name.endswith(f".{fault.point}"), report.reason
    assert report.first_wrong.name.startswith("blk.1." if "block 0" in fault.named else "blk.0.")
    assert f"in call {fault.call} " in report.where, report.reason
    if "sequence" in report.where:
        assert f"sequence {fault.sequence}" in report.where, report.reason
    assert fault.named.lower() in report.reason.lower()


def padded() -> tuple[dict[str, Array], dict[str, object], Port]:
    """A left-padded batch `[2, n, …]`, masked and shifted, of the port run on each prompt alone."""
    tokens = [prompt(5), prompt(8)[: 5 + N_PAD]]
    n = 5 + N_PAD
    tensors: dict[str, Array] = {}
    for line, alone in enumerate(tokens):
        for name, x in Port(seeded()).run(alone).items():
            pad = n - len(alone)
            width = [(pad, 0), *[(0, 0)] * (x.ndim - 1)]
            if name.endswith(("scores", "probs")):
                width[-1] = (pad, 0)
            made = np.pad(x, width, constant_values=0.0)
            tensors[name] = np.stack([tensors[name], made]) if line else made
    ids = np.array([[0] * (n - len(one)) + one for one in tokens])
    mask = np.array([[0] * (n - len(one)) + [1] * len(one) for one in tokens])
    return tensors, {"token_ids": ids, "attention_mask": mask}, Port(seeded())


def saved(path: Path, tensors: dict[str, Array], facts: dict[str, object]) -> Path:
    whole = {name: np.asarray(x, np.int32) for name, x in facts.items()}
    save_file({k: np.ascontiguousarray(x) for k, x in tensors.items()} | whole, path)
    return path


def test_a_batch_with_a_mask_is_read(tmp_path: Path) -> None:
    tensors, facts, port = padded()
    report = compare_dump(saved(tmp_path / "t", tensors, facts), model=port.model)
    assert report.verdict == "pass", report.reason
    assert [len(one.rows) for one in report.sequences] == [5, 8]


def test_padding_that_is_seen_is_told(tmp_path: Path) -> None:
    tensors, facts, port = padded()
    tensors["blk.1.attn_probs"][0, 5, 1, 2] = 0.25
    report = compare_dump(saved(tmp_path / "t", tensors, facts), model=port.model)
    assert report.findings[0].kind == "sees_others" and "which is padding" in report.findings[0].message


def test_a_nan_of_padding_is_told_where_it_arrives(tmp_path: Path) -> None:
    tensors, facts, port = padded()
    for name in tensors:
        if name.startswith("blk.0.attn_c") or name.startswith("blk.0.v"):
            tensors[name][0, :N_PAD] = np.nan
        if name.startswith("blk.0.attn_c"):
            tensors[name][0] = np.nan
    report = compare_dump(saved(tmp_path / "t", tensors, facts), model=port.model)
    found = next(one for one in report.findings if one.kind == "nan_of_padding")
    assert "blk.0.attn_context" in found.message and "row 0 of padding, in blk.0.v" in found.message


def test_what_a_cache_holds_is_held_against_its_rows(tmp_path: Path) -> None:
    program = CachedPort(seeded())
    program.go(PLANS["chunks"])
    tensors = {f"call.{i}.{name}": x for i, call in enumerate(program.calls) for name, x in call.items()}
    for which in ("k", "v"):
        parts = [getattr(cell, "keys" if which == "k" else "values")[0] for cell in program.cells]
        tensors[f"call.1.blk.0.{which}_cache"] = np.stack([*parts, np.zeros_like(parts[0])])
    save_dump(tmp_path / "right", tensors, **program.facts)  # type: ignore[arg-type]
    assert compare_dump(tmp_path / "right", model=program.model).verdict == "pass"
    tensors["call.1.blk.0.v_cache"][[2, 3]] = tensors["call.1.blk.0.v_cache"][[3, 2]]
    save_dump(tmp_path / "wrong", tensors, **program.facts)  # type: ignore[arg-type]
    report = compare_dump(tmp_path / "wrong", model=program.model)
    assert [one.kind for one in report.findings] == ["cache"]
    assert "call.1.blk.0.v_cache: slot 2" in report.findings[0].message


def test_the_short_report_says_where_in_the_run_and_what_the_cache_did(tmp_path: Path) -> None:
    report = judged(OthersCache(seeded()), tmp_path, PLANS["batch"])
    lines = ["".join(part for part, _ in line) for line in comparison_lines(report, verbose=False)]
    (where,) = [line.removeprefix("where").strip() for line in lines if line.startswith("where ")]
    assert where.startswith("call 1 (") and where.endswith("sequence 0, position 2")
    (looks,) = [line for line in lines if line.startswith("looks like")]
    assert report.run_fault and looks.endswith(report.run_fault)
    assert lines[-2].endswith(report.where)
