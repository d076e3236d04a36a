"""What is known of transformers' `LlamaForCausalLM`, so that it can be recorded whole.

Hooks see what submodules hand on; Q and K after RoPE, scores and probabilities are seen by an attention
function that is registered with transformers for the time of the recording: it calls their own eager
attention and looks on. Their rotary pairs are (i, i + head_dim/2), and their weights lie for that; GGUF's
are neighbours. The recording recognizes which by what RoPE did to the tensors, and puts it into GGUF's
order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from llama_ckpt.dumps.hooks import Recorder, hooks
from llama_ckpt.dumps.names_map import interleave_halves, pair_kind
from llama_ckpt.points import block_point, split_name

__all__ = ["MAPPING", "is_transformers_llama", "recording"]

NAME = "llama_ckpt_recorded"

MAPPING = {
    "model.embed_tokens": "embd",
    "model.layers.{N}.input_layernorm": "blk.{N}.attn_norm",
    "model.layers.{N}.self_attn.q_proj": "blk.{N}.q",
    "model.layers.{N}.self_attn.k_proj": "blk.{N}.k",
    "model.layers.{N}.self_attn.v_proj": "blk.{N}.v",
    "model.layers.{N}.self_attn.o_proj:input": "blk.{N}.attn_context",
    "model.layers.{N}.self_attn.o_proj": "blk.{N}.attn_out",
    "model.layers.{N}.post_attention_layernorm:input": "blk.{N}.ffn_inp",
    "model.layers.{N}.post_attention_layernorm": "blk.{N}.ffn_norm",
    "model.layers.{N}.mlp.gate_proj": "blk.{N}.ffn_gate",
    "model.layers.{N}.mlp.up_proj": "blk.{N}.ffn_up",
    "model.layers.{N}.mlp.down_proj:input": "blk.{N}.ffn_swiglu",
    "model.layers.{N}.mlp.down_proj": "blk.{N}.ffn_out",
    "model.layers.{N}": "blk.{N}.out",
    "model.norm": "output_norm",
    "lm_head": "logits",
}
"""What hooks see, by the path of the submodule."""

HEADS = ("q", "k", "v")
TURNED = ("q", "k", "q_rope", "k_rope")

Look: TypeAlias = Callable[[int, Tensor, Tensor, Tensor, Tensor], None]
"""Gets the block's number, q and k after RoPE, scores, probabilities."""

_LOOKING: dict[int, Look] = {}
"""By the id of an attention module, who looks on; transformers keeps registered functions for ever."""


def is_transformers_llama(module: nn.Module) -> bool:
    """Whether it is transformers' own `LlamaForCausalLM`, or derived from it."""
    return any(
        kind.__name__ == "LlamaForCausalLM" and kind.__module__.partition(".")[0] == "transformers"
        for kind in type(module).__mro__
    )


@contextmanager
def recording(
    module: nn.Module, recorder: Recorder
) -> Iterator[Callable[[tuple[int, ...] | None], list[str]]]:
    """While it lasts, a run of the model is recorded; what it yields puts the tensors into GGUF's order.

    It yields a function: given the positions it returns sentences on what was recognized.
    """
    config: Any = module.config
    _register()

    def look(block: int, q: Tensor, k: Tensor, scores: Tensor, probs: Tensor) -> None:
        # [1, heads, n, …] as transformers has it, to [1, n, heads, …]
        for point, tensor in (("q_rope", q), ("k_rope", k), ("attn_scores", scores), ("attn_probs", probs)):
            recorder.keep(block_point(block, point), tensor.transpose(1, 2))

    before = config._attn_implementation
    attentions = [m for m in module.modules() if hasattr(m, "layer_idx") and hasattr(m, "o_proj")]
    _LOOKING.update({id(attention): look for attention in attentions})
    try:
        module.set_attn_implementation(NAME)  # type: ignore[operator]
        with hooks(module, MAPPING, recorder):
            yield lambda positions: _settle(recorder, config, positions)
    finally:
        for attention in attentions:
            _LOOKING.pop(id(attention), None)
        module.set_attn_implementation(before)  # type: ignore[operator]


def _register() -> None:
    """Make the attention function known to transformers, with the mask that eager attention takes."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, eager_mask)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' own eager attention, looked at."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    out, probs = eager_attention_forward(module, query, key, value, attention_mask, scaling, **options)
    look = _LOOKING.get(id(module))
    if look is not None:
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        look(module.layer_idx, query, key, torch.matmul(query, keys.transpose(2, 3)), probs)
    return out, probs


def _settle(recorder: Recorder, config: Any, positions: tuple[int, ...] | None) -> list[str]:
    """Give q, k and v their heads, and features their order; say what was recognized."""
    tensors = recorder.tensors
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for name, array in tensors.items():
        if split_name(name)[1] in HEADS:
            tensors[name] = array.reshape(len(array), -1, head_dim)
    notes = ["recorded by hooks; q_rope, k_rope, scores and probabilities by a registered attention function"]
    q, turned = tensors.get("blk.0.q"), tensors.get("blk.0.q_rope")
    if q is None or turned is None:
        return notes
    kind = pair_kind(q, turned, positions or range(len(q)))
    if kind == "neighbours":
        return [*notes, "RoPE turns neighbours (2i, 2i+1), as in GGUF: left as it is"]
    for name, array in tensors.items():
        if split_name(name)[1] in TURNED:
            tensors[name] = interleave_halves(array)
    seen = "recognized" if kind == "half-split" else "taken for granted, since nothing was turned"
    return [*notes, f"RoPE turns pairs (i, i + head_dim/2), {seen}: q and k put into GGUF's order (2i, 2i+1)"]
