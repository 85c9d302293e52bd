"""What the processes of this machine's roles use, as the kernel counts it."""

from collections.abc import Iterable
from pathlib import Path

from actors.machine_metrics import ProcessUsage
from actors.process_stat import TICKS_PER_S, ProcessStat


def usage_of(pid: int) -> ProcessUsage | None:
    """What a process of this user has used; None when it is gone."""
    stat = ProcessStat.of(pid)
    if stat is None:
        return None
    began_ns = _booted_ns() + int(stat.start) * 1_000_000_000 // TICKS_PER_S
    return ProcessUsage(stat.cpu_s, stat.resident_bytes, began_ns)


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
