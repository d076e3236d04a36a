"""Say what was computed: the identifiers of the function called, tried; the facts where none fits.

    found = identify(Asked(evidence, around))
    found.best             # the explanation that counts, or None
    found.facts            # where nothing fits: what is off, and by how much

numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from llama_ckpt.identify.activation import activation_guesses
from llama_ckpt.identify.anything import any_guesses
from llama_ckpt.identify.attention import attention_guesses
from llama_ckpt.identify.drawn import drawn_at_random
from llama_ckpt.identify.facts import facts_of
from llama_ckpt.identify.logits import logits_guesses
from llama_ckpt.identify.norm import norm_guesses
from llama_ckpt.identify.products import product_guesses
from llama_ckpt.identify.record import Asked, Guess, Identified, Identifier
from llama_ckpt.identify.residual import residual_guesses
from llama_ckpt.identify.rope import rope_guesses, turned_too
from llama_ckpt.identify.weighing import weigh
from llama_ckpt.identify.whole_block import whole_block_guesses

__all__ = ["Identification", "identify"]

IDENTIFIERS: Mapping[str, tuple[Identifier, ...]] = {
    "embed": (logits_guesses,),
    "rms_norm": (
        norm_guesses,
        whole_block_guesses,
    ),
    "rope": (rope_guesses,),
    "qkv": (turned_too, product_guesses, whole_block_guesses),
    "attention": (attention_guesses, product_guesses),
    "swiglu": (product_guesses, activation_guesses),
    "block": (residual_guesses,),
    "output_logits": (norm_guesses, product_guesses, logits_guesses),
    "logits": (residual_guesses, logits_guesses),
    "last_row": (residual_guesses, logits_guesses),
}
"""The oracle's function that was called, to what can be identified in it."""

EVERYWHERE: tuple[Identifier, ...] = (any_guesses,)
"""What may happen in any of them; tried last."""


@dataclass(frozen=True)
class Identification:
    """What was found.

    Attributes:
        found: explanations, the best first; empty where nothing fits.
        facts: where nothing explains it whole: what is off and by how much, one line; else "".
        like: where nothing explains even a part of it: what its numbers are like, a sentence; else "".
    """

    found: tuple[Identified, ...] = ()
    facts: str = ""
    like: str = ""

    @property
    def best(self) -> Identified | None:
        """The first of them."""
        return self.found[0] if self.found else None


def identify(asked: Asked) -> Identification:
    """Everything that explains the tensors of the first wrong one's call, or the facts."""
    call = asked.first.case
    asked = replace(asked, evidence=[one for one in asked.evidence if one.case is call])
    with np.errstate(all="ignore"):  # wrong tensors overflow, and hold what is not finite
        found = tuple(weigh(asked, _guesses(asked)))
        explained = bool(found) and found[0].explained
        return Identification(
            found, "" if explained else facts_of(asked), "" if found else drawn_at_random(asked)
        )


def _guesses(asked: Asked) -> Iterator[Guess]:
    for identifier in (*IDENTIFIERS.get(asked.first.case.function, ()), *EVERYWHERE):
        yield from identifier(asked)
