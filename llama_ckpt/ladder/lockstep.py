"""Several computations that go through a model's blocks together, so that each block is made once for all.

    first, second = Lockstep(blocks).run([lambda: model.logits(a), lambda: oracle.logits(b, weights, …)])

Each runs in a thread of its own, and one alone at any time: whoever asks for a block waits until all others
are there or further on. So they are written as if they were alone, and give the bits that they would give
alone. One that goes through the model again, as a text's next token does, waits for the others' next time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from llama_ckpt.weights.unpacking import UnpackedBlocks

__all__ = ["Lockstep"]

Result = TypeVar("Result")


class _AbandonedError(BaseException):
    """Ends a computation whose result nobody waits for any more."""


class _Job(Generic[Result]):
    """One of the computations.

    Attributes:
        at: how often it began at an earlier block again, and the block that it asked for last.
    """

    def __init__(self, function: Callable[[], Result], back: threading.Semaphore) -> None:
        self.at, self.done = (0, -1), False
        self.error: BaseException | None = None
        self.results: list[Result] = []
        self._function, self._back = function, back
        self._go = threading.Semaphore(0)
        self._abandoned = False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._abandoned:
                self.results.append(self._function())
        except BaseException as error:
            self.error = error
        self.done = True
        self._back.release()

    def resume(self) -> None:
        """Let it go on until it asks for another block, or ends."""
        self._go.release()
        self._back.acquire()

    def abandon(self) -> None:
        """End it where it stands."""
        self._abandoned = True
        if not self.done:
            self.resume()

    def arrive(self, number: int) -> None:
        """It asks for a block, in its own thread."""
        times, before = self.at
        if number == before:
            return
        self.at = (times + (number < before), number)
        self._back.release()
        self._go.acquire()
        if self._abandoned:
            raise _AbandonedError


class Lockstep:
    """Runs computations that ask one sequence of blocks for its blocks.

    Args:
        blocks: the sequence. seen: called with each block's number when all come to it, in the order of time.
    """

    def __init__(self, blocks: UnpackedBlocks, seen: Callable[[int], object] | None = None) -> None:
        self._blocks, self._seen = blocks, seen

    def run(self, functions: Sequence[Callable[[], Result]]) -> list[Result]:
        """What each of them returns.

        Raises:
            what the first of them raised; the others are ended then.
        """
        back = threading.Semaphore(0)
        jobs = [_Job(function, back) for function in functions]
        by_thread: dict[int | None, _Job[Any]] = {}

        def arrive(number: int) -> None:
            job = by_thread.get(threading.get_ident())
            if job is not None:  # else somebody beside them, such as a thread of one of them
                job.arrive(number)

        before, self._blocks.arrive = self._blocks.arrive, arrive
        try:
            for job in jobs:
                job.thread.start()
                by_thread[job.thread.ident] = job
            self._to_the_end(jobs)
        finally:
            for job in jobs:
                job.abandon()
                job.thread.join()
            self._blocks.arrive = before
        return [result for job in jobs for result in job.results]

    def _to_the_end(self, jobs: Sequence[_Job[Any]]) -> None:
        """Resume the hindmost until all are done."""
        told = (0, -1)
        while waiting := [job for job in jobs if not job.done]:
            hindmost = min(waiting, key=lambda job: job.at)
            if hindmost.at > told and self._seen is not None:
                told = hindmost.at
                self._seen(told[1])
            hindmost.resume()
            if hindmost.error is not None:
                raise hindmost.error
