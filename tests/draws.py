"""How much is drawn: enough on every run, all of it in CI.

Some tests try the same property on seed after seed, or on thousands of requests. Every run takes the first
few of them; where `LLAMA_CKPT_DRAWS` is "all" in the environment, as .ci/run sets it, all.
"""

from __future__ import annotations

import os

__all__ = ["draws"]


def draws(few: int, all: int) -> int:
    """How many to take, of the same ones in the same order."""
    asked = os.environ.get("LLAMA_CKPT_DRAWS", "few")
    assert asked in ("few", "all"), f"LLAMA_CKPT_DRAWS: got {asked}, wanted few or all"
    return all if asked == "all" else few
