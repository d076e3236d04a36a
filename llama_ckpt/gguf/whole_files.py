"""Files that appear under their name only when they are whole, whatever interrupts their making."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_ckpt.errors import OptionError

__all__ = [
    "WrittenFile",
    "appears_when_whole",
    "check_writable",
    "file_sha256",
    "folder_beside",
    "write_whole",
]

_A_FOLDER: Final = "a folder that can be written"


@dataclass(frozen=True)
class WrittenFile:
    """A file that is whole under its name: where it is, its SHA-256 (hex) and its size in bytes."""

    path: Path
    sha256: str
    nbytes: int


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a whole file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder on the same disk as `path`, removed with what is in it.

    Raises:
        OptionError: the folder of `path` is not there or cannot be written.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OptionError(f"cannot write {path}", got=error.strerror, wanted=_A_FOLDER) from error
    with folder as name:
        yield Path(name)


@contextmanager
def appears_when_whole(path: str | Path, nbytes: int = 0) -> Iterator[Path]:
    """A temporary name in the same folder, renamed to `path` at the end and removed on any failure.

    Args:
        path: the final name; a file that is there is replaced at the very end.
        nbytes: room that will be needed.

    Raises:
        OptionError: the folder is not there or cannot be written, or the disk is too full.
    """
    path = Path(path)
    if path.is_dir():
        raise OptionError(f"cannot write {path}", got="a folder", wanted="the name of a file")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise OptionError(f"cannot write {path}", got=error.strerror, wanted=_A_FOLDER) from error
    partial = Path(name)
    try:
        free = shutil.disk_usage(partial.parent).free
        if free < nbytes:
            raise OptionError(f"no room for {path}", got=f"{free:,} bytes free", wanted=f"{nbytes:,}")
        yield partial
        partial.chmod(0o666 & ~_umask())  # mkstemp made it private
        partial.replace(path)
    except OSError as error:
        raise OptionError(f"cannot write {path}", got=error.strerror) from error
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Find out before the work whether a file could be written there; leaves nothing behind.

    Raises:
        OptionError: it is a folder, or its folder is not there or cannot be written.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        return  # a pipe, a terminal, /dev/null
    if path.is_dir():
        raise OptionError(f"cannot write {path}", got="a folder", wanted="the name of a file")
    with folder_beside(path):
        pass


def write_whole(path: Path, text: str) -> None:
    """Write a text in UTF-8 so that the file is the old one or the whole new one, on a full disk too.

    Raises:
        OptionError: the folder is not there or cannot be written, or the disk is full.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_text(text, encoding="utf-8")
        return
    with appears_when_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
