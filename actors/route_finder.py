"""RouteFinder: what a Server says of a request before it goes anywhere. Its version, its home, and where it runs.

It asks whoever knows: the view (what is deployed, and the ring), ``warmth`` (who is warm, hot and loaded), the hosts of
this machine, and who refused before. ``routing`` decides. Nothing here waits for anybody.
"""

import asyncio
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from actors import routing
from actors.exchange import ColdCause, Outcome, Request
from actors.hosts import Hosts
from actors.routing import Route, RoutingLimits
from actors.shard_client import Refusals
from actors.view_keeper import ViewKeeper
from actors.warmth import Warmth
from actors.worker import Limits, Version, plain_limits

#: Orders of workers that are kept until the ring changes: of those whose home has too much to do.
_ORDERS_MAX = 4_096
#: Servers of an order that are tried: beyond them, a spill is a cold start like any other.
_ORDER_LENGTH = 4


class RouteFinder:
    """The ways from one Server. ``sharding``: without it each machine is the home of whatever arrives on it.
    ``has_code``: whether a component's code is on this machine."""

    def __init__(
        self,
        name: str,
        *,
        keeper: ViewKeeper,
        hosts: Hosts,
        has_code: Callable[[str], bool],
        warmth: Warmth,
        refusals: Refusals,
        limits: RoutingLimits | None = None,
        sharding: bool = True,
    ) -> None:
        self._name = name
        self._keeper = keeper
        self._hosts = hosts
        self._has_code = has_code
        self._warmth = warmth
        self._refusals = refusals
        self._limits = limits or RoutingLimits()
        self._sharding = sharding
        self._orders: dict[str, tuple[str, ...]] = {}

    def resolve(self, request: Request) -> Request | Outcome:
        """The request with the version that answers it; ``SCRIPT_NOT_FOUND`` when nothing is deployed."""
        view = self._keeper.view
        version = view.version_for(request.worker, request.request_id.encode())
        if isinstance(version, Outcome):
            return version
        resolved = _with_version(request, version)
        if view.has_moved(request.worker):
            return replace(resolved, cold_cause=ColdCause.MEMBERSHIP.value)
        return resolved

    def route(self, request: Request, *, hosts_here: bool = True) -> tuple[str | None, Route]:
        """The worker's home, and where a request with a version runs. ``hosts_here``: as far as the request knows."""
        home = self.home_of(request.worker)
        # Without the code of a version (its disk is full) a machine is as one without hosts, to this version.
        hosts_here = (
            hosts_here and bool(self._hosts.alive_of(request.cordon)) and self._has_code(request.component_digest)
        )
        situation = self._warmth.situation(
            request.worker,
            request.version,
            home=home,
            order=lambda: self._order_of(request.worker),
            servers=self._keeper.view.servers,
            socket=self._hosts.of(request.version, request.cordon),
            refused_before=request.version in self._refusals,
            hosts_here=hosts_here,
            next_home=None if hosts_here else self._keeper.view.next_home_of(request.worker, self._name),
            now_s=_now_s(),
        )
        return home, routing.decide(situation, self._limits)

    def home_of(self, worker: str) -> str | None:
        """The home of a worker; None while there is no ring."""
        return self._keeper.view.home_of(worker) if self._sharding else self._name

    def _order_of(self, worker: str) -> tuple[str, ...]:
        """The first servers of a worker's order, its home first."""
        order = self._orders.get(worker)
        if order is None:
            if len(self._orders) >= _ORDERS_MAX:
                self._orders.clear()
            order = self._orders[worker] = tuple(self._keeper.view.order_of(worker, _ORDER_LENGTH))
        return order

    def on_ring(self) -> None:
        """Another ring: the orders of workers are others."""
        self._orders.clear()


def _with_version(request: Request, version: Version) -> Request:
    """The request for one version of its worker."""
    return replace(
        request,
        version=version.version_id,
        component_digest=version.component_digest,
        plan=version.plan.value,
        limits=_lowered(version.limits, request.limits) if request.context else plain_limits(version.limits),
        reuse=version.reuse,
        has_variables=version.bindings.has_variables,
        cordon=version.cordon,
    )


def _lowered(limits: Limits, bounds: Mapping[str, int | None]) -> dict[str, int | None]:
    """A version's limits under those of whoever calls it."""
    lowered = dict(plain_limits(limits))
    for name, bound in bounds.items():
        own = lowered[name]
        if bound is not None:
            lowered[name] = bound if own is None else min(own, bound)
    return lowered


def _now_s() -> float:
    return asyncio.get_running_loop().time()
