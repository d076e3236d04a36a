"""tinygrad's own Llama (`tinygrad.llm`), which reads GGUF, on its CPU back end that needs no compiler.

Its blocks are one fused kernel after another where nothing is watched; a watched tensor is computed when
it is shown. Q and K lie in half-split order: it reorders GGUF's rows when it loads them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from tools.other_llamas.job import ModelFiles, Program, Runner
from tools.other_llamas.watching import watched

__all__ = ["PROGRAM", "choose_back_end", "load"]

OUTPUTS = {
    "attn_norm": "attn_norm",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "attn_out",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "ffn_gate",
    "ffn_up": "ffn_up",
    "ffn_down": "ffn_out",
}
"""A block's parts, by what they hand on."""

INPUTS = {"attn_output": "attn_context", "ffn_norm": "ffn_inp", "ffn_down": "ffn_swiglu"}
"""The same, by what goes in."""


def choose_back_end() -> None:
    """Said in the environment, which tinygrad reads when it is imported."""
    # Compiled kernels are kept in the program's own environment, where another version does not find them.
    os.environ |= {"DEV": "CPU:X86", "HALF": "0", "CACHEDB": f"{sys.prefix}/cache.db"}


def load(files: ModelFiles, dtype: str) -> Runner:
    """The model from its GGUF file, with float32 weights."""
    choose_back_end()
    from tinygrad.llm import model as llm

    # Its blocks are traced as functions, inside which no tensor can be looked at.
    llm.function = lambda **options: lambda plain: plain
    model, _ = llm.Transformer.from_gguf(files.gguf, max_context=1024)
    config = files.config

    def run(token_ids: Sequence[int]) -> Mapping[str, Any]:
        seen: dict[str, Any] = {}

        def keep(point: str, tensor: Any) -> None:
            array = tensor.realize().numpy()[0]
            heads = point.endswith((".q", ".k", ".v"))
            seen[point] = array.reshape(len(array), -1, config["head_dim"]) if heads else array

        with ExitStack() as stack:
            _watch(stack, llm, model, keep)
            _forward(model, token_ids, keep)
        for block in model.blk:
            del block.cache_kv  # the next prompt begins with an empty cache
        return seen

    return run


def _forward(model: Any, token_ids: Sequence[int], keep: Callable[[str, Any], None]) -> None:
    """Its own forward pass, which keeps the last token's logits alone and draws from them: without that."""
    from tinygrad import Tensor

    x = model.token_embd(Tensor([list(token_ids)])).float()
    keep("embd", x)
    for number, block in enumerate(model.blk):
        x = block(x, 0)
        keep(f"blk.{number}.out", x)
    x = model.output_norm(x)
    keep("output_norm", x)
    keep("logits", model.output(x))


def _watch(stack: ExitStack, llm: Any, model: Any, keep: Callable[[str, Any], None]) -> None:
    """Look at the parts of blocks, at RoPE and at the softmax."""
    from tinygrad import Tensor

    parts = {
        id(part): (number, name)
        for number, block in enumerate(model.blk)
        for name, part in vars(block).items()
    }
    now = {"block": 0, "turned": "k"}

    def part(module: Any, args: tuple[Any, ...], returned: Any) -> None:
        number, name = parts.get(id(module), (0, ""))
        if name in INPUTS:
            keep(f"blk.{number}.{INPUTS[name]}", args[0])
        if name in OUTPUTS:
            now["block"] = number
            keep(f"blk.{number}.{OUTPUTS[name]}", returned)

    def softmax(scores: Any, args: tuple[Any, ...], returned: Any) -> None:
        keep(f"blk.{now['block']}.attn_probs", returned.transpose(1, 2))

    kinds = {type(part) for block in model.blk for name, part in vars(block).items() if name in OUTPUTS}
    stack.enter_context(watched(kinds, part))
    stack.enter_context(watched([Tensor], softmax, "softmax"))
    rope = llm.apply_rope
    stack.callback(setattr, llm, "apply_rope", rope)

    def turn(x: Any, table: Any) -> Any:
        returned = rope(x, table)
        now["turned"] = "k" if now["turned"] == "q" else "q"  # queries first, then keys
        keep(f"blk.{now['block']}.{now['turned']}_rope", returned.transpose(1, 2))
        return returned

    llm.apply_rope = turn


PROGRAM = Program("tinygrad 0.13, tinygrad.llm", "tinygrad", load)
