"""Device functions: 32 elements of a float32 vector as integers, for exact products with bytes of weights.

x = unit * q with 16-bit integers q, the largest of the 32 being 32,767: `dp2a` multiplies two of them with
two bytes and adds both products, exactly, in one instruction. Unpacking included, a weight of 4 bits takes
0.75 of an instruction and one of 8 bits 0.5, where mask and multiply-add take two. With FINE q has 15 bits
and x = unit * (q + rest / 256), with a byte `rest`; `dp4a` multiplies four of these: 23 bits in all.

This is where step 13 of docs/speed_steps.md found its gain (Q4_0 from 615 to 779 tokens a second), and step
16 how `high`, that is FINE, comes by its further bits in one multiply-add: it is cut into bytes by
permutations.

An element that is not finite makes its unit not finite, and so every sum it takes part in.

Elements come and go in eights, as words of weights hold them: `EVENS` first the even ones, then the odd ones,
as the low and the high nibbles of four bytes; else in order.
"""

from __future__ import annotations

from llama_ckpt.kernels.compiler import jit, tl

__all__: list[str] = []


@jit
def larger(a, b):
    """The larger magnitude; NaN where one is NaN."""
    return tl.maximum(a, tl.abs(b), propagate_nan=tl.PropagateNan.ALL)


@jit
def unit_of(x, FINE: tl.constexpr):
    """Of 32 elements, eight pieces of four; what their integers are to be multiplied by."""
    top = tl.zeros_like(x[0][0]) + 1e-30  # zeros have a unit, too
    for i in tl.static_range(8):
        # With a maximum that drops NaN, a NaN of x would be lost here and the product would look sound.
        top = larger(larger(larger(larger(top, x[i][0]), x[i][1]), x[i][2]), x[i][3])
    # The largest becomes 2^22 - 2 in units of 1/256, so that q + 2^14 stays below 2^15 in both directions.
    if FINE:
        return top * (256.0 / 4194302.0)
    else:
        return top * (1.0 / 32767.0)


@jit
def integer(x, per_unit, FINE: tl.constexpr):
    """q in the low 16 bits; with FINE `rest` in the lowest byte and q + 2^14 in the two above."""
    # Between 2^23 and 2^24 float32 numbers are integers, and the low bits of 1.5 * 2^23 + q are those of q.
    if FINE:
        return tl.fma(x, per_unit * 256.0, 12582912.0).to(tl.int32, bitcast=True)
    else:
        return tl.fma(x, per_unit, 12582912.0).to(tl.int32, bitcast=True)


@jit
def pair(a, b, FINE: tl.constexpr, ASM: tl.constexpr):
    """The q of two elements in one word, the first one low.

    `prmt` takes four of the eight bytes of two words, in one instruction: each digit says which, last first.
    Without FINE those are the two low bytes of both; with it the two above the rest.
    """
    if ASM and FINE:
        both = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, 0x6521;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
        )
        return less_in_both(both, ASM)
    elif ASM:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, 0x5410;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
        )
    elif FINE:
        return (((a >> 8) - 0x4000) & 0xFFFF) | (((b >> 8) - 0x4000) << 16)
    else:
        return (a & 0xFFFF) | (b << 16)


@jit
def less_in_both(both, ASM: tl.constexpr):
    """Two numbers of 15 bits, each less 2^14.

    Together, as one addition of halves (32 instructions of 1,296 less, step 16). Before Hopper there is none:
    there the top bits are set first, so that the lower half cannot borrow from the upper one.
    """
    if ASM == 2:  # from compute capability 9.0 on
        return tl.inline_asm_elementwise(
            "{ .reg .b32 less; mov.b32 less, 0xC000C000; add.s16x2 $0, $1, less; }", "=r,r", [both],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            """{ .reg .b32 p; or.b32 p, $1, 0x80008000; sub.u32 p, p, 0x40004000;
            xor.b32 $0, p, 0x80008000; }""", "=r,r", [both],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip


@jit
def rests(a, b, c, d, ASM: tl.constexpr):
    """The rests of four elements in one word."""
    if ASM:
        return tl.inline_asm_elementwise(
            """{ .reg .b32 low, high; prmt.b32 low, $1, $2, 0x0040; prmt.b32 high, $3, $4, 0x0040;
            prmt.b32 $0, low, high, 0x5410; }""",
            "=r,r,r,r,r",
            [a, b, c, d],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        return (a & 0xFF) | ((b & 0xFF) << 8) | ((c & 0xFF) << 16) | (d << 24)


@jit
def integers(x, unit, EVENS: tl.constexpr, FINE: tl.constexpr, ASM: tl.constexpr):
    """32 elements: 16 pairs, and with FINE 8 words of rests, four and two of each eight.

    Args:
        x: eight pieces of four elements, float32 [NT] each.
        unit: from `unit_of`.
        EVENS: of each eight first the even elements, then the odd ones, as `row_products.eight` unpacks
        nibbles.
    """
    per_unit = 1.0 / unit
    pairs = ()
    rest = ()
    for i in tl.static_range(4):
        a = integer(x[2 * i][0], per_unit, FINE)
        b = integer(x[2 * i][1], per_unit, FINE)
        c = integer(x[2 * i][2], per_unit, FINE)
        d = integer(x[2 * i][3], per_unit, FINE)
        e = integer(x[2 * i + 1][0], per_unit, FINE)
        f = integer(x[2 * i + 1][1], per_unit, FINE)
        g = integer(x[2 * i + 1][2], per_unit, FINE)
        h = integer(x[2 * i + 1][3], per_unit, FINE)
        if EVENS:  # elements change places here, once, so that weights need not, in every row
            b, c, d, e, f, g = c, e, g, b, d, f
        pairs = pairs + (pair(a, b, FINE, ASM), pair(c, d, FINE, ASM))
        pairs = pairs + (pair(e, f, FINE, ASM), pair(g, h, FINE, ASM))
        if FINE:
            rest = rest + (rests(a, b, c, d, ASM), rests(e, f, g, h, ASM))
    return pairs, rest


@jit
def dot2(acc, x, w, HIGH: tl.constexpr, ASM: tl.constexpr):
    """acc + a pair times the two lower, or upper, bytes of a word."""
    if ASM:
        if HIGH:
            return tl.inline_asm_elementwise(
                "dp2a.hi.s32.u32 $0, $1, $2, $3;", "=r,r,r,r", [x, w, acc],
                dtype=tl.int32, is_pure=True, pack=1,
            )  # fmt: skip
        else:
            return tl.inline_asm_elementwise(
                "dp2a.lo.s32.u32 $0, $1, $2, $3;", "=r,r,r,r", [x, w, acc],
                dtype=tl.int32, is_pure=True, pack=1,
            )  # fmt: skip
    else:
        two = (w >> 16 if HIGH else w).to(tl.int32, bitcast=True)
        return acc + ((x << 16) >> 16) * (two & 0xFF) + (x >> 16) * ((two >> 8) & 0xFF)


@jit
def dot4(acc, x, w, ASM: tl.constexpr):
    """acc + four rests times the four bytes of a word."""
    if ASM:
        return tl.inline_asm_elementwise(
            "dp4a.u32.u32 $0, $1, $2, $3;", "=r,r,r,r", [x, w, acc], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        v = w.to(tl.int32, bitcast=True)
        acc += (x & 0xFF) * (v & 0xFF) + ((x >> 8) & 0xFF) * ((v >> 8) & 0xFF)
        return acc + ((x >> 16) & 0xFF) * ((v >> 16) & 0xFF) + ((x >> 24) & 0xFF) * ((v >> 24) & 0xFF)


@jit
def half_sum(pairs, rest, HALF: tl.constexpr, FINE: tl.constexpr, ASM: tl.constexpr):
    """The sum of 16 of the elements: (of the q, of the rests)."""
    ones = tl.full(pairs[0].shape, 0x01010101, tl.uint32)
    total = tl.zeros(pairs[0].shape, tl.int32)
    total_rest = total
    for i in tl.static_range(8):
        total = dot2(total, pairs[8 * HALF + i], ones, False, ASM)
    if FINE:
        for i in tl.static_range(4):
            total_rest = dot4(total_rest, rest[4 * HALF + i], ones, ASM)
    return total, total_rest


@jit
def in_float(q, rest, FINE: tl.constexpr):
    """q + rest / 256, float32. Both sums are exact up to here; each is rounded to 24 bits once."""
    y = q.to(tl.float32)
    if FINE:
        y += rest.to(tl.float32) * (1.0 / 256.0)
    return y
