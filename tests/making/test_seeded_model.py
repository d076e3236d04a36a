"""Seeded models: the same bytes everywhere, every shape a sound Llama, every wrong option a sentence."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from llama_ckpt.capture import capture
from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.errors import ModelFileError, OptionError, ReferenceMissingError
from llama_ckpt.gguf.file import GGUFFile, TensorInfo, open_gguf, weights_sha256
from llama_ckpt.gguf.writing import encode_rows, field, write_gguf
from llama_ckpt.making import seeded_model
from llama_ckpt.making.derive import derive, stays_float32
from llama_ckpt.making.seeded_model import KNOWN_SHA256, SHAPES, SeededShape, make_seeded
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.llama_tensors import check_llama

T = GGMLQuantizationType
SMALL = [name for name, shape in SHAPES.items() if shape.width <= 256]
NARROW: dict[str, Any] = {"width": 64, "n_heads": 4, "ffn": 96, "n_layers": 2, "vocab": 300}
TOKENS = [1, 300, 4, 77, 411]


@pytest.mark.parametrize(("shape", "seed", "type"), [k for k in KNOWN_SHA256 if k[0] in SMALL])
def test_bytes_are_the_recorded_ones(shape: str, seed: int, type: str, tmp_path: Path) -> None:
    made = make_seeded(tmp_path / "m.gguf", shape=shape, seed=seed, type=type)
    assert made.checked
    assert hashlib.sha256(made.path.read_bytes()).hexdigest() == KNOWN_SHA256[shape, seed, type]


def test_every_small_shape_and_every_type_is_recorded() -> None:
    assert {(shape, 1, "F16") for shape in (*SMALL, "llama-2-7b")} <= set(KNOWN_SHA256)
    direct = {"F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"}
    assert direct == {type for shape, _, type in KNOWN_SHA256 if shape == "gqa-256"}


def test_other_bytes_than_the_recorded_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeded_model, "KNOWN_SHA256", {("gqa-256", 1, "F16"): "0" * 64})
    with pytest.raises(ModelFileError, match="the SHA-256 of .*m.gguf: got [0-9a-f]{64}, wanted 0{64}"):
        make_seeded(tmp_path / "m.gguf", shape="gqa-256")
    assert not list(tmp_path.iterdir())
    assert not make_seeded(tmp_path / "m.gguf", shape="gqa-256", seed=2).checked


@pytest.mark.parametrize("shape", SMALL)
def test_file_is_a_sound_llama_of_its_shape(shape: str, tmp_path: Path) -> None:
    file = open_gguf(make_seeded(tmp_path / "m.gguf", shape=shape).path)
    config = LlamaConfig.from_gguf(file)
    check_llama(file, config)
    wanted = SHAPES[shape].config(config.name)
    assert {**vars(config), "defaulted": ()} == vars(wanted)
    assert {info.type for info in file.tensors.values()} == {T.F32, T.F16}
    assert all((info.type == T.F32) == stays_float32(*one) for one, info in named(file))


def named(file: GGUFFile) -> list[tuple[tuple[str, tuple[int, ...]], TensorInfo]]:
    """Every tensor's name and shape, and what is known of it."""
    return [((name, info.shape), info) for name, info in file.tensors.items()]


def test_left_out_keys_take_their_defaults(tmp_path: Path) -> None:
    file = open_gguf(make_seeded(tmp_path / "m.gguf", shape="bare-256").path)
    config = LlamaConfig.from_gguf(file)
    assert not set(SHAPES["bare-256"].omit_keys) & set(file.metadata)
    assert set(SHAPES["bare-256"].omit_keys) - {"general.name"} <= set(config.defaulted)
    full = open_gguf(make_seeded(tmp_path / "full.gguf", shape="bare-256", omit_keys=()).path)
    assert weights_sha256(file) == weights_sha256(full)
    assert set(SHAPES["bare-256"].omit_keys) <= set(full.metadata)


def test_sizes_beside_a_shape_replace_its_own(tmp_path: Path) -> None:
    made = make_seeded(tmp_path / "m.gguf", shape="gqa-256", n_layers=1, rope_theta=5e5, n_kv_heads=None)
    config = LlamaConfig.from_gguf(open_gguf(made.path))
    assert (config.n_layers, config.rope_theta, config.n_kv_heads, config.width) == (1, 5e5, 2, 256)
    assert not made.checked
    given = make_seeded(tmp_path / "s.gguf", shape=SeededShape(**NARROW))
    assert given.sha256 == make_seeded(tmp_path / "k.gguf", **NARROW).sha256


def test_seeds_and_types_and_threads(tmp_path: Path) -> None:
    """The seed changes the weights; the type rounds them; the number of threads changes nothing."""

    def made(**options: Any) -> Any:
        return make_seeded(tmp_path / "m.gguf", **NARROW, **options)

    assert made(threads=1).sha256 == made(threads=5).sha256 == made(seed=1).sha256
    assert made().sha256 != made(seed=2).sha256
    full = open_gguf(make_seeded(tmp_path / "f32.gguf", type="f32", **NARROW).path)
    half = open_gguf(make_seeded(tmp_path / "f16.gguf", type="f16", **NARROW).path)
    for name in full.tensors:
        values = full.float32(name)
        if values.ndim == 2:
            assert np.array_equal(half.float32(name), values.astype(np.float16).astype(np.float32))
            assert not np.array_equal(half.float32(name), values)
        else:
            assert np.array_equal(half.float32(name), values)


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "Q5_1"])
def test_types_in_blocks_are_what_derive_makes_of_f16(type: str, tmp_path: Path) -> None:
    half = make_seeded(tmp_path / "f16.gguf", type="F16", **NARROW)
    blocks = make_seeded(tmp_path / "blocks.gguf", type=type, **NARROW)
    assert derive(half.path, type, tmp_path / "derived.gguf").sha256 == blocks.sha256


def test_vocabulary_is_cut_after_its_first_entries(tmp_path: Path, embedded_model: Path) -> None:
    file = open_gguf(make_seeded(tmp_path / "m.gguf", **NARROW | {"vocab": 259}).path)
    whole = open_gguf(embedded_model)
    for key in ("tokens", "scores", "token_type"):
        cut, full = (f.metadata[f"tokenizer.ggml.{key}"] for f in (file, whole))
        assert list(cut) == list(full[:259])  # type: ignore[index, arg-type]
    tokenizer = Tokenizer.from_gguf(file)
    text = "Bytes survive: ß, 語, \x00"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_vocabulary_of_another_file(tmp_path: Path, embedded_model: Path) -> None:
    own = make_seeded(tmp_path / "own.gguf", shape="gqa-256")
    from_small = make_seeded(tmp_path / "m.gguf", vocabulary=own.path, **NARROW)
    assert from_small.sha256 == make_seeded(tmp_path / "k.gguf", vocabulary=embedded_model, **NARROW).sha256
    with pytest.raises(OptionError, match="vocab: got 600, wanted 259 to 512, the entries of own.gguf"):
        make_seeded(tmp_path / "n.gguf", vocabulary=own.path, **NARROW | {"vocab": 600})
    bare = write_gguf(tmp_path / "bare.gguf", {"general.architecture": field("llama")}, [], encode_rows)
    with pytest.raises(
        ModelFileError, match="tokenizer.ggml.model: got no such key, wanted a Llama vocabulary"
    ):
        make_seeded(tmp_path / "n.gguf", vocabulary=bare.path, **NARROW)


WRONG = [
    ({"n_kv_heads": 3}, "n_kv_heads: got 3, wanted a divisor of 4 heads"),
    ({"n_heads": 5}, "n_heads: got 5, wanted a divisor of the width 64; or give head_dim"),
    ({"head_dim": 7}, "head_dim: got 7, wanted an even number"),
    ({"width": 12}, "head_dim: got 3, wanted an even number"),
    ({"n_heads": 4096, "head_dim": 32}, "n_heads \\* head_dim: got 131072, wanted at most 65536"),
    ({"n_layers": 0}, "n_layers: got 0, wanted 1 to 512"),
    ({"ffn": -5}, "ffn: got -5"),
    ({"width": 1 << 17}, "width: got 131072, wanted 1 to 65536"),
    ({"vocab": 258}, "vocab: got 258, wanted 259 to 32000"),
    ({"vocab": 32001}, "vocab: got 32001, wanted 259 to 32000"),
    ({"rms_norm_eps": 0.0}, "rms_norm_eps: got 0.0, wanted a positive number"),
    ({"rope_theta": float("nan")}, "rope_theta: got nan"),
    ({"rope_scale": 1e39}, "rope_scale: got 1e\\+39"),
    ({"seed": -1}, "seed: got -1, wanted an integer from 0"),
    ({"type": "Q9_9"}, "the type: got Q9_9, wanted one of F32, F16, .*Q4_K_M"),
    ({"shape": "llama-3"}, "the shape: got llama-3, wanted one of llama-2-7b"),
    ({"ffn": 80, "type": "Q8_0"}, "ffn: got 80, wanted a multiple of 32, the block of Q8_0; choose another"),
    ({"type": "Q4_K_M"}, "width: got 64, wanted a multiple of 256, the block of Q4_K_M"),
    ({"head_dim": 10, "type": "Q4_0"}, "n_heads \\* head_dim: got 40, wanted a multiple of 32"),
    ({"ffn": 80, "type": "iq4_nl"}, "ffn: got 80, wanted a multiple of 32, the block of IQ4_NL"),
    ({"omit_keys": ["llama.block_count"]}, "a key to leave out: got llama.block_count, wanted one of gen"),
    (
        {"rope_theta": 1e6, "omit_keys": ["llama.rope.freq_base"]},
        "a model with 1000000.0, wanted the default",
    ),
    ({"n_kv_heads": 2, "omit_keys": ["llama.attention.head_count_kv"]}, "got a model with 2, wanted .* 4"),
    ({"head_dim": 8, "omit_keys": ["llama.attention.key_length"]}, "got a model with 8, wanted .* 16"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[m.partition(",")[0][:40] for _, m in WRONG])
def test_wrong_options_are_a_sentence(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        make_seeded(tmp_path / "m.gguf", **NARROW | options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["width", "n_heads", "ffn", "n_layers"])
def test_a_size_that_is_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"a seeded model without a named shape needs {name}"):
        make_seeded(tmp_path / "m.gguf", **{key: value for key, value in NARROW.items() if key != name})


def test_without_llama_cpp_its_types_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # what find_spec takes for "not installed"
    with pytest.raises(ReferenceMissingError, match="pip install llama-cpp-python==0.3.36"):
        make_seeded(tmp_path / "m.gguf", shape="llama-2-13b", type="Q4_K_M")
    assert not list(tmp_path.iterdir())


@pytest.mark.llama_cpp
@pytest.mark.parametrize("shape", [name for name in SMALL if name != "tiny-32l"])
def test_llama_cpp_computes_what_the_oracle_does(shape: str, tmp_path: Path) -> None:
    """The file means the same to llama.cpp: its greedy tokens, and finite logits near the oracle's."""
    path = make_seeded(tmp_path / "m.gguf", shape=shape, type="F32").path
    entry = capture(path, out=tmp_path / "dumps", tokens=TOKENS, max_tokens=4, name="five")
    logits = open_dumps(tmp_path / "dumps").dump("five")["logits"]
    file = open_gguf(path)
    config = LlamaConfig.from_gguf(file)
    exact = oracle.logits(
        TOKENS, OracleWeights(file, config), config=config, positions=np.arange(len(TOKENS))
    )
    assert np.isfinite(logits).all()
    assert list(entry.greedy_tokens) == oracle.argmax(exact).tolist()
    assert np.linalg.norm(logits - exact) <= 1e-5 * np.linalg.norm(exact)


@pytest.mark.llama_cpp
def test_types_of_llama_cpp_go_through_its_quantizer(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = make_seeded(
        tmp_path / "m.gguf", shape="gqa-256", type="q4_k_m", progress=lambda *args: seen.append(args)
    )
    file = open_gguf(made.path)
    check_llama(file, LlamaConfig.from_gguf(file))
    assert {T.Q4_K, T.Q6_K, T.F32} == {info.type for info in file.tensors.values()}
    assert (made.sha256, made.nbytes, made.checked) == (file.sha256(), made.path.stat().st_size, False)
    assert seen[-1][0] == seen[-1][1]
    half = open_gguf(make_seeded(tmp_path / "f16.gguf", shape="gqa-256").path)
    for name in half.tensors:
        exact, found = half.float64(name), file.float64(name)
        assert np.linalg.norm(found - exact) <= 0.1 * np.linalg.norm(exact), name
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["f16.gguf", "m.gguf"]
