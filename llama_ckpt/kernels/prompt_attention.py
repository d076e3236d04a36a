"""Kernels: attention of a prompt's tokens over the cache, on the tensor cores, softmax as it goes.

Inputs are float16, sums float32. With PAIR queries, keys and values are two float16 numbers each that
add up, of LIFT times the value (so that the second seldom falls below float16's range), and so is
a probability: three products for one, and errors of float32's order. Where the prompt begins in the
cache is read from the device, so that a captured launch serves any sequence.
"""

from __future__ import annotations

from llama_ckpt.kernels.compiler import jit, tl
from llama_ckpt.kernels.many_rows import put

__all__: list[str] = []


@jit
def halves_kernel(key_ptr, value_ptr, out_ptr, span_ptr, capacity, LIFT: tl.constexpr, HEAD: tl.constexpr,
                  BLOCK: tl.constexpr):  # fmt: skip
    """A float32 cache [kv heads, capacity, HEAD] as float16: out [4, kv heads, capacity, HEAD].

    Keys, what their rounding took, values, and what theirs took; slots from the end of the span on are
    left alone.
    """
    head = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < tl.load(span_ptr + 1) * HEAD
    at = head * capacity * HEAD + i
    plane = tl.num_programs(1).to(tl.int64) * capacity * HEAD
    key = tl.load(key_ptr + at, inside, 0.0) * LIFT
    high = key.to(tl.float16)
    tl.store(out_ptr + at, high, inside)
    tl.store(out_ptr + plane + at, (key - high.to(tl.float32)).to(tl.float16), inside)
    value = tl.load(value_ptr + at, inside, 0.0) * LIFT
    high = value.to(tl.float16)
    tl.store(out_ptr + 2 * plane + at, high, inside)
    tl.store(out_ptr + 3 * plane + at, (value - high.to(tl.float32)).to(tl.float16), inside)


@jit
def piece(pointer, at, d, HEAD: tl.constexpr, HEAD2: tl.constexpr):
    """Rows of one head; heads narrower than a tile are filled up with zeros."""
    if HEAD == HEAD2:
        return tl.load(pointer + at[:, None] * HEAD + d[None, :])
    else:
        return tl.load(pointer + at[:, None] * HEAD + d[None, :], d[None, :] < HEAD, 0.0)


@jit
def seen(top, total, context, query, query_rest, k_ptr, k_rest_ptr, v_ptr, v_rest_ptr, s, slots, d, scale,
         HEAD: tl.constexpr, HEAD2: tl.constexpr, PAIR: tl.constexpr, MASK: tl.constexpr):  # fmt: skip
    """One more tile of slots: highest score, sum of weights and weighted sum of values of each row."""
    key = piece(k_ptr, s, d, HEAD, HEAD2)
    score = tl.dot(query, tl.trans(key))
    if PAIR:
        score = tl.dot(query_rest, tl.trans(key), score)
        score = tl.dot(query, tl.trans(piece(k_rest_ptr, s, d, HEAD, HEAD2)), score)
    if MASK:
        score = tl.where(s[None, :] <= slots[:, None], score, float("-inf"))
    highest = tl.maximum(top, tl.max(score, axis=1) * scale)
    weight = tl.exp2(score * scale - highest[:, None])
    shrink = tl.exp2(top - highest)
    total = total * shrink + tl.sum(weight, axis=1)
    context = context * shrink[:, None]
    value = piece(v_ptr, s, d, HEAD, HEAD2)
    half = weight.to(tl.float16)
    context = tl.dot(half, value, context)
    if PAIR:
        context = tl.dot((weight - half.to(tl.float32)).to(tl.float16), value, context)
        context = tl.dot(half, piece(v_rest_ptr, s, d, HEAD, HEAD2), context)
    return highest, total, context


@jit
def prompt_attention_kernel(query_ptr, query_rest_ptr, k_ptr, k_rest_ptr, v_ptr, v_rest_ptr, high_ptr,
                            rest_ptr, span_ptr, n_rows, capacity, group, scale, HEAD: tl.constexpr,
                            HEAD2: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr,
                            PAIR: tl.constexpr, LIFT: tl.constexpr, REST: tl.constexpr,
                            REST_LIFT: tl.constexpr):  # fmt: skip
    """Context of ROWS tokens for one head, as `many_rows.put` stores it.

    query [n_rows, heads, HEAD]; caches [kv heads, capacity, HEAD], whole tiles of SLOTS, every slot a
    number. A token sees the slots up to its own. scale: that of the scores, for exp2.
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    head = tl.program_id(1)
    width = tl.num_programs(1) * HEAD
    start = tl.load(span_ptr)
    end = tl.load(span_ptr + 1)
    rows = block * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, HEAD2)
    slots = tl.minimum(start + rows, end - 1)
    at = rows.to(tl.int64)[:, None] * width + head * HEAD + d[None, :]
    there = (rows[:, None] < n_rows) & (d[None, :] < HEAD)
    query = tl.load(query_ptr + at, there, 0.0)
    query_rest = query
    if PAIR:
        query_rest = tl.load(query_rest_ptr + at, there, 0.0)
    base = (head // group).to(tl.int64) * capacity * HEAD
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    context = tl.zeros((ROWS, HEAD2), tl.float32)
    k_ptr += base
    k_rest_ptr += base
    v_ptr += base
    v_rest_ptr += base
    last = tl.minimum(start + (block + 1) * ROWS, end)
    whole = tl.minimum(start + block * ROWS, end) // SLOTS * SLOTS  # below it every row sees every slot
    for first in range(0, whole, SLOTS):
        s = first + tl.arange(0, SLOTS)
        top, total, context = seen(
            top, total, context, query, query_rest, k_ptr, k_rest_ptr, v_ptr, v_rest_ptr, s, slots, d, scale,
            HEAD, HEAD2, PAIR, False,
        )  # fmt: skip
    for first in range(whole, last, SLOTS):
        s = first + tl.arange(0, SLOTS)
        top, total, context = seen(
            top, total, context, query, query_rest, k_ptr, k_rest_ptr, v_ptr, v_rest_ptr, s, slots, d, scale,
            HEAD, HEAD2, PAIR, True,
        )  # fmt: skip
    y = context / (total * LIFT)[:, None]
    row, k = rows.to(tl.int64)[:, None], head * HEAD + d[None, :]
    put(high_ptr, rest_ptr, row, k, y, width, there, REST, REST_LIFT)
