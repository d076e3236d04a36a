"""How exported weights may be named and ordered, and the configuration that each program reads beside them.

gguf    the file's own names (`blk.0.attn_q.weight`) and order: pairs of RoPE are neighbours
hf      Hugging Face's names, rows of Q and K in half-split order, a `config.json`
meta    Meta's names, consolidated (`layers.0.attention.wq.weight`), neighbours, a `params.json`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.errors import OptionError
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.making.hf_scaling import hf_scaling
from llama_ckpt.oracle.llama import rope_magnitude
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.rope_factors import llama3_scaling_of
from llama_ckpt.weights.tensor_names import (
    BIAS_OF,
    BLOCK_TENSORS,
    EXPERT_TENSORS,
    MODEL_TENSORS,
    QKV,
    ROPE_LISTS,
    expected_shapes,
    fused_tensor,
    rows_of,
)

__all__ = ["LAYOUTS", "configuration", "Exported", "exported_tensors", "halves_from_pairs"]

LAYOUTS = ("gguf", "hf", "meta")
"""How the exported tensors may be named and ordered."""

BLOCK_NAMES: Mapping[str, Mapping[str, str]] = {
    "hf": {
        "attn_norm": "input_layernorm",
        "wq": "self_attn.q_proj",
        "wk": "self_attn.k_proj",
        "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "w_gate": "mlp.gate_proj",
        "w_up": "mlp.up_proj",
        "w_down": "mlp.down_proj",
    },
    "meta": {
        "attn_norm": "attention_norm",
        "wq": "attention.wq",
        "wk": "attention.wk",
        "wv": "attention.wv",
        "wo": "attention.wo",
        "ffn_norm": "ffn_norm",
        "w_gate": "feed_forward.w1",
        "w_up": "feed_forward.w3",
        "w_down": "feed_forward.w2",
    },
}
EXPERTS = {
    "w_router": "block_sparse_moe.gate",
    "w_gate": "block_sparse_moe.experts.{E}.w1",
    "w_up": "block_sparse_moe.experts.{E}.w3",
    "w_down": "block_sparse_moe.experts.{E}.w2",
}
"""Hugging Face's names in a mixture of experts: each expert's matrices are tensors of their own."""

MODEL_NAMES: Mapping[str, Mapping[str, str]] = {
    "hf": {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
    "meta": {"token_embd": "tok_embeddings", "output_norm": "norm", "output": "output"},
}
BLOCKS = {"hf": "model.layers", "meta": "layers"}


@dataclass(frozen=True)
class Exported:
    """A tensor to write.

    Attributes:
        name: in the file that is written.
        source: the GGUF file's tensor; None for zeros.
        shape: its own.
        rows: those of the source; None for all.
        turned_heads: heads whose rows are put from pairs into halves; 0 for none.
    """

    name: str
    source: str | None
    shape: tuple[int, ...]
    rows: slice | None = None
    turned_heads: int = 0

    def values(self, file: GGUFFile) -> NDArray[np.float32]:
        """What is written, in float32."""
        if self.source is None:
            return np.zeros(self.shape, np.float32)
        if self.rows is None or len(file.info(self.source).shape) == 1:  # a bias has no rows to be read alone
            values = file.float32(self.source)[self.rows or slice(None)]
        else:
            values = file.float32(self.source, self.rows)
        return halves_from_pairs(values, self.turned_heads) if self.turned_heads else values


def exported_tensors(config: LlamaConfig, layout: str) -> Iterator[Exported]:
    """The tensors to write, in the order of the GGUF file.

    Raises:
        OptionError: the layout has no place for some of them.
    """
    if layout == "meta" and config.n_experts:
        raise OptionError("the layout of a mixture of experts", got=layout, wanted="hf or gguf")
    plain = replace(
        config,
        fused_qkv=layout == "gguf" and config.fused_qkv,
        biases=_biases(config, layout),
        unbiased=config.unbiased if layout == "gguf" else (),
    )
    for name, shape in expected_shapes(plain).items():
        if layout == "gguf":
            yield Exported(name, name, shape)
        elif (field := _of_experts(name)) and config.n_experts:
            yield from _each_expert(name, field, shape)
        elif name not in ROPE_LISTS:  # the others say them in their configuration
            yield _exported(name, shape, config, layout)
    if layout == "meta" and config.tied_output:  # Meta's program has no tie: the matrix is there twice
        embedding = MODEL_TENSORS["token_embd"]
        yield Exported("output.weight", embedding, (config.vocab_size, config.width))


def _of_experts(name: str) -> str:
    """The field of a tensor that a mixture has in the place of another, "" of others."""
    suffix = name.split(".", 2)[-1]
    return next((field for field, own in EXPERT_TENSORS.items() if own == suffix), "")


def _each_expert(name: str, field: str, shape: tuple[int, ...]) -> Iterator[Exported]:
    """The router, or a matrix of every expert, which lie one after the other in the file."""
    prefix = f"{BLOCKS['hf']}.{name.split('.')[1]}.{EXPERTS[field]}.weight"
    if field == "w_router":
        yield Exported(prefix, name, shape)
        return
    n, rows, columns = shape
    for expert in range(n):
        part = slice(expert * rows, (expert + 1) * rows)
        yield Exported(prefix.replace("{E}", str(expert)), name, (rows, columns), part)


def _biases(config: LlamaConfig, layout: str) -> tuple[str, ...]:
    """Those to write; `transformers` has all of attention's or none; so has the feed-forward's."""
    if layout == "meta" and config.biases:
        raise OptionError(
            "the layout of a model with biases", got="meta, which has none", wanted="hf or gguf"
        )
    if layout == "gguf":
        return config.biases
    groups = (("bq", "bk", "bv", "bo"), ("b_gate", "b_up", "b_down"))
    return tuple(name for group in groups if set(group) & set(config.biases) for name in group)


def _exported(name: str, shape: tuple[int, ...], config: LlamaConfig, layout: str) -> Exported:
    for field, own in MODEL_TENSORS.items():
        if name == own:
            return Exported(f"{MODEL_NAMES[layout][field]}.weight", name, shape)
    _, number, suffix = name.split(".", 2)
    kind = suffix.rpartition(".")[2]  # "weight" or "bias"
    field = next(field for field, own in BLOCK_TENSORS.items() if own == suffix.replace(".bias", ".weight"))
    exported = f"{BLOCKS[layout]}.{number}.{BLOCK_NAMES[layout][field]}.{kind}"
    turned = {"wq": config.n_heads, "wk": config.n_kv_heads}.get(field, 0) if layout == "hf" else 0
    if kind == "bias" and BIAS_OF[field] not in config.biases_of(int(number)):
        return Exported(exported, None, shape)
    if config.fused_qkv and field in QKV:
        return Exported(exported, fused_tensor(int(number), kind), shape, rows_of(field, config), turned)
    return Exported(exported, name, shape, turned_heads=turned)


def halves_from_pairs(w: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Rows of a projection `[n_heads * head_dim, in]` from GGUF's order into Hugging Face's.

    In each head row 2i comes to i and row 2i + 1 to i + head_dim / 2.
    """
    pairs = w.reshape(n_heads, -1, 2, *w.shape[1:])  # [n_heads, head_dim / 2, 2, in]
    return pairs.swapaxes(1, 2).reshape(w.shape)


def configuration(
    file: GGUFFile, config: LlamaConfig, layout: str, dtype: str
) -> tuple[str, dict[str, Any]] | None:
    """The file to write beside the weights and what stands in it; None where there is none."""
    if layout == "hf":
        return "config.json", _hf_config(file, config, dtype)
    return ("params.json", _meta_params(config)) if layout == "meta" else None


def _hf_config(file: GGUFFile, config: LlamaConfig, dtype: str) -> dict[str, Any]:
    """What `transformers` needs to build the same model."""
    scaling = hf_scaling(config)
    ids = dict(_special_ids(file))
    kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    if config.n_experts:
        kind = _mixtral(config)
    return {
        **kind,
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {**(scaling or {"rope_type": "default"}), "rope_theta": config.rope_theta},
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tied_output,
        "hidden_act": "silu",
        "attention_bias": bool({"bq", "bk", "bv", "bo"} & set(config.biases)),
        "mlp_bias": bool({"b_gate", "b_up", "b_down"} & set(config.biases)),
        "torch_dtype": dtype,
        "dtype": dtype,
        **ids,
    }


def _mixtral(config: LlamaConfig) -> dict[str, Any]:
    """What makes a mixture of it.

    Raises:
        OptionError: `transformers`' Mixtral has no place for something.
    """
    if config.biases:
        raise OptionError("a mixture of experts with biases", got="hf, whose Mixtral has none", wanted="gguf")
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.n_experts_used,
        "sliding_window": None,
        "output_router_logits": False,
    }


def _special_ids(file: GGUFFile) -> Iterator[tuple[str, int]]:
    for name in ("bos", "eos"):
        value = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(value, int):
            yield f"{name}_token_id", value


def _meta_params(config: LlamaConfig) -> dict[str, Any]:
    """What Meta's program builds the same model from; keys that Llama-2's has not, only where they matter.

    It has no key for the feed-forward width: that is two thirds of four widths, times a factor, rounded up
    to a multiple. Where a multiple alone leads to it, 256 as in Meta's own files is preferred.
    """
    plain = int(2 * (4 * config.width) / 3)
    narrow = {"multiple_of": 1, "ffn_dim_multiplier": (config.ffn + 0.5) / plain}
    usual = -(-plain // 256) * 256 == config.ffn
    wide = {"multiple_of": 256 if usual else config.ffn}
    return {
        "dim": config.width,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        **(narrow if config.ffn < plain else wide),
        "norm_eps": config.rms_norm_eps,
        **({"rope_theta": config.rope_theta} if config.rope_theta != 10000.0 else {}),
        **_meta_scaling(config),
    }


def _meta_scaling(config: LlamaConfig) -> dict[str, Any]:
    magnified = rope_magnitude(config) != 1.0
    if not (config.rope_factors or config.rope_yarn or magnified):
        return {}
    known = llama3_scaling_of(config.rope_factors, config.head_dim, config.rope_theta)
    if known is None or config.rope_yarn is not None or magnified:
        raise OptionError(
            "the layout of a model with divisors of RoPE's frequencies",
            got="meta, whose program knows Llama 3's own alone",
            wanted="hf or gguf",
        )
    return {"use_scaled_rope": True, "rope_scale_factor": int(known.factor)}
