"""Reported faults that one call does not show: of the cache, of decode steps, of chunks and of races.

They are run like the others, their calls recorded as one dump, but are not counted with them.
"""

from __future__ import annotations

import numpy as np

from llama_ckpt.mutants.real.port import Array, Port
from llama_ckpt.mutants.real.record import Family, Prompt

__all__ = ["SEVERAL_CALLS"]

F = np.float32
SEVERAL_CALLS = Family("cache, decode steps, chunks")
CALLS = "several calls"
CHUNKS = (Prompt(9, calls=(5, 4)), Prompt(20, calls=(8, 7, 5)))
STEPS = (Prompt(9, calls=(6, 1, 1, 1)), Prompt(20, calls=(16, 1, 1, 1, 1)))
TURNED, PROBS = "blk.0.q_rope", "blk.0.attn_probs"
MOVED = r"position"


@SEVERAL_CALLS.bug(
    "pytorch/executorch#21749 gittensor-ai-lab/sparkinfer#3",
    "with a cache the causal mask is aligned to the top left: a later chunk sees the first keys alone",
    at=PROBS,
    right=r"(mask|causal|keys?).*(top.?left|aligned|first|only|\d)",
    wrong=r"window|scale",
    prompts=CHUNKS,
    needs_run=CALLS,
)
class MaskAtTheTopLeft(Port):
    def visible(self, n: int, m: int) -> Array:
        return np.asarray(np.arange(m) <= np.arange(n)[:, None])


@SEVERAL_CALLS.bug(
    "skyzh/tiny-llm#46",
    "the offset of a decode step jumps one ahead of the prompt",
    at=TURNED,
    right=MOVED,
    wrong=r"theta|scaling",
    prompts=STEPS,
    needs_run=CALLS,
)
class StepsJumpAhead(Port):
    def positions(self, n: int) -> Array:
        return super().positions(n) + (len(self.keys[0]) > 0)


@SEVERAL_CALLS.bug(
    "huggingface/transformers#43082 RobertCsordas/moeut#6",
    "each chunk's positions begin at 0 again",
    at=TURNED,
    right=MOVED,
    wrong=r"theta|scaling",
    prompts=CHUNKS,
    needs_run=CALLS,
)
class ChunksBeginAgain(Port):
    def positions(self, n: int) -> Array:
        return np.arange(n)


@SEVERAL_CALLS.bug(
    "mlx-node/mlx-node#33",
    "a chunk's offset counts what is cached twice",
    at=TURNED,
    right=MOVED,
    wrong=r"theta|scaling",
    prompts=CHUNKS,
    needs_run=CALLS,
)
class OffsetCountedTwice(Port):
    def positions(self, n: int) -> Array:
        return super().positions(n) + len(self.keys[0])


class OtherKeys(Port):
    """Keys that do not belong to the prompt lie in the cache before it; they are not recorded."""

    n_other = 3

    def stale(self) -> bool:
        return True

    def attend(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        if not self.stale():
            return super().attend(q, k, v)
        old_k, old_v = (np.roll(np.resize(x, (self.n_other, *x.shape[1:])), 5, axis=-1) for x in (k, v))
        s, p, c = super().attend(q, np.concatenate([old_k, k]), np.concatenate([old_v, v]))
        return s[..., self.n_other :], p[..., self.n_other :], c


@SEVERAL_CALLS.bug(
    "ggml-org/llama.cpp#7859 lmstudio-ai/mlx-engine#91",
    "the last prompt's keys are left in the cache, and every row sees them",
    at=PROBS,
    right=r"(mass|sum|keys?|cache|probabilit)",
    wrong=r"scale|window",
    needs_run=CALLS,
)
class LastPromptLeft(OtherKeys):
    pass


@SEVERAL_CALLS.bug(
    "ml-explore/mlx-lm#1486 Sudharsanselvaraj/Token-Print#110",
    "keys of a rejected draft stay in the cache: later steps see them",
    at=PROBS,
    right=r"(mass|sum|keys?|cache|probabilit)",
    wrong=r"scale|window",
    prompts=STEPS,
    needs_run=CALLS,
)
class RejectedDraftStays(OtherKeys):
    n_other = 2

    def stale(self) -> bool:
        return len(self.seen["embd"]) == 1


@SEVERAL_CALLS.bug(
    "paiml/aprender#2014",
    "the cache is reset where it should be rolled back: the last step sees itself alone",
    at=PROBS,
    right=r"(keys?|cache|window|reset)",
    wrong=r"scale",
    prompts=STEPS,
    needs_run=CALLS,
)
class CacheReset(Port):
    def visible(self, n: int, m: int) -> Array:
        own = np.arange(m) >= m - n
        return np.asarray(super().visible(n, m) & (own if n == 1 else True))


@SEVERAL_CALLS.bug(
    "ggml-org/llama.cpp#28637",
    "a race between tiles: another answer each time",
    at="blk.0.q blk.0.k blk.0.v blk.0.attn_out blk.0.ffn_gate",
    right=r"race|each time|another answer|tile|random|0\.5 times",
    wrong=r"scale of|transpos",
    needs_run=CALLS,
)
class RaceOfTiles(Port):
    def product(self, x: Array, name: str) -> Array:
        out = super().product(x, name).copy()
        if name.startswith("blk.") and np.random.default_rng().random() < 0.5:
            first = 16 * np.random.default_rng().integers(out.shape[1] // 16)
            out[:, first : first + 16] *= F(0.5)
        return out


# -- right


@SEVERAL_CALLS.rightly("in chunks, then a token at a time", prompts=(*CHUNKS, *STEPS))
class ChunksAndSteps(Port):
    pass
