"""A model in several files: opened by any of them, the same as in one; refused where the parts do not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFValueType as V
from gguf import GGUFWriter

import llama_ckpt
from llama_ckpt.errors import ModelFileError
from llama_ckpt.gguf.file import GGUFFile, open_gguf, weights_sha256
from llama_ckpt.gguf.writing import metadata_of
from llama_ckpt.weights.loading import fill
from tests.gguf_files import write_llama


def split(whole: Path, folder: Path, n: int, *, bare_first: bool = False) -> list[Path]:
    """The parts that llama.cpp's own splitter would make: metadata in the first, tensors in turn."""
    folder.mkdir(exist_ok=True)
    file = open_gguf(whole)
    names = list(file.tensors)
    shares = [[], *np.array_split(names, n - 1)] if bare_first else np.array_split(names, n)
    paths = [folder / f"model-{number + 1:05}-of-{n:05}.gguf" for number in range(n)]
    for number, (path, share) in enumerate(zip(paths, shares, strict=True)):
        writer = GGUFWriter(path, "llama")
        if number == 0:
            for key, value in metadata_of(file).items():
                if key != "general.architecture":
                    writer.add_key_value(key, value.value, value.type, value.sub_type)
        writer.add_key_value("split.no", number, V.UINT16)
        writer.add_key_value("split.count", n, V.UINT16)
        writer.add_key_value("split.tensors.count", len(names), V.INT32)
        for name in map(str, share):
            info = file.info(name)
            raw = file.raw(name).reshape(*info.shape[:-1], -1)
            writer.add_tensor(name, np.ascontiguousarray(raw), raw_dtype=info.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("whole") / "model.gguf")


@pytest.fixture(scope="module")
def parts(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return split(whole, tmp_path_factory.mktemp("parts"), 3)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_any_part_opens_the_model(whole: Path, parts: list[Path], number: int) -> None:
    file, one = open_gguf(parts[number]), open_gguf(whole)
    assert file.paths == tuple(parts) and set(file.metadata) == set(one.metadata)
    assert set(file.tensors) == set(one.tensors)
    assert all((file.raw(name) == one.raw(name)).all() for name in one.tensors)
    assert weights_sha256(file) == weights_sha256(one)
    assert file.sha256() == open_gguf(parts[0]).sha256() != one.sha256()


def test_a_first_part_without_tensors(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "parts", 4, bare_first=True)
    assert weights_sha256(open_gguf(paths[0])) == weights_sha256(open_gguf(whole))


def test_the_model_computes_the_same(whole: Path, parts: list[Path]) -> None:
    logits = [llama_ckpt.load(path, device="cpu").logits([1, 5, 9]) for path in (whole, parts[1])]
    assert torch.equal(*logits)


def test_tensors_are_read_from_their_own_parts(parts: list[Path]) -> None:
    file = open_gguf(parts[0])
    places = {
        name: torch.empty(info.n_rows, info.row_bytes, dtype=torch.uint8)
        for name, info in file.tensors.items()
    }
    fill(file, places)
    assert all((places[name].numpy() == file.raw(name)).all() for name in places)


def rename(parts: list[Path]) -> None:
    parts[0].rename(parts[0].with_name("mine.gguf"))


def lose_one(parts: list[Path]) -> None:
    parts[1].unlink()


def swap_two(parts: list[Path]) -> None:
    keep = parts[1].read_bytes()
    shutil.copy(parts[2], parts[1])
    parts[2].write_bytes(keep)


def part_of_another(parts: list[Path]) -> None:
    shutil.copy(write_llama(parts[0].with_name("other.gguf"), n_layers=1), parts[2])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            rename,
            "the name of a file that is one of 3 parts: got 'mine.gguf', wanted NAME-00001-of",
        ),
        (lose_one, "part 2 of the model is missing"),
        (swap_two, "split.no: got 2, wanted 1"),
        (part_of_another, "split.no: got -1, wanted 2"),
    ],
)
def test_parts_that_do_not_fit(
    whole: Path, tmp_path: Path, damage: Callable[[list[Path]], None], words: str
) -> None:
    parts = split(whole, tmp_path / "parts", 3)
    damage(parts)
    with pytest.raises(ModelFileError, match=words):
        GGUFFile(next(path for path in (tmp_path / "parts" / "mine.gguf", parts[0]) if path.exists()))


@pytest.mark.llama_cpp
def test_llama_cpp_takes_the_same_parts(parts: list[Path]) -> None:
    report = llama_ckpt.validate(["0", "8"], model=parts[2], device="cpu")
    assert report.exit_code == 0 and report.compared
