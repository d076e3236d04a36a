"""When the model's process counts as stuck, so that nobody waits for it for ever.

It says twice a second that it runs, and whether it computes. One that is silent, or computes nothing, while
a cancelled job of its does not end, is stuck within seconds; so is one that is silent for long, or that
computes and never obeys: of a long prompt a single layer may take a minute. What is counted are this
process's own turns, not the time: after a laptop's sleep both wake together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["TURN", "Watchdog"]

TURN = 0.5
"""Seconds between two looks."""

LONG = 6
"""So many times the patience is silence too long where nothing was cancelled."""

NEVER = 24
"""So many times the patience is too long to obey, also for one that says that it runs."""


class Watchdog:
    """Looks on; `stuck` is called once, with a sentence.

    Args:
        heard: how many messages have come so far.
        worked: how many of them showed that it computes.
        unobeyed: whether a running job was cancelled, and still runs.
        stuck: what to do.
        patience: seconds of silence after a cancel.
    """

    def __init__(
        self,
        heard: Callable[[], int],
        worked: Callable[[], int],
        unobeyed: Callable[[], bool],
        stuck: Callable[[str], None],
        patience: float,
    ) -> None:
        self._heard, self._worked, self._unobeyed = heard, worked, unobeyed
        self._stuck, self._patience = stuck, patience
        self._silent = self._idle = self._waited = 0
        self._before = (-1, -1)

    async def run(self) -> None:
        """Look every turn until it is stuck, or this is cancelled."""
        while (why := self.look()) is None:
            await asyncio.sleep(TURN)
        self._stuck(why)

    def look(self) -> str | None:
        """One look: why it is stuck, or None."""
        heard, worked = self._heard(), self._worked()
        self._silent = 0 if heard != self._before[0] else self._silent + 1
        self._idle = 0 if worked != self._before[1] else self._idle + 1
        self._waited = self._waited + 1 if self._unobeyed() else 0
        self._before = heard, worked
        silent, waited, patience = self._silent * TURN, self._waited * TURN, self._patience
        idle = self._idle * TURN
        if silent >= patience and waited >= patience:
            return f"the model's process was silent for {silent:g} seconds and did not end a cancelled job"
        if idle >= patience and waited >= patience:
            return (
                f"the model's process computed nothing for {idle:g} seconds and did not end a cancelled job"
            )
        if silent >= LONG * patience:
            return f"the model's process was silent for {silent:g} seconds"
        if waited >= NEVER * patience:
            return f"a cancelled job did not end for {waited:g} seconds"
        return None
