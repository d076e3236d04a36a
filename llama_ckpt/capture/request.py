"""What to record: the requests that the recorder's process is started with, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from llama_ckpt.capture.plan import Plan, plan_from_json, plan_to_json

__all__ = ["CACHE_TYPES", "Request", "read_requests", "write_requests"]

CACHE_TYPES: Final = {"f32": 0, "f16": 1, "bf16": 30}
"""What llama.cpp may cache keys and values in, and ggml's number of it."""


@dataclass(frozen=True)
class Request:
    """One recording.

    Attributes:
        model: path of the GGUF file.
        prompt: text, tokenized by llama.cpp with the special tokens that the file asks for, or None.
        token_ids: the tokens where there is no prompt; empty otherwise.
        positions_from: position of the first token; the cache is empty before it.
        max_tokens: length of the greedy continuation.
        forced: llama.cpp first continues the tokens greedily by so many, and what is recorded is one pass
            over the tokens and these together.
        blocks: the blocks to record in full, or None for all.
        n_threads: llama.cpp's threads.
        n_gpu_layers: blocks on the GPU; more than the model has puts everything there.
        cache: what keys and values are cached in, a key of CACHE_TYPES.
        flash_attention: whether attention is one fused kernel, which shows no scores and no probabilities.
        biases: fields of the biases that blocks have: what is named is then the sum, not the product.
        unbiased: blocks that lack one which others have, and its field.
        fused_qkv: one tensor holds Q, K and V, and llama.cpp names the product of all three alone.
        qkv_widths: the widths of Q, and of K or V.
        experts: how many experts compute a token; 0 of a dense model.
        repacked: whether weights are laid out anew for the machine, as llama.cpp does by itself.
        plan: the calls of a run of several; empty for one pass over the prompt.
        points: of a run, those that are kept.
    """

    model: str
    prompt: str | None = None
    token_ids: tuple[int, ...] = ()
    positions_from: int = 0
    max_tokens: int = 0
    forced: int = 0
    blocks: tuple[int, ...] | None = None
    n_threads: int = 1
    n_gpu_layers: int = 0
    cache: str = "f32"
    flash_attention: bool = False
    repacked: bool = False
    biases: tuple[str, ...] = ()
    unbiased: tuple[tuple[int, str], ...] = ()
    fused_qkv: bool = False
    qkv_widths: tuple[int, int] = (0, 0)
    experts: int = 0
    plan: Plan = ()
    points: tuple[str, ...] = ()


def write_requests(requests: Sequence[Request], path: Path) -> None:
    """Write requests for one model as JSON."""
    plain = [asdict(request) | {"plan": plan_to_json(request.plan)} for request in requests]
    path.write_text(json.dumps(plain), encoding="utf-8")


def read_requests(path: Path) -> list[Request]:
    """Read the requests that `write_requests` wrote."""
    return [_request(fields) for fields in json.loads(path.read_text(encoding="utf-8"))]


def _request(fields: dict[str, Any]) -> Request:
    blocks, token_ids = fields.pop("blocks"), tuple(fields.pop("token_ids"))
    fields |= {name: tuple(fields[name]) for name in ("biases", "qkv_widths", "points")}
    fields["plan"] = plan_from_json(fields["plan"])
    fields["unbiased"] = tuple((block, bias) for block, bias in fields["unbiased"])
    return Request(**fields, token_ids=token_ids, blocks=None if blocks is None else tuple(blocks))
