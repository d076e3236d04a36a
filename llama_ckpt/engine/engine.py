"""The engine: the ladder's mathematics in fused kernels, captured once in a CUDA graph and replayed.

    engine = Engine(model)                       # precision "fast"; or "high"
    engine.logits([1, 15043])                    # [2, vocab], as model.logits
    engine.prompt([1, 15043]); engine.greedy(64) # 64 tokens, nothing read back between them

Up to 16 tokens go through the packed-weight kernels, longer prompts through the tensor cores. "fast"
keeps the KV cache in float16, multiplies packed weights with 16 bits of each activation and rounds a long
prompt's activations to float16; "high" keeps the cache in float32, multiplies with 23 bits, and keeps what
float16 takes of a long prompt's activations: in float16 for a file in float16, in 8 bits for any other.
`explain fast`, `explain high` and `explain high-packed` say it line by line.
`OBSERVABLE` lists the points that a kernel writes somewhere; the others cannot be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from checkpoints.c08_logits import Tap
from llama_ckpt.engine.prefill import Prefill
from llama_ckpt.engine.step import FEW, Buffers, Step, parts_of
from llama_ckpt.engine.weights import EngineWeights
from llama_ckpt.errors import ContextLengthError, DeviceError, OptionError, ShapeError, UnsupportedModelError
from llama_ckpt.kernels.compiler import HAS_TRITON, INTERPRETED, MISSING
from llama_ckpt.kernels.launching import HOPPER
from llama_ckpt.kernels.planes import packable
from llama_ckpt.model import Model
from llama_ckpt.weights.quants import PackedWeight, Weight

__all__ = ["OBSERVABLE", "Engine", "Precision", "engine_points", "unsupported"]

Precision = Literal["fast", "high"]

OBSERVABLE = (
    *("embd", "q_rope", "k_rope", "v", "attn_context", "ffn_inp", "ffn_swiglu", "out", "logits"),
    *("last_logits", "greedy_tokens"),
)
"""Points of the network that the engine shows; any other lives only in registers of a fused kernel."""

_BUCKETS = (128, 256, 512, *(halves << k for k in range(9, 30) for halves in (2, 3)))
"""Slots that a captured step can look at; the last graph covers the whole cache. Programs of attention
that find no slot to look at cost time, too: they hold a place until the kernel before has ended."""


def slots_looked_at(used: int, capacity: int) -> int:
    """Slots of a cache that a step looks at when it needs the first `used`: at most twice as many, or 128."""
    return next((size for size in _BUCKETS if used <= size < capacity), capacity)


def engine_points() -> tuple[str, ...]:
    """The points that `Engine.logits` hands to its tap, in the order of the network."""
    return tuple(point for point in OBSERVABLE if point not in ("logits", "last_logits", "greedy_tokens"))


def unsupported(model: Model, precision: Precision = "fast") -> str | None:
    """Why the engine cannot run a model in a precision, or None where it can."""
    config = model.config
    if not HAS_TRITON:
        return MISSING
    if model.device.type != "cuda" and not INTERPRETED:
        return "the model is not on a CUDA device"
    for name in ("width", "ffn", "q_width"):
        if getattr(config, name) % 32:
            return f"{name} is {getattr(config, name)}, not a multiple of 32"
    if config.head_dim % 8:
        return f"head_dim is {config.head_dim}, not a multiple of 8"
    if config.n_experts:
        return "it is a mixture of experts"
    if config.biases:
        return "its products have biases"
    unpacked = next((w for w in _matrices(model) if not packable(w)), None)
    if isinstance(unpacked, PackedWeight):
        return f"it has no packed kernels for {unpacked.type.name}"
    if precision == "high" and not _exact_in_half(model) and _capability(model) < EIGHT_BITS:
        return "precision high needs 8-bit products for these weights, and the GPU has none"
    return None


EIGHT_BITS = (8, 9)
"""The compute capability from which on tensor cores multiply in 8 bits."""


def _capability(model: Model) -> tuple[int, int]:
    """Of the model's GPU; under the interpreter, which knows every type, of the newest."""
    return torch.cuda.get_device_capability(model.device) if model.device.type == "cuda" else HOPPER


def _exact_in_half(model: Model) -> bool:
    """Whether every matrix is float16 in the file, so that nothing is lost in the tensor cores."""
    return all(isinstance(w, Tensor) and w.dtype == torch.float16 for w in _matrices(model))


def _matrices(model: Model) -> list[Weight]:
    """Every matrix that is multiplied with."""
    weights = [model.weights.output, *(w for block in model.weights.blocks for w in vars(block).values())]
    return [w for w in weights if w is not None and len(w.shape) == 2]  # a bias may be there or not


class Engine:
    """A model's weights and cache, ready to run.

    Args:
        model: on a CUDA device.
        precision: "fast" or "high".
        capacity: slots in the cache; None takes the model's context.
        graphs: capture the step and replay it; False launches its kernels each time, for the same bits.

    Attributes:
        launcher: runs a few tokens; prefill: runs many.
        used, next_position: tokens in the cache, and where the next one stands.

    Raises:
        OptionError: an unknown precision, or a capacity below one.
        UnsupportedModelError: see `unsupported`.
    """

    def __init__(
        self, model: Model, precision: Precision = "fast", *, capacity: int | None = None, graphs: bool = True
    ) -> None:
        if precision not in ("fast", "high"):
            raise OptionError("precision", got=precision, wanted="fast or high")
        reason = unsupported(model, precision)
        if reason is not None:
            kind = DeviceError if model.device.type != "cuda" else UnsupportedModelError
            raise kind("the engine's model", got=reason, wanted="a model on CUDA, widths in multiples of 32")
        self.config, self.precision, self.device = model.config, precision, model.device
        self.capacity = model.config.context_length if capacity is None else capacity
        if self.capacity < 1:
            raise OptionError("capacity", got=capacity, wanted="1 or more")
        self.graphs = graphs and not INTERPRETED
        high = precision == "high"
        with torch.inference_mode():
            self.weights = EngineWeights(model.weights, exact=high)
            kv = torch.float32 if high else torch.float16
            self.buffers = Buffers(self.config, self.capacity, parts_of(self.config), self.device, kv)
        self.launcher = Step(
            self.config,
            self.weights,
            self.buffers,
            pdl=not INTERPRETED and _capability(model) >= HOPPER,
            fine=high,
        )
        self.prefill = Prefill(self.config, self.weights, self.buffers, pair=high, graphs=self.graphs)
        self._captured: dict[int, torch.cuda.CUDAGraph] = {}
        self.used = 0
        self.next_position = 0

    def reset(self) -> None:
        """Forget every token."""
        self.used = self.next_position = 0

    def rewind(self, used: int) -> None:
        """Keep the first `used` tokens of a sequence without gaps in its positions, and forget the rest.

        Raises:
            OptionError: fewer than one, or more than were fed or generated.
        """
        if not 1 <= used <= self.used:
            raise OptionError("tokens to keep", got=used, wanted=f"1 to {self.used}")
        self.next_position -= self.used - used
        self.used = used

    @torch.inference_mode()
    def logits(
        self, token_ids: Sequence[int], positions: Sequence[int] | None = None, tap: Tap | None = None
    ) -> Tensor:
        """The logits of every token of a new sequence.

        Args:
            token_ids: `n` ids, 1 to the capacity.
            positions: increasing; None counts from 0.
            tap: gets the points of `engine_points`, as `logits` of checkpoint 8 names them.

        Returns:
            float32 `[n, vocab]`.
        """
        self.reset()
        return self._feed(token_ids, positions, last_only=False, tap=tap)

    @torch.inference_mode()
    def prompt(self, token_ids: Sequence[int], positions: Sequence[int] | None = None) -> Tensor:
        """Add tokens to the sequence; the last one's logits, float32 `[vocab]`."""
        return self._feed(token_ids, positions, last_only=True, tap=None)[-1]

    @torch.inference_mode()
    def step(self, token_id: int) -> Tensor:
        """Add one token; its logits, float32 `[vocab]`, valid until the next call."""
        self._room(1)
        self.place([token_id], [self.next_position])
        self._replay()
        self._advance(1, self.next_position)
        return self.buffers.logits[0]

    @torch.inference_mode()
    def greedy(self, count: int) -> Tensor:
        """The next `count` greedy tokens, int32 `[count]` on the device; nothing is read back meanwhile.

        The first is chosen from the logits of the last token fed; all of them but the last are fed.
        """
        self._room(count - 1)
        first = self.used
        self._pick(first)
        for _ in range(count - 1):
            self._replay()
            self._advance(1, self.next_position)
        return self.buffers.history[first : first + count].clone()

    def _feed(
        self, token_ids: Sequence[int], positions: Sequence[int] | None, *, last_only: bool, tap: Tap | None
    ) -> Tensor:
        n, vocab = len(token_ids), self.config.vocab_size
        if n == 0 or min(token_ids) < 0 or max(token_ids) >= vocab:
            raise ShapeError(
                "token ids", got=list(token_ids)[:8], wanted=f"at least one, each 0 to {vocab - 1}"
            )
        at = list(range(self.next_position, self.next_position + n)) if positions is None else list(positions)
        if len(at) != n or at != sorted(set(at)) or at[0] < self.next_position:
            raise ShapeError("positions", got=at[:8], wanted=f"{n} of them, increasing")
        if at[-1] >= self.buffers.turns.shape[0]:
            raise ContextLengthError("position", got=at[-1], wanted=f"below {self.buffers.turns.shape[0]}")
        self._room(n)
        if n <= FEW:
            self.place(token_ids, at)
            self.launcher.run(n, slots_looked_at(self.used + n, self.capacity), tap)
            rows = self.buffers.logits[n - 1 : n] if last_only else self.buffers.logits[:n]
            rows = rows.clone()
        else:
            rows = self.prefill.run(token_ids, at, self.used, last_only=last_only, tap=tap)
        self.buffers.logits[0].copy_(rows[-1])
        self._advance(n, at[-1])
        return rows

    def _room(self, n: int) -> None:
        if self.used + n > self.capacity:
            raise ContextLengthError(
                "tokens in the KV cache", got=self.used + n, wanted=f"at most {self.capacity}"
            )

    def place(self, token_ids: Sequence[int], positions: Sequence[int]) -> None:
        """Tokens, positions and slots to the device, in one copy."""
        n = len(token_ids)
        tokens = torch.zeros(self.buffers.tokens.shape, dtype=torch.int32)
        tokens[:, :n] = torch.tensor([[*token_ids], [*positions], [*range(self.used, self.used + n)]])
        self.buffers.tokens.copy_(tokens)

    def _advance(self, n: int, last_position: int) -> None:
        self.used += n
        self.next_position = last_position + 1

    def _pick(self, slot: int) -> None:
        """Choose from `logits[0]` and put the state of the next step in place: that token, in `slot`."""
        self._place_state(slot - 1, self.next_position - 1)
        self.launcher.choose()

    def _place_state(self, slot: int, position: int) -> None:
        self.buffers.slots[:1].fill_(slot)
        self.buffers.positions[:1].fill_(position)

    def _replay(self) -> None:
        """One step from the state on the device, which moves on to the next token."""
        bucket = slots_looked_at(self.used + 1, self.capacity)
        if not self.graphs:
            self.launcher.run(1, bucket)
            self.launcher.choose()
            return
        if bucket not in self._captured:
            self._captured[bucket] = self._capture(bucket)
        self._captured[bucket].replay()

    def _capture(self, slots: int) -> torch.cuda.CUDAGraph:
        """Record a step. Its kernels run once before, to be compiled; then the state is put back."""
        b = self.buffers
        saved = b.tokens.clone(), b.history.clone()
        self.launcher.run(1, slots)
        self.launcher.choose()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.launcher.run(1, slots)
            self.launcher.choose()
        b.tokens.copy_(saved[0])
        b.history.copy_(saved[1])
        return graph
