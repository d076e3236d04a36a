"""Files that appear under their name only when they are whole, whatever interrupts their making.

What is being made is called `.NAME.PID.….partial` and stands beside what it becomes. Nothing outlives a
killed process beyond the next run: who makes a file of that name takes away what dead processes have left.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
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
    "locked",
    "scratch_folder",
    "temporary_folder",
    "write_whole",
]

_A_FOLDER: Final = "a folder that can be written"
_A_FILE: Final = "the name of a file"
_PARTIAL: Final = ".partial"


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
        _sweep(path.parent, f".{path.name}.")
        folder = tempfile.TemporaryDirectory(prefix=_prefix(path), suffix=_PARTIAL, dir=path.parent)
    except OSError as error:
        raise OptionError(f"cannot write {path}", got=error.strerror, wanted=_A_FOLDER) from error
    with folder as name:
        yield Path(name)


def scratch_folder(purpose: str, place: Path | None = None) -> Path:
    """A new folder for large files that are used and thrown away; what dead processes left is removed.

    Whoever takes it removes it; the system's own place for temporary files has it, where no other is given.
    """
    start = f"llama-ckpt-{purpose}." if place is None else f".llama-ckpt-{purpose}."
    place = place or Path(tempfile.gettempdir())
    with contextlib.suppress(OSError):
        _sweep(place, start)
    return Path(tempfile.mkdtemp(prefix=f"{start}{os.getpid()}.", suffix=_PARTIAL, dir=place))


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A `scratch_folder` that is removed at the end."""
    folder = scratch_folder(purpose)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def appears_when_whole(path: str | Path, nbytes: int = 0) -> Iterator[Path]:
    """A temporary name in the same folder, renamed to `path` at the end and removed on any failure.

    Args:
        path: the final name; a file that is there is replaced at the very end. Where it is a link, the file
            that it leads to.
        nbytes: room that will be needed.

    Raises:
        OptionError: a folder or a device of that name, its folder is not there or cannot be written, or the
            disk is too full.
    """
    path = Path(path)
    _check_name(path)
    if path.is_symlink():
        path = path.resolve()
    try:
        _sweep(path.parent, f".{path.name}.")
        handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=_PARTIAL, dir=path.parent)
        os.close(handle)
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise OptionError(f"cannot write {path}", got=got, wanted=_A_FOLDER) from error
    partial = Path(name)
    try:
        free = shutil.disk_usage(partial.parent).free
        if free < nbytes:
            raise OptionError(f"no room for {path}", got=f"{free:,} bytes free", wanted=f"{nbytes:,}")
        yield partial
        partial.chmod(0o666 & ~_umask())  # mkstemp made it private
        partial.replace(path)
    except OSError as error:
        raise OptionError(f"cannot write {path}", got=error.strerror or str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Find out before the work whether a file could be written there; leaves nothing behind.

    Raises:
        OptionError: it is a folder, or its folder is not there or cannot be written.
    """
    if _is_special(path):
        return  # a pipe, a terminal, /dev/null
    _check_name(path)
    with folder_beside(path.resolve() if path.is_symlink() else path):
        pass


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8 so that the file is the old one or the whole new one, on a full disk too.

    Raises:
        OptionError: the folder is not there or cannot be written, or the disk is full.
    """
    path = Path(path)
    if _is_special(path):
        try:
            path.write_text(text, encoding="utf-8", newline="\n")
        except BrokenPipeError:
            raise  # nobody reads any more: that has an exit code of its own
        except OSError as error:
            raise OptionError(f"cannot write {path}", got=error.strerror) from error
        return
    with appears_when_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else is between here and the end with the same folder; threads and processes wait for it.

    The folder's own descriptor is locked, which leaves nothing behind; where the system cannot, a file that
    only one can make stands for the lock, and one that a dead process left is taken away.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        with _lock_file(folder):
            yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _lock_file(folder: Path) -> Iterator[None]:
    import time

    path = folder / f".lock.{os.getpid()}{_PARTIAL}"
    lock = folder / ".lock"
    path.write_text(str(os.getpid()), "ascii")
    try:
        while True:
            try:
                os.link(path, lock)
                break
            except FileExistsError:
                with contextlib.suppress(OSError, ValueError):
                    if not _is_alive(int(lock.read_text("ascii"))):
                        lock.unlink()
                time.sleep(0.05)
        yield
        lock.unlink(missing_ok=True)
    finally:
        path.unlink(missing_ok=True)


def _check_name(path: Path) -> None:
    if path.is_dir():
        raise OptionError(f"cannot write {path}", got="a folder", wanted=_A_FILE)
    if _is_special(path):
        raise OptionError(f"cannot write {path}", got="a pipe or a device", wanted=_A_FILE)


def _is_special(path: Path) -> bool:
    try:
        return path.exists() and not path.is_file() and not path.is_dir()
    except (OSError, ValueError) as error:  # too long a name, a NUL in it
        got = getattr(error, "strerror", None) or str(error)
        raise OptionError(f"cannot write {path}", got=got, wanted=_A_FILE) from None


def _prefix(path: Path) -> str:
    return f".{path.name}.{os.getpid()}."


def _sweep(folder: Path, start: str) -> None:
    """Remove what processes that are gone have left under names that begin so."""
    pattern = re.compile(re.escape(start) + r"([0-9]{1,9})\..*" + re.escape(_PARTIAL))
    for entry in os.scandir(folder):
        found = pattern.fullmatch(entry.name)
        if found is None or _is_alive(int(found[1])):
            continue
        with contextlib.suppress(OSError):  # another one that sweeps was first
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def _is_alive(pid: int) -> bool:
    """Whether a process runs; True where it cannot be asked without harm."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
