"""Kernel: attention of single tokens over a float16 cache whose heads serve several queries, on tensor cores.

A head of keys is read once for all of its queries, which would be of no use to scores multiplied in float32:
there the instructions limit, not the bytes (docs/speed_steps.md, steps 21 and 22). On the tensor cores a
product has 16 rows in any case. A row in float32 takes two of them, its high and its low part in float16, and
both are added up in float32: 22 binary digits of it, times a cache that is float16 as it is.

As in `decode_attention` a program takes some slots of a head of keys, and the last one to finish adds the
parts up in their order.
"""

from __future__ import annotations

from llama_ckpt.kernels.compiler import gdc_launch_dependents, gdc_wait, jit, tl
from llama_ckpt.kernels.fused import place

__all__: list[str] = []


@jit
def in_two_rows(x, part):
    """Rows of numbers up to 1, each there several times, in float16: high parts, low parts, and zeros."""
    high = x.to(tl.float16)
    low = (x - high.to(tl.float32)).to(tl.float16)
    return tl.where(part == 0, high, tl.where(part == 1, low, 0.0)).to(tl.float16)


@jit
def repeated(x, M: tl.constexpr, G2: tl.constexpr, N: tl.constexpr):
    """Rows [G2, N] again and again, [M, N]."""
    return tl.reshape(tl.broadcast_to(x[None, :, :], (M // G2, G2, N)), (M, N))


@jit
def summed(x, M: tl.constexpr, G2: tl.constexpr, N: tl.constexpr):
    """What the parts of each row add up to: [M, N] to [G2, N]."""
    return tl.sum(tl.reshape(x, (M // G2, G2, N)), axis=0)


@jit
def grouped_attended(query, key_ptr, value_ptr, start, end, M: tl.constexpr, G2: tl.constexpr,
                     HEAD: tl.constexpr, HEAD2: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    """As `decode_attention.attended`, of a group of queries [M, HEAD2] and the slots from start to end.

    The queries are there M / G2 times. Contexts [G2, HEAD2], largest scores and sums of weights [G2].
    """
    d = tl.arange(0, HEAD2)
    part = (tl.arange(0, M) // G2)[:, None]
    # Divided by its largest, so that float16 holds a query of any size.
    size = tl.max(tl.abs(query), axis=1)
    size = tl.where(size > 0.0, size, 1.0)
    rows = in_two_rows(query / size[:, None], part)
    top = tl.full((G2,), float("-inf"), tl.float32)
    total = tl.zeros((G2,), tl.float32)
    context = tl.zeros((G2, HEAD2), tl.float32)
    while start < end:  # the interpreter knows no `range` of a number that was loaded
        s = start + tl.arange(0, CHUNK)  # the cache is whole chunks: no slot needs a mask
        cell = s[:, None] * HEAD + d[None, :]
        if HEAD == HEAD2:
            key = tl.load(key_ptr + cell)
            value = tl.load(value_ptr + cell)
        else:
            key = tl.load(key_ptr + cell, d[None, :] < HEAD, 0.0)
            value = tl.load(value_ptr + cell, d[None, :] < HEAD, 0.0)
        score = summed(tl.dot(rows, tl.trans(key)) * size[:, None], M, G2, CHUNK)
        score = tl.where(s[None, :] < end, score, float("-inf"))
        highest = tl.maximum(top, tl.max(score, axis=1))
        weight = tl.exp(score - highest[:, None])
        old = tl.exp(top - highest)
        made = tl.dot(in_two_rows(repeated(weight, M, G2, CHUNK), part), value)
        context = context * old[:, None] + summed(made, M, G2, HEAD2)
        total = total * old + tl.sum(weight, axis=1)
        top = highest
        start += CHUNK
    return context, top, total


@jit
def grouped_combined(part_ptr, stats_ptr, inside, n_splits, HEAD: tl.constexpr, HEAD2: tl.constexpr,
                     G2: tl.constexpr, PARTS: tl.constexpr):  # fmt: skip
    """The contexts [G2, HEAD2] that the parts of n_splits splits add up to, always in their order."""
    # The largest first, so that the sums below do not wait for one another's.
    TOGETHER: tl.constexpr = 16
    g = tl.arange(0, G2)
    d = tl.arange(0, HEAD2)
    every = tl.arange(0, PARTS)
    # ".cg" reads past the L1 cache of this multiprocessor: other ones have written these since.
    all_there = inside[:, None] & (every[None, :] < n_splits)
    cells = g[:, None] * PARTS + every[None, :]
    tops = tl.load(stats_ptr + cells * 2, all_there, float("-inf"), cache_modifier=".cg")
    top = tl.max(tops, axis=1)
    total = tl.zeros((G2,), tl.float32)
    context = tl.zeros((G2, HEAD2), tl.float32)
    start = 0
    while start < n_splits:  # as above
        i = start + tl.arange(0, TOGETHER)
        there = inside[:, None] & (i[None, :] < n_splits)
        cell = g[:, None] * PARTS + i[None, :]
        t = tl.load(stats_ptr + cell * 2, there, float("-inf"), cache_modifier=".cg")
        share = tl.load(stats_ptr + cell * 2 + 1, there, 0.0, cache_modifier=".cg")
        kept = there[:, :, None] & (d[None, None, :] < HEAD)
        part = tl.load(part_ptr + cell[:, :, None] * HEAD + d[None, None, :], kept, 0.0, cache_modifier=".cg")
        new = tl.where(there, tl.exp(t - top[:, None]), 0.0)
        total += tl.sum(new * share, axis=1)
        context += tl.sum(new[:, :, None] * part, axis=1)
        start += TOGETHER
    return context / total[:, None]


@jit
def grouped_attention_kernel(query_ptr, key_ptr, value_ptr, slots_ptr, part_ptr, stats_ptr, counter_ptr,
                             context_ptr, capacity, scale, GROUP: tl.constexpr, G2: tl.constexpr,
                             M: tl.constexpr, HEAD: tl.constexpr, HEAD2: tl.constexpr, CHUNK: tl.constexpr,
                             PARTS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Context of the GROUP heads that share keys, of one token; shapes as in `attention_kernel`.

    G2 is the power of two above GROUP, M that of rows: 16, or twice G2 where that is more. The cache is whole
    chunks of CHUNK slots; part and stats have room for PARTS parts of each head.
    """
    head = tl.program_id(0)
    split = tl.program_id(1)
    token = tl.program_id(2)
    n_heads = tl.num_programs(0) * GROUP
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    n_slots = tl.load(slots_ptr + token) + 1
    # Of many slots a program takes several chunks, so that there are never more than PARTS to combine.
    n_chunks = (n_slots + CHUNK - 1) // CHUNK
    span = (n_chunks + PARTS - 1) // PARTS * CHUNK
    n_splits = (n_slots + span - 1) // span
    if split < n_splits:
        d = tl.arange(0, HEAD2)
        start = split * span
        end = tl.minimum(start + span, n_slots)
        here = token * n_heads + head * GROUP
        row = tl.arange(0, M) % G2
        queries = query_ptr + (here + row[:, None]) * HEAD + d[None, :]
        query = tl.load(queries, (row[:, None] < GROUP) & (d[None, :] < HEAD), 0.0) * scale
        base = head.to(tl.int64) * capacity * HEAD
        context, top, total = grouped_attended(query, key_ptr + base, value_ptr + base, start, end,
                                               M, G2, HEAD, HEAD2, CHUNK)  # fmt: skip
        g = tl.arange(0, G2)
        inside = g < GROUP
        kept = inside[:, None] & (d[None, :] < HEAD)
        flat = (head * GROUP + g[:, None]) * HEAD + d[None, :]
        at = context_ptr + token * n_heads * HEAD + place(flat, n_heads * HEAD // 32)
        parts = part_ptr + here.to(tl.int64) * PARTS * HEAD
        stats = stats_ptr + here.to(tl.int64) * PARTS * 2
        if n_splits == 1:
            tl.store(at, context / total[:, None], kept)
        else:
            mine = g * PARTS + split
            tl.store(parts + mine[:, None] * HEAD + d[None, :], context, kept)
            tl.store(stats + mine * 2, top, inside)
            tl.store(stats + mine * 2 + 1, total, inside)
            # As in `attention_kernel`: stores done, then counted; whoever counts last sees all others'.
            tl.debug_barrier()
            finished = tl.atomic_add(counter_ptr + here, 1, sem="acq_rel", scope="gpu")
            if finished == n_splits - 1:
                tl.debug_barrier()
                whole = grouped_combined(parts, stats, inside, n_splits, HEAD, HEAD2, G2, PARTS)
                tl.store(at, whole, kept)
                tl.store(counter_ptr + here, 0)
