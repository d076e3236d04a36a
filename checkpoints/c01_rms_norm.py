"""Checkpoint 1, RMSNorm: each token's vector to a root mean square of one, then a gain per feature.

    y = x / sqrt(mean(x^2) + eps) * w        x [n, width], w [width] -> y [n, width]

The mean runs over the features of one token; eps stands inside the root; no mean is subtracted.
Source: Zhang and Sennrich 2019 (arXiv 1910.07467), equation 4; llama.cpp, `build_norm` in
`src/llama-graph.cpp`.

Stands on `torch.nn.functional.rms_norm`: one fused pass, which sums float16 and bfloat16 in float32.

What goes wrong here: see `CHECKPOINT.mistakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor

from llama_ckpt.points import Case, Checkpoint, Given, block_input, block_point

__all__ = ["CHECKPOINT", "rms_norm"]


def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float, tap: Callable[[str, Tensor], object] | None = None
) -> Tensor:
    """Normalize each row of `x` by its root mean square and scale it by `weight`.

    Args:
        x: `[n, width]`.
        weight: `[width]`; used in the dtype of x.
        eps: added to the mean square, inside the root.
        tap: unused; there are no inner points.

    Returns:
        `[n, width]`, dtype of x.
    """
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


def cases(given: Given) -> Iterator[Case]:
    """Both norms of each block, and the one before the output head."""
    eps = given.config.rms_norm_eps
    for number in given.blocks:
        weights = given.weights.blocks[number]
        for point, source, weight in (
            ("attn_norm", block_input(number), weights.attn_norm),
            ("ffn_norm", block_point(number, "ffn_inp"), weights.ffn_norm),
        ):
            arguments = {"x": given[source], "weight": weight, "eps": eps}
            yield Case("rms_norm", arguments, (block_point(number, point),))
    x = given[block_point(given.config.n_layers - 1, "out")]
    yield Case("rms_norm", {"x": x, "weight": given.weights.output_norm, "eps": eps}, ("output_norm",))


CHECKPOINT = Checkpoint(
    id="1",
    title="RMSNorm",
    function=rms_norm,
    stands_on=("0",),
    points=("attn_norm", "ffn_norm", "output_norm"),
    max_abs=1e-5,
    cases=cases,
    torch_function="torch.nn.functional.rms_norm: one fused pass, summed in float32 for half precision",
    mistakes=(
        "eps is 1e-6 where the file says 1e-5: seen only on small inputs, such as the first block's.",
        "eps is added outside the root.",
        "The mean is subtracted, as LayerNorm does.",
        "The weight is forgotten, or taken as 1 + w, as in Gemma.",
        "The sum runs over all tokens instead of one token's features.",
        "The squares are summed in float16, which overflows above 65,504.",
    ),
)
