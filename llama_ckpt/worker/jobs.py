"""A job: one generation, from its request to its terminal event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from llama_ckpt.worker.events import End, Error, Event, Token

__all__ = ["Job"]


@dataclass(eq=False)
class Job:
    """One generation, from its request to its terminal event.

    Attributes:
        number: its number in this worker.
        job_id: the caller's name for it.
        correlation_id: of the request that brought it.
        max_tokens, sampling, stop: what to generate; `sampling` as `SamplingOptions` takes it.
        token_ids: the prompt; empty until it is tokenized.
        tokens_out: tokens generated so far.
        terminal: the event that ended it, None until then.
        owner: the number of the key that it came with, which alone may cancel it; None without keys.
        times: when it was "received", "started", and when its "first" and "latest" token came; monotonic.
    """

    number: int
    job_id: str
    correlation_id: str | None
    max_tokens: int
    sampling: Mapping[str, float | int | None]
    stop: Sequence[str]
    token_ids: list[int] = field(default_factory=list)
    tokens_out: int = 0
    terminal: End | Error | None = None
    times: dict[str, float] = field(default_factory=lambda: {"received": time.monotonic()})
    cancelled_by: str | None = None
    owner: int | None = None
    _shown: int = 0
    _events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def tell(self, event: Event) -> None:
        """Add an event; after the terminal one there is none."""
        assert self.terminal is None, "a job has one terminal event and nothing after it"
        if isinstance(event, End | Error):
            self.terminal = event
        self._events.put_nowait(event)

    def show(self, text: str) -> None:
        """Add a token event, if there is text to show."""
        if text:
            self.tell(Token(text, self._shown))
            self._shown += 1

    def running_for(self) -> float:
        """Seconds since the job's turn came; 0 while it waits."""
        return time.monotonic() - self.times["started"] if "started" in self.times else 0.0

    async def events(self) -> AsyncIterator[Event]:
        """Every event as it happens, the terminal one last. Can be read once."""
        while True:
            event = await self._events.get()
            yield event
            if isinstance(event, End | Error):
                return
