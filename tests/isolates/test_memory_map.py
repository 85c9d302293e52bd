"""Linear memories in the kernel's table, and how one of them is told to have gone."""

import ctypes
import mmap
from collections.abc import Callable, Iterator

import pytest

from isolates import memory_map
from isolates.limits import MIB
from isolates.memory_map import LinearMemory, goes_with, largest_gone, locked_bytes, parse
from tests.isolates.conftest import Guests, Start
from tests.scripted_conversation import ScriptedConversation

GIB = 1 << 30


def maps(*spans: tuple[int, int, str]) -> str:
    """The text of a maps file from (start, size, permissions)."""
    return "".join(f"{a:x}-{a + size:x} {p} 00000000 00:00 0 \n" for a, size, p in spans)


BASE = 0x7F00_0000_0000


class TestParse:
    @pytest.mark.parametrize(
        ("spans", "found"),
        [
            ([], []),
            # A prefix and its reservation.
            ([(BASE, MIB, "rw-p"), (BASE + MIB, 4 * GIB, "---p")], [LinearMemory(BASE, MIB)]),
            # An image mapped from the artifact, then what has grown: one memory.
            ([(BASE, MIB, "rw-p"), (BASE + MIB, 2 * MIB, "rw-p"), (BASE + 3 * MIB, 4 * GIB, "---p")],
             [LinearMemory(BASE, 3 * MIB)]),
            # The guard before the memory is not part of it.
            ([(BASE - MIB, MIB, "---p"), (BASE, MIB, "rw-p"), (BASE + MIB, 2 * GIB, "---p")],
             [LinearMemory(BASE, MIB)]),
            # A thread's stack has a small guard, the heap has none, code is not writable.
            ([(BASE, 4096, "---p"), (BASE + 4096, 8 * MIB, "rw-p"), (BASE + 4096 + 8 * MIB, 4096, "---p")], []),
            ([(BASE, MIB, "rw-p"), (BASE + MIB, 2 * GIB - 1, "---p")], []),
            ([(BASE, MIB, "rw-p"), (BASE + 2 * MIB, 4 * GIB, "---p")], []),
            ([(BASE, MIB, "r-xp"), (BASE + MIB, 4 * GIB, "---p")], []),
            ([(BASE, MIB, "rw-p"), (BASE + MIB, MIB, "r--p"), (BASE + 2 * MIB, 4 * GIB, "---p")], []),
            # An empty memory is a reservation alone.
            ([(BASE, 4 * GIB, "---p")], []),
            # Two, one behind the other.
            ([(BASE, MIB, "rw-p"), (BASE + MIB, 4 * GIB, "---p"), (BASE + MIB + 4 * GIB, 2 * MIB, "rw-p"),
              (BASE + 3 * MIB + 4 * GIB, 4 * GIB, "---p")],
             [LinearMemory(BASE, MIB), LinearMemory(BASE + MIB + 4 * GIB, 2 * MIB)]),
        ],
    )  # fmt: skip
    def test_reads(self, spans: list[tuple[int, int, str]], found: list[LinearMemory]) -> None:
        assert parse(maps(*spans)) == found

    def test_a_file_name_with_spaces(self) -> None:
        assert parse("1000-2000 rw-p 00000000 00:00 0   /a file (deleted)\n") == []


def test_the_largest_that_went() -> None:
    a, b, c = LinearMemory(1, 10), LinearMemory(2, 30), LinearMemory(3, 20)
    assert largest_gone([a, b, c], [b]) == 20
    assert largest_gone([a, b], [b, LinearMemory(1, 99)]) == 0
    assert largest_gone([], [a]) == 0
    assert largest_gone([a], [LinearMemory(1, 4)], [LinearMemory(1, 99)]) == 10, "another one that grew in its place"


def test_a_real_memory_is_seen_to_come_grow_and_go(guests: Guests, start: Start) -> None:
    others = {m.base for m in memory_map.linear_memories()}
    writable = memory_map.writable_bytes()
    isolate = start(guests("hoard"), cpu_ms=60_000)

    def mine() -> list[LinearMemory]:
        return [m for m in memory_map.linear_memories() if m.base not in others]

    small = mine()
    assert len(small) == 1
    isolate.run(ScriptedConversation("/?mib=40"))
    grown = mine()
    assert [m.base for m in grown] == [m.base for m in small]
    assert grown[0].bytes == small[0].bytes + 40 * MIB
    assert memory_map.writable_bytes() - writable >= 40 * MIB
    before = memory_map.linear_memories()
    isolate.close()
    assert mine() == []
    assert largest_gone(before, memory_map.linear_memories()) == grown[0].bytes


class Reservation:
    """A linear memory as wasmtime makes them, with a guard before it, and without a guest."""

    def __init__(self, size: int, *, at: int | None = None) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | (0 if at is None else _MAP_FIXED)
        self.base: int = _C.mmap(None if at is None else at - MIB, 4 * GIB, 0, flags, -1, 0) + MIB
        assert at in (None, self.base)
        assert _C.mprotect(self.base, size, mmap.PROT_READ | mmap.PROT_WRITE) == 0

        self._is_there = True

    def delete(self) -> None:
        if self._is_there:
            self._is_there = False
            _C.munmap(self.base - MIB, 4 * GIB)


_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000  # which Python's own mmap does not name
_C = ctypes.CDLL(None)
_C.mmap.restype = ctypes.c_void_p
_C.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_C.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_C.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

Make = Callable[..., Reservation]
#: Larger than what any guest of these tests has.
FULL = 512 * MIB


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Reservation] = []

    def reservation(size: int, *, at: int | None = None) -> Reservation:
        made.append(Reservation(size, at=at))
        return made[-1]

    yield reservation
    for one in made:
        one.delete()


class TestGoesWith:
    def test_a_full_one_that_goes(self, make: Make) -> None:
        _, mine, _ = make(FULL), make(FULL), make(FULL)
        assert goes_with(mine.delete, FULL)

    def test_a_small_one_that_goes_among_full_ones(self, make: Make) -> None:
        _, mine, _ = make(FULL), make(MIB), make(FULL)
        assert not goes_with(mine.delete, FULL)

    def test_where_none_is_full_nothing_is_deleted(self) -> None:
        assert not goes_with(lambda: pytest.fail("deleted"), FULL)

    def test_one_in_whose_place_another_is_full_at_once(self, make: Make) -> None:
        """Of two that run out of memory at the same moment, the second one where the first one was."""
        mine = make(FULL)

        def delete_and_come() -> None:
            mine.delete()
            make(FULL, at=mine.base)

        assert goes_with(delete_and_come, FULL)

    def test_one_that_comes_and_is_full_meanwhile(self, make: Make) -> None:
        mine, _ = make(MIB), make(FULL)

        def delete_and_come() -> None:
            mine.delete()
            make(FULL)

        assert not goes_with(delete_and_come, FULL)

    def test_no_lock_is_left(self, make: Make) -> None:
        mine, other = make(FULL), make(FULL)
        before = locked_bytes()
        goes_with(mine.delete, FULL)
        assert locked_bytes() == before
        assert LinearMemory(other.base, FULL) in memory_map.linear_memories()

    @pytest.mark.parametrize("marks_max", [0, 1])
    def test_where_not_all_can_be_marked_addresses_tell(self, marks_max: int, make: Make) -> None:
        marked: list[LinearMemory] = []

        def lock(memory: LinearMemory) -> bool:
            if len(marked) == marks_max:
                return False
            marked.append(memory)
            return memory_map._lock_a_page(memory)

        for place in (0, 2):
            full = sorted((make(FULL) for _ in range(3)), key=lambda one: one.base)
            assert goes_with(full[place].delete, FULL, lock=lock)
            marked.clear()
            small = make(MIB)
            assert not goes_with(small.delete, FULL, lock=lock)
            marked.clear()
