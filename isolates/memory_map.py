"""Linear memories as the kernel sees them.

The bindings can refuse a guest's memory growth but neither report it nor read a memory's size. The kernel can: a
linear memory is a reservation of 4 GiB and more of which a prefix is accessible, so in ``/proc/self/maps`` it shows as
a run of adjacent mappings from one base, writable first, inaccessible behind. That tells an isolate that ran into its
memory limit from one that trapped otherwise: the memory that disappears when its store is deleted was full.

Which one disappears can not be told by addresses alone: with the address free, the next isolate's memory is put there,
and may be full itself before anybody has looked. So one page of each full memory is locked first (``mlock``). Locks go
with their mapping and do not come back with the next one at its place, and the kernel counts the locked pages.
"""

import ctypes
import mmap
from collections.abc import Callable
from dataclasses import dataclass

#: The reservation behind a 32-bit memory: at least this much is inaccessible behind the prefix.
_RESERVED_BYTES_MIN = 1 << 31
#: Scans in which a memory that could not be marked must be missing before it counts as gone.
_SCANS = 4

_C = ctypes.CDLL(None)
_C.mlock.argtypes = _C.munlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


@dataclass(frozen=True, slots=True)
class LinearMemory:
    """One memory: where it is and how many bytes of it the guest may touch."""

    base: int
    bytes: int


def parse(maps: str) -> list[LinearMemory]:
    """The linear memories in the text of a ``maps`` file, in order of address."""
    found: list[LinearMemory] = []
    base, end = 0, 0
    for line in maps.splitlines():
        span, permissions = line.split(None, 2)[:2]
        low, high = (int(part, 16) for part in span.split("-"))
        if permissions.startswith("rw"):
            if low != end:
                base = low
            end = high
        elif permissions.startswith("---") and low == end and high - low >= _RESERVED_BYTES_MIN:
            found.append(LinearMemory(base, end - base))
            base = end = 0
        else:
            base = end = 0
    return found


def linear_memories() -> list[LinearMemory]:
    """The linear memories of this process. Milliseconds with thousands of isolates: for the rare cases only."""
    with open("/proc/self/maps", encoding="ascii") as maps:
        return parse(maps.read())


def _lock_a_page(memory: LinearMemory) -> bool:
    """Lock the last page. Whether that can be had: a process without privileges may lock 64 KiB, or more."""
    refused: int = _C.mlock(memory.base + memory.bytes - mmap.PAGESIZE, mmap.PAGESIZE)
    return not refused


def _unlock(memory: LinearMemory) -> None:
    _C.munlock(memory.base + memory.bytes - mmap.PAGESIZE, mmap.PAGESIZE)


def locked_bytes() -> int:
    """Locked memory of this process."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next((int(line.split()[1]) for line in status if line.startswith("VmLck:")), 0) * 1024


def goes_with(
    delete: Callable[[], None], bytes_min: int, *, lock: Callable[[LinearMemory], bool] = _lock_a_page
) -> bool:
    """Whether a memory of ``bytes_min`` bytes and more goes when ``delete`` is called. It is not where there is none.

    Meanwhile memories may come and grow, but no other may go, and nobody else in the process may lock or unlock pages.
    """
    full = [memory for memory in linear_memories() if memory.bytes >= bytes_min]
    if not full:
        return False
    marked = [memory for memory in full if lock(memory)]
    before_bytes = locked_bytes()
    delete()
    gone = locked_bytes() < before_bytes
    for memory in marked:
        _unlock(memory)
    # What could not be marked is known by its address, and missed when another one is as large in its place by now.
    unmarked = [memory for memory in full if memory not in marked]
    scans: list[list[LinearMemory]] = []
    while not gone and unmarked:
        scans.append(linear_memories())
        if not largest_gone(unmarked, *scans):
            break
        gone = len(scans) == _SCANS
    return gone


def largest_gone(before: list[LinearMemory], *after: list[LinearMemory]) -> int:
    """Bytes of the largest memory that is in ``before`` and in none of the scans ``after``; 0 when none went.

    A memory never shrinks. So where any scan shows a smaller one, the old one went and a new one took its place,
    however large that is by now. The kernel hands out its table in pieces, so one scan may miss a memory that grows
    just then; several in a row do not.
    """
    seen_bytes: dict[int, int] = {}
    for scan in after:
        for memory in scan:
            seen_bytes[memory.base] = min(memory.bytes, seen_bytes.get(memory.base, memory.bytes))
    return max((m.bytes for m in before if seen_bytes.get(m.base, -1) < m.bytes), default=0)


def writable_bytes() -> int:
    """All private writable memory of this process, accessible linear memory included. Microseconds."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[5]) * 4096
