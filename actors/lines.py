"""Tickets that wait for an isolate, in a line for each version: who is next, and whose turn it is. Pure.

A line is first in, first out. Between lines there are turns: the version that got something goes behind all others, so
that a long line does not keep a short one waiting.

When there is no place for one of the paid plan, one of the free plan gives way: whoever came last in the longest line
of that plan. So nobody who pays is turned away while somebody who does not is served before.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LineLimits:
    """Bounds of the lines of one host."""

    #: In line for one version.
    line_max: int = 64
    #: In line for all versions: as many as the host has connections.
    queued_max: int = 512


class Lines:
    """The lines of one host."""

    def __init__(self, limits: LineLimits) -> None:
        self.limits = limits
        self.queued = 0
        self._lines: OrderedDict[str, deque[Hashable]] = OrderedDict()  # none is empty; by whose turn it is
        self._free: set[str] = set()  # of these versions, those of the free plan

    def length(self, version: str) -> int:
        """How many wait for ``version``."""
        line = self._lines.get(version)
        return 0 if line is None else len(line)

    def has_place(self, version: str) -> bool:
        """Whether one more may wait for ``version``."""
        return self.queued < self.limits.queued_max and self.length(version) < self.limits.line_max

    def join(self, version: str, ticket: Hashable, *, paid: bool = True) -> None:
        """``ticket`` waits for ``version`` from now on, behind all others. ``paid``: the version's plan."""
        if not paid:
            self._free.add(version)
        line = self._lines.get(version)
        if line is None:
            line = self._lines[version] = deque()
        line.append(ticket)
        self.queued += 1

    def next(self, version: str) -> Hashable:
        """Who waited for ``version`` for longest; it waits no more. ``KeyError`` when nobody does."""
        line = self._lines[version]
        ticket = line.popleft()
        self._left(version, line)
        return ticket

    def leave(self, version: str, ticket: Hashable) -> bool:
        """``ticket`` no longer waits. False when it is not in line."""
        line = self._lines.get(version)
        if line is None or ticket not in line:
            return False
        line.remove(ticket)
        self._left(version, line)
        return True

    def give_way(self) -> tuple[str, Hashable] | None:
        """Who has to leave for one of the paid plan, with its version; it waits no more. None: all who wait pay."""
        version = max(self._free, key=lambda free: (len(self._lines[free]), free), default=None)
        if version is None:
            return None
        line = self._lines[version]
        ticket = line.pop()
        self._left(version, line)
        return version, ticket

    def by_turn(self) -> list[str]:
        """The versions that somebody waits for, by whose turn it is."""
        return list(self._lines)

    def had_turn(self, version: str) -> None:
        """``version`` got something: the others come first now."""
        if version in self._lines:
            self._lines.move_to_end(version)

    def _left(self, version: str, line: deque[Hashable]) -> None:
        self.queued -= 1
        if not line:
            del self._lines[version]
            self._free.discard(version)
