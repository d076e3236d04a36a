"""Kernels between the matrix products of a long prompt: one pass over memory each.

Products of many rows go through the tensor cores with half-precision inputs and float32 sums. What a
float16 number cannot hold of an activation goes with it in one of two ways (`Rest`): as a second
float16, or, where the weight has such a rest too, both parts once more in 8 bits. With PAIR a product
comes as float32 and what it misses, times 2048, in float16.
Rows of a prompt that are only there to fill it up are computed like any other, and never cached.
"""

from __future__ import annotations

from enum import IntEnum

from llama_ckpt.kernels.compiler import constant, jit, tl

__all__ = ["Rest"]


class Rest(IntEnum):
    """What goes with an activation rounded to float16."""

    NONE = 0
    """Nothing."""
    HALF = 1
    """What the rounding took, times 2048, in float16, [n, width]: 22 bits together."""
    BYTES = 2
    """[n, 2 width] in 8 bits: the rounded value, then what the rounding took times 2048; both times LIFT."""


HALF_REST, BYTES_REST = constant(Rest.HALF), constant(Rest.BYTES)


@jit
def put(high_ptr, rest_ptr, row, k, y, width, inside, REST: tl.constexpr, LIFT: tl.constexpr):
    """Store y as element k of a row in float16, and its rest."""
    # The rest is 2^-11 of y or less: times 2048 it is as large as y was, and does not fall below float16's
    # range.
    high = y.to(tl.float16)
    tl.store(high_ptr + row * width + k, high, inside)
    low = (y - high.to(tl.float32)) * 2048.0
    if REST == HALF_REST:
        tl.store(rest_ptr + row * width + k, low.to(tl.float16), inside)
    if REST == BYTES_REST:
        at = rest_ptr + row * 2 * width + k
        tl.store(at, (high.to(tl.float32) * LIFT).to(rest_ptr.dtype.element_ty), inside)
        tl.store(at + width, (low * LIFT).to(rest_ptr.dtype.element_ty), inside)


@jit
def norm_kernel(x_ptr, gain_ptr, high_ptr, rest_ptr, width, eps, WIDTH2: tl.constexpr, REST: tl.constexpr,
                LIFT: tl.constexpr):  # fmt: skip
    """RMS norm of a float32 row, to half precision.

    Not split between writer and reader as in a step: the product is cuBLAS's, which scales nothing.
    """
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH2)
    inside = k < width
    x = tl.load(x_ptr + row * width + k, inside, 0.0)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(x * x, axis=0) / width + eps)
    y = x * inverse * tl.load(gain_ptr + k, inside, 0.0)
    put(high_ptr, rest_ptr, row, k, y, width, inside, REST, LIFT)


@jit
def turn_kernel(qkv_ptr, qkv_rest_ptr, turns_ptr, positions_ptr, span_ptr, query_ptr, query_rest_ptr,
                key_ptr, value_ptr, q_width, kv_width, capacity, HEAD: tl.constexpr, BLOCK: tl.constexpr,
                LIFT: tl.constexpr, PAIR: tl.constexpr):  # fmt: skip
    """Queries and keys turned, keys and values written to the cache; BLOCK columns of a token a program.

    span: the first token's slot, and the slot after the last one's. A query is stored times LIFT, with PAIR
    as two float16 numbers that add up.
    """
    token = tl.program_id(0)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    width = q_width + 2 * kv_width
    slot = tl.load(span_ptr) + token
    last = tl.where(slot < tl.load(span_ptr + 1), width, 0)  # rows that fill a prompt up are not cached
    at = token.to(tl.int64) * width + k
    row = tl.load(qkv_ptr + at, k < width, 0.0).to(tl.float32)
    if PAIR:
        row += tl.load(qkv_rest_ptr + at, k < width, 0.0).to(tl.float32) / 2048.0
    # Cos and sin of all columns as one contiguous row, taken apart in registers: strided loads were slower
    # ("Long prompts", step 3, of docs/speed_steps.md). Values are turned by cos 1, sin 0, so that no branch
    # is needed.
    angle = tl.load(turns_ptr + tl.load(positions_ptr + token) * HEAD + k % HEAD)
    angle = tl.where(k < q_width + kv_width, angle, tl.where(k % 2 == 0, 1.0, 0.0))
    even, odd = tl.split(tl.reshape(row, (BLOCK // 2, 2)))
    cos, sin = tl.split(tl.reshape(angle, (BLOCK // 2, 2)))
    y = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK,))
    is_q = k < q_width
    query = (y * LIFT).to(tl.float16)
    tl.store(query_ptr + token.to(tl.int64) * q_width + k, query, is_q)
    if PAIR:
        rest = (y * LIFT - query.to(tl.float32)).to(tl.float16)
        tl.store(query_rest_ptr + token.to(tl.int64) * q_width + k, rest, is_q)
    c = (k - q_width) % kv_width
    cell = (c // HEAD * capacity + slot) * HEAD + c % HEAD
    is_k = (k >= q_width) & (k < tl.minimum(q_width + kv_width, last))
    tl.store(key_ptr + cell, y.to(key_ptr.dtype.element_ty), is_k)
    is_v = (k >= q_width + kv_width) & (k < last)
    tl.store(value_ptr + cell, y.to(value_ptr.dtype.element_ty), is_v)


@jit
def swiglu_kernel(gate_up_ptr, gate_up_rest_ptr, high_ptr, rest_ptr, ffn, BLOCK: tl.constexpr,
                  PAIR: tl.constexpr, REST: tl.constexpr, LIFT: tl.constexpr):  # fmt: skip
    """silu(gate) * up of columns that stand in turn, to half precision."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    # Gate and up stand in turn (`planes.interleaved`), so that their pair is one load of neighbours.
    pairs = tl.program_id(1) * BLOCK * 2 + tl.arange(0, 2 * BLOCK)
    at = row * 2 * ffn + pairs
    both = tl.load(gate_up_ptr + at, pairs < 2 * ffn, 0.0).to(tl.float32)
    if PAIR:
        both += tl.load(gate_up_rest_ptr + at, pairs < 2 * ffn, 0.0).to(tl.float32) / 2048.0
    gate, up = tl.split(tl.reshape(both, (BLOCK, 2)))
    put(high_ptr, rest_ptr, row, k, gate / (1.0 + tl.exp(-gate)) * up, ffn, k < ffn, REST, LIFT)
