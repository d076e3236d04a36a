"""How a module of ours is started in a process of its own."""

from __future__ import annotations

import os
import sys

__all__ = ["python_module"]


def python_module(name: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that run a module with the very packages of this process.

    With `-m` alone the current folder would come first on the path there, whatever lies in it.
    """
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    return [sys.executable, "-P", "-m", name], {**os.environ, "PYTHONPATH": path}
