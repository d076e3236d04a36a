"""Kernel: attention of single tokens over the cache, in splits of fixed size, combined in order.

One token has one query a head, so there is no tile of queries to share keys as in a long prompt: what limits
is how fast the cache is read, and a head alone would be one program. So its slots are split, too.

A program takes one head of one token and SPLIT slots; the last of a head's programs to finish adds
their parts up, always in the order of the splits, so that the bits do not depend on who was last. How
many splits are launched changes nothing but how many find nothing to do.
"""

from __future__ import annotations

from llama_ckpt.kernels.compiler import gdc_launch_dependents, gdc_wait, jit, tl
from llama_ckpt.kernels.fused import place

__all__: list[str] = []


@jit
def attended(query, key_ptr, value_ptr, base, s, n_slots, HEAD: tl.constexpr, HEAD2: tl.constexpr):
    """Of the slots s: the sum of values weighted by exp(score - largest), the largest, the weights' sum."""
    d = tl.arange(0, HEAD2)
    cell = s[:, None] * HEAD + d[None, :]  # the cache is whole splits: no slot needs a mask
    if HEAD == HEAD2:
        key = tl.load(key_ptr + base + cell)
        value = tl.load(value_ptr + base + cell)
    else:
        key = tl.load(key_ptr + base + cell, d[None, :] < HEAD, 0.0)
        value = tl.load(value_ptr + base + cell, d[None, :] < HEAD, 0.0)
    score = tl.where(s < n_slots, tl.sum(key.to(tl.float32) * query[None, :], axis=1), float("-inf"))
    # The largest is taken off before exp, so that nothing overflows. A split knows only its own: `combined`
    # brings the splits to one.
    top = tl.max(score, axis=0)
    weight = tl.exp(score - top)
    return tl.sum(weight[:, None] * value.to(tl.float32), axis=0), top, tl.sum(weight, axis=0)


@jit
def combined(part_ptr, stats_ptr, n_splits, HEAD: tl.constexpr, HEAD2: tl.constexpr):
    """The context that the parts of n_splits splits add up to, always in their order."""
    TOGETHER: tl.constexpr = 16  # splits that are added up in one go
    d = tl.arange(0, HEAD2)
    top = float("-inf")
    total = 0.0
    context = tl.zeros((HEAD2,), tl.float32)
    start = 0
    while start < n_splits:  # the interpreter knows no `range` of a number that was loaded
        i = start + tl.arange(0, TOGETHER)
        stats = stats_ptr + i * 2
        kept = (i[:, None] < n_splits) & (d[None, :] < HEAD)
        # ".cg" reads past the L1 cache of this multiprocessor: other ones have written these since.
        t = tl.load(stats, i < n_splits, float("-inf"), cache_modifier=".cg")
        share = tl.load(stats + 1, i < n_splits, 0.0, cache_modifier=".cg")
        part = tl.load(part_ptr + i[:, None] * HEAD + d[None, :], kept, 0.0, cache_modifier=".cg")
        # What was added up so far is brought to the new largest, as in any softmax in one pass.
        highest = tl.maximum(top, tl.max(t, axis=0))
        new = tl.exp(t - highest)
        old = tl.exp(top - highest)
        total = total * old + tl.sum(new * share, axis=0)
        context = context * old + tl.sum(new[:, None] * part, axis=0)
        top = highest
        start += TOGETHER
    return context / total


@jit
def attention_kernel(query_ptr, key_ptr, value_ptr, slots_ptr, part_ptr, stats_ptr, counter_ptr, context_ptr,
                     capacity, group, scale, HEAD: tl.constexpr, HEAD2: tl.constexpr,
                     SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Context of one head and token; query [tokens, heads, HEAD], cache [kv heads, capacity, HEAD].

    A token sees the slots up to its own. part [tokens, heads, MAX_SPLITS, HEAD] and stats
    [tokens, heads, MAX_SPLITS, 2] are scratch; counter [tokens, heads] is zero before and after.
    """
    head = tl.program_id(0)
    split = tl.program_id(1)
    token = tl.program_id(2)
    n_heads = tl.num_programs(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    n_slots = tl.load(slots_ptr + token) + 1
    n_splits = (n_slots + SPLIT - 1) // SPLIT
    # Captured steps launch programs for the longest cache of their range: those beyond it do nothing, and are
    # not waited for, as the number that finish is counted against n_splits.
    if split < n_splits:
        d = tl.arange(0, HEAD2)
        s = split * SPLIT + tl.arange(0, SPLIT)
        here = token * n_heads + head
        query = tl.load(query_ptr + here * HEAD + d, d < HEAD, 0.0) * scale
        base = (head // group).to(tl.int64) * capacity * HEAD
        context, top, total = attended(query, key_ptr, value_ptr, base, s, n_slots, HEAD, HEAD2)
        at = context_ptr + token * n_heads * HEAD + place(head * HEAD + d, n_heads * HEAD // 32)
        parts = part_ptr + here * MAX_SPLITS * HEAD
        stats = stats_ptr + here * MAX_SPLITS * 2
        if n_splits == 1:  # nobody to wait for: up to SPLIT tokens scratch and counter are not touched
            tl.store(at, context / total, d < HEAD)
        else:
            tl.store(parts + split * HEAD + d, context, d < HEAD)
            tl.store(stats + split * 2, top)
            tl.store(stats + split * 2 + 1, total)
            # All threads' stores must be done before this program counts as finished (the barrier), and seen
            # by the whole GPU (release); whoever counts last must see all others' (acquire).
            tl.debug_barrier()
            finished = tl.atomic_add(counter_ptr + here, 1, sem="acq_rel", scope="gpu")
            if finished == n_splits - 1:
                tl.debug_barrier()
                tl.store(at, combined(parts, stats, n_splits, HEAD, HEAD2), d < HEAD)
                # Zero again for the next block: a replayed step has no launch to clear it.
                tl.store(counter_ptr + here, 0)
