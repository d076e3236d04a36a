"""What a report of a fault in this program should carry: versions, machine, shapes and verdicts. No weights.

Of a report that `--json` wrote everything is kept but paths, which may say more of a machine than is meant,
and the texts of tokens.
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import Any

from llama_ckpt.report.headline import Record
from llama_ckpt.version import __version__

__all__ = ["bug_report"]

PACKAGES = ("numpy", "gguf", "safetensors", "torch", "triton", "transformers", "llama-cpp-python")


def bug_report(report: Record | None, command: str = "") -> dict[str, Any]:
    """The record to attach.

    Args:
        report: the JSON of a ladder's or a comparison's report, or None.
        command: what was typed, where the user says it.
    """
    return {
        "kind": "bug report",
        "llama_ckpt": __version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "machine": platform.machine(),
        "packages": {name: _installed(name) for name in PACKAGES},
        "command": command,
        "report": None if report is None else _without_paths(report),
    }


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _without_paths(value: Any, key: str = "") -> Any:
    """The same with the last part of each path alone, and no texts of tokens."""
    if isinstance(value, dict):
        return {name: _without_paths(one, name) for name, one in value.items() if name != "token_texts"}
    if isinstance(value, list):
        return [_without_paths(one, key) for one in value]
    if isinstance(value, str) and key in ("path", "model", "command"):
        return " ".join(
            PurePath(word).name if "/" in word or "\\" in word else word for word in value.split()
        )
    return value
