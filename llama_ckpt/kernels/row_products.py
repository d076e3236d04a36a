"""Device functions: dot products of rows with a float32 vector, a thread working on all rows of its columns.

See `reading` for how vectors and plain numbers are read, and `integer_vector` for packed weights: a thread
takes one group of 32 of each of its rows at a time, and as many elements of the vector, which it turns into
integers once for all rows. It takes the rows in passes, so that registers hold the words of a few. The
group's scale comes after, once a group. What an offset takes away is offset times the sum of the
integers; a minimum, the minimum times the sum of x.
"""

from __future__ import annotations

from llama_ckpt.kernels.compiler import jit, tl
from llama_ckpt.kernels.integer_vector import dot2, dot4, half_sum, in_float, integers, unit_of
from llama_ckpt.kernels.pack_and_mode import (
    BFLOAT16,
    BYTE,
    FLOAT32,
    HALF,
    K_PAIR,
    K_TWO,
    K_TWO_PAIRS,
    NIBBLE,
    PAIR,
    SIX,
)
from llama_ckpt.kernels.reading import (
    high_half,
    load2,
    load4,
    load_word,
    load_x,
    low_half,
    plain_dot,
    signed_byte,
)
from llama_ckpt.kernels.row_sums import sums_of_rows

__all__: list[str] = []


@jit
def scales(s, f, MODE: tl.constexpr):
    """Scale and minimum of both halves of a group: (s0, m0, s1, m1), float32; a minimum is subtracted."""
    if MODE == HALF:
        d = low_half(s)
        return d, d, d, d
    elif MODE == PAIR:
        d = low_half(s)
        m = -high_half(s)
        return d, m, d, m
    elif MODE == K_PAIR:
        d = low_half(f) * (s & 0xFF).to(tl.float32)
        m = high_half(f) * (s >> 8).to(tl.float32)
        return d, m, d, m
    elif MODE == K_TWO:
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
def step_words(q_ptr, s_ptr, f_ptr, row, step, U: tl.constexpr, PACK: tl.constexpr, MODE: tl.constexpr,
               R: tl.constexpr, NT: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """Of each row what a step takes, [NT] each: 16 bytes of plain numbers, or 32 weights and their scales.

    Rows are a constant apart, so that one address serves them all.
    """
    rows = ()
    at = step * NT + tl.arange(0, NT)
    if PACK <= BFLOAT16:
        PIECES: tl.constexpr = U * 8 if PACK == FLOAT32 else U * 4
        ok = at < PIECES
        q = q_ptr + row.to(tl.int64) * (PIECES * 4) + at * 4
        for r in tl.static_range(R):
            rows = rows + (load4(q + r * (PIECES * 4), ok, ASM),)
    else:
        WORDS: tl.constexpr = U * 4 if PACK == NIBBLE else U * 6 if PACK == SIX else U * 8
        ok = at < U
        q = q_ptr + row.to(tl.int64) * WORDS + at * 4
        s = s_ptr + row * U + at
        f = f_ptr + row * (U // 8) + at // 8
        for r in tl.static_range(R):
            words = load4(q + r * WORDS, ok, ASM)
            if PACK == BYTE:
                words = words + load4(q + (r * WORDS + U * 4), ok, ASM)
            if PACK == SIX:
                words = words + load2(q + (r * WORDS + U * 4) - at * 2, ok, ASM)
            words = words + (load_word(s + r * U, ok, ASM),)
            if MODE >= K_PAIR:
                words = words + (load_word(f + r * (U // 8), ok, ASM),)
            rows = rows + (words,)
    return rows


@jit
def eight(words, i: tl.constexpr, PACK: tl.constexpr):
    """Eight weights as two words of bytes."""
    if PACK == NIBBLE:  # the second word's count 16 times
        return words[i] & 0x0F0F0F0F, words[i] & 0xF0F0F0F0
    elif PACK == BYTE:
        return words[2 * i], words[2 * i + 1]
    else:
        first = words[i] & 0x0F0F0F0F
        second = (words[i] >> 4) & 0x0F0F0F0F
        upper = words[4 + i // 2]
        if i % 2 == 0:
            return first | ((upper << 4) & 0x30303030), second | ((upper << 2) & 0x30303030)
        else:
            return first | (upper & 0x30303030), second | ((upper >> 2) & 0x30303030)


@jit
def eights_dot(words, pairs, rest, total, total_rest, START: tl.constexpr, END: tl.constexpr,
               PACK: tl.constexpr, OFFSET: tl.constexpr, FINE: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """sum (q - offset) x, in units, over the eights from START to END, the sum of whose x is `total`.

    For nibbles in sixteenths of units.
    """
    acc = tl.zeros(words[0].shape, tl.int32) - total * OFFSET
    acc_rest = tl.zeros(words[0].shape, tl.int32) - total_rest * OFFSET
    second = tl.zeros(words[0].shape, tl.int32)
    second_rest = second
    for i in tl.static_range(START, END):
        a, b = eight(words, i, PACK)
        acc = dot2(dot2(acc, pairs[4 * i], a, False, ASM), pairs[4 * i + 1], a, True, ASM)
        if PACK == NIBBLE:
            second = dot2(dot2(second, pairs[4 * i + 2], b, False, ASM), pairs[4 * i + 3], b, True, ASM)
        else:
            acc = dot2(dot2(acc, pairs[4 * i + 2], b, False, ASM), pairs[4 * i + 3], b, True, ASM)
        if FINE:
            acc_rest = dot4(acc_rest, rest[2 * i], a, ASM)
            if PACK == NIBBLE:
                second_rest = dot4(second_rest, rest[2 * i + 1], b, ASM)
            else:
                acc_rest = dot4(acc_rest, rest[2 * i + 1], b, ASM)
    if PACK == NIBBLE:
        return in_float((acc << 4) + second, (acc_rest << 4) + second_rest, FINE)
    else:
        return in_float(acc, acc_rest, FINE)


@jit
def group_dot(acc, w, unit, pairs, rest, sums, PACK: tl.constexpr, MODE: tl.constexpr, OFFSET: tl.constexpr,
              FINE: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """acc + the dot product of one row's group with 32 elements; sums are those of their halves."""
    WORDS: tl.constexpr = 4 if PACK == NIBBLE else 6 if PACK == SIX else 8
    low, low_rest, high, high_rest = sums
    share = unit * 0.0625 if PACK == NIBBLE else unit
    s0, m0, s1, m1 = scales(w[WORDS], w[WORDS + 1] if MODE >= K_PAIR else w[WORDS], MODE)
    if MODE <= K_PAIR:
        total = low + high
        total_rest = low_rest + high_rest
        acc += (s0 * share) * eights_dot(w, pairs, rest, total, total_rest, 0, 4, PACK, OFFSET, FINE, ASM)
        if MODE >= PAIR:
            acc -= m0 * (in_float(total, total_rest, FINE) * unit)
    else:
        acc += (s0 * share) * eights_dot(w, pairs, rest, low, low_rest, 0, 2, PACK, OFFSET, FINE, ASM)
        acc += (s1 * share) * eights_dot(w, pairs, rest, high, high_rest, 2, 4, PACK, OFFSET, FINE, ASM)
        if MODE == K_TWO_PAIRS:
            acc -= m0 * (in_float(low, low_rest, FINE) * unit) + m1 * (in_float(high, high_rest, FINE) * unit)
    return acc


@jit
def step_vector(x_ptr, step, U: tl.constexpr, PACK: tl.constexpr, NT: tl.constexpr, FINE: tl.constexpr,
                ASM: tl.constexpr):  # fmt: skip
    """What a step's products take of the vector: pieces, or integers with their unit and sums."""
    at = step * NT + tl.arange(0, NT)
    x = ()
    if PACK <= BFLOAT16:
        PER: tl.constexpr = 1 if PACK == FLOAT32 else 2  # pieces of x for 16 bytes of weights
        p = at * PER
        for i in tl.static_range(PER):
            x = x + (load_x(x_ptr + ((p % 8 + i) * U + p // 8) * 4, p < U * 8, ASM),)
        return x
    else:
        for i in tl.static_range(8):
            x = x + (load_x(x_ptr + at * 4 + U * 4 * i, at < U, ASM),)
        unit = unit_of(x, FINE)
        pairs, rest = integers(x, unit, PACK != BYTE, FINE, ASM)
        sums = half_sum(pairs, rest, 0, FINE, ASM) + half_sum(pairs, rest, 1, FINE, ASM)
        return unit, pairs, rest, sums


@jit
def rows_dots(acc, rows, x, FIRST: tl.constexpr, N: tl.constexpr, PACK: tl.constexpr, MODE: tl.constexpr,
              OFFSET: tl.constexpr, FINE: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """The sums [NT] of N rows from FIRST on, with a step's products added."""
    new = ()
    if PACK <= BFLOAT16:
        for r in tl.static_range(N):
            new = new + (plain_dot(acc[FIRST + r], rows[r], x, PACK),)
    else:
        unit, pairs, rest, sums = x
        for r in tl.static_range(N):
            new = new + (group_dot(acc[FIRST + r], rows[r], unit, pairs, rest, sums, PACK, MODE, OFFSET,
                                   FINE, ASM),)  # fmt: skip
    return new


@jit
def first_words(q_ptr, s_ptr, f_ptr, row, U: tl.constexpr, PACK: tl.constexpr, MODE: tl.constexpr,
                R: tl.constexpr, PASSES: tl.constexpr, NT: tl.constexpr, AHEAD: tl.constexpr,
                ASM: tl.constexpr):  # fmt: skip
    """Start reading rows, AHEAD passes: weights depend on no other kernel, so this comes before a wait."""
    words = ()
    for i in tl.static_range(AHEAD):
        words = words + (
            step_words(q_ptr, s_ptr, f_ptr, row + i % PASSES * (R // PASSES), i // PASSES, U, PACK, MODE,
                       R // PASSES, NT, ASM),
        )  # fmt: skip
    return words


@jit
def row_dots(words, q_ptr, s_ptr, f_ptr, x_ptr, row, U: tl.constexpr, PACK: tl.constexpr, MODE: tl.constexpr,
             OFFSET: tl.constexpr, R: tl.constexpr, PASSES: tl.constexpr, NT: tl.constexpr,
             STEPS: tl.constexpr, AHEAD: tl.constexpr, FINE: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """Dot products [R] of the rows from `row` on with a vector in pieces; `words` are on their way.

    A step's share of the vector serves all rows, in PASSES of R // PASSES rows.
    """
    N: tl.constexpr = R // PASSES
    acc = ()
    for _ in tl.static_range(R):
        acc = acc + (tl.zeros((NT,), tl.float32),)
    for step in tl.static_range(STEPS):
        new = ()
        for i in tl.static_range(PASSES):
            if step * PASSES + i + AHEAD < STEPS * PASSES:
                words = words + (
                    step_words(q_ptr, s_ptr, f_ptr, row + (i + AHEAD) % PASSES * N,
                               step + (i + AHEAD) // PASSES, U, PACK, MODE, N, NT, ASM),
                )  # fmt: skip
            if i == 0:
                x = step_vector(x_ptr, step, U, PACK, NT, FINE, ASM)
            new = new + rows_dots(acc, words[step * PASSES + i], x, i * N, N, PACK, MODE, OFFSET, FINE, ASM)
        acc = new
    return sums_of_rows(acc, R, NT, ASM)
