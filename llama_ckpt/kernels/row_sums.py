"""Device functions: add up over the threads of a program what each has of every row."""

from __future__ import annotations

from llama_ckpt.kernels.compiler import jit, tl

__all__: list[str] = []


@jit
def fold(a, b, lane_bit):
    """a's sums in the lanes without that bit, b's in those with it: each adds its own and its partner's."""
    return tl.inline_asm_elementwise(
        """{ .reg .pred p; .reg .b32 l, keep, give; mov.u32 l, %laneid; and.b32 l, l, $3; setp.ne.b32 p, l, 0;
        selp.b32 keep, $2, $1, p; selp.b32 give, $1, $2, p;
        shfl.sync.bfly.b32 give, give, $3, 31, -1; add.f32 $0, keep, give; }""",
        "=f,f,f,r",
        [a, b, lane_bit],
        dtype=tl.float32,
        is_pure=False,
        pack=1,
    )


@jit
def folded(acc, HALF: tl.constexpr, LANE_BIT: tl.constexpr):
    """Twice HALF tensors to HALF."""
    lane_bit = tl.full(acc[0].shape, LANE_BIT, tl.int32)
    new = ()
    for r in tl.static_range(HALF):
        new = new + (fold(acc[r], acc[r + HALF], lane_bit),)
    return new


@jit
def sums_of_rows(acc, R: tl.constexpr, NT: tl.constexpr, ASM: tl.constexpr):
    """Sums [R] of R tensors [NT], one element a thread; R up to 32.

    In each of the first rounds a lane hands half of its rows to a partner: R words travel, not 5 R.
    """
    if ASM:
        for i in tl.static_range(5):
            if (R >> i) > 1:
                acc = folded(acc, (R >> i) // 2, 16 >> i)
        return tl.sum(tl.sum(tl.reshape(acc[0], (NT // 32, R, 32 // R)), axis=2), axis=0)
    else:
        rows = tl.arange(0, R)
        sums = tl.zeros((R,), tl.float32)
        for r in tl.static_range(R):
            sums = tl.where(rows == r, tl.sum(acc[r], axis=0), sums)
        return sums
