"""One isolate and one version as a host's residency knows them. Pure.

Also: how many isolates of a version were in use at once lately, from which follows how many spares it gets.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

from actors.exchange import ColdCause, StartType
from actors.worker import REUSE_DEFAULT, Reuse


class State(Enum):
    """Where an isolate is in its life. COLD and GONE ones are not kept."""

    WARMING = "warming"
    IDLE = "idle"
    BUSY = "busy"


@dataclass(slots=True)
class Resident:
    """One isolate as the host knows it. ``memory_bytes`` is 0 until it was measured."""

    isolate: int
    version: str
    state: State
    start_type: StartType
    cause: ColdCause
    ticket: Hashable | None
    start_cost_ms: float = 1.0
    memory_bytes: int = 0
    uses: int = 0
    condemned: bool = False


@dataclass(slots=True)
class Demand:
    """The most isolates in use at once, in this window of time and the one before it.

    Two windows, so that the answer never forgets a peak at the very moment in which a window ends.
    """

    window_s: float
    _until_s: float = 0.0
    _now: int = 0
    _before: int = 0

    def note(self, in_use: int, now_s: float) -> None:
        """So many are in use now."""
        self._turn(now_s)
        self._now = max(self._now, in_use)

    def peak(self, now_s: float) -> int:
        """The most that were in use at once, between one and two windows back."""
        self._turn(now_s)
        return max(self._now, self._before)

    def _turn(self, now_s: float) -> None:
        if now_s >= self._until_s:
            self._before = self._now if now_s < self._until_s + self.window_s else 0
            self._now = 0
            self._until_s = now_s + self.window_s


@dataclass(slots=True)
class Household:
    """The isolates of one version."""

    demand: Demand
    reuse: Reuse = REUSE_DEFAULT
    residents: set[int] = field(default_factory=set)
    idle: list[int] = field(default_factory=list)
    warming: int = 0
    ahead: int = 0  # of those that warm: started without a ticket
    uses: int = 0  # requests since the version came to live here
    dropped: bool = False  # no longer deployed: nothing is started ahead for it
    at_home: bool = False  # this machine is its worker's home, as of its last request

    @property
    def single(self) -> bool:
        """Whether each isolate serves one request, so that the next ones are started ahead."""
        return self.reuse.requests_max == 1

    @property
    def in_use(self) -> int:
        """Isolates that run a request or start for one."""
        return len(self.residents) - len(self.idle) - self.ahead
