"""The worker: a Llama-2 over HTTP, one generation at a time, streamed as it is made.

    python -m llama_ckpt.worker --worker-id w1 --model model.gguf --port 8080 --callback-url http://host/ready

Two processes. The first, which a pool manager starts, speaks HTTP and never imports torch; the second
(`model_process`) holds the model and computes. Between them go JSON lines over two pipes, so that
nothing that the model does, an import of seconds or a long prompt, ever keeps a health check waiting.

    options      the command line                  requests      bodies of requests, as pydantic checks them
    lifecycle      start-up, signals, exit codes   service     the worker's state; from a request to a job
    serving        the socket and the HTTP server  job_queue   the queue, one generation at a time
    announce       the call to the pool manager    jobs, events  a job, and what it tells
    model_link     the model's process, from here  streaming   events on their way to a client
    model_process  the model's process, inside     protocol    /health, /execute, /cancel, /metrics
    chat           Llama-2's chat template         openai_api  /v1/…, as OpenAI's clients know it
    telemetry      Prometheus                      openapi     the description of all of it
    probe          does a worker work here?        replies     refusals, correlation ids, limits of bodies
    spawning       processes of our own            logs        JSON lines, never waited for

The protocol with examples: docs/worker.md.
"""

from __future__ import annotations

__all__: list[str] = []
