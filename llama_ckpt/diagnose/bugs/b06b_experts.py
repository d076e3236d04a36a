"""Checkpoint 6B: the router's choice, its weights, and which expert makes what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.diagnose.bugs.record import Bug
from llama_ckpt.diagnose.patched_oracle import Patch, PatchedOracle

__all__ = ["BUGS"]

Array: TypeAlias = NDArray[Any]


def chosen_by(change: Callable[[Array], Array]) -> Patch:
    """The choice made by other scores."""
    return lambda right, router, n_used: right.routed(change(router), n_used)


def weighted_by(weigh: Callable[[PatchedOracle, Array, Array], Array]) -> Patch:
    """The same choice with other weights, `weigh(right, router, chosen)`."""

    def routed(right: PatchedOracle, router: Array, n_used: int) -> tuple[Array, Array]:
        chosen, _ = right.routed(router, n_used)
        return chosen, weigh(right, router, chosen)

    return routed


def of(values: Array, chosen: Array) -> Array:
    """Those of the chosen, `[n, n_used]`."""
    found: Array = np.take_along_axis(values, chosen, axis=1)
    return found


def not_divided(right: PatchedOracle, router: Array, chosen: Array) -> Array:
    return of(right.normalized_exp(router), chosen)


def twice(right: PatchedOracle, router: Array, chosen: Array) -> Array:
    again: Array = right.normalized_exp(of(right.normalized_exp(router), chosen))
    return again


def by_sigmoid(right: PatchedOracle, router: Array, chosen: Array) -> Array:
    gates: Array = of(right.sigmoid(router), chosen)
    weights: Array = gates / gates.sum(axis=1, keepdims=True)
    return weights


def first_alone(right: PatchedOracle, router: Array, chosen: Array) -> Array:
    weights = np.zeros(chosen.shape)
    weights[:, 0] = 1.0
    return weights


def equal(right: PatchedOracle, router: Array, chosen: Array) -> Array:
    return np.full(chosen.shape, 1 / chosen.shape[1])


def backwards(right: PatchedOracle, router: Array, n_used: int) -> tuple[Array, Array]:
    """The weights in the order of a sort that puts the largest last."""
    chosen, weights = right.routed(router, n_used)
    return chosen, weights[:, ::-1]


def by_number(right: PatchedOracle, router: Array, n_used: int) -> tuple[Array, Array]:
    """The experts in the order of their numbers, the weights as they were."""
    chosen, weights = right.routed(router, n_used)
    return np.sort(chosen, axis=1), weights


def following(right: PatchedOracle, router: Array, n_used: int) -> tuple[Array, Array]:
    """The experts after those that were chosen."""
    chosen, weights = right.routed(router, n_used)
    return (chosen + 1) % router.shape[1], weights


def added(right: PatchedOracle, out: Array, weights: Array) -> Array:
    """Without weights."""
    total: Array = out.sum(axis=1)
    return total


def rows_by_turns(
    right: PatchedOracle, x: Any, chosen: Any, w_gate: Any, w_up: Any, w_down: Any, n_experts: int
) -> Array:
    """Each expert's rows taken by turns from the stack, as of an array whose experts come last."""
    turned = [
        np.concatenate([np.asarray(w)[expert::n_experts] for expert in range(n_experts)])
        for w in (w_gate, w_up, w_down)
    ]
    out: Array = right.by_experts(x, chosen, *turned, n_experts)
    return out


def weighted_inputs(
    right: PatchedOracle,
    x: Any,
    w_router: Any,
    w_gate: Any,
    w_up: Any,
    w_down: Any,
    *,
    n_used: int,
    tap: Any = None,
) -> Array:
    """The weights multiply what goes in, as in Llama 4, not what comes out."""
    x = right.float64(x)
    router = right.linear(x, w_router)
    chosen, weights = right.routed(router, n_used)
    out = np.zeros((*chosen.shape, x.shape[1]))
    for rank in range(chosen.shape[1]):
        own, matrices = chosen[:, rank : rank + 1], (w_gate, w_up, w_down)
        scaled = x * weights[:, rank : rank + 1]
        out[:, rank] = right.by_experts(scaled, own, *matrices, router.shape[1])[:, 0]
    shown = {"router": router, "chosen": chosen, "weights": weights, "expert_out": out}
    for point, array in shown.items():
        if tap:
            tap(f"ffn_{point}", array)
    total: Array = out.sum(axis=1)
    return total


def bug(name: str, sentence: str, function: str, patch: Patch) -> Bug:
    return Bug(f"experts-{name}", sentence, "6B", function, patch)


BUGS = (
    bug(
        "not-normalized",
        "the weights are a softmax over all experts, not divided by their sum",
        "routed",
        weighted_by(not_divided),
    ),
    bug(
        "softmax-twice",
        "a softmax is taken over all experts, and again over the chosen",
        "routed",
        weighted_by(twice),
    ),
    bug(
        "sigmoid",
        "sigmoids, divided by their sum, stand for the router's softmax",
        "routed",
        weighted_by(by_sigmoid),
    ),
    bug("top-one", "the likeliest expert alone computes", "routed", weighted_by(first_alone)),
    bug("equal-weights", "all chosen experts have the same weight", "routed", weighted_by(equal)),
    bug(
        "weights-backwards",
        "the least likely of the chosen experts gets the largest weight",
        "routed",
        backwards,
    ),
    bug(
        "order-by-number", "experts stand in the order of their numbers, weights by size", "routed", by_number
    ),
    bug("off-by-one", "the experts after the chosen ones compute", "routed", following),
    bug("least-likely", "the least likely experts are chosen", "routed", chosen_by(lambda router: -router)),
    bug(
        "largest-scores",
        "experts are chosen by the size of their scores, whatever the sign",
        "routed",
        chosen_by(np.abs),
    ),
    bug("unweighted", "what the experts make is added without weights", "weighted_sum", added),
    bug("rows-by-turns", "each expert's rows are taken by turns from the stack", "by_experts", rows_by_turns),
    bug("weighted-inputs", "the weights multiply what goes into the experts", "experts", weighted_inputs),
)
