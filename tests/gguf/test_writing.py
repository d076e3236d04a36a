"""Writing GGUF files: values survive, bytes repeat, and nothing half-written is left under the name."""

from __future__ import annotations

import functools
import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama_ckpt.errors import ModelFileError, OptionError
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.gguf.writing import TensorPlan, encode_rows, field, metadata_of, write_gguf
from llama_ckpt.whole_files import WrittenFile, appears_when_whole, file_sha256

T = GGMLQuantizationType
METADATA = {"general.architecture": field("llama"), "a.count": field(7)}
PLANS = [
    TensorPlan("wide", (700, 3000), T.F32),  # more than one piece
    TensorPlan("odd", (3, 5), T.F16),  # 30 bytes: padded
    TensorPlan("vector", (33,), T.F32),
    TensorPlan("blocks", (4, 64), T.Q8_0),
]


@functools.cache
def values(plan: TensorPlan) -> NDArray[np.float32]:
    rng = np.random.default_rng(len(plan.name))
    return rng.standard_normal((plan.n_rows, plan.row_width)).astype(np.float32)


def rows(plan: TensorPlan, first: int, n: int) -> NDArray[Any]:
    return encode_rows(plan.name, values(plan)[first : first + n], plan.type)


def write(path: Path, **options: Any) -> WrittenFile:
    return write_gguf(path, METADATA, PLANS, rows, **options)


def test_tensors_come_back_in_order_and_shape(tmp_path: Path) -> None:
    file = open_gguf(write(tmp_path / "m.gguf").path)
    assert [(info.name, info.shape, info.type) for info in file.tensors.values()] == [
        (plan.name, plan.shape, plan.type) for plan in PLANS
    ]
    for plan in PLANS:
        assert file.raw(plan.name).tobytes() == rows(plan, 0, plan.n_rows).tobytes()
    assert np.array_equal(file.float32("wide"), values(PLANS[0]))


def test_gguf_reads_the_same(tmp_path: Path) -> None:
    """The format's own reader, as a second opinion on offsets and padding."""
    reader = GGUFReader(write(tmp_path / "m.gguf").path)
    for plan, tensor in zip(PLANS, reader.tensors, strict=True):
        assert tensor.name == plan.name
        assert tensor.data.tobytes() == rows(plan, 0, plan.n_rows).tobytes()


def test_sha256_and_size_are_the_files(tmp_path: Path) -> None:
    written = write(tmp_path / "m.gguf")
    content = written.path.read_bytes()
    assert written.sha256 == hashlib.sha256(content).hexdigest() == file_sha256(written.path)
    assert written.nbytes == len(content)
    assert len(content) % 32 == 0


def test_bytes_do_not_depend_on_threads(tmp_path: Path) -> None:
    assert len({write(tmp_path / "m.gguf", threads=threads).sha256 for threads in (1, 2, 7, None)}) == 1


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write(tmp_path / "m.gguf", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) > len(PLANS)
    assert seen[-1][0] == seen[-1][1] == sum(-(-plan.nbytes // 32) * 32 for plan in PLANS)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(28, "No space left on device")])
def test_a_failure_leaves_what_was_there_before(error: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"before")

    def fail(done: int, total: int) -> None:
        raise error

    with pytest.raises((KeyboardInterrupt, RuntimeError, OptionError)):
        write(path, progress=fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.gguf"]
    assert path.read_bytes() == b"before"


def test_a_failing_thread_is_reported_and_stops_the_others(tmp_path: Path) -> None:
    def fail(plan: TensorPlan, first: int, n: int) -> NDArray[Any]:
        if plan.name == "odd":
            raise ZeroDivisionError
        return rows(plan, first, n)

    with pytest.raises(ZeroDivisionError):
        write_gguf(tmp_path / "m.gguf", METADATA, PLANS, fail, threads=3)
    assert not list(tmp_path.iterdir())
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_rows_of_the_wrong_size_are_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vector: rows 0 to 1 took 264 bytes, not 132"):
        write_gguf(tmp_path / "m.gguf", METADATA, [PLANS[2]], lambda plan, first, n: np.zeros(33, np.float64))


def test_an_unexpected_sha256_keeps_the_file_away(tmp_path: Path) -> None:
    good = write(tmp_path / "good.gguf")
    assert write(tmp_path / "same.gguf", sha256=good.sha256) == WrittenFile(
        tmp_path / "same.gguf", good.sha256, good.nbytes
    )
    with pytest.raises(ModelFileError, match=f"got {good.sha256}, wanted 00"):
        write(tmp_path / "other.gguf", sha256="00")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["good.gguf", "same.gguf"]


def test_a_folder_that_is_not_there_or_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot write .*: got a folder, wanted the name of a file"):
        write(tmp_path)
    with pytest.raises(OptionError, match="cannot write .*No such file or directory"):
        write(tmp_path / "missing" / "m.gguf")


def test_more_than_the_disk_holds(tmp_path: Path) -> None:
    """An exabyte is refused before a byte of it is made."""
    huge = [TensorPlan("huge", (1 << 30, 1 << 30), T.F16)]
    with pytest.raises(OptionError, match="no room for .* bytes free, wanted 2,305,843,009,213,693,952"):
        write_gguf(tmp_path / "m.gguf", METADATA, huge, rows)
    assert not list(tmp_path.iterdir())


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with appears_when_whole(tmp_path / "new") as partial:
        partial.write_bytes(b"whole")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_rows_that_do_not_divide_into_blocks() -> None:
    with pytest.raises(OptionError, match="rows of w: got 48 elements, wanted a multiple of 32.*Q8_0"):
        TensorPlan("w", (4, 48), T.Q8_0)


@pytest.mark.parametrize("value", [65520.0, -1e9, np.inf, np.nan])
def test_float16_refuses_what_it_cannot_hold(value: float) -> None:
    with pytest.raises(OptionError, match="a value of w for F16: got .*, wanted at most 65504"):
        encode_rows("w", np.array([[1.0, value]], np.float32), T.F16)


def test_float16_rounds_to_nearest_even() -> None:
    halfway = np.array([[1 + 2**-11, 1 + 3 * 2**-11, 65519.0, 3e-8, 1e-8]], np.float32)
    rounded = encode_rows("w", halfway, T.F16).astype(np.float64)
    assert rounded.tolist() == [[1.0, 1 + 2**-9, 65504.0, 2**-24 * 1.0, 0.0]]


KEYS = st.text("abcdefgh._-", min_size=1, max_size=8).map("x.".__add__)
SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.floats(width=32)
    | st.binary(max_size=8).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
)
ARRAYS = st.lists(st.binary(max_size=5), min_size=1, max_size=4) | st.sampled_from(
    "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float32 float64".split()
).map(lambda name: np.array([0, 1, 0], name))


@given(st.dictionaries(KEYS, SCALARS | ARRAYS, max_size=6))
def test_metadata_survive(tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("metadata")
    first = {"general.architecture": field("llama")} | {key: field(value) for key, value in metadata.items()}
    write_gguf(folder / "1.gguf", first, [], rows)
    file = open_gguf(folder / "1.gguf")
    for key, value in metadata.items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(file.metadata[key], value)
            assert file.metadata[key].dtype == value.dtype
        else:
            assert repr(file.metadata[key]) == repr(value)
    write_gguf(folder / "2.gguf", metadata_of(file), [], rows)
    assert (folder / "2.gguf").read_bytes() == (folder / "1.gguf").read_bytes()


def test_metadata_types_are_those_that_llamas_have() -> None:
    kinds = {4096: "UINT32", 1 << 32: "UINT64", -1: "INT64", 1e-5: "FLOAT64", 0.5: "FLOAT32", True: "BOOL"}
    assert {value: field(value).type.name for value in kinds} == kinds
    assert field(float(np.float32(1e-5))).type == GGUFValueType.FLOAT32
    assert field(float("nan")).type == GGUFValueType.FLOAT32
