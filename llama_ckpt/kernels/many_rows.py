"""Kernels between the matrix products of a long prompt: one pass over memory each.

Products of many rows go through the tensor cores with half-precision inputs and float32 sums. With
PAIR an activation x goes in as high + low / 2048, two float16 numbers that together hold 22 bits.
"""

from __future__ import annotations

from llama_ckpt.kernels.compiler import jit, tl

__all__: list[str] = []


@jit
def put(high_ptr, low_ptr, at, y, inside, PAIR: tl.constexpr):
    """Store y as float16, with PAIR its rest times 2048 too."""
    high = y.to(tl.float16)
    tl.store(high_ptr + at, high, inside)
    if PAIR:
        tl.store(low_ptr + at, ((y - high.to(tl.float32)) * 2048.0).to(tl.float16), inside)


@jit
def norm_kernel(x_ptr, gain_ptr, high_ptr, low_ptr, width, eps, WIDTH2: tl.constexpr, PAIR: tl.constexpr):
    """RMS norm of a float32 row, to half precision."""
    row = tl.program_id(0)
    k = tl.arange(0, WIDTH2)
    inside = k < width
    x = tl.load(x_ptr + row * width + k, inside, 0.0)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(x * x, axis=0) / width + eps)
    put(high_ptr, low_ptr, row * width + k, x * inverse * tl.load(gain_ptr + k, inside, 0.0), inside, PAIR)


@jit
def turn_kernel(qkv_ptr, turns_ptr, positions_ptr, slots_ptr, query_ptr, key_ptr, value_ptr, q_width,
                kv_width,
                capacity, HEAD: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Queries and keys turned, keys and values written to the cache; BLOCK columns of a token a program."""
    token = tl.program_id(0)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.program_id(1) * BLOCK + 2 * tl.arange(0, BLOCK // 2)
    width = q_width + 2 * kv_width
    row = tl.load(qkv_ptr + token.to(tl.int64) * width + k, k < width, 0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(row, (BLOCK // 2, 2)))
    turned = pair < q_width + kv_width
    at = turns_ptr + tl.load(positions_ptr + token) * HEAD + pair % HEAD
    cos = tl.load(at, turned, 1.0)
    sin = tl.load(at + 1, turned, 0.0)
    y = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK,))
    is_q = k < q_width
    tl.store(query_ptr + token.to(tl.int64) * q_width + k, y.to(query_ptr.dtype.element_ty), is_q)
    c = (k - q_width) % kv_width
    cell = (c // HEAD * capacity + tl.load(slots_ptr + token)) * HEAD + c % HEAD
    is_k = (k >= q_width) & (k < q_width + kv_width)
    tl.store(key_ptr + cell, y.to(key_ptr.dtype.element_ty), is_k)
    is_v = (k >= q_width + kv_width) & (k < width)
    tl.store(value_ptr + cell, y.to(value_ptr.dtype.element_ty), is_v)


@jit
def swiglu_kernel(gate_up_ptr, high_ptr, low_ptr, ffn, BLOCK: tl.constexpr, PAIR: tl.constexpr):
    """silu(gate) * up of columns that stand in turn, to half precision."""
    row = tl.program_id(0)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    pairs = row.to(tl.int64) * 2 * ffn + tl.program_id(1) * BLOCK * 2 + tl.arange(0, 2 * BLOCK)
    both = tl.load(gate_up_ptr + pairs, pairs < (row.to(tl.int64) + 1) * 2 * ffn, 0.0).to(tl.float32)
    gate, up = tl.split(tl.reshape(both, (BLOCK, 2)))
    put(high_ptr, low_ptr, row.to(tl.int64) * ffn + k, gate / (1.0 + tl.exp(-gate)) * up, k < ffn, PAIR)
