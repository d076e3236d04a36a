"""Products of many rows with dense weights, against float64: how much is carried beyond float16."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType as T
from torch import Tensor

from llama_ckpt.engine.products import LOW_PART, Dense, Rows, add_product, product, values
from llama_ckpt.kernels.many_rows import Rest
from llama_ckpt.weights.quants import Weight
from tests.kernels.random_weights import packed

DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.cuda)]
LIMITS = {  # beside what carries nothing: 2e-4 for a float16 weight, 3e-4 for another
    Rest.HALF: 1e-6,
    Rest.BYTES: 2.5e-5,
}


def weight(kind: str, rows: int, width: int, device: str) -> Weight:
    torch.manual_seed(rows)
    if kind == "Q8_0":
        return packed(T.Q8_0, rows, width, seed=rows).to(device)
    dtype = {"F16": torch.float16, "F32": torch.float32}[kind]
    return (torch.randn(rows, width) * 0.02).to(device, dtype)


def carried(x: Tensor, kind: Rest) -> Rows:
    """Activations as the kernels between products make them."""
    high = x.half()
    low = (x - high.float()) * LOW_PART
    if kind == Rest.NONE:
        return Rows(high)
    if kind == Rest.HALF:
        return Rows(high, low.half())
    both = torch.cat((high.float(), low), dim=1).to(torch.float8_e5m2)
    return Rows(high, both, torch.tensor(1.0, device=x.device))


def relative(a: Tensor, exact: Tensor) -> float:
    return float((a.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["F16", "F32", "Q8_0"])
@pytest.mark.parametrize("rows", [64, 20], ids=["whole tiles", "odd"])
def test_a_product_carries_what_float16_cannot_hold(device: str, kind: str, rows: int) -> None:
    n, width = 32, 256
    w = weight(kind, rows, width, device)
    dense = Dense.of((w,), exact=True)
    carrying = dense.rest(wanted=True)
    assert carrying == (Rest.HALF if kind == "F16" else Rest.BYTES)
    x = torch.randn(n, width, device=device)
    h, exact = carried(x, carrying), x.double() @ values(w, torch.float32).double().T

    out = torch.full((n, rows), float("nan"), device=device)
    rest = torch.full((n, rows), float("nan"), device=device, dtype=torch.float16)
    product(h, dense, out, rest)
    assert relative(out + rest.float() / LOW_PART, exact) <= LIMITS[carrying]
    assert relative(out, exact) > LIMITS[carrying], "without the rest it must show"

    stream = torch.randn(n, rows, device=device)
    before = stream.double()
    add_product(stream, h, dense, torch.full_like(rest, float("nan")))
    assert relative(stream.double() - before, exact) <= LIMITS[carrying]


@pytest.mark.parametrize("device", DEVICES)
def test_without_a_rest_one_product_is_all(device: str) -> None:
    w, x = weight("F16", 48, 256, device), torch.randn(8, 256, device=device).half()
    dense, out = Dense.of((w, w), exact=False), torch.empty(8, 96, device=device, dtype=torch.float16)
    assert dense.low is None and dense.rest(wanted=False) == Rest.NONE
    product(Rows(x), dense, out, None)
    exact = x.double() @ values(w, torch.float32).double().T
    assert relative(out, torch.cat((exact, exact), dim=1)) <= 4e-4
    assert torch.equal(Rows(x).whole(), x.float())


def test_activations_are_put_together_again() -> None:
    x = torch.randn(4, 32)
    assert relative(carried(x, Rest.HALF).whole(), x.double()) <= 1e-6
    assert relative(carried(x, Rest.BYTES).whole(), x.double()) <= 2.5e-5
