"""The worker's command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import urlsplit

from llama_ckpt.errors import OptionError
from llama_ckpt.precisions import DTYPES
from llama_ckpt.version import __version__

__all__ = ["WorkerOptions", "is_test_mode", "parse_options"]

EXAMPLE = (
    "Example: llama-ckpt-worker --worker-id test --model test.gguf --port 8080 "
    "--callback-url http://localhost:9999"
)


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker was started with.

    Attributes:
        worker_id: its name; in every log line and in the call to the pool manager.
        model: the GGUF file.
        port: 0 takes a free one; the log and the callback say which.
        callback_url: where the pool manager waits for the worker's call.
        host: the address to listen on.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: of the layers, and takes them. "auto" is the engine on CUDA; where it cannot run the model,
            the layers in float16; and the layers in float32 on the CPU.
        max_context: tokens of prompt and answer together; None takes the model's context.
        queue_size: jobs that may wait besides the one that runs.
        job_timeout: seconds that a job may run, counted from its start.
        grace: seconds that running jobs and their clients get after SIGTERM.
        callback_timeout: seconds for all attempts to reach the callback together.
        client_timeout: seconds after which a client that takes or sends nothing counts as gone.
    """

    worker_id: str
    model: str
    port: int
    callback_url: str
    host: str = "127.0.0.1"
    device: str = "auto"
    dtype: str = "auto"
    max_context: int | None = None
    queue_size: int = 64
    job_timeout: float = 300.0
    grace: float = 10.0
    callback_timeout: float = 30.0
    client_timeout: float = 30.0


def is_test_mode(callback_url: str) -> bool:
    """Whether the callback is `localhost:9999`, which is logged and not called."""
    parts = urlsplit(callback_url)
    return parts.hostname == "localhost" and parts.port == 9999


def parse_options(arguments: Sequence[str] | None = None) -> WorkerOptions:
    """The options of a command line; None takes the process's own.

    Raises:
        OptionError: an option is missing, unknown or out of its range.
        SystemExit: after `--help` and `--version`.
    """
    return WorkerOptions(**vars(_parser().parse_args(arguments)))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Argparse would print its usage; the worker's errors are one line in its log."""
        raise OptionError("command line", hint=f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="llama-ckpt-worker",
        description="Serve a Llama-2 over HTTP: one generation at a time, each token sent as it comes.",
        epilog=EXAMPLE,
        allow_abbrev=False,
    )
    add, seconds = parser.add_argument, _number(float, 0)
    parser.add_argument("--version", action="version", version=f"llama_ckpt {__version__}")
    add("--worker-id", required=True, type=_text, help="this worker's name")
    add("--model", required=True, metavar="M.gguf", help="a Llama in GGUF")
    add(
        "--port", required=True, type=_number(int, 0, 65535), help="the port to listen on; 0 takes a free one"
    )
    add("--callback-url", required=True, type=_url, help="told once the worker is ready, by POST; "
        "localhost:9999 is test mode: not called")  # fmt: skip
    add("--host", default="127.0.0.1", help="the address to listen on (%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    dtype_help = "takes the layers, in this; auto: the engine on CUDA, else float16 there, float32 on the CPU"
    add("--dtype", default="auto", choices=("auto", *DTYPES), help=dtype_help)
    add("--max-context", type=_number(int, 2), metavar="N", help="tokens of prompt and answer together; "
        "the model's context without it")  # fmt: skip
    add(
        "--queue-size", default=64, type=_number(int, 0), metavar="N", help="jobs that may wait (%(default)s)"
    )
    add("--job-timeout", default=300.0, type=_number(float, 1e-3), metavar="S",
        help="seconds that a job may run (%(default)s)")  # fmt: skip
    add("--grace", default=10.0, type=seconds, metavar="S",
        help="seconds for running jobs after SIGTERM (%(default)s)")  # fmt: skip
    add("--callback-timeout", default=30.0, type=seconds, metavar="S",
        help="seconds for all attempts of the callback (%(default)s)")  # fmt: skip
    add("--client-timeout", default=30.0, type=_number(float, 1e-3), metavar="S",
        help="seconds after which a stalled client counts as gone (%(default)s)")  # fmt: skip
    return parser


def _number(kind: type[int] | type[float], least: float, most: float = 1e9) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not least <= value <= most:
            limits = f"{least:g} or more" if most == 1e9 else f"{least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted {limits}")
        return value

    return parse


def _text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted http://host:port/path")
    return text
