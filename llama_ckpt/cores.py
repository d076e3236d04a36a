"""How many processors this process may keep busy: in a container or a `taskset` fewer than there are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["allowed_cpus", "physical_cores", "usable_cpus"]

_CPUS: Final = Path("/sys/devices/system/cpu")
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus() -> int:
    """The processors that this process may keep busy, those that share a core among them.

    A machine has more of them than a container or a `taskset` leaves, and threads beyond these wait for each
    other: llama.cpp's, which wait by spinning, for minutes.
    """
    allowed, quota = len(allowed_cpus()), _quota()
    return max(1, allowed if quota is None else min(allowed, round(quota)))


def physical_cores() -> int:
    """The cores that this process may keep busy, each counted once however many threads it has room for."""
    cores = set()
    for number in allowed_cpus():
        try:
            core = (_CPUS / f"cpu{number}" / "topology" / "thread_siblings_list").read_text("ascii").strip()
        except (OSError, ValueError):
            core = str(number)  # nobody tells which belong together
        cores.add(core)
    return max(1, min(len(cores), usable_cpus()))


def allowed_cpus() -> set[int]:
    """The processors that the system may put this process on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {*range(os.cpu_count() or 1)}


def _quota() -> float | None:
    """How many processors' time a container has: "200000 100000" is 2; None where nothing limits it."""
    try:
        most, period = _QUOTA.read_text("ascii").split()
        return int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None  # "max", another system, or an older one
