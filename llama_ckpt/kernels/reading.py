"""Device functions: wide loads, and dot products of packed rows with float32 vectors.

One thread is one lane of a [rows, threads] tensor: with as many columns as threads, Triton gives each
thread one column and all its rows. Loads are 16 bytes a thread by inline assembly, because a thread's
pieces must be its own; the interpreter takes plain loads instead.

No integer is ever converted. A field of bits 0 to 23 of a word, the rest masked away, is as a float32
the number field * 2^(lowest bit - 149): floats with an exponent field of 0 or 1 are evenly spaced. So
one AND and one fused multiply-add do the work of unpack, convert and accumulate, exactly, when x is
scaled by a power of two beforehand: by 2^100, so |x| may be up to 2^27. (The
multiply-add takes denormal numbers at full speed.)

Vectors lie in pieces of four, so that 32 neighbouring lanes read 512 neighbouring bytes: piece j of
the 32 elements that lane u works on stands at 4 * (j * U + u), with U = width / 32.
"""

from __future__ import annotations

from llama_ckpt.kernels.compiler import jit, tl

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
def load_x(pointer, mask, ASM: tl.constexpr):
    """Four neighbouring float32, written by the kernel before: (a, b, c, d); 0 where masked."""
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
    """The int8 in the lowest byte, as float32."""
    return (word & 0xFF).to(tl.uint8).to(tl.int8, bitcast=True).to(tl.float32)


@jit
def times(acc, field, x):
    """acc + field * x, the field taken as the bits of a float32."""
    return acc + field.to(tl.float32, bitcast=True) * x


@jit
def nibbles_dot(acc, w, a, b, c, d, e, f, g, h):
    """Eight nibbles with eight elements, the sum lifted by 2^(100 - 149)."""
    LIFT: tl.constexpr = 1267650600228229401496703205376.0
    acc = times(acc, w & 0xF, a * LIFT)
    acc = times(acc, w & 0xF0, b * (LIFT / 16))
    acc = times(acc, w & 0xF00, c * (LIFT / 256))
    acc = times(acc, w & 0xF000, d * (LIFT / 4096))
    acc = times(acc, w & 0xF0000, e * (LIFT / 65536))
    acc = times(acc, w & 0xF00000, f * (LIFT / 1048576))
    acc = times(acc, (w >> 24) & 0xF, g * LIFT)
    return times(acc, w >> 28, h * LIFT)


@jit
def bytes_dot(acc, w, a, b, c, d):
    """Four bytes with four elements, the sum lifted by 2^(100 - 149)."""
    LIFT: tl.constexpr = 1267650600228229401496703205376.0
    acc = times(acc, w & 0xFF, a * LIFT)
    acc = times(acc, w & 0xFF00, b * (LIFT / 256))
    acc = times(acc, w & 0xFF0000, c * (LIFT / 65536))
    return times(acc, w >> 24, d * LIFT)


@jit
def halves_dot(acc, w, a, b, PACK: tl.constexpr):
    """Two float16 or bfloat16 with two elements."""
    if PACK == 1:
        return acc + low_half(w) * a + high_half(w) * b
    else:
        return times(times(acc, w << 16, a), w & 0xFFFF0000, b)


@jit
def plain_words(q_ptr, row, start, U: tl.constexpr, PACK: tl.constexpr, R: tl.constexpr, NT: tl.constexpr,
                UNROLL: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """The words of UNROLL steps; 16 bytes a thread, row and step."""
    PIECES: tl.constexpr = U * 8 if PACK == 0 else U * 4
    rows = q_ptr + (row + tl.arange(0, R))[:, None] * (PIECES * 4)
    words = ()
    for i in tl.static_range(UNROLL):
        v = (start + i) * NT + tl.arange(0, NT)[None, :]
        words = words + (load4(rows + v * 4, v < PIECES, ASM),)
    return words


@jit
def plain_step(acc, words, x_ptr, start, U: tl.constexpr, PACK: tl.constexpr, NT: tl.constexpr,
               UNROLL: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """Add the products of these words."""
    PER: tl.constexpr = 1 if PACK == 0 else 2  # pieces of x for 16 bytes of weights
    for i in tl.static_range(UNROLL):
        p = ((start + i) * NT + tl.arange(0, NT)[None, :]) * PER
        ok = p < U * 8
        w = words[i]
        a, b, c, d = load_x(x_ptr + ((p % 8) * U + p // 8) * 4, ok, ASM)
        if PACK == 0:
            acc = times(times(times(times(acc, w[0], a), w[1], b), w[2], c), w[3], d)
        else:
            e, f, g, h = load_x(x_ptr + ((p % 8 + 1) * U + p // 8) * 4, ok, ASM)
            acc = halves_dot(halves_dot(acc, w[0], a, b, PACK), w[1], c, d, PACK)
            acc = halves_dot(halves_dot(acc, w[2], e, f, PACK), w[3], g, h, PACK)
    return acc


@jit
def plain_dots(words, q_ptr, x_ptr, row, U: tl.constexpr, PACK: tl.constexpr, R: tl.constexpr,
               NT: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """Partial dot products [R, NT] of plain rows, whose first words are there already."""
    acc = plain_step(tl.zeros((R, NT), tl.float32), words, x_ptr, 0, U, PACK, NT, UNROLL, ASM)
    for start in tl.range(UNROLL, STEPS, UNROLL):
        more = plain_words(q_ptr, row, start, U, PACK, R, NT, UNROLL, ASM)
        acc = plain_step(acc, more, x_ptr, start, U, PACK, NT, UNROLL, ASM)
    return acc
