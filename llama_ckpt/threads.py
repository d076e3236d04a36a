"""How many threads torch computes with: one for a small model, one a core for a large one.

Products of a small model are over before a second thread is awake: on two cores that others use too the
embedded model's ladder takes 8 times as long with two. Two threads on one core's two halves wait for the
same units, and for each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from llama_ckpt.cores import allowed_cpus, physical_cores, usable_cpus

__all__ = ["SMALL_MODEL", "fitted_threads", "model_bytes", "numpy_threads"]

SMALL_MODEL: Final = 64 << 20
"""Bytes of a model's file."""


@contextmanager
def fitted_threads(n_bytes: int) -> Iterator[int]:
    """Within it torch computes with as many threads as a model of so many bytes is worth.

    A number that the user set is left alone, in `OMP_NUM_THREADS` or by `torch.set_num_threads`; 0 bytes are
    those of no model.

    Yields:
        how many processes the cores that are left have room for, this one counted.
    """
    import torch

    before = torch.get_num_threads()
    chosen = "OMP_NUM_THREADS" in os.environ or before not in {
        physical_cores(),
        usable_cpus(),
        len(allowed_cpus()),
        os.cpu_count(),
    }
    if chosen or not n_bytes:
        yield 1
        return
    small = n_bytes < SMALL_MODEL
    torch.set_num_threads(1 if small else physical_cores())
    try:
        with _one_thread_in_numpy():
            yield physical_cores() if small else 1
    finally:
        torch.set_num_threads(before)


@contextmanager
def _one_thread_in_numpy() -> Iterator[None]:
    """Within it numpy's BLAS has one thread, but for a number that the user set.

    Its products here are of heads, and small. Threads that it had would go on spinning between them, on
    cores that torch's threads and other processes are at: a ladder of TinyLlama's shape took 31 s on two
    cores, and 23 with one.
    """
    if "OPENBLAS_NUM_THREADS" in os.environ:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


@contextmanager
def numpy_threads(n_bytes: int) -> Iterator[None]:
    """Within it numpy's BLAS has one thread for a small model, of so many bytes; 0 are those of no model.

    A dump of 400 tokens of the embedded model took 21 s to compare on two cores, and 3 with one. It has as
    many as ever where threadpoolctl, which comes with torch here, isn't installed.
    """
    if 0 < n_bytes < SMALL_MODEL and find_spec("threadpoolctl") is not None:
        with _one_thread_in_numpy():
            yield
    else:
        yield


def model_bytes(path: Path) -> int:
    """Of a model's file, or of what lies in its folder; 0 where there is neither."""
    if path.is_dir():
        return sum(one.stat().st_size for one in path.iterdir() if one.is_file())
    return path.stat().st_size if path.is_file() else 0
