"""Linear memories as the kernel sees them.

The bindings can refuse a guest's memory growth but neither report it nor read a memory's size. The kernel can: a
linear memory is a reservation of 4 GiB and more of which a prefix is accessible, so in ``/proc/self/maps`` it shows as
a run of adjacent mappings from one base, writable first, inaccessible behind. That tells an isolate that ran into its
memory limit from one that trapped otherwise: the memory that disappears when its store is deleted was full.
"""

from dataclasses import dataclass

#: The reservation behind a 32-bit memory: at least this much is inaccessible behind the prefix.
_RESERVED_BYTES_MIN = 1 << 31


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
