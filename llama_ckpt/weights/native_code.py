"""`packed_rows.c`, compiled when it is first needed by whatever C compiler there is, and kept for this user.

No compiler is needed for anything else: without one, or where what it makes is not right, there is none, and
products go the long way. LLAMA_CKPT_NATIVE=0 says that there is to be none.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

from llama_ckpt.errors import OptionError
from llama_ckpt.whole_files import folder_beside

__all__ = ["SWITCH", "native_code"]

SWITCH: Final = "LLAMA_CKPT_NATIVE"
"""The environment variable; "0": nothing is compiled, and nothing compiled is used."""

SOURCE: Final = Path(__file__).with_name("packed_rows.c")
INCLUDED: Final = Path(__file__).with_name("sixteen_floats.h")

COMPILERS: Final = ("cc", "gcc", "clang")
FLAGS: Final = ("-O3", "-shared", "-fPIC")
FOR_THIS_MACHINE: Final = (("-march=native",), ("-mcpu=native",), ())
"""What they are asked for, the best first; some compilers know the one word and some the other."""

SECONDS: Final = 60


@cache
def native_code() -> ctypes.CDLL | None:
    """The compiled functions; None where there is no compiler, or no place of the user's own to keep them."""
    if os.environ.get(SWITCH, "1") == "0":
        return None
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        library = _folder() / f"packed_rows-{_key(compiler)}.so"
        if not library.exists():
            _compile(compiler, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError, OptionError):
        return None


def _compiler() -> str | None:
    names = [*filter(None, [os.environ.get("CC")]), *COMPILERS]
    return next((found for name in names if (found := shutil.which(name))), None)


def _folder() -> Path:
    """The user's own, which nobody else can write to: what lies there is run.

    Raises:
        PermissionError: somebody else can.
    """
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(home) / "llama_ckpt"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat()
    shared = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if shared or (hasattr(os, "getuid") and about.st_uid != os.getuid()):
        raise PermissionError(f"{folder} is not this user's own")
    return folder


def _key(compiler: str) -> str:
    """Another source, compiler or processor makes other code."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=SECONDS, check=True).stdout
    source = SOURCE.read_bytes() + INCLUDED.read_bytes()
    about = Path(compiler).resolve().as_posix(), " ".join(FLAGS), platform.machine(), _processor()
    return hashlib.sha256("\0".join(about).encode() + version + source).hexdigest()[:20]


def _processor() -> str:
    """What this machine's processor can do; its name where nobody tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _compile(compiler: str, library: Path) -> None:
    """Make it beside its place and move it there, so that nobody finds half of it.

    Raises:
        OSError, subprocess.SubprocessError, OptionError: it cannot be made.
    """
    with folder_beside(library) as scratch:
        made = scratch / library.name
        for machine in FOR_THIS_MACHINE:
            command = [compiler, *FLAGS, *machine, "-o", str(made), str(SOURCE)]
            if subprocess.run(command, capture_output=True, timeout=SECONDS, check=False).returncode == 0:
                made.replace(library)
                return
    raise OSError(f"{compiler} does not compile {SOURCE.name}")
