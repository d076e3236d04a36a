"""The worker's command line."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import urlsplit

from llama_ckpt.errors import OptionError
from llama_ckpt.precisions import DTYPES
from llama_ckpt.version import __version__

__all__ = [
    "WorkerOptions",
    "allowed_hosts",
    "is_loopback",
    "is_test_mode",
    "parse_options",
    "without_secrets",
]

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
        queue_timeout: seconds that a job may wait for its turn.
        watchdog: seconds of silence of the model's process, after a cancel that it does not obey.
        restart: start the model's process anew where it ended unasked or was stuck.
        drain: after SIGTERM jobs go on, up to `grace`; else they are cancelled at once.
        api_keys: one of them has to come with every request but health; none: no key is asked for.
        allowed_hosts: names by which clients may call the worker; none: those of the address it listens on.
        allowed_origins: pages of other origins that may ask, `https://name`; "*" for all.
        metrics: whether `/metrics` is there.
        client_requests: requests that one client, or one key, may have at once; 0: as many as it likes.
        client_connections: connections that one address may have at once; 0: as many as it likes.
        insecure: listen beyond the loopback interface without a key.
        ssl_certfile, ssl_keyfile: of TLS; None: none.
        uds: path of a socket of the file system to listen on, instead of address and port.
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
    queue_timeout: float = 3600.0
    watchdog: float = 5.0
    restart: bool = False
    drain: bool = False
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    metrics: bool = True
    client_requests: int = 0
    client_connections: int = 0
    insecure: bool = False
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    uds: str | None = None


LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def allowed_hosts(options: WorkerOptions) -> tuple[str, ...]:
    """The names that a request's `Host` may have, in lower case; "*" for any."""
    if options.allowed_hosts:
        return tuple(host.lower() for host in options.allowed_hosts)
    host = options.host.lower()
    return (*LOOPBACK, host) if is_loopback(host) and options.uds is None else ("*",)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def without_secrets(url: str) -> str:
    """A URL for a log: no user, no password, and nothing of its query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a URL that cannot be read"
    if not parts.netloc:
        return "a URL without a host"
    hidden = "?…" if parts.query or parts.fragment else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{hidden}"


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
    given = vars(_parser().parse_args(arguments))
    keys = tuple(given.pop("api_key") or ())
    if (path := given.pop("api_key_file")) is not None:
        keys += _keys_of(path)
    given |= {name: tuple(given[name] or ()) for name in ("allowed_hosts", "allowed_origins")}
    options = WorkerOptions(**given, api_keys=keys)
    _check_together(options)
    return options


def _keys_of(path: str) -> tuple[str, ...]:
    try:
        with open(path, encoding="utf-8") as file:
            keys = tuple(line.strip() for line in file.read(1 << 20).splitlines() if line.strip())
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or "no UTF-8"
        raise OptionError("--api-key-file", got=f"{path}: {got}", wanted="a file with a key a line") from None
    if not keys:
        raise OptionError("--api-key-file", got="no key", wanted="a key a line")
    return keys


def _check_together(options: WorkerOptions) -> None:
    if (options.ssl_certfile is None) != (options.ssl_keyfile is None):
        raise OptionError("TLS", got="one file", wanted="--ssl-certfile and --ssl-keyfile")
    reachable = options.uds is None and not is_loopback(options.host)
    if reachable and not options.api_keys and not options.insecure:
        raise OptionError(
            "--host",
            got=f"{options.host} without a key, which everybody could use",
            wanted="--api-key-file F, or --insecure",
        )


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
    add("--queue-timeout", default=3600.0, type=_number(float, 1e-3), metavar="S",
        help="seconds that a job may wait (%(default)s)")  # fmt: skip
    _add_safety(parser)
    return parser


def _add_safety(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, _number(int, 0)
    add("--watchdog", default=5.0, type=_number(float, 0.5), metavar="S", help="seconds that the model's "
        "process may be silent when it does not obey a cancel (%(default)s)")  # fmt: skip
    add("--restart", action="store_true", help="start the model's process anew if it ends or is stuck")
    add("--drain", action="store_true", help="after SIGTERM let jobs go on, up to --grace")
    add("--api-key", action="append", type=_text, metavar="KEY", help="wanted of all requests but health; "
        "may be repeated; others here can read a command line: --api-key-file is better")  # fmt: skip
    add("--api-key-file", metavar="F", help="a file with a key a line")
    add(
        "--allowed-hosts",
        nargs="+",
        metavar="NAME",
        help="names by which clients may call the worker; *: any",
    )
    add("--allowed-origins", nargs="+", metavar="URL", help="pages of other origins that may ask; *: all")
    add("--no-metrics", dest="metrics", action="store_false", help="no /metrics")
    add(
        "--client-requests",
        default=0,
        type=count,
        metavar="N",
        help="requests of one client, or key, at once",
    )
    add("--client-connections", default=0, type=count, metavar="N", help="connections of one address at once")
    add("--insecure", action="store_true", help="listen beyond the loopback interface without a key")
    add("--ssl-certfile", metavar="F", help="a certificate, for TLS")
    add("--ssl-keyfile", metavar="F", help="its private key")
    add("--uds", metavar="PATH", help="listen on this socket of the file system instead")


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
        raise argparse.ArgumentTypeError(f"got {without_secrets(text)!r}, wanted http://host:port/path")
    return text
