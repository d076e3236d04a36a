"""The rule that every mutant is held to: it is read, or refused in a sentence, soon and in little memory."""

from __future__ import annotations

import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType

from llama_ckpt.errors import LlamaCkptError

__all__ = ["Outcome", "header_passed", "held"]

PATIENCE = 300
"""Seconds on the clock after which a mutant is taken to wait for ever."""

SPARE = 200 << 20
MOST = 500


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        kind: "read", "refused", or "broken", which breaks the rule.
        said: the refusal, or how the rule was broken.
        header: whether the reader came past the header, as far as it says so (`header_passed`).
    """

    kind: str
    said: str = ""
    header: bool = False


_PASSED: list[bool] = []
"""Of the mutant that is being read."""


def header_passed() -> None:
    """A reader says that the mutant's header was sound: what is damaged lies behind it."""
    _PASSED.append(True)


class _WaitsForEver(BaseException):
    pass


def _alarm(_number: int, _frame: FrameType | None) -> None:
    raise _WaitsForEver


def held(read: Callable[[], object], nbytes: int, seconds: float = 5.0) -> Outcome:
    """Call `read` under the rule; `nbytes` is the size of what it reads, `seconds` what it may take.

    The memory is bounded by the address space that the process may have, so that more is an error at once.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + 4 * nbytes + SPARE, hard))
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(PATIENCE)
    began = time.process_time()
    _PASSED.clear()
    try:
        read()
        outcome = Outcome("read")
    except LlamaCkptError as error:
        outcome = _refused(str(error))
    except _WaitsForEver:
        outcome = Outcome("broken", f"waits for more than {PATIENCE} seconds: {_where()}")
    except BaseException as error:
        outcome = Outcome("broken", f"{type(error).__name__}: {str(error)[:200]}: {_where()}")
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    took = time.process_time() - began
    outcome = outcome if took <= seconds else Outcome("broken", f"takes {took:.1f} s")
    return replace(outcome, header=bool(_PASSED))


def _refused(said: str) -> Outcome:
    if not said or len(said) >= MOST or not said.isprintable():
        return Outcome("broken", f"a message of {len(said)} characters: {said[:300]!r}")
    return Outcome("refused", said)


def _where() -> str:
    """The last line of ours that the exception came through."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [one for one in frames if "llama_ckpt" in one.filename and "fuzz" not in one.filename]
    last = (ours or frames)[-1]
    return f"{last.filename.rpartition('llama_ckpt/')[2]}:{last.lineno} in {last.name}"


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
