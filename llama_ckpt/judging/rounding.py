"""How much of each element a correct program may lose to rounding: the theory that limits stand on.

For every step of a Llama the standard deviation of the rounding error that a program of a precision may
have, element by element, from the values that it is computed from. The model is that of probabilistic
rounding analysis (Higham and Mary 2019, SIAM J. Sci. Comput. 41; Ipsen and Zhou 2019, arXiv 1906.10731):
roundings are independent, at most u of what they round, and add up as a random walk does.

    a sum of K products    u sqrt(K) times what its partial sums are: from the norm of the products, and from
                           the partial sums themselves, since numbers that have a mean do not cancel
    a rounded result       u times the result
    a step after another   the first step's deviation times the second's slope

u is 2^-24 in float32. In float16 and bfloat16 (u 2^-11, 2^-8) products are summed in float32, and rounded
are the weights, every result, and, as frameworks do either, scores, probabilities and what an activation
or a norm makes on the way. `limits` multiplies by the few constants that were measured.

RoPE's angles are apart: many programs take position times a float32 frequency, others multiply frequencies
one after the other. Both are right, of limited accuracy, and lose a known most, not a random walk.

numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.judging.rounding_steps import (
    PRECISIONS,
    Precision,
    Spread,
    angle_error,
    gated,
    norm_deviation,
    probabilities,
    product_deviation,
    product_terms_of,
    sum_deviation,
    turned_spread,
)
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import BLOCK_INPUT, Case, split_name

__all__ = [
    "PRECISIONS",
    "Precision",
    "Spread",
    "angle_error",
    "case_spreads",
    "product_spread",
    "spreads_of",
    "sum_spread",
]

Array: TypeAlias = NDArray[np.float64]


def case_spreads(
    function: str,
    arguments: Mapping[str, Any],
    values: Mapping[str, ArrayLike],
    dtype: str,
    *,
    carried: Mapping[str, ArrayLike] | None = None,
    exact_angles: bool = False,
) -> dict[str, Spread]:
    """The spread of everything that a function of the oracle returns and shows.

    Args:
        function: its name, as in `oracle.llama`.
        arguments: as it was called.
        values: what it showed, by its taps' names, and returned, by the points' neutral names. What it
            computes on the way but is not here is computed again.
        dtype: the program's, a key of PRECISIONS.
        carried: the deviation of an argument that the program rounded on its way here, by its name.
        exact_angles: RoPE's angles have to be exact.

    Returns:
        By neutral name of the point; empty for a function that rounds in no way known here.
    """
    maker = _MAKERS.get(function)
    if maker is None:
        return {}
    came = {name: np.asarray(spread, np.float64) for name, spread in (carried or {}).items()}
    with np.errstate(all="ignore"):  # an input that overflows has no spread, and is told of elsewhere
        return maker(_Call(arguments, values, dtype, came, exact_angles))


def spreads_of(
    case: Case,
    answers: Mapping[str, ArrayLike],
    dtype: str,
    *,
    carried: Mapping[str, ArrayLike] | None = None,
    exact_angles: bool = False,
) -> dict[str, Spread]:
    """`case_spreads` of a case and the oracle's answers to it, by full names."""
    if dtype not in PRECISIONS:
        return {}
    by_point = {split_name(name)[1]: name for name in (*case.taps.values(), *case.returns)}
    values = {point: answers[name] for point, name in by_point.items() if name in answers}
    made = case_spreads(
        case.function, case.arguments, values, dtype, carried=carried, exact_angles=exact_angles
    )
    return {by_point[point]: spread for point, spread in made.items() if point in by_point}


def sum_spread(a: ArrayLike, b: ArrayLike, dtype: str, *carried: ArrayLike | None) -> Spread:
    """The spread of a + b, as at a residual.

    The terms count as well as the sum: what was recorded of them may be rounded where the program had more.
    """
    p, first, second = PRECISIONS[dtype], np.asarray(a, np.float64), np.asarray(b, np.float64)
    squares = (p.u + p.half) ** 2 * (first**2 + second**2 + (first + second) ** 2)
    squares += sum(np.asarray(one, np.float64) ** 2 for one in carried if one is not None)
    return Spread(np.sqrt(squares + p.least**2))


def product_spread(x: ArrayLike, w: Any, y: ArrayLike, dtype: str) -> Spread:
    """The spread of a product y = x w^T, `[n, out]`, of an x that is exact."""
    rows, made = np.asarray(x, np.float64), np.asarray(y, np.float64)
    with np.errstate(all="ignore"):
        return Spread(product_deviation(rows, w, made, PRECISIONS[dtype]))


@dataclass(frozen=True)
class _Call:
    """A call's arguments and answers, the precision, and what deviates already when it comes in."""

    arguments: Mapping[str, Any]
    answers: Mapping[str, ArrayLike]
    dtype: str
    carried: Mapping[str, Array]
    exact_angles: bool

    @property
    def p(self) -> Precision:
        """The precision."""
        return PRECISIONS[self.dtype]

    def __getitem__(self, name: str) -> Array:
        return np.asarray(self.answers[name] if name in self.answers else self.arguments[name], np.float64)

    def argument(self, name: str) -> Array:
        """An argument that has the name of an answer."""
        return np.asarray(self.arguments[name], np.float64)


def _rms_norm(c: _Call) -> dict[str, Spread]:
    name = next(iter(c.answers))
    x = c.carried.get("x")
    return {name: Spread(norm_deviation(c["x"], c["weight"], c[name], c.arguments["eps"], c.p, x))}


def _qkv(c: _Call) -> dict[str, Spread]:
    weights = {"q": "wq", "k": "wk", "v": "wv"}
    x = c.carried.get("x")
    return {y: Spread(product_deviation(c["x"], c.arguments[w], c[y], c.p, x)) for y, w in weights.items()}


def _rope(c: _Call) -> dict[str, Spread]:
    at = c.arguments["positions"], c.arguments["frequencies"]
    return {
        f"{name}_rope": turned_spread(c.argument(name), *at, c.p, c.exact_angles, c.carried.get(name))
        for name in ("q", "k")
    }


def _attention(c: _Call) -> dict[str, Spread]:
    """Head by head, so that memory holds one head's scores."""
    q, k, values = (c.argument(name) for name in ("q", "k", "v"))
    n, n_heads, head_dim = q.shape
    group, visible = n_heads // k.shape[1], _visible(c.arguments)
    # Two digits count, and these are the largest arrays that there are.
    keep = {name: np.empty((n, n_heads, len(k)), np.float32) for name in ("attn_scores", "attn_probs")}
    context, s_context = np.empty_like(q), np.empty_like(q)
    for head in range(n_heads):
        key = head // group
        came = {name: spread[:, head if name == "q" else key] for name, spread in c.carried.items()}
        read = q[:, head], k[:, key], values[:, key]
        made = _one_head(*read, visible, head_dim**-0.5, c.p, came)
        keep["attn_scores"][:, head], keep["attn_probs"][:, head] = made[:2]
        context[:, head], s_context[:, head] = made[2:]
    flat, spread = context.reshape(n, -1), s_context.reshape(n, -1)
    out = product_deviation(flat, c.arguments["wo"], c["attn_out"], c.p, spread)
    spreads: dict[str, Any] = {**keep, "attn_context": spread, "attn_out": out}
    return {name: Spread(array) for name, array in spreads.items()}


def _one_head(
    q: Array, k: Array, v: Array, visible: Any, scale: float, p: Precision, carried: Mapping[str, Array]
) -> tuple[Array, Array, Array, Array]:
    """Deviations of scores and probabilities, the context, and its deviation."""
    scores = q @ k.T
    s_scores = sum_deviation(product_terms_of(q, k), q.shape[1], scores, p)
    if "q" in carried:
        s_scores = np.sqrt(s_scores**2 + (carried["q"] ** 2) @ (k * k).T)
    if "k" in carried:
        s_scores = np.sqrt(s_scores**2 + (q * q) @ (carried["k"] ** 2).T)
    probs, s_probs, shared = probabilities(scores, s_scores, visible, scale, p)
    context = probs @ v
    spread = np.sqrt(
        sum_deviation(product_terms_of(probs, v.T), len(k), context, p) ** 2
        + (s_probs**2) @ (v * v)
        + (shared * context) ** 2
    )
    if "v" in carried:
        spread = np.sqrt(spread**2 + (probs * probs) @ (carried["v"] ** 2))
    return s_scores, s_probs, context, spread


def _visible(arguments: Mapping[str, Any]) -> NDArray[np.bool_]:
    """`[query, key]`, as the oracle has it."""
    position = np.asarray(arguments["positions"], np.int64)
    seen: NDArray[np.bool_] = position[None, :] <= position[:, None]
    if arguments.get("sequence_ids") is not None:
        sequence = np.asarray(arguments["sequence_ids"])
        seen = seen & (sequence[None, :] == sequence[:, None])
    return seen


def _swiglu(c: _Call) -> dict[str, Spread]:
    x, w_gate, w_up, w_down = (c.arguments[name] for name in ("x", "w_gate", "w_up", "w_down"))
    x, came = np.asarray(x, np.float64), c.carried.get("x")
    gate = c["ffn_gate"] if "ffn_gate" in c.answers else np.matmul(x, w_gate.T)
    up = c["ffn_up"] if "ffn_up" in c.answers else np.matmul(x, w_up.T)
    s_gate, s_up = product_deviation(x, w_gate, gate, c.p, came), product_deviation(x, w_up, up, c.p, came)
    product, spread = gated(gate, up, s_gate, s_up, c.p)
    out = product_deviation(product, w_down, c["ffn_out"], c.p, spread)
    spreads = {"ffn_gate": s_gate, "ffn_up": s_up, "ffn_swiglu": spread, "ffn_out": out}
    return {name: Spread(array) for name, array in spreads.items()}


def _block(c: _Call) -> dict[str, Spread]:
    """Each step's own, and what comes from the steps before."""
    weights, config, positions = (c.arguments[name] for name in ("weights", "config", "positions"))
    steps: dict[str, Any] = dict(c.answers)
    if "ffn_out" not in steps:  # it was not asked to show its steps
        steps["out"] = oracle.block(**c.arguments, tap=steps.__setitem__)
    found: dict[str, Spread] = {}

    def step(
        maker: _Maker, arguments: Mapping[str, Any], made: tuple[str, ...], reads: Mapping[str, str]
    ) -> None:
        given = {**arguments, **{name: steps[point] for name, point in reads.items() if point in steps}}
        came = {name: found[point].whole for name, point in reads.items() if point in found}
        if "x" in c.carried and BLOCK_INPUT in reads.values():
            came["x"] = c.carried["x"]
        answers = {point: steps[point] for point in made}
        found.update(maker(_Call(given, answers, c.dtype, came, c.exact_angles)))

    at = {"positions": positions, "sequence_ids": c.arguments.get("sequence_ids")}
    eps, parts = {"eps": config.rms_norm_eps}, {f: getattr(weights, f) for f in MATRICES}
    norm = {"x": c.arguments["x"], "weight": weights.attn_norm, **eps}
    step(_rms_norm, norm, ("attn_norm",), {"x": BLOCK_INPUT})
    step(_qkv, parts, ("q", "k", "v"), {"x": "attn_norm"})
    turn = {**at, "frequencies": oracle.rope_frequencies(config)}
    step(_rope, turn, ("q_rope", "k_rope"), {"q": "q", "k": "k"})
    step(_attention, {**at, **parts}, ("attn_out",), {"q": "q_rope", "k": "k_rope", "v": "v"})

    def add(made: str, a: Any, b: str, carried: ArrayLike | None) -> None:
        found[made] = sum_spread(a, steps[b], c.dtype, carried, found[b].whole)

    add("ffn_inp", c.arguments["x"], "attn_out", c.carried.get("x"))
    step(_rms_norm, {"weight": weights.ffn_norm, **eps}, ("ffn_norm",), {"x": "ffn_inp"})
    step(_swiglu, parts, ("ffn_gate", "ffn_up", "ffn_out"), {"x": "ffn_norm"})
    add("out", steps["ffn_inp"], "ffn_out", found["ffn_inp"].whole)
    return {name: replace(spread, composed=True) for name, spread in found.items()}


MATRICES = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")


def _output_logits(c: _Call) -> dict[str, Spread]:
    weights, config, x = c.arguments["weights"], c.arguments["config"], c["x"]
    eps, came = config.rms_norm_eps, c.carried.get("x")
    shown = "output_norm" in c.answers
    normed = c["output_norm"] if shown else oracle.rms_norm(x, weights.output_norm, eps=eps)
    norm = norm_deviation(x, weights.output_norm, normed, eps, c.p, came)
    logits = product_deviation(normed, weights.output, c["logits"], c.p, norm)
    return {"output_norm": Spread(norm), "logits": Spread(logits)}


_Maker: TypeAlias = Callable[[_Call], dict[str, Spread]]

_MAKERS: Mapping[str, _Maker] = {
    "rms_norm": _rms_norm,
    "qkv": _qkv,
    "rope": _rope,
    "attention": _attention,
    "swiglu": _swiglu,
    "block": _block,
    "output_logits": _output_logits,
}
