"""Device functions: dot products of rows in blocks with a float32 vector.

See `reading` for the layout of threads and vectors and for how integers become floats. A thread takes
one group of 32 weights of each of its rows at a time. Integers q are multiplied and summed in float32;
the group's scale comes after, once a group. What an offset or a minimum takes away is scale * offset or
minimum times the sum of the group's x, which all rows share.
"""

from __future__ import annotations

from llama_ckpt.kernels.compiler import jit, tl
from llama_ckpt.kernels.reading import (
    bytes_dot,
    high_half,
    load4,
    load_word,
    load_x,
    low_half,
    nibbles_dot,
    plain_dots,
    plain_words,
    signed_byte,
)
from llama_ckpt.kernels.tensor_cores import tile_dots, tile_words

__all__: list[str] = []


@jit
def scales(s, f, MODE: tl.constexpr):
    """Scale and minimum of both halves of a group: (s0, m0, s1, m1), float32; a minimum is subtracted."""
    if MODE == 1:
        d = low_half(s)
        return d, d, d, d
    elif MODE == 2:
        d = low_half(s)
        m = -high_half(s)
        return d, m, d, m
    elif MODE == 3:
        d = low_half(f) * (s & 0xFF).to(tl.float32)
        m = high_half(f) * (s >> 8).to(tl.float32)
        return d, m, d, m
    elif MODE == 4:
        d = low_half(f)
        d0 = d * signed_byte(s)
        d1 = d * signed_byte(s >> 8)
        return d0, d0, d1, d1
    else:
        d = low_half(f)
        m = high_half(f)
        d0 = d * (s & 0xFF).to(tl.float32)
        m0 = m * ((s >> 8) & 0xFF).to(tl.float32)
        return d0, m0, d * ((s >> 16) & 0xFF).to(tl.float32), m * (s >> 24).to(tl.float32)


@jit
def group_words(q_ptr, s_ptr, f_ptr, row, step, U: tl.constexpr, PACK: tl.constexpr, MODE: tl.constexpr,
                R: tl.constexpr, NT: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """The words of a step, and the scales: a group of 32 weights a thread and row."""
    WORDS: tl.constexpr = U * 4 if PACK == 3 else U * 8
    r = (row + tl.arange(0, R))[:, None]
    u = step * NT + tl.arange(0, NT)[None, :]
    ok = u < U
    words = load4(q_ptr + r * WORDS + u * 4, ok, ASM)
    if PACK == 4:
        words = words + load4(q_ptr + r * WORDS + (U + u) * 4, ok, ASM)
    s = load_word(s_ptr + r * U + u, ok, ASM)
    f = s
    if MODE >= 3:
        f = load_word(f_ptr + r * (U // 8) + u // 8, ok, ASM)
    return words, s, f


@jit
def group_dots(words, q_ptr, s_ptr, f_ptr, x_ptr, row, U: tl.constexpr, PACK: tl.constexpr,
               MODE: tl.constexpr, OFFSET: tl.constexpr, R: tl.constexpr, NT: tl.constexpr,
               STEPS: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """Partial dot products [R, NT] of rows in blocks, whose first words are there already."""
    LOWER: tl.constexpr = 562949953421312.0  # 2^(149 - 100): brings lifted sums back
    acc = tl.zeros((R, NT), tl.float32)
    for step in tl.static_range(STEPS):
        w, s, f = words
        if step > 0:
            w, s, f = group_words(q_ptr, s_ptr, f_ptr, row, step, U, PACK, MODE, R, NT, ASM)
        u = step * NT + tl.arange(0, NT)[None, :]
        ok = u < U
        x = x_ptr + u * 4
        a0, a1, a2, a3 = load_x(x, ok, ASM)
        b0, b1, b2, b3 = load_x(x + U * 4, ok, ASM)
        c0, c1, c2, c3 = load_x(x + U * 8, ok, ASM)
        d0, d1, d2, d3 = load_x(x + U * 12, ok, ASM)
        e0, e1, e2, e3 = load_x(x + U * 16, ok, ASM)
        f0, f1, f2, f3 = load_x(x + U * 20, ok, ASM)
        g0, g1, g2, g3 = load_x(x + U * 24, ok, ASM)
        h0, h1, h2, h3 = load_x(x + U * 28, ok, ASM)
        low = ((a0 + a1) + (a2 + a3)) + ((b0 + b1) + (b2 + b3))
        low += ((c0 + c1) + (c2 + c3)) + ((d0 + d1) + (d2 + d3))
        high = ((e0 + e1) + (e2 + e3)) + ((f0 + f1) + (f2 + f3))
        high += ((g0 + g1) + (g2 + g3)) + ((h0 + h1) + (h2 + h3))
        # An offset is common to all rows: the sums start below zero by it, in lifted units.
        first = tl.zeros((R, NT), tl.float32)
        if MODE <= 3:
            first -= (low + high) * (OFFSET / LOWER)
        else:
            first -= low * (OFFSET / LOWER)
            second = tl.zeros((R, NT), tl.float32) - high * (OFFSET / LOWER)
        if PACK == 3:
            first = nibbles_dot(first, w[0], a0, a1, a2, a3, b0, b1, b2, b3)
            first = nibbles_dot(first, w[1], c0, c1, c2, c3, d0, d1, d2, d3)
            first = nibbles_dot(first, w[2], e0, e1, e2, e3, f0, f1, f2, f3)
            first = nibbles_dot(first, w[3], g0, g1, g2, g3, h0, h1, h2, h3)
        else:
            first = bytes_dot(first, w[0], a0, a1, a2, a3)
            first = bytes_dot(first, w[1], b0, b1, b2, b3)
            first = bytes_dot(first, w[2], c0, c1, c2, c3)
            first = bytes_dot(first, w[3], d0, d1, d2, d3)
            if MODE <= 3:
                first = bytes_dot(first, w[4], e0, e1, e2, e3)
                first = bytes_dot(first, w[5], f0, f1, f2, f3)
                first = bytes_dot(first, w[6], g0, g1, g2, g3)
                first = bytes_dot(first, w[7], h0, h1, h2, h3)
            else:
                second = bytes_dot(second, w[4], e0, e1, e2, e3)
                second = bytes_dot(second, w[5], f0, f1, f2, f3)
                second = bytes_dot(second, w[6], g0, g1, g2, g3)
                second = bytes_dot(second, w[7], h0, h1, h2, h3)
        s0, m0, s1, m1 = scales(s, f, MODE)
        if MODE <= 3:
            acc += (s0 * LOWER) * first
        else:
            acc += (s0 * LOWER) * first + (s1 * LOWER) * second
        if MODE == 2 or MODE == 3:
            acc -= m0 * (low + high)
        elif MODE == 5:
            acc -= m0 * low + m1 * high
    return acc


@jit
def first_words(q_ptr, s_ptr, f_ptr, row, U: tl.constexpr, PACK: tl.constexpr, MODE: tl.constexpr,
                R: tl.constexpr, NT: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr,
                ASM: tl.constexpr):  # fmt: skip
    """Start reading rows: weights depend on no other kernel, so this comes before a wait."""
    if PACK == 5:
        words = tile_words(q_ptr, s_ptr, f_ptr, row, 0, U, MODE, NT, STEPS, UNROLL)
    elif PACK >= 3:
        words = group_words(q_ptr, s_ptr, f_ptr, row, 0, U, PACK, MODE, R, NT, ASM)
    else:
        words = plain_words(q_ptr, row, 0, U, PACK, R, NT, UNROLL, ASM)
    return words


@jit
def row_dots(words, q_ptr, s_ptr, f_ptr, x_ptr, xf_ptr, row, U: tl.constexpr, PACK: tl.constexpr,
             MODE: tl.constexpr, OFFSET: tl.constexpr, R: tl.constexpr, NT: tl.constexpr,
             STEPS: tl.constexpr, UNROLL: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """Dot products [R] of the rows from `row` on with one vector, in pieces or, for tiles, in fragments."""
    if PACK == 5:
        y = tile_dots(words, q_ptr, s_ptr, f_ptr, xf_ptr, row, U, MODE, OFFSET, NT, STEPS, UNROLL)
    elif PACK >= 3:
        y = tl.sum(
            group_dots(words, q_ptr, s_ptr, f_ptr, x_ptr, row, U, PACK, MODE, OFFSET, R, NT, STEPS, ASM),
            axis=1,
        )
    else:
        y = tl.sum(plain_dots(words, q_ptr, x_ptr, row, U, PACK, R, NT, STEPS, UNROLL, ASM), axis=1)
    return y
