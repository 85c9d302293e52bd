"""Prewarms as they are carried out: begun on the host, heard of, and waited for with a bound."""

import asyncio
from collections.abc import Awaitable, Callable

from actors.connection import Frame, LinkBroken
from actors.exchange import Request, RequestHead
from actors.prewarm import PrewarmLimits, Source
from actors.prewarmer import Prewarmer


def a_request(version: str) -> Request:
    return Request("id", f"worker of {version}", RequestHead("", "", "", ""), "", version=version)


class Host:
    """What the host was told; it may be away."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Frame]] = []
        self.heard = asyncio.Event()
        self.away = False

    async def tell(self, request: Request, kind: Frame) -> None:
        if self.away:
            raise LinkBroken("away")
        self.told.append((request.version, kind))
        self.heard.set()


def played(scenario: Callable[[Prewarmer, Host], Awaitable[None]], limits: PrewarmLimits | None = None) -> None:
    async def whole() -> None:
        host = Host()
        prewarmer = Prewarmer(2, host.tell, a_request, limits)
        working = asyncio.create_task(prewarmer.work())
        async with asyncio.timeout(10):
            await scenario(prewarmer, host)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    asyncio.run(whole())


def test_begun_as_the_source_says() -> None:
    async def scenario(prewarmer: Prewarmer, host: Host) -> None:
        prewarmer.offer(a_request("a"), Source.SERVER_NAME)
        prewarmer.offer(a_request("a"), Source.HOT)
        prewarmer.offer(a_request("b"), Source.HANDOVER)
        while len(host.told) < 2:
            await host.heard.wait()
            host.heard.clear()
        assert sorted(host.told) == [("a", Frame.PREWARM), ("b", Frame.PRELOAD)]

    played(scenario)


def test_who_waits_hears_how_it_ended() -> None:
    async def scenario(prewarmer: Prewarmer, host: Host) -> None:
        async def ended(version: str, *, warm: bool) -> bool:
            waiting = asyncio.create_task(prewarmer.offer_and_wait(a_request(version), Source.DEPLOY, 5.0))
            await host.heard.wait()
            host.heard.clear()
            prewarmer.over(version, warm=warm)
            return await waiting

        assert await ended("a", warm=True)
        assert not await ended("b", warm=False)
        assert not await prewarmer.offer_and_wait(a_request("never heard of"), Source.DEPLOY, 0.01)
        assert prewarmer._waiters == {}

    played(scenario)


def test_two_who_wait_for_the_same_start_one() -> None:
    async def scenario(prewarmer: Prewarmer, host: Host) -> None:
        both = [
            asyncio.create_task(prewarmer.offer_and_wait(a_request("a"), source, 5.0))
            for source in (Source.DEPLOY, Source.HANDOVER)
        ]
        await host.heard.wait()
        prewarmer.over("a", warm=True)
        assert await asyncio.gather(*both) == [True, True]
        assert host.told == [("a", Frame.PRELOAD)]

    played(scenario)


def test_a_host_that_is_away_holds_nobody_up() -> None:
    async def scenario(prewarmer: Prewarmer, host: Host) -> None:
        host.away = True
        assert not await prewarmer.offer_and_wait(a_request("a"), Source.DEPLOY, 5.0)
        host.away = False
        prewarmer.offer(a_request("b"), Source.DEPLOY)
        await host.heard.wait()
        assert host.told == [("b", Frame.PRELOAD)]
        assert prewarmer.statistics()["unstarted"] == 1

    played(scenario, PrewarmLimits(under_way_max=1))


def test_a_worker_with_a_habit_is_started_before_it_is_due() -> None:
    async def whole() -> None:
        host, now_s = Host(), 0.0
        prewarmer = Prewarmer(2, host.tell, a_request, clock=lambda: now_s)
        for _ in range(8):
            prewarmer.used("w")  # every half hour
            now_s += 1_800.0
        now_s -= 300.0  # so it is due in five minutes
        prewarmer._look_at_agenda()
        assert prewarmer.queue.next(now_s) is None
        now_s += 200.0
        prewarmer._look_at_agenda()
        begun = prewarmer.queue.next(now_s)
        assert begun is not None
        assert (begun.source, begun.recipe.worker) == (Source.NEXT_USE, "worker of w")

    asyncio.run(whole())


def test_a_prewarm_that_breaks_is_not_the_last() -> None:
    async def scenario(prewarmer: Prewarmer, host: Host) -> None:
        tell, faults = prewarmer._tell_host, [RuntimeError("a bug")]

        async def telling(request: Request, kind: Frame) -> None:
            if faults:
                raise faults.pop()
            await tell(request, kind)

        prewarmer._tell_host = telling
        prewarmer.offer(a_request("a"), Source.HOT)
        prewarmer.offer(a_request("b"), Source.HOT)
        await host.heard.wait()
        assert host.told == [("b", Frame.PREWARM)]

    played(scenario)
