"""What the kernel says of a process of this machine, whether or not it answers."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What is used here of ``/proc/PID/stat``. Format: proc_pid_stat(5)."""

    state: str  #: a letter; Z: it ended, and nobody has waited for it
    parent: int
    cpu_s: float  #: user and system time of all its threads, since it began
    start: str  #: ticks after boot. With its number it names one process for good: numbers are used again
    resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """None when there is no process of this number, or no more."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            # The name in brackets is the process's own choice; what follows it is not.
            fields = text.rpartition(")")[2].split()
            cpu_s = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
            return cls(fields[0], int(fields[1]), cpu_s, fields[19], int(fields[21]) * _PAGE_BYTES)
        except (OSError, ValueError, IndexError):
            return None

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.state != "Z"


def ran_ns(pid: int) -> int:
    """How long the threads that a process has now have run, together. It changes whenever one of them runs, and with
    the threads; that of a stopped process stays as it is. 0 when there is no process of this number."""
    ran = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread that ended meanwhile
            ran += int(thread.read_text(encoding="ascii").split()[0])
    return ran
