"""The names and shapes of a Llama's tensors in a GGUF file. Imports nothing of ours.

A field of `ModelWeights` or `BlockWeights` (and of the oracle's weights) on the left, the file's
name on the right. Shapes are row-major, [out, in].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llama_ckpt.weights.config import LlamaConfig

__all__ = [
    "ATTENTION_BIASES",
    "BIAS_OF",
    "BIAS_TENSORS",
    "FUSED",
    "QKV",
    "fused_tensor",
    "rows_of",
    "BLOCK_TENSORS",
    "EXPERT_TENSORS",
    "block_fields",
    "LONG_FACTORS",
    "MODEL_TENSORS",
    "ROPE_FACTORS",
    "ROPE_LISTS",
    "SHORT_FACTORS",
    "block_tensor",
    "expected_shapes",
    "unsupported_reason",
]

MODEL_TENSORS: Final[Mapping[str, str]] = MappingProxyType(
    {"token_embd": "token_embd.weight", "output_norm": "output_norm.weight", "output": "output.weight"}
)
"""Field of the model's weights to the tensor's name."""

ROPE_FACTORS: Final = "rope_freqs.weight"
"""A divisor of each of RoPE's frequencies, where a file has them; part of the configuration."""

SHORT_FACTORS: Final = "rope_factors_short.weight"
LONG_FACTORS: Final = "rope_factors_long.weight"
"""LongRoPE's divisors: for runs within the original context, and for longer ones."""

ROPE_LISTS: Final = (ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS)
"""Tensors that are part of the configuration."""

BLOCK_TENSORS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "attn_norm": "attn_norm.weight",
        "wq": "attn_q.weight",
        "wk": "attn_k.weight",
        "wv": "attn_v.weight",
        "wo": "attn_output.weight",
        "ffn_norm": "ffn_norm.weight",
        "w_gate": "ffn_gate.weight",
        "w_up": "ffn_up.weight",
        "w_down": "ffn_down.weight",
    }
)
"""Field of a block's weights to the tensor's name without `blk.N.`."""

EXPERT_TENSORS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "w_router": "ffn_gate_inp.weight",
        "w_gate": "ffn_gate_exps.weight",
        "w_up": "ffn_up_exps.weight",
        "w_down": "ffn_down_exps.weight",
    }
)
"""The same of a mixture of experts, in the place of the feed-forward network's."""

ATTENTION_BIASES: Final = ("bq", "bk", "bv", "bo")

BIAS_OF: Final[Mapping[str, str]] = MappingProxyType(
    {
        "wq": "bq",
        "wk": "bk",
        "wv": "bv",
        "wo": "bo",
        "w_gate": "b_gate",
        "w_up": "b_up",
        "w_down": "b_down",
    }
)
"""Field of a matrix to the field of the bias that may be added to its product."""

BIAS_TENSORS: Final[Mapping[str, str]] = MappingProxyType(
    {bias: BLOCK_TENSORS[field].replace(".weight", ".bias") for field, bias in BIAS_OF.items()}
)
"""Field of a bias to the tensor's name without `blk.N.`."""

FUSED: Final = "attn_qkv"
"""What one tensor for Q, K and V is called, the rows of one under those of another; `.weight` or `.bias`."""

_REASONS: Final = {
    "rope_factors": "LongRoPE's divisors are used where rope.scaling.type is longrope",
    "rope_freqs": "LongRoPE has lists of its own",
    "_shexp": "experts that see every token are not supported",
    "_exps.bias": "experts with biases are not supported",
    "_exps": "it is of a mixture of experts, and llama.expert_count is 0",
    "ffn_gate_inp": "it is of a mixture of experts, and llama.expert_count is 0",
    "attn_qkv": "it stands beside Q, K and V of their own",
    ".bias": "a bias here is not supported",
    "attn_q_norm": "norms of queries and keys are not supported",
    "attn_k_norm": "norms of queries and keys are not supported",
    "sub_norm": "norms within attention and the feed-forward network, as BitNet has, are not supported",
    ".scale": "scales beside a matrix, as NVFP4 may have, are not supported",
}


def block_tensor(block: int, field: str, *, experts: bool = False) -> str:
    """A block's tensor in the file: `block_tensor(3, "wq")` is `"blk.3.attn_q.weight"`."""
    if experts and field in EXPERT_TENSORS:
        return f"blk.{block}.{EXPERT_TENSORS[field]}"
    return f"blk.{block}.{BLOCK_TENSORS.get(field) or BIAS_TENSORS[field]}"


def block_fields(config: LlamaConfig) -> tuple[str, ...]:
    """The fields of a block's weights but the biases, in the file's order."""
    fields = tuple(BLOCK_TENSORS)
    if not config.n_experts:
        return fields
    at = fields.index("w_gate")
    return (*fields[:at], "w_router", *fields[at:])


def fused_tensor(block: int, kind: str = "weight") -> str:
    """The tensor that holds Q, K and V of a block, or its bias."""
    return f"blk.{block}.{FUSED}.{kind}"


def expected_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Llama of this configuration, by its name in the file, with its shape.

    Token embedding first, then the blocks, then the final norm, RoPE's divisors where there are any and,
    unless it is tied to the embedding, the output matrix.
    """
    width, ffn, n = config.width, config.ffn, config.n_experts
    stacked = (n,) if n else ()
    block: dict[str, tuple[int, ...]] = {
        "attn_norm": (width,),
        "wq": (config.q_width, width),
        "wk": (config.kv_width, width),
        "wv": (config.kv_width, width),
        "wo": (width, config.q_width),
        "ffn_norm": (width,),
        "w_router": (n, width),
        "w_gate": (*stacked, ffn, width),
        "w_up": (*stacked, ffn, width),
        "w_down": (*stacked, width, ffn),
    }
    block = {field: block[field] for field in block_fields(config)}
    biases = {bias: block[field][:1] for field, bias in BIAS_OF.items() if bias in config.biases}
    shapes: dict[str, tuple[int, ...]] = {MODEL_TENSORS["token_embd"]: (config.vocab_size, width)}
    for number in range(config.n_layers):
        own = block | {bias: biases[bias] for bias in config.biases_of(number)}
        named = {block_tensor(number, field, experts=n > 0): shape for field, shape in own.items()}
        shapes |= _with_fused(named, number, config) if config.fused_qkv else named
    shapes[MODEL_TENSORS["output_norm"]] = (width,)
    if config.rope_long_factors:
        shapes |= dict.fromkeys((SHORT_FACTORS, LONG_FACTORS), (len(config.rope_long_factors),))
    elif config.rope_factors:
        shapes[ROPE_FACTORS] = (len(config.rope_factors),)
    if not config.tied_output:
        shapes[MODEL_TENSORS["output"]] = (config.vocab_size, width)
    return shapes


def _with_fused(
    named: dict[str, tuple[int, ...]], number: int, config: LlamaConfig
) -> dict[str, tuple[int, ...]]:
    """A block's tensors with Q, K and V in one."""
    parts = {block_tensor(number, field) for field in (*QKV, *(BIAS_OF[field] for field in QKV))}
    shapes: dict[str, tuple[int, ...]] = {}
    rows = config.q_width + 2 * config.kv_width
    for name, shape in named.items():
        fused = fused_tensor(number, name.rpartition(".")[2])
        if name in parts:
            shapes[fused] = (rows, *shape[1:])
        else:
            shapes[name] = shape
    return shapes


def rows_of(field: str, config: LlamaConfig) -> slice:
    """The rows of Q, K or V in one tensor for all three."""
    q, kv = config.q_width, config.kv_width
    return {"wq": slice(0, q), "wk": slice(q, q + kv), "wv": slice(q + kv, q + 2 * kv)}[field]


QKV: Final = ("wq", "wk", "wv")
"""The fields that one tensor may hold together."""


def unsupported_reason(name: str, n_layers: int) -> str | None:
    """Why a tensor of this name is not in `expected_shapes` of so many blocks, where its name tells."""
    block = re.match(r"blk\.([0-9]{1,9})\.", name)
    if block and int(block[1]) >= n_layers:
        return f"llama.block_count is {n_layers}: blocks beyond it are no part of the model"
    if re.match(r"blk\.[0-9]+\.ffn_(gate|up|down)\.[0-9]+\.weight", name):
        return (
            "each expert has a tensor of its own, an old form that llama.cpp reads no more: convert it again"
        )
    return next((reason for part, reason in _REASONS.items() if part in name), None)
