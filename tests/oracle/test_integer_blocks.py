"""Integers, scales and minima of quantized matrices, held to the values that `gguf` gives."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from llama_ckpt.oracle.integer_blocks import PARTS_OF, integer_blocks, parts_of_values


def _bytes(kind: str) -> np.ndarray:
    """Random blocks of two to a row; scales are halves of moderate size."""
    size, _ = PARTS_OF[kind]
    raw = np.random.default_rng(0).integers(0, 256, (5, 2, size), dtype=np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(kind, (0, 2))
    for at in halves if kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K", "Q2_K", "Q3_K", "Q6_K") else (0,):
        raw[:, :, at : at + 2] = np.frombuffer(np.float16(0.0123 + at / 1e4).tobytes(), np.uint8)
    return raw.reshape(5, -1)


@pytest.mark.parametrize("kind", sorted(PARTS_OF))
def test_parts_give_the_values(kind):
    raw = _bytes(kind)
    parts = integer_blocks(raw, kind)
    assert parts is not None
    values = dequantize(raw, GGMLQuantizationType[kind]).astype(np.float64)
    scale = np.abs(values).max()
    assert np.allclose(parts.values(), values, atol=3e-7 * scale, rtol=3e-7)
    assert np.array_equal(parts.values(slice(1, 3)), parts.values()[1:3])
    assert parts.integers.max() < len(parts.meaning)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_parts_of_values_that_a_file_keeps_as_floats(kind):
    rng = np.random.default_rng(1)
    bits = 4 if kind == "Q4_0" else 8
    integers = rng.integers(-(1 << (bits - 1)) + 1, 1 << (bits - 1), (6, 2, 32))
    integers[..., 0] = -8 if bits == 4 else 127
    scale = np.float16(rng.uniform(0.01, 0.1, (6, 2, 1))).astype(np.float64)
    values = (integers * scale).reshape(6, 64)
    parts = parts_of_values(values)
    assert parts is not None and parts.bits == bits
    assert np.allclose(parts.values(), values, rtol=1e-6)
    assert parts_of_values(rng.standard_normal((6, 64))) is None
