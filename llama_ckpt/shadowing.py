"""A folder of the user's own that is called `checkpoints`, as trained weights often are, may hide ours.

Python looks in the folder of the script (or the current one, with `python -m`) before it looks
among the installed packages. The import would then fail on a name that "checkpoints" lacks, which
tells nobody what happened; so we look first.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from llama_ckpt.errors import OptionError

__all__ = ["check_checkpoints"]


def check_checkpoints() -> None:
    """Make sure that `import checkpoints` finds the package of this project.

    Raises:
        OptionError: it finds another one, or none at all.
    """
    spec = importlib.util.find_spec("checkpoints")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if any((folder / "c00_foundation.py").is_file() for folder in folders):
        return
    raise OptionError(
        "the package `checkpoints` of llama_ckpt cannot be imported",
        got=f"{folders[0]}, which hides it" if folders else "no such package",
        wanted="the one that is installed beside llama_ckpt",
        hint="rename that folder or run from another one" if folders else "install llama_ckpt again",
    )
