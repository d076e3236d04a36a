"""The curve from gate to the factor on up: drawn, named, and measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from llama_ckpt.identify.curves import CURVES, sigmoid
from tests.draws import draws
from tests.identify.product_faults import SHAPES, asked_of, call_of, given, said_of

MOST = settings(max_examples=draws(6, 200), deadline=None, derandomize=True)
WHERE = st.tuples(st.sampled_from(sorted(SHAPES)), st.sampled_from((0, 1)), st.sampled_from((1, 2, 8)))


def _made(where, make, dtype="float32"):
    """What is said where `make` of gate and up stands for the product."""
    on = given(*where[:2])
    case = call_of("swiglu", on, where[2])
    g = case.arguments
    gate, up = g["x"] @ g["w_gate"].T, g["x"] @ g["w_up"].T
    return said_of(asked_of(case, on, {"ffn_swiglu": make(gate, up)}, dtype)).best


@MOST
@drawn(WHERE, st.sampled_from(CURVES[1:]))
def test_a_curve_has_its_name(where, curve):
    found = _made(where, lambda gate, up: curve.function(gate) * up)
    assert found is not None and found.explained
    assert curve.name in found.sentence
    drawn_curve = found.parameters["curve"]
    assert np.allclose(drawn_curve["y"], curve.function(np.asarray(drawn_curve["x"])), atol=1e-3)


@MOST
@drawn(WHERE, st.sampled_from(CURVES[:8]))
def test_gate_and_up_exchanged(where, curve):
    found = _made(where, lambda gate, up: curve.function(up) * gate)
    if curve.name.startswith("nothing"):  # a product of the two: exchanged or not
        assert found is not None and "the gate itself" in found.sentence
        return
    if curve.name.startswith("1:"):
        assert (
            found is not None and "gate itself" in found.sentence + "".join(found.alike) or found is not None
        )
        return
    assert found is not None and found.explained
    assert "exchanged" in found.sentence


@MOST
@drawn(WHERE, st.floats(0.3, 3.0))
def test_a_slope_in_the_exponent(where, slope):
    if abs(slope - 1) < 0.01 or abs(slope - 1.702) < 0.001:
        return
    found = _made(where, lambda gate, up: gate * sigmoid(slope * gate) * up)
    assert found is not None and found.explained
    assert f"sigmoid({slope:.5g} a)" in found.sentence


@MOST
@drawn(WHERE, st.floats(0.3, 0.9), st.sampled_from(("product", "up", "gate")))
def test_bounds(where, share, what):
    held = {}

    def make(gate, up):
        silu = gate * sigmoid(gate)
        sizes = {"product": np.abs(silu * up), "up": np.abs(up), "gate": gate}[what]
        c = float(share * sizes.max())
        held["are"] = int((sizes > c).sum())
        if what == "product":
            return np.clip(silu * up, -c, c)
        if what == "up":
            return silu * np.clip(up, -c, c)
        return np.minimum(gate, c) * sigmoid(np.minimum(gate, c)) * up

    found = _made(where, make)
    # One element at a bound is as well one wrong element: a bound is seen where two stand at it.
    if held["are"] < 2:
        assert found is None or "clipped" in found.sentence or found.kind == "any.element"
        return
    assert found is not None and found.explained
    if what == "product" and "is held at it" in found.sentence:  # the same, said of the tensor
        return
    said = " ".join((found.sentence, *found.alike))
    assert "clipped" in said and what in said


@MOST
@drawn(WHERE)
def test_a_curve_without_a_name_is_measured(where):
    if where[2] < 8:
        return
    found = _made(where, lambda gate, up: np.sin(gate) * up)
    assert found is not None and not found.explained
    assert "another function of the gate" in found.sentence


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_of_a_right_product_nothing_is_said(shape, dtype):
    assert _made((shape, 0, 8), lambda gate, up: gate * sigmoid(gate) * up, dtype) is None
