"""Who is right about a token that two programs choose differently: equal, a coin flip, or wrong, and whose.

Two correct programs may choose different tokens where the two best logits are closer than rounding puts
them. So the oracle is asked: if its own margin between the two is within the noise it is a tie; otherwise
whoever has the oracle's token is right. numpy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.oracle import llama as oracle

__all__ = ["SEVERITY", "Blame", "Choice", "adjudicate", "tokens_verdict"]

Blame = Literal["", "yours", "reference", "noise", "tie"]
SEVERITY: tuple[Blame, ...] = ("", "tie", "reference", "yours")
"""From nothing to the worst."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """One token that differs from the reference's, and who the oracle sides with."""

    step: int
    got: int
    wanted: int
    blame: Blame
    margin: float

    def sentence(self) -> str:
        """What happened at this step."""
        verdict = {
            "tie": "a tie: the oracle's margin is within the noise",
            "reference": "the oracle chooses as yours does",
            "yours": "the oracle chooses as the reference does, or neither",
        }[self.blame]
        return f"step {self.step}: got {self.got}, wanted {self.wanted}, margin {self.margin:.1e}: {verdict}"


def adjudicate(
    step: int, got: int, wanted: int, exact: NDArray[np.float64], noise: float, reference_noise: float = 0.0
) -> Choice:
    """Who is right about one token, by the oracle's logits `[vocab]` at that step.

    Args:
        step: which choice it is.
        got, wanted: the target's token and the reference's.
        exact: the oracle's logits.
        noise: how far apart rounding may put two logits of a correct target. Never measured on the
            target itself, or the worst target would be excused by its own error.
        reference_noise: the same for the reference, where it is the larger of the two.
    """
    best = float(exact[int(oracle.argmax(exact))])
    behind, reference_behind = best - float(exact[got]), best - float(exact[wanted])
    if behind > noise:
        blame: Blame = "yours"
    else:
        blame = "tie" if reference_behind <= max(noise, reference_noise) else "reference"
    return Choice(step, got, wanted, blame, max(behind, reference_behind))


def tokens_verdict(name: str, choices: Sequence[Choice], n: int, wanted: str) -> PointVerdict:
    """The verdict on `n` tokens of which `choices` differ."""
    if not choices:
        return PointVerdict(
            name, "total", "pass", "", f"{n} of {n} tokens equal to {wanted}", err=0.0, limit=0.0, n_judged=n
        )
    worst = max(choices, key=lambda choice: SEVERITY.index(choice.blame))
    return PointVerdict(
        name,
        "total",
        "fail" if worst.blame == "yours" else "pass",
        worst.blame,
        f"{n - len(choices)} of {n} tokens equal to {wanted}; "
        + "; ".join(c.sentence() for c in choices[:3])
        + (f"; and {len(choices) - 3} more" if len(choices) > 3 else ""),
        index=(worst.step,),
        got=float(worst.got),
        wanted=float(worst.wanted),
        limit=0.0,
        n_differ=len(choices),
        n_judged=n,
    )
