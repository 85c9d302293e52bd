"""ControlPlane: one per cluster. Catalog, membership, ring epochs, deploys. Never on a request's path, but for those
that ask for key-value stores: it is their one writer (``store_file``).

What it knows is on disk (``catalog``) or comes back by itself (servers beat, and so join again), so losing it stops
deploys, joins and stores, and nothing else. It tells the Servers of each change; a Server that missed one asks for a
snapshot.

Two halves that meet in one lock: ``deploys`` changes what is deployed, ``ring_keeper`` who serves it. Neither changes
while the other switches, so that code is in place wherever a request can be sent.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.catalog import Catalog
from actors.cordon_keeper import CordonKeeper, HaveHosts
from actors.deployer import Deployer
from actors.deploys import Deploys
from actors.distribution import Distribution, Share
from actors.fleet import Fleet
from actors.membership import MembershipLimits
from actors.peer import Calls, Peers
from actors.ring_keeper import RingKeeper, Watch
from actors.secret_keeper import SecretKeeper
from actors.secret_store import SecretStore
from actors.store_file import StoreFile
from actors.stores import ORDER, TOLD
from actors.view import decode_plain, deployed_to_plain, encode_plain

_PAGE = 500


class ControlPlane:
    """The cluster's memory."""

    def __init__(
        self,
        directory: Path,
        *,
        peers: Peers,
        now_ms: Callable[[], int],
        watch: Watch | None = None,
        have_hosts: HaveHosts | None = None,
        limits: MembershipLimits | None = None,
        preload: bool = False,
        share: Share | None = None,
    ) -> None:
        """``watch``: see ``RingKeeper``. ``have_hosts``: see ``CordonKeeper``.
        ``preload``: a deploy has an isolate started at the worker's home before it switches. ``share``: see
        ``Distribution``."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._catalog = Catalog.open(directory / "catalog.sqlite")
        self._secrets = SecretStore(directory / "secrets.sqlite")
        self._stores = StoreFile(directory / "stores.sqlite")
        self._cordons = CordonKeeper(self._catalog.cordons, have_hosts)
        deployer = Deployer(directory)
        fleet = Fleet(peers)
        distribution = Distribution(self._catalog, deployer, fleet, *([share] if share else []))
        self._fleet, self._distribution = fleet, distribution
        changing = asyncio.Lock()
        self._ring = RingKeeper(
            self._catalog,
            distribution,
            fleet,
            epoch=now_ms(),  # later than any epoch of an earlier life, without a place to remember it
            changing=changing,
            watch=watch,
            limits=limits or MembershipLimits(),
        )
        self._deploys = Deploys(
            self._catalog,
            deployer,
            distribution,
            fleet,
            secrets_of=self._secrets.of,
            serving=lambda: self._ring.serving,
            hearing=lambda: self._ring.hearing,
            without=lambda: self._ring.without,
            home_of=self._ring.home_of,
            changing=changing,
            now_ms=now_ms,
            cordons=self._cordons,
            preload=preload,
        )
        self.join, self.leave, self.members = self._ring.join, self._ring.leave, self._ring.members
        self.deploy, self.deploy_progress = self._deploys.deploy, self._deploys.deploy_progress
        self.remove = self._deploys.remove
        self.calls: Calls = {
            **self._ring.calls,
            **self._deploys.calls,
            **SecretKeeper(self._secrets, self._catalog, self._deploys, now_ms).calls,
            "snapshot": self.snapshot,
            "list": self.listed,
            "history": self.history,
            "describe": self.describe,
            "store": self.store,
            "cordons": self.cordons,
        }

    async def keep(self) -> None:
        """Notice who is silent, for as long as this runs."""
        await self._ring.keep()

    async def listed(self, payload: bytes) -> bytes:
        """A page of what is deployed, by name, after ``after``."""
        return encode_plain(self._page(str(decode_plain(payload)["after"])))

    async def snapshot(self, payload: bytes) -> bytes:
        """The same for a Server, which starts isolates: with ``secrets``, the values by worker."""
        page = self._page(str(decode_plain(payload)["after"]))
        names = [plain["deployment"]["worker"] for plain in page["workers"]]
        return encode_plain({**page, "secrets": {name: found for name in names if (found := self._secrets.of(name))}})

    def _page(self, after: str) -> dict[str, Any]:
        page = self._catalog.current(after, _PAGE)
        return {
            "seq": self._catalog.seq(),
            "workers": [deployed_to_plain(deployed) for deployed in page],
            "more": len(page) == _PAGE,
        }

    async def describe(self, payload: bytes) -> bytes:
        """What is deployed of one worker: ``{"deployed": …, "missing": [worker, …]}``, the workers that its versions
        are bound to and that are not there, and ``unset_secrets``, which they name and which have no value.
        ``{"deployed": None}`` when it is not deployed."""
        deployed = self._catalog.find(str(decode_plain(payload)["name"]))
        if deployed is None:
            return encode_plain({"deployed": None})
        bound = dict.fromkeys(worker for version in deployed.versions for worker in version.bindings.workers())
        named = {secret for version in deployed.versions for secret in version.bindings.secrets}
        unset = sorted(named.difference(self._secrets.of(deployed.deployment.worker)))
        return encode_plain(
            {
                "deployed": deployed_to_plain(deployed),
                "missing": self._catalog.missing(bound),
                "unset_secrets": unset,
            }
        )

    async def cordons(self, payload: bytes) -> bytes:
        """The cordons that servers are to have host processes for, the default one first."""
        return encode_plain(list(self._cordons.cordons))

    async def store(self, payload: bytes) -> bytes:
        """One operation on a key-value store, for a Server that has looked whose it is."""
        order = ORDER.decode(payload)
        return TOLD.encode(self._stores.carry_out(order.store, order.asked))

    async def history(self, payload: bytes) -> bytes:
        """The latest uploads and deploys of one worker, newest first."""
        changes = self._catalog.history(str(decode_plain(payload)["name"]), _PAGE)
        return encode_plain(
            [
                {
                    "seq": change.seq,
                    "kind": change.kind.value,
                    "at_ms": change.at_ms,
                    "author": change.author,
                    "version": change.version.version_id if change.version else None,
                    "component_bytes": change.component_bytes,
                }
                for change in changes
            ]
        )

    async def stop(self) -> None:
        """End what is under way, and close the catalog."""
        await self._ring.stop()
        await self._distribution.stop()
        await self._fleet.stop()
        self.close()

    def close(self) -> None:
        """Close the catalog."""
        self._catalog.close()
        self._secrets.close()
        self._stores.close()
