"""ViewKeeper: keeps one machine's view of the cluster up to date. The ControlPlane tells of changes; what was missed is
asked for again, whole.

What follows from a change (leases, isolates, introductions) is its Server's, which hears of each after the view has it.
"""

import asyncio
import logging
from collections import OrderedDict
from itertools import islice
from typing import Protocol

from actors.catalog import Deployed
from actors.peer import Calls, Peer, PeerFailed, PeerLost, Peers
from actors.ring import Ring
from actors.variables import ASKED, TOLD, VariablesTold, variables_of
from actors.view import ClusterView, decode_plain, deployed_from_plain, encode_plain
from actors.worker import CORDON_DEFAULT, Version

_log = logging.getLogger("everwarm.server")

#: Workers whose homes are counted at once: a few µs each.
_HOMES_COUNTED_MAX = 2_048


#: Versions remembered that were replaced, or are about to come: a request of one runs for 30 s, mostly.
_REPLACED_MAX = 1_024
#: Versions whose secrets are known before they are deployed: as many as there are deploys at once.
_TO_COME_MAX = 64


class Listener(Protocol):
    """Who acts on what is new."""

    def on_ring(self, servers: list[str]) -> None:
        """A new epoch of the ring, of these servers."""

    def on_deployed(self, worker: str, old: Deployed | None, new: Deployed | None) -> None:
        """What is deployed for a worker has changed; None: nothing."""

    def on_synced(self) -> None:
        """Everything was asked for again, and may have changed."""


class ViewKeeper:
    """One machine's view, and the calls that change it."""

    def __init__(self, peers: Peers, listener: Listener) -> None:
        self.view = ClusterView()
        self._peers = peers
        self._listener = listener
        self._syncing = asyncio.Lock()
        self._syncs_begun = 0
        self._synced = 0  # the number of the last sync that succeeded
        self._counted = ("", 0, 0)
        self._homes = 0
        self._cordons: tuple[str, ...] = (CORDON_DEFAULT,)
        self._cordons_seq = -1
        self._replaced: OrderedDict[str, Version] = OrderedDict()
        #: By worker that is deployed: the values of its secrets, for whoever starts an isolate. Never shown.
        self._secrets: dict[str, dict[str, str]] = {}
        #: The same by version, of versions that are about to be deployed.
        self._secrets_to_come: OrderedDict[str, dict[str, str]] = OrderedDict()
        self.calls: Calls = {"apply_ring": self.apply_ring, "apply_change": self.apply_change}

    def homes_of(self, server: str) -> int:
        """How many workers have their home on ``server``, counted again when the ring or a deployment has changed. Of
        very many workers a part is counted: it is for a share of memory."""
        view = self.view
        if self._counted != (server, view.epoch, view.seq):
            self._counted = (server, view.epoch, view.seq)
            some = list(islice(view.workers, _HOMES_COUNTED_MAX))
            there = sum(view.home_of(worker) == server for worker in some)
            self._homes = there * len(view.workers) // max(1, len(some))
        return self._homes

    @property
    def cordons(self) -> tuple[str, ...]:
        """The cordons that have workers, the default one first."""
        view = self.view
        if self._cordons_seq != view.seq:
            found = {version.cordon for deployed in view.workers.values() for version in deployed.versions}
            self._cordons = (CORDON_DEFAULT, *sorted(found - {CORDON_DEFAULT}))
            self._cordons_seq = view.seq
        return self._cordons

    def versions_not_of(self, cordon: str) -> set[str]:
        """The versions that are known here, and are of another cordon."""
        if len(self.cordons) == 1 and cordon == CORDON_DEFAULT:
            return set()
        deployed = (version for deployed in self.view.workers.values() for version in deployed.versions)
        return {v.version_id for v in (*deployed, *self._replaced.values()) if v.cordon != cordon}

    def version_of(self, worker: str, version_id: str) -> Version | None:
        """A version that is deployed for a worker, or was until lately: what still runs."""
        deployed = self.view.workers.get(worker)
        for version in deployed.versions if deployed is not None else ():
            if version.version_id == version_id:
                return version
        return self._replaced.get(version_id)

    def expect(self, version: Version, secrets: dict[str, str]) -> None:
        """A version is about to be deployed, and an isolate of it is to start before that."""
        self._secrets_to_come[version.version_id] = secrets
        while len(self._secrets_to_come) > _TO_COME_MAX:
            self._secrets_to_come.popitem(last=False)
        self._remember_version(version)

    async def variables(self, payload: bytes) -> bytes:
        """What an isolate of a version begins with: for a host of this machine."""
        asked = ASKED.decode(payload)
        version = await self.known_version(asked.worker, asked.version)
        if version is None:
            return TOLD.encode(VariablesTold(known=False))
        secrets = self._secrets.get(asked.worker, {})
        if not self._is_deployed(version):
            secrets = self._secrets_to_come.get(version.version_id, secrets)
        return TOLD.encode(VariablesTold(True, variables_of(version.bindings, secrets)))

    async def known_version(self, worker: str, version_id: str) -> Version | None:
        """As ``version_of``; what was not heard of here, and another machine sent a request for, is asked for."""
        if self.version_of(worker, version_id) is None:
            try:
                await self.sync()
            except (PeerLost, PeerFailed) as away:
                _log.info("%s is not known here: %s", version_id, away)
        return self.version_of(worker, version_id)

    def _is_deployed(self, version: Version) -> bool:
        deployed = self.view.workers.get(version.worker)
        return deployed is not None and version.version_id in deployed.deployment.version_ids

    async def apply_ring(self, payload: bytes) -> bytes:
        """A new epoch of the ring."""
        plain = decode_plain(payload)
        if plain["epoch"] <= self.view.epoch:
            return b""  # told again; a ring takes a tenth of a second to build
        if self.view.turn_ring(Ring(plain["epoch"], plain["servers"], plain["secret"])):
            self._listener.on_ring(list(plain["servers"]))
        return b""

    async def apply_change(self, payload: bytes) -> bytes:
        """One change of what is deployed; when some before it were missed, everything is asked for again."""
        plain = decode_plain(payload)
        deployed = None if plain["deployed"] is None else deployed_from_plain(plain["deployed"])
        old = self.view.workers.get(plain["worker"])
        # Before the view has the version that names them.
        self._secrets.pop(plain["worker"], None)
        if plain.get("secrets"):
            self._secrets[plain["worker"]] = plain["secrets"]
        if self.view.apply(plain["seq"], plain["worker"], deployed):
            self._remember(old)
            self._listener.on_deployed(plain["worker"], old, deployed)
        else:
            try:
                await self.sync()
            except (PeerLost, PeerFailed) as away:
                # Whoever told this is gone by now. The next beat that is answered says that there is more to know.
                _log.info("what was missed is not known yet: %s", away)
        return b""

    def _remember(self, old: Deployed | None) -> None:
        """Versions that may be replaced now: one that is not, is found where it is deployed."""
        for version in old.versions if old is not None else ():
            self._remember_version(version)

    def _remember_version(self, version: Version) -> None:
        self._replaced[version.version_id] = version
        self._replaced.move_to_end(version.version_id)
        while len(self._replaced) > _REPLACED_MAX:
            self._replaced.popitem(last=False)

    async def sync(self) -> None:
        """Ask the ControlPlane for everything that is deployed.

        Who had to wait is content with a sync that began after he asked: many changes after one that was missed ask
        twice, and not once each.
        """
        asked = self._syncs_begun
        async with self._syncing:
            if self._synced > asked:
                return
            self._syncs_begun = number = self._syncs_begun + 1
            control = await self._peers.get("control")
            while not await self._sync_once(control):
                pass  # changes came meanwhile, which the snapshot may not have; deploys are rare and this ends
            self._synced = number
        self._listener.on_synced()

    async def _sync_once(self, control: Peer) -> bool:
        """Take a snapshot; False when the view changed while it was on its way."""
        view = self.view
        seq_before = view.seq
        seq, workers, after = 0, dict[str, Deployed](), ""
        secrets: dict[str, dict[str, str]] = {}
        while True:
            page = decode_plain(await control.call("snapshot", encode_plain({"after": after})))
            # The number of the first page: a deploy during paging is told again, which does no harm.
            seq = seq or page["seq"]
            for plain in page["workers"]:
                deployed = deployed_from_plain(plain)
                workers[deployed.deployment.worker] = deployed
            secrets |= page.get("secrets", {})
            if not page["more"]:
                break
            after = max(workers)
        unchanged = view.seq == seq_before
        view.seq, view.workers, self._secrets = seq, workers, secrets
        return unchanged
