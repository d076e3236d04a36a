"""A long prompt through the tensor cores: half-precision inputs, float32 sums, float32 residual.

Weights are dense float16 here, exact for a float16 file. With precision "high" what float16 cannot hold
of an activation, or of a weight, is carried beside it (`products`), and attention's inputs are pairs.

A prompt is computed with as many rows as `padded` says, so that prompts of many lengths launch the same
kernels: the first one of a size launches them one by one, the second captures them, and from then on
they are replayed. The bits are the same each way; the rows that fill up are never cached.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from checkpoints.c08_logits import Tap, block_tap
from llama_ckpt.engine.products import LOW_PART, Dense, Rows, add_product, product
from llama_ckpt.engine.prompt_attention import PromptAttention
from llama_ckpt.engine.room import Room, padded
from llama_ckpt.engine.step import Buffers
from llama_ckpt.engine.weights import EngineWeights
from llama_ckpt.kernels.launching import power_of_two
from llama_ckpt.kernels.many_rows import norm_kernel, swiglu_kernel
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.quants import exact_matmul

__all__ = ["CAPTURED_ROWS", "Prefill"]

CAPTURED_ROWS = 1024
"""Most rows whose kernels are captured: longer prompts keep the GPU busy while they are launched.

Capturing 2,048 rows brought 50.05 to 49.7 ms, which is not worth a graph's memory (docs/speed_steps.md, "Long
prompts", step 1).
"""

_SWIGLU_COLUMNS = 1024  # of a row that one program takes
_NORM_LIFT = 4.0  # of a norm's output in 8 bits, which its width bounds to some hundreds


class Prefill:
    """Runs prompts into the cache that steps use.

    Args:
        config: the model's shape.
        weights: its dense weights are made on first use.
        buffers: the cache is written; the rest is left alone.
        pair: carry what float16 cannot hold.
        graphs: capture what is met again.
    """

    def __init__(
        self, config: LlamaConfig, weights: EngineWeights, buffers: Buffers, *, pair: bool, graphs: bool
    ) -> None:
        self.config, self.weights, self.buffers = config, weights, buffers
        self.pair, self.graphs = pair, graphs
        self.attention = PromptAttention(config, buffers, pair=pair)
        self._wide = torch.float32 if pair else torch.float16  # products that go on in half precision anyway
        self._device = buffers.keys.device
        # Graphs keep the addresses of the room that they were captured in: one, kept for as long as they are.
        self._small: Room | None = None
        self._met: set[int] = set()
        self._captured: dict[int, torch.cuda.CUDAGraph] = {}
        self._units = {lift: torch.tensor(1 / lift, device=self._device) for lift in (1.0, _NORM_LIFT)}

    def run(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        start: int,
        *,
        last_only: bool,
        tap: Tap | None,
    ) -> Tensor:
        """The logits, float32 [n or 1, vocab], of `n` tokens that take the slots from `start` on."""
        n = len(token_ids)
        room, rows = self._room(n), padded(n)
        room.place(token_ids, positions, start)
        with exact_matmul():
            # A tap is Python, which a replay does not run.
            if self.graphs and tap is None and rows <= CAPTURED_ROWS:
                self._replay(room, rows)
            else:
                self._blocks(room, rows, n, start, tap)
            x = self._stream(room, rows)[:n]
            return self._head(room, x[-1:] if last_only else x)

    def block(self, number: int, x: Tensor, positions: Sequence[int], tap: Tap | None) -> Tensor:
        """One block on a residual stream, float32 [n, width] to the same, as the first of a sequence."""
        n = x.shape[0]
        room, rows = self._room(n), padded(n)
        room.place([0] * n, positions, 0)
        stream = self._stream(room, rows)
        stream.zero_()[:n].copy_(x)
        with exact_matmul():
            self._block(number, room, rows, n, 0, block_tap(number, tap))
        return stream[:n].clone()

    def head(self, x: Tensor) -> Tensor:
        """The last norm and the logits, float32 [n, vocab], of the residual stream [n, width]."""
        with exact_matmul():
            return self._head(self._room(x.shape[0]), x)

    def _room(self, n: int) -> Room:
        """Kept for the sizes that are captured, made for the occasion above them."""
        if padded(n) > CAPTURED_ROWS:
            return Room(padded(n), self._device)
        if self._small is None:
            self._small = Room(min(CAPTURED_ROWS, padded(self.buffers.history.shape[0])), self._device)
        return self._small

    def _replay(self, room: Room, rows: int) -> None:
        """All blocks on a prompt in place: launched the first time, captured the second, replayed then."""
        # Not captured at once: the first launch of a kernel compiles it, and a size that comes once needs no
        # graph.
        if rows not in self._met:
            self._met.add(rows)
            self._blocks(room, rows, rows, 0, None)
            return
        if rows not in self._captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._blocks(room, rows, rows, 0, None)
            self._captured[rows] = graph
        self._captured[rows].replay()

    def _stream(self, room: Room, rows: int) -> Tensor:
        return room.take("x", rows, self.config.width, torch.float32)

    def _blocks(self, room: Room, rows: int, n: int, start: int, tap: Tap | None) -> None:
        """From tokens in place to the residual stream behind the last block."""
        x = self._stream(room, rows)
        x.copy_(functional.embedding(room.token_ids[:rows], self.weights.embedding))
        if tap:
            tap("embd", x[:n].clone())
        for number in range(self.config.n_layers):
            self._block(number, room, rows, n, start, block_tap(number, tap))

    def _block(self, number: int, room: Room, rows: int, n: int, start: int, see: Tap | None) -> None:
        """One block on the residual stream in `room`; only taps need to know how many rows are tokens."""
        (qkv, wo, gate_up, down), block = self.weights.dense[number], self.weights.blocks[number]
        # The stream stays float32 from block to block; only what goes into a product is rounded to half
        # precision. With pairs, `spare` is room for what that takes off the products added to it.
        x = self._stream(room, rows)
        spare = room.take("sum", rows, self.config.width, torch.float16) if self.pair else None
        h = self._norm(room, x, block.attn_norm, qkv)
        context = self._attention(number, room, self._product(room, "qkv", h, qkv), wo)
        if see:
            self.attention.show(number, room, n, start, see)
            see("attn_context", context.whole()[:n])
        add_product(x, context, wo, spare)
        if see:
            see("ffn_inp", x[:n].clone())
        h = self._norm(room, x, block.ffn_norm, gate_up)
        hidden = self._swiglu(room, self._product(room, "gate_up", h, gate_up), down)
        if see:
            see("ffn_swiglu", hidden.whole()[:n])
        add_product(x, hidden, down, spare)
        if see:
            see("out", x[:n].clone())

    def _head(self, room: Room, x: Tensor) -> Tensor:
        weight = self.weights.dense_output
        shape = (x.shape[0], self.config.vocab_size)
        logits = torch.empty(shape, dtype=torch.float32, device=x.device)
        rest = torch.empty(shape, dtype=torch.float16, device=x.device) if self.pair else None
        product(self._norm(room, x, self.weights.output_norm, weight), weight, logits, rest)
        return logits if rest is None else logits.add_(rest, alpha=1 / LOW_PART)

    def _product(self, room: Room, name: str, h: Rows, w: Dense) -> tuple[Tensor, Tensor]:
        """A product in `room`, and what it misses times `LOW_PART`; without pairs both are the same."""
        # Kept apart and added by the kernel that reads both, not as a float32 sum, which a second product
        # would read and write once more: 106.3 to 102.2 ms for F16 ("Long prompts", step 5).
        n, rows = h.high.shape[0], w.high.shape[0]
        out = room.take(name, n, rows, self._wide)
        rest = room.take(f"{name} rest", n, rows, torch.float16) if self.pair else None
        product(h, w, out, rest)
        return out, out if rest is None else rest

    def _rows(self, room: Room, name: str, like: tuple[int, int], w: Dense, lift: float) -> Rows:
        """Room for activations that go into a product with `w`."""
        high = room.take(name, *like, torch.float16)
        if not self.pair:
            return Rows(high)
        if w.low is None:
            return Rows(high, room.take(f"{name} rest", *like, torch.float16))
        # A norm's output is bounded, so three bits of mantissa and a fixed factor do; other activations may
        # be any size and take the type with more exponent and fewer bits ("Long prompts", step 4: 1.0e-5 and
        # 1.6e-5 a product).
        eight = torch.float8_e5m2 if lift == 1 else torch.float8_e4m3fn
        rest = room.take(f"{name} bytes", like[0], 2 * like[1], eight)
        return Rows(high, rest, self._units[lift])

    def _norm(self, room: Room, x: Tensor, gain: Tensor, w: Dense) -> Rows:
        n, width = x.shape
        h = self._rows(room, "norm", (n, width), w, _NORM_LIFT)
        norm_kernel[(n,)](
            x, gain, *h.both, width, self.config.rms_norm_eps,
            WIDTH2=power_of_two(width), **h.keeping(_NORM_LIFT), num_warps=8,
        )  # fmt: skip
        return h

    def _swiglu(self, room: Room, gate_up: tuple[Tensor, Tensor], w: Dense) -> Rows:
        n, ffn = gate_up[0].shape[0], gate_up[0].shape[1] // 2
        h = self._rows(room, "hidden", (n, ffn), w, 1.0)
        swiglu_kernel[(n, -(-ffn // _SWIGLU_COLUMNS))](
            *gate_up, *h.both, ffn, BLOCK=_SWIGLU_COLUMNS, PAIR=self.pair, **h.keeping(1.0), num_warps=4
        )
        return h

    def _attention(self, number: int, room: Room, qkv: tuple[Tensor, Tensor], w: Dense) -> Rows:
        context = self._rows(room, "context", (qkv[0].shape[0], self.config.q_width), w, 1.0)
        self.attention.run(number, room, qkv, context)
        return context
