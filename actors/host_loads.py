"""What the hosts of one machine last said of themselves, and for how long it holds. Pure.

A report grows old at two speeds. How many run and wait changes in milliseconds: after a second it is no longer
believed, or a home that refuses everything, and so hears nothing, would refuse for ever. How long isolates live and how
much memory there is change slowly, and hold until the next report.

The delay in line is the *standing* one: the least that was reported within the current and the last short while (see
``admission``). It takes two numbers a host and no list.
"""

from dataclasses import dataclass

from msgspec.structs import replace

from actors.exchange import Load


@dataclass(frozen=True, slots=True)
class HostLoadLimits:
    """For how long a report holds."""

    #: One request a second finds out how a home that refused is now.
    fresh_s: float = 1.0
    #: CoDel's interval: longer than a burst of short requests takes to drain.
    window_s: float = 0.1


@dataclass(slots=True)
class _Said:
    """One host's word."""

    load: Load
    at_s: float
    window_began_s: float
    least_ms: float
    least_before_ms: float


class HostLoads:
    """The hosts' loads, by socket. As many as hosts ever lived on a machine, which is few."""

    def __init__(self, limits: HostLoadLimits = HostLoadLimits()) -> None:
        self._limits = limits
        self._said: dict[str, _Said] = {}

    def note(self, socket: str, load: Load, now_s: float) -> None:
        """A host said how it is."""
        said = self._said.get(socket)
        delay_ms = load.queue_ms if load.queued else 0.0
        if said is None or now_s - said.window_began_s >= 2 * self._limits.window_s:
            self._said[socket] = _Said(load, now_s, now_s, delay_ms, delay_ms)
            return
        said.load, said.at_s = load, now_s
        if now_s - said.window_began_s >= self._limits.window_s:
            said.least_before_ms, said.least_ms = said.least_ms, delay_ms
            said.window_began_s = now_s
        else:
            said.least_ms = min(said.least_ms, delay_ms)

    def of(self, socket: str | None, now_s: float) -> Load:
        """How a host is now, with its standing delay as ``queue_ms``; idle, when nothing is known."""
        said = self._said.get(socket or "")
        if said is None:
            return Load()
        if now_s - said.at_s >= self._limits.fresh_s:
            return replace(said.load, running=0, queued=0, queue_ms=0.0, cpu_load=0.0)
        return replace(said.load, queue_ms=min(said.least_ms, said.least_before_ms))

    def worst(self, now_s: float) -> Load:
        """The host with the longest standing delay; idle, when none is known."""
        return max((self.of(socket, now_s) for socket in self._said), key=lambda load: load.queue_ms, default=Load())

    def forget(self, socket: str) -> None:
        """The host is gone."""
        self._said.pop(socket, None)
