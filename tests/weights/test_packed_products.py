"""Products of a few rows with packed weights: right, the same for any number of threads, and optional."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T

from llama_ckpt import generation
from llama_ckpt.generation import computed_by, generate, quick
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.model import Model, load
from llama_ckpt.weights import compiled_formats, native_code, packed_products
from llama_ckpt.weights.block_formats import PLAIN_DTYPES
from llama_ckpt.weights.compiled_formats import NATIVE_TYPES, is_right
from llama_ckpt.weights.decoders import BLOCK_DECODERS
from llama_ckpt.weights.packed_products import FEW_ROWS, FewRowsWeight, weights_for_few_rows
from llama_ckpt.weights.quants import PackedWeight, linear, weight_rows
from llama_ckpt.weights.records import ModelWeights
from tests.gguf_files import HALF_FIELDS, random_rows

compiled = pytest.mark.skipif(native_code.native_code() is None, reason="needs a C compiler")

TYPES = sorted(NATIVE_TYPES)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def packed(type: T, out: int, blocks: int, seed: int = 1) -> PackedWeight:
    block, block_bytes = GGML_QUANT_SIZES[type]
    width = blocks * (32 if block == 1 else block)
    draw = np.random.default_rng(seed)
    raw = random_rows(type, (out, width), draw)
    if type in PLAIN_DTYPES:
        values = torch.from_numpy(draw.uniform(-0.1, 0.1, (out, width))).to(PLAIN_DTYPES[type])
        return PackedWeight(values.view(torch.uint8), type, (out, width))
    words = raw.reshape(-1, block_bytes)
    for at in HALF_FIELDS[type]:
        scales = draw.uniform(-0.1, 0.1, (len(words), 1)).astype(np.float16)
        words[:, at : at + 2] = scales.view(np.uint8)
    return PackedWeight(torch.from_numpy(raw), type, (out, width))


def few_rows(weight: PackedWeight) -> FewRowsWeight:
    return FewRowsWeight(weight.raw, weight.type, weight.shape)


@compiled
@pytest.mark.parametrize("type", TYPES, ids=[one.name for one in TYPES])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, FEW_ROWS, FEW_ROWS + 1, 40])
def test_products_are_those_of_the_values(type: T, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_products, "PIECE", 2048)  # of many rows several pieces
    weight = packed(type, 37, 3, seed=rows)
    x = torch.randn(rows, weight.shape[1], generator=torch.Generator().manual_seed(rows))
    bias = torch.linspace(-1, 1, 37)
    wide = weight.dequantize().double()
    found, exact = linear(x, few_rows(weight), bias).double(), x.double() @ wide.t() + bias
    terms = x.double().abs() @ wide.abs().t() + bias.abs()
    assert ((found - exact).abs() <= 4e-7 * terms).all()
    assert torch.equal(linear(x, weight, bias), torch.nn.functional.linear(x, weight.dequantize(), bias))


@compiled
@pytest.mark.parametrize("type", TYPES, ids=[one.name for one in TYPES])
def test_one_thread_and_two_give_the_same_bits(
    type: T, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    monkeypatch.setattr(compiled_formats, "LEAST_PART", 1)
    weight, found = few_rows(packed(type, 41, 2)), []
    x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(1))
    for number in (1, 2, 3, 1):
        torch.set_num_threads(number)
        found.append(linear(x, weight))
    assert all(torch.equal(found[0], one) for one in found[1:])


@compiled
def test_half_precision_and_no_rows_go_the_long_way() -> None:
    weight = packed(T.Q4_0, 8, 2)
    few = few_rows(weight)
    for x in (torch.randn(2, 64).half(), torch.randn(0, 64)):
        assert torch.equal(linear(x, few), linear(x, weight))
    assert linear(torch.randn(2, 3, 64), few).shape == (2, 3, 8)
    assert isinstance(weight_rows(few, 1, 4), FewRowsWeight)


@compiled
def test_a_function_that_is_wrong_is_not_taken() -> None:
    found = compiled_formats.compiled_formats()
    assert set(found) == set(NATIVE_TYPES)
    assert not compiled_formats.is_right(replace(found[T.Q4_0], rows=found[T.Q4_1].rows), T.Q4_0)
    assert not compiled_formats.is_right(replace(found[T.Q4_K], values=found[T.Q6_K].values), T.Q4_K)


@compiled
@pytest.mark.parametrize("type", TYPES, ids=[one.name for one in TYPES])
def test_values_are_the_decoders_to_the_bit(type: T, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    torch.set_num_threads(3)
    monkeypatch.setattr(compiled_formats, "LEAST_PART", 1)
    found = compiled_formats.compiled_formats()[type]
    raw = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (67, found.block_bytes), dtype=np.uint8))
    if type in PLAIN_DTYPES:  # every number that there is
        raw = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.uint8).view(-1, found.block_bytes)
        wanted = raw.view(PLAIN_DTYPES[type]).float()
    else:  # scales too: denormal, infinite and none at all
        wanted = BLOCK_DECODERS[type](raw)
    values = torch.full((len(raw), found.block), 7.0)
    found.write_values(raw, values)
    assert torch.equal(values.isnan(), wanted.isnan())
    assert torch.equal(values.nan_to_num(7).view(torch.int32), wanted.nan_to_num(7).view(torch.int32))


@compiled
@pytest.mark.parametrize("type", [T.F16, T.BF16])
def test_plain_numbers_of_two_bytes_are_multiplied_as_they_lie(type: T) -> None:
    values = torch.randn(24, 64, generator=torch.Generator().manual_seed(1)).to(PLAIN_DTYPES[type])
    weights = ModelWeights(values, (), torch.ones(64), values)
    found, said = weights_for_few_rows(weights)
    assert said == "with packed weights" and found.output is found.token_embd
    assert isinstance(found.output, FewRowsWeight) and found.output.raw.data_ptr() == values.data_ptr()
    odd = replace(weights, output=values[:, :48])  # 48 columns are no whole blocks of 32
    assert weights_for_few_rows(odd)[1] == f"with float32 copies of {type.name}"


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(generation, "LARGE", 0)
    shape = {"width": 64, "n_heads": 4, "ffn": 96, "n_layers": 2, "vocab": 300}
    return make_seeded(tmp_path / "m.gguf", type="Q8_0", seed=1, **shape).path


@compiled
def test_a_large_model_writes_with_them_the_text_of_the_layers(large: Path, threads: None) -> None:
    model = load(large, device="cpu")
    assert computed_by(model) == "the layers in float32 on cpu, with packed weights"
    assert computed_by(model, "layers") == "the layers in float32 on cpu"
    assert quick(model, "layers") is model
    few = quick(model)
    assert few.weights is quick(model).weights
    assert isinstance(few.weights.blocks[1].w_down, FewRowsWeight)
    tokens = [1, 5, 7]
    assert list(generate(model, tokens, 8)) == list(generate(model, tokens, 8, precision="layers"))
    found, wanted = few.logits(tokens), model.logits(tokens)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6
    torch.set_num_threads(2)
    assert torch.equal(few.logits(tokens), found)


@compiled
def test_steps_leave_the_cores_to_the_products(
    large: Path, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second thread of torch's would go on spinning where a product's own is wanted."""
    model, seen = load(large, device="cpu"), list[tuple[int, int]]()
    of_torch, forward = torch.get_num_threads, type(model).forward

    def looked(self: Model, token_ids: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        parts = list[int]()
        compiled_formats.in_parts(lambda first, _: parts.append(first), 8, 8 * compiled_formats.LEAST_PART)
        seen.append((of_torch(), len(parts)))
        return forward(self, token_ids, *rest)

    monkeypatch.setattr(Model, "forward", looked)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the user's own number, and so left alone
    torch.set_num_threads(2)
    for _ in generate(model, [1, 5, 7], 3):
        assert of_torch() == 2
    assert seen == [(2, 2), (1, 2), (1, 2)] and of_torch() == 2
    seen.clear()
    list(generate(model, [1, 5, 7], 2, precision="layers"))
    assert seen == [(2, 2), (2, 2)]


def test_without_a_compiler_there_are_copies_where_memory_allows(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_products, "compiled_formats", dict)
    model = load(large, device="cpu")
    for spare, kind, said in (
        (1 << 40, torch.Tensor, "with float32 copies of Q8_0"),
        (0, PackedWeight, "with weights unpacked for each token of Q8_0"),
    ):
        monkeypatch.setattr(packed_products, "spare_bytes", lambda spare=spare: spare)
        weights, clause = weights_for_few_rows(model.weights)
        assert isinstance(weights.blocks[0].wq, kind)
        assert clause == said


@compiled
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of x86's registers")
@pytest.mark.parametrize("machine", ["-mavx2 -mfma -mf16c", "-mavx2", "-msse4.1", ""])
def test_it_is_right_for_processors_with_other_registers(machine: str, tmp_path: Path) -> None:
    """Most laptops have registers of eight floats; some words of a flag are not this processor's."""
    words = {word for flag in machine.split() if (word := flag.removeprefix("-m").replace(".", "_"))}
    if not words <= {*native_code._processor().split()}:
        pytest.skip("this processor lacks it")
    compiler, made = native_code._compiler(), tmp_path / "rows.so"
    assert compiler is not None
    command = [compiler, *native_code.FLAGS, *machine.split(), "-o", str(made), str(native_code.SOURCE)]
    subprocess.run(command, check=True, capture_output=True)
    library = ctypes.CDLL(str(made))
    wrong = [type.name for type in TYPES if not is_right(compiled_formats._functions(library, type), type)]
    assert not wrong


def test_code_is_kept_where_nobody_else_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = native_code.native_code.__wrapped__
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "llama_ckpt"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    assert make() is None and not list(folder.iterdir())
    folder.chmod(0o700)
    monkeypatch.setenv(native_code.SWITCH, "0")
    assert make() is None
    monkeypatch.delenv(native_code.SWITCH)
    monkeypatch.setattr(native_code, "COMPILERS", ("no-such-compiler",))
    monkeypatch.delenv("CC", raising=False)
    assert make() is None


@compiled
def test_code_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    make = native_code.native_code.__wrapped__
    assert make() is not None
    (made,) = (tmp_path / "llama_ckpt").iterdir()
    monkeypatch.setattr(native_code, "_compile", lambda *_: pytest.fail("compiled again"))
    assert make() is not None and made.name.startswith("packed_rows-")
