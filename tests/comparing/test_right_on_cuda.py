"""transformers on a GPU: TF32, half precision, int8 and fp8 by torch's own kernels, right as they declare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.dumps.record import record
from llama_ckpt.making.export import export_weights
from tests.comparing.ported_llama import prompt, seeded

transformers = pytest.importorskip("transformers", reason="a GPU machine without a network may lack it")
pytestmark = pytest.mark.cuda

MODELS: dict[str, dict[str, Any]] = {
    "narrow": {},
    "wide": {"n_layers": 2, "width": 512, "n_heads": 8, "n_kv_heads": 2, "ffn": 768, "vocab": 512},
}


class Int8(nn.Module):
    """A linear layer in W8A8."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        w = linear.weight.data
        self.scale = w.abs().amax(1, keepdim=True) / 127
        self.w = torch.round(w / self.scale).to(torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = rows.abs().amax(1, keepdim=True) / 127
        sums = torch._int_mm(torch.round(rows / scale).to(torch.int8), self.w.T)
        return (sums.float() * scale * self.scale.T).reshape(*x.shape[:-1], -1)


class Fp8(nn.Module):
    """A linear layer in fp8, a scale for each tensor."""

    fast = False

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        w = linear.weight.data
        self.scale = w.abs().max() / 448
        self.w = (w / self.scale).to(torch.float8_e4m3fn)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = rows.abs().max() / 448
        scales: dict[str, Any] = {"scale_a": scale, "scale_b": self.scale, "use_fast_accum": self.fast}
        made = torch._scaled_mm(
            (rows / scale).to(torch.float8_e4m3fn), self.w.T, out_dtype=torch.float32, **scales
        )
        return cast("Tensor", made).reshape(*x.shape[:-1], -1)


class FastFp8(Fp8):
    """The same with sums that stay in the tensor cores."""

    fast = True


def swapped(model: nn.Module, kind: Callable[[nn.Linear], nn.Module]) -> None:
    """Put another module in the place of each linear layer."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, kind(child))


@pytest.fixture
def tf32() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model in GGUF and in Hugging Face's layout."""
    path, folder = seeded(**MODELS[request.param]), tmp_path_factory.mktemp("exported")
    export_weights(path, folder / "model.safetensors", layout="hf")
    return path, folder


def judged(
    model: tuple[Path, Path],
    out: Path,
    arithmetic: str | None,
    *,
    dtype: torch.dtype = torch.float32,
    attention: str = "eager",
    linear: Callable[[nn.Linear], nn.Module] | None = None,
    n: int = 24,
) -> Any:
    path, folder = model
    options = {"dtype": dtype, "attn_implementation": attention}
    there = transformers.LlamaForCausalLM.from_pretrained(folder, **options).eval().to("cuda")
    if linear is not None:
        swapped(there, linear)
    record(there, prompt(n)).save(out / "theirs.safetensors")
    return compare_dump(out / "theirs.safetensors", model=path, arithmetic=arithmetic)


@pytest.mark.parametrize("n", [2, 24, 100])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_float32(model: tuple[Path, Path], attention: str, n: int, tmp_path: Path) -> None:
    report = judged(model, tmp_path, None, attention=attention, n=n)
    assert report.verdict == "pass", report.reason


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("n", [2, 24, 100])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_tf32_and_what_cublas_leaves_in_float32(
    model: tuple[Path, Path], attention: str, n: int, tmp_path: Path
) -> None:
    report = judged(model, tmp_path, "tf32", attention=attention, n=n)
    assert report.verdict == "pass", report.reason
    found = judged(model, tmp_path, None, attention=attention, n=n)
    assert found.verdict in ("pass", "arithmetic"), found.reason


@pytest.mark.parametrize("n", [2, 24, 100])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision(
    model: tuple[Path, Path], dtype: torch.dtype, attention: str, n: int, tmp_path: Path
) -> None:
    profile = f"{dtype}-torch".removeprefix("torch.") + ("-sdpa" if attention == "sdpa" else "")
    report = judged(model, tmp_path, profile, dtype=dtype, attention=attention, n=n)
    assert report.verdict == "pass", report.reason


@pytest.mark.parametrize(
    ("linear", "profile"),
    [
        (Int8, "w8a8-per-token"),
        (Fp8, "fp8-per-tensor-hopper"),
        (FastFp8, "fp8-per-tensor-hopper-fast"),
    ],
)
def test_eight_bits(model: tuple[Path, Path], linear: Any, profile: str, tmp_path: Path) -> None:
    report = judged(model, tmp_path, profile, linear=linear)
    assert report.verdict == "pass", report.reason
    found = judged(model, tmp_path, None, linear=linear)
    assert found.verdict == "arithmetic", found.reason
