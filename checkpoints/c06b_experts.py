"""Checkpoint 6B, experts: a router picks a few of many feed-forward networks for each token.

    r = x Wrouter^T                          x [n, width], Wrouter [n_experts, width] -> r [n, n_experts]
    chosen = the n_used largest of r;  g = softmax(r[chosen])
    out = sum over chosen e of g_e * swiglu_e(x)                                      -> out [n, width]

What Mixtral has in the place of checkpoint 6. The softmax over the chosen scores alone is that over all
experts, divided by its sum over the chosen: both ways are right. Source: Jiang et al. 2024 (arXiv
2401.04088), section 2.1; llama.cpp, `build_moe_ffn` in `src/llama-graph.cpp`.

Stands on `torch.topk`, `softmax` and the layer of checkpoint 6.

What goes wrong here: see `CHECKPOINT.mistakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from checkpoints.c06_swiglu import swiglu
from llama_ckpt.points import Case, Checkpoint, Given, block_point
from llama_ckpt.weights.quants import Weight, linear, weight_rows

__all__ = ["CHECKPOINT", "experts"]


def experts(
    x: Tensor,
    w_router: Weight,
    w_gate: Weight,
    w_up: Weight,
    w_down: Weight,
    *,
    n_used: int,
    tap: Callable[[str, Tensor], object] | None = None,
) -> Tensor:
    """A mixture of experts on normalized vectors.

    Args:
        x: `[n, width]`.
        w_router: `[n_experts, width]`.
        w_gate, w_up: `[n_experts * ffn, width]`, all experts' rows under one another.
        w_down: `[n_experts * width, ffn]`, the same.
        n_used: how many experts compute a token.
        tap: gets "ffn_router" `[n, n_experts]`, "ffn_chosen" (int64) and "ffn_weights", each `[n, n_used]`,
            the likeliest expert first, and "ffn_expert_out" `[n, n_used, width]`, not weighted yet.

    Returns:
        `[n, width]`, dtype of x.
    """
    see = tap or (lambda point, tensor: None)
    router = linear(x, w_router)
    see("ffn_router", router)
    scores, chosen = torch.topk(router.float(), n_used)
    weights = scores.softmax(-1).to(x.dtype)
    see("ffn_chosen", chosen)
    see("ffn_weights", weights)
    out = x.new_zeros(*chosen.shape, x.shape[1])
    n_experts = router.shape[1]
    for expert in torch.unique(chosen).tolist():
        tokens, ranks = torch.where(chosen == expert)
        matrices = (weight_rows(w, expert, n_experts) for w in (w_gate, w_up, w_down))
        out[tokens, ranks] = swiglu(x[tokens], *matrices)
    see("ffn_expert_out", out)
    return (weights.unsqueeze(-1) * out).sum(dim=1)


def cases(given: Given) -> Iterator[Case]:
    """Each block's experts on its recorded norm."""
    if not given.config.n_experts:
        return
    for number in given.blocks:
        weights = given.weights.blocks[number]
        arguments = {
            "x": given[block_point(number, "ffn_norm")],
            "w_router": weights.w_router,
            "w_gate": weights.w_gate,
            "w_up": weights.w_up,
            "w_down": weights.w_down,
            "n_used": given.config.n_experts_used,
        }
        inner = ("ffn_router", "ffn_chosen", "ffn_weights", "ffn_expert_out")
        taps = {point: block_point(number, point) for point in inner}
        yield Case("experts", arguments, (block_point(number, "ffn_out"),), taps)


CHECKPOINT = Checkpoint(
    id="6B",
    title="experts",
    function=experts,
    stands_on=("1",),
    points=("ffn_router", "ffn_chosen", "ffn_weights", "ffn_expert_out", "ffn_out"),
    max_abs=1e-4,
    cases=cases,
    torch_function="torch.topk, softmax and linear: topk sorts, the largest first",
    mistakes=(
        "The softmax goes over all experts and is not divided by its sum over the chosen ones.",
        "One expert computes where two should, or all of them do.",
        "The weights are given to the experts in another order than the experts were chosen in.",
        "The experts' numbers are off by one, or the matrices of two experts are exchanged.",
        "The weights multiply the experts' inputs instead of what they make.",
        "What the experts make is added without weights, or averaged.",
    ),
    error_from={
        "ffn_router": "a dot product over the width",
        "ffn_chosen": "a choice by the router's scores",
        "ffn_weights": "exp turns a score's absolute error into a relative one",
        "ffn_expert_out": "a dot product over the feed-forward width of such products",
    },
    experts=True,
)
