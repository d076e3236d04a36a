"""The settings of matrix products: stated inside `exact_matmul`, given back after it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from llama_ckpt.weights.quants import exact_matmul

BACKENDS: Any = torch.backends


def settings() -> dict[str, Any]:
    matmul = BACKENDS.cuda.matmul
    names = ["allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"]
    names += [f"{name}_split_k" for name in names] + ["allow_fp16_accumulation"]
    return {
        **{name: getattr(matmul, name) for name in names},
        "math_sdp": BACKENDS.cuda.fp16_bf16_reduction_math_sdp_allowed(),
        "cuda float32": matmul.fp32_precision,
        "cpu float32": BACKENDS.mkldnn.matmul.fp32_precision,
    }


def assert_exact() -> None:
    now = settings()
    assert {now.pop("cuda float32"), now.pop("cpu float32")} == {"ieee"}
    # Split-K is allowed: its parts are summed in float32, and plain cuBLAS refuses to do without it.
    assert {name for name, value in now.items() if value} == {
        "allow_fp16_reduced_precision_reduction_split_k",
        "allow_bf16_reduced_precision_reduction_split_k",
    }, now
    assert not BACKENDS.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def loosen_all() -> None:
    matmul = BACKENDS.cuda.matmul
    matmul.allow_fp16_reduced_precision_reduction = (True, True)
    matmul.allow_bf16_reduced_precision_reduction = (True, True)
    matmul.allow_fp16_accumulation = True
    BACKENDS.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    torch.set_float32_matmul_precision("medium")


def newer_interface() -> None:
    BACKENDS.cuda.matmul.fp32_precision = "tf32"


def everywhere() -> None:
    BACKENDS.fp32_precision = "tf32"


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    """The settings belong to the whole process: leave them as torch starts with them."""
    with exact_matmul():
        pass
    before = settings()
    yield
    BACKENDS.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    matmul = BACKENDS.cuda.matmul
    matmul.allow_fp16_reduced_precision_reduction = (True, True)
    matmul.allow_bf16_reduced_precision_reduction = (True, True)
    matmul.allow_fp16_accumulation = False
    BACKENDS.cuda.allow_fp16_bf16_reduction_math_sdp(False)
    matmul.fp32_precision = before["cuda float32"]
    BACKENDS.mkldnn.matmul.fp32_precision = before["cpu float32"]


@pytest.mark.parametrize("change", [lambda: None, loosen_all, newer_interface, everywhere])
def test_stated_within_and_given_back(change: Callable[[], None]) -> None:
    change()
    before = settings()
    with exact_matmul():
        assert_exact()
        with exact_matmul():
            assert_exact()
        assert_exact()
    assert settings() == before


def test_given_back_after_an_error() -> None:
    loosen_all()
    before = settings()
    with pytest.raises(ZeroDivisionError), exact_matmul():
        raise ZeroDivisionError
    assert settings() == before


def test_threads_that_overlap() -> None:
    """The first to leave must not loosen what the other still relies on."""
    loosen_all()
    before = settings()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with exact_matmul():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    with exact_matmul():
        leave.set()
        thread.join()
        assert_exact()
    assert settings() == before


@pytest.mark.cuda
def test_float32_is_float32_on_cuda() -> None:
    a = torch.randn(512, 512, device="cuda")
    torch.set_float32_matmul_precision("medium")
    with exact_matmul():
        exact = a @ a
    want = a.double() @ a.double()
    scale = (a.double().abs() @ a.double().abs()).max()
    assert (exact.double() - want).abs().max() < 1e-6 * scale
    assert ((a @ a).double() - want).abs().max() > 1e-6 * scale, "TF32 is back on outside"
