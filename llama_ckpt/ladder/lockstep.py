"""Several computations that go through a model's blocks together, so that each block is made once for all.

    first, second = Lockstep(blocks).run([lambda: model.logits(a), lambda: oracle.logits(b, weights, …)])

Each runs in a thread of its own, and whoever asks for a block waits until all others are there or further on.
So they are written as if they were alone, and give the bits that they would give alone. One that goes through
the model again, as a text's next token does, waits for the others' next time.

As many go on at a time as torch has threads, and torch has one then: what one of them multiplies is of a few
rows, too little to be shared by threads, which wait for each other after each piece. TinyLlama's shape on two
cores: 58 processor seconds so, where one thread alone takes 28.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

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

    def __init__(self, function: Callable[[], Result], back: SimpleQueue[_Job[Any]]) -> None:
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
        self._back.put(self)

    def resume(self) -> None:
        """Let it go on until it asks for another block, or ends: then it puts itself into the queue."""
        self._go.release()

    def abandon(self) -> None:
        """End it where it stands and waits."""
        self._abandoned = True
        self.resume()
        self.thread.join()

    def arrive(self, number: int) -> None:
        """It asks for a block, in its own thread."""
        times, before = self.at
        if number == before:
            return
        self.at = (times + (number < before), number)
        self._back.put(self)
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
        back: SimpleQueue[_Job[Any]] = SimpleQueue()
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
            with _one_thread_each() as room:
                self._to_the_end(jobs, back, room)
        finally:
            for job in jobs:
                job.abandon()
            self._blocks.arrive = before
        return [result for job in jobs for result in job.results]

    def _to_the_end(self, jobs: Sequence[_Job[Any]], back: SimpleQueue[_Job[Any]], room: int) -> None:
        """Resume the hindmost, `room` of them at a time, until all are done."""
        told, waiting = (0, -1), list(jobs)
        under_way = dict[_Job[Any], tuple[int, int]]()  # and where each set out
        while waiting or under_way:
            hindmost = min([*(job.at for job in waiting), *under_way.values()])
            if hindmost > told and self._seen is not None:
                told = hindmost
                self._seen(told[1])
            there = [job for job in waiting if job.at == hindmost]
            for job in there[: room - len(under_way)]:
                waiting.remove(job)
                under_way[job] = hindmost
                job.resume()
            came = back.get()
            del under_way[came]
            if came.error is not None:
                for _ in under_way:
                    back.get()  # they stand still then, and can be ended
                raise next(job.error for job in jobs if job.error is not None)
            if not came.done:
                waiting.append(came)


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Within it torch computes with one thread; yields how many it had, which there is room for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
