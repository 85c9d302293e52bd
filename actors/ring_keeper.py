"""RingKeeper: performs what ``membership`` decides, and brings it the news: heartbeats, broken calls, time.

News come in one at a time and are over at once; what they lead to (code, isolates, a drain) takes its time in tasks of
its own, and is news again when it is done. Nothing of it is on a request's path, and all of it has a bound.

How a loss is noticed, the fastest first: a call at the server that stays open (``watch``) breaks when its process
dies; a call to it fails, and so does a second one; it is silent.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from actors.catalog import Catalog
from actors.distribution import Distribution, NoRoom, OtherEngine
from actors.fleet import Fleet
from actors.handover import hand_over
from actors.membership import (
    Decision,
    Drain,
    Forget,
    Install,
    Membership,
    MembershipLimits,
    Publish,
    State,
    TooManyServers,
    Warm,
)
from actors.peer import Calls, PeerFailed, PeerLost
from actors.ring import Ring
from actors.side_work import SideWork
from actors.view import decode_plain, encode_plain

_log = logging.getLogger("everwarm.ring_keeper")

#: How long a server that broke a call has to answer another one before it counts as dead.
_DOUBT_S = 2.0
#: How often a server that drains is asked whether something still runs there.
_DRAINED_EVERY_S = 0.05
#: A second try of code that did not get there, after so long.
_INSTALL_AGAIN_S = 1.0

_LIMITS: Final = MembershipLimits()

#: Waits until a role of a server is gone: returns or raises ``PeerLost`` then, and not before.
Watch = Callable[[str], Awaitable[object]]


class RingKeeper:
    """Who is in the ring, and everything that has to happen before and after that changes."""

    def __init__(
        self,
        catalog: Catalog,
        distribution: Distribution,
        fleet: Fleet,
        *,
        epoch: int,
        changing: asyncio.Lock,
        watch: Watch | None = None,
        clock: Callable[[], float] = time.monotonic,
        limits: MembershipLimits = _LIMITS,
    ) -> None:
        """``epoch``: later than any of an earlier life. ``watch``: without one, only calls and silence tell a loss."""
        self._catalog = catalog
        self._distribution = distribution
        self._fleet = fleet
        self._membership = Membership(epoch, limits)
        self._changing = changing
        self._watch = watch
        self._clock = clock
        self._limits = limits
        self._side = SideWork("control")
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._in_doubt: set[str] = set()
        self._told_epoch = epoch
        self._telling_again: set[str] = set()
        self._changed = asyncio.Event()
        self._ring: Ring | None = None
        self._without: dict[str, str] = {}
        self._handed = {"moved": 0, "warm": 0, "failed": 0, "late": 0}
        fleet.on_lost = self._doubt
        distribution.on_unplaced = self._unplaced
        self.calls: Calls = {
            "join": self.join,
            "leave": self.leave,
            "heartbeat": self.heartbeat,
            "members": self.members,
        }

    async def keep(self) -> None:
        """Look for the silent, for as long as this runs."""
        while True:
            await asyncio.sleep(self._limits.tick_every_s)
            try:
                self._act(self._membership.tick(self._clock()))
            except Exception:
                # The next tick has to come: without it nobody is ever silent, and no change has an end.
                _log.exception("a tick failed")

    async def stop(self) -> None:
        """End all that is under way."""
        await self._side.stop()
        for task in self._watching.values():
            task.cancel()
        await asyncio.gather(*self._watching.values(), return_exceptions=True)

    @property
    def serving(self) -> list[str]:
        """Who serves requests: they have to have the code, and hear of deploys."""
        return self._membership.serving

    @property
    def without(self) -> dict[str, str]:
        """Who lives and has not what is deployed, each with the reason: another CPU, a full disk. Nobody who was
        forgotten."""
        return dict(self._without)

    @property
    def hearing(self) -> list[str]:
        """Who hears of deploys and of the ring: those that serve, and those that live without the code. Their clients'
        requests go to others, and they have to know to whom."""
        serving = self._membership.serving
        return serving + [server for server in self._without if server not in serving]

    def home_of(self, key: str) -> str | None:
        """The home of a worker's key by the latest ring; None while nobody is home to anything."""
        if self._ring is None or self._ring.epoch != self._membership.epoch:
            self._ring = Ring(self._membership.epoch, self._membership.ring, self._catalog.cluster_secret())
        return self._ring.home_of(key)

    # --------------------------------------------------------------------------------------------- what others call

    async def join(self, payload: bytes) -> bytes:
        """A server is there: ``{server, weight}``. Answers ``{"state", "why"}`` when it is in the ring and all have
        heard of it, or when it is lost on the way."""
        plain = decode_plain(payload)
        server, weight = str(plain["server"]), int(plain["weight"])
        try:
            self._act(self._membership.join(server, weight, self._clock()))
        except TooManyServers as full:
            return encode_plain({"state": State.UNKNOWN.value, "error": str(full)})
        under_way = {State.JOINING, State.WARMING}
        await self._until(lambda: self._membership.state(server) not in under_way)
        epoch = self._membership.epoch
        await self._until(lambda: self._told_epoch >= epoch)
        why = next((member.why for member in self._membership.members if member.name == server), "")
        return encode_plain({"state": self._membership.state(server).value, "why": why})

    async def leave(self, payload: bytes) -> bytes:
        """A server is to go: ``{server}``. Answers when it is home to nothing and nothing of others runs there."""
        server = str(decode_plain(payload)["server"])
        self._act(self._membership.leave(server, self._clock()))
        under_way = {State.LEAVING, State.DRAINING}
        await self._until(lambda: self._membership.state(server) not in under_way)
        return encode_plain({"state": self._membership.state(server).value})

    async def heartbeat(self, payload: bytes) -> bytes:
        """A server lives: ``{server, weight, hosts, epoch}``, and ``ring`` if it was asked for it. Answers ``{state,
        epoch, seq}``, what it should know, and ``wants_ring`` to the first that a new ControlPlane hears."""
        plain = decode_plain(payload)
        server = str(plain["server"])
        if "ring" in plain:
            ring = {str(name): int(weight) for name, weight in plain["ring"].items()}
            self._act(self._membership.adopt(ring, self._clock()))
        elif plain["epoch"] and not self._membership.members:
            known = {"state": State.UNKNOWN.value, "epoch": self._membership.epoch, "seq": self._catalog.seq()}
            return encode_plain({**known, "wants_ring": True})
        news = self._membership.heartbeat(server, int(plain["weight"]), self._clock(), able=bool(plain["hosts"]))
        self._act(news + self._membership.known(int(plain["epoch"])))
        state, epoch = self._membership.state(server), self._membership.epoch
        missed = server in self._membership.serving and int(plain["epoch"]) < epoch == self._told_epoch
        # One at a time: a slow server must not be told with every beat, and one that missed it again must hear of it.
        if missed and server not in self._telling_again:
            self._side.begin(self._tell_again(server))
        return encode_plain({"state": state.value, "epoch": epoch, "seq": self._catalog.seq()})

    async def _tell_again(self, server: str) -> None:
        self._telling_again.add(server)
        try:
            await self._fleet.tell([server], "apply_ring", self._ring_payload())
        finally:
            self._telling_again.discard(server)

    async def members(self, payload: bytes = b"") -> bytes:
        """The ring's epoch and homes, everybody that is remembered, and what hand-overs came to."""
        now_s = self._clock()
        return encode_plain(
            {
                "epoch": self._membership.epoch,
                "servers": self._membership.ring,
                "members": [
                    {
                        "server": member.name,
                        "weight": member.weight,
                        "state": member.state.value,
                        "why": member.why or self._without.get(member.name, ""),
                        "heard_ago_s": round(now_s - member.heard_s, 1),
                        "since_s": round(now_s - member.since_s, 1),
                    }
                    for member in self._membership.members
                ],
                "handed_over": dict(self._handed),
            }
        )

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            await self._changed.wait()

    def _say_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # -------------------------------------------------------------------------------------------- what is to be done

    def _act(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            _log.info("%s", decision)
            if isinstance(decision, Install):
                self._begin_watching(decision.server)
                self._side.begin(self._install(decision))
            elif isinstance(decision, Warm):
                self._side.begin(self._warm(decision))
            elif isinstance(decision, Publish):
                self._side.begin(self._publish(decision))
            elif isinstance(decision, Drain):
                self._side.begin(self._drain(decision))
            else:
                self._forget(decision)
        self._say_changed()

    async def _install(self, install: Install) -> None:
        server = install.server
        while self._membership.state(server) in (State.JOINING, State.MEMBER):
            try:
                await self._fleet.call(server, "configure", encode_plain({"draining": False}), role="shard")
                digests = await self._distribution.install_all(server)
                await self._fleet.call(server, "collect_code", encode_plain(digests))
                self._without.pop(server, None)
                self._act(self._membership.placed(server, self._clock()))
                return
            except (PeerLost, PeerFailed) as failed:
                _log.error("code did not reach %s: %s", server, failed)
            except NoRoom as full:
                if self._without.get(server) != str(full):  # asked each second, until there is room
                    _log.error("code was not put in place on %s: %s", server, full)
                self._without[server] = str(full)
            except OtherEngine as other:
                # Nothing that is tried again makes it another machine.
                if self._without.get(server) != str(other):  # its next beat asks again, and nothing is new
                    _log.error("%s cannot run what is compiled here: %s", server, other)
                self._without[server] = str(other)
                self._act(self._membership.unfit(server, self._clock(), str(other)))
                return
            except Exception:
                # A disk or a component of ours; whoever joins waits for it, and nobody else tries again.
                _log.exception("code for %s could not be read", server)
            await asyncio.sleep(_INSTALL_AGAIN_S)

    async def _warm(self, warm: Warm) -> None:
        # Without newcomers only those that go have something to lose.
        asked = warm.before if warm.coming else warm.going
        done = await hand_over(
            self._fleet.call,
            self._catalog.version,
            before=sorted(set(asked) & set(self._membership.ring)),
            after=warm.after,
            secret=self._catalog.cluster_secret(),
            within_s=warm.within_s,
        )
        if done.moved:
            _log.info("change %d: %s", warm.change, done)
        for what in self._handed:
            self._handed[what] += getattr(done, what)
        async with self._changing:
            # Once more, for what was deployed meanwhile; nearly always this is one question.
            for server in sorted(warm.coming):
                try:
                    await self._distribution.install_all(server)
                except (PeerLost, PeerFailed):
                    pass
                except NoRoom as full:
                    self._unplaced(server, str(full))
            self._act(self._membership.warmed(warm.change, self._clock()))

    async def _publish(self, publish: Publish) -> None:
        await self._fleet.tell(self.hearing, "apply_ring", self._ring_payload())
        self._told_epoch = max(self._told_epoch, publish.epoch)
        self._say_changed()

    def _ring_payload(self) -> bytes:
        """The latest ring: an epoch that is not the last any more need not be told."""
        membership = self._membership
        secret = self._catalog.cluster_secret()
        return encode_plain({"epoch": membership.epoch, "servers": membership.ring, "secret": secret})

    async def _drain(self, drain: Drain) -> None:
        server = drain.server
        try:
            async with asyncio.timeout(drain.within_s):
                # All have to know the new ring first, or they would be refused for nothing.
                epoch = self._membership.epoch
                await self._until(lambda: self._told_epoch >= epoch)
                await self._fleet.call(server, "configure", encode_plain({"draining": True}), role="shard")
                while await self._in_flight(server):  # noqa: ASYNC110 - what is waited for is on another machine
                    await asyncio.sleep(_DRAINED_EVERY_S)
        except (PeerLost, PeerFailed, TimeoutError) as failed:
            _log.error("%s was not drained: %s", server, failed or "it did not finish in time")
        self._act(self._membership.drained(server, self._clock()))

    async def _in_flight(self, server: str) -> int:
        """How many requests of others are in work on a server."""
        return int(decode_plain(await self._fleet.call(server, "statistics", role="shard"))["in_flight"])

    def _forget(self, forget: Forget) -> None:
        self._without.pop(forget.server, None)
        watching = self._watching.pop(forget.server, None)
        if watching is not None:
            watching.cancel()

    # -------------------------------------------------------------------------------------------------------- losses

    def _begin_watching(self, server: str) -> None:
        if self._watch is None:
            return
        old = self._watching.pop(server, None)
        if old is not None:
            old.cancel()
        self._watching[server] = asyncio.create_task(self._watch_roles(server, self._watch))

    async def _watch_roles(self, server: str, watch: Watch) -> None:
        """Until one of the roles without which a server is home to nothing is gone."""

        async def one(role: str) -> None:
            with suppress(PeerLost, PeerFailed):
                await watch(f"{server}/{role}")

        roles = [asyncio.create_task(one(role)) for role in ("server", "shard")]
        try:
            await asyncio.wait(roles, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for role in roles:
                role.cancel()
        self._act(self._membership.died(server, self._clock()))

    def _unplaced(self, server: str, why: str) -> None:
        """A server did not get what is deployed: without it it is home to nothing, and it gets it when it joins.
        ``why``: of one that answers."""
        if why:
            self._without[server] = why
        if self._membership.state(server) not in (State.JOINING, State.LOST):  # who joins is not done before it has it
            self._act(self._membership.unfit(server, self._clock(), f"lacks code: {why}" if why else "lacks code"))

    def _doubt(self, server: str) -> None:
        """A call to a server broke: if it does not answer another one, it is dead."""
        if server not in self._in_doubt:
            self._in_doubt.add(server)
            self._side.begin(self._clear_doubt(server))

    async def _clear_doubt(self, server: str) -> None:
        try:
            if not await self._fleet.is_there(server, _DOUBT_S):
                self._act(self._membership.died(server, self._clock()))
        finally:
            self._in_doubt.discard(server)
