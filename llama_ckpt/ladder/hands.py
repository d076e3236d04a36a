"""A small model's ladder climbed by several processes: this one from the first recording, others from behind.

Tensors of a small model are not worth a second thread (`threads`); whole recordings are worth a second core.
The others are forks of this process, so that they judge what it would with the functions that it has. What
they find comes back by a pipe and is told in the ladder's order, and what fails there is judged again here,
in its turn: what a failure looks like is told here alone. A fork that ends too soon costs time, nothing else.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Final, cast

import torch

from llama_ckpt.judging.verdict import PointVerdict
from llama_ckpt.points import Checkpoint

__all__ = ["Hands", "many_hands"]

MOST: Final = 4
"""Processes at most: each holds the runs of the recordings that it judges."""

_OURS: Final = 1


class Hands:
    """This process and its forks at one ladder.

    Args:
        ladder, trials: what is climbed, in order. processes: this one counted.
    """

    def __init__(self, ladder: Sequence[Checkpoint], trials: Sequence[Any], processes: int) -> None:
        self._ladder, self._trials = ladder, trials
        self._fork = multiprocessing.get_context("fork")
        self._owners = self._fork.Array("b", len(ladder) * len(trials))
        self._others: list[tuple[Any, Connection]] = []
        self._found: dict[tuple[int, int], list[PointVerdict] | None] = {}
        for owner in range(_OURS + 1, _OURS + processes):
            self._others.append(self._started(owner))

    def judged(self, place: int, number: int) -> list[PointVerdict] | None:
        """What another process found of a checkpoint on a trial, by their places; None: judge it here."""
        owner = self._owner(place, number, _OURS)
        if owner == _OURS:
            return None
        pipe = self._others[owner - _OURS - 1][1]
        while (place, number) not in self._found:
            try:
                at, found = pipe.recv()
            except (EOFError, OSError):
                return None
            self._found[at] = found
        return self._found.pop((place, number))

    def end(self) -> None:
        """End the forks, whatever they are at."""
        for process, pipe in self._others:
            pipe.close()
            process.kill()
            process.join()

    def _started(self, owner: int) -> tuple[Any, Connection]:
        reader, writer = self._fork.Pipe(duplex=False)
        process = self._fork.Process(target=self._help, args=(owner, writer), daemon=True)
        with warnings.catch_warnings():  # numpy's threads, which know of forks
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        writer.close()  # else nobody would be told that it ended
        return process, reader

    def _help(self, owner: int, pipe: Connection) -> None:
        """What a fork does."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # this process is told, and ends it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # nobody reads any more
            for place, checkpoint in enumerate(self._ladder):
                for number in reversed(range(len(self._trials))):
                    if self._owner(place, number, owner) == owner:
                        pipe.send(((place, number), _passes(self._trials[number], checkpoint)))

    def _owner(self, place: int, number: int, asking: int) -> int:
        """Whose a trial is: of who asks, where it was nobody's."""
        at = place * len(self._trials) + number
        with self._owners.get_lock():
            self._owners[at] = self._owners[at] or asking
            return int(self._owners[at])


def _passes(trial: Any, checkpoint: Checkpoint) -> list[PointVerdict] | None:
    """A trial's verdicts; None where one fails, or cannot be had."""
    found: list[PointVerdict] = []
    try:
        for verdict in trial.run(checkpoint):
            if verdict.verdict == "fail":
                return None
            found.append(verdict)
    except Exception:
        return None  # it is raised again where it can be told of
    return found


@contextmanager
def many_hands(ladder: Sequence[Checkpoint], trials: Sequence[Any], processes: int) -> Iterator[Hands | None]:
    """Several processes at a ladder, ended behind it; None where one is to do all, or forking is not safe."""
    processes = min(MOST, processes, len(trials))
    if processes < 2 or not _may_fork():
        yield None
        return
    hands = Hands(ladder, trials, processes)
    try:
        yield hands
    finally:
        hands.end()


def _may_fork() -> bool:
    """Whether a fork would find everything that it needs: no thread that it waits for, no device.

    On macOS the system's own libraries are not made for it.
    """
    here, cuda = threading.current_thread(), cast("Any", torch.cuda)
    others = [one for one in threading.enumerate() if one is not here and not one.daemon]
    alone = here is threading.main_thread() and not others and not multiprocessing.current_process().daemon
    return sys.platform == "linux" and alone and torch.get_num_threads() == 1 and not cuda.is_initialized()
