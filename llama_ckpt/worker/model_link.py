"""The model's process, seen from the worker: orders go in, messages come out, nothing waits.

The process is started, loads, and answers until it ends; if it ends unasked, everyone who still
waits for it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_ckpt.errors import LlamaCkptError, TokenizerError
from llama_ckpt.spawning import python_module
from llama_ckpt.worker.logs import log
from llama_ckpt.worker.options import WorkerOptions

__all__ = ["Encoded", "LoadedModel", "ModelLink", "ModelLostError", "Part", "RefusedError"]

LONGEST_LINE = 16 << 20  # bytes of one message; the token ids of the longest context are far below


class ModelLostError(Exception):
    """The model's process has ended, though nobody asked it to."""


class RefusedError(LlamaCkptError):
    """The model's process could not load the model; `code` is the worker's exit code for that."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class LoadedModel:
    """What the process said once it had loaded.

    Attributes:
        name: `general.name`, or the file's.
        vram_bytes: on CUDA what torch holds, on the CPU the bytes of the weights.
        memory_type: "cpu" or "cuda".
        device: where it computes.
        computed_by: the engine in a precision, or the layers in a dtype and why not the engine.
        max_context: tokens of prompt and answer together.
        vocab_size: how many tokens there are.
    """

    name: str
    vram_bytes: int
    memory_type: str
    device: str
    computed_by: str
    max_context: int
    vocab_size: int


@dataclass(frozen=True)
class Part:
    """A piece of a prompt; `bos` and `eos` None is what the model file says."""

    text: str
    bos: bool | None = None
    eos: bool | None = None


@dataclass(frozen=True)
class Encoded:
    """A prompt's tokens: how many, and which, unless they are more than the context."""

    count: int
    token_ids: list[int]


class ModelLink:
    """Starts the model's process and talks to it.

    Args:
        on_message: called with each message about a generation.
        on_lost: called once, with a sentence, if the process ends unasked after it has loaded.

    Attributes:
        heard: how many messages have come since it loaded, those that it sends of itself included.
        worked: how many of them show that it computes.
    """

    def __init__(
        self, on_message: Callable[[Mapping[str, Any]], None], on_lost: Callable[[str], None]
    ) -> None:
        self._on_message, self._on_lost = on_message, on_lost
        self._process: Process | None = None
        self._encoding: dict[int, asyncio.Future[Encoded]] = {}
        self._numbers = itertools.count()
        self._reading: asyncio.Task[None] | None = None
        self._relaying: asyncio.Task[None] | None = None
        self._stopped = False
        self.heard = self.worked = 0

    @property
    def pid(self) -> int | None:
        """The process's number, None before it is started."""
        return self._process.pid if self._process else None

    async def load(self, options: WorkerOptions) -> LoadedModel:
        """Start the process and wait until it has loaded the model.

        Raises:
            RefusedError: it can't.
        """
        program, environment = python_module("llama_ckpt.worker.model_process")
        self._process = await asyncio.create_subprocess_exec(
            *program, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=LONGEST_LINE, env=environment
        )
        self._relaying = asyncio.create_task(self._relay())
        wanted = ("model", "device", "dtype", "max_context")
        self._order("load", **{name: getattr(options, name) for name in wanted})
        answer = await self._message()
        if answer is None:
            raise RefusedError(f"the model's process ended while loading, {await self._how_it_ended()}", 1)
        if answer.pop("is") == "refused":
            if trace := answer.get("trace"):
                log("debug" if answer["code"] == 2 else "error", "loading failed", trace=trace)
            raise RefusedError(answer["message"], answer["code"])
        self._reading = asyncio.create_task(self._read())
        return LoadedModel(**answer)

    async def encode(self, parts: Sequence[Part]) -> Encoded:
        """The tokens of a prompt.

        Raises:
            TokenizerError: the vocabulary cannot hold the text.
            ModelLostError: the process has ended.
        """
        if self._stopped or self._reading is None or self._reading.done():
            raise ModelLostError
        number = next(self._numbers)
        future: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()
        self._encoding[number] = future
        try:
            self._order("encode", id=number, parts=[vars(part) for part in parts])
            return await future
        finally:
            del self._encoding[number]

    def generate(
        self,
        job: int,
        token_ids: Sequence[int],
        *,
        max_tokens: int,
        sampling: Mapping[str, float | int | None],
        stop: Sequence[str],
    ) -> None:
        """Begin a generation; what becomes of it comes as messages that carry the job's number."""
        request = {"token_ids": token_ids, "max_tokens": max_tokens, "sampling": sampling, "stop": stop}
        self._order("generate", id=job, **request)

    def cancel(self, job: int) -> None:
        """Stop a generation before its next token; it answers with "done" all the same."""
        self._order("cancel", id=job)

    def kill(self) -> None:
        """End the process at once, also one that is stopped; who waits for it is told."""
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._stopped = True
        if self._reading:
            self._reading.cancel()
        if self._process and self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.close()  # the process ends itself
            try:
                await asyncio.wait_for(self._process.wait(), timeout=1)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
        if self._relaying:
            self._relaying.cancel()

    def _order(self, what: str, **fields: object) -> None:
        if self._process and self._process.stdin and not self._process.stdin.is_closing():
            self._process.stdin.write((json.dumps({"do": what, **fields}) + "\n").encode())

    async def _message(self) -> dict[str, Any] | None:
        assert self._process is not None and self._process.stdout is not None
        line = await self._process.stdout.readline()
        answer: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return answer

    async def _read(self) -> None:
        while (message := await self._message()) is not None:
            self.heard += 1
            self.worked += message.get("works", True)
            if message["is"] == "alive":
                continue
            if message["is"] in ("encoded", "unencodable"):
                self._settle(message)
            else:
                self._on_message(message)
        reason = f"the model's process has ended, {await self._how_it_ended()}"
        for future in self._encoding.values():
            if not future.done():
                future.set_exception(ModelLostError(reason))
        self._on_lost(reason)

    async def _relay(self) -> None:
        """Put what libraries print there into the log, which is JSON."""
        assert self._process is not None and self._process.stderr is not None
        while line := await self._process.stderr.readline():
            log("warning", "the model's process printed", text=line.decode("utf-8", "replace").rstrip())

    def _settle(self, message: Mapping[str, Any]) -> None:
        future = self._encoding.get(message["id"])
        if future is None or future.done():
            return  # whoever asked has gone
        if message["is"] == "encoded":
            future.set_result(Encoded(message["count"], message["token_ids"]))
        else:
            future.set_exception(TokenizerError(message["message"]))

    async def _how_it_ended(self) -> str:
        assert self._process is not None
        code = await self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"
