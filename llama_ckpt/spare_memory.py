"""How much memory may be taken: what the system would give without pushing anything else out.

Linux tells; elsewhere nothing is known, and 0 says so.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["spare_bytes"]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
"""Where a container says what it may take (cgroup v2)."""


def spare_bytes() -> int:
    """Bytes that are available, in a container no more than it may still take; 0 where nobody knows."""
    try:
        lines = _MEMINFO.read_text("ascii").splitlines()
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return 0
    try:
        most = (_CGROUP / "memory.max").read_text("ascii").strip()
        if most == "max":
            return available
        return min(available, max(0, int(most) - int((_CGROUP / "memory.current").read_text("ascii"))))
    except (OSError, ValueError):
        return available
