"""Compiled code that stays mapped when the last isolate of it is gone.

A version's isolate can come from four places, each an order of magnitude dearer than the one before:

    live isolate ──evicted──► mapped code ──put away──► files of this machine ──► another machine
    (residency)               (here)                    (isolates/artifact.py)    (the deploy brings it, not a request)

Code that isolates run on is mapped for as long as they live. When the last of them goes, it is *idle* and stays for a
while, so that the version's next start takes an instantiation and not, for a JavaScript worker, some 25 ms of mapping
more. Idle code is put away in the order in which it became idle, when there is too much of it, or when the host is
short of memory and has no idle isolate left: isolates go first, as they hold more and are started again faster.

What mapped code costs, measured on the reference machine: its files are mapped and shared, but the engine builds tables
of them in the process, 0.7 MB for a JavaScript worker with 8.7 MB of code of its own and 0.05 MB for a small one, and
three mappings a piece, of which the kernel allows 65,530 in a process.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Code = TypeVar("Code")


@dataclass(frozen=True, slots=True)
class MappedCodeLimits:
    """Bounds on idle code, of one host."""

    #: Components; three pieces of three mappings each are a fourteenth of the kernel's limit.
    idle_max: int = 512
    #: Bytes of compiled code that no other component shares. A twelfth of them is private memory: 256 MiB, an eighth
    #: of a host's budget.
    idle_bytes_max: int = 3 << 30


@dataclass(slots=True)
class Loan(Generic[Code]):
    """Mapped code in use. ``was_mapped``: it had not to be read from a file. Given back once."""

    digest: str
    code: Code
    was_mapped: bool


@dataclass(slots=True)
class _Mapping:
    """One component's code: by how many isolates it is used, and its own bytes."""

    users: int = 0
    bytes: int = 0
    is_mapped: bool = False


@dataclass(slots=True)
class MappedCount:
    """Where starts found their code, and what became of it."""

    from_mapped: int = 0
    from_file: int = 0
    put_away: int = 0


@dataclass(slots=True)
class MappedCode(Generic[Code]):
    """The mapped code of one host; called from any of its threads.

    ``map_``: the code of a component, mapped; the same object until ``forget``, after which it goes with its last
    reference. ``bytes_of``: the component's own bytes of code.
    """

    map_: Callable[[str], Code]
    forget: Callable[[str], object]
    bytes_of: Callable[[str], int]
    limits: MappedCodeLimits = field(default_factory=MappedCodeLimits)
    count: MappedCount = field(default_factory=MappedCount)
    _mappings: dict[str, _Mapping] = field(default_factory=dict)
    _idle: OrderedDict[str, None] = field(default_factory=OrderedDict)  # the one that became idle first comes first
    _idle_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, digest: str) -> Loan[Code]:
        """The code of a component, for one isolate. Whatever ``map_`` raises, when it is not to be had."""
        with self._lock:
            mapping = self._mappings.setdefault(digest, _Mapping())
            mapping.users += 1
            if digest in self._idle:
                del self._idle[digest]
                self._idle_bytes -= mapping.bytes
            was_mapped = mapping.is_mapped
        try:
            loan = Loan(digest, self.map_(digest), was_mapped)  # outside the lock: others may start meanwhile
            if not mapping.bytes:
                mapping.bytes = self.bytes_of(digest)
        except BaseException:
            self._returned(digest)
            raise
        with self._lock:
            mapping.is_mapped = True
            if was_mapped:
                self.count.from_mapped += 1
            else:
                self.count.from_file += 1
        return loan

    def give_back(self, loan: Loan[Code]) -> None:
        """An isolate is gone, or did not come to be."""
        self._returned(loan.digest)

    def put_away_idle(self) -> int:
        """All idle code goes, memory being short; how many components it was."""
        with self._lock:
            count = len(self._idle)
            while self._idle:
                self._put_away()
            return count

    def statistics(self) -> dict[str, int]:
        """Counters and what there is."""
        with self._lock:
            return {
                "from_mapped": self.count.from_mapped,
                "from_file": self.count.from_file,
                "put_away": self.count.put_away,
                "mapped": len(self._mappings),
                "idle": len(self._idle),
                "idle_bytes": self._idle_bytes,
            }

    def _returned(self, digest: str) -> None:
        with self._lock:
            mapping = self._mappings[digest]
            mapping.users -= 1
            if mapping.users:
                return
            if not mapping.is_mapped:
                del self._mappings[digest]
                return
            self._idle[digest] = None
            self._idle_bytes += mapping.bytes
            while len(self._idle) > self.limits.idle_max or self._idle_bytes > self.limits.idle_bytes_max:
                self._put_away()

    def _put_away(self) -> None:
        """The code that has been idle for longest goes. Under the lock, so that nobody takes it meanwhile."""
        digest, _ = self._idle.popitem(last=False)
        self._idle_bytes -= self._mappings.pop(digest).bytes
        self.count.put_away += 1
        self.forget(digest)
