"""Device functions: dot products of rows in blocks with a float32 vector.

See `reading` for the layout of threads and vectors and for how integers become floats. A thread takes
one group of 32 weights of each of its rows at a time. Integers q are multiplied and summed in float32;
the group's scale comes after, once a group. What an offset or a minimum takes away is scale * offset or
minimum times the sum of the group's x, which all rows share.
"""

from __future__ import annotations

from llama_ckpt.kernels.compiler import gdc_wait, jit, tl
from llama_ckpt.kernels.reading import (
    bytes_dot,
    high_half,
    load4,
    load_word,
    load_x,
    low_half,
    nibbles_dot,
    plain_dots,
    signed_byte,
)

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
def group_dots(q_ptr, s_ptr, f_ptr, x_ptr, row, U: tl.constexpr, PACK: tl.constexpr, MODE: tl.constexpr,
               OFFSET: tl.constexpr, R: tl.constexpr, NT: tl.constexpr, STEPS: tl.constexpr,
               ASM: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Partial dot products [R, NT] of rows in blocks; a group of 32 weights a thread, row and step."""
    LOWER: tl.constexpr = 562949953421312.0  # 2^(149 - 100): brings lifted sums back
    WORDS: tl.constexpr = 4 if PACK == 3 else 8
    r = (row + tl.arange(0, R))[:, None]
    lane = tl.arange(0, NT)[None, :]
    acc = tl.zeros((R, NT), tl.float32)
    for step in tl.static_range(STEPS):
        u = step * NT + lane
        ok = u < U
        w0, w1, w2, w3 = load4(q_ptr + r * (U * WORDS) + u * 4, ok, ASM)
        if PACK == 4:
            w4, w5, w6, w7 = load4(q_ptr + r * (U * WORDS) + (U + u) * 4, ok, ASM)
        s = load_word(s_ptr + r * U + u, ok, ASM)
        f = s
        if MODE >= 3:
            f = load_word(f_ptr + r * (U // 8) + u // 8, ok, ASM)
        if PDL and step == 0:
            gdc_wait()
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
            first = nibbles_dot(first, w0, a0, a1, a2, a3, b0, b1, b2, b3)
            first = nibbles_dot(first, w1, c0, c1, c2, c3, d0, d1, d2, d3)
            first = nibbles_dot(first, w2, e0, e1, e2, e3, f0, f1, f2, f3)
            first = nibbles_dot(first, w3, g0, g1, g2, g3, h0, h1, h2, h3)
        else:
            first = bytes_dot(first, w0, a0, a1, a2, a3)
            first = bytes_dot(first, w1, b0, b1, b2, b3)
            first = bytes_dot(first, w2, c0, c1, c2, c3)
            first = bytes_dot(first, w3, d0, d1, d2, d3)
            if MODE <= 3:
                first = bytes_dot(first, w4, e0, e1, e2, e3)
                first = bytes_dot(first, w5, f0, f1, f2, f3)
                first = bytes_dot(first, w6, g0, g1, g2, g3)
                first = bytes_dot(first, w7, h0, h1, h2, h3)
            else:
                second = bytes_dot(second, w4, e0, e1, e2, e3)
                second = bytes_dot(second, w5, f0, f1, f2, f3)
                second = bytes_dot(second, w6, g0, g1, g2, g3)
                second = bytes_dot(second, w7, h0, h1, h2, h3)
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
def row_dots(q_ptr, s_ptr, f_ptr, x_ptr, row, U: tl.constexpr, PACK: tl.constexpr, MODE: tl.constexpr,
             OFFSET: tl.constexpr, R: tl.constexpr, NT: tl.constexpr, STEPS: tl.constexpr,
             UNROLL: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Dot products [R] of the rows from `row` on with one vector."""
    if PACK >= 3:
        acc = group_dots(q_ptr, s_ptr, f_ptr, x_ptr, row, U, PACK, MODE, OFFSET, R, NT, STEPS, ASM, PDL)
    else:
        acc = plain_dots(q_ptr, x_ptr, row, U, PACK, R, NT, STEPS, UNROLL, ASM, PDL)
    return tl.sum(acc, axis=1)
