"""From a file to a device: several threads read ahead, the device's copies run behind them.

One thread that copies out of the page cache moves some 5 GB a second. Here each of several reads a piece
of the file into page-locked memory of its own, hands it to the device and goes on with the next, so that
host memory is a few pieces, whatever the file's size: nothing is read through the file's mapping.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from llama_ckpt.errors import ModelFileError
from llama_ckpt.gguf.file import GGUFFile

__all__ = ["Progress", "fill"]

Progress = Callable[[int, int], object]
"""Called as `progress(bytes read so far, bytes in all)`."""

_READERS: Final = 12
_PIECE: Final = 8 << 20  # bytes read at a time
_RING: Final = 2  # pieces a reader holds: one is read while the other is copied
_TOLD: Final = 0.1  # seconds between two calls of a progress


@dataclass(frozen=True, eq=False)
class _Piece:
    """Whole rows of a tensor: their file, their first byte in it, where they go, uint8 [rows, row_bytes]."""

    part: int
    offset: int
    target: Tensor


def fill(file: GGUFFile, places: Mapping[str, Tensor], progress: Progress | None = None) -> None:
    """Read tensors to where they belong; returns when all of them are there.

    Args:
        file: where they stand.
        places: by name, uint8 [rows, row_bytes] on one device; rows need not be contiguous.
        progress: called from this thread, now and then, and at the end.

    Raises:
        ModelFileError: the file has changed since it was opened, or ends early.
    """
    pieces = deque(_pieces(file, places))
    total = sum(piece.target.numel() for piece in pieces)
    readers = [_Reader(pieces) for _ in range(min(_READERS, len(pieces)))]
    with file.reading() as descriptors, ThreadPoolExecutor(max(1, len(readers))) as pool:
        running = {pool.submit(reader.run, descriptors) for reader in readers}
        try:
            while running:
                done, running = wait(running, timeout=_TOLD, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if progress is not None:
                    progress(sum(reader.read for reader in readers), total)
        finally:
            pieces.clear()  # what went wrong in one, or here, ends them all


def _pieces(file: GGUFFile, places: Mapping[str, Tensor]) -> Iterator[_Piece]:
    for name, place in places.items():
        info = file.info(name)
        step = max(1, _PIECE // info.row_bytes)
        for first in range(0, info.n_rows, step):
            yield _Piece(info.part, info.offset + first * info.row_bytes, place[first : first + step])


class _Reader:
    """One thread's work: pieces off a shared list until it is empty."""

    def __init__(self, pieces: deque[_Piece]) -> None:
        self._pieces, self.read = pieces, 0

    def run(self, descriptors: Sequence[int]) -> None:
        """Read and copy; at the end all of this reader's copies are done."""
        ring: deque[_Slot] = deque()
        for piece in self._taken():
            slot = ring.popleft() if len(ring) == _RING else _Slot(piece.target.device)
            slot.carry(descriptors[piece.part], piece)
            ring.append(slot)
            self.read += piece.target.numel()
        for slot in ring:
            slot.finish()

    def _taken(self) -> Iterator[_Piece]:
        with contextlib.suppress(IndexError):
            while True:
                yield self._pieces.popleft()


class _Slot:
    """Host memory for one piece, and the stream on which it leaves."""

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._stream = torch.cuda.Stream(device) if self._on_device else None  # type: ignore[no-untyped-call]
        if self._stream is not None:  # what was freed there before may still be in use
            self._stream.wait_stream(torch.cuda.default_stream(device))

    def carry(self, descriptor: int, piece: _Piece) -> None:
        """Read a piece, and start its copy; waits for the copy of the piece before."""
        self.finish()
        size = piece.target.numel()
        if self._memory.numel() < size:
            self._memory = torch.empty(max(size, _PIECE), dtype=torch.uint8, pin_memory=self._on_device)
        held = self._memory[:size]
        _read(descriptor, held.numpy().data, piece.offset)
        with torch.cuda.stream(self._stream):
            piece.target.copy_(held.view(piece.target.shape), non_blocking=True)

    def finish(self) -> None:
        """Wait for the copy on its way."""
        if self._stream is not None:
            self._stream.synchronize()


def _read(descriptor: int, memory: memoryview, offset: int) -> None:
    """Fill the memory from a place in the file."""
    while memory:
        got = os.preadv(descriptor, [memory], offset)
        if got == 0:
            raise ModelFileError("the model file", got=f"its end at byte {offset}", wanted="a whole tensor")
        memory, offset = memory[got:], offset + got
