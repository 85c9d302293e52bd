"""Isolates that wait for the one request which they are started for: how many, and who has waited for longest. Pure."""

from collections import OrderedDict
from dataclasses import dataclass

from actors.resident import Household


@dataclass(frozen=True, slots=True)
class SpareLimits:
    """Bounds on spares, of one version and of all."""

    per_version_max: int
    all_max: int


class Spares:
    """The spares of one host, those that warm included."""

    def __init__(self, limits: SpareLimits) -> None:
        self.limits = limits
        self.warming = 0
        self._waiting: OrderedDict[int, None] = OrderedDict()  # the one that waited longest first

    def wanted(self, house: Household, now_s: float) -> bool:
        """Whether one more should be started for ``house``: as many as were in use at once lately, within bounds."""
        if not house.single or house.dropped or house.warming:
            return False
        return len(house.idle) < max(1, min(house.demand.peak(now_s), self.limits.per_version_max))

    @property
    def is_full(self) -> bool:
        """Whether one of them must go before another starts."""
        return len(self._waiting) + self.warming >= self.limits.all_max

    @property
    def oldest(self) -> int | None:
        """The one that has waited for longest."""
        return next(iter(self._waiting), None)

    def waits(self, isolate: int) -> None:
        """A spare is started, and waits for its request."""
        self._waiting[isolate] = None

    def gone(self, isolate: int) -> None:
        """It was taken, or is no more; nothing happens when it was none."""
        self._waiting.pop(isolate, None)

    def __len__(self) -> int:
        return len(self._waiting)
