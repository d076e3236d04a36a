"""GGUF files: what a sound one gives, and the one sentence that a damaged one gets."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from gguf import GGUFReader
from gguf import GGUFValueType as V

from llama_ckpt.errors import LlamaCkptError, ModelFileError, UnsupportedModelError
from llama_ckpt.gguf.file import GGUFFile, open_gguf, weights_sha256
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.llama_tensors import check_llama
from tests.gguf_files import gguf_bytes, key, string, tensor, write_llama

HUGE = (1 << 64) - 1


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- sound files


@pytest.mark.parametrize("version", [2, 3])
def test_a_file_made_by_hand(tmp_path: Path, version: int) -> None:
    values = np.arange(6, dtype="<f4")
    content = gguf_bytes(
        [
            key(b"general.alignment", 4, struct.pack("<I", 64)),
            key(b"name", 8, string("ü\xff".encode("latin-1"))),
        ],
        [tensor(b"a", [3, 2], 0, 0), tensor(b"b", [4], 1, 64)],
        values.tobytes().ljust(64, b"\0") + np.array([1, 2, 3, 4], "<f2").tobytes(),
        version=version,
        alignment=64,
    )
    file = open_gguf(write(tmp_path / "hand.gguf", content))

    assert file.version == version
    assert dict(file.metadata) == {"general.alignment": 64, "name": "\udcfc\udcff"}
    assert [(info.name, info.shape, info.type, info.nbytes) for info in file.tensors.values()] == [
        ("a", (2, 3), T.F32, 24),
        ("b", (4,), T.F16, 8),
    ]
    assert file.tensors["a"].offset == content.index(values.tobytes())
    assert file.raw("a").shape == (2, 12) and file.raw("b").shape == (1, 8)
    np.testing.assert_array_equal(file.float32("a"), values.reshape(2, 3), strict=True)
    np.testing.assert_array_equal(file.float32("a", slice(1, 2)), values.reshape(2, 3)[1:], strict=True)
    np.testing.assert_array_equal(file.float64("b"), np.array([1.0, 2.0, 3.0, 4.0]), strict=True)


SCALARS: list[tuple[V, Any]] = [
    (V.UINT8, 255),
    (V.INT8, -128),
    (V.UINT16, 65535),
    (V.INT16, -32768),
    (V.UINT32, 4294967295),
    (V.INT32, -2147483648),
    (V.UINT64, HUGE),
    (V.INT64, -(1 << 63)),
    (V.FLOAT32, 0.5),
    (V.FLOAT64, 0.1),
    (V.BOOL, True),
    (V.STRING, "Ünicode\n"),
]


@pytest.mark.parametrize(("kind", "value"), SCALARS, ids=[kind.name for kind, _ in SCALARS])
def test_every_kind_of_metadata(tmp_path: Path, kind: V, value: Any) -> None:
    keys = {"one": (value, kind), "many": ([value, value], V.ARRAY, kind)}
    file = GGUFFile(write_llama(tmp_path / "m.gguf", n_layers=1, keys=keys))  # type: ignore[arg-type]

    assert file.metadata["one"] == value
    assert type(file.metadata["one"]) is type(value)
    many = file.metadata["many"]
    if isinstance(value, str):
        assert many == [value.encode()] * 2
    else:
        assert isinstance(many, np.ndarray)
        assert many.tolist() == [value, value]
        assert not many.flags.writeable


@pytest.mark.parametrize("type", [T.F32, T.F16, T.BF16, T.Q8_0])
def test_the_same_tensors_as_gguf_s_own_reader(tmp_path: Path, type: T) -> None:
    file = GGUFFile(write_llama(tmp_path / "m.gguf", type=type))
    reader = GGUFReader(file.path)

    assert [info.name for info in reader.tensors] == list(file.tensors)
    for theirs in reader.tensors:
        ours = file.tensors[theirs.name]
        assert ours.shape == tuple(int(n) for n in reversed(theirs.shape))
        assert (ours.type, ours.nbytes, ours.offset) == (
            theirs.tensor_type,
            theirs.n_bytes,
            theirs.data_offset,
        )
        assert file.raw(theirs.name).tobytes() == theirs.data.tobytes()


def test_mapped_bytes_cannot_be_changed(tmp_path: Path) -> None:
    file = GGUFFile(write_llama(tmp_path / "m.gguf"))
    with pytest.raises(ValueError, match="read-only"):
        file.raw("token_embd.weight")[0] = 0


def test_checksums(tmp_path: Path) -> None:
    half = GGUFFile(write_llama(tmp_path / "f16.gguf", type=T.F16))
    upcast = {name: half.float32(name) for name in half.tensors}
    full = GGUFFile(write_llama(tmp_path / "f32.gguf", type=T.F32, tensors=upcast))
    by_hand = hashlib.sha256(
        b"".join(name.encode() + b"\0" + upcast[name].astype("<f4").tobytes() for name in sorted(upcast))
    )
    assert weights_sha256(half) == weights_sha256(full) == by_hand.hexdigest()
    assert half.sha256() == hashlib.sha256(half.path.read_bytes()).hexdigest() != full.sha256()

    upcast["blk.0.attn_q.weight"][0, 0] = np.nextafter(upcast["blk.0.attn_q.weight"][0, 0], np.float32(9))
    other = GGUFFile(write_llama(tmp_path / "other.gguf", type=T.F32, tensors=upcast))
    assert weights_sha256(other) != weights_sha256(half)


def test_a_checksum_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = GGUFFile(write_llama(tmp_path / "m.gguf", type=T.Q4_0))
    whole = weights_sha256(file)
    monkeypatch.setattr("llama_ckpt.gguf.file._PIECE", 100)
    assert weights_sha256(file) == whole


def test_what_gguf_cannot_dequantize(tmp_path: Path) -> None:
    content = gguf_bytes([], [tensor(b"ids", [4], int(T.I32), 0)], bytes(16))
    file = GGUFFile(write(tmp_path / "ints.gguf", content))
    with pytest.raises(UnsupportedModelError, match="'ids': got I32"):
        file.float32("ids")
    with pytest.raises(ModelFileError, match="tensor other is missing"):
        file.float32("other")


# --- files that are no files


def test_paths_without_a_gguf_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in [
        (tmp_path / "absent.gguf", "cannot be opened: got No such file"),
        (tmp_path, "is not a regular file"),
        (tmp_path / "pipe", "is not a regular file"),
        (write(tmp_path / "empty", b""), "is empty"),
        (Path("with\0nul"), "cannot be opened"),
    ]:
        with pytest.raises(ModelFileError) as caught:
            GGUFFile(path)
        assert words in str(caught.value)


# --- damaged headers: each with the words that its sentence has to hold

U4 = 4
FLOATS = bytes(64)
DAMAGED: dict[str, tuple[bytes, type[LlamaCkptError], str]] = {
    "zip": (b"PK\3\4" + bytes(60), ModelFileError, "the first four bytes: got 'PK\\x03\\x04': a zip archive"),
    "three bytes": (b"GGU", ModelFileError, "in the magic at byte 0: got 3 bytes, wanted 4"),
    "version 1": (gguf_bytes(version=1), UnsupportedModelError, "GGUF version: got 1, wanted 2 or 3"),
    "version 4": (gguf_bytes(version=4), UnsupportedModelError, "GGUF version: got 4"),
    "version 0": (gguf_bytes(version=0), UnsupportedModelError, "GGUF version: got 0"),
    "big-endian": (
        gguf_bytes(version=3 << 24),
        UnsupportedModelError,
        "got big-endian, wanted little-endian",
    ),
    "tensors claimed": (gguf_bytes(n_tensors=20_000_000), ModelFileError, "number of tensors: got 20000000"),
    "keys claimed": (gguf_bytes(n_keys=HUGE), ModelFileError, f"number of metadata keys: got {HUGE}"),
    "key length": (
        gguf_bytes([struct.pack("<Q", HUGE) + bytes(40)]),
        ModelFileError,
        f"the length of metadata key 0: got {HUGE}, wanted at most 65535",
    ),
    "empty key": (gguf_bytes([key(b"", U4, bytes(4))]), ModelFileError, "metadata key 0: got ''"),
    "key twice": (gguf_bytes([key(b"a", U4, bytes(4))] * 2), ModelFileError, "metadata key 1: got 'a'"),
    "value type": (gguf_bytes([key(b"a", 13, bytes(8))]), ModelFileError, "metadata 'a': got 13"),
    "string length": (
        gguf_bytes([key(b"a", 8, struct.pack("<Q", 1 << 62))]),
        ModelFileError,
        f"within its header, in metadata 'a' at byte 45: got 19 bytes, wanted {1 << 62}",
    ),
    "array length": (
        gguf_bytes([key(b"a", 9, struct.pack("<IQ", 6, 1 << 61))]),
        ModelFileError,
        f"the length of metadata 'a': got {1 << 61}, wanted at most 3 in the 15 bytes",
    ),
    "strings claimed": (
        gguf_bytes([key(b"a", 9, struct.pack("<IQ", 8, 20_000_000))]),
        ModelFileError,
        "the length of metadata 'a': got 20000000",
    ),
    "array of arrays": (
        gguf_bytes([key(b"a", 9, struct.pack("<IQ", 9, 1))]),
        ModelFileError,
        "the element type of metadata 'a': got array",
    ),
    "array type": (gguf_bytes([key(b"a", 9, struct.pack("<IQ", 99, 1))]), ModelFileError, "'a': got 99"),
    "alignment 0": (
        gguf_bytes([key(b"general.alignment", U4, bytes(4))]),
        ModelFileError,
        "general.alignment: got 0, wanted a power of two",
    ),
    "alignment 48": (
        gguf_bytes([key(b"general.alignment", U4, struct.pack("<I", 48))]),
        ModelFileError,
        "general.alignment: got 48",
    ),
    "alignment text": (
        gguf_bytes([key(b"general.alignment", 8, string(b"32"))]),
        ModelFileError,
        "general.alignment: got str",
    ),
    "tensor name": (
        gguf_bytes(tensors=[tensor(b"n" * 64, [1], 0, 0)], data=FLOATS),
        ModelFileError,
        "the length of the name of tensor 0: got 64, wanted at most 63",
    ),
    "tensor twice": (
        gguf_bytes(tensors=[tensor(b"t", [1], 0, 0), tensor(b"t", [1], 0, 32)], data=FLOATS),
        ModelFileError,
        "the name of tensor 1: got 't'",
    ),
    "no dimensions": (
        gguf_bytes(tensors=[tensor(b"t", [], 0, 0)], data=FLOATS),
        ModelFileError,
        "the number of dimensions of tensor 't': got 0, wanted 1 to 4",
    ),
    "five dimensions": (
        gguf_bytes(tensors=[tensor(b"t", [1] * 5, 0, 0)], data=FLOATS),
        ModelFileError,
        "tensor 't': got 5",
    ),
    "dimension zero": (
        gguf_bytes(tensors=[tensor(b"t", [0, 4], 0, 0)], data=FLOATS),
        ModelFileError,
        "the shape of tensor 't': got [4, 0]",
    ),
    "overflowing shape": (
        gguf_bytes(tensors=[tensor(b"t", [1 << 32, 1 << 32], 0, 0)], data=FLOATS),
        ModelFileError,
        "the shape of tensor 't'",
    ),
    "tensor type": (
        gguf_bytes(tensors=[tensor(b"t", [4], 1 << 20, 0)], data=FLOATS),
        ModelFileError,
        "the type of tensor 't': got 1048576, wanted the number of a ggml type",
    ),
    "half a block": (
        gguf_bytes(tensors=[tensor(b"t", [48], int(T.Q8_0), 0)], data=FLOATS),
        ModelFileError,
        "the rows of tensor 't': got 48 elements, wanted a multiple of 32, as Q8_0 needs",
    ),
    "offset off the grid": (
        gguf_bytes(tensors=[tensor(b"t", [4], 0, 4)], data=FLOATS),
        ModelFileError,
        "the offset of tensor 't': got 4, wanted a multiple of 32",
    ),
    "beyond the end": (
        gguf_bytes(tensors=[tensor(b"t", [17], 0, 0)], data=FLOATS),
        ModelFileError,
        "tensor 't' lies outside the file: got 128 bytes in the file, wanted at least 132",
    ),
    "far beyond the end": (
        gguf_bytes(tensors=[tensor(b"t", [4], 0, HUGE - 31)], data=FLOATS),
        ModelFileError,
        "tensor 't' lies outside the file",
    ),
    "overlap": (
        gguf_bytes(tensors=[tensor(b"t", [16], 0, 0), tensor(b"u", [4], 0, 32)], data=FLOATS),
        ModelFileError,
        "tensor 'u' overlaps tensor 't'",
    ),
    "a removed type": (
        gguf_bytes(tensors=[tensor(b"t", [32], 31, 0)], data=FLOATS),
        UnsupportedModelError,
        "the type of tensor 't': got 31, Q4_0_4_4, which ggml reads no more; quantize",
    ),
    "a newer type": (
        gguf_bytes(tensors=[tensor(b"t", [32], max(map(int, T)) + 1, 0)], data=FLOATS),
        UnsupportedModelError,
        "newer than the package gguf here",
    ),
    "a type that never was": (
        gguf_bytes(tensors=[tensor(b"t", [32], 9999, 0)], data=FLOATS),
        ModelFileError,
        "the type of tensor 't': got 9999, wanted the number of a ggml type",
    ),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n",
        ModelFileError,
        "a Git LFS pointer, not the file itself, wanted 'GGUF'; fetch the file: git lfs pull",
    ),
    "web page": (b"\n<!DOCTYPE html>\n<html>", ModelFileError, "a web page, wanted 'GGUF'; download"),
    "GGJT": (b"tjgg" + bytes(60), ModelFileError, "the format GGJT of 2023, wanted 'GGUF'; convert"),
    "GGML": (b"lmgg" + bytes(60), ModelFileError, "unversioned format of 2023 (magic ggml)"),
    "old LoRA": (b"algg" + bytes(60), ModelFileError, "a LoRA in GGML's format of 2023"),
    "JSON": (b'{"a": 1}', ModelFileError, "JSON, wanted 'GGUF'; convert the model"),
    "safetensors": (struct.pack("<Q", 40) + b'{"a":{}}' + bytes(40), ModelFileError, "a safetensors file"),
}


@pytest.mark.parametrize(("content", "error", "words"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_gets_one_sentence(
    tmp_path: Path, content: bytes, error: type[LlamaCkptError], words: str
) -> None:
    path = write(tmp_path / "damaged.gguf", content)
    with pytest.raises(error) as caught:
        GGUFFile(path)
    message = str(caught.value)
    assert words in message
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_odd_names_stay_on_one_short_line(tmp_path: Path) -> None:
    name = b"line\nbreak\x1b[31m\xff" + b"x" * 60_000
    path = write(tmp_path / "odd.gguf", gguf_bytes([key(name, 77, bytes(8))]))
    with pytest.raises(ModelFileError) as caught:
        GGUFFile(path)
    message = str(caught.value)
    assert message.isprintable() and message.isascii() and len(message) < len(str(path)) + 200


# --- the tensors of a Llama


def checked(path: Path) -> None:
    file = GGUFFile(path)
    check_llama(file, LlamaConfig.from_gguf(file))


@pytest.mark.parametrize("tied", [False, True])
def test_a_whole_llama(tmp_path: Path, tied: bool) -> None:
    checked(write_llama(tmp_path / "m.gguf", head_dim=24, tied_output=tied))


def test_a_bias_of_some_blocks_only(tmp_path: Path) -> None:
    bias = {"blk.0.attn_q.bias": np.ones(64, np.float32)}
    checked(write_llama(tmp_path / "m.gguf", tensors=bias))


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.ffn_up.weight", "output_norm.weight"])
def test_a_missing_tensor(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError, match=f"tensor {name} is missing"):
        checked(write_llama(tmp_path / "m.gguf", tensors={name: None}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blk.0.attn_q_norm.weight", "norms of queries and keys"),
        ("blk.0.attn_sub_norm.weight", "as BitNet has"),
        ("blk.0.attn_q.scale", "scales beside a matrix"),
        ("blk.0.ffn_gate_inp.weight", "of a mixture of experts, and llama.expert_count is 0"),
        ("blk.0.ffn_gate.3.weight", "an old form that llama.cpp reads no more"),
        ("blk.0.ffn_up_shexp.weight", "experts that see every token"),
        ("blk.0.attn_qkv.weight", "'blk.0.attn_q.weight' is not used"),  # one for all three, or three
        (
            "blk.2.attn_norm.weight",
            "'blk.2.attn_norm.weight' is not used by a Llama here; llama.block_count is 2",
        ),
        ("whatever", "'whatever' is not used"),
    ],
)
def test_a_tensor_left_over(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        checked(write_llama(tmp_path / "m.gguf", tensors={name: np.ones(64, np.float32)}))


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    transposed = np.ones((64, 32), np.float32)
    with pytest.raises(ModelFileError) as caught:
        checked(write_llama(tmp_path / "m.gguf", tensors={"blk.0.attn_k.weight": transposed}))
    assert "the shape of tensor blk.0.attn_k.weight: got [64, 32], wanted [32, 64]" in str(caught.value)


def test_a_tensor_of_an_unsupported_type(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf", type=T.F32)
    content = path.read_bytes()
    entry = content.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    assert content[entry : entry + 4] == bytes(4)
    path.write_bytes(content[:entry] + struct.pack("<I", int(T.I32)) + content[entry + 4 :])
    with pytest.raises(
        UnsupportedModelError, match=r"type of tensor blk.0.attn_q.weight: got I32, wanted one of"
    ):
        checked(path)
