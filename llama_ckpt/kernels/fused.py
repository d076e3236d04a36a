"""Kernels of one decoding step: a few rows of weights a program, what follows the product fused in.

Every program takes R rows for one token: program_id(0) is the token, program_id(1) the group of rows.
A norm is split in two: who writes the residual stream also writes it times the next norm's weight, and
the sum of squares of its rows; who reads it adds those up, in order, and scales its own sums.
"""

from __future__ import annotations

from llama_ckpt.kernels.compiler import gdc_launch_dependents, gdc_wait, jit, tl
from llama_ckpt.kernels.row_products import first_words, row_dots

__all__: list[str] = []


@jit
def place(k, U):
    """Where element k of a vector of 32 U elements lies."""
    return ((k % 32) // 4 * U + k // 32) * 4 + k % 4


@jit
def partial_squares(ss_ptr, token, PARTS: tl.constexpr, PARTS2: tl.constexpr):
    """The partial sums of squares that the kernel before left. Loaded early, added up late."""
    i = tl.arange(0, PARTS2)
    return tl.load(ss_ptr + token * PARTS + i, i < PARTS, 0.0)


@jit
def inverse_rms(squares, width, eps):
    """1 / sqrt(mean of squares + eps)."""
    return 1.0 / tl.sqrt_rn(tl.sum(squares, axis=0) / width + eps)


@jit
def matvec_kernel(q_ptr, s_ptr, f_ptr, x_ptr, ss_ptr, y_ptr, n_rows, y_stride, eps, U: tl.constexpr,
                  PACK: tl.constexpr, MODE: tl.constexpr, OFFSET: tl.constexpr, R: tl.constexpr,
                  PASSES: tl.constexpr, NT: tl.constexpr, STEPS: tl.constexpr, AHEAD: tl.constexpr,
                  NORM: tl.constexpr, PARTS: tl.constexpr, PARTS2: tl.constexpr, FINE: tl.constexpr,
                  ASM: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """y = W x, with NORM the inverse RMS applied: the output head, and products on their own."""
    token = tl.program_id(0)
    row = tl.program_id(1) * R
    if PDL:
        gdc_launch_dependents()
    words = first_words(q_ptr, s_ptr, f_ptr, row, U, PACK, MODE, R, PASSES, NT, AHEAD, ASM)
    if PDL:
        gdc_wait()
    if NORM:
        squares = partial_squares(ss_ptr, token, PARTS, PARTS2)
    y = row_dots(words, q_ptr, s_ptr, f_ptr, x_ptr + token * U * 32, row, U, PACK, MODE, OFFSET,
                 R, PASSES, NT, STEPS, AHEAD, FINE, ASM)  # fmt: skip
    if NORM:
        y = y * inverse_rms(squares, U * 32, eps)
    rows = row + tl.arange(0, R)
    tl.store(y_ptr + token * y_stride + rows, y, rows < n_rows)


@jit
def residual_kernel(q_ptr, s_ptr, f_ptr, h_ptr, x_ptr, gain_ptr, xg_ptr, ss_ptr, width,
                    U: tl.constexpr, PACK: tl.constexpr, MODE: tl.constexpr, OFFSET: tl.constexpr,
                    R: tl.constexpr, PASSES: tl.constexpr, NT: tl.constexpr, STEPS: tl.constexpr,
                    AHEAD: tl.constexpr, FINE: tl.constexpr, ASM: tl.constexpr,
                    PDL: tl.constexpr):  # fmt: skip
    """x += W h; then x * gain for the next norm, and the sum of squares of these rows."""
    token = tl.program_id(0)
    part = tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
    rows = part * R + tl.arange(0, R)
    inside = rows < width
    gain = tl.load(gain_ptr + rows, inside, 0.0)
    words = first_words(q_ptr, s_ptr, f_ptr, part * R, U, PACK, MODE, R, PASSES, NT, AHEAD, ASM)
    if PDL:
        gdc_wait()
    at = x_ptr + token * width + rows
    x = tl.load(at, inside, 0.0)
    y = row_dots(words, q_ptr, s_ptr, f_ptr, h_ptr + token * U * 32, part * R, U, PACK, MODE, OFFSET,
                 R, PASSES, NT, STEPS, AHEAD, FINE, ASM)  # fmt: skip
    x += y
    tl.store(at, x, inside)
    tl.store(xg_ptr + token * width + place(rows, width // 32), x * gain, inside)
    x = tl.where(inside, x, 0.0)
    tl.store(ss_ptr + token * tl.num_programs(1) + part, tl.sum(x * x, axis=0))


@jit
def gate_up_kernel(q_ptr, s_ptr, f_ptr, xg_ptr, ss_ptr, h_ptr, ffn, eps, U: tl.constexpr,
                   PACK: tl.constexpr, MODE: tl.constexpr, OFFSET: tl.constexpr, R: tl.constexpr,
                   PASSES: tl.constexpr, NT: tl.constexpr, STEPS: tl.constexpr, AHEAD: tl.constexpr,
                   PARTS: tl.constexpr, PARTS2: tl.constexpr, FINE: tl.constexpr, ASM: tl.constexpr,
                   PDL: tl.constexpr):  # fmt: skip
    """silu(gate) * up; rows of the two matrices stand in turn."""
    token = tl.program_id(0)
    row = tl.program_id(1) * R
    if PDL:
        gdc_launch_dependents()
    words = first_words(q_ptr, s_ptr, f_ptr, row, U, PACK, MODE, R, PASSES, NT, AHEAD, ASM)
    if PDL:
        gdc_wait()
    squares = partial_squares(ss_ptr, token, PARTS, PARTS2)
    y = row_dots(words, q_ptr, s_ptr, f_ptr, xg_ptr + token * U * 32, row, U, PACK, MODE, OFFSET,
                 R, PASSES, NT, STEPS, AHEAD, FINE, ASM)  # fmt: skip
    y = y * inverse_rms(squares, U * 32, eps)
    gate, up = tl.split(tl.reshape(y, (R // 2, 2)))
    k = row // 2 + tl.arange(0, R // 2)
    h = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(h_ptr + token * ffn + place(k, ffn // 32), h, k < ffn)


@jit
def project(q_ptr, s_ptr, f_ptr, row, first_row, n_rows, xg_ptr, ss_ptr, turns_ptr, positions_ptr, slots_ptr,
            query_ptr, key_ptr, value_ptr, q_width, kv_width, capacity, eps, U: tl.constexpr,
            HEAD: tl.constexpr, PACK: tl.constexpr, MODE: tl.constexpr, OFFSET: tl.constexpr,
            R: tl.constexpr, PASSES: tl.constexpr, NT: tl.constexpr, STEPS: tl.constexpr,
            AHEAD: tl.constexpr, PARTS: tl.constexpr, PARTS2: tl.constexpr, FINE: tl.constexpr,
            ASM: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Rows `row` to `row + R` of a segment: queries and keys turned, keys and values written to the cache.

    The segment is rows `first_row` on of q, k and v under one another. A cache is
    [n_kv_heads, capacity, HEAD]; turns are cos and sin, [positions, HEAD / 2, 2].
    """
    token = tl.program_id(0)
    words = first_words(q_ptr, s_ptr, f_ptr, row, U, PACK, MODE, R, PASSES, NT, AHEAD, ASM)
    if PDL:
        gdc_wait()
    squares = partial_squares(ss_ptr, token, PARTS, PARTS2)
    local = row + 2 * tl.arange(0, R // 2)
    k = first_row + local  # the even row of each pair
    turned = k < q_width + kv_width
    position = tl.load(positions_ptr + token)
    slot = tl.load(slots_ptr + token)
    turns = turns_ptr + position * HEAD + k % HEAD
    cos = tl.load(turns, turned, 1.0)
    sin = tl.load(turns + 1, turned, 0.0)
    y = row_dots(words, q_ptr, s_ptr, f_ptr, xg_ptr + token * U * 32, row, U, PACK, MODE, OFFSET,
                 R, PASSES, NT, STEPS, AHEAD, FINE, ASM)  # fmt: skip
    y = y * inverse_rms(squares, U * 32, eps)
    even, odd = tl.split(tl.reshape(y, (R // 2, 2)))
    first = even * cos - odd * sin
    second = even * sin + odd * cos
    inside = local < n_rows
    is_q = inside & (k < q_width)
    is_k = inside & (k >= q_width) & turned
    is_v = inside & (k >= q_width + kv_width)
    tl.store(query_ptr + token * q_width + k, first, is_q)
    tl.store(query_ptr + token * q_width + k + 1, second, is_q)
    c = (k - q_width) % kv_width
    cell = (c // HEAD * capacity + slot) * HEAD + c % HEAD
    tl.store(key_ptr + cell, first.to(key_ptr.dtype.element_ty), is_k)
    tl.store(key_ptr + cell + 1, second.to(key_ptr.dtype.element_ty), is_k)
    tl.store(value_ptr + cell, first.to(value_ptr.dtype.element_ty), is_v)
    tl.store(value_ptr + cell + 1, second.to(value_ptr.dtype.element_ty), is_v)


@jit
def qkv_kernel(q_ptr, s_ptr, f_ptr, first_row, n_rows, xg_ptr, ss_ptr, turns_ptr, positions_ptr, slots_ptr,
               query_ptr, key_ptr, value_ptr, q_width, kv_width, capacity, eps, U: tl.constexpr,
               HEAD: tl.constexpr, PACK: tl.constexpr, MODE: tl.constexpr, OFFSET: tl.constexpr,
               R: tl.constexpr, PASSES: tl.constexpr, NT: tl.constexpr, STEPS: tl.constexpr,
               AHEAD: tl.constexpr, PARTS: tl.constexpr, PARTS2: tl.constexpr, FINE: tl.constexpr,
               ASM: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Queries, keys and values, or a segment of their rows: see `project`."""
    if PDL:
        gdc_launch_dependents()
    project(q_ptr, s_ptr, f_ptr, tl.program_id(1) * R, first_row, n_rows, xg_ptr, ss_ptr, turns_ptr,
            positions_ptr, slots_ptr, query_ptr, key_ptr, value_ptr, q_width, kv_width, capacity, eps,
            U, HEAD, PACK, MODE, OFFSET, R, PASSES, NT, STEPS, AHEAD, PARTS, PARTS2, FINE, ASM,
            PDL)  # fmt: skip


@jit
def mixed_qkv_kernel(q_ptr, s_ptr, f_ptr, n_rows, q2_ptr, s2_ptr, f2_ptr, n_rows2, xg_ptr, ss_ptr, turns_ptr,
                     positions_ptr, slots_ptr, query_ptr, key_ptr, value_ptr, q_width, kv_width, capacity,
                     eps, U: tl.constexpr, HEAD: tl.constexpr, PACK: tl.constexpr, MODE: tl.constexpr,
                     OFFSET: tl.constexpr, R: tl.constexpr, PASSES: tl.constexpr, STEPS: tl.constexpr,
                     AHEAD: tl.constexpr, PACK2: tl.constexpr, MODE2: tl.constexpr, OFFSET2: tl.constexpr,
                     R2: tl.constexpr, PASSES2: tl.constexpr, STEPS2: tl.constexpr, AHEAD2: tl.constexpr,
                     NT: tl.constexpr, PARTS: tl.constexpr, PARTS2: tl.constexpr, FINE: tl.constexpr,
                     ASM: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Two segments of different types in one launch, the second one's programs behind the first one's.

    A few hundred rows of v on their own fill the machine for a moment and wait for q and k before; a file
    with grouped heads that keeps v in another type has such rows in half of its blocks.
    """
    if PDL:
        gdc_launch_dependents()
    before = (n_rows + R - 1) // R
    i = tl.program_id(1)
    if i < before:
        project(q_ptr, s_ptr, f_ptr, i * R, 0, n_rows, xg_ptr, ss_ptr, turns_ptr, positions_ptr, slots_ptr,
                query_ptr, key_ptr, value_ptr, q_width, kv_width, capacity, eps, U, HEAD, PACK, MODE,
                OFFSET, R, PASSES, NT, STEPS, AHEAD, PARTS, PARTS2, FINE, ASM, PDL)  # fmt: skip
    else:
        project(q2_ptr, s2_ptr, f2_ptr, (i - before) * R2, n_rows, n_rows2, xg_ptr, ss_ptr, turns_ptr,
                positions_ptr, slots_ptr, query_ptr, key_ptr, value_ptr, q_width, kv_width, capacity, eps,
                U, HEAD, PACK2, MODE2, OFFSET2, R2, PASSES2, NT, STEPS2, AHEAD2, PARTS, PARTS2, FINE, ASM,
                PDL)  # fmt: skip


@jit
def embed_kernel(token_ids_ptr, table_ptr, gain_ptr, x_ptr, xg_ptr, ss_ptr, width,
                 PARTS: tl.constexpr,
                 PARTS2: tl.constexpr, WIDTH2: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """A token's vector to the residual stream, times the first norm's weight, and its sum of squares."""
    token = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
    k = tl.arange(0, WIDTH2)
    inside = k < width
    gain = tl.load(gain_ptr + k, inside, 0.0)
    if PDL:
        gdc_wait()
    row = tl.load(token_ids_ptr + token).to(tl.int64)
    x = tl.load(table_ptr + row * width + k, inside, 0.0).to(tl.float32)
    tl.store(x_ptr + token * width + k, x, inside)
    tl.store(xg_ptr + token * width + place(k, width // 32), x * gain, inside)
    part = tl.arange(0, PARTS2)
    total = tl.where(part == 0, tl.sum(x * x, axis=0), 0.0)
    tl.store(ss_ptr + token * PARTS + part, total, part < PARTS)
