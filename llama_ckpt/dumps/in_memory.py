"""A dump that is no file yet: arrays by name, or what a recorder kept, written for as long as it is read.

numpy and safetensors only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from llama_ckpt.dumps.recorder import Recorder, as_numpy
from llama_ckpt.dumps.run_facts import RUN
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.errors import OptionError
from llama_ckpt.whole_files import temporary_folder

__all__ = ["Dump", "Recording", "dump_file"]


@runtime_checkable
class Recording(Protocol):
    """What `record` and `recording` give: it knows its run, and writes itself."""

    def save(self, path: str | Path, /) -> None:
        """Write it as a dump."""


Dump: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Recorder | Recording"
"""A file's path, arrays by their points' names, or what a recorder kept."""

WORDS = "a file, arrays by name, or what lc.record or lc.Recorder kept"


@contextmanager
def dump_file(theirs: Dump, facts: Mapping[str, Sequence[int] | None]) -> Iterator[Path]:
    """The file of a dump; what is none is one while this lasts.

    Args:
        theirs: a path, arrays, which may hold `token_ids` and the like beside the points, or a recording.
        facts: `token_ids` and `positions` of arrays; a file and a recording say their own.

    Raises:
        OptionError: none of these; facts for what has its own.
    """
    given = {name: numbers for name, numbers in facts.items() if numbers is not None}
    if given and not isinstance(theirs, Mapping | Recorder):
        got = f"{', '.join(given)} beside what says them itself"
        raise OptionError("a dump's facts", got=got, wanted="them with arrays or a Recorder alone")
    if isinstance(theirs, str | os.PathLike):
        yield Path(theirs)
        return
    with temporary_folder("dump") as folder:
        path = folder / "in memory.safetensors"
        if isinstance(theirs, Recorder):
            theirs.save(path, **given)  # type: ignore[arg-type]
        elif isinstance(theirs, Mapping):
            _save_arrays(path, theirs, given)
        elif isinstance(theirs, Recording):
            theirs.save(path)
        else:
            raise OptionError("a dump", got=type(theirs).__name__, wanted=WORDS)
        yield path


def _save_arrays(path: Path, arrays: Mapping[str, Any], given: Mapping[str, Sequence[int]]) -> None:
    said: dict[str, Any] = {name: np.asarray(arrays[name]).ravel().tolist() for name in RUN if name in arrays}
    tensors = {str(name): as_numpy(array, str(name)) for name, array in arrays.items() if name not in RUN}
    save_dump(path, tensors, **(said | dict(given)))
