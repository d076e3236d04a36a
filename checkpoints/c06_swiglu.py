"""Checkpoint 6, SwiGLU: the feed-forward network, one half gating the other.

    gate = x Wgate^T,  up = x Wup^T
    out = (silu(gate) * up) Wdown^T          silu(a) = a / (1 + exp(-a))
    x [n, width], Wgate and Wup [ffn, width], Wdown [width, ffn] -> out [n, width]

In the paper's names Wgate is W1, Wup is W3 and Wdown is W2. Source: Shazeer 2020 (arXiv 2002.05202),
equation 6; llama.cpp, `build_ffn` in `src/llama-graph.cpp`.

Stands on `torch.nn.functional.silu` and `linear`.

What goes wrong here: see `CHECKPOINT.mistakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor

from llama_ckpt.points import Case, Checkpoint, Given, block_point
from llama_ckpt.weights.quants import Weight, linear

__all__ = ["CHECKPOINT", "swiglu"]


def swiglu(
    x: Tensor,
    w_gate: Weight,
    w_up: Weight,
    w_down: Weight,
    *,
    b_gate: Tensor | None = None,
    b_up: Tensor | None = None,
    b_down: Tensor | None = None,
    tap: Callable[[str, Tensor], object] | None = None,
) -> Tensor:
    """The feed-forward network on normalized vectors.

    Args:
        x: `[n, width]`.
        w_gate, w_up: `[ffn, width]`.
        w_down: `[width, ffn]`.
        b_gate, b_up, b_down: added to each product; a Llama-2 has none.
        tap: gets "ffn_gate" (before silu), "ffn_up" and "ffn_swiglu", each `[n, ffn]`.

    Returns:
        `[n, width]`, dtype of x.
    """
    gate, up = linear(x, w_gate, b_gate), linear(x, w_up, b_up)
    product = F.silu(gate) * up
    if tap is not None:
        tap("ffn_gate", gate)
        tap("ffn_up", up)
        tap("ffn_swiglu", product)
    return linear(product, w_down, b_down)


def cases(given: Given) -> Iterator[Case]:
    """Each block's feed-forward network on its recorded norm."""
    if given.config.n_experts:
        return
    for number in given.blocks:
        weights = given.weights.blocks[number]
        arguments = {
            "x": given[block_point(number, "ffn_norm")],
            "w_gate": weights.w_gate,
            "w_up": weights.w_up,
            "w_down": weights.w_down,
        }
        arguments |= weights.biases("b_gate", "b_up", "b_down")
        taps = {point: block_point(number, point) for point in ("ffn_gate", "ffn_up", "ffn_swiglu")}
        yield Case("swiglu", arguments, (block_point(number, "ffn_out"),), taps)


CHECKPOINT = Checkpoint(
    id="6",
    title="SwiGLU: the feed-forward network",
    function=swiglu,
    stands_on=("1",),
    points=("ffn_gate", "ffn_up", "ffn_swiglu", "ffn_out"),
    max_abs=1e-4,
    cases=cases,
    torch_function="torch.nn.functional.silu and linear: silu is x * sigmoid(x) without overflow",
    mistakes=(
        "Gate and up are swapped: silu goes over the wrong one.",
        "GELU or ReLU stands where SiLU should.",
        "The gate's activation is forgotten, or applied to the product.",
        "The down projection is transposed or reads half of the features.",
        "The product overflows in float16.",
    ),
    experts=False,
)
