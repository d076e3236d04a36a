"""`load`, `Model` and `generate`: what library users call."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import llama_ckpt as lc
from checkpoints import generate as generate_tokens
from llama_ckpt.errors import (
    ContextLengthError,
    DeviceError,
    LlamaCkptError,
    ModelFileError,
    OptionError,
    ShapeError,
)
from llama_ckpt.model import Model, pick_device, pick_dtype
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.tokens.sampling import SamplingOptions
from tests.checkpoints.drawn_inputs import DEVICES, DTYPES
from tests.checkpoints.held_against import check_passes, verdict
from tests.gguf_files import write_llama

PROMPT = "And God said, Let there be"


@pytest.fixture(scope="module")
def model(embedded_model: Path) -> Model:
    return lc.load(embedded_model, device="cpu")


def test_the_readme_s_lines(model: Model) -> None:
    ids = model.tokenizer.encode("Hello", add_bos=True, parse_special=False)
    assert ids == [1, 15043] and model.tokenizer.decode(ids) == "Hello"
    logits = model.logits([1, 15043])
    assert logits.shape == (2, 32000) and logits.dtype == torch.float32 and logits.device.type == "cpu"
    pieces = list(lc.generate(model, "Hello", max_tokens=10))
    assert 0 < len(pieces) <= 10 and all(pieces)


def test_what_a_model_says_of_itself(model: Model, embedded_model: Path) -> None:
    assert model.path == embedded_model and model.device.type == "cpu" and model.dtype == torch.float32
    assert model.config.n_layers == 32 and model.config.vocab_size == model.tokenizer.vocab_size == 32000


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_against_the_oracle(dtype: torch.dtype, device: str, embedded_model: Path) -> None:
    model = lc.load(embedded_model, device=device, dtype=dtype)
    ids = model.tokenizer.encode(PROMPT)
    exact = oracle.logits(
        ids, OracleWeights(model.file, model.config), config=model.config, positions=range(len(ids))
    )
    check_passes([verdict("logits", model.logits(ids), exact, {}, dtype, "total")])


@pytest.mark.parametrize(
    "shape",
    [
        {"n_heads": 4, "n_kv_heads": 1},
        {"n_heads": 2, "n_kv_heads": 2, "head_dim": 48},
        {"tied_output": True, "rms_norm_eps": 1e-6, "rope_theta": 1e6},
        {"omit_keys": ("llama.rope.freq_base", "llama.attention.head_count_kv"), "n_kv_heads": 4},
    ],
    ids=["multi-query", "explicit head size", "tied, other numbers", "keys left out"],
)
def test_other_shapes(shape: dict[str, Any], tmp_path: Path) -> None:
    model = lc.load(write_llama(tmp_path / "m.gguf", **shape), device="cpu")
    ids = [1, 5, 260, 300, 7]
    weights = OracleWeights(model.file, model.config)
    exact = oracle.logits(ids, weights, config=model.config, positions=range(5))
    check_passes([verdict("logits", model.logits(ids), exact, {}, torch.float32, "total")])


def test_positions_are_counted_from_zero_or_given(model: Model) -> None:
    ids = [1, 15043, 3186]
    assert torch.equal(model.logits(ids), model.logits(ids, [0, 1, 2]))
    assert not torch.equal(model.logits(ids), model.logits(ids, [0, 5, 9]))


def test_the_tap_sees_every_point(model: Model) -> None:
    seen: dict[str, torch.Tensor] = {}
    model.logits([1, 15043], tap=seen.__setitem__)
    assert len(seen) == 2 + 32 * 17 and seen["blk.31.attn_probs"].shape == (2, 4, 2)
    assert not seen["embd"].requires_grad


def test_a_new_cache_has_the_model_s_dtype_and_device(embedded_model: Path) -> None:
    half = lc.load(embedded_model, device="cpu", dtype="bfloat16")
    cache = half.new_cache(5)
    assert cache.k.dtype == torch.bfloat16 and cache.k.shape == (32, 1, 5, 4, 16)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.logits([]), ShapeError, "token ids: got"),
        (lambda m: m.logits([32000]), ShapeError, "wanted at least one, each 0 to 31999"),
        (lambda m: m.logits([1, -1]), ShapeError, "token ids: got"),
        (lambda m: m.logits([1, 2], [0]), ShapeError, "positions: got 1, wanted 2"),
        (lambda m: m.logits([1] * (m.config.context_length + 1)), ContextLengthError, "wanted at most"),
        (lambda m: list(lc.generate(m, [])), OptionError, "prompt: got no tokens"),
        (lambda m: list(lc.generate(m, "a", temperature=-1.0)), OptionError, "temperature: got -1.0"),
        (lambda m: list(lc.generate(m, "a", stop=[""])), OptionError, "stop string"),
        (lambda m: lc.load(m.path, dtype="float64"), OptionError, "dtype: got float64"),
        (lambda m: lc.load(m.path, dtype=torch.int64), OptionError, "dtype: got torch.int64"),
        (lambda m: lc.load(m.path, device="tpu"), DeviceError, "device: got tpu"),
        (lambda m: lc.load(m.path, device="cuda:99"), DeviceError, "device: got cuda:99"),
        (lambda m: lc.load(m.path.with_name("none.gguf")), ModelFileError, "none.gguf"),
        (lambda m: lc.load(Path(__file__)), ModelFileError, "test_model.py"),
    ],
)
def test_bad_input_is_one_sentence(
    model: Model, call: Callable[[Model], object], error: type[LlamaCkptError], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        call(model)
    assert "\n" not in str(raised.value)


def test_devices_and_dtypes_by_name() -> None:
    assert pick_device("cpu") == torch.device("cpu") == pick_device(torch.device("cpu"))
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_dtype("float16") == torch.float16 == pick_dtype(torch.float16)


def test_generate_streams_the_text_of_checkpoint_12(model: Model) -> None:
    options = {
        "temperature": 1.0,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "seed": 5,
    }
    text = "".join(lc.generate(model, PROMPT, 16, stop=["zzz"], **options))
    tokens = generate_tokens(model, PROMPT, max_tokens=16, sampling=SamplingOptions(**options), stop=["zzz"])
    assert text == "".join(token.text for token in tokens)
    assert text != "".join(lc.generate(model, PROMPT, 16))


def test_generate_stops_before_a_stop_string(model: Model) -> None:
    text = "".join(lc.generate(model, PROMPT, 16))
    stop = text[9:14]
    assert "".join(lc.generate(model, PROMPT, 16, stop=[stop])) == text[: text.index(stop)]


def test_grad_mode_is_left_as_it_was(model: Model) -> None:
    assert torch.is_grad_enabled()
    stream = lc.generate(model, PROMPT, 3)
    next(stream)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, llama_ckpt; print('torch' in sys.modules, 'checkpoints' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
