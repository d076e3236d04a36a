"""Runs on ranks: nothing right is condemned; what is wrong is caught on its ranks, and named."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

import llama_ckpt as lc
from llama_ckpt.cli.compare import ranks_of
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.errors import DumpError, OptionError
from llama_ckpt.mutants.ranks.port import Array, RankPort
from llama_ckpt.mutants.ranks.trial import RankModels, compared, rank_bugs, right_ranks, run_ranks, tokens_of
from llama_ckpt.ranks.compare import compare_ranks
from tests.draws import draws

BUGS = {bug.name: bug for bug in rank_bugs()}
RIGHT = {one.name: one for one in right_ranks()}
ALWAYS = ("reduction-missing", "fused-qkvcut-evenly", "key-heads-in-turn", "stage-with-the-first-layers")


@cache
def models() -> RankModels:
    return RankModels(Path(mkdtemp(prefix="ranks")))


def test_the_catalogue_has_both_kinds_and_every_entry_its_report_or_none() -> None:
    assert len(BUGS) == len(rank_bugs()) >= 24 and len(RIGHT) == len(right_ranks()) >= 18
    assert all(bug.ranks and bug.at and bug.right and bug.fault[-1] != "." for bug in BUGS.values())


@pytest.mark.parametrize("name", sorted(RIGHT)[:: draws(3, 1)])
def test_nothing_right_is_condemned(name: str) -> None:
    run = run_ranks(RIGHT[name], models())
    assert not run.caught, (run.at, run.said)


@pytest.mark.parametrize("name", dict.fromkeys([*ALWAYS, *sorted(BUGS)[:: draws(6, 1)]]))
def test_a_fault_is_caught_at_its_point_on_its_ranks_and_named(name: str) -> None:
    run = run_ranks(BUGS[name], models())
    assert run.caught and run.right_point, (run.at, run.ranks)
    assert run.named, run.said


def written(folder: Path, program: type[RankPort], model: Path, n: int = 9, **changed: Array) -> list[Path]:
    """The ranks' dumps; `changed` holds another tensor of rank 1, dots as two underscores."""
    tokens, paths = tokens_of(n), []
    for rank, seen in enumerate(program(model).run(tokens)):
        if rank == 1:
            seen |= {name.replace("__", "."): x for name, x in changed.items()}
        paths.append(folder / f"r{rank}.safetensors")
        save_dump(paths[-1], seen, token_ids=tokens, positions=range(n))
    return paths


def test_the_public_function_takes_ranks_by_number_and_says_how_to_type_it(tmp_path: Path) -> None:
    model = models().path("plain")
    a, b = written(tmp_path, RankPort, model, blk__0__v=np.zeros((9, 1, 16)))
    report = lc.compare(ranks={1: b, 0: a}, model=model)
    assert report.first_wrong is not None and report.first_wrong.name == "blk.0.v"
    assert [one.verdict for one in report.ranks] == ["pass", "fail"]
    assert report.ranks[1].first_wrong == "blk.0.v" and report.ranks[1].blocks == (0, 3)
    assert "llama-ckpt-ranks" not in str(report.to_json())
    assert report.to_json()["ranks"][1]["path"] == str(b)
    assert "rank 1 is off; rank 0 is right" in " ".join(one.message for one in report.findings)


def test_the_public_function_takes_a_dump_or_ranks(tmp_path: Path) -> None:
    model = models().path("plain")
    paths = written(tmp_path, RankPort, model)
    for wrong in ({}, {"theirs": paths[0], "ranks": paths}):
        with pytest.raises(OptionError, match="wanted a dump, or the dumps of ranks"):
            lc.compare(**wrong)
    with pytest.raises(OptionError, match="wanted ranks="):
        lc.compare(paths[0], plan="plan.txt")
    with pytest.raises(OptionError, match="two or more, numbered from 0"):
        lc.compare(ranks={0: paths[0], 2: paths[1]})
    assert lc.compare(ranks=paths, model=model).verdict == "pass"


def test_options_of_the_command_line() -> None:
    assert ranks_of(None) is None
    assert ranks_of(["1=b", "0=a"]) == {0: Path("a"), 1: Path("b")}
    for wrong, said in (
        (["a"], "a rank's number"),
        (["0="], "a rank's number"),
        (["0=a", "0=b"], "each rank once"),
    ):
        with pytest.raises(OptionError, match=said):
            ranks_of(wrong)


def test_tokens_split_over_ranks_are_refused_by_name(tmp_path: Path) -> None:
    model = models().path("plain")
    seen = RankPort(model).run(tokens_of(8))
    for rank, tensors in enumerate(seen):
        own = slice(4 * rank, 4 * rank + 4)
        half = {name: x[own] if x.shape[1:] == (64,) else x for name, x in tensors.items()}
        save_dump(tmp_path / f"{rank}", half, token_ids=tokens_of(8), positions=range(8))
    with pytest.raises(DumpError, match="sequence parallel is not supported"):
        compare_ranks([tmp_path / "0", tmp_path / "1"], model=model)


def test_ranks_of_other_batches_are_told(tmp_path: Path) -> None:
    model = models().path("plain")
    paths = written(tmp_path, RankPort, model)
    other = RankPort(model).run(tokens_of(9)[::-1])[1]
    save_dump(paths[1], other, token_ids=tokens_of(9)[::-1], positions=range(9))
    report = compare_ranks(paths, model=model)
    assert report.verdict == "fail"
    assert "token_ids of rank 1 are others than those of rank 0" in report.findings[0].message


def test_a_shard_that_is_missing_or_too_long_is_a_finding(tmp_path: Path) -> None:
    model = models().path("plain")
    paths = written(tmp_path, RankPort, model, blk__1__ffn_up=np.zeros((9, 50)))
    report = compare_ranks(paths, model=model)
    again = [step.command for step in report.next]
    assert any(f"--rank 0={paths[0]} --rank 1={paths[1]} --model" in one for one in again), again
    found = [one.message for one in report.findings if one.kind == "shape"]
    assert found == ["blk.1.ffn_up: the ranks have 48 + 50 along ffn, the model 96"]


def test_logits_alone_of_a_sum_that_is_missing_are_caught(tmp_path: Path) -> None:
    """Nothing but the ends of blocks: the sums are computed through."""

    class Missing(RankPort):
        def reduce(self, parts: list[Array], rank: int) -> Array:
            return parts[rank]

    model, tokens = models().path("plain"), tokens_of(9)
    paths = []
    for rank, seen in enumerate(Missing(model).run(tokens)):
        paths.append(tmp_path / f"{rank}")
        kept = {name: x for name, x in seen.items() if name.endswith((".out", "logits"))}
        save_dump(paths[-1], kept, token_ids=tokens, positions=range(9), points=["out", "logits"])
    report = compare_ranks(paths, model=model)
    assert report.first_wrong is not None and report.first_wrong.name == "blk.0.out"
    assert "every rank adds its own part alone" in report.reason and "in both sums" in report.reason


def test_without_a_model_ranks_are_held_against_a_recording() -> None:
    from llama_ckpt.dumps.reference import open_dumps
    from reference_dumps import dump_folder, embedded_model

    entry = open_dumps(dump_folder("f32")).entry("hello")
    folder = Path(mkdtemp(prefix="ranks"))
    paths = []
    for rank, seen in enumerate(RankPort(Path(embedded_model())).run(entry.token_ids)):
        paths.append(folder / f"{rank}")
        save_dump(paths[-1], seen, token_ids=entry.token_ids, positions=entry.positions)
    report = compare_ranks(paths, reference=dump_folder("f32"))
    assert report.verdict == "pass", report.reason
    assert compare_ranks(paths).verdict == "pass"


def test_half_precision_on_ranks(tmp_path: Path) -> None:
    """Everything rounded to float16 as it is made: no rank is called wrong for it."""

    class Half(RankPort):
        def keep(self, name: str, x: Array, rank: int) -> Array:
            return (
                super()
                .keep(name, x.astype(np.float16).astype(np.float32), rank)
                .astype(np.float16)
                .astype(np.float32)
            )

    model = models().path("plain")
    paths = written(tmp_path, Half, model)
    assert compare_ranks(paths, model=model, dtype="float16").verdict == "pass"


def test_every_bug_of_the_catalogue_leaves_the_right_ranks_alone() -> None:
    one = BUGS["heads-of-another-rank"]
    report = compared(one, models())
    assert [rank.verdict for rank in report.ranks] == ["pass", "fail"]
