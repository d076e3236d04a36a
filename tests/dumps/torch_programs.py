"""Torch Llamas of the kinds that people run, for tests: their submodules' names are those of the real ones.

Each is written for here, from nothing but the names and the ways in which they compute: Meta's (a cache
that grows, products written out, complex numbers), llama2.c's (fused attention, the last token's logits),
gpt-fast's (one projection of q, k and v, a static cache), litgpt's (the same, group by group in older
versions) and transformers' (halves turned, attention from a registry).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from llama_ckpt.making.export import export_weights
from llama_ckpt.making.seeded_model import make_seeded

SHAPE: dict[str, int] = {
    "width": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "ffn": 96, "n_layers": 2, "vocab": 320,
}  # fmt: skip
HEADS, KV, SIZE = SHAPE["n_heads"], SHAPE["n_kv_heads"], SHAPE["head_dim"]


def seeded(folder: Path) -> Path:
    """A small model with grouped heads."""
    made: dict[str, Any] = {"type": "F32", "seed": 5, **SHAPE}
    return make_seeded(folder / "m.gguf", **made).path


def weights(model: Path, layout: str) -> dict[str, Tensor]:
    """The model's weights as a layout names and orders them."""
    path = export_weights(model, model.parent / layout / "w.safetensors", layout=layout)[0]
    return load_file(path)


class Norm(nn.Module):
    """RMSNorm in float32."""

    def __init__(self, width: int = SHAPE["width"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).type_as(x) * self.weight


def linear(out: int, into: int = SHAPE["width"]) -> nn.Linear:
    return nn.Linear(into, out, bias=False)


def angles(positions: Tensor) -> Tensor:
    """`[n, SIZE / 2]`, in float32 as nearly everybody has them."""
    return positions[:, None].float() * 10000.0 ** (-torch.arange(0, SIZE, 2).float() / SIZE)


def turn_neighbours(x: Tensor, at: Tensor) -> Tensor:
    """RoPE of `[1, n, heads, SIZE]` by complex numbers."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(at), at)[:, None]).flatten(3).type_as(x)


def turn_halves(x: Tensor, at: Tensor) -> Tensor:
    """RoPE of `[1, heads, n, SIZE]` in Hugging Face's order."""
    cos, sin = (torch.cat((f(at), f(at)), -1).to(x.dtype) for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def hidden_keys(n: int, keys: int) -> Tensor:
    return torch.full((n, keys), -torch.inf).triu(1)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = linear(SHAPE["ffn"]), linear(SHAPE["ffn"])
        self.w2 = linear(SHAPE["width"], SHAPE["ffn"])

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(silu(self.w1(x)) * self.w3(x))


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Gets q `[1, HEADS, n, SIZE]`, k and v `[1, KV, n, SIZE]`, all causal; returns what q has the shape of."""


def expanded(x: Tensor) -> Tensor:
    return x.repeat_interleave(HEADS // KV, 1)


def by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.matmul(q, expanded(k).transpose(2, 3)) / SIZE**0.5
    scores = scores + hidden_keys(q.shape[2], k.shape[2])
    return torch.matmul(torch.softmax(scores.float(), -1).type_as(q), expanded(v))


def by_one_call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, expanded(k), expanded(v), is_causal=True)


class MetaAttention(nn.Module):
    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = linear(HEADS * SIZE), linear(KV * SIZE), linear(KV * SIZE)
        self.wo = linear(SHAPE["width"], HEADS * SIZE)
        self.attend = attend
        self.cache_k, self.cache_v = (torch.zeros(1, 64, KV, SIZE) for _ in range(2))

    def forward(self, x: Tensor, start: int, at: Tensor) -> Tensor:
        n = x.shape[1]
        q = turn_neighbours(self.wq(x).view(1, n, HEADS, SIZE), at)
        k = turn_neighbours(self.wk(x).view(1, n, KV, SIZE), at)
        self.cache_k[:, start : start + n] = k
        self.cache_v[:, start : start + n] = self.wv(x).view(1, n, KV, SIZE)
        k, v = (cache[:, : start + n].to(x.dtype) for cache in (self.cache_k, self.cache_v))
        context = self.attend(*(each.transpose(1, 2) for each in (q, k, v)))
        return self.wo(context.transpose(1, 2).reshape(1, n, -1))


class MetaBlock(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, FeedForward()
        self.attention_norm, self.ffn_norm = Norm(), Norm()

    def forward(self, x: Tensor, *how: Any) -> Tensor:
        h = x + self.attention(self.attention_norm(x), *how)
        return h + self.feed_forward(self.ffn_norm(h))


class MetaLike(nn.Module):
    """As Meta's `Transformer`: tokens and where they begin."""

    def __init__(self, attend: Attend = by_products) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(SHAPE["vocab"], SHAPE["width"])
        self.layers = nn.ModuleList(MetaBlock(MetaAttention(attend)) for _ in range(SHAPE["n_layers"]))
        self.norm, self.output = Norm(), linear(SHAPE["vocab"])

    def forward(self, tokens: Tensor, start_pos: int) -> Tensor:
        h, at = self.tok_embeddings(tokens), angles(torch.arange(start_pos, start_pos + tokens.shape[1]))
        for layer in self.layers:
            h = layer(h, start_pos, at)
        return self.output(self.norm(h)).float()


class Llama2cLike(MetaLike):
    """As llama2.c's `Transformer`: without targets, the last token's logits."""

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:  # type: ignore[override]
        h, at = self.tok_embeddings(tokens), angles(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            h = layer(h, 0, at)
        h = self.norm(h)
        return self.output(h if targets is not None else h[:, [-1], :])


class FastAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wqkv, self.wo = linear((HEADS + 2 * KV) * SIZE), linear(SHAPE["width"], HEADS * SIZE)
        self.keys = nn.Buffer(torch.zeros(1, KV, 16, SIZE), persistent=False)
        self.values = nn.Buffer(torch.zeros(1, KV, 16, SIZE), persistent=False)

    def forward(self, x: Tensor, at: Tensor, input_pos: Tensor) -> Tensor:
        n = x.shape[1]
        parts = self.wqkv(x).split([HEADS * SIZE, KV * SIZE, KV * SIZE], -1)
        q, k, v = (part.view(1, n, -1, SIZE) for part in parts)
        q, k, v = (e.transpose(1, 2) for e in (turn_neighbours(q, at), turn_neighbours(k, at), v))
        self.keys[:, :, input_pos], self.values[:, :, input_pos] = k, v
        seen = torch.ones(16, 16, dtype=torch.bool).tril()[input_pos]
        context = scaled_dot_product_attention(q, expanded(self.keys), expanded(self.values), attn_mask=seen)
        return self.wo(context.transpose(1, 2).reshape(1, n, -1))


class GptFastLike(nn.Module):
    """As gpt-fast's `Transformer`: a static cache of 16 slots."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(SHAPE["vocab"], SHAPE["width"])
        self.layers = nn.ModuleList(MetaBlock(FastAttention()) for _ in range(SHAPE["n_layers"]))
        self.norm, self.output = Norm(), linear(SHAPE["vocab"])

    def forward(self, idx: Tensor, input_pos: Tensor) -> Tensor:
        h, at = self.tok_embeddings(idx), angles(input_pos)
        for layer in self.layers:
            h = layer(h, at, input_pos)
        return self.output(self.norm(h))


ATTENTIONS: dict[str, Attend] = {"eager": by_products, "sdpa": by_one_call}
"""As transformers has them: by name, and anybody may register another."""


class HfAttention(nn.Module):
    def __init__(self, config: Mapping[str, str]) -> None:
        super().__init__()
        self.config = config
        self.q_proj, self.k_proj, self.v_proj = linear(HEADS * SIZE), linear(KV * SIZE), linear(KV * SIZE)
        self.o_proj = linear(SHAPE["width"], HEADS * SIZE)

    def forward(self, x: Tensor, at: Tensor) -> tuple[Tensor, None]:
        shape = (1, x.shape[1], -1, SIZE)
        q, k, v = (p(x).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        context = ATTENTIONS[self.config["attention"]](turn_halves(q, at), turn_halves(k, at), v)
        return self.o_proj(context.transpose(1, 2).reshape(1, x.shape[1], -1)), None


class HfMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = linear(SHAPE["ffn"]), linear(SHAPE["ffn"])
        self.down_proj = linear(SHAPE["width"], SHAPE["ffn"])

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class HfBlock(nn.Module):
    def __init__(self, config: Mapping[str, str]) -> None:
        super().__init__()
        self.self_attn, self.mlp = HfAttention(config), HfMLP()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        h = x + self.self_attn(self.input_layernorm(x), at)[0]
        return h + self.mlp(self.post_attention_layernorm(h))


class HfModel(nn.Module):
    def __init__(self, config: Mapping[str, str]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(SHAPE["vocab"], SHAPE["width"])
        self.layers = nn.ModuleList(HfBlock(config) for _ in range(SHAPE["n_layers"]))
        self.norm = Norm()

    def forward(self, input_ids: Tensor) -> Tensor:
        h, at = self.embed_tokens(input_ids), angles(torch.arange(input_ids.shape[1]))
        for layer in self.layers:
            h = layer(h, at)
        return self.norm(h)


class HfLike(nn.Module):
    """As transformers' `LlamaForCausalLM`: `config["attention"]` names the attention that is called."""

    def __init__(self, attention: str = "eager") -> None:
        super().__init__()
        self.config = {"attention": attention}
        self.model, self.lm_head = HfModel(self.config), linear(SHAPE["vocab"])

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.lm_head(self.model(input_ids))}


class GptAttention(nn.Module):
    def __init__(self, by_group: bool, rotary: int) -> None:
        super().__init__()
        self.by_group, self.rotary = by_group, rotary
        self.proj = linear(SHAPE["width"], HEADS * SIZE)
        setattr(self, "attn" if by_group else "qkv", linear((HEADS + 2 * KV) * SIZE))

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        n = x.shape[1]
        if self.by_group:
            groups = self.attn(x).view(1, n, KV, -1, SIZE)
            parts: Any = groups.split([HEADS // KV, 1, 1], 3)
        else:
            parts = self.qkv(x).split([HEADS * SIZE, KV * SIZE, KV * SIZE], -1)
        q, k, v = (part.reshape(1, n, -1, SIZE).transpose(1, 2) for part in parts)
        q, k = (
            torch.cat(
                (turn_halves(e[..., : self.rotary], at[:, : self.rotary // 2]), e[..., self.rotary :]), -1
            )
            for e in (q, k)
        )
        context = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.proj(context.transpose(1, 2).reshape(1, n, -1))


class GptMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc_1, self.fc_2 = linear(SHAPE["ffn"]), linear(SHAPE["ffn"])
        self.proj = linear(SHAPE["width"], SHAPE["ffn"])

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(silu(self.fc_1(x)) * self.fc_2(x))


class GptBlock(nn.Module):
    def __init__(self, by_group: bool, rotary: int) -> None:
        super().__init__()
        self.attn, self.mlp = GptAttention(by_group, rotary), GptMLP()
        self.norm_1, self.norm_2 = Norm(), Norm()

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        h = x + self.attn(self.norm_1(x), at)
        return h + self.mlp(self.norm_2(h))


class LitgptLike(nn.Module):
    """As litgpt's `GPT`: one projection of q, k and v, in older versions group by group."""

    def __init__(self, by_group: bool = False, rotary: int = SIZE) -> None:
        super().__init__()
        self.rotary = rotary
        blocks = nn.ModuleList(GptBlock(by_group, rotary) for _ in range(SHAPE["n_layers"]))
        embedding = nn.Embedding(SHAPE["vocab"], SHAPE["width"])
        self.transformer = nn.ModuleDict({"wte": embedding, "h": blocks, "ln_f": Norm()})
        self.lm_head = linear(SHAPE["vocab"])

    def forward(self, idx: Tensor) -> Tensor:
        part = torch.arange(0, self.rotary, 2).float() / self.rotary
        at = torch.arange(idx.shape[1])[:, None].float() * 10000.0**-part
        h = self.transformer["wte"](idx)
        for block in self.transformer["h"]:
            h = block(h, at)
        return self.lm_head(self.transformer["ln_f"](h))


GPT_NAMES = {
    "model.embed_tokens": "transformer.wte",
    "model.norm": "transformer.ln_f",
    "model.layers": "transformer.h",
    "self_attn.o_proj": "attn.proj",
    "input_layernorm": "norm_1",
    "post_attention_layernorm": "norm_2",
    "mlp.gate_proj": "mlp.fc_1",
    "mlp.up_proj": "mlp.fc_2",
    "mlp.down_proj": "mlp.proj",
}


def _as_gpt(tensors: dict[str, Tensor], by_group: bool) -> dict[str, Tensor]:
    """Hugging Face's names and matrices as litgpt has them."""
    made = {}
    for name, tensor in tensors.items():
        for old, new in GPT_NAMES.items():
            name = name.replace(old, new)
        made[name] = tensor
    for block in range(SHAPE["n_layers"]):
        three = [made.pop(f"transformer.h.{block}.self_attn.{p}_proj.weight") for p in "qkv"]
        if by_group:
            three = [torch.cat([w.view(KV, -1, w.shape[1]) for w in three], 1).flatten(0, 1)]
        made[f"transformer.h.{block}.attn.{'attn' if by_group else 'qkv'}.weight"] = torch.cat(three)
    return made


def loaded(module: nn.Module, model: Path) -> Any:
    """A program with the model's weights, in the layout that it wants."""
    tensors = weights(model, "hf" if isinstance(module, HfLike | LitgptLike) else "meta")
    if isinstance(module, LitgptLike):
        tensors = _as_gpt(tensors, module.transformer["h"][0].attn.by_group)
    if isinstance(module, GptFastLike):
        for name in [name for name in tensors if name.endswith("attention.wq.weight")]:
            three = [tensors.pop(name.replace("wq", w)) for w in ("wq", "wk", "wv")]
            tensors[name.replace("wq", "wqkv")] = torch.cat(three)
    module.load_state_dict(tensors)
    return module.eval()
