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
def grouped_attended(query, key, value, s, n_slots, M: tl.constexpr, G2: tl.constexpr, HEAD2: tl.constexpr,
                     SPLIT: tl.constexpr):  # fmt: skip
    """As `decode_attention.attended`, of a group of queries: contexts [G2, HEAD2], largest and sums [G2].

    query: float32 [M, HEAD2], the group's rows again and again, M / G2 times; key and value [SPLIT, HEAD2].
    """
    part = (tl.arange(0, M) // G2)[:, None]
    # Divided by its largest, so that float16 holds a query of any size.
    size = tl.max(tl.abs(query), axis=1)
    size = tl.where(size > 0.0, size, 1.0)
    score = tl.dot(in_two_rows(query / size[:, None], part), tl.trans(key))
    score = tl.sum(tl.reshape(score * size[:, None], (M // G2, G2, SPLIT)), axis=0)
    score = tl.where(s[None, :] < n_slots, score, float("-inf"))
    top = tl.max(score, axis=1)
    weight = tl.exp(score - top[:, None])
    rows = tl.reshape(tl.broadcast_to(weight[None, :, :], (M // G2, G2, SPLIT)), (M, SPLIT))
    context = tl.dot(in_two_rows(rows, part), value)
    return tl.sum(tl.reshape(context, (M // G2, G2, HEAD2)), axis=0), top, tl.sum(weight, axis=1)


@jit
def grouped_combined(part_ptr, stats_ptr, inside, n_splits, HEAD: tl.constexpr, HEAD2: tl.constexpr,
                     G2: tl.constexpr, MAX_SPLITS: tl.constexpr):  # fmt: skip
    """The contexts [G2, HEAD2] that the parts of n_splits splits add up to, always in their order."""
    # The largest first, so that the sums below do not wait for one another's.
    AT_ONCE: tl.constexpr = 64
    TOGETHER: tl.constexpr = 8
    g = tl.arange(0, G2)
    d = tl.arange(0, HEAD2)
    top = tl.full((G2,), float("-inf"), tl.float32)
    start = 0
    while start < n_splits:  # the interpreter knows no `range` of a number that was loaded
        i = start + tl.arange(0, AT_ONCE)
        # ".cg" reads past the L1 cache of this multiprocessor: other ones have written these since.
        there = inside[:, None] & (i[None, :] < n_splits)
        cell = g[:, None] * MAX_SPLITS + i[None, :]
        t = tl.load(stats_ptr + cell * 2, there, float("-inf"), cache_modifier=".cg")
        top = tl.maximum(top, tl.max(t, axis=1))
        start += AT_ONCE
    total = tl.zeros((G2,), tl.float32)
    context = tl.zeros((G2, HEAD2), tl.float32)
    start = 0
    while start < n_splits:
        i = start + tl.arange(0, TOGETHER)
        there = inside[:, None] & (i[None, :] < n_splits)
        cell = g[:, None] * MAX_SPLITS + i[None, :]
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
                             M: tl.constexpr, HEAD: tl.constexpr, HEAD2: tl.constexpr, SPLIT: tl.constexpr,
                             MAX_SPLITS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Context of the GROUP heads that share keys, of one token; shapes as in `attention_kernel`.

    G2 is the power of two above GROUP, M that of rows: 16, or twice G2 where that is more.
    """
    head = tl.program_id(0)
    split = tl.program_id(1)
    token = tl.program_id(2)
    n_heads = tl.num_programs(0) * GROUP
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    n_slots = tl.load(slots_ptr + token) + 1
    n_splits = (n_slots + SPLIT - 1) // SPLIT
    if split < n_splits:
        d = tl.arange(0, HEAD2)
        s = split * SPLIT + tl.arange(0, SPLIT)
        cell = head.to(tl.int64) * capacity * HEAD + s[:, None] * HEAD + d[None, :]
        if HEAD == HEAD2:
            key = tl.load(key_ptr + cell)
            value = tl.load(value_ptr + cell)
        else:
            key = tl.load(key_ptr + cell, d[None, :] < HEAD, 0.0)
            value = tl.load(value_ptr + cell, d[None, :] < HEAD, 0.0)
        here = token * n_heads + head * GROUP
        row = tl.arange(0, M) % G2
        queries = query_ptr + (here + row[:, None]) * HEAD + d[None, :]
        query = tl.load(queries, (row[:, None] < GROUP) & (d[None, :] < HEAD), 0.0) * scale
        context, top, total = grouped_attended(query, key, value, s, n_slots, M, G2, HEAD2, SPLIT)
        g = tl.arange(0, G2)
        inside = g < GROUP
        kept = inside[:, None] & (d[None, :] < HEAD)
        flat = (head * GROUP + g[:, None]) * HEAD + d[None, :]
        at = context_ptr + token * n_heads * HEAD + place(flat, n_heads * HEAD // 32)
        parts = part_ptr + here.to(tl.int64) * MAX_SPLITS * HEAD
        stats = stats_ptr + here.to(tl.int64) * MAX_SPLITS * 2
        if n_splits == 1:
            tl.store(at, context / total[:, None], kept)
        else:
            mine = g * MAX_SPLITS + split
            tl.store(parts + mine[:, None] * HEAD + d[None, :], context, kept)
            tl.store(stats + mine * 2, top, inside)
            tl.store(stats + mine * 2 + 1, total, inside)
            # As in `attention_kernel`: stores done, then counted; whoever counts last sees all others'.
            tl.debug_barrier()
            finished = tl.atomic_add(counter_ptr + here, 1, sem="acq_rel", scope="gpu")
            if finished == n_splits - 1:
                tl.debug_barrier()
                whole = grouped_combined(parts, stats, inside, n_splits, HEAD, HEAD2, G2, MAX_SPLITS)
                tl.store(at, whole, kept)
                tl.store(counter_ptr + here, 0)
