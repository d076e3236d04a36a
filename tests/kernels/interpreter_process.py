"""The process in which checks run under Triton's interpreter.

It reads a check a line, Python code as JSON, and answers with what the code died of, as JSON; an empty text
where it did not. Importing torch and Triton takes seconds, so it is done once, and each check gets a fork,
which leaves nothing behind for the next.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import traceback
from types import FunctionType
from typing import TextIO

import triton.language as tl
from triton.runtime import interpreter


def leave_out_what_has_no_effect() -> None:
    """Make the interpreter several times faster: two things that it does again and again change nothing.

    A launch puts the interpreter's functions in place of the language's. Each call of a device function does
    so once more: it looks through all of Triton's names and finds them replaced.

    Each sum, difference and product of integers is computed in 64 bits, too, and compared with the limits of
    its type, for an assertion that is made in debugging alone.
    """
    assert not interpreter.interpreter_builder.options.debug
    interpreter.interpreter_builder.options = dataclasses.replace(
        interpreter.interpreter_builder.options, sanitize_overflow=False
    )
    replace = interpreter._patch_lang

    def replace_once(function: FunctionType) -> object:
        seen = [module for module in function.__globals__.values() if module is tl or module is tl.core]
        if seen and not any(tl.core.is_builtin(module.load) for module in seen):
            return interpreter._LangPatchScope()  # nothing to put back
        return replace(function)

    interpreter._patch_lang = replace_once


def failure(code: str) -> str:
    """What code died of in a fork, or nothing."""
    with tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            run(code, errors)
        _, status = os.waitpid(child, 0)
        errors.seek(0)
        return errors.read() or f"exit status {os.waitstatus_to_exitcode(status)}" if status else ""


def run(code: str, errors: TextIO) -> None:
    """Run code, and end the process with it."""
    os.dup2(errors.fileno(), sys.stderr.fileno())
    os.dup2(errors.fileno(), sys.stdout.fileno())  # the answers' pipe is the parent's
    status = 1
    try:
        exec(code, {})
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Answer checks until standard input ends."""
    import tests.engine.interpreted_engine
    import tests.kernels.test_decode_attention
    import tests.kernels.test_matvec  # noqa: F401

    leave_out_what_has_no_effect()
    for line in sys.stdin:
        print(json.dumps(failure(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
