"""Wrong layers written in torch, on their own: the diagnosis names what was done, not how we would do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from checkpoints.c03_attention import attention
from llama_ckpt.diagnose.diagnosis import diagnose_point
from llama_ckpt.diagnose.patched_oracle import RIGHT
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.judging.verdict import causal_mask
from llama_ckpt.points import POINTS, Case, split_name
from tests.comparing.prompts import bench


def tensors(arguments: Any) -> dict[str, Any]:
    """Float32, but for integers and RoPE's frequencies."""
    made = {}
    for name, value in arguments.items():
        array = torch.as_tensor(np.array(value)) if isinstance(value, np.ndarray) else value
        narrow = isinstance(array, Tensor) and array.is_floating_point() and name != "frequencies"
        made[name] = array.float() if narrow else array
    return made


def hugging_face_rope(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> Any:
    angles = torch.outer(positions.double(), frequencies)
    both = torch.cat((angles, angles), dim=-1)[:, None]
    cos, sin = both.cos().float(), both.sin().float()

    def rotate_half(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((-second, first), dim=-1)

    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def gemma_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], None, eps) * (1 + weight)


def layer_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, None, eps)


def other_eps(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, 1e-6)


def unmasked(q: Tensor, k: Tensor, v: Tensor, wo: Tensor, positions: Tensor) -> Tensor:
    context = F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)))
    return context.transpose(0, 1).flatten(1) @ wo.T


def unscaled(q: Tensor, k: Tensor, v: Tensor, wo: Tensor, positions: Tensor) -> Tensor:
    heads = (x.transpose(0, 1) for x in (q, k, v))
    context = F.scaled_dot_product_attention(*heads, is_causal=True, scale=1.0)
    return context.transpose(0, 1).flatten(1) @ wo.T


def heads_flattened_early(q: Tensor, k: Tensor, v: Tensor, wo: Tensor, positions: Tensor) -> Tensor:
    context = F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)), is_causal=True)
    return context.reshape(len(q), -1) @ wo.T


def gelu(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    return (F.gelu(x @ w_gate.T) * (x @ w_up.T)) @ w_down.T


def swapped(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    return (x @ w_gate.T * F.silu(x @ w_up.T)) @ w_down.T


def square_query(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, n_heads: int, n_kv_heads: int) -> Any:
    return tuple((x @ w).reshape(len(x), n_heads, -1) for w in (wq, wk.T, wv.T))


def late_temperature(
    logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    scaled = logits * temperature
    return F.softmax(scaled, dim=-1)


WRONG: list[tuple[str, int, Callable[..., Any], set[str]]] = [
    ("1B", 0, hugging_face_rope, {"rope-half-split"}),
    ("1", 0, gemma_norm, {"norm-weight-plus-one"}),
    ("1", 0, layer_norm, {"norm-mean-subtracted"}),
    ("1", 0, other_eps, {"norm-eps-other"}),
    ("3", 0, unmasked, {"attention-mask-missing"}),
    ("3", 0, unscaled, {"attention-scale-missing"}),
    ("3", 0, heads_flattened_early, {"attention-heads-not-moved"}),
    ("6", 0, gelu, {"ffn-gelu-exact"}),
    ("6", 0, swapped, {"ffn-gate-up-swapped", "ffn-activation-of-up"}),
    ("2", 0, square_query, {"qkv-wq-transposed"}),
]


@pytest.mark.parametrize(("id", "number", "layer", "names"), WRONG, ids=[row[2].__name__ for row in WRONG])
def test_a_wrong_layer_is_named(id: str, number: int, layer: Callable[..., Any], names: set[str]) -> None:
    case = bench().cases[id][number]
    returned = layer(**tensors(case.arguments))
    first = returned[0] if isinstance(returned, tuple) else returned
    point = case.returns[0]
    limit = limit_for(point, "float32", "own")
    found = diagnose_point(point, first.numpy(), RIGHT.answers(case)[point], limit=limit, case=case)
    group = next(iter(found.indistinguishable), (found.named[0].name,))
    assert set(group) == names
    assert found.named[0].explained


def test_the_multiplied_temperature_is_named() -> None:
    case = Case(
        "softmax", {"logits": np.array(bench().given["last_logits"]), "temperature": 1.5}, ("sampling.0",)
    )
    x = late_temperature(**tensors(case.arguments))
    o = RIGHT.answers(case)["sampling.0"]
    found = diagnose_point(
        "sampling.0", x.numpy(), o, limit=limit_for("sampling", "float32", "own"), case=case
    )
    assert found.named[0].name == "softmax-temperature-multiplied"


def test_a_right_layer_is_not_diagnosed() -> None:
    case = bench().cases["3"][0]
    seen: dict[str, Tensor] = {}
    seen["attn_out"] = attention(**tensors(case.arguments), tap=seen.__setitem__)
    exact = RIGHT.answers(case)
    for name, o in exact.items():
        point = split_name(name)[1]
        mask = causal_mask(case.arguments["positions"]) if POINTS[point].causal else None
        limit = limit_for(name, "float32", "own")
        found = diagnose_point(name, seen[point].numpy(), o, limit=limit, case=case, mask=mask)
        assert found.smallest_limit is not None and found.smallest_limit.factor < 1
        assert not found.named and not found.structure
