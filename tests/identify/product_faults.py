"""Products with a fault, as the identifiers are asked about them: on seeded models of three shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.identify import Identification, identify
from llama_ckpt.identify.record import Around, Asked
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.mutants.models import SHAPES, GivenPrompt, seeded_given
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import Case

__all__ = ["SHAPES", "Array", "BLOCK", "asked_of", "call_of", "given", "said_of"]

Array = NDArray[Any]

BLOCK = 2
"""Where faults are planted."""


@cache
def given(shape: str, seed: int) -> GivenPrompt:
    """A model and a prompt."""
    return seeded_given(shape, seed)


def call_of(function: str, on: GivenPrompt, rows: int | None = None) -> Case:
    """The call of a function of block BLOCK, on the first rows of the prompt."""
    w, p, n = on.weights.blocks[BLOCK], f"blk.{BLOCK}.", rows

    def x(point: str) -> Array:
        return on[p + point][:n]

    if function == "qkv":
        arguments = {"x": x("attn_norm"), "wq": w.wq, "wk": w.wk, "wv": w.wv}
        arguments |= {"n_heads": on.config.n_heads, "n_kv_heads": on.config.n_kv_heads}
        return Case("qkv", arguments, (p + "q", p + "k", p + "v"))
    if function == "attention":
        arguments = {"q": x("q_rope"), "k": x("k_rope"), "v": x("v"), "wo": w.wo}
        arguments["positions"] = on.positions[:n]
        taps = {name: p + name for name in ("attn_scores", "attn_probs", "attn_context")}
        return Case("attention", arguments, (p + "attn_out",), taps)
    if function == "swiglu":
        arguments = {"x": x("ffn_norm"), "w_gate": w.w_gate, "w_up": w.w_up, "w_down": w.w_down}
        taps = {name: p + name for name in ("ffn_gate", "ffn_up", "ffn_swiglu")}
        return Case("swiglu", arguments, (p + "ffn_out",), taps)
    raise ValueError(function)


def asked_of(
    case: Case, on: GivenPrompt, wrong: Mapping[str, Callable[[Array], Array] | Array], dtype: str = "float32"
) -> Asked:
    """What is asked where tensors of a call are wrong.

    Args:
        wrong: by neutral name, their tensor, or what makes it of the right one; what the call computes from
            it is computed from it.
    """
    seen = case.run(getattr(oracle, case.function))
    theirs = dict(seen)
    names = {name.rpartition(".")[2]: name for name in seen}
    order = [
        p for p in ("attn_context", "attn_out", "ffn_gate", "ffn_up", "ffn_swiglu", "ffn_out") if p in names
    ]
    order = ["q", "k", "v"] if case.function == "qkv" else order
    for point in order:
        full = names[point]
        if point in wrong:
            change = wrong[point]
            theirs[full] = change(theirs[full]) if callable(change) else np.asarray(change)
        elif point == "ffn_swiglu":
            theirs[full] = oracle._gated(theirs[names["ffn_gate"]], theirs[names["ffn_up"]])
        if point == "ffn_swiglu" and "ffn_out" in names:
            theirs[names["ffn_out"]] = theirs[full] @ np.asarray(case.arguments["w_down"]).T
        if point == "attn_context":
            theirs[names["attn_out"]] = theirs[full] @ np.asarray(case.arguments["wo"]).T
    evidence = [
        Evidence(name, theirs[name].astype(np.float32), seen[name], limit_for(name, dtype, "own"), case)
        for name in seen
        if not name.endswith(("scores", "probs"))
    ]
    first = next(i for i, one in enumerate(evidence) if one.name == names[next(iter(wrong))])
    ordered = [evidence[first], *evidence[:first], *evidence[first + 1 :]]
    around = Around(on.config, on.weights, {}, tuple(on.token_id_list))
    return Asked(ordered, around)


def said_of(asked: Asked) -> Identification:
    """What is identified."""
    return identify(asked)
