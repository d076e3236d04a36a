"""A Llama that recites: after each token of a script it gives the next one, whatever stands before.

It is a real one, computed by the real layers: the embedding of the script's token number i is the i-th
unit vector, the one block adds nothing, and the head has a row for the token after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from llama_ckpt.model import Model
from llama_ckpt.weights.records import BlockWeights, ModelWeights

__all__ = ["reciting"]


def reciting(model: Model, script: Sequence[int]) -> Model:
    """A model with the vocabulary of `model` that recites `script`, whose tokens all differ."""
    assert len(set(script)) == len(script)
    width = len(script)
    token_embd = torch.zeros(model.config.vocab_size, width)
    output = torch.zeros(model.config.vocab_size, width)
    for i, (token, following) in enumerate(zip(script, [*script[1:], script[0]], strict=True)):
        token_embd[token, i] = 1.0
        output[following, i] = 8.0
    block = BlockWeights(
        attn_norm=torch.ones(width),
        wq=torch.zeros(2, width),
        wk=torch.zeros(2, width),
        wv=torch.zeros(2, width),
        wo=torch.zeros(width, 2),
        ffn_norm=torch.ones(width),
        w_gate=torch.zeros(2, width),
        w_up=torch.zeros(2, width),
        w_down=torch.zeros(width, 2),
    )
    shape = {"n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 2, "width": width, "ffn": 2}
    config = dataclasses.replace(model.config, **shape)
    weights = ModelWeights(token_embd, (block,), torch.ones(width), output)
    return dataclasses.replace(model, config=config, weights=weights)
