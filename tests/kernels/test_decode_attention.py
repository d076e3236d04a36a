"""Attention of single tokens over the cache, against float64: on CUDA, and in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreter import interpreter_failure, needs_triton

HEADS, GROUP, SPLIT, SLOTS = 4, 2, 16, 64


def attended(slots: list[int], head: int, kv: torch.dtype, splits: int, device: str) -> tuple[Tensor, Tensor]:
    """The kernel's context of tokens in `slots` and the exact one, [tokens, HEADS * head]."""
    from llama_ckpt.kernels.decode_attention import attention_kernel
    from llama_ckpt.kernels.launching import from_pieces, launch_options

    n, width = len(slots), HEADS * head
    options = {name: value for name, value in launch_options(64, False).items() if name != "ASM"}
    query = torch.randn(n, HEADS, head, device=device)
    # Slots that no token sees hold numbers too large to go unnoticed.
    keys, values = (torch.full((HEADS // GROUP, SLOTS, head), 1e4, device=device).to(kv) for _ in range(2))
    for cache in (keys, values):
        cache[:, : slots[-1] + 1] = torch.randn(HEADS // GROUP, slots[-1] + 1, head, device=device).to(kv)
    context = torch.full((n, width), float("nan"), device=device)
    parts, stats = (torch.full((n, HEADS, 4, k), float("nan"), device=device) for k in (head, 2))
    counters = torch.zeros(n, HEADS, dtype=torch.int32, device=device)
    attention_kernel[(HEADS, splits, n)](
        query, keys, values, torch.tensor(slots, dtype=torch.int32, device=device), parts, stats, counters,
        context, SLOTS, GROUP, head**-0.5,
        HEAD=head, HEAD2=1 << (head - 1).bit_length(), SPLIT=SPLIT, MAX_SPLITS=4, **options,
    )  # fmt: skip
    assert not counters.any()
    exact = torch.empty(n, HEADS, head, dtype=torch.float64, device=device)
    for i, slot in enumerate(slots):
        k, v = (c[:, : slot + 1].double().repeat_interleave(GROUP, dim=0) for c in (keys, values))
        score = torch.einsum("hd,hsd->hs", query[i].double(), k) * head**-0.5
        exact[i] = torch.einsum("hs,hsd->hd", score.softmax(-1), v)
    return from_pieces(context), exact.reshape(n, width)


def check_all(device: str) -> None:
    """Tokens in one split and in several, at their edges, as many splits launched as needed and more."""
    torch.manual_seed(1)
    cases = (([0], 1), ([15], 1), ([15], 4), ([16], 2), ([5, 6, 7], 1), ([62, 63], 4), ([14, 15, 16], 2))
    for slots, splits in cases:
        for head, kv in ((16, torch.float16), (24, torch.float32)):
            found, exact = attended(slots, head, kv, splits, device)
            assert (found - exact).norm() <= 2e-6 * exact.norm(), (slots, splits, head)


@pytest.mark.cuda
def test_attention_is_near_float64() -> None:
    check_all("cuda")


@pytest.mark.cuda
def test_more_splits_than_needed_change_no_bit() -> None:
    found = []
    for splits in (2, 4):
        torch.manual_seed(2)
        found.append(attended([20, 21], 64, torch.float16, splits, "cuda")[0])
    assert torch.equal(*found)


@needs_triton
def test_attention_is_right_in_the_interpreter() -> None:
    code = "from tests.kernels.test_decode_attention import check_all; check_all('cpu')"
    assert not interpreter_failure(code)
