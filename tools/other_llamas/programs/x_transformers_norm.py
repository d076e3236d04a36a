"""x-transformers, configured as a Llama: its RMSNorm has no epsilon, and multiplies by 1 + its parameter.

Layers alternate, attention and feed-forward; one matrix gives up and gate; RoPE turns neighbours.
"""

from __future__ import annotations

from typing import Any

from tools.other_llamas.job import ModelFiles, Program, Runner

__all__ = ["PROGRAM", "load_with"]

ATTENTION = {
    "0.0": "attn_norm",
    "1.to_q": "q",
    "1.to_k": "k",
    "1.to_v": "v",
    "1.to_out:input": "attn_context",
    "1.to_out": "attn_out",
}
FEED_FORWARD = {
    "0.0:input": "ffn_inp",
    "0.0": "ffn_norm",
    "1.ff.2:input": "ffn_swiglu",
    "1.ff.2": "ffn_out",
}


def load_with(files: ModelFiles, *, offset: float) -> Runner:
    """The model; `offset` is taken from the norms' weights."""
    import torch
    from safetensors.torch import load_file
    from x_transformers import Decoder, TransformerWrapper

    import llama_ckpt as lc

    c = files.config
    decoder = Decoder(
        dim=c["hidden_size"],
        depth=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        attn_dim_head=c["head_dim"],
        use_rmsnorm=True,
        rotary_pos_emb=True,
        rotary_emb_dim=c["head_dim"],
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
        ff_mult=(c["intermediate_size"] + 0.5) / c["hidden_size"],  # it rounds the product down
        attn_flash=True,
        verbose=False,
    )
    model = TransformerWrapper(
        num_tokens=c["vocab_size"], max_seq_len=1024, use_abs_pos_emb=False, attn_layers=decoder
    )
    model.load_state_dict(_weights(load_file(files.meta_weights), offset), strict=False)
    model.to(files.device).eval()
    mapping = _mapping(c["num_hidden_layers"])

    def run(token_ids: Any) -> Any:
        recorded = lc.record(
            model, {"x": torch.tensor([list(token_ids)], device=files.device)}, mapping=mapping
        )
        recorded.token_ids = tuple(token_ids)
        return recorded

    return run


def _weights(meta: Any, offset: float) -> dict[str, Any]:
    """Meta's tensors, which lie for neighbours too, under the names here."""
    import torch

    found = {
        "token_emb.emb.weight": meta["tok_embeddings.weight"],
        "to_logits.weight": meta["output.weight"],
        "attn_layers.final_norm.g": meta["norm.weight"] - offset,
    }
    n_layers = sum(name.endswith("attention_norm.weight") for name in meta)
    for n in range(n_layers):
        own = {name.removeprefix(f"layers.{n}."): t for name, t in meta.items() if f"layers.{n}." in name}
        attention, feed = f"attn_layers.layers.{2 * n}", f"attn_layers.layers.{2 * n + 1}"
        up_gate = torch.cat([own["feed_forward.w3.weight"], own["feed_forward.w1.weight"]])
        found |= {
            f"{attention}.0.0.g": own["attention_norm.weight"] - offset,
            f"{attention}.1.to_q.weight": own["attention.wq.weight"],
            f"{attention}.1.to_k.weight": own["attention.wk.weight"],
            f"{attention}.1.to_v.weight": own["attention.wv.weight"],
            f"{attention}.1.to_out.weight": own["attention.wo.weight"],
            f"{feed}.0.0.g": own["ffn_norm.weight"] - offset,
            f"{feed}.1.ff.0.proj.weight": up_gate,
            f"{feed}.1.ff.0.proj.bias": torch.zeros(len(up_gate)),
            f"{feed}.1.ff.2.weight": own["feed_forward.w2.weight"],
        }
    return found


def _mapping(n_layers: int) -> dict[str, str]:
    found = {"token_emb": "embd", "attn_layers.final_norm": "output_norm", "to_logits": "logits"}
    for n in range(n_layers):
        for layer, points in ((2 * n, ATTENTION), (2 * n + 1, FEED_FORWARD)):
            found |= {f"attn_layers.layers.{layer}.{path}": f"blk.{n}.{p}" for path, p in points.items()}
        # a block's end is what the next one's norm is given
        after = f"attn_layers.layers.{2 * n + 2}.0.0" if n + 1 < n_layers else "attn_layers.final_norm"
        found[f"{after}:input"] = f"blk.{n}.out"
    return found


def load(files: ModelFiles, dtype: str) -> Runner:
    """The model with the norms' weights less 1, so that its 1 + weight is the right one."""
    return load_with(files, offset=1.0)


PROGRAM = Program(
    "x-transformers 2.31",
    "x_transformers",
    load,
    deviates="RMSNorm has no epsilon",
    at=("attn_norm", "ffn_norm"),
    only=("embedded",),
    devices=("cpu", "cuda"),
)
