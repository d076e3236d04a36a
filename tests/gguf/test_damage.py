"""Whatever happens to a file's bytes, it opens or gives one of our errors, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as T
from gguf import GGUFValueType as V
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.gguf.file import GGUFFile, weights_sha256
from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.llama_tensors import check_llama
from tests.gguf_files import gguf_bytes, key, tensor, write_llama

MOST_MEMORY = 1 << 20
"""Bytes that opening and checking a file of some 10 KB may take at its peak (measured: 40 KB)."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / "sound.gguf"
    return write_llama(path, width=32, n_heads=2, n_kv_heads=1, ffn=32, n_layers=1, vocab=12, type=T.Q4_0)


def header_bytes(path: Path) -> int:
    return min(info.offset for info in GGUFFile(path).tensors.values())


def read(path: Path) -> LlamaCkptError | None:
    """Open, configure, check and read a file; the error it gave, or None. Anything else goes through."""
    tracemalloc.start()
    try:
        try:
            file = GGUFFile(path)
            check_llama(file, LlamaConfig.from_gguf(file))
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < MOST_MEMORY
        weights_sha256(file)
    except LlamaCkptError as error:
        assert str(error).startswith(str(path))
        assert str(error).isprintable()
        return error
    return None


def test_the_sound_file_opens(sound: Path) -> None:
    assert read(sound) is None


def test_cut_at_every_byte(sound: Path, tmp_path: Path) -> None:
    path, end = tmp_path / "cut.gguf", header_bytes(sound)
    shutil.copy(sound, path)
    data_end = max(info.offset + info.nbytes for info in GGUFFile(sound).tensors.values())
    for length in (data_end - 1, *range(end, 0, -1)):
        os.truncate(path, length)
        error = read(path)
        assert error is not None, f"a file cut to {length} bytes opened"
        assert str(error).endswith("; copy or download the file again"), error


EXTREMES = [
    struct.pack("<Q", value)
    for value in (0, 1, 20_000_000, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
]


def test_extreme_numbers_all_over_the_header(sound: Path, tmp_path: Path) -> None:
    path, content = tmp_path / "extreme.gguf", sound.read_bytes()
    refused = 0
    end = header_bytes(sound)
    places = range(0, end - 8, 2)
    for number, at in enumerate(places):
        patch = EXTREMES[number % len(EXTREMES)]
        path.write_bytes(content[:at] + patch + content[at + 8 :])
        refused += read(path) is not None
    assert refused > len(places) / 2, "most of a header's bytes have only one right value"


@settings(max_examples=300)
@given(st.data())
def test_changed_moved_and_lost_bytes(sound: Path, data: st.DataObject) -> None:
    content = bytearray(sound.read_bytes())
    places = st.integers(0, header_bytes(sound)) | st.integers(0, len(content))
    for _ in range(data.draw(st.integers(1, 4), label="edits")):
        start = data.draw(places, label="at")
        lost = data.draw(st.sampled_from([0, 1, 1, 1, 4, 8, 100]), label="lost")
        content[start : start + lost] = data.draw(st.binary(max_size=12), label="instead")
    path = sound.with_name("edited.gguf")
    path.write_bytes(content)
    assert isinstance(read(path), LlamaCkptError | None)


keys_strategy = st.builds(
    key,
    st.sampled_from(
        [b"a", b"llama.block_count", b"general.architecture", b"general.alignment", b"split.count"]
    ),
    st.integers(0, 13),
    st.binary(max_size=40),
)
tensors_strategy = st.builds(
    tensor,
    st.binary(max_size=8),
    st.lists(st.integers(0, 64) | st.integers(0, (1 << 64) - 1), max_size=5),
    st.integers(0, 40),
    st.integers(0, 8).map(lambda n: 32 * n) | st.integers(0, (1 << 64) - 1),
)


@settings(max_examples=200)
@given(
    st.lists(keys_strategy, max_size=4),
    st.lists(tensors_strategy, max_size=3),
    st.sampled_from([2, 3]),
    st.sampled_from([0, 32, 4096]),
)
def test_made_up_headers(
    sound: Path, keys: Sequence[bytes], tensors: Sequence[bytes], version: int, n_data: int
) -> None:
    path = sound.with_name("made-up.gguf")
    path.write_bytes(gguf_bytes(keys, tensors, bytes(n_data), version=version))
    assert read(path) is not None, "no such file is a Llama"


GIBIBYTE = 1 << 30
CLAIMS = {
    "a string": (struct.pack("<Q", GIBIBYTE), 8, "the header is too long, in metadata 'a'"),
    "truth values": (struct.pack("<IQ", 7, GIBIBYTE), 9, "the length of metadata 'a': got 1073741824"),
    "numbers": (struct.pack("<IQ", 10, GIBIBYTE // 8), 9, "the length of metadata 'a': got 134217728"),
    "strings": (struct.pack("<IQ", 8, 20_000_000), 9, "the length of metadata 'a': got 20000000"),
}


@pytest.mark.parametrize(("payload", "kind", "words"), CLAIMS.values(), ids=CLAIMS.keys())
def test_a_claim_that_a_large_file_could_hold(tmp_path: Path, payload: bytes, kind: int, words: str) -> None:
    """The file is as large as a model, so its size alone refutes nothing."""
    path = tmp_path / "large.gguf"
    path.write_bytes(gguf_bytes([key(b"a", kind, payload)]))
    os.truncate(path, 2 * GIBIBYTE)  # a sparse file: it takes no room on the disk
    assert words in str(read(path))


@pytest.mark.parametrize("kind", [V.INT32, V.FLOAT32, V.STRING, V.BOOL], ids=lambda kind: kind.name)
@pytest.mark.parametrize("n", [1, 3])
def test_an_array_in_place_of_any_value(n: int, kind: V, sound: Path, tmp_path: Path) -> None:
    """numpy answers a comparison of an array with an array, which is neither true nor false."""
    value = {V.INT32: 1, V.FLOAT32: 0.5, V.STRING: "a", V.BOOL: True}[kind]
    for number, name in enumerate(GGUFFile(sound).metadata):
        path = tmp_path / f"{number}.gguf"
        keys = {name: ([value] * n, V.ARRAY, kind)}
        write_llama(
            path, width=32, n_heads=2, n_kv_heads=1, ffn=32, n_layers=1, vocab=12, type=T.Q4_0, keys=keys
        )
        read(path)
        with contextlib.suppress(LlamaCkptError):
            Tokenizer.from_gguf(GGUFFile(path))
