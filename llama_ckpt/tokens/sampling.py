"""Drawing a token: the repetition penalty, and the draw itself, as llama.cpp does them.

The chain is penalties, top-k, top-p, min-p, temperature, draw; the middle of it is checkpoint 11
(`softmax`). The random numbers are those of llama.cpp's `dist` sampler (C++'s `std::mt19937` and
`uniform_real_distribution<double>` as libstdc++ builds it), so the same seed on the same logits
draws the same token there and here. Source: llama.cpp, `src/llama-sampler.cpp`.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from llama_ckpt.errors import OptionError

__all__ = ["SamplingOptions", "Uniforms", "draw", "penalize"]

PENALTY_WINDOW = 64  # tokens; llama.cpp's own default for penalty_last_n


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is chosen; the defaults choose greedily.

    Attributes:
        temperature: 0 or more; below 1e-6 means argmax.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the likeliest whose probabilities reach this; 1 keeps all.
        min_p: keep what has at least this share of the likeliest one's probability; 0 keeps all.
        repetition_penalty: above 0; 1 leaves the logits alone. Looks at the last 64 tokens.
        seed: 0 to 2^32 - 1; None draws a fresh one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            kind: type = Integral if name in ("top_k", "seed") else Real
            if not isinstance(value, kind) and not (name == "seed" and value is None):
                wanted_kind = "an integer" if kind is Integral else "a number"
                raise OptionError(name, got=repr(value)[:40], wanted=wanted_kind)
        wanted = {
            "temperature": (0 <= self.temperature < float("inf"), "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 <= self.top_p <= 1, "0 to 1"),
            "min_p": (0 <= self.min_p <= 1, "0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "more than 0"),
            "seed": (self.seed is None or 0 <= self.seed < 2**32, "0 to 4294967295"),
        }
        for name, (right, limits) in wanted.items():
            if not right:
                raise OptionError(name, got=getattr(self, name), wanted=limits)

    @property
    def greedy(self) -> bool:
        """True where no draw is made: the temperature is as good as zero."""
        return self.temperature < 1e-6

    @property
    def ranked(self) -> bool:
        """True where llama.cpp's chain has sorted its candidates by the time it draws."""
        return self.top_k > 0 or self.top_p < 1


class Uniforms:
    """The uniform numbers in [0, 1) that llama.cpp's `dist` sampler draws from a seed.

    Args:
        seed: 0 to 2^32 - 1; None takes one from the system.
    """

    def __init__(self, seed: int | None) -> None:
        # RandomState's integer seeding is mt19937's own, and a full-range uint32 is its raw output.
        self._raw = np.random.RandomState(seed)

    def next(self) -> float:
        """The next number; two raw words each, the first the low one, as libstdc++ combines them."""
        low, high = self._raw.randint(0, 2**32, size=2, dtype=np.uint32).astype(np.float64)
        return min(float((low + high * 2.0**32) / 2.0**64), float(np.nextafter(1.0, 0.0)))


def penalize(logits: Tensor, recent: Tensor, repetition_penalty: float) -> Tensor:
    """Make tokens that occurred recently less likely.

    Args:
        logits: `[vocab]`.
        recent: `[k]` int64, the last tokens, prompt included; repeated ids count once.
        repetition_penalty: positive logits are divided by it, the others multiplied.

    Returns:
        `[vocab]`, the same dtype; the same tensor when the penalty is 1.
    """
    if repetition_penalty == 1.0:
        return logits
    recent = recent.to(logits.device)
    values = logits[recent]
    worse = torch.where(values > 0, values / repetition_penalty, values * repetition_penalty)
    return logits.scatter(0, recent, worse)


def draw(probabilities: Tensor, uniform: float, *, ranked: bool) -> Tensor:
    """The token at which the running sum of `probabilities [vocab]` reaches `uniform`; int64 scalar.

    Args:
        probabilities: 0 where the chain cut a token off.
        uniform: in [0, 1).
        ranked: go through the tokens best first (equal ones by id) instead of by id.
    """
    p = (probabilities.cpu() if probabilities.device.type == "mps" else probabilities).double()
    order = p.argsort(descending=True, stable=True) if ranked else None
    running = (p if order is None else p[order]).cumsum(0)
    # The smallest positive target, so that a draw of exactly 0 can't land on a token cut off.
    target = (running[-1:] * uniform).clamp_min(torch.finfo(torch.float64).tiny)
    place = torch.searchsorted(running, target).clamp_max(p.shape[0] - 1)
    return (place if order is None else order[place])[0]
