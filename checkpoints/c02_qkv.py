"""Checkpoint 2, QKV: the normalized vector projected to queries, keys and values.

    q = x Wq^T,  k = x Wk^T,  v = x Wv^T     x [n, width], Wq [n_heads * head_dim, width]; a bias where one is
                                             Wk, Wv [n_kv_heads * head_dim, width]

Head h is the run of rows h * head_dim to (h + 1) * head_dim. With grouped heads there are fewer keys
and values than queries. Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.2; Ainslie et al.
2023 (arXiv 2305.13245); llama.cpp, `build_qkv` in `src/llama-graph.cpp`.

Stands on `torch.nn.functional.linear` through `quants.linear`, which takes packed weights as well.

What goes wrong here: see `CHECKPOINT.mistakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from llama_ckpt.points import Case, Checkpoint, Given, block_point
from llama_ckpt.weights.quants import Weight, linear

__all__ = ["CHECKPOINT", "qkv"]


def qkv(
    x: Tensor,
    wq: Weight,
    wk: Weight,
    wv: Weight,
    *,
    n_heads: int,
    n_kv_heads: int,
    bq: Tensor | None = None,
    bk: Tensor | None = None,
    bv: Tensor | None = None,
    tap: Callable[[str, Tensor], object] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Project `x` to queries, keys and values and split them into heads.

    Args:
        x: `[n, width]`, normalized.
        wq: `[n_heads * head_dim, width]`.
        wk, wv: `[n_kv_heads * head_dim, width]`.
        n_heads, n_kv_heads: how many heads the projections hold.
        bq, bk, bv: added to each, as long as its matrix has rows; a Llama-2 has none.
        tap: unused; there are no inner points.

    Returns:
        q `[n, n_heads, head_dim]`, k and v `[n, n_kv_heads, head_dim]`, dtype of x, before RoPE.
    """
    n = x.shape[0]
    q = linear(x, wq, bq).view(n, n_heads, -1)
    k = linear(x, wk, bk).view(n, n_kv_heads, -1)
    v = linear(x, wv, bv).view(n, n_kv_heads, -1)
    return q, k, v


def cases(given: Given) -> Iterator[Case]:
    """The three projections of each block."""
    heads = {"n_heads": given.config.n_heads, "n_kv_heads": given.config.n_kv_heads}
    for number in given.blocks:
        weights = given.weights.blocks[number]
        x = given[block_point(number, "attn_norm")]
        biases = weights.biases("bq", "bk", "bv")
        arguments = {"x": x, "wq": weights.wq, "wk": weights.wk, "wv": weights.wv, **heads, **biases}
        yield Case("qkv", arguments, tuple(block_point(number, point) for point in ("q", "k", "v")))


CHECKPOINT = Checkpoint(
    id="2",
    title="QKV projections",
    function=qkv,
    stands_on=("1",),
    points=("q", "k", "v"),
    max_abs=1e-4,
    cases=cases,
    torch_function="torch.nn.functional.linear: cuBLAS or oneDNN, float32 sums, TF32 switched off",
    mistakes=(
        "A projection is transposed; with square weights no shape complains.",
        "K and V are swapped, or Q and K.",
        "Heads are split as [head_dim, n_heads] instead of [n_heads, head_dim].",
        "A bias of the file's is left out, or permuted otherwise than its matrix.",
        "With grouped heads, K and V are split by n_heads.",
        "Weights of Hugging Face's layout are used with GGUF's rotary pairs.",
        "A quantized weight is read as the neighbouring block format, or a scale as its minimum.",
    ),
)
