"""Schemathesis against the worker's own description of itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import HealthCheck

from llama_ckpt.worker.openapi import describe
from tests.gguf_files import write_llama
from tests.worker.running_worker import RunningWorker, running

schemathesis = pytest.importorskip("schemathesis", reason="a GPU machine without a network may lack it")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
schema = schemathesis.openapi.from_dict(describe(30))

BEYOND_A_SCHEMA = {"context", "roles", "unique", "max_length"}
"""Why a body that the schema allows is refused: the model's context, the other messages, the other jobs."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    """A worker with a small model of random weights, and 64 tokens for prompt and answer."""
    model = write_llama(tmp_path_factory.mktemp("small") / "model.gguf")
    with running(model, "--max-context", "64") as started:
        yield started.ready()


@schema.parametrize()
@hypothesis.settings(max_examples=15, suppress_health_check=list(HealthCheck), deadline=None)
def test_every_answer_is_as_described(case: schemathesis.Case, small: RunningWorker) -> None:
    """No 5xx, and every status, content type and body is one that the description has."""
    response = case.call(base_url=small.url)
    assert response.status_code < 500
    case.validate_response(response, excluded_checks=[checks.positive_data_acceptance])
    is_sound = case.meta is not None and case.meta.generation.mode.is_positive
    if is_sound and response.status_code == 400:
        assert {error["constraint"] for error in response.json()["errors"]} <= BEYOND_A_SCHEMA


def test_the_page_is_served(reciter_client: httpx.Client) -> None:
    page = reciter_client.get("/openapi.json").json()
    assert page == describe(30)
    assert set(page["paths"]) == {
        "/health", "/execute", "/cancel", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions",
    }  # fmt: skip


def limits(name: str, field: str) -> dict[str, Any]:
    """What the page says of a field."""
    described = describe(30)["components"]["schemas"][name]["properties"][field]
    return {key: value for key, value in described.items() if key not in ("title", "description")}


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("job_id", {"type": "string", "minLength": 1, "maxLength": 256}),
        ("prompt", {"type": "string", "minLength": 1, "maxLength": 32768}),
        ("max_tokens", {"type": "integer", "minimum": 1, "maximum": 2048}),
        ("temperature", {"type": "number", "minimum": 0, "maximum": 2, "default": 1.0}),
        ("top_p", {"type": "number", "minimum": 0, "maximum": 1, "default": 1.0}),
        ("top_k", {"type": "integer", "minimum": 0, "default": 0}),
        ("min_p", {"type": "number", "minimum": 0, "maximum": 1, "default": 0.0}),
        ("repetition_penalty", {"type": "number", "minimum": 0, "maximum": 2, "default": 1.0}),
        ("stop", {"type": "array", "maxItems": 4, "default": [],
                  "items": {"type": "string", "minLength": 1, "maxLength": 100}}),
    ],
)  # fmt: skip
def test_the_limits_are_the_promised_ones(field: str, wanted: dict[str, Any]) -> None:
    assert limits("ExecuteRequest", field) == wanted
