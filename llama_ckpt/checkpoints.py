"""The package `checkpoints` under a name that nothing of yours hides.

    from llama_ckpt.checkpoints import rope

Where nothing hides it both names are one package. Where a package of yours is called `checkpoints`, it keeps
the name, and these are the layers all the same.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from llama_ckpt.errors import OptionError
from llama_ckpt.shadowing import check_checkpoints

__all__: list[str] = []

NAME = "checkpoints"


def _ours() -> dict[str, ModuleType]:
    """The package and its modules by their names."""
    try:
        check_checkpoints()
    except OptionError:
        return _from_beside()
    importlib.import_module(NAME)
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == NAME}


def _from_beside() -> dict[str, ModuleType]:
    """The same, loaded from beside this package while the name is ours for a moment."""
    folder = str(Path(__file__).parents[1])
    theirs = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == NAME}
    sys.path.insert(0, folder)
    try:
        importlib.import_module(NAME)
    finally:
        sys.path.remove(folder)
        made = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == NAME}
        sys.modules.update(theirs)
    return made


_found = _ours()
sys.modules.update({f"llama_ckpt.{name}": module for name, module in _found.items()})
