"""The process in which checks run under Triton's interpreter.

It reads a check a line, Python code as JSON, and answers with what the code died of, as JSON; an empty text
where it did not. Importing torch and Triton takes seconds, so it is done once, and each check gets a fork,
which leaves nothing behind for the next.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from typing import TextIO


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
    from tests.kernels.quick_interpreter import quicken

    quicken()
    for line in sys.stdin:
        print(json.dumps(failure(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
