"""The room in one host: how many isolates it holds, how much memory they take, and who goes when it is full. Pure.

Memory is measured by the host twice a second, and by each isolate after its requests. Between two measurements of the
host a house that was over its limit takes one newcomer for each isolate that went, whether that was evicted for it or
left by itself. An isolate that was not measured counts with the average of the house.
"""

from dataclasses import dataclass

from actors.eviction import EvictionLimits, EvictionOrder
from actors.past_starts import Cost
from actors.resident import Household, Resident

#: What an isolate counts with while neither it nor the host has been measured: a small guest's memory.
_BYTES_UNMEASURED = 1 << 20


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """How much there is."""

    isolates_max: int
    memory_bytes_max: int
    eviction: EvictionLimits


class Room:
    """The room in one host, and its idle isolates by who is lost first."""

    def __init__(self, limits: RoomLimits) -> None:
        self.limits = limits
        self.isolates = 0
        self.over_memory = False
        self._order = EvictionOrder(limits.eviction)
        self._free = 0  # places of isolates that went since memory was measured, and that nobody took
        self._average_bytes = _BYTES_UNMEASURED

    # --------------------------------------------------------------------------------------------------- events

    def entered(self) -> None:
        """One more isolate starts."""
        self.isolates += 1
        self._free = max(0, self._free - 1)

    def left(self, isolate: int) -> None:
        """An isolate went, for whatever reason."""
        self._order.discard(isolate)
        self.isolates -= 1
        self._free += 1

    def rests(self, resident: Resident, house: Household, now_s: float) -> None:
        """An isolate is idle: from now on it may have to go."""
        self._order.put(
            resident.isolate,
            uses=house.uses,
            cost_ms=resident.start_cost_ms,
            bytes_=self.bytes_of(resident),
            at_home=house.at_home,
            copies=len(house.residents),
            now_s=now_s,
            key=resident.version,
        )

    def in_use(self, isolate: int) -> None:
        """An idle isolate is used: it can not go."""
        self._order.discard(isolate)

    def evicted(self, isolate: int, now_s: float) -> None:
        """An idle isolate goes to make room; that it ``left`` is said as well."""
        self._order.evicted(isolate, now_s)

    def measured(self, memory_bytes: int) -> int:
        """The host measured its memory; how many bytes are too much, not positive when none are."""
        over_bytes = memory_bytes - self.limits.memory_bytes_max
        self.over_memory = over_bytes > 0
        if self.isolates:
            self._average_bytes = max(1, memory_bytes // self.isolates)
        return over_bytes

    def settled(self) -> None:
        """What had to go after a measurement went: places count anew."""
        self._free = 0

    # -------------------------------------------------------------------------------------------------- answers

    @property
    def is_full(self) -> bool:
        """Whether one more isolate needs another to go first: by count, or by memory as last measured."""
        if self.isolates >= self.limits.isolates_max:
            return True
        return self.over_memory and not self._free and self.isolates > 0

    @property
    def is_nearly_full(self) -> bool:
        """Whether somebody may be waiting for room."""
        return self.over_memory or self.isolates >= self.limits.isolates_max - 1

    @property
    def has_place(self) -> bool:
        """Whether one more isolate may start, another going for it if need be."""
        return not self.is_full or len(self._order) > 0

    def first_to_go(self) -> int | None:
        """Of the idle isolates, the one to lose first."""
        return self._order.first()

    def goes_for(self, house: Household, expected: Cost) -> int | None:
        """Who would go for an isolate of ``house`` that nobody asked for yet; None if nobody is worth less."""
        return self._order.first_for(
            uses=house.uses,
            cost_ms=expected.start_ms,
            bytes_=expected.bytes_ or self._average_bytes,
            at_home=house.at_home,
            copies=len(house.residents) + 1,
        )

    def bytes_of(self, resident: Resident) -> int:
        """What an isolate holds, as far as is known."""
        return resident.memory_bytes or self._average_bytes

    def residence_s(self, now_s: float) -> float:
        """How long a copy that nobody asks lives here; ``math.inf`` while nothing ever had to go."""
        return self._order.residence_s(now_s)

    @property
    def idle_bytes(self) -> int:
        """What all idle isolates hold: as much could come free."""
        return self._order.bytes
