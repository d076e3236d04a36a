"""The recipe of a seeded Llama: which numbers make a network that behaves like a trained one.

What the scales are for:

- **Every sublayer matters.** Each adds the same to the residual, in the mean, so that after the
  last block the embedding's share of it is `EMBEDDING_SHARE` (more in a narrow model) and each
  sublayer's is sqrt((1 - share²) / (2 * blocks)): 12% for 32 blocks. No bug hides in a dead layer,
  and nothing grows, so that float16 holds every activation.
- **Every weight matters.** Norm weights vary around 1 by `NORM_SD`: a forgotten one is seen.
  Attention scores have a standard deviation near 2: a wrong angle, mask or scale is seen.
- **Two correct programs choose the same token.** With independent rows in the output matrix the two
  best of 32,000 logits lie so close (median 0.15 standard deviations of the logits) that float16
  would flip one in a hundred choices and 8-bit activations one in seven. So each row holds some of
  the embedding of one token, its predecessor: that token's successor is ahead of the others by
  `SUCCESSOR_LEAD` less what the best of the others reaches (4.1 for 32,000 rows), as far as the width
  allows. With tied output weights a token is its own successor.

Measured with seed 1, margins in standard deviations of a row's logits, errors relative to them:

    Llama-2-7B's shape, 16 tokens   margins 0.21 to 5.1, median 2.6; largest activation 110
    512 wide, 32 blocks, 32 tokens  margins 0.74 and more, median 2.4; llama.cpp's error on the CPU 1.2e-3
                                    (F16), 3.7e-2 (Q8_0, Q4_0), 4.7e-2 (Q4_K_M); all choices agree
    `gqa-256`, 32 tokens            margins 2.0 and more, median 3.7; errors 7.4e-4 (F16), 2.2e-2 (Q8_0)

All scales are made with +, -, *, / and sqrt, which IEEE 754 rounds alike everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.making.seeded_numbers import seeded_rows
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.tensor_names import ROPE_FACTORS

__all__ = ["EMBEDDING_SHARE", "NORM_SD", "SUCCESSOR_LEAD", "SeededWeights"]

NORM_SD: Final = 0.25
"""Standard deviation of the norm weights around 1; their extremes are 1 ± 0.87."""

EMBEDDING_SHARE: Final = 0.25
"""What the embedding makes up of the residual's norm after the last block, in a wide model."""

SUCCESSOR_LEAD: Final = 7.0
"""How far a successor's logit is above the mean, in standard deviations of the logits."""

_BOS: Final = 1  # of the first three entries of a Llama vocabulary, unknown, BOS and EOS
_EMBEDDING_SD: Final = 0.25
_LOGIT_SD: Final = 2.0
_MOST_SHARE: Final = 0.5
_MOST_COPIED: Final = 0.9  # of an output row's norm; the rest keeps the rows apart
_QK_GAIN: Final = 1.4142135623730951  # on both, so that scores / sqrt(head_dim) have sd 2
_CONTEXT_RMS: Final = 0.75  # of the attention's averaged values: about two keys' worth
_ROUTER_SD: Final = 1.5  # of the router's scores: the second expert has a third of the weight or so
_SWIGLU_RMS: Final = 0.6  # of silu(g) * u for independent normal g and u


def _step(n: int) -> int:
    """A step that visits all of a ring of `n` before it returns: coprime to n, near n / golden ratio."""
    step = n * 618 // 1000
    while math.gcd(step, n) != 1:
        step += 1
    return step


def _predecessors(tokens: NDArray[np.int64], vocab_size: int) -> NDArray[np.int64]:
    """The token whose successor each token is.

    All tokens but the unknown one and EOS form a ring, in the order 1, 3, 4, 5, …, and a token's
    successor is `_step` places further on. So greedy text does not end by itself.
    """
    n = vocab_size - 2
    places = np.where(tokens == _BOS, 0, tokens - 2)
    places = (places - _step(n)) % n
    return np.where(places == 0, _BOS, places + 2)


@dataclass(frozen=True)
class SeededWeights:
    """The weights of one seeded model, any row of any tensor on demand.

    Attributes:
        config: the shape.
        seed: any integer from 0; another seed, other weights.
    """

    config: LlamaConfig
    seed: int

    def rows(self, name: str, first: int, n: int) -> NDArray[np.float32]:
        """Rows first … first + n - 1 of a matrix `[out, in]`, or a whole norm, float32 [n, in].

        Args:
            name: GGUF name; a norm is a matrix of one row.
            first: number of the first row.
            n: how many.
        """
        if name == ROPE_FACTORS:
            return np.array([self.config.rope_factors], np.float32)
        numbers = np.arange(first, first + n, dtype=np.int64)
        role = name.removesuffix(".weight").rpartition(".")[2]
        if role.endswith("_norm"):
            return self._random(name, numbers, self.config.width, NORM_SD) + np.float32(1.0)
        if role == "token_embd":
            return self._random(name, numbers, self.config.width, self._embedding_sd)
        if role == "output":
            return self._output(numbers)
        fan_in, gain = self._projections[role]
        return self._random(name, numbers, fan_in, gain / math.sqrt(fan_in))

    @cached_property
    def _projections(self) -> Mapping[str, tuple[int, float]]:
        """Row width and gain of each matrix in a block; 1 keeps the root mean square."""
        config = self.config
        grown = 1.0 / (self._share * self._share) - 1.0  # of the residual's square, from first to last
        added = self._embedding_sd * math.sqrt(grown / (2 * config.n_layers))
        return {
            "attn_q": (config.width, _QK_GAIN),
            "attn_k": (config.width, _QK_GAIN),
            "attn_v": (config.width, 1.0),
            "attn_output": (config.q_width, added / _CONTEXT_RMS),
            "ffn_gate": (config.width, 1.0),
            "ffn_up": (config.width, 1.0),
            "ffn_down": (config.ffn, added / _SWIGLU_RMS),
            "ffn_gate_inp": (config.width, _ROUTER_SD),
            "ffn_gate_exps": (config.width, 1.0),
            "ffn_up_exps": (config.width, 1.0),
            "ffn_down_exps": (config.ffn, added / _SWIGLU_RMS),
        }

    @property
    def _embedding_sd(self) -> float:
        """Tied weights make logits too: there the embedding's scale is the logits' scale."""
        return _LOGIT_SD / math.sqrt(self.config.width) if self.config.tied_output else _EMBEDDING_SD

    @property
    def _share(self) -> float:
        """Narrow models copy as much as they can, and still fall short: there the share grows."""
        needed = SUCCESSOR_LEAD / (_MOST_COPIED * math.sqrt(self.config.width))
        return max(EMBEDDING_SHARE, min(_MOST_SHARE, needed))

    def _random(self, name: str, rows: NDArray[np.int64], width: int, sd: float) -> NDArray[np.float32]:
        return seeded_rows(self.seed, name, rows, width, sd)

    def _output(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        width = self.config.width
        copied = min(_MOST_COPIED, SUCCESSOR_LEAD / (self._share * math.sqrt(width)))
        sd = _LOGIT_SD / math.sqrt(width)
        rows = self._random("output.weight", tokens, width, sd * math.sqrt(1.0 - copied * copied))
        followers = (tokens == _BOS) | (tokens > 2)
        predecessors = _predecessors(tokens[followers], self.config.vocab_size)
        rows[followers] += self._random("token_embd.weight", predecessors, width, sd * copied)
        return rows
