"""Device functions: rows of 4-bit weights with one vector, on the tensor cores, at nearly float32's grade.

Unpacking on the ordinary units costs some four instructions a weight, which is more than there is time
for when four bits a weight come in at full speed. Here a word holds eight weights in the order in
which a lane hands them to `mma.m16n8k16`: one AND-OR makes two bfloat16 numbers 1 + q / 16 of it, exactly
(q in the upper bits of the fraction), and one instruction multiplies and sums 256 weights.

The vector goes in as two bfloat16 numbers, high and low part, 16 bits together. The matrix instruction
has eight columns: those of block i of four blocks of 32 weights are 2 i (high) and 2 i + 1 (low), zero
for the other blocks, so that after 128 weights lane t holds the two sums of block t and scales them
alone. A second product, with ones for weights, gives the sums of x that offsets and minima need.

Lane 4 g + t works on rows 4 g to 4 g + 3 of 32. A vector in fragments, bfloat16: see `fragment`.
"""

from __future__ import annotations

from llama_ckpt.kernels.compiler import jit, tl
from llama_ckpt.kernels.reading import high_half, load4, load_word, low_half

__all__: list[str] = []


@jit
def fragment(k):
    """Where the high part of element k lies; the low part lies 32 numbers further on."""
    lane = (k % 128) // 32 * 8 + (k % 8) // 2
    return (k // 128 * 32 + lane) * 8 + (k % 32) // 8 * 2 + k % 2


@jit
def put_fragments(pointer, k, x, inside, width):
    """Store elements of a vector as high and low bfloat16, where its width is whole chunks of 128."""
    pointer = pointer.to(tl.pointer_type(tl.bfloat16))
    inside = inside & (width % 128 == 0)
    high = x.to(tl.bfloat16)
    low = (x - high.to(tl.float32)).to(tl.bfloat16)
    tl.store(pointer + fragment(k), high, inside)
    tl.store(pointer + fragment(k) + 32, low, inside)


@jit
def load_fragments(pointer, mask):
    """Four words, written by the kernel before; 0 where masked."""
    return tl.inline_asm_elementwise(
        """{ .reg .pred p; setp.ne.b32 p, $5, 0;
        mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;
        @p ld.global.v4.b32 {$0, $1, $2, $3}, [$4]; }""",
        "=&r,=&r,=&r,=&r,l,r",
        [pointer, mask.to(tl.int32)],
        dtype=(tl.uint32, tl.uint32, tl.uint32, tl.uint32),
        is_pure=False,
        pack=1,
    )


@jit
def nibbles_mma(c, w, b0, b1):
    """c + A b for 16 rows of 16 weights 1 + q / 16."""
    return tl.inline_asm_elementwise(
        """{ .reg .b32 r1, r2, r3, a0, a1, a2, a3;
        shr.u32 r1, $4, 4; shr.u32 r2, $4, 8; shf.r.wrap.b32 r3, $4, $4, 12;
        lop3.b32 a0, $4, 0x00780078, 0x3F803F80, 0xEA; lop3.b32 a1, r1, 0x00780078, 0x3F803F80, 0xEA;
        lop3.b32 a2, r2, 0x00780078, 0x3F803F80, 0xEA; lop3.b32 a3, r3, 0x00780078, 0x3F803F80, 0xEA;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
        {$0, $1, $2, $3}, {a0, a1, a2, a3}, {$5, $6}, {$7, $8, $9, $10}; }""",
        "=f,=f,=f,=f,r,r,r,f,f,f,f",
        [w, b0, b1, c[0], c[1], c[2], c[3]],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=False,
        pack=1,
    )


@jit
def ones_mma(c, b0, b1):
    """c + the sums of b, in every row."""
    return tl.inline_asm_elementwise(
        """{ .reg .b32 a0; mov.b32 a0, 0x3F803F80;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
        {$0, $1, $2, $3}, {a0, a0, a0, a0}, {$4, $5}, {$6, $7, $8, $9}; }""",
        "=f,=f,=f,=f,r,r,f,f,f,f",
        [b0, b1, c[0], c[1], c[2], c[3]],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=False,
        pack=1,
    )


@jit
def chunk_vector(x, g):
    """A vector's 128 elements as the matrix instruction takes them, 4 words a block, and each block's sum."""
    zero = tl.zeros_like(g).to(tl.float32)
    s = (zero, zero, zero, zero)
    b = ()
    for i in tl.static_range(4):
        own = g // 2 == i
        words = (
            tl.where(own, x[0], 0),
            tl.where(own, x[1], 0),
            tl.where(own, x[2], 0),
            tl.where(own, x[3], 0),
        )
        s = ones_mma(ones_mma(s, words[0], words[1]), words[2], words[3])
        b = b + words
    return b, s[0] + s[1]


@jit
def chunk_dots(words, b, total, MODE: tl.constexpr, OFFSET: tl.constexpr):
    """This lane's block of 128 weights times x, for its two rows."""
    zero = total * 0.0
    c = (zero, zero, zero, zero)
    for i in tl.static_range(8):
        c = nibbles_mma(c, words[i], b[2 * i], b[2 * i + 1])
    less = total * (1.0 + OFFSET / 16.0)
    first = ((c[0] + c[1]) - less) * 16.0
    second = ((c[2] + c[3]) - less) * 16.0
    e = words[8]
    if MODE == 1:
        return low_half(e) * first, high_half(e) * second
    elif MODE == 2:
        first = low_half(e) * first + high_half(e) * total
        return first, low_half(words[9]) * second + high_half(words[9]) * total
    else:
        d0 = low_half(words[9]) * (e & 0xFF).to(tl.float32)
        m0 = high_half(words[9]) * ((e >> 8) & 0xFF).to(tl.float32)
        d1 = low_half(words[10]) * ((e >> 16) & 0xFF).to(tl.float32)
        m1 = high_half(words[10]) * (e >> 24).to(tl.float32)
        return d0 * first - m0 * total, d1 * second - m1 * total


@jit
def tile_words(q_ptr, s_ptr, f_ptr, row, batch, U: tl.constexpr, MODE: tl.constexpr, NT: tl.constexpr,
               STEPS: tl.constexpr, BATCH: tl.constexpr):  # fmt: skip
    """The words and scales of BATCH steps, a chunk of 128 columns and both halves of a tile each."""
    CHUNKS: tl.constexpr = U // 4
    tid = tl.arange(0, NT)
    lane = tid % 32
    words = ()
    for j in tl.static_range(2 * BATCH):
        tile = (row // 16 + j % 2) * CHUNKS
        c = (batch + j // 2) * (NT // 32) + tid // 32
        ok = c < CHUNKS
        at = q_ptr + ((tile + c) * 64 + lane) * 4
        w = load4(at, ok, True) + load4(at + 128, ok, True)
        if MODE == 2:
            e = s_ptr + ((tile + c) * 32 + lane) * 2
            w = w + (load_word(e, ok, True), load_word(e + 1, ok, True))
        else:
            w = w + (load_word(s_ptr + (tile + c) * 32 + lane, ok, True),)
        if MODE == 3:
            f = f_ptr + ((tile // 2 + c // 2) * 8 + lane // 4) * 2
            w = w + (load_word(f, ok, True), load_word(f + 1, ok, True))
        words = words + (w,)
    return words


@jit
def tile_dots(words, q_ptr, s_ptr, f_ptr, x_ptr, row, U: tl.constexpr, MODE: tl.constexpr,
              OFFSET: tl.constexpr, NT: tl.constexpr, STEPS: tl.constexpr, BATCH: tl.constexpr):  # fmt: skip
    """Dot products [32] of the rows from `row` on with a vector in fragments."""
    CHUNKS: tl.constexpr = U // 4
    WARPS: tl.constexpr = NT // 32
    tid = tl.arange(0, NT)
    lane = tid % 32
    r0 = tl.zeros((NT,), tl.float32)
    r1 = r0
    r2 = r0
    r3 = r0
    for batch in tl.static_range(0, STEPS, BATCH):
        if batch > 0:
            words = tile_words(q_ptr, s_ptr, f_ptr, row, batch, U, MODE, NT, STEPS, BATCH)
        for i in tl.static_range(BATCH):
            if batch + i < STEPS:
                c = (batch + i) * WARPS + tid // 32
                x = load_fragments(x_ptr + (c * 32 + lane) * 4, c < CHUNKS)
                b, total = chunk_vector(x, lane // 4)
                y0, y1 = chunk_dots(words[2 * i], b, total, MODE, OFFSET)
                y2, y3 = chunk_dots(words[2 * i + 1], b, total, MODE, OFFSET)
                r0 += y0
                r1 += y1
                r2 += y2
                r3 += y3
    rows = tl.join(tl.join(r0, r2), tl.join(r1, r3))  # [NT, half, row of the pair]
    rows = tl.reshape(rows, (WARPS, 8, 4, 4))
    return tl.reshape(tl.sum(tl.sum(rows, axis=2), axis=0), (32,))
