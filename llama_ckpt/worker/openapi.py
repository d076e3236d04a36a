"""The description of everything that the worker answers, in OpenAPI 3.1; served as /openapi.json."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from llama_ckpt.version import __version__
from llama_ckpt.worker.replies import BODY_BYTES
from llama_ckpt.worker.requests import CancelRequest, ChatRequest, CompletionRequest, ExecuteRequest

__all__ = ["describe"]

Json = dict[str, Any]

REQUESTS: tuple[type[BaseModel], ...] = (ExecuteRequest, CancelRequest, CompletionRequest, ChatRequest)

EVENTS = """\
Server-Sent Events; `event:` carries the same name as `type` in the data, which is JSON.

    started  {"type":"started","job_id","model","started_at"}
    token    {"type":"token","t","i"}
    metrics  {"type":"metrics","tokens_per_sec","vram_bytes"}
    end      {"type":"end","tokens_out","decode_time_ms","stop_reason","stop_sequence_matched"?}
    error    {"type":"error","code","message"}

`end` or `error` comes once, and last."""

TEXT: Json = {"type": "string"}
NUMBER: Json = {"type": "integer"}


def _object(**properties: Json) -> Json:
    """An object whose properties are all required; those in `optional` are not."""
    optional: Json = properties.pop("optional", {})
    return {"type": "object", "properties": {**properties, **optional}, "required": list(properties)}


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


NAMES = ["started", "token", "metrics", "end", "error"]
EVENT = _object(event={"enum": NAMES}, data={"type": "string", "contentMediaType": "application/json"})
USAGE = _object(prompt_tokens=NUMBER, completion_tokens=NUMBER, total_tokens=NUMBER)
MESSAGE = _object(role={"const": "assistant"}, content=TEXT)
OPENAI_ERROR = _object(message=TEXT, type=TEXT, code=TEXT, optional={"param": {"type": ["string", "null"]}})
FAULT = _object(
    field=TEXT, constraint=TEXT, message=TEXT, optional={"value": {"type": ["number", "boolean", "null"]}}
)


def _choice(**content: Json) -> Json:
    reason = {"enum": ["stop", "length"]}
    return _object(index=NUMBER, **content, finish_reason=reason, optional={"logprobs": {"type": "null"}})


def _completion(kind: str, choice: Json) -> Json:
    about = {"id": TEXT, "object": {"const": kind}, "created": NUMBER, "model": TEXT}
    return _object(**about, choices=_list(choice), usage=USAGE)


SCHEMAS: Json = {
    "Health": _object(
        status={"enum": ["healthy", "loading", "faulted", "stopping"]},
        model_loaded={"type": "boolean"},
        vram_bytes=NUMBER,
        memory_type={"enum": ["cpu", "cuda"]},
    ),
    "Faults": _object(errors=_list(FAULT), optional={"error": OPENAI_ERROR}),
    "OpenAIError": _object(error=OPENAI_ERROR),
    "Cancelling": _object(job_id=TEXT, status={"const": "cancelling"}),
    "Models": _object(
        object={"const": "list"},
        data=_list(_object(id=TEXT, object={"const": "model"}, created=NUMBER, owned_by=TEXT)),
    ),
    "Completion": _completion("text_completion", _choice(text=TEXT)),
    "ChatCompletion": _completion("chat.completion", _choice(message=MESSAGE)),
}


def describe(client_timeout: float) -> Json:
    """The OpenAPI document of a worker.

    Args:
        client_timeout: seconds that a body may take to arrive.
    """
    _, bodies = models_json_schema(
        [(model, "validation") for model in REQUESTS], ref_template="#/components/schemas/{model}"
    )
    about = f"Bodies are JSON of at most {BODY_BYTES} bytes, sent within {client_timeout:g} s. "
    about += "X-Correlation-ID is taken over or made, and comes back with every answer."
    return {
        "openapi": "3.1.0",
        "info": {"title": "llama_ckpt worker", "version": __version__, "description": about},
        "paths": _paths(),
        "components": {"schemas": {**SCHEMAS, **bodies["$defs"]}},
    }


def _paths() -> Json:
    stream = ("text/event-stream", EVENT)
    health = ("application/json", _reference("Health"))
    models = ("application/json", _reference("Models"))
    prometheus = ("text/plain", {"type": "string"})
    return {
        "/health": _get("Whether the worker can take a job", health, {"503": _answer("Not now", *health)}),
        "/metrics": _get("Counters for Prometheus", prometheus),
        "/v1/models": _get("The model", models),
        "/execute": _post("Run a job", "ExecuteRequest", {"200": _answer(EVENTS, *stream), **_refusals(503)}),
        "/cancel": _post(
            "Cancel a job",
            "CancelRequest",
            {"202": _json("The job ends at its next token", "Cancelling"), **_refusals(404)},
        ),
        "/v1/completions": _openai("Continue a text", "CompletionRequest", "Completion"),
        "/v1/chat/completions": _openai("Answer a message", "ChatRequest", "ChatCompletion"),
    }


def _answer(description: str, media: str, schema: Json) -> Json:
    return {"description": description, "content": {media: {"schema": schema}}}


def _json(description: str, *names: str) -> Json:
    references = [_reference(name) for name in names]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return _answer(description, "application/json", schema)


def _refusals(status: int) -> Json:
    full: Json = _json("Not now: the queue is full, or the worker is not ready", "Faults")
    full["headers"] = {"Retry-After": {"schema": NUMBER, "description": "seconds"}}
    later = {404: _json("No such job waits or runs", "Faults"), 503: full}
    return {
        "400": _json("Every fault of the request; nothing was started", "Faults"),
        str(status): later[status],
    }


def _get(summary: str, answer: tuple[str, Json], others: Json | None = None) -> Json:
    return {"get": {"summary": summary, "responses": {"200": _answer(summary, *answer), **(others or {})}}}


def _post(summary: str, body: str, responses: Json) -> Json:
    content = {"application/json": {"schema": _reference(body)}}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": content},
            "responses": responses,
        }
    }


def _openai(summary: str, body: str, answer: str) -> Json:
    whole = _json(summary, answer)
    whole["content"]["text/event-stream"] = {"schema": _object(data=TEXT)}
    failures = {
        "500": _json("The generation failed", "Faults", "OpenAIError"),
        "503": _json("Not now, or the job was cancelled", "Faults", "OpenAIError"),
        "504": _json("The job ran for its limit", "OpenAIError"),
    }
    return _post(summary, body, {"200": whole, **_refusals(503), **failures})
