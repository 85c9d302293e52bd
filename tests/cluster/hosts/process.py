"""A process that was started by this package, known by its number and its start time, since numbers are used again."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: The kernel ends a PID namespace of fifty processes in well below a second; a shared machine takes longer.
_END_S = 10.0


@dataclass(frozen=True, slots=True)
class Process:
    """``start``: clock ticks after boot, as the kernel writes them."""

    pid: int
    start: str

    @classmethod
    def of(cls, pid: int) -> "Process":
        """The process that has this number now. ``ProcessLookupError`` when there is none."""
        found = _state_and_start(pid)
        if found is None:
            raise ProcessLookupError(pid)
        return cls(pid, found[1])

    def is_alive(self) -> bool:
        """Whether it runs. One that ended and that nobody has waited for does not."""
        found = _state_and_start(self.pid)
        return found is not None and found[1] == self.start and found[0] != "Z"

    def is_stopped(self) -> bool:
        """Whether a signal stopped it."""
        found = _state_and_start(self.pid)
        return found is not None and found[1] == self.start and found[0] == "T"

    def end(self) -> None:
        """Kill it and wait until it is gone. ``TimeoutError`` when it is not."""
        until_s = time.monotonic() + _END_S
        while self.is_alive():
            if time.monotonic() > until_s:
                raise TimeoutError(f"process {self.pid} does not end")
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.01)
        with suppress(ChildProcessError):  # it may be a child of this process, or of one that ended before
            os.waitpid(self.pid, os.WNOHANG)


def children(pid: int) -> list[int]:
    """The processes that the main thread of ``pid`` has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def in_namespace_of(pid: int) -> list[Process]:
    """All processes of the PID namespace that ``pid`` is in, and of no namespace below it."""
    wanted = os.readlink(f"/proc/{pid}/ns/pid")
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if os.readlink(entry / "ns/pid") == wanted:
                    found.append(Process.of(int(entry.name)))
    return found


def let_go_on(pid: int) -> None:
    """Continue all that is stopped in the PID namespace of ``pid``, and what waits for it from outside: ``nsenter``
    stops itself when its child is stopped, and a namespace does not end before somebody has waited for that child."""
    with suppress(FileNotFoundError):  # it ended meanwhile
        for process in in_namespace_of(pid):
            with suppress(ProcessLookupError, OSError):
                parent = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])
                for number in {process.pid, parent} - {0}:
                    os.kill(number, signal.SIGCONT)


def _state_and_start(pid: int) -> tuple[str, str] | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]
