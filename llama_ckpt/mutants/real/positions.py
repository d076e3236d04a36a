"""Reported faults of positions, padding and masks, and right ways to pad and mask."""

from __future__ import annotations

import numpy as np

from llama_ckpt.judging.to_precision import to_bfloat16
from llama_ckpt.mutants.real.port import Array, Port
from llama_ckpt.mutants.real.record import Family, Prompt

__all__ = ["POSITIONS"]

F = np.float32
POSITIONS = Family("positions, padding and masks")
TURNED = "blk.0.q_rope"
PROBS = "blk.0.attn_probs"
PADDED = (Prompt(9, n_pad=3), Prompt(21, n_pad=7))
LONG = (Prompt(9, first=1001), Prompt(37, first=300))
OFFSET = r"positions?.*(offset|shift|later|too (high|large|far)|(start|begin)s? at|\+ ?\d|\d)"


@POSITIONS.bug(
    "huggingface/candle#3520 EleutherAI/gpt-neox#1016",
    "positions and frequencies in bfloat16: whole numbers above 256 are lost",
    at=TURNED,
    right=r"(positions?|frequenc|angles?).*bfloat16|bfloat16.*(positions?|frequenc|angles?)",
    wrong=r"theta|scaling|table",
    prompts=LONG,
)
class AnglesOfBfloat16(Port):
    def angles(self, positions: Array) -> Array:
        frequencies = to_bfloat16(self.frequencies().astype(F))
        return to_bfloat16(positions.astype(F))[:, None].astype(np.float64) * frequencies


@POSITIONS.bug(
    "nkalyanv99/UNI-D2#6",
    "positions alone take the model's bfloat16: above 256 several rows share one",
    at=TURNED,
    right=r"positions?.*bfloat16|bfloat16.*positions?",
    wrong=r"theta|scaling|table|frequencies (are|in)\b",
    prompts=LONG,
)
class PositionsInBfloat16(Port):
    def angles(self, positions: Array) -> Array:
        return super().angles(to_bfloat16(positions.astype(F)))


@POSITIONS.bug(
    "huggingface/transformers#33095 unslothai/unsloth#4078",
    "the prompt is padded on the left and positions count the padding",
    at=TURNED,
    right=OFFSET + r"|padding.*(counted|positions?)",
    wrong=r"theta|scaling",
    prompts=PADDED,
)
class PaddingIsCounted(Port):
    def positions(self, n: int) -> Array:
        return np.arange(n) + self.first


@POSITIONS.bug(
    "turboderp-org/exllamav2#606 huggingface/transformers#25790",
    "keys of the padding on the left are seen by every row",
    at=PROBS,
    right=r"padding|(keys?|mass|sum|probabilit).*(not recorded|beyond|outside|before|more|less than 1|extra)",
    wrong=r"scale|another (row|token)",
    prompts=PADDED,
)
class PaddingIsSeen(Port):
    def visible(self, n: int, m: int) -> Array:
        return np.asarray(np.arange(m) <= np.arange(m - n, m)[:, None])


@POSITIONS.bug(
    "pytorch/pytorch#103749",
    "a row that sees no key at all becomes NaN: every key is masked for the first token",
    at=PROBS,
    right=r"NaN|not (a|finite)|no key|nothing",
)
class RowsThatSeeNothing(Port):
    def visible(self, n: int, m: int) -> Array:
        return np.asarray(np.arange(m) < np.arange(m - n, m)[:, None])


@POSITIONS.bug(
    "huggingface/transformers#39408 ml-explore/mlx-lm#390 zml/zml#763 NVIDIA-NeMo/Megatron-Bridge#2656",
    "a window of 8 keys is laid over a model that has none",
    at=PROBS,
    right=r"window|(last|latest|nearest) 8|8 (keys|tokens)|keys? (further|older|more than|before)",
    wrong=r"scale|sum",
    prompts=(Prompt(20), Prompt(37)),
)
class WindowOfEight(Port):
    def visible(self, n: int, m: int) -> Array:
        behind = np.arange(m - n, m)[:, None] - np.arange(m)
        return np.asarray((behind >= 0) & (behind < 8))


@POSITIONS.bug(
    "huggingface/transformers#27819 lablup/mlxcel#1001 hkproj/pytorch-llama#15",
    "rows see each other both ways: the causal mask is lost",
    at=PROBS,
    right=r"causal|mask|future|later (keys|tokens|rows)",
    wrong=r"scale|window",
)
class NoCausalMask(Port):
    def visible(self, n: int, m: int) -> Array:
        return np.ones((n, m), bool)


@POSITIONS.bug(
    "ggml-org/llama.cpp#7452",
    "the kernel does not step through the positions: every row has that of the first",
    at=TURNED,
    right=r"positions?.*(one|same|all|every|0|first)|(one|same|every).*position",
    wrong=r"theta|scaling",
)
class OnePositionForAll(Port):
    def positions(self, n: int) -> Array:
        return np.full(n, 1)


# -- right


@POSITIONS.rightly("padded on the left, masked, positions counted from the prompt", prompts=PADDED)
class PaddedAndMasked(Port):
    pass


@POSITIONS.rightly("-10,000 masks instead of minus infinity", prompts=(Prompt(12), Prompt(21, n_pad=7)))
class LargeNegativeMask(Port):
    def softmax(self, z: Array) -> Array:
        return super().softmax(np.where(np.isneginf(z), F(-10000), z))


@POSITIONS.rightly("a window as long as the prompt", prompts=(Prompt(20),))
class WideWindow(Port):
    def visible(self, n: int, m: int) -> Array:
        return np.asarray(super().visible(n, m) & (np.arange(m - n, m)[:, None] - np.arange(m) < 20))
