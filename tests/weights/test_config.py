"""The configuration: what is read, what llama.cpp's defaults fill in, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType as V

from llama_ckpt.errors import LlamaCkptError, ModelFileError, UnsupportedModelError
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.weights.config import LlamaConfig
from tests.gguf_files import write_llama

ARRAY_OF_INTS = (V.ARRAY, V.INT32)


def config_of(path: Path, **changes: Any) -> LlamaConfig:
    return LlamaConfig.from_gguf(GGUFFile(write_llama(path / "m.gguf", n_layers=1, **changes)))


def test_everything_is_read(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        width=96,
        n_heads=6,
        n_kv_heads=3,
        head_dim=24,
        ffn=160,
        vocab=300,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tied_output=True,
    )
    assert config == LlamaConfig(
        n_layers=1,
        n_heads=6,
        n_kv_heads=3,
        head_dim=24,
        width=96,
        ffn=160,
        vocab_size=300,
        context_length=128,
        rms_norm_eps=float(np.float32(1e-6)),
        rope_theta=1e6,
        rope_scale=1.0,
        tied_output=True,
        name="test",
        defaulted=("llama.rope.scaling.factor",),
    )
    assert (config.q_width, config.kv_width) == (144, 72)


def test_what_a_file_leaves_out(tmp_path: Path) -> None:
    left_out = [
        "general.name",
        "llama.attention.head_count_kv",
        "llama.rope.freq_base",
        "llama.rope.dimension_count",
        "llama.vocab_size",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_space_prefix",
    ]
    config = config_of(tmp_path, n_kv_heads=4, vocab=270, omit_keys=left_out)
    assert (config.n_kv_heads, config.rope_theta, config.head_dim, config.vocab_size) == (4, 10000.0, 16, 270)
    assert config.name == ""
    assert set(config.defaulted) == {
        *left_out[1:],
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.rope.scaling.factor",
    }


def test_a_file_without_a_vocabulary(tmp_path: Path) -> None:
    no_tokens = ["tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"]
    assert config_of(tmp_path, vocab=270, omit_keys=no_tokens).vocab_size == 270
    bare = config_of(tmp_path, vocab=270, omit_keys=[*no_tokens, "llama.vocab_size"])
    assert bare.vocab_size == 270
    assert "llama.vocab_size" in bare.defaulted


def test_the_tokens_count_not_the_key(tmp_path: Path) -> None:
    assert config_of(tmp_path, keys={"llama.vocab_size": (999, V.UINT32)}).vocab_size == 320


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        ({}, 1.0),
        (
            {"llama.rope.scaling.type": ("linear", V.STRING), "llama.rope.scaling.factor": (4.0, V.FLOAT32)},
            4.0,
        ),
        ({"llama.rope.scaling.factor": (2.5, V.FLOAT32)}, 2.5),
        ({"llama.rope.scale_linear": (8.0, V.FLOAT32)}, 8.0),
        ({"llama.rope.scaling.factor": (2.0, V.FLOAT32), "llama.rope.scale_linear": (8.0, V.FLOAT32)}, 2.0),
        ({"llama.rope.scaling.type": ("none", V.STRING), "llama.rope.scaling.factor": (4.0, V.FLOAT32)}, 1.0),
        ({"llama.rope.scaling.factor": (0.0, V.FLOAT32)}, 1.0),
    ],
)
def test_linear_rope_scaling(tmp_path: Path, keys: dict[str, Any], scale: float) -> None:
    assert config_of(tmp_path, keys=keys).rope_scale == scale


def test_arrays_of_one_value_a_block(tmp_path: Path) -> None:
    keys = {"llama.attention.head_count": ([4], *ARRAY_OF_INTS)}
    assert config_of(tmp_path, keys=keys).n_heads == 4


BAD: list[tuple[str, tuple[Any, ...], type[LlamaCkptError], str]] = [
    ("llama.block_count", (0, V.UINT32), ModelFileError, "got 0, wanted an integer from 1 to 512"),
    ("llama.block_count", (513, V.UINT32), ModelFileError, "got 513"),
    ("llama.block_count", (1.0, V.FLOAT32), ModelFileError, "got 1.0, wanted an integer"),
    ("llama.block_count", (True, V.BOOL), ModelFileError, "got True"),
    ("llama.attention.head_count", (0, V.UINT32), ModelFileError, "got 0"),
    ("llama.attention.head_count", (-4, V.INT32), ModelFileError, "got -4"),
    ("llama.attention.head_count", ("4", V.STRING), ModelFileError, "got '4'"),
    (
        "llama.attention.head_count",
        ([4, 4], *ARRAY_OF_INTS),
        ModelFileError,
        "array of 2, wanted one value",
    ),
    (
        "llama.feed_forward_length",
        ([96, 96, 96], *ARRAY_OF_INTS),
        ModelFileError,
        "got an array of 3",
    ),
    ("llama.embedding_length", ([64], *ARRAY_OF_INTS), ModelFileError, "got an array of 1"),
    ("llama.attention.key_length", (32, V.UINT32), UnsupportedModelError, "value_length: got 16, wanted 32"),
    ("llama.attention.head_count", ([4.0], V.ARRAY, V.FLOAT32), ModelFileError, "got an array of 1"),
    ("llama.attention.head_count_kv", (3, V.UINT32), ModelFileError, "got 3, wanted a divisor of 4 heads"),
    ("llama.embedding_length", (0, V.UINT32), ModelFileError, "got 0"),
    ("llama.embedding_length", (65, V.UINT32), ModelFileError, "4 heads do not divide the width 65"),
    ("llama.embedding_length", (4294967295, V.UINT32), ModelFileError, "got 4294967295"),
    (
        "llama.embedding_length",
        (60, V.UINT32),
        ModelFileError,
        "key_length: got 15, wanted an even head size",
    ),
    ("llama.feed_forward_length", (0, V.UINT32), ModelFileError, "got 0"),
    ("llama.context_length", (0, V.UINT32), ModelFileError, "got 0"),
    ("llama.attention.key_length", (7, V.UINT32), ModelFileError, "got 7, wanted an even head size"),
    ("llama.attention.value_length", (8, V.UINT32), UnsupportedModelError, "got 8, wanted 16"),
    ("llama.rope.dimension_count", (8, V.UINT32), UnsupportedModelError, "got 8, wanted 16"),
    (
        "llama.attention.layer_norm_rms_epsilon",
        (0.0, V.FLOAT32),
        ModelFileError,
        "got 0.0, wanted a positive",
    ),
    ("llama.attention.layer_norm_rms_epsilon", (-1e-5, V.FLOAT32), ModelFileError, "wanted a positive"),
    ("llama.attention.layer_norm_rms_epsilon", (math.nan, V.FLOAT32), ModelFileError, "got nan"),
    ("llama.attention.layer_norm_rms_epsilon", (1e300, V.FLOAT64), ModelFileError, "got inf"),
    ("llama.attention.layer_norm_rms_epsilon", (1, V.UINT32), ModelFileError, "got 1, wanted a positive"),
    ("llama.rope.freq_base", (math.inf, V.FLOAT32), ModelFileError, "got inf"),
    ("llama.rope.freq_base", (0.0, V.FLOAT32), ModelFileError, "got 0.0"),
    ("llama.rope.scaling.factor", (-2.0, V.FLOAT32), ModelFileError, "got -2.0"),
    ("llama.rope.scaling.factor", ([1.0, 2.0], V.ARRAY, V.FLOAT32), ModelFileError, "got an array of 2"),
    (
        "llama.rope.scaling.type",
        ("dynamic", V.STRING),
        UnsupportedModelError,
        "got 'dynamic', wanted one of none, linear, yarn, longrope",
    ),
    ("llama.rope.scaling.type", (2, V.UINT32), ModelFileError, "got 2, wanted text"),
    ("llama.expert_count", (8, V.UINT32), ModelFileError, "expert_used_count: got no such key"),
    (
        "llama.expert_used_count",
        (2, V.UINT32),
        ModelFileError,
        "got 2, wanted none, since there are no experts",
    ),
    ("llama.attention.causal", (False, V.BOOL), UnsupportedModelError, "got False"),
    ("llama.nextn_predict_layers", (1, V.UINT32), UnsupportedModelError, "got 1"),
    ("general.name", (3, V.UINT32), ModelFileError, "got 3, wanted text"),
]


@pytest.mark.parametrize(
    ("key", "value", "error", "words"), BAD, ids=[f"{bad[0]}={bad[1][0]}" for bad in BAD]
)
def test_what_is_refused(
    tmp_path: Path, key: str, value: tuple[Any, ...], error: type[LlamaCkptError], words: str
) -> None:
    with pytest.raises(error) as caught:
        config_of(tmp_path, keys={key: value})
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'm.gguf'}: llama." if key[0] == "l" else str(tmp_path))
    assert words in message and "\n" not in message


REQUIRED = [
    "llama.block_count",
    "llama.context_length",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.layer_norm_rms_epsilon",
]


@pytest.mark.parametrize("key", REQUIRED)
def test_what_llama_cpp_has_no_default_for(tmp_path: Path, key: str) -> None:
    with pytest.raises(ModelFileError, match=f"{key}: got no such key"):
        config_of(tmp_path, omit_keys=[key])


def test_other_architectures(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="general.architecture: got 'qwen2', wanted 'llama'"):
        config_of(tmp_path, architecture="qwen2")


def test_a_file_without_tensors(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf", n_layers=1)
    nothing = dict.fromkeys(GGUFFile(path).tensors)
    config = config_of(tmp_path, tensors=nothing)
    assert config.vocab_size == 320 and not config.tied_output


@pytest.mark.llama_cpp
@pytest.mark.parametrize("key", REQUIRED)
def test_llama_cpp_refuses_the_same(tmp_path: Path, key: str) -> None:
    """What is required here is required there: with the key it opens, without it it does not."""
    from llama_cpp import Llama

    sound = write_llama(tmp_path / "sound.gguf", n_layers=1)
    Llama(str(sound), n_ctx=8, verbose=False).close()
    with pytest.raises(ValueError, match="Failed to load"):
        Llama(str(write_llama(tmp_path / "m.gguf", n_layers=1, omit_keys=[key])), n_ctx=8, verbose=False)


def test_blocks_of_several_shapes(tmp_path: Path) -> None:
    keys = {"llama.attention.head_count": ([4, 2], *ARRAY_OF_INTS)}
    file = GGUFFile(write_llama(tmp_path / "m.gguf", n_layers=2, keys=keys))
    with pytest.raises(UnsupportedModelError, match="different values for different blocks"):
        LlamaConfig.from_gguf(file)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"general.type": "adapter", "adapter.type": "lora"}, "a LoRA adapter, .* merge it"),
        ({"general.type": "mmproj"}, "a projector"),
        ({"general.type": "imatrix"}, "an importance matrix"),
        ({"general.architecture": "clip"}, "a projector"),
        ({"general.architecture": "controlvector"}, "a control vector"),
    ],
)
def test_a_sound_file_that_is_no_model_is_named(tmp_path: Path, keys: dict[str, str], words: str) -> None:
    architecture = keys.pop("general.architecture", "llama")
    texts = {key: (value, V.STRING) for key, value in keys.items()}
    path = write_llama(tmp_path / "m.gguf", keys=texts, architecture=architecture)
    with pytest.raises(UnsupportedModelError, match=words):
        LlamaConfig.from_gguf(GGUFFile(path))
