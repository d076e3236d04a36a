"""What a job tells while it runs, and how that is written as Server-Sent Events.

started, then token and metrics as they come, then exactly one of end and error
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

__all__ = ["End", "Error", "ErrorCode", "Event", "Metrics", "Started", "StopReason", "Token", "sse"]

StopReason = Literal["MAX_TOKENS", "EOS", "STOP_SEQUENCE", "CANCELLED"]
ErrorCode = Literal["VRAM_OOM", "TIMEOUT", "INVALID_REQUEST", "INFERENCE_FAILED"]


@dataclass(frozen=True)
class Event:
    """Something that happened to a job; `type` is its name in the stream."""

    type: ClassVar[str]

    def payload(self) -> dict[str, Any]:
        """The event as JSON has it; fields that are None are left out."""
        return {"type": self.type} | {k: v for k, v in vars(self).items() if v is not None}


@dataclass(frozen=True)
class Started(Event):
    """The job's turn has come. `started_at` is a time in ISO 8601."""

    job_id: str
    model: str
    started_at: str
    type: ClassVar[str] = "started"


@dataclass(frozen=True)
class Token(Event):
    """Text that is certain: `t`. `i` counts these events from 0."""

    t: str
    i: int
    type: ClassVar[str] = "token"


@dataclass(frozen=True)
class Metrics(Event):
    """How fast the job is, in tokens a second since its start, and the memory that the model takes."""

    tokens_per_sec: float
    vram_bytes: int
    type: ClassVar[str] = "metrics"


@dataclass(frozen=True)
class End(Event):
    """The job is over. `tokens_out` counts every token that was chosen, one that ended the text included."""

    tokens_out: int
    decode_time_ms: int
    stop_reason: StopReason
    stop_sequence_matched: str | None = None
    type: ClassVar[str] = "end"


@dataclass(frozen=True)
class Error(Event):
    """The job failed."""

    code: ErrorCode
    message: str
    type: ClassVar[str] = "error"


def sse(data: str, event: str | None = None) -> bytes:
    """One Server-Sent Event; `data` has no line break."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {data}\n\n".encode()


def compact(payload: object) -> str:
    """JSON in ASCII, without spaces.

    ASCII, because some clients split streams at every character that Unicode counts as a line break.
    """
    return json.dumps(payload, separators=(",", ":"), allow_nan=False)
