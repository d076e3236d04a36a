"""Device functions: dot products of a few rows of a weight with a float32 vector, y = W x.

How to read this, coming from torch. A kernel runs as many *programs*; each computes R neighbouring rows of y
with NT threads. A tensor `[NT]` below has one element a thread, so it is a register of that thread and its
index is the thread's number. A tuple of such tensors is several registers; its index must be known when the
kernel is compiled, which is why every loop over a tuple is a `tl.static_range`, written out by the compiler,
and why arguments in CAPITALS are `tl.constexpr`: each set of them makes a kernel of its own.

Columns are shared out among the threads, rows are not: a thread works on all R rows of its columns. So what
it makes of its part of the vector (for packed weights integers, see `integer_vector`) serves R rows, and
threads meet once, at the very end, to add up (`row_sums`). One trip over the columns is called a step: it
takes NT pieces of each row, a piece being 16 bytes of plain numbers or one group of 32 packed weights.

For a group with scale d, offset o and minimum m:

    sum d (q - o) x - m sum x  =  d (sum q x - o sum x) - m sum x

q is what the planes store (see `planes`), never negative. sum x does not depend on the row: it is made once
for all rows, and offset and minimum then cost one multiplication a group instead of one a weight.

"Step 13" and the like are those of docs/speed_steps.md, which says what each was expected to bring and
brought.
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
    """Scale and minimum of both halves of a group: (s0, m0, s1, m1), float32; a minimum is subtracted.

    Args:
        s: the group's entry of the scale plane, uint32 [NT]; what it holds is said by `planes.Mode`.
        f: its block's entry of the super plane; where the type has none, anything.
        MODE: one of `planes.Mode`.
    """
    # All modes return four values, because the branch is taken by the compiler and callers name them all.
    # Where a type has no minimum, the scale stands in its place and nobody reads it.
    if MODE == HALF:
        d = low_half(s)
        return d, d, d, d
    elif MODE == PAIR:
        d = low_half(s)
        m = -high_half(s)  # Q4_1 and Q5_1 add theirs, the K-quants subtract it: here all subtract
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

    A row is a tuple of words: those of its weights, then its scale, then with MODE >= K_PAIR the super entry.
    U is the row's width / 32.
    """
    rows = ()
    # Neighbouring threads take neighbouring pieces, so that the 32 threads of a warp read 512 bytes in a row,
    # which memory serves whole.
    at = step * NT + tl.arange(0, NT)
    # All rows are read from one pointer, R constants apart: a constant is part of the load instruction, where
    # an address for each row took 50 instructions instead of 20 (step 14).
    # Of the two directions only columns are masked: planes are padded to whole tiles of rows.
    if PACK <= BFLOAT16:
        PIECES: tl.constexpr = U * 8 if PACK == FLOAT32 else U * 4
        ok = at < PIECES
        # In 64 bits: 32 would wrap at 2^31 words.
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
            # What does not fit into 16 bytes lies in a second plane behind the first one's U * 4 words. Were
            # a group's 32 bytes side by side, each load of a warp would skip every other 16 bytes.
            if PACK == BYTE:
                words = words + load4(q + (r * WORDS + U * 4), ok, ASM)
            if PACK == SIX:  # its second plane has two words a group, and q is at * 4 on its way already
                words = words + load2(q + (r * WORDS + U * 4) - at * 2, ok, ASM)
            words = words + (load_word(s + r * U, ok, ASM),)
            if MODE >= K_PAIR:
                words = words + (load_word(f + r * (U // 8), ok, ASM),)
            rows = rows + (words,)
    return rows


@jit
def eight(words, i: tl.constexpr, PACK: tl.constexpr):
    """Eight weights as two words of bytes, in the order in which `integers` pairs the elements of x.

    Args:
        words: a group's words, uint32 [NT] each.
        i: which eight of the group's 32, 0 to 3.
    """
    # The low four bits of a byte are an even weight, the high four the odd one after it. So a mask alone
    # makes bytes that `dp2a` can multiply: no weight is shifted out on its own.
    if PACK == NIBBLE:
        # The odd ones stay where they are and so count 16 times: a shift less for eight weights. `eights_dot`
        # puts that right once for the whole group.
        return words[i] & 0x0F0F0F0F, words[i] & 0xF0F0F0F0
    elif PACK == BYTE:
        return words[2 * i], words[2 * i + 1]
    else:
        # Here the odd ones must come down: their upper two bits join them, and 6 bits times 16 fit no byte.
        first = words[i] & 0x0F0F0F0F
        second = (words[i] >> 4) & 0x0F0F0F0F
        upper = words[4 + i // 2]  # serves two words: bits 0-3 of each byte for the first, 4-7 for the second
        if i % 2 == 0:
            return first | ((upper << 4) & 0x30303030), second | ((upper << 2) & 0x30303030)
        else:
            return first | (upper & 0x30303030), second | ((upper >> 2) & 0x30303030)


@jit
def eights_dot(words, pairs, rest, total, total_rest, START: tl.constexpr, END: tl.constexpr,
               PACK: tl.constexpr, OFFSET: tl.constexpr, FINE: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """sum (q - offset) x over the eights from START to END, float32 [NT], in units of the vector's integers.

    Args:
        words: the group's words.
        pairs, rest: the vector's 32 elements, see `integer_vector.integers`; `rest` only with FINE.
        total, total_rest: sums of the same elements' integers and rests.

    For nibbles the result is in sixteenths of units: see `eight`.
    """
    # Everything is added up in int32 and exactly: at most 32 products below 2^15 * 2^8 each, so below 2^28.
    # The order therefore changes no bit, and rounding begins where a group is turned into a float.
    # The offset is taken off the start of the sum. Bytes go into `dp2a` without a sign, which is why stored
    # integers carry an offset at all.
    acc = tl.zeros(words[0].shape, tl.int32) - total * OFFSET
    acc_rest = tl.zeros(words[0].shape, tl.int32) - total_rest * OFFSET
    # Nibbles only: what counts 16 times too much, the odd weights, is kept apart.
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
        # The even ones times 16, too, so that one factor of 1/16, in the unit, serves both. A factor in every
        # sum instead was slower: 786 tokens a second for 807 (step 14).
        return in_float((acc << 4) + second, (acc_rest << 4) + second_rest, FINE)
    else:
        return in_float(acc, acc_rest, FINE)


@jit
def group_dot(acc, w, unit, pairs, rest, sums, PACK: tl.constexpr, MODE: tl.constexpr, OFFSET: tl.constexpr,
              FINE: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """acc + the dot product of one row's group with 32 elements, float32 [NT].

    Args:
        acc: this row's sum so far.
        w: the group's words, scale and super entry, from `step_words`.
        unit: what the vector's integers are multiplied by, float32 [NT].
        pairs, rest: those integers.
        sums: of the group's two halves: (integers, rests) of the first, then of the second.
    """
    # Modes are numbered so that comparing is enough: from K_PAIR on there is a super entry, up to K_PAIR one
    # scale serves all 32 weights, after it each half of 16 has its own.
    WORDS: tl.constexpr = 4 if PACK == NIBBLE else 6 if PACK == SIX else 8
    low, low_rest, high, high_rest = sums
    share = unit * 0.0625 if PACK == NIBBLE else unit
    s0, m0, s1, m1 = scales(w[WORDS], w[WORDS + 1] if MODE >= K_PAIR else w[WORDS], MODE)
    if MODE <= K_PAIR:
        total = low + high
        total_rest = low_rest + high_rest
        acc += (s0 * share) * eights_dot(w, pairs, rest, total, total_rest, 0, 4, PACK, OFFSET, FINE, ASM)
        if MODE >= PAIR:  # the minimum of these types goes with x, not with the integers of the weights
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
    """What a step's products take of the vector: pieces, or integers with their unit and sums.

    The vector lies in pieces of four, the same piece of all groups together (see `reading`): a thread needs
    32 elements in a row, and if they lay in a row in memory too, a warp would read 16 bytes of every 128.
    """
    at = step * NT + tl.arange(0, NT)
    x = ()
    if PACK <= BFLOAT16:
        PER: tl.constexpr = 1 if PACK == FLOAT32 else 2  # pieces of x for 16 bytes of weights
        p = at * PER  # number of a piece of four in the row: piece p % 8 of group p // 8
        for i in tl.static_range(PER):
            x = x + (load_x(x_ptr + ((p % 8 + i) * U + p // 8) * 4, p < U * 8, ASM),)
        return x
    else:
        for i in tl.static_range(8):
            x = x + (load_x(x_ptr + at * 4 + U * 4 * i, at < U, ASM),)
        # Once a step, and all R rows use it. It is far from free: 220 of gate/up's 967 instructions (Q4_0).
        unit = unit_of(x, FINE)
        pairs, rest = integers(x, unit, PACK != BYTE, FINE, ASM)
        sums = half_sum(pairs, rest, 0, FINE, ASM) + half_sum(pairs, rest, 1, FINE, ASM)
        return unit, pairs, rest, sums


@jit
def rows_dots(acc, rows, x, FIRST: tl.constexpr, N: tl.constexpr, PACK: tl.constexpr, MODE: tl.constexpr,
              OFFSET: tl.constexpr, FINE: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """The sums [NT] of N rows from FIRST on, with a step's products added.

    A tuple cannot be written to, so new ones are made; the compiler sees registers either way.
    """
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
    """Start reading weights, those of the first AHEAD passes: see `row_dots` for what a pass is.

    Kernels of a step overlap (programmatic dependent launch): one may start while the one before still runs,
    up to its `gdc_wait`. What comes after that wait may read what the kernel before wrote; weights were
    written by none, so kernels call this before it, and memory is busy meanwhile. With ordinary loads the
    compiler moved them behind the wait; step 5 made them volatile. It brought no speed by itself, and costs
    nothing.
    """
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
    """Dot products [R] of the rows from `row` on with a vector in pieces, float32.

    Args:
        words: what `first_words` began to read.
        q_ptr, s_ptr, f_ptr: the planes of the weight: q, scale, super.
        x_ptr: the vector, float32 in pieces.
        row: the first row of this program.
        U: width / 32.
        R, PASSES, NT, AHEAD: see `launching.Tile`.
        STEPS: trips of NT pieces over a row.
        FINE: 23 bits of each element of x where weights are packed, not 16.
        ASM: 0 in the interpreter, 2 with instructions of Hopper, else 1.

    A step takes its rows in PASSES of R // PASSES each. With all 16 rows' words in registers at once nothing
    else fits (step 18: 675 tokens a second for 779); with 8 rows the vector's integers serve only 8. In
    passes few words are there at a time and the integers serve all 16 (step 19: `high` from 701 to 765 for
    Q4_0).
    """
    N: tl.constexpr = R // PASSES
    # A sum for each row and thread. They are added up over the threads only at the end: once, not once a
    # step.
    acc = ()
    for _ in tl.static_range(R):
        acc = acc + (tl.zeros((NT,), tl.float32),)
    for step in tl.static_range(STEPS):
        new = ()
        for i in tl.static_range(PASSES):
            # First ask for the words that are used AHEAD passes later, then work: loads take longer than a
            # pass of arithmetic. Passes are counted through: after a step's last one comes the next step's
            # first.
            if step * PASSES + i + AHEAD < STEPS * PASSES:
                words = words + (
                    step_words(q_ptr, s_ptr, f_ptr, row + (i + AHEAD) % PASSES * N,
                               step + (i + AHEAD) // PASSES, U, PACK, MODE, N, NT, ASM),
                )  # fmt: skip
            if i == 0:  # after the loads above, so that they do not wait for the vector's arithmetic
                x = step_vector(x_ptr, step, U, PACK, NT, FINE, ASM)
            new = new + rows_dots(acc, words[step * PASSES + i], x, i * N, N, PACK, MODE, OFFSET, FINE, ASM)
        acc = new
    return sums_of_rows(acc, R, NT, ASM)
