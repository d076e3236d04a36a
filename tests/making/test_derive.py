"""Other types of a model: exact upcasts, `gguf`'s quantization, llama.cpp's, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, LlamaFileType
from gguf.quants import quantize

from llama_ckpt.errors import ModelFileError, OptionError, ReferenceCrashedError, ReferenceMissingError
from llama_ckpt.gguf.file import GGUFFile, open_gguf, weights_sha256
from llama_ckpt.making.derive import TYPES, derive
from llama_ckpt.making.reference_quantizer import REFERENCE_TYPES, quantize_with_llama_cpp
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.llama_tensors import check_llama
from llama_ckpt.whole_files import file_sha256

T = GGMLQuantizationType
DIRECT = tuple(name for name in TYPES if name not in REFERENCE_TYPES)
BLOCKS = DIRECT[3:]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An F16 model with rows of 256."""
    return make_seeded(tmp_path_factory.mktemp("derive") / "f16.gguf", shape="gqa-256").path


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with float32 weights that use all their bits."""
    return make_seeded(tmp_path_factory.mktemp("derive") / "f32.gguf", shape="gqa-256", type="F32").path


def same_but_for_types(found: GGUFFile, source: GGUFFile) -> None:
    """Assert that keys, tensors, their order and their shapes are equal."""
    changed = ("general.file_type", "general.quantization_version")

    def rest(file: GGUFFile) -> Mapping[str, Any]:
        return {key: np.asarray(value).tolist() for key, value in file.metadata.items() if key not in changed}

    assert rest(found) == rest(source)
    assert [(info.name, info.shape) for info in found.tensors.values()] == [
        (info.name, info.shape) for info in source.tensors.values()
    ]


def test_float32_is_an_exact_upcast(half: Path, tmp_path: Path) -> None:
    derived = derive(half, "F32", tmp_path / "f32.gguf")
    source, found = open_gguf(half), open_gguf(derived.path)
    same_but_for_types(found, source)
    assert {info.type for info in found.tensors.values()} == {T.F32}
    assert weights_sha256(found) == weights_sha256(source)
    assert derived.derived_from == {"sha256": source.sha256(), "how": "exact upcast to F32"}
    assert (derived.sha256, derived.nbytes) == (file_sha256(derived.path), derived.path.stat().st_size)
    assert found.metadata["general.file_type"] == LlamaFileType.ALL_F32


@pytest.mark.parametrize("type", BLOCKS)
def test_matrices_are_quantized_by_gguf_and_norms_stay(type: str, full: Path, tmp_path: Path) -> None:
    source, found = open_gguf(full), open_gguf(derive(full, type, tmp_path / "m.gguf").path)
    same_but_for_types(found, source)
    for name, info in found.tensors.items():
        values = source.float32(name)
        wanted = T.F32 if values.ndim == 1 else T[type]
        assert info.type == wanted
        assert found.raw(name).tobytes() == quantize(values, wanted).tobytes()
    assert found.metadata["general.file_type"] == LlamaFileType[f"MOSTLY_{type}"]
    assert found.metadata["general.quantization_version"] == 2


@pytest.mark.parametrize("type", ["F16", "BF16"])
def test_floats_are_rounded_once(type: str, full: Path, tmp_path: Path) -> None:
    source, found = open_gguf(full), open_gguf(derive(full, type, tmp_path / "m.gguf").path)
    same_but_for_types(found, source)
    step = 2.0**-11 if type == "F16" else 2.0**-8  # half a unit in the last place
    for name in source.tensors:
        exact = source.float64(name)
        within = np.abs(found.float64(name) - exact) <= step * np.maximum(np.abs(exact), 2.0**-14)
        assert within.all(), name


@pytest.mark.parametrize("type", DIRECT)
def test_bytes_repeat_whatever_the_threads(type: str, half: Path, tmp_path: Path) -> None:
    made = [derive(half, type.lower(), tmp_path / f"{n}.gguf", threads=n).sha256 for n in (1, 3)]
    assert made[0] == made[1]


def test_back_and_forth_is_the_same_file(half: Path, tmp_path: Path) -> None:
    upcast = derive(half, "F32", tmp_path / "f32.gguf")
    assert derive(upcast.path, "F16", tmp_path / "f16.gguf").sha256 == file_sha256(half)
    blocks = derive(half, "Q4_1", tmp_path / "q.gguf")
    values = derive(open_gguf(blocks.path), "F32", tmp_path / "values.gguf")
    assert weights_sha256(open_gguf(values.path)) == weights_sha256(open_gguf(blocks.path))
    assert "general.quantization_version" not in open_gguf(values.path).metadata


def test_progress_is_told(half: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    derive(half, "Q8_0", tmp_path / "m.gguf", progress=lambda *args: seen.append(args))
    assert seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize("type", ["Q8_0", "F16", "Q4_K_M"])
def test_weights_in_blocks_are_not_rounded_again(type: str, half: Path, tmp_path: Path) -> None:
    blocks = derive(half, "Q5_0", tmp_path / "q.gguf").path
    with pytest.raises(
        OptionError, match=f"to write as {type}: got Q5_0 in token_embd.weight, wanted F32, F16"
    ):
        derive(blocks, type, tmp_path / "m.gguf")


def test_rows_that_do_not_divide(tmp_path: Path) -> None:
    narrow = make_seeded(tmp_path / "n.gguf", width=48, n_heads=4, ffn=64, n_layers=1, vocab=300).path
    with pytest.raises(
        OptionError, match="rows of token_embd.weight: got 48 elements, wanted a multiple of 32"
    ):
        derive(narrow, "Q4_0", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_a_value_beyond_float16(full: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "large.gguf"
    content = bytearray(full.read_bytes())
    at = open_gguf(full).tensors["blk.1.ffn_up.weight"].offset + 4 * 1000
    content[at : at + 4] = np.float32(1e6).tobytes()
    damaged.write_bytes(content)
    with pytest.raises(OptionError, match="a value of blk.1.ffn_up.weight for F16: got 1000000.0"):
        derive(damaged, "F16", tmp_path / "m.gguf")
    assert [entry.name for entry in tmp_path.iterdir()] == ["large.gguf"]


def test_what_is_no_llama(half: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(half.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="lies outside the file"):
        derive(tmp_path / "cut.gguf", "F32", tmp_path / "m.gguf")
    with pytest.raises(ModelFileError):
        derive(tmp_path / "missing.gguf", "F32", tmp_path / "m.gguf")


def test_unknown_types(half: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="the type: got Q7, wanted one of F32, .*IQ4_XS"):
        derive(half, "Q7", tmp_path / "m.gguf")
    with pytest.raises(OptionError, match="the type for llama.cpp's quantizer: got F16, wanted one of Q2_K"):
        quantize_with_llama_cpp(half, "F16", tmp_path / "m.gguf")


def test_llama_cpp_is_missing(half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # what find_spec takes for "not installed"
    with pytest.raises(ReferenceMissingError, match="pip install llama-cpp-python==0.3.36"):
        derive(half, "Q6_K", tmp_path / "m.gguf")


@pytest.mark.llama_cpp
@pytest.mark.parametrize("type", REFERENCE_TYPES)
def test_llama_cpp_quantizes(type: str, half: Path, tmp_path: Path) -> None:
    derived = derive(half, type, tmp_path / "m.gguf")
    source, found = open_gguf(half), open_gguf(derived.path)
    check_llama(found, LlamaConfig.from_gguf(found))
    assert set(found.tensors) == set(source.tensors)
    base = T[type if type.startswith("IQ") else "_".join(type.split("_")[:2])]
    assert base in {info.type for info in found.tensors.values()}
    for name in source.tensors:
        exact = source.float64(name)
        error = np.linalg.norm(found.float64(name) - exact) / np.linalg.norm(exact)
        assert error <= (0.0 if exact.ndim == 1 else 0.4), name
    how = f"llama.cpp's quantizer, {type}, llama-cpp-python 0.3.36"
    assert derived.derived_from == {"sha256": source.sha256(), "how": how}
    assert derived.sha256 == found.sha256()


@pytest.mark.llama_cpp
def test_llama_cpp_takes_another_type_for_short_rows(tmp_path: Path) -> None:
    """Rows of 64 have no K-quant; llama.cpp writes Q5_0 for Q4_K and Q8_0 for Q6_K."""
    narrow = make_seeded(tmp_path / "n.gguf", width=64, n_heads=4, ffn=96, n_layers=1, vocab=300).path
    found = open_gguf(derive(narrow, "Q4_K_M", tmp_path / "m.gguf").path)
    assert {info.type for info in found.tensors.values()} == {T.Q5_0, T.Q8_0, T.F32}


@pytest.mark.llama_cpp
def test_llama_cpps_own_mixture_of_a_type_that_gguf_writes(half: Path, tmp_path: Path) -> None:
    written = quantize_with_llama_cpp(half, "Q4_0", tmp_path / "m.gguf", threads=1)
    types = {info.name: info.type for info in open_gguf(written.path).tensors.values()}
    assert types["output.weight"] == T.Q6_K
    assert types["blk.0.attn_q.weight"] == T.Q4_0


@pytest.mark.llama_cpp
def test_a_refusal_of_llama_cpp_is_reported(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(
        ReferenceCrashedError, match="did not finish .*bad.gguf: got exit code 1 after: .*quant"
    ):
        quantize_with_llama_cpp(tmp_path / "bad.gguf", "Q4_K_M", tmp_path / "m.gguf")
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.gguf"]


@pytest.mark.llama_cpp
def test_a_crash_of_llama_cpp_is_reported(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends by a signal, as llama.cpp does when it was built for other instructions."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho last words >&2\nkill -ILL $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(
        ReferenceCrashedError, match="got signal SIGILL after: last words; .*DGGML_NATIVE=OFF"
    ):
        derive(half, "Q6_K", tmp_path / "m.gguf")
    assert [entry.name for entry in tmp_path.iterdir()] == ["python"]
