"""The worker: a Llama-2 over HTTP, one generation at a time, streamed as it is made.

    python -m llama_ckpt.worker --worker-id w1 --model model.gguf --port 8080 --callback-url http://host/ready

Two processes. The first, which a pool manager starts, speaks HTTP and never imports torch; the second
(`model_process`) holds the model and computes. Between them go JSON lines over two pipes, so that
nothing that the model does, an import of seconds or a long prompt, ever keeps a health check waiting.

    options      the command line                  requests      bodies of requests, as pydantic checks them
    lifecycle    start-up, signals, exit codes     admission     from a body to a job, or to all its faults
    serving      the socket and the HTTP server    jobs          a job, the queue, one generation at a time
    announce     the call to the pool manager      events        what a stream tells, and Server-Sent Events
    model_link   the model's process, from here    protocol      /health, /execute, /cancel, /metrics
    model_process  the model's process, inside     openai_api    /v1/…, as OpenAI's clients know it
    chat         Llama-2's chat template           openapi       the description of all of it
    telemetry    Prometheus                        logs          JSON lines, never waited for
    probe        is a worker alive? for validate   replies       errors, middleware, bodies within limits

The protocol with examples: docs/worker.md.
"""

from __future__ import annotations

__all__: list[str] = []
