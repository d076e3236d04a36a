"""Requests that cannot be served: what they are told, all of it at once, and that nothing was started."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest

from llama_ckpt.worker.replies import BODY_BYTES
from tests.worker.running_worker import Json, RunningWorker, execute, parsed, raw_request, received, request

SECRET = "xyzzy-the-secret-prompt"
JSON = {"Content-Type": "application/json"}


def refused(client: httpx.Client, body: object, status: int = 400, path: str = "/execute") -> list[Json]:
    """The faults that a request is answered with."""
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=sent, headers=JSON)
    assert answer.status_code == status, answer.text
    assert SECRET not in answer.text
    errors = answer.json()["errors"]
    assert errors and all({"field", "constraint", "message"} <= set(error) for error in errors)
    return list(errors)


FAULTS: list[tuple[Json, str, str]] = [
    ({"job_id": ""}, "job_id", "min_length"),
    ({"job_id": 5}, "job_id", "type"),
    ({"prompt": ""}, "prompt", "min_length"),
    ({"prompt": SECRET * 2000}, "prompt", "max_length"),
    ({"prompt": [SECRET]}, "prompt", "type"),
    ({"prompt": {"text": SECRET}}, "prompt", "type"),
    ({"prompt": SECRET + "\ud800"}, "prompt", "unicode"),
    ({"max_tokens": 0}, "max_tokens", "minimum"),
    ({"max_tokens": 2049}, "max_tokens", "maximum"),
    ({"max_tokens": 1.5}, "max_tokens", "type"),
    ({"max_tokens": "5"}, "max_tokens", "type"),
    ({"max_tokens": True}, "max_tokens", "type"),
    ({"max_tokens": None}, "max_tokens", "type"),
    ({"temperature": -0.1}, "temperature", "minimum"),
    ({"temperature": 2.1}, "temperature", "maximum"),
    ({"temperature": SECRET}, "temperature", "type"),
    ({"top_p": -0.1}, "top_p", "minimum"),
    ({"top_p": 1.1}, "top_p", "maximum"),
    ({"top_k": -1}, "top_k", "minimum"),
    ({"min_p": 1.1}, "min_p", "maximum"),
    ({"repetition_penalty": 2.1}, "repetition_penalty", "maximum"),
    ({"repetition_penalty": -1}, "repetition_penalty", "minimum"),
    ({"seed": 1.5}, "seed", "type"),
    ({"seed": 2**64}, "seed", "maximum"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "max_items"),
    ({"stop": [""]}, "stop.0", "min_length"),
    ({"stop": ["a", "b" * 101]}, "stop.1", "max_length"),
    ({"stop": SECRET}, "stop", "type"),
]


@pytest.mark.parametrize(("changes", "field", "constraint"), FAULTS)
def test_a_fault_is_named(reciter_client: httpx.Client, changes: Json, field: str, constraint: str) -> None:
    (error,) = refused(reciter_client, request("fault", **({"prompt": SECRET} | changes)))
    assert (error["field"], error["constraint"]) == (field, constraint)


def test_a_wrong_number_comes_back(reciter_client: httpx.Client) -> None:
    (error,) = refused(reciter_client, request("fault", prompt=SECRET, max_tokens=2049))
    assert error["value"] == 2049 and "2048" in error["message"]


@pytest.mark.parametrize("left_out", ["job_id", "prompt", "max_tokens"])
def test_a_missing_field_is_named(reciter_client: httpx.Client, left_out: str) -> None:
    body = request("fault", prompt=SECRET)
    del body[left_out]
    (error,) = refused(reciter_client, body)
    assert (error["field"], error["constraint"]) == (left_out, "required") and "value" not in error


def test_all_faults_at_once(reciter_client: httpx.Client) -> None:
    wrong: dict[str, Any] = {
        "prompt": SECRET * 2000,
        "max_tokens": 0,
        "temperature": 9,
        "stop": ["", "b" * 200],
    }
    errors = refused(reciter_client, request("", top_p=7, top_k=-1, min_p=2, repetition_penalty=3, **wrong))
    fields = {error["field"] for error in errors}
    assert fields == {
        "job_id", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
        "stop.0", "stop.1",
    }  # fmt: skip


BODIES = {
    "nothing": b"",
    "half": b'{"prompt":"%b' % SECRET.encode(),
    "words": SECRET.encode(),
    "not utf-8": b'{"prompt":"%b\xff"}' % SECRET.encode(),
    "utf-16": f'{{"prompt":"{SECRET}"}}'.encode("utf-16"),
    "nan": b'{"temperature":NaN}',
    "deep": b'{"a":' + b"[" * 100_000,
    "digits": b'{"max_tokens":' + b"9" * 5000 + b"}",
    "two": b"{} {}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_body_that_is_no_json(reciter_client: httpx.Client, body: bytes) -> None:
    (error,) = refused(reciter_client, body)
    assert (error["field"], error["constraint"]) == ("body", "json")


@pytest.mark.parametrize("body", [[], 5, "text", None, [SECRET]])
def test_a_body_that_is_no_object(reciter_client: httpx.Client, body: object) -> None:
    (error,) = refused(reciter_client, body)
    assert (error["field"], error["constraint"]) == ("body", "type") and "value" not in error


def test_a_number_beyond_all_floats(reciter_client: httpx.Client) -> None:
    body = json.dumps(request("huge", prompt=SECRET)).replace('"temperature": 0', '"temperature": 1e999')
    (error,) = refused(reciter_client, body.encode())
    assert error["field"] == "temperature" and "value" not in error


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_another_content_type(reciter_client: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = reciter_client.post("/execute", content=json.dumps(request("type")), headers=headers)
    (error,) = answer.json()["errors"]
    assert (answer.status_code, error["constraint"]) == (400, "content_type")
    assert "application/json" in error["message"]


def test_a_content_type_with_a_charset_is_fine(reciter_client: httpx.Client) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    answer = reciter_client.post(
        "/execute", content=json.dumps(request("charset", prompt="a")), headers=headers
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("size", [BODY_BYTES + 1, 8 << 20])
def test_a_body_that_is_too_long(reciter_client: httpx.Client, size: int) -> None:
    (error,) = refused(reciter_client, b'{"prompt":"' + SECRET.encode() + b" " * size)
    assert (error["field"], error["constraint"]) == ("body", "max_bytes")
    assert str(BODY_BYTES) in error["message"]


def test_a_body_without_end_is_cut_off(reciter: RunningWorker) -> None:
    with reciter.connect() as connection:
        connection.sendall(b"POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        with pytest.raises(OSError):
            for _ in range(64):
                connection.sendall(chunk)
            pytest.fail("64 MiB were taken")


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "fits"),
    [("a" * 100, 26, True), ("a" * 100, 27, False), ("a" * 125, 1, True), ("a" * 32_768, 1, False)],
)
def test_prompt_and_answer_fit_the_context(
    reciter_client: httpx.Client, prompt: str, max_tokens: int, fits: bool
) -> None:
    """The context is 128 tokens; a prompt of n letters has n + 2."""
    body = request("context", prompt=prompt, max_tokens=max_tokens)
    if fits:
        assert execute(reciter_client, body)[-1]["type"] == "end"
    else:
        (error,) = refused(reciter_client, body)
        assert (error["field"], error["constraint"]) == ("prompt", "context")
        assert f"{len(prompt) + 2} + {max_tokens} tokens" in error["message"] and "128" in error["message"]


def test_max_context_is_kept(tight: RunningWorker) -> None:
    with tight.client() as client:
        (error,) = refused(client, request("context", max_tokens=2047))
        assert "2 + 2047 tokens" in error["message"] and "2048" in error["message"]


def test_nothing_was_started_or_logged(reciter: RunningWorker, reciter_client: httpx.Client) -> None:
    refused(reciter_client, request("never", prompt=SECRET, max_tokens=0))
    refused(reciter_client, request("never", prompt=SECRET * 10))
    execute(reciter_client, request("after", prompt="a"))
    reciter.logged("job ended", job_id="after")
    assert not [line for line in reciter.log if line.get("job_id") == "never"]
    assert SECRET not in json.dumps(reciter.log)


def test_a_job_id_is_taken_while_it_waits_or_runs(tight: RunningWorker) -> None:
    with tight.client() as client, tight.client() as other:
        with client.stream("POST", "/execute", json=request("twice", max_tokens=2000)) as answer:
            events = parsed(answer.iter_lines())
            assert next(events)["type"] == "started"
            (error,) = refused(other, request("twice"))
            assert (error["field"], error["constraint"]) == ("job_id", "unique")
            assert other.post("/cancel", json={"job_id": "twice"}).status_code == 202
            assert list(events)[-1]["stop_reason"] == "CANCELLED"
        assert execute(other, request("twice"))[-1]["stop_reason"] == "MAX_TOKENS"


def test_a_full_queue(tight: RunningWorker) -> None:
    """One runs and one waits; the third is told to come again."""
    with tight.client() as client, tight.client() as waiting, tight.client() as third:
        with client.stream("POST", "/execute", json=request("runs", max_tokens=2000)) as first:
            events = parsed(first.iter_lines())  # kept: a dropped iterator hangs up
            assert next(events)["type"] == "started"
            with waiting.stream("POST", "/execute", json=request("waits")) as second:
                answer = third.post("/execute", json=request("refused"))
                assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
                assert answer.json()["errors"][0]["constraint"] == "queue"
                third.post("/cancel", json={"job_id": "runs"})
                assert list(parsed(second.iter_lines()))[-1]["stop_reason"] == "MAX_TOKENS"
        assert execute(third, request("refused"))[-1]["stop_reason"] == "MAX_TOKENS"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/execute", 405), ("POST", "/health", 405), ("GET", "/v1/nothing", 404)],
)
def test_unknown_paths_and_methods(reciter_client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = reciter_client.request(method, path)
    assert answer.status_code == status and answer.json()["errors"][0]["constraint"] == "unknown"
    assert ("error" in answer.json()) == path.startswith("/v1/")


def test_fields_that_nobody_knows_are_ignored(reciter_client: httpx.Client) -> None:
    assert execute(reciter_client, request("extra", prompt="a", priority="high"))[-1]["type"] == "end"


def test_requests_in_a_row_on_one_connection(reciter: RunningWorker) -> None:
    """Pipelined: the answers come in the order of the requests."""
    bodies = [json.dumps(request(f"piped-{n}", prompt="a", max_tokens=n + 1)).encode() for n in range(3)]
    last = raw_request("/cancel", b'{"job_id":"nobody"}', "Connection: close")
    with reciter.connect() as connection:
        connection.sendall(b"".join(raw_request("/execute", body) for body in bodies) + last)
        answer = received(connection)
    places = [answer.index(f'"job_id":"piped-{n}"'.encode()) for n in range(3)]
    assert places == sorted(places) and answer.count(b"HTTP/1.1 200") == 3
    assert answer.count(b'"stop_reason"') == 3 and answer.count(b"HTTP/1.1 404") == 1


def test_a_flood_of_headers(reciter: RunningWorker, reciter_client: httpx.Client) -> None:
    with reciter.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        with pytest.raises(OSError):
            for number in range(100_000):
                connection.sendall(b"X-%d: %s\r\n" % (number, b"y" * 1000))
            pytest.fail("100 MB of headers were taken")
    assert reciter_client.get("/health").status_code == 200


def test_many_wrong_requests_at_once(reciter: RunningWorker) -> None:
    answers: list[int] = []

    def send() -> None:
        with reciter.client() as client:
            answers.extend(client.post("/execute", json={"job_id": 0}).status_code for _ in range(10))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [400] * 80
