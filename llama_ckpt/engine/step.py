"""A few tokens through the whole model: five fused kernels a block, static buffers, one stream.

    embed -> [qkv + RoPE + cache | attention | output + residual | gate, up, SwiGLU | down + residual] x n
          -> output head -> greedy choice

One token of 32 blocks needs 163 launches, and the GPU is done with each in a few microseconds; launched one
by one, the host would set the speed. So a step is captured once as a CUDA graph and replayed. A graph keeps
addresses and arguments as they were: hence `Buffers`, which never move, and token, position and slot on the
device, where a replay reads what is new. A kernel ends where the next one needs a whole vector that many
programs wrote; what comes after a product and needs only its own rows (RoPE, SwiGLU, the residual sum) is
done by the same program (docs/speed_steps.md, step 2, has the first measurement of the whole).

A norm has no kernel. Its factor 1 / rms is one number, W (x g / rms) = (W (x g)) / rms: the kernel that
writes the stream x also writes x times the gain g and the sums of its rows' squares; the one that reads
multiplies, adds those up and scales its own results. So every writer of the stream must know the gain of the
norm that comes next, and every reader how many sums the last writer left.

Activations are float32 throughout; only the cache may be narrower.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from checkpoints.c01b_rope import rope_frequencies, rope_magnitude
from checkpoints.c08_logits import Tap, block_tap
from llama_ckpt.engine.weights import EngineWeights
from llama_ckpt.kernels.choosing import choose_kernel
from llama_ckpt.kernels.decode_attention import attention_kernel
from llama_ckpt.kernels.fused import (
    embed_kernel,
    gate_up_kernel,
    matvec_kernel,
    mixed_qkv_kernel,
    qkv_kernel,
    residual_kernel,
)
from llama_ckpt.kernels.grouped_attention import grouped_attention_kernel
from llama_ckpt.kernels.launching import (
    WARP,
    Tile,
    from_pieces,
    launch_options,
    power_of_two,
    reading_arguments,
    tile_for,
)
from llama_ckpt.kernels.planes import Planes
from llama_ckpt.weights.config import LlamaConfig

__all__ = ["FEW", "Buffers", "Step"]

FEW = 16
"""Most tokens that go through the step's kernels together; longer prompts take the tensor cores (`prefill`).

From 3 tokens on those would be faster, with a larger error and float16 copies of the weights: "Long prompts",
step 6, says why it was left so.
"""

SPLIT = 64
"""Slots that one program of the attention kernel looks at.

A constant, because the order of sums, and with it the last bits, depends on it. 128 slots with 8 warps were
no faster (docs/speed_steps.md, step 10).
"""

ATTENTION_WARPS = {torch.float16: 2, torch.float32: 4}
"""Of a program of the attention kernel, by the cache's type.

Tokens a second with a float16 cache: 796 (4 warps), 820 (2), 780 (1); with a float32 one 705 (4), 671 (2)
(docs/speed_steps.md, step 17).
"""


MOST_GROUPED = 16
"""Queries of a head of keys that `grouped_attention` takes together; more would want other tiles."""

PARTS = 32
"""Programs of a head of keys in `grouped_attention`, at most: the last to end adds up what all have made."""

CHUNK, GROUPED_WARPS = 128, 4
"""Slots that such a program takes at a time, and its warps."""

FEW_SLOTS = 4096
"""Slots times queries of a head of keys, up to which one head a program is the faster.

Microseconds at 500 and 2,048 slots: 5.2 and 11.9, on tensor cores 6.2 and 9.6, where four queries share a
head; 8.3 and 9.8 at 2,048 where two do (docs/speed_steps.md, step 22).
"""


class Attention:
    """Which of the two kernels attends, and in how many programs; the same for the same slots.

    Args:
        group: queries that share a head of keys.
        kv: the cache's type.
        capacity: of the cache.

    Attributes:
        whole: slots of a cache are a multiple of it.
        parts: for how many parts of a head there must be room.
    """

    def __init__(self, group: int, kv: torch.dtype, capacity: int) -> None:
        on_tensor_cores = kv == torch.float16 and 1 < group <= MOST_GROUPED
        self.plain_up_to = FEW_SLOTS // group if on_tensor_cores else capacity
        self.whole = max(SPLIT, CHUNK)
        self.parts = max(PARTS, -(-min(self.plain_up_to, capacity) // SPLIT))

    def grouped(self, slots: int) -> bool:
        """Whether heads that share keys are one program."""
        return slots > self.plain_up_to

    def programs(self, slots: int) -> int:
        """Programs of a head, or of a head of keys, for so many slots."""
        return min(PARTS, -(-slots // CHUNK)) if self.grouped(slots) else -(-slots // SPLIT)


class Buffers:
    """What steps read and write, at fixed addresses: a captured step would go on using the old ones.

    Vectors that products read lie "in pieces" (see `kernels.reading`); `from_pieces` puts them in order.

    Attributes:
        tokens: int32 [3, FEW], of the tokens in progress their token_ids, positions and slots, [FEW] each.
        x: float32 [FEW, width], the residual stream, in order.
        xg: float32 [FEW, width], in pieces: x times the next norm's weight, not yet divided by the RMS.
        squares: float32 [FEW, parts], sums of squares of x, one for each program that wrote a part of it.
        query: float32 [FEW, q_width], after RoPE, in order; context: as large, in pieces.
        hidden: float32 [FEW, ffn], in pieces: silu(gate) * up.
        parts, stats, counters: scratch of attention.
        group: queries that share a head of keys.
        attention: which kernel of attention, and how many programs.
        history: int32 [capacity + 1], the token chosen for each slot.
        keys, values: [n_layers, n_kv_heads, capacity in whole splits, head_dim], float16 or float32.
        logits: float32 [FEW, vocab].
        turns: float32 [context, head_dim / 2, 2], cos and sin, from float64 angles.
    """

    def __init__(
        self, config: LlamaConfig, capacity: int, parts: int, device: torch.device, kv: torch.dtype
    ) -> None:
        def floats(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        def ints(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.tokens, self.history = ints(3, FEW), ints(capacity + 1)
        self.token_ids, self.positions, self.slots = self.tokens
        # Whole splits and chunks, and zeros: a masked slot has probability 0, and 0 times a stray NaN would
        # be NaN.
        self.group = config.n_heads // config.n_kv_heads
        self.attention = Attention(self.group, kv, capacity)
        whole = self.attention.whole
        cache = (config.n_layers, config.n_kv_heads, -(-capacity // whole) * whole, config.head_dim)
        self.keys, self.values = (torch.zeros(cache, dtype=kv, device=device) for _ in range(2))
        # x twice: in order and plain for the sum, in pieces and times the gain for the product that reads it.
        self.x, self.xg, self.squares = (
            floats(FEW, config.width),
            floats(FEW, config.width),
            floats(FEW, parts),
        )
        self.query, self.context = floats(FEW, config.q_width), floats(FEW, config.q_width)
        self.hidden, self.logits = floats(FEW, config.ffn), floats(FEW, config.vocab_size)
        splits = (FEW, config.n_heads, self.attention.parts)
        self.parts, self.stats = floats(*splits, config.head_dim), floats(*splits, 2)
        self.counters = ints(FEW, config.n_heads)
        # In float64: an angle is position times frequency; in float32 it is off by up to 2^-24 of itself, and
        # at position 4,000 that shows in cos and sin.
        positions = torch.arange(max(config.context_length, capacity), dtype=torch.float64, device=device)
        angles = positions[:, None] * rope_frequencies(config, device)
        turns = torch.stack((angles.cos(), angles.sin()), dim=-1) * rope_magnitude(config)
        self.turns = turns.float().contiguous()


class Step:
    """Launches the kernels of a step on given buffers.

    Args:
        config: the model's shape.
        weights: its planes.
        buffers: see `Buffers`.
        pdl: overlap each kernel's start with the end of the one before.
        fine: multiply packed weights with 23 bits of each activation, not 16.
    """

    def __init__(
        self, config: LlamaConfig, weights: EngineWeights, buffers: Buffers, *, pdl: bool, fine: bool
    ) -> None:
        self.config, self.weights, self.buffers, self.pdl, self.fine = config, weights, buffers, pdl, fine
        # How many sums of squares the last writer of the stream left for each token, and the power of two
        # above, which Triton wants as a length. Host state that launches depend on: kernels must be launched
        # in order.
        self.parts = self.parts2 = 1

    def run(self, n: int, slots: int, tap: Tap | None = None) -> None:
        """Bring `n` tokens from `token_ids` to `logits`; `slots` of the cache are looked at."""
        b = self.buffers
        self.enter(0, b.token_ids, self.weights.embedding, n)
        if tap:
            tap("embd", b.x[:n].clone())
        for number in range(self.config.n_layers):
            self.block(number, n, slots, tap)
        self.head(n)

    def enter(self, number: int, rows: Tensor, table: Tensor, n: int) -> None:
        """Rows [n] of a table [rows, width] to the residual stream, for block `number` or the head."""
        b, c = self.buffers, self.config
        self.parts = self.parts2 = 1  # one program has the whole row
        embed_kernel[(n,)](
            rows, table, self._gains()[2 * number], b.x, b.xg, b.squares, c.width,
            PARTS=self.parts, PARTS2=self.parts2, WIDTH2=power_of_two(c.width), **self._plain(8),
        )  # fmt: skip

    def choose(self) -> None:
        """The greedy token of row 0, and the state of the next step: token, position and slot.

        On the device, so that the next replay can follow at once: the host need not read the token first.
        """
        b = self.buffers
        vocab = self.config.vocab_size
        choose_kernel[(1,)](
            b.logits, b.token_ids, b.positions, b.slots, b.history, vocab,
            VOCAB2=power_of_two(vocab), **self._plain(32),
        )  # fmt: skip

    def _gains(self) -> list[Tensor]:
        """The norm weights in the order in which the stream meets them."""
        blocks = self.weights.blocks
        gains = [gain for block in blocks for gain in (block.attn_norm, block.ffn_norm)]
        return [*gains, self.weights.output_norm]

    def _plain(self, warps: int) -> dict[str, Any]:
        # Kernels without a product use no inline assembly: Triton refuses an argument that they do not have.
        options = launch_options(WARP * warps, self.pdl)
        return {name: value for name, value in options.items() if name != "ASM"}

    def _reading(self, planes: Planes) -> tuple[Tile, dict[str, Any]]:
        tile = tile_for(planes, fine=self.fine)
        return tile, {
            **reading_arguments(planes, tile, fine=self.fine),
            **launch_options(tile.threads, self.pdl, tile.registers),
            "U": planes.shape[1] // 32,
        }

    def block(self, number: int, n: int, slots: int, tap: Tap | None) -> None:
        """One block on the residual stream in the buffers.

        Args:
            number: which block.
            n: tokens in progress, up to FEW.
            slots: of the cache that are looked at, as many as the last token needs or more: a captured step
                has one number for a range of lengths (docs/speed_steps.md, step 17), and a step that is
                launched takes the same, as the kernel of attention goes by it.
            tap: called with a name and a copy of each inner point. Copies, as the next kernel overwrites.
        """
        # Every norm's weight is multiplied in by the kernel before the one that it belongs to.
        w, gains = self.weights.blocks[number], self._gains()
        ffn_gain, next_gain = gains[2 * number + 1], gains[2 * number + 2]
        see = block_tap(number, tap)
        self._qkv(number, w.qkv, n)
        self._attention(number, n, slots)
        if see:
            self._show_attention(number, n, see)
        self._residual(w.wo, self.buffers.context, ffn_gain, n)
        if see:
            see("ffn_inp", self.buffers.x[:n].clone())
        self._gate_up(w.gate_up, n)
        if see:
            see("ffn_swiglu", from_pieces(self.buffers.hidden[:n]).clone())
        self._residual(w.down, self.buffers.hidden, next_gain, n)
        if see:
            see("out", self.buffers.x[:n].clone())

    def _show_attention(self, number: int, n: int, see: Tap) -> None:
        """Turned queries, and keys and values as the cache holds them."""
        b, heads = self.buffers, self.config.n_heads
        see("q_rope", b.query[:n].view(n, heads, -1).clone())
        slots = b.slots[:n].long()
        see("k_rope", b.keys[number][:, slots].transpose(0, 1).float())
        see("v", b.values[number][:, slots].transpose(0, 1).float())
        see("attn_context", from_pieces(b.context[:n]).clone())

    def _qkv(self, number: int, segments: tuple[tuple[int, Planes], ...], n: int) -> None:
        """Queries, keys and values: of one type, or in segments where a mixed file keeps v in another."""
        tiles = [tile_for(planes, fine=self.fine) for _, planes in segments]
        if len(segments) == 2 and _launched_alike(*tiles):
            self._mixed_qkv(number, segments[0][1], segments[1][1], n)
            return
        for (first_row, planes), tile in zip(segments, tiles, strict=True):
            _, reading = self._reading(planes)
            rows = planes.shape[0]
            qkv_kernel[(n, -(-rows // tile.rows))](
                planes.q, planes.scale, planes.super, first_row, rows, *self._written(number),
                HEAD=self.config.head_dim, PARTS=self.parts, PARTS2=self.parts2, **reading,
            )  # fmt: skip

    def _mixed_qkv(self, number: int, first: Planes, second: Planes, n: int) -> None:
        (tile, reading), (tile2, reading2) = self._reading(first), self._reading(second)
        both = {f"{name}2": reading2[name] for name in OF_A_SEGMENT}
        programs = [-(-p.shape[0] // t.rows) for p, t in ((first, tile), (second, tile2))]
        mixed_qkv_kernel[(n, sum(programs))](
            first.q, first.scale, first.super, first.shape[0],
            second.q, second.scale, second.super, second.shape[0], *self._written(number),
            HEAD=self.config.head_dim, PARTS=self.parts, PARTS2=self.parts2, **reading, **both,
        )  # fmt: skip

    def _written(self, number: int) -> tuple[Any, ...]:
        """What a kernel of queries, keys and values reads beside weights, and writes."""
        b, c = self.buffers, self.config
        return (
            b.xg, b.squares, b.turns, b.positions, b.slots, b.query, b.keys[number], b.values[number],
            c.q_width, c.kv_width, b.keys.shape[2], c.rms_norm_eps,
        )  # fmt: skip

    def _attention(self, number: int, n: int, slots: int) -> None:
        b, c = self.buffers, self.config
        buffers = (
            b.query,
            b.keys[number],
            b.values[number],
            b.slots,
            b.parts,
            b.stats,
            b.counters,
            b.context,
        )
        scale, cache, programs = c.head_dim**-0.5, b.keys.shape[2], b.attention.programs(slots)
        sizes = {"HEAD": c.head_dim, "HEAD2": power_of_two(c.head_dim)}
        if b.attention.grouped(slots):
            together = power_of_two(b.group)
            grouped_attention_kernel[(c.n_kv_heads, programs, n)](
                *buffers, cache, scale, GROUP=b.group, G2=together, M=max(16, 2 * together), **sizes,
                CHUNK=CHUNK, PARTS=b.attention.parts, **self._plain(GROUPED_WARPS),
            )  # fmt: skip
            return
        attention_kernel[(c.n_heads, programs, n)](
            *buffers, cache, b.group, scale, **sizes, SPLIT=SPLIT, MAX_SPLITS=b.attention.parts,
            **self._plain(ATTENTION_WARPS[b.keys.dtype]),
        )  # fmt: skip

    def _residual(self, planes: Planes, h: Tensor, gain: Tensor, n: int) -> None:
        b, c = self.buffers, self.config
        tile, reading = self._reading(planes)
        # Each program leaves one sum of squares. They are added up by the reader in their order: were they
        # added to one number as programs finish, the order, and so the last bits, would change from run to
        # run.
        self.parts = -(-c.width // tile.rows)
        self.parts2 = power_of_two(self.parts)
        residual_kernel[(n, self.parts)](
            planes.q, planes.scale, planes.super, h, b.x, gain, b.xg, b.squares, c.width,
            **reading,
        )  # fmt: skip

    def _gate_up(self, planes: Planes, n: int) -> None:
        b, c = self.buffers, self.config
        tile, reading = self._reading(planes)
        gate_up_kernel[(n, -(-planes.shape[0] // tile.rows))](
            planes.q, planes.scale, planes.super, b.xg, b.squares, b.hidden, c.ffn,
            c.rms_norm_eps,
            PARTS=self.parts, PARTS2=self.parts2, **reading,
        )  # fmt: skip

    def head(self, n: int) -> None:
        """The logits of the residual stream in the buffers."""
        b, c = self.buffers, self.config
        planes = self.weights.output
        tile, reading = self._reading(planes)
        matvec_kernel[(n, -(-c.vocab_size // tile.rows))](
            planes.q, planes.scale, planes.super, b.xg, b.squares, b.logits, c.vocab_size,
            b.logits.stride(0), c.rms_norm_eps,
            NORM=True, PARTS=self.parts, PARTS2=self.parts2, **reading,
        )  # fmt: skip


OF_A_SEGMENT = ("PACK", "MODE", "OFFSET", "R", "PASSES", "STEPS", "AHEAD")
"""What a kernel of two segments is told of each."""


def _launched_alike(first: Tile, second: Tile) -> bool:
    """Whether programs of both may stand in one launch, which has one number of threads and of registers."""
    return (first.threads, first.registers) == (second.threads, second.registers)


LEAST_ROWS = 4  # of any tile: the buffer of sums of squares must do for the tile with the most programs


def parts_of(config: LlamaConfig) -> int:
    """The most partial sums of squares that a writer of the residual stream leaves for a token."""
    return -(-config.width // LEAST_ROWS)
