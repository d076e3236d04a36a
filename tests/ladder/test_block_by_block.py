"""Large models are climbed block by block: the same verdicts, each block made once, nobody waits forever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

import checkpoints.c06_swiglu
from llama_ckpt.ladder import subjects
from llama_ckpt.ladder.climb import validate
from llama_ckpt.ladder.lockstep import Lockstep
from llama_ckpt.ladder.report import LadderReport
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.model import load
from llama_ckpt.oracle.on_device import oracle_weights
from llama_ckpt.weights import packed_products, unpacking
from llama_ckpt.weights.native_code import native_code
from llama_ckpt.weights.records import BlockWeights
from llama_ckpt.weights.unpacking import UnpackedBlocks, unpacked_by_block

SHAPE = {"width": 64, "n_heads": 4, "ffn": 96, "n_layers": 3, "vocab": 300}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_seeded(tmp_path_factory.mktemp("model") / "m.gguf", type="Q8_0", seed=1, **SHAPE).path


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every model counts as large, and memory as short; the blocks that are made."""
    made: list[int] = []

    class Counted(UnpackedBlocks):
        def _make(self, packed: BlockWeights) -> BlockWeights:
            made.append(list(self.packed).index(packed))
            return super()._make(packed)

    monkeypatch.setattr(unpacking, "UnpackedBlocks", Counted)
    monkeypatch.setattr(unpacking, "spare_bytes", lambda: 0)
    monkeypatch.setattr(subjects, "oracle_weights", partial(oracle_weights, above=0))
    return made


def climbed(path: Path, ids: list[str] | None = None, **options: Any) -> LadderReport:
    return validate(ids, model=path, device="cpu", oracle_only=True, **options)


def said(report: LadderReport) -> list[Any]:
    return [
        (one.id, one.verdict, [(p.dump, p.verdict.name, p.verdict.variant) for p in one.points])
        for one in report.checkpoints
    ]


def test_the_verdicts_are_those_of_a_small_model_and_blocks_are_made_once_a_walk(
    path: Path, large: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ["1", "3", "6", "8"]
    found = climbed(path, ids)
    assert large == [0, 1, 2, 0, 1, 2]  # the oracle's own run of both prompts, and everything else
    monkeypatch.setattr(subjects, "oracle_weights", oracle_weights)
    wanted = climbed(path, ids)
    assert said(found) == said(wanted) and found.exit_code == 0
    for one, other in zip(found.checkpoints, wanted.checkpoints, strict=True):
        for a, b in zip(one.points, other.points, strict=True):
            assert a.verdict.err == pytest.approx(b.verdict.err, rel=1e-6, abs=1e-15)
            assert a.verdict.limit == pytest.approx(b.verdict.limit, rel=1e-4, abs=1e-15)


def test_texts_are_written_together(path: Path, large: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_products, "compiled_formats", dict)
    assert climbed(path, ["12"]).exit_code == 0
    steps = 16  # of each of two texts, which go through the blocks together; alone they would be 32
    assert len(large) <= 3 * (2 + steps + 2)


@pytest.mark.skipif(native_code() is None, reason="needs a C compiler")
def test_texts_need_no_block_where_products_are_compiled(path: Path, large: list[int]) -> None:
    assert climbed(path, ["12"]).exit_code == 0
    assert len(large) <= 3 * (2 + 2)  # the oracle's own run and the layers', and its passes over the texts


def wrong(*given: Any, **options: Any) -> torch.Tensor:
    return right(*given, **options) * 1.01


right = checkpoints.c06_swiglu.swiglu


def test_a_failure_is_told_in_its_turn_and_stops_the_rest(
    path: Path, large: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints.c06_swiglu, "swiglu", wrong)
    report = climbed(path, ["1", "6", "8"], stop_on_failure=True)
    assert [one.verdict for one in report.checkpoints] == ["pass", "fail", "skipped"]
    assert report.checkpoints[1].reason.startswith("blk.0.ffn_out of oracle/hello (own)")
    assert report.checkpoints[1].diagnoses


@pytest.mark.parametrize("most", [0, 1 << 40])
def test_runs_in_lockstep_are_those_alone(path: Path, most: int) -> None:
    model = load(path, device="cpu")
    shared = replace(model, weights=unpacked_by_block(model.weights, most))
    blocks: Any = shared.weights.blocks
    visits: list[int] = []
    prompts = [(1, 5, 9), (1, 7), (1, 2, 3, 4)]
    runs = [partial(shared.logits, prompt) for prompt in prompts]
    found = Lockstep(blocks, visits.append).run([*runs, lambda: shared.logits((1, 5, 9, 11))])
    assert visits == [0, 1, 2]
    for prompt, logits in zip(prompts, found, strict=False):
        assert torch.equal(logits, model.logits(prompt))


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_as_many_go_on_at_a_time_as_there_are_threads(path: Path, threads: int) -> None:
    """Never one more, and all of them where they can; a block is made once, and torch has one thread."""
    model, now = load(path, device="cpu"), list[int]()
    shared = replace(model, weights=unpacked_by_block(model.weights, 0))
    blocks: Any = shared.weights.blocks
    together = Barrier(threads)

    def goes() -> int:
        most = 0
        for number in range(len(blocks)):
            block = blocks[number]
            now.append(number)
            together.wait(timeout=20)
            most = max(most, len(now))
            assert set(now) == {number} and blocks[number] is block and torch.get_num_threads() == 1
            now.pop()
        return most

    found = Lockstep(blocks).run([goes] * 6)
    assert max(found) == threads and torch.get_num_threads() == threads


@pytest.mark.usefixtures("threads")
def test_an_error_ends_all_of_them(path: Path) -> None:
    model = load(path, device="cpu")
    shared = replace(model, weights=unpacked_by_block(model.weights, 0))
    blocks: Any = shared.weights.blocks
    ended: list[str] = []

    def fails() -> None:
        _ = blocks[1]
        raise ValueError("broken")

    def goes_on() -> None:
        try:
            shared.logits((1, 2))
            ended.append("at the end")
        finally:
            ended.append("ended")

    with pytest.raises(ValueError, match="broken"):
        Lockstep(blocks).run([goes_on, fails, goes_on])
    assert ended == ["ended", "ended"]
    assert blocks[2] is not None  # and whoever asks afterwards waits for nobody
