"""What the processes of this machine's roles use, as the kernel counts it."""

import os
from collections.abc import Iterable
from pathlib import Path

from actors.machine_metrics import ProcessUsage

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def usage_of(pid: int) -> ProcessUsage | None:
    """What a process of this user has used; None when it is gone."""
    try:
        # The name in brackets is the process's own choice; what follows it is not.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        user, system, began_ticks, resident_pages = (int(fields[i]) for i in (11, 12, 19, 21))
    except (OSError, ValueError, IndexError):
        return None
    began_ns = _booted_ns() + began_ticks * 1_000_000_000 // _TICKS_PER_S
    return ProcessUsage((user + system) / _TICKS_PER_S, resident_pages * _PAGE_BYTES, began_ns)


def usage_of_all(pids: Iterable[int]) -> dict[int, ProcessUsage]:
    """Of those that still run."""
    return {pid: usage for pid in pids if (usage := usage_of(pid)) is not None}


def _booted_ns() -> int:
    """When the machine was started, unix time; 0 when the kernel does not say."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1_000_000_000 for line in lines if line.startswith("btime ")), 0)
