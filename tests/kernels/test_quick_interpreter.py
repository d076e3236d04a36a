"""What makes the interpreter quick changes no bit."""

from __future__ import annotations

import torch
from gguf import GGMLQuantizationType as T
from torch import Tensor

from tests.kernels.interpreter import interpreter_failure, needs_triton
from tests.kernels.random_weights import packed
from tests.kernels.test_decode_attention import attended
from tests.kernels.test_matvec import product


def computed() -> list[Tensor]:
    """What kernels make of the same numbers every time: packed and plain products, and attention."""
    torch.manual_seed(1)
    x = torch.randn(1, 256)
    return [
        product(packed(T.Q4_K, 2, 256), x, fine=True)[0],
        product(packed(T.Q6_K, 2, 256), x, fine=False)[0],
        product(torch.randn(2, 96).bfloat16(), x[:, :96], fine=True)[0],
        attended([5, 6, 7], 16, torch.float16, 1, "cpu")[0],
    ]


def check_bits() -> None:
    """Quick, as the process of the checks is, and as Triton has it."""
    from tests.kernels.quick_interpreter import quicken

    quick = computed()
    quicken().undo()
    for number, (one, other) in enumerate(zip(quick, computed(), strict=True)):
        assert one.isfinite().all() and torch.equal(one, other), number


@needs_triton
def test_quick_is_the_same() -> None:
    assert not interpreter_failure(
        "from tests.kernels.test_quick_interpreter import check_bits; check_bits()"
    )
