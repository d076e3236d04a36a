"""Device functions: wide loads of weights and vectors, and products of plain numbers.

A tensor has as many elements as a program has threads, one for each. Loads are 16 bytes a thread by inline
assembly, because a thread's pieces must be its own: Triton's own wide loads share a tensor out among threads
as the compiler likes. The interpreter takes plain loads instead, one for each word.

Vectors lie in pieces of four, so that 32 neighbouring lanes read 512 neighbouring bytes: piece j of
the 32 elements that lane u works on stands at 4 * (j * U + u), with U = width / 32.
"""

from __future__ import annotations

from llama_ckpt.kernels.compiler import jit, tl
from llama_ckpt.kernels.pack_and_mode import FLOAT16, FLOAT32

__all__: list[str] = []


@jit
def load4(pointer, mask, ASM: tl.constexpr):
    """Four neighbouring words of a weight at each pointer: (uint32, ...); 0 where masked.

    Volatile, although nothing else writes them: an ordinary load is moved to just before its first use,
    behind the wait for the kernel before, and then hardly anything is in flight.
    """
    if ASM:
        return tl.inline_asm_elementwise(
            """{ .reg .pred p; setp.ne.b32 p, $5, 0;
            mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;
            @p ld.volatile.global.v4.b32 {$0, $1, $2, $3}, [$4]; }""",
            "=&r,=&r,=&r,=&r,l,r",
            [pointer, mask.to(tl.int32)],
            dtype=(tl.uint32, tl.uint32, tl.uint32, tl.uint32),
            is_pure=False,
            pack=1,
        )
    else:
        a = tl.load(pointer, mask, 0).to(tl.uint32, bitcast=True)
        b = tl.load(pointer + 1, mask, 0).to(tl.uint32, bitcast=True)
        c = tl.load(pointer + 2, mask, 0).to(tl.uint32, bitcast=True)
        d = tl.load(pointer + 3, mask, 0).to(tl.uint32, bitcast=True)
        return a, b, c, d


@jit
def load2(pointer, mask, ASM: tl.constexpr):
    """Two neighbouring words of a weight at each pointer, as `load4`."""
    if ASM:
        return tl.inline_asm_elementwise(
            """{ .reg .pred p; setp.ne.b32 p, $3, 0; mov.b32 $0, 0; mov.b32 $1, 0;
            @p ld.volatile.global.v2.b32 {$0, $1}, [$2]; }""",
            "=&r,=&r,l,r",
            [pointer, mask.to(tl.int32)],
            dtype=(tl.uint32, tl.uint32),
            is_pure=False,
            pack=1,
        )
    else:
        a = tl.load(pointer, mask, 0).to(tl.uint32, bitcast=True)
        b = tl.load(pointer + 1, mask, 0).to(tl.uint32, bitcast=True)
        return a, b


@jit
def load_x(pointer, mask, ASM: tl.constexpr):
    """Four neighbouring float32, written by the kernel before: (a, b, c, d); 0 where masked.

    Not volatile as weights are: it may be read only after the wait for that kernel in any case.
    """
    if ASM:
        return tl.inline_asm_elementwise(
            """{ .reg .pred p; setp.ne.b32 p, $5, 0;
            mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;
            @p ld.global.v4.b32 {$0, $1, $2, $3}, [$4]; }""",
            "=&r,=&r,=&r,=&r,l,r",
            [pointer, mask.to(tl.int32)],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=False,
            pack=1,
        )
    else:
        a = tl.load(pointer, mask, 0.0)
        b = tl.load(pointer + 1, mask, 0.0)
        c = tl.load(pointer + 2, mask, 0.0)
        d = tl.load(pointer + 3, mask, 0.0)
        return a, b, c, d


@jit
def load_word(pointer, mask, ASM: tl.constexpr):
    """A 2- or 4-byte scale entry at each pointer as uint32; 0 where masked."""
    if pointer.dtype.element_ty == tl.int16:
        if ASM:
            return tl.inline_asm_elementwise(
                """{ .reg .pred p; .reg .b16 h; setp.ne.b32 p, $2, 0; mov.b16 h, 0;
                @p ld.volatile.global.b16 h, [$1]; cvt.u32.u16 $0, h; }""",
                "=r,l,r",
                [pointer, mask.to(tl.int32)],
                dtype=tl.uint32,
                is_pure=False,
                pack=1,
            )
        else:
            return tl.load(pointer, mask, 0).to(tl.uint16, bitcast=True).to(tl.uint32)
    else:
        if ASM:
            return tl.inline_asm_elementwise(
                """{ .reg .pred p; setp.ne.b32 p, $2, 0; mov.b32 $0, 0;
                @p ld.volatile.global.b32 $0, [$1]; }""",
                "=&r,l,r",
                [pointer, mask.to(tl.int32)],
                dtype=tl.uint32,
                is_pure=False,
                pack=1,
            )
        else:
            return tl.load(pointer, mask, 0).to(tl.uint32, bitcast=True)


@jit
def low_half(word):
    """The float16 in the low bytes, as float32."""
    return (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@jit
def high_half(word):
    """The float16 in the high bytes, as float32."""
    return (word >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@jit
def signed_byte(word):
    """The lowest byte as an int8, float32."""
    return (word & 0xFF).to(tl.uint8).to(tl.int8, bitcast=True).to(tl.float32)


@jit
def times(acc, field, x):
    """acc + field * x, the field taken as the bits of a float32: a bfloat16 is the upper half of one."""
    return acc + field.to(tl.float32, bitcast=True) * x


@jit
def two_dot(acc, w, a, b, PACK: tl.constexpr):
    """Two float16 or bfloat16 with two elements."""
    if PACK == FLOAT16:
        return acc + low_half(w) * a + high_half(w) * b
    else:
        return times(times(acc, w << 16, a), w & 0xFFFF0000, b)


@jit
def plain_dot(acc, w, x, PACK: tl.constexpr):
    """acc + 16 bytes of plain numbers times one or two pieces of a vector."""
    a, b, c, d = x[0]
    if PACK == FLOAT32:
        return times(times(times(times(acc, w[0], a), w[1], b), w[2], c), w[3], d)
    else:
        e, f, g, h = x[1]
        acc = two_dot(two_dot(acc, w[0], a, b, PACK), w[1], c, d, PACK)
        return two_dot(two_dot(acc, w[2], e, f, PACK), w[3], g, h, PACK)
