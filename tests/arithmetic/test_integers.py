"""Small integers with a scale: blocks worked by hand, and gguf's own quantizer."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from llama_ckpt.arithmetic.formats import block_of, round_rows, rounded
from llama_ckpt.arithmetic.integers import INTEGERS, to_integers
from llama_ckpt.errors import OptionError


def block(*first: float, size: int = 32) -> np.ndarray:
    """A block that begins so; the rest are zeros."""
    return np.array([[*first, *[0.0] * (size - len(first))]])


def test_a_block_of_q8_0_by_hand() -> None:
    # the largest is 127, so the scale is 1: the integers are the numbers rounded, ties to even
    np.testing.assert_array_equal(
        rounded(block(-127, 0.5, 1.5, 2.5, -0.5, 3.2), "q8_0")[0, :6], [-127, 0, 2, 2, 0, 3]
    )
    np.testing.assert_array_equal(
        rounded(block(-127, 0.5, 1.5, 2.5, -0.5, 3.2), "q8_0-plain")[0, :6], [-127, 1, 2, 3, -1, 3]
    )


def test_the_scale_is_kept_in_float16_and_divides_unrounded() -> None:
    x = block(1.0, 0.25)
    scale = float(np.float16(np.float32(1) / np.float32(127)))
    np.testing.assert_array_equal(rounded(x, "q8_0")[0, :2], [127 * scale, 32 * scale])  # 31.75
    exact = float(np.float32(1) / np.float32(127))
    np.testing.assert_array_equal(rounded(x, "int8 per row")[0, :2], [127 * exact, 32 * exact])


def test_q8_1_keeps_the_sum_of_a_block_by_itself() -> None:
    x = np.concatenate([block(127, 100.3, -1), block(2.54, 1)], axis=1)
    found = round_rows(x, "q8_1")
    assert found.sums is not None
    scale = np.float32(2.54) / np.float32(127)
    np.testing.assert_array_equal(found.sums, [[226, float(np.float16(np.float32(127 + 50) * scale))]])
    np.testing.assert_array_equal(found.values, rounded(x, "q8_0"))
    halves = round_rows(x, "q8_1-candle").sums
    assert halves is not None
    np.testing.assert_array_equal(halves[0, 1], float(np.float16(177) * np.float16(scale)))
    inputs = round_rows(x, "q8_1-cuda").sums
    assert inputs is not None
    np.testing.assert_array_equal(inputs[0], [float(np.float16(226.3)), float(np.float16(3.54))])


def test_q8_k_takes_the_largest_with_its_sign() -> None:
    x = block(-2.0, 2.0, 1.0, size=256)  # the first of two equally large ones is negative: it becomes 127
    scale = float(np.float32(1) / (np.float32(-127) / np.float32(-2)))
    np.testing.assert_array_equal(rounded(x, "q8_K")[0, :3], [-127 * scale, 127 * scale, 64 * scale])  # 63.5
    # with a positive one first the scale is negative, and it is -63.5 that goes to the even -64
    x = block(2.0, -1.0, 1.0, size=256)
    np.testing.assert_array_equal(rounded(x, "q8_K")[0, :3], [127 * scale, -64 * scale, 64 * scale])


def test_candles_128_does_not_fit_and_is_cut() -> None:
    x = block(1.0, -1.0, size=256)
    scale = 1 / 128
    np.testing.assert_array_equal(rounded(x, "q8_K-128")[0, :2], [128 * scale, -127 * scale])


def test_a_block_of_zeros_stays_one() -> None:
    for name in INTEGERS:
        found = to_integers(np.zeros((2, 256)), name)
        assert not found.values.any(), name
        assert found.sums is None or not found.sums.any()


def test_plain_q8_0_is_what_gguf_writes() -> None:
    x = np.random.default_rng(1).standard_normal((7, 64)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q8_0
    wanted = gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
    np.testing.assert_array_equal(rounded(x.astype(np.float64), "q8_0-plain"), wanted)


def test_int8_per_row_is_torchs() -> None:
    x = np.random.default_rng(2).standard_normal((5, 48)).astype(np.float32)
    t = torch.from_numpy(x)
    scale = t.abs().amax(dim=1, keepdim=True) / 127
    wanted = torch.round(t / scale).double() * scale.double()
    np.testing.assert_array_equal(rounded(x.astype(np.float64), "int8 per row"), wanted.numpy())
    one = rounded(x.astype(np.float64), "int8 per tensor")
    assert len(np.unique(np.rint(one / (np.abs(x).max() / np.float32(127))))) <= 255


def test_rows_of_broken_blocks_are_refused() -> None:
    with pytest.raises(OptionError, match="rows for q8_0: got 40 elements, wanted whole blocks of 32"):
        rounded(np.ones((1, 40)), "q8_0")
    assert (block_of("q8_0"), block_of("q8_K"), block_of("int8 per row"), block_of("float16")) == (
        32,
        256,
        1,
        1,
    )
