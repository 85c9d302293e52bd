import pytest

from isolates import memory_map
from isolates.limits import MIB
from isolates.memory_map import LinearMemory, largest_gone, parse
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
