"""What a light install leaves out, and the line that brings it.

The package alone reads files and judges dumps: numpy, gguf, safetensors, pydantic, typer, rich. What computes
layers or serves them is a part of its own, an extra in pyproject.toml, and is asked for when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from llama_ckpt.errors import MissingPartError

__all__ = ["PARTS", "check_installed", "install_line", "missing_part", "parts_needed"]

PARTS = {
    "torch": "torch",
    "threadpoolctl": "torch",
    "starlette": "worker",
    "uvicorn": "worker",
    "prometheus_client": "worker",
    "httpx": "worker",
    "llama_cpp": "reference",
}
"""Package that may be missing, to the extra that installs it."""


def install_line(extra: str) -> str:
    """What to type for one extra: `pip install "llama_ckpt[torch]"`."""
    return f'pip install "llama_ckpt[{extra}]"'


def missing_part(error: ImportError, by: str) -> MissingPartError | None:
    """The sentence for a package that is not installed, or None where it belongs to no part.

    Args:
        error: what an import raised.
        by: what needs it: "llama-ckpt validate", "llama_ckpt.load".
    """
    if not isinstance(error, ModuleNotFoundError) or error.name not in PARTS:
        return None
    return _missing(error.name, by)


def check_installed(by: str, *packages: str) -> None:
    """Look for packages of parts without loading them, for who loads them in another process.

    Raises:
        MissingPartError: one of them is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise _missing(package, by)


def _missing(package: str, by: str) -> MissingPartError:
    return MissingPartError(
        f"{by} needs {package}, which is not installed", hint=install_line(PARTS[package])
    )


@contextmanager
def parts_needed(by: str) -> Iterator[None]:
    """Raise a missing package of a part as a sentence.

    Raises:
        MissingPartError: a package of `PARTS` is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if said := missing_part(error, by):
            raise said from error
        raise
