"""CordonKeeper: before something is deployed into a cordon, servers have host processes for it. In the ControlPlane.

``cordons`` decides; whoever owns the cluster's processes starts and ends them (``have_hosts``), and is told the whole
list each time, so that an order that was lost or came twice does no harm. What there is is not written down: after a
restart it is the cordons that have workers, which the owner had before, and is told again with the next order.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from actors.cordons import CORDONS_MAX, NoRoom, room_for
from actors.worker import CORDON_DEFAULT

#: Has every server have host processes for these cordons, and for no others. ``NoHosts`` when that cannot be.
HaveHosts = Callable[[tuple[str, ...]], Awaitable[None]]


class NoHosts(ValueError):
    """There are no host processes for a cordon. The message is for whoever deploys."""


class CordonKeeper:
    """The cordons that servers have hosts for. ``used``: those that have workers, as the catalog says."""

    def __init__(
        self, used: Callable[[], set[str]], have_hosts: HaveHosts | None = None, cordons_max: int = CORDONS_MAX
    ) -> None:
        """``have_hosts``: None where servers have hosts for the default cordon, and nobody could start others."""
        self._used = used
        self._have_hosts = have_hosts
        self._cordons_max = cordons_max
        self._there: tuple[str, ...] | None = None
        self._deploying: Counter[str] = Counter()
        self._lock = asyncio.Lock()

    @property
    def cordons(self) -> tuple[str, ...]:
        """The cordons that servers have hosts for, the default one first."""
        if self._there is None:
            self._there = (CORDON_DEFAULT, *sorted(self._used() - {CORDON_DEFAULT}))
        return self._there

    @asynccontextmanager
    async def hosts_for(self, cordon: str) -> AsyncIterator[None]:
        """While something is deployed into a cordon: it has hosts, and keeps them. ``NoHosts``."""
        self._deploying[cordon] += 1
        try:
            async with self._lock:
                await self._have(cordon)
            yield
        finally:
            self._deploying[cordon] -= 1
            if not self._deploying[cordon]:
                del self._deploying[cordon]

    async def _have(self, cordon: str) -> None:
        there = self.cordons
        if cordon in there:
            return
        if self._have_hosts is None:
            raise NoHosts(
                f"cordon: {cordon} needs host processes of its own, and the servers of this cluster have them for"
                f" {CORDON_DEFAULT} alone"
            )
        decided = room_for(cordon, there, self._used() | set(self._deploying), self._cordons_max)
        if isinstance(decided, NoRoom):
            raise NoHosts(f"cordon: {decided.why}")
        await self._have_hosts(decided.cordons)
        self._there = decided.cordons
