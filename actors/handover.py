"""Warm hand-over: what the ring is about to move is started at its new home before the ring moves it.

Both ends of it, so that what they say to each other stands in one place:

    ControlPlane (hand_over)                       each Server (Handover)
      hottest {ring as it would be}  ────────────►  of the workers that it would lose, the warm ones, hottest first
      ◄────────────────────────────  [[version, new home, requests/s], …]
      warm_up {versions, hottest first}  ────────►  at each new home: starts one isolate of each, and waits for it
      ◄────────────────────────────  {warm, failed, late}

While this goes on nothing has changed for anybody: the old home serves, and what it says is what it has. When it is
over, or when its time is, the ring moves. A worker that was missed costs a cold start, and is one of those that are
asked for least.

Nothing here can fail a change of the ring: a server that does not answer has nothing to hand over, or gets nothing.
"""

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from actors.exchange import ColdCause, Request, RequestHead
from actors.peer import Calls, PeerFailed, PeerLost
from actors.ring import Ring
from actors.view import ClusterView, decode_plain, encode_plain
from actors.worker import Version

_log = logging.getLogger("everwarm.handover")


@dataclass(frozen=True, slots=True)
class HandoverLimits:
    """Bounds of one hand-over."""

    #: Of one old home. A newcomer to four takes a fifth of each; beyond it are those that are hardly asked for.
    lost_max: int = 512
    #: For one new home: with starts of 10 ms on two threads that is 5 s, and with starts of 60 ms all of the 30 s.
    gained_max: int = 1_024
    #: Starts asked of the host at once. It has two threads for them and 256 places; prewarms of clients need some too.
    under_way_max: int = 16
    #: One start: a version may use 1 s of CPU for it, on cores that are shared. A start that the host has no room for
    #: is never heard of.
    start_s_max: float = 5.0
    #: Of the 30 s that a change may take, what stays for asking and answering.
    asking_s_max: float = 5.0


#: Calls a Server by its name: server, method, payload. ``PeerLost`` and ``PeerFailed`` as ``Peer.call``.
CallServer = Callable[[str, str, bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What became of a hand-over, for the log and the operator."""

    moved: int = 0
    warm: int = 0
    failed: int = 0
    late: int = 0


# ----------------------------------------------------------------------------------------------- the ControlPlane's end


async def hand_over(
    call: CallServer,
    version: Callable[[str], Version | None],
    *,
    before: Iterable[str],
    after: Mapping[str, int],
    secret: bytes,
    within_s: float,
    limits: HandoverLimits = HandoverLimits(),
) -> HandedOver:
    """Start at its new home what would move from the servers ``before`` if the ring had ``after`` (names and weights).

    ``version`` looks one up by its id. Over after ``within_s`` at the latest.
    """
    asking_s = min(limits.asking_s_max, within_s / 3)
    order = encode_plain({"servers": dict(after), "secret": secret, "most": limits.lost_max})
    answers = await asyncio.gather(*(_asked(call, server, "hottest", order, asking_s) for server in before))
    lost = sorted((entry for answer in answers for entry in answer or ()), key=lambda entry: -float(entry[2]))
    gained: dict[str, list[object]] = {}
    for version_id, home, _ in lost:
        if len(gained.setdefault(home, [])) >= limits.gained_max:
            continue  # before it is looked up: three hundred old homes name 150,000
        found = version(version_id)
        if found is not None:
            gained[home].append(found.to_plain())
    left_s = max(0.0, within_s - 2 * asking_s)
    done = await asyncio.gather(
        *(
            _asked(call, home, "warm_up", encode_plain({"versions": plain, "within_s": left_s}), left_s + asking_s)
            for home, plain in gained.items()
            if plain
        )
    )
    counts = {what: sum(answer[what] for answer in done if answer is not None) for what in ("warm", "failed", "late")}
    return HandedOver(len(lost), **counts)


async def _asked(call: CallServer, server: str, method: str, payload: bytes, within_s: float) -> Any:
    """What a server answered; None when it did not, in this time."""
    try:
        return decode_plain(await asyncio.wait_for(call(server, method, payload), within_s))
    except (PeerLost, PeerFailed, TimeoutError) as away:
        _log.info("%s did not answer %s: %s", server, method, away or "it took too long")
        return None


# ----------------------------------------------------------------------------------------------------- a Server's end


class Handover:
    """One Server's part: what it would lose, and starting what it will be home to.

    ``view`` is what the machine knows now; ``is_warm`` tells by a version whether it has an isolate here; ``heat`` is
    a worker's requests a second lately; ``prewarm`` asks for an isolate of a request's version here, and returns before
    it is there. Whoever hears from the hosts calls ``heard``.
    """

    def __init__(
        self,
        name: str,
        *,
        view: Callable[[], ClusterView],
        is_warm: Callable[[str], bool],
        heat: Callable[[str], float],
        prewarm: Callable[[Request], Awaitable[None]],
        limits: HandoverLimits = HandoverLimits(),
    ) -> None:
        self._name = name
        self._view = view
        self._is_warm = is_warm
        self._heat = heat
        self._prewarm = prewarm
        self._limits = limits
        self._waiting: dict[str, asyncio.Future[bool]] = {}
        self.calls: Calls = {"hottest": self.hottest, "warm_up": self.warm_up}

    async def hottest(self, payload: bytes) -> bytes:
        """The warm versions of workers whose home is here and would be elsewhere: ``[[version, home, heat], ...]``."""
        plain = decode_plain(payload)
        view, after = self._view(), Ring(0, plain["servers"], plain["secret"])
        found: list[tuple[float, str, str]] = []
        for worker, deployed in view.workers.items():
            warm = [v.version_id for v in deployed.versions if self._is_warm(v.version_id)]
            if warm and view.home_of(worker) == self._name:
                home = after.home_of(view.key_of(worker))
                if home is not None and home != self._name:
                    found += [(self._heat(worker), version, home) for version in warm]
        most = min(int(plain["most"]), self._limits.lost_max)
        return encode_plain([[version, home, heat] for heat, version, home in heapq.nlargest(most, found)])

    async def warm_up(self, payload: bytes) -> bytes:
        """Have an isolate of each of these versions, the first ones first: ``{"warm", "failed", "late"}``."""
        plain = decode_plain(payload)
        versions = [Version.from_plain(one) for one in plain["versions"][: self._limits.gained_max]]
        loop = asyncio.get_running_loop()
        until_s = loop.time() + float(plain["within_s"])
        places = asyncio.Semaphore(self._limits.under_way_max)

        async def one(version: Version) -> str:
            async with places:
                within_s = min(self._limits.start_s_max, until_s - loop.time())
                return await self._started(version, within_s) if within_s > 0 else "late"

        ends = await asyncio.gather(*(one(version) for version in versions))
        return encode_plain({what: ends.count(what) for what in ("warm", "failed", "late")})

    async def _started(self, version: Version, within_s: float) -> str:
        version_id = version.version_id
        if self._is_warm(version_id):
            return "warm"
        waiting = self._waiting.get(version_id)
        if waiting is None:
            waiting = self._waiting[version_id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(within_s):
                await self._prewarm(first_request(version))
                return "warm" if await asyncio.shield(waiting) else "failed"
        except TimeoutError:
            return "late"
        finally:
            self._waiting.pop(version_id, None)

    def heard(self, word: str, version: str) -> None:
        """A host said that a version is ``warm``, or ``cold`` again."""
        waiting = self._waiting.get(version)
        if waiting is not None and not waiting.done():
            waiting.set_result(word == "warm")


def first_request(version: Version) -> Request:
    """What starts an isolate of a version at its new home, before any request is there."""
    limits = {name: v for name, v in version.limits.to_plain().items() if v is None or isinstance(v, int)}
    return Request(
        "",
        version.worker,
        RequestHead("", "", "", ""),
        "",
        version=version.version_id,
        component_digest=version.component_digest,
        plan=version.plan.value,
        limits=limits,
        reuse=version.reuse,
        cold_cause=ColdCause.MEMBERSHIP.value,
        at_home=True,
        has_variables=version.bindings.has_variables,
        cordon=version.cordon,
    )
