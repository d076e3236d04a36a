"""OpenAI's completions and chat completions, on the same queue as everything else."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llama_ckpt.errors import OptionError
from llama_ckpt.worker.chat import chat_parts
from llama_ckpt.worker.events import End, Error, Event, Started, Token, compact, sse
from llama_ckpt.worker.guard import owner_of
from llama_ckpt.worker.jobs import Job
from llama_ckpt.worker.model_link import Part
from llama_ckpt.worker.replies import BadRequestError, Fault, body_of, openai_error
from llama_ckpt.worker.requests import PROMPT_CHARACTERS, ChatRequest, CompletionRequest, OpenAIRequest
from llama_ckpt.worker.service import Service
from llama_ckpt.worker.streaming import EventStream, watched

__all__ = ["Answer", "OpenAIApi"]

STATUS = {"CANCELLED": 503, "TIMEOUT": 504, "VRAM_OOM": 503, "INVALID_REQUEST": 400, "INFERENCE_FAILED": 500}
"""Of an answer in one piece, by how its job ended."""


class OpenAIApi:
    """The handlers of one worker."""

    def __init__(self, service: Service) -> None:
        self._service, self._since = service, int(time.time())

    def routes(self) -> list[Route]:
        """Paths and methods."""
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]

    async def models(self, _request: Request) -> Response:
        """The one model; none while it is being loaded."""
        found = [self._service.model.name] if self._service.model else []
        about = {"object": "model", "created": self._since, "owned_by": "llama_ckpt"}
        return JSONResponse({"object": "list", "data": [{"id": name, **about} for name in found]})

    async def completions(self, request: Request) -> Response:
        """Continue a text."""
        wanted = await body_of(request, CompletionRequest, within=self._service.options.client_timeout)
        most = 16 if wanted.max_tokens is None else wanted.max_tokens
        return await self._answer(request, wanted, [Part(wanted.prompt[0])], most)

    async def chat(self, request: Request) -> Response:
        """Answer the last message of a conversation."""
        wanted = await body_of(request, ChatRequest, within=self._service.options.client_timeout)
        length = sum(len(message.text) for message in wanted.messages)
        if length > PROMPT_CHARACTERS:
            message = f"the messages have {length} characters, at most {PROMPT_CHARACTERS} are taken"
            raise BadRequestError([Fault("messages", "max_length", message)])
        try:
            parts = chat_parts(wanted.messages)
        except OptionError as error:
            raise BadRequestError([Fault("messages", "roles", str(error))]) from None
        return await self._answer(request, wanted, parts, wanted.max_completion_tokens or wanted.max_tokens)

    async def _answer(
        self, request: Request, wanted: OpenAIRequest, parts: list[Part], max_tokens: int | None
    ) -> Response:
        chat = isinstance(wanted, ChatRequest)
        job_id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        job = await self._service.submit(job_id, parts, wanted, max_tokens, owner_of(request))
        answer = Answer(job, self._service.loaded.name, chat=chat, usage=wanted.wants_usage)
        if wanted.stream:
            return EventStream(self._service.queue, job, answer.chunks, sse("[DONE]"))
        async with watched(self._service.queue, job, request.receive):
            text = [event.t async for event in job.events() if isinstance(event, Token)]
        return answer.whole("".join(text))


class Answer:
    """A job's events in OpenAI's words.

    Args:
        job: whose events.
        model: its name.
        chat: whether the request was for a chat.
        usage: whether a stream is to end with the number of tokens.
    """

    def __init__(self, job: Job, model: str, *, chat: bool, usage: bool) -> None:
        self._job, self._chat, self._wants_usage = job, chat, usage
        self._about = {"id": job.job_id, "created": int(time.time()), "model": model}

    def chunks(self, event: Event) -> Iterator[bytes]:
        """An event as pieces of a stream."""
        if isinstance(event, Started) and self._chat:
            yield self._chunk({"delta": {"role": "assistant", "content": ""}})
        elif isinstance(event, Token):
            yield self._chunk({"delta": {"content": event.t}} if self._chat else {"text": event.t})
        elif (message := self._failure()) is not None:
            yield sse(compact({"error": message}))
        elif isinstance(event, End):
            yield self._chunk({"delta": {}} if self._chat else {"text": ""}, finish(event))
            if self._wants_usage:
                yield sse(compact({**self._kind(True), **self._about, "choices": [], "usage": self._usage()}))

    def whole(self, text: str) -> Response:
        """The answer in one piece."""
        ended = self._job.terminal
        if (message := self._failure()) is not None or not isinstance(ended, End):
            return JSONResponse({"error": message}, STATUS[str((message or {})["code"])])
        message = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **message, "logprobs": None, "finish_reason": finish(ended)}
        return JSONResponse({**self._kind(False), **self._about, "choices": [choice], "usage": self._usage()})

    def _kind(self, chunk: bool) -> dict[str, str]:
        if self._chat:
            return {"object": "chat.completion.chunk" if chunk else "chat.completion"}
        return {"object": "text_completion"}

    def _chunk(self, content: dict[str, object], reason: str | None = None) -> bytes:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": reason}
        return sse(compact({**self._kind(True), **self._about, "choices": [choice]}))

    def _failure(self) -> dict[str, object] | None:
        ended = self._job.terminal
        if isinstance(ended, Error):
            return openai_error(ended.message, "server_error", ended.code)
        if isinstance(ended, End) and ended.stop_reason == "CANCELLED":
            return openai_error("the job was cancelled", "server_error", "CANCELLED")
        return None

    def _usage(self) -> dict[str, int]:
        prompt, made = len(self._job.token_ids), self._job.tokens_out
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def finish(end: End) -> str:
    """OpenAI's word for why a text ended."""
    return "length" if end.stop_reason == "MAX_TOKENS" else "stop"
