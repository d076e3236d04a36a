"""Kernel: the greedy token of one row of logits, and the state of the next step."""

from __future__ import annotations

from llama_ckpt.kernels.compiler import gdc_launch_dependents, gdc_wait, jit, tl

__all__: list[str] = []


@jit
def choose_kernel(logits_ptr, token_ids_ptr, positions_ptr, slots_ptr, history_ptr, vocab,
                  VOCAB2: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """The lowest id of the largest logit (a NaN is passed over; where id 0 is NaN the answer is 0).

    It becomes the next token, one position and one slot on, and is noted in history[slot + 1].
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    i = tl.arange(0, VOCAB2)
    x = tl.load(logits_ptr + i, i < vocab, float("-inf"))
    first = tl.load(logits_ptr)
    x = tl.where(x != x, float("-inf"), x)
    best = tl.min(tl.where((x == tl.max(x, axis=0)) & (i < vocab), i, VOCAB2), axis=0)
    best = tl.where(first != first, 0, best)
    slot = tl.load(slots_ptr) + 1
    tl.store(token_ids_ptr, best)
    tl.store(positions_ptr, tl.load(positions_ptr) + 1)
    tl.store(slots_ptr, slot)
    tl.store(history_ptr + slot, best)
