"""Products with packed weights, against float64: on CUDA, and in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType as T
from torch import Tensor

from llama_ckpt.kernels.planes import repack
from llama_ckpt.weights.quants import PackedWeight
from tests.kernels.interpreter import interpreter_failure, needs_triton
from tests.kernels.random_weights import FACTORS, packed

FLOAT32_GRADE = 2e-6
ODD_SHAPES = ((21, 1280), (64, 256), (5, 2816), (130, 512))


def product(weight: PackedWeight | Tensor, x: Tensor, *, fine: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A product whose output was poisoned first, the exact one, and the values of the weight; float64."""
    from llama_ckpt.kernels.launching import matvec

    y = torch.full((x.shape[0], weight.shape[0]), float("nan"), device=x.device)
    matvec(repack(weight), x, fine=fine, out=y)
    values = (weight.dequantize() if isinstance(weight, PackedWeight) else weight).double()
    return y.double(), x.double() @ values.T, values


def relative_error(weight: PackedWeight | Tensor, x: Tensor) -> float:
    """Of a product with all the bits there are."""
    y, exact, _ = product(weight, x, fine=True)
    return float((y - exact).norm() / exact.norm())


def share_of_bound(weight: PackedWeight, x: Tensor) -> float:
    """The largest error of a product with 16 bits, of six standard deviations of what rounding makes.

    An element is a multiple of a part in 32,767 of the largest of its 32. (A relative error has no bound:
    two numbers may cancel.)
    """
    y, exact, values = product(weight, x, fine=False)
    squares = values.square().unflatten(-1, (-1, 32)).sum(-1)  # [rows, groups]
    units = x.double().abs().unflatten(-1, (-1, 32)).amax(-1) / 32_767  # [n, groups]
    rounding = 6 * (units.square() / 12 @ squares.T).sqrt()
    sums = 2e-6 * (x.double().abs() @ values.abs().T)
    return float(((y - exact).abs() / (rounding + sums)).max())


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(1)


@pytest.mark.cuda
@pytest.mark.parametrize("type", FACTORS, ids=lambda t: t.name)
def test_packed_product_is_near_float64(type: T) -> None:
    for rows, width in ODD_SHAPES:
        weight = packed(type, rows, width, seed=rows).to("cuda")
        x = torch.randn(3, width, device="cuda")
        assert relative_error(weight, x) <= FLOAT32_GRADE
        assert share_of_bound(weight, x) <= 1


@pytest.mark.cuda
@pytest.mark.parametrize("type", [T.Q4_0, T.Q8_0, T.Q4_K, T.Q6_K], ids=lambda t: t.name)
@pytest.mark.parametrize(("rows", "width"), [(48, 11008), (8208, 4096)], ids=["long rows", "many rows"])
def test_product_in_the_tiles_of_a_large_model_is_near_float64(type: T, rows: int, width: int) -> None:
    """Rows in several steps, and so many that programs make room for one another: one type a tile."""
    weight, x = packed(type, rows, width).to("cuda"), torch.randn(1, width, device="cuda")
    assert relative_error(weight, x) <= FLOAT32_GRADE
    assert share_of_bound(weight, x) <= 1


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_plain_product_is_near_float64(dtype: torch.dtype) -> None:
    for rows, width in ODD_SHAPES:
        weight = torch.randn(rows, width, device="cuda").to(dtype)
        assert relative_error(weight, torch.randn(2, width, device="cuda")) <= FLOAT32_GRADE


@pytest.mark.cuda
@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e6])
def test_product_keeps_its_grade_for_tiny_and_large_vectors(scale: float) -> None:
    weight = packed(T.Q8_0, 33, 512).to("cuda")
    assert relative_error(weight, torch.randn(1, 512, device="cuda") * scale) <= FLOAT32_GRADE


@pytest.mark.cuda
@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize("stray", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_not_hidden(stray: float, fine: bool) -> None:
    from llama_ckpt.kernels.launching import matvec

    x = torch.randn(2, 512, device="cuda")
    x[0, 77] = stray
    y = matvec(repack(packed(T.Q4_0, 16, 512).to("cuda")), x, fine=fine)
    assert not y[0].isfinite().any() and y[1].isfinite().all()


@pytest.mark.cuda
def test_zeros_give_zeros() -> None:
    from llama_ckpt.kernels.launching import matvec

    planes = repack(packed(T.Q6_K, 16, 512).to("cuda"))
    assert not matvec(planes, torch.zeros(1, 512, device="cuda")).any()


@pytest.mark.cuda
def test_one_large_element_leaves_the_others_their_grade() -> None:
    """Its group of 32 is as coarse as it is large, and the sum as large, too."""
    x = torch.randn(1, 4096, device="cuda")
    x[0, 1000] = 3000.0
    assert relative_error(packed(T.Q4_0, 64, 4096).to("cuda"), x) <= FLOAT32_GRADE


@pytest.mark.cuda
def test_same_bits_every_time() -> None:
    from llama_ckpt.kernels.launching import matvec

    planes, x = repack(packed(T.Q6_K, 128, 4096).to("cuda")), torch.randn(2, 4096, device="cuda")
    first = matvec(planes, x)
    assert all(torch.equal(matvec(planes, x), first) for _ in range(5))


@needs_triton
def test_kernels_are_right_in_the_interpreter() -> None:
    code = """
import torch
from gguf import GGMLQuantizationType as T
from llama_ckpt.kernels.launching import matvec
from llama_ckpt.kernels.planes import repack
from tests.kernels.random_weights import FACTORS, packed
from tests.kernels.test_matvec import relative_error, share_of_bound
torch.manual_seed(1)
for type in FACTORS:
    assert relative_error(packed(type, 9, 256), torch.randn(2, 256)) < 2e-6, type
    assert share_of_bound(packed(type, 9, 256), torch.randn(2, 256)) <= 1, type
assert relative_error(torch.randn(9, 96).half(), torch.randn(1, 96)) < 2e-6
for stray in (float("nan"), float("inf")):
    for fine in (True, False):
        x = torch.randn(2, 256)
        x[0, 77] = stray
        y = matvec(repack(packed(T.Q4_0, 9, 256)), x, fine=fine)
        assert not y[0].isfinite().any() and y[1].isfinite().all(), (stray, fine)
assert not matvec(repack(packed(T.Q6_K, 9, 256)), torch.zeros(1, 256)).any()
"""
    assert not interpreter_failure(code)
