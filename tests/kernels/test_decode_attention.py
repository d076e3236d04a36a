"""Attention of single tokens over the cache, against float64: on CUDA, and in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreter import interpreter_failure, needs_triton

HEADS, GROUP, GROUP2, SPLIT, SLOTS = 6, 3, 4, 16, 64


def launch(grouped: bool, splits: int, parts: int, head: int, buffers: tuple[Tensor, ...]) -> None:
    """One of the two kernels on those buffers; a head of keys serves GROUP queries."""
    from llama_ckpt.kernels.decode_attention import attention_kernel
    from llama_ckpt.kernels.grouped_attention import grouped_attention_kernel
    from llama_ckpt.kernels.launching import launch_options

    options = {name: value for name, value in launch_options(64, False).items() if name != "ASM"}
    sizes = {"HEAD": head, "HEAD2": 1 << (head - 1).bit_length()}
    n = buffers[0].shape[0]
    if grouped:
        grouped_attention_kernel[(HEADS // GROUP, splits, n)](
            *buffers,
            SLOTS,
            head**-0.5,
            GROUP=GROUP,
            G2=GROUP2,
            M=16,
            CHUNK=SPLIT,
            PARTS=parts,
            **sizes,
            **options,
        )
        return
    attention_kernel[(HEADS, splits, n)](
        *buffers, SLOTS, GROUP, head**-0.5, SPLIT=SPLIT, MAX_SPLITS=parts, **sizes, **options
    )


def attended(
    slots: list[int], head: int, kv: torch.dtype, splits: int, device: str, grouped: int = 0
) -> tuple[Tensor, Tensor]:
    """The kernel's context of tokens in `slots` and the exact one, [tokens, HEADS * head].

    `grouped`: 0 takes one head a program, else a head of keys in so many programs at most.
    """
    from llama_ckpt.kernels.launching import from_pieces

    n, width = len(slots), HEADS * head
    sizes = torch.tensor([1e-6, 1.0, 30.0, 1e5, 2.0, 3.0], device=device)  # float16 would hold neither end
    query = torch.randn(n, HEADS, head, device=device) * sizes[:, None]
    # Slots that no token sees hold numbers too large to go unnoticed.
    keys, values = (torch.full((HEADS // GROUP, SLOTS, head), 1e4, device=device).to(kv) for _ in range(2))
    for cache in (keys, values):
        cache[:, : slots[-1] + 1] = torch.randn(HEADS // GROUP, slots[-1] + 1, head, device=device).to(kv)
    context = torch.full((n, width), float("nan"), device=device)
    room = grouped or 4
    parts, stats = (torch.full((n, HEADS, room, k), float("nan"), device=device) for k in (head, 2))
    counters = torch.zeros(n, HEADS, dtype=torch.int32, device=device)
    at = torch.tensor(slots, dtype=torch.int32, device=device)
    launch(bool(grouped), splits, room, head, (query, keys, values, at, parts, stats, counters, context))
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
        for head, kv, grouped in (
            (16, torch.float16, 0),
            (48, torch.float32, 0),
            (16, torch.float16, 4),
            (48, torch.float16, 2),  # several chunks of slots a program
        ):
            found, exact = attended(slots, head, kv, splits, device, grouped)
            assert (found - exact).norm() <= 2e-6 * exact.norm(), (slots, splits, head, grouped)


@pytest.mark.cuda
def test_attention_is_near_float64() -> None:
    check_all("cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("grouped", [0, 2, 4])
def test_more_splits_than_needed_change_no_bit(grouped: int) -> None:
    found = []
    for splits in (2, 4):
        torch.manual_seed(2)
        found.append(attended([20, 21], 64, torch.float16, splits, "cuda", grouped)[0])
    assert torch.equal(*found)


@needs_triton
def test_attention_is_right_in_the_interpreter() -> None:
    code = "from tests.kernels.test_decode_attention import check_all; check_all('cpu')"
    assert not interpreter_failure(code)
