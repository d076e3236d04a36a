"""llama.cpp's own quantizer, in a process of its own: K-quants and the other types `gguf` can't write.

The parent starts this module as a child, which loads llama-cpp-python and calls
`llama_model_quantize`. So a crash in there is a sentence for the user, and its memory is its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from gguf import LlamaFileType

from llama_ckpt.capture.launch import INSTALL_LINE, require_reference
from llama_ckpt.errors import OptionError, ReferenceCrashedError
from llama_ckpt.spawning import python_module
from llama_ckpt.whole_files import WrittenFile, appears_when_whole, file_sha256

__all__ = ["REFERENCE_TYPES", "quantize_with_llama_cpp"]

REFERENCE_TYPES: Final = (
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
    *("IQ4_NL", "IQ4_XS"),
)
"""Types that only llama.cpp writes; most are mixtures, with more bits for some of the matrices."""

_LAST_LINES: Final = 5
_ALSO: Final = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # llama.cpp's mixtures of these names


def quantize_with_llama_cpp(
    source: str | os.PathLike[str],
    type: str,
    out: str | os.PathLike[str],
    *,
    threads: int | None = None,
) -> WrittenFile:
    """Quantize a model as llama.cpp does; the bytes depend on the instructions that it was built for.

    Args:
        source: a Llama in GGUF with F32, F16 or BF16 weights.
        type: one of `REFERENCE_TYPES`, or Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 (llama.cpp gives the output
            matrix more bits than `gguf` does).
        out: the file to write; it appears when it is whole.
        threads: None takes the machine's cores.

    Raises:
        OptionError: a type that llama.cpp's quantizer is not asked for here, a file that cannot be
            written.
        ReferenceMissingError: llama-cpp-python is not installed.
        ReferenceCrashedError: llama.cpp refused the file or ended by a signal.
    """
    name = type.upper()
    if name not in (*REFERENCE_TYPES, *_ALSO):
        wanted = "one of " + ", ".join((*REFERENCE_TYPES, *_ALSO))
        raise OptionError("the type for llama.cpp's quantizer", got=type, wanted=wanted)
    require_reference()
    source = Path(source).resolve()
    with appears_when_whole(Path(out), source.stat().st_size // 2) as partial:
        _run_child(source, partial, int(LlamaFileType[f"MOSTLY_{name}"]), threads or 0)
        written = WrittenFile(Path(out), file_sha256(partial), partial.stat().st_size)
    return written


def _run_child(source: Path, target: Path, file_type: int, threads: int) -> None:
    command, environment = python_module("llama_ckpt.making.reference_quantizer")
    ended = subprocess.run(
        [*command, str(source), str(target.resolve()), str(file_type), str(threads)],
        env=environment | {"GGML_NO_BACKTRACE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if ended.returncode:
        raise _crash(ended.returncode, ended.stdout.decode(errors="replace"), source)


def _crash(code: int, output: str, source: Path) -> ReferenceCrashedError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
    return ReferenceCrashedError(
        f"llama.cpp's quantizer did not finish {source}",
        got=f"{how} after: " + (" | ".join(lines[-_LAST_LINES:]) or "no message"),
        hint=None if code > 0 else f"if its build has the default settings, build it anew: {INSTALL_LINE}",
    )


def _child(source: str, target: str, file_type: str, threads: str) -> int:
    from llama_ckpt.capture.library import Library

    api = Library().api
    options = api.llama_model_quantize_default_params()
    options.ftype, options.nthread = int(file_type), int(threads)
    return int(api.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options)))


if __name__ == "__main__":
    sys.exit(_child(*sys.argv[1:]))
