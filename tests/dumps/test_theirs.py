"""Dumps of other programs: what is read, what is refused, and writers in two languages."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llama_ckpt.dumps.names_map import DumpMap, Rule
from llama_ckpt.dumps.theirs import Declared, open_their_dump, save_dump
from llama_ckpt.errors import DumpError, OptionError

EXAMPLES = Path(__file__).parents[2] / "llama_ckpt" / "example_files"
SIZES = {"token": 2, "width": 3}
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    facts = {"token_ids": (1, 5), "positions": (7, 8), "weights_sha256": "ab", "dtype": "float16"}
    save_dump(path, {"embd": X, "blk.0.out": X.T.astype(np.float64)}, **facts, producer="me", notes="slow")  # type: ignore[arg-type]
    theirs = open_their_dump(path)
    assert theirs.declared == Declared((1, 5), (7, 8), "ab", "float16", None, None, "me", "slow")
    assert theirs.names == ("embd", "blk.0.out") and theirs.unknown == ()
    assert np.array_equal(theirs.read("embd", SIZES), X) and theirs.dtype("blk.0.out") == "float64"
    assert theirs.shape("blk.0.out") == (3, 2)


def test_what_is_not_declared_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_dump(path, {"logits": X})
    assert open_their_dump(path).declared == Declared()


def test_token_ids_may_be_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(
        {"embd": X, "token_ids": np.array([[1, 5]], np.int64), "positions": np.array([3, 4], np.int32)}, path
    )
    theirs = open_their_dump(path)
    assert (theirs.declared.token_ids, theirs.declared.positions) == ((1, 5), (3, 4)) and not theirs.unknown
    save_file({"embd": X, "token_ids": X}, path)
    with pytest.raises(DumpError, match="the type of token_ids: got F32"):
        open_their_dump(path)


def test_bfloat16_is_read_bit_by_bit(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    values = torch.tensor([[1.5, -2.25, 3e38], [float("inf"), 0.0, 1e-38]], dtype=torch.bfloat16)
    path = tmp_path / "a.safetensors"
    save_torch({"blk.1.out": values, "embd": values.flip(0).contiguous()}, path)
    theirs = open_their_dump(path)
    assert theirs.dtype("embd") == "bfloat16"
    assert np.array_equal(theirs.raw("blk.1.out"), values.float().numpy())
    assert np.array_equal(theirs.raw("embd"), values.flip(0).float().numpy())


def test_points_stand_in_the_order_of_the_flow(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    names = ["logits", "blk.10.q", "blk.2.out", "blk.2.attn_norm", "embd", "output_norm"]
    save_dump(path, dict.fromkeys(names, X))
    wanted = ("embd", "blk.2.attn_norm", "blk.2.out", "blk.10.q", "output_norm", "logits")
    assert open_their_dump(path).names == wanted


def test_two_tensors_for_one_point_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_dump(path, {"embd": X, "wte": X})
    with pytest.raises(DumpError, match="embd: got embd and wte, wanted one tensor"):
        open_their_dump(path, DumpMap((Rule("wte", "embd"),)))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"points": "q,kew"}, "got kew, wanted names as in points.py"),
        ({"dtype": "float8"}, "got 'float8', wanted float32 or float16"),
        ({"positions": "0;1"}, "positions in __metadata__: got '0;1'"),
    ],
)
def test_metadata_that_say_nothing_are_refused(
    metadata: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"embd": X}, path, metadata)
    with pytest.raises(DumpError, match=message):
        open_their_dump(path)


def test_no_tensors_are_no_dump(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="tensors: got none"):
        save_dump(tmp_path / "a.safetensors", {})


def test_the_ten_lines_of_python_write_a_dump(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("write_dump", EXAMPLES / "write_dump.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path / "a.safetensors"
    module.write_dump(
        path, {"blk.0.out": X, "embd": X.T.astype(np.float64)}, token_ids="1,5", positions="0,1"
    )
    theirs = open_their_dump(path)
    assert theirs.declared == Declared((1, 5), (0, 1))
    assert np.array_equal(theirs.raw("blk.0.out"), X) and np.array_equal(theirs.raw("embd"), X.T)
    body = (EXAMPLES / "write_dump.py").read_text("utf-8").partition("def write_dump")[2]
    assert len(body.splitlines()) <= 13, "it is called the ten-line writer"


COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

PROGRAM = r"""
#include "write_dump.hpp"
int main(int, char ** arguments) {
    llama_ckpt::DumpWriter dump;
    dump.token_ids({1, 5});
    dump.positions({0, 1});
    dump.weights_sha256("ab");
    dump.dtype("float32");
    dump.note("producer", "a \"quoted\" \\ name\n");
    std::vector<float> buffer = {0, 1, 2, 3, 4, 5};
    dump.add("embd", buffer.data(), {2, 3});
    buffer.assign(6, -1.5f);                       // used again: what was added stays
    dump.add("blk.0.out", buffer.data(), {2, 3});
    try {
        dump.add("embd", buffer.data(), {2, 3});
        return 3;
    } catch (const std::invalid_argument &) {
    }
    dump.write(arguments[1]);
    try {
        dump.write("/no/such/folder/a.safetensors");
        return 4;
    } catch (const std::runtime_error &) {
    }
    return 0;
}
"""


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_the_cpp_header_writes_a_dump(tmp_path: Path) -> None:
    source, program, path = tmp_path / "main.cpp", tmp_path / "main", tmp_path / "a.safetensors"
    source.write_text(PROGRAM, encoding="utf-8")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{EXAMPLES}"]
    subprocess.run([str(COMPILER), *flags, str(source), "-o", str(program)], check=True)
    subprocess.run([str(program), str(path)], check=True)
    theirs = open_their_dump(path)
    assert theirs.declared == Declared((1, 5), (0, 1), "ab", "float32", producer='a "quoted" \\ name\n')
    assert np.array_equal(theirs.raw("embd"), X)
    assert np.array_equal(theirs.raw("blk.0.out"), np.full((2, 3), -1.5))


def test_another_dump_in_its_place_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    save_dump(path, {"embd": np.ones((2, 4), np.float32)}, token_ids=[1, 2])
    opened = open_their_dump(path)
    save_dump(path, {"logits": np.ones((2, 8), np.float32)}, token_ids=[1, 2])
    os.utime(path, ns=(opened.changed + 10**9,) * 2)
    with pytest.raises(DumpError, match="has changed since"):
        _ = opened.most_rows
    with pytest.raises(DumpError, match="has changed since"):
        opened.raw("embd")
