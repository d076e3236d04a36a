"""How many threads compute: one for small models, one a core for large ones, the user's own where he says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

import llama_ckpt
from llama_ckpt import cores
from llama_ckpt.cores import physical_cores, usable_cpus
from llama_ckpt.threads import SMALL_MODEL, fitted_threads, model_bytes, numpy_threads
from reference_dumps import embedded_model


@pytest.fixture
def four_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Eight processors, two of each core."""
    for number in range(8):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    monkeypatch.setattr(cores, "_CPUS", tmp_path)
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("n_bytes", "wanted"), [(0, 8), (1, 1), (SMALL_MODEL - 1, 1), (SMALL_MODEL, 4), (1 << 40, 4)]
)
def test_as_many_as_the_model_is_worth(n_bytes: int, wanted: int, four_cores: None) -> None:
    assert physical_cores() == 4
    with fitted_threads(n_bytes) as processes:
        assert torch.get_num_threads() == wanted
        assert processes == (4 if wanted == 1 else 1)
    assert torch.get_num_threads() == 8


@pytest.mark.parametrize(("n_bytes", "wanted"), [(0, 2), (1, 1), (SMALL_MODEL, 2)])
def test_numpy_alone_has_one_thread_for_a_small_model(
    n_bytes: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with threadpool_limits(2, user_api="blas"), numpy_threads(n_bytes):
        assert {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"} == {wanted}


def test_numpy_has_one_thread_and_then_its_own_again(
    four_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_blas() -> set[int]:
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        with fitted_threads(SMALL_MODEL):
            assert of_blas() == {1}
        assert of_blas() == {2}
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
        with fitted_threads(SMALL_MODEL):
            assert of_blas() == {2}


def test_the_user_s_own_number_stays(four_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    with fitted_threads(1) as processes:
        assert (torch.get_num_threads(), processes) == (3, 1)
    torch.set_num_threads(8)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    with fitted_threads(1):
        assert torch.get_num_threads() == 8


def test_where_nobody_tells_of_cores_each_processor_is_one(tmp_path: Path, four_cores: None) -> None:
    for number in range(8):
        (tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list").unlink()
    assert physical_cores() == 8


@pytest.mark.parametrize(
    ("allowed", "quota", "usable", "physical"),
    [
        (range(8), "max 100000", 8, 4),
        ({0, 4}, "max 100000", 2, 1),  # two halves of a core, as by `taskset`
        (range(8), "200000 100000", 2, 2),  # as by `docker run --cpus=2`
        (range(8), "50000 100000", 1, 1),
        (range(8), "nonsense", 8, 4),
    ],
)
def test_a_container_or_a_taskset_leaves_fewer(
    allowed: set[int],
    quota: str,
    usable: int,
    physical: int,
    tmp_path: Path,
    four_cores: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(allowed), raising=False)
    assert (usable_cpus(), physical_cores()) == (usable, physical)
    torch.set_num_threads(usable)  # what torch takes by itself is nobody's choice
    with fitted_threads(1):
        assert torch.get_num_threads() == 1


def test_a_folder_s_files_count_together(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(5))
    (tmp_path / "b").write_bytes(bytes(7))
    assert (model_bytes(tmp_path), model_bytes(tmp_path / "a"), model_bytes(tmp_path / "c")) == (12, 5, 0)


def test_python_computes_as_the_command_line_does(four_cores: None) -> None:
    seen: list[int] = []
    model = llama_ckpt.load(embedded_model(), device="cpu")
    forward = type(model).forward

    class Seen(type(model)):  # type: ignore[misc]
        def forward(self, *given: object, **options: object) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return forward(self, *given, **options)

    counted = Seen(**vars(model))
    for _ in llama_ckpt.generate(counted, [1, 5], max_tokens=2):
        assert torch.get_num_threads() == 8
    report = llama_ckpt.validate(
        "1", device="cpu", progress=lambda *_: seen.append(torch.get_num_threads()), oracle_only=True
    )
    assert report.exit_code == 0
    assert set(seen) == {1} and torch.get_num_threads() == 8
