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
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_ckpt.judging.attention_spreads import AttentionSpreads, ContextSums
from llama_ckpt.judging.equal_numbers import scores_together
from llama_ckpt.judging.rounding_steps import PRECISIONS, Precision, angle_error, gated
from llama_ckpt.judging.spread import Spread
from llama_ckpt.judging.step_spreads import (
    biased_spread,
    gated_spread,
    mixed_spread,
    norm_spread,
    product_spread,
    scores_spread,
    softmax_spread,
    sum_spread,
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
    "experts_spread",
    "spreads_of",
]

Array: TypeAlias = NDArray[np.float64]


def case_spreads(
    function: str,
    arguments: Mapping[str, Any],
    values: Mapping[str, ArrayLike],
    dtype: str,
    *,
    carried: Mapping[str, Spread] | None = None,
    exact_angles: bool = False,
) -> dict[str, Spread]:
    """The spread of everything that a function of the oracle returns and shows.

    Args:
        function: its name, as in `oracle.llama`.
        arguments: as it was called.
        values: what it showed, by its taps' names, and returned, by the points' neutral names. What it
            computes on the way but is not here is computed again.
        dtype: the program's, a key of PRECISIONS.
        carried: the spread of an argument that the program rounded on its way here, by its name.
        exact_angles: RoPE's angles have to be exact.

    Returns:
        By neutral name of the point; empty for a function that rounds in no way known here.
    """
    maker = _MAKERS.get(function)
    if maker is None:
        return {}
    with np.errstate(all="ignore"):  # an input that overflows has no spread, and is told of elsewhere
        return maker(_Call(arguments, values, dtype, carried or {}, exact_angles))


def spreads_of(
    case: Case,
    answers: Mapping[str, ArrayLike],
    dtype: str,
    *,
    carried: Mapping[str, Spread] | None = None,
    exact_angles: bool = False,
    steps: Mapping[str, ArrayLike] | None = None,
) -> dict[str, Spread]:
    """`case_spreads` of a case and the oracle's answers to it, by full names.

    Args:
        steps: what the oracle computed on the way, by neutral names, as far as it is at hand.
    """
    if dtype not in PRECISIONS:
        return {}
    by_point = {split_name(name)[1]: name for name in (*case.taps.values(), *case.returns)}
    shown = {point: answers[name] for point, name in by_point.items() if name in answers}
    values = {**(steps or {}), **shown}
    made = case_spreads(
        case.function, case.arguments, values, dtype, carried=carried, exact_angles=exact_angles
    )
    return {by_point[point]: spread for point, spread in made.items() if point in by_point}


@dataclass(frozen=True)
class _Call:
    """A call's arguments and answers, the precision, and the spread of what deviates when it comes in."""

    arguments: Mapping[str, Any]
    answers: Mapping[str, ArrayLike]
    dtype: str
    carried: Mapping[str, Spread]
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
    weight, eps = c["weight"], c.arguments["eps"]
    return {name: norm_spread(c["x"], weight, c[name], eps, c.p, c.carried.get("x"))}


def _qkv(c: _Call) -> dict[str, Spread]:
    weights = {"q": "wq", "k": "wk", "v": "wv"}
    x, came = c["x"], c.carried.get("x")
    biases = {"q": "bq", "k": "bk", "v": "bv"}
    return {
        y: biased_spread(x, c.arguments[w], c[y], c.arguments.get(biases[y]), c.dtype, came)
        for y, w in weights.items()
    }


def _rope(c: _Call) -> dict[str, Spread]:
    at = c.arguments["positions"], c.arguments["frequencies"]
    larger = c.arguments.get("magnitude", 1.0)

    def spread(x: str) -> Spread:
        came = c.carried.get(x)
        came = came if came is None or larger == 1.0 else came.times(larger)
        return turned_spread(larger * c.argument(x), c[f"{x}_rope"], *at, c.p, c.exact_angles, came)

    return {f"{x}_rope": spread(x) for x in ("q", "k")}


def _attention(c: _Call) -> dict[str, Spread]:
    wo, out = c.arguments["wo"], c["attn_out"]
    q, k, v = (c.argument(name) for name in ("q", "k", "v"))
    sums = ContextSums(out, wo, (len(q), q.shape[1], v.shape[2]))
    heads = AttentionSpreads(q, k, v, _visible(c.arguments), c.p, c.carried, sums)
    return {
        "attn_scores": scores_spread(
            heads.scores,
            c.p,
            aligned=bool(c.carried),
            equal=scores_together(q, k, np.asarray(c.arguments["positions"]), c.p),
        ),
        "attn_probs": heads.probs_spread,
        "attn_context": heads.context_spread,
        "attn_out": biased_spread(
            heads.context, wo, out, c.arguments.get("bo"), c.dtype, heads.context_spread
        ),
    }


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
    shown = dict(c.answers)
    if not {"ffn_gate", "ffn_up"} <= set(shown):
        oracle.swiglu(**{**c.arguments, "tap": shown.__setitem__})
    gate, up = (np.asarray(shown[name], np.float64) for name in ("ffn_gate", "ffn_up"))
    b_gate, b_up, b_down = (c.arguments.get(name) for name in ("b_gate", "b_up", "b_down"))
    s_gate = biased_spread(x, w_gate, gate, b_gate, c.dtype, came)
    s_up = biased_spread(x, w_up, up, b_up, c.dtype, came)
    spread = gated_spread(gate, up, c.p, s_gate, s_up)
    product = c["ffn_swiglu"] if "ffn_swiglu" in c.answers else gated(gate, up, None, None, c.p)[0]
    out = biased_spread(product, w_down, c["ffn_out"], b_down, c.dtype, spread)
    return {"ffn_gate": s_gate, "ffn_up": s_up, "ffn_swiglu": spread, "ffn_out": out}


def _experts(c: _Call) -> dict[str, Spread]:
    """The choice is taken as it is: near ties are nobody's error, and not judged."""
    x, came, shown = np.asarray(c.arguments["x"], np.float64), c.carried.get("x"), dict(c.answers)
    if not {"ffn_router", "ffn_chosen", "ffn_weights", "ffn_expert_out"} <= set(shown):
        oracle.experts(**{**c.arguments, "tap": shown.__setitem__})
    router, weights, out = (
        np.asarray(shown[f"ffn_{name}"], np.float64) for name in ("router", "weights", "expert_out")
    )
    chosen = np.asarray(shown["ffn_chosen"])
    s_router = product_spread(x, c.arguments["w_router"], router, c.p, came)
    s_weights = softmax_spread(weights, np.take_along_axis(s_router.whole, chosen, axis=1), c.p)
    s_out = experts_spread(x, c.arguments, chosen, out, router.shape[1], c.dtype, came)
    return {
        "ffn_router": s_router,
        "ffn_weights": s_weights,
        "ffn_expert_out": s_out,
        "ffn_out": mixed_spread(out, weights, s_out.whole, s_weights, c.p),
    }


def experts_spread(
    x: Array,
    matrices: Mapping[str, Any],
    chosen: NDArray[np.int64],
    out: Array,
    n_experts: int,
    dtype: str,
    came: Spread | None = None,
) -> Spread:
    """Of what each chosen expert makes.

    Args:
        x: what goes in, `[n, width]`, and `came` what it is off by.
        matrices: w_gate, w_up and w_down, those of all `n_experts` under one another.
        chosen: `[n, n_used]`; out: what they make, `[n, n_used, width]`.
        dtype: the program's.
    """
    made = np.zeros_like(out)
    for expert in np.unique(chosen):
        tokens, ranks = np.nonzero(chosen == expert)
        own = {name: _part(matrices[name], expert, n_experts) for name in ("w_gate", "w_up", "w_down")}
        carried = {} if came is None else {"x": came.rows(tokens)}
        call = _Call({"x": x[tokens], **own}, {"ffn_out": out[tokens, ranks]}, dtype, carried, False)
        made[tokens, ranks] = _swiglu(call)["ffn_out"].whole
    return Spread(made)


def _part(stacked: Any, number: int, n: int) -> Any:
    """One of n matrices that lie under one another."""
    size = stacked.shape[0] // n
    return stacked[number * size : (number + 1) * size]


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
        came = {name: found[point] for name, point in reads.items() if point in found}
        if "x" in c.carried and BLOCK_INPUT in reads.values():
            came["x"] = c.carried["x"]
        answers = {point: steps[point] for point in made}
        found.update(maker(_Call(given, answers, c.dtype, came, c.exact_angles)))

    at = {"positions": positions, "sequence_ids": c.arguments.get("sequence_ids")}
    eps, parts = {"eps": config.rms_norm_eps}, {f: getattr(weights, f) for f in MATRICES}
    parts |= {f: getattr(weights, f, None) for f in BIASES}
    norm = {"x": c.arguments["x"], "weight": weights.attn_norm, **eps}
    step(_rms_norm, norm, ("attn_norm",), {"x": BLOCK_INPUT})
    step(_qkv, parts, ("q", "k", "v"), {"x": "attn_norm"})
    turn: dict[str, Any] = {**at, "frequencies": oracle.rope_frequencies(config)}
    turn["magnitude"] = oracle.rope_magnitude(config)
    step(_rope, turn, ("q_rope", "k_rope"), {"q": "q", "k": "k"})
    step(_attention, {**at, **parts}, ("attn_out",), {"q": "q_rope", "k": "k_rope", "v": "v"})

    def add(made: str, a: Any, b: str, carried: Spread | None) -> None:
        found[made] = sum_spread(a, steps[b], c.dtype, carried, found[b])

    add("ffn_inp", c.arguments["x"], "attn_out", c.carried.get("x"))
    step(_rms_norm, {"weight": weights.ffn_norm, **eps}, ("ffn_norm",), {"x": "ffn_inp"})
    if getattr(weights, "w_router", None) is None:
        step(_swiglu, parts, ("ffn_gate", "ffn_up", "ffn_out"), {"x": "ffn_norm"})
    else:
        routing = {"w_router": weights.w_router, "n_used": config.n_experts_used}
        own = {name: parts[name] for name in ("w_gate", "w_up", "w_down")}
        made = ("ffn_router", "ffn_chosen", "ffn_weights", "ffn_expert_out", "ffn_out")
        step(_experts, {**own, **routing}, made, {"x": "ffn_norm"})
    add("out", steps["ffn_inp"], "ffn_out", found["ffn_inp"])
    return found


BIASES = ("bq", "bk", "bv", "bo", "b_gate", "b_up", "b_down")
MATRICES = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")


def _output_logits(c: _Call) -> dict[str, Spread]:
    weights, config, x = c.arguments["weights"], c.arguments["config"], c["x"]
    eps, shown = config.rms_norm_eps, "output_norm" in c.answers
    normed = c["output_norm"] if shown else oracle.rms_norm(x, weights.output_norm, eps=eps)
    norm = norm_spread(x, weights.output_norm, normed, eps, c.p, c.carried.get("x"))
    return {"output_norm": norm, "logits": product_spread(normed, weights.output, c["logits"], c.p, norm)}


_Maker: TypeAlias = Callable[[_Call], dict[str, Spread]]

_MAKERS: Mapping[str, _Maker] = {
    "rms_norm": _rms_norm,
    "qkv": _qkv,
    "rope": _rope,
    "attention": _attention,
    "swiglu": _swiglu,
    "experts": _experts,
    "block": _block,
    "output_logits": _output_logits,
}
