"""Watching a worker live: on complete servers with real guests, and the desk alone on a clock of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from complete_servers import CompleteServers, Play, request, wait_until
from request_trees import bound, drive

from actors.exchange import Outcome, Request, RequestHead
from actors.live_desk import LiveDesk, wanted
from actors.live_tail import BATCH, Batch, LiveEvent, LiveFilter, LiveLimits, Watched, parse_filter
from actors.peer import LocalPeer, LocalPeers
from actors.stage_report import Ending
from actors.view import decode_plain, encode_plain
from actors.wire import REQUEST
from everwarm.live_reader import Away, LiveReader, Missed, NotWatched
from tests.simulation.virtual_loop import play as in_virtual_time

EVERYTHING = LiveFilter()


@asynccontextmanager
async def watching(cluster: CompleteServers, worker: str, which: LiveFilter = EVERYTHING) -> Iterator[LiveReader]:  # type: ignore[misc]
    """A reader on all servers, whose hosts know of it."""
    reader = LiveReader(
        worker, which, servers=lambda: [machine.name for machine in cluster.machines],
        peer=lambda server: cluster.peers.get(f"{server}/server"),
    )  # fmt: skip
    await reader.open()
    await hosts_know(cluster, worker, is_on=True)
    try:
        yield reader
    finally:
        await reader.close()


async def hosts_know(cluster: CompleteServers, worker: str, *, is_on: bool) -> None:
    async def known() -> bool:
        return all(machine.host._news._live.is_on(worker) is is_on for machine in cluster.machines)

    await wait_until(known, f"hosts know that {worker} is watched: {is_on}")


async def events(reader: LiveReader, count: int) -> list[LiveEvent]:
    found = [await anext(reader) for _ in range(count)]
    assert all(isinstance(each, LiveEvent) for each in found), found
    return found  # type: ignore[return-value]


def test_every_request_is_told_wherever_it_runs(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        hello = await cluster.deploy_at(2, "hello")
        other = await cluster.deploy_at(2, "echo")
        async with watching(cluster, hello) as reader:
            for edge in (1, 2):
                await cluster[edge].ask(request(hello, f"/from/{edge}?token=hunter2"))
            await cluster[2].ask(request(other))
            await cluster[2].configure(in_flight_max=0)
            await cluster[1].ask(request(hello, "/refused"))
            told = await events(reader, 3)
        assert [(e.ending.url.rpartition("localhost")[2], e.server) for e in told] == [
            ("/from/1?token=REDACTED", "server-2"), ("/from/2?token=REDACTED", "server-2"), ("/refused", "server-1"),
        ]  # fmt: skip
        first, second, _ = told
        assert (first.ending.start_type, second.ending.start_type) == ("cold", "warm")
        assert (first.ending.method, first.ending.status, first.ending.outcome) == ("GET", 200, Outcome.OK)
        assert first.ending.cpu_ms > 0
        assert first.version == cluster.version_of(hello)
        assert not first.nested

    play(scenario)


def test_what_a_guest_logs_and_how_it_fails_is_told(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        spin = await cluster.deploy_at(1, "spin", cpu_ms=20)
        caller = await cluster.deploy_at(2, "fetch", bound(callee=spin, nobody="nobody"))
        async with watching(cluster, spin) as reader, watching(cluster, "nobody") as nobodys:
            assert await drive(cluster, 2, caller, "/?url=http://callee.binding.internal/deep") is not None
            await cluster[1].ask(request(spin))
            deep, plain = await events(reader, 2)
            await cluster[2].ask(request(caller, "/?url=http://nobody.binding.internal/"))
            (unknown,) = await events(nobodys, 1)
        assert (deep.nested, plain.nested) == (True, False)
        assert deep.ending.url == "http://callee.binding.internal/deep"
        assert (deep.ending.outcome, deep.ending.status) == (Outcome.EXCEEDED_CPU, 503)
        assert deep.ending.cpu_ms >= 20
        assert deep.ending.exception == "exceededCpu"
        # Nobody ran it, so it is its caller's Server that tells.
        assert (unknown.ending.outcome, unknown.server, unknown.nested) == (Outcome.SCRIPT_NOT_FOUND, "server-2", True)

    play(scenario)


def test_a_home_that_is_lost_has_no_word_and_its_sender_tells(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        echo = await cluster.deploy_at(2, "echo")
        async with watching(cluster, echo) as reader:
            cluster.lose("server-2/shard", "serve", delivered=None)
            order = REQUEST.encode(request(echo, "/", "POST"))
            await cluster[1].server._submissions.submit(order)
            (told,) = await events(reader, 1)
        assert (told.server, told.ending.outcome, told.ending.status) == ("server-1", Outcome.HOME_LOST, 502)

    play(scenario)


def test_requests_are_told_apart_by_their_headers(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        hello = await cluster.deploy_at(2, "hello")

        def asking(canary: bytes) -> Request:
            headers = (("X-Canary", canary), ("cookie", b"session=hunter2"))
            return Request("r", hello, RequestHead("GET", "https", "a.localhost", "/", headers), "")

        async def hosts_tell() -> bool:
            return all("x-canary" in machine.host._news._live.headers for machine in cluster.machines)

        wanted_ = parse_filter(headers=["x-canary:on"])
        async with watching(cluster, hello, wanted_) as reader, watching(cluster, hello) as everything:
            await wait_until(hosts_tell, "hosts know of the header")
            for canary in (b"off", b"on, twice"):
                await cluster[1].ask(asking(canary))
            (told,) = await events(reader, 1)
            assert [each.headers for each in await events(everything, 2)] == [
                (("x-canary", "off"),), (("x-canary", "on, twice"),),
            ]  # fmt: skip
        assert told.headers == (("x-canary", "on, twice"),)

        async def hosts_forget() -> bool:
            return not any(machine.host._news._live.headers for machine in cluster.machines)

        await wait_until(hosts_forget, "nobody asks for it any more")
        assert [machine.server._live.headers for machine in cluster.machines] == [frozenset()] * 2

    play(scenario)


def test_filters_are_the_servers_work(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        hello = await cluster.deploy_at(1, "hello")
        async with watching(cluster, hello, parse_filter(methods=["POST"], search="/b")) as reader:
            for method, path in (("GET", "/b"), ("POST", "/a"), ("POST", "/b")):
                await cluster[2].ask(request(hello, path, method))
            (told,) = await events(reader, 1)
            assert (told.ending.method, told.ending.url.rpartition("localhost")[2]) == ("POST", "/b")
            assert reader._news.empty()

    play(scenario)


def test_a_reader_that_leaves_is_forgotten_everywhere(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        hello = await cluster.deploy_at(1, "hello")
        async with watching(cluster, hello), watching(cluster, hello):
            assert (await cluster[2].statistics())["live"]["open"] == 2
        await hosts_know(cluster, hello, is_on=False)
        for machine in cluster.machines:
            assert (await machine.statistics())["live"] == {"open": 0, "dropped": 0}

    play(scenario)


def test_a_server_that_is_away_is_said_once_and_the_others_are_read(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        hello = await cluster.deploy_at(1, "hello")
        lost = cluster.lose("server-2/server", "tail", delivered=False)
        reader = LiveReader(
            hello, EVERYTHING, servers=lambda: ["server-1", "server-2"],
            peer=lambda server: cluster.peers.get(f"{server}/server"),
        )  # fmt: skip
        await reader.open()
        away = await anext(reader)
        assert isinstance(away, Away)
        assert away.server == "server-2"

        async def known() -> bool:
            return cluster[1].host._news._live.is_on(hello)

        await wait_until(known, "the host knows")
        await cluster[1].ask(request(hello))
        (told,) = await events(reader, 1)
        assert told.server == "server-1"
        assert lost.lost >= 1
        await reader.close()

    play(scenario)


def test_an_eleventh_reader_is_told_why_not(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        readers = []
        try:
            for _ in range(10):
                reader = LiveReader("shop", EVERYTHING, servers=lambda: ["server-1"], peer=peer_of(cluster))
                await reader.open()
                readers.append(reader)
            with pytest.raises(NotWatched, match="10 readers watch shop already"):
                await LiveReader("shop", EVERYTHING, servers=lambda: ["server-1"], peer=peer_of(cluster)).open()
        finally:
            for reader in readers:
                await reader.close()

    play(scenario, servers=1)


def peer_of(cluster: CompleteServers) -> Callable[[str], Awaitable[Any]]:
    return lambda server: cluster.peers.get(f"{server}/server")


# ----------------------------------------------------------------------------------------------------- the desk alone


class Host:
    """Hears from a desk who is watched, as hosts do."""

    def __init__(self) -> None:
        self.told: list[tuple[float, list[str]]] = []

    async def tell(self, watched: Watched) -> None:
        self.told.append((round(asyncio.get_running_loop().time(), 3), list(watched.workers)))


def event(number: int) -> LiveEvent:
    return LiveEvent("shop", "v", "server-1", f"r{number}", f"{number:032x}", False, Ending(Outcome.OK))


async def read(desk: LiveDesk, key: str) -> Batch:
    return BATCH.decode(await desk.read_tail(encode_plain({"key": key})))


def test_a_read_waits_for_news_and_no_longer_than_it_may() -> None:
    async def scenario() -> None:
        loop, watched = asyncio.get_running_loop(), Host()
        desk = LiveDesk(watched.tell, LiveLimits(wait_s=10.0))
        key = decode_plain(await desk.tail(wanted("shop", EVERYTHING)))["key"]
        began_s = loop.time()
        assert await read(desk, key) == Batch()
        assert loop.time() - began_s == pytest.approx(10.0)
        loop.call_later(3.0, desk.happened, event(1))
        batch = await read(desk, key)
        assert ([e.request_id for e in batch.events], loop.time() - began_s) == (["r1"], pytest.approx(13.0))
        desk.happened(event(2))
        assert len((await read(desk, key)).events) == 1
        assert loop.time() - began_s == pytest.approx(13.0)

    in_virtual_time(scenario())


def test_who_is_watched_is_said_again_and_a_dead_reader_is_not() -> None:
    async def scenario() -> None:
        watched = Host()
        desk = LiveDesk(watched.tell, LiveLimits(lease_s=30.0, told_s=15.0))
        working = asyncio.create_task(desk.work())
        await asyncio.sleep(62.0)
        assert watched.told == []  # nobody watches, and nothing is said
        key = decode_plain(await desk.tail(wanted("shop", EVERYTHING)))["key"]
        assert desk.is_on("shop")
        await asyncio.sleep(40.0)
        began_s = watched.told[0][0]
        assert [(at - began_s, workers) for at, workers in watched.told] == [
            (0, ["shop"]), *[(after, ["shop"]) for after in (3, 8, 13, 18, 23, 28)], (33, []),
        ]  # fmt: skip
        assert not desk.is_on("shop")
        assert (await read(desk, key)).over
        assert desk.statistics() == {"open": 0, "dropped": 0}
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    in_virtual_time(scenario())


def test_a_read_that_waits_ends_with_its_tail() -> None:
    async def scenario() -> None:
        desk = LiveDesk(Host().tell)
        key = decode_plain(await desk.tail(wanted("shop", EVERYTHING)))["key"]
        reading = asyncio.create_task(read(desk, key))
        await asyncio.sleep(1.0)
        await desk.end_tail(encode_plain({"key": key}))
        assert (await reading).over
        assert "error" in decode_plain(await desk.tail(wanted("shop", LiveFilter(sampling=7.0))))

    in_virtual_time(scenario())


def test_a_slow_reader_hears_how_many_it_missed_and_a_new_server_begins_anew() -> None:
    async def scenario() -> None:
        desks = [LiveDesk(Host().tell, LiveLimits(events_max=5)) for _ in range(2)]
        peers = LocalPeers()
        peers.known["server-1/server"] = LocalPeer(desks[0].calls)
        reader = LiveReader(
            "shop", EVERYTHING, servers=lambda: ["server-1"], peer=lambda name: peers.get(f"{name}/server")
        )
        await reader.open()
        await asyncio.sleep(0.1)
        for number in range(12):
            desks[0].happened(event(number))
        missed = await anext(reader)
        assert missed == Missed("server-1", 7)
        assert [e.request_id for e in await events(reader, 5)] == ["r7", "r8", "r9", "r10", "r11"]
        # Its process is a new one, which knows nothing of this reader.
        peers.known["server-1/server"] = LocalPeer(desks[1].calls)
        await desks[0].end_tail(encode_plain({"key": next(iter(desks[0]._news))}))
        await asyncio.sleep(2.0)
        desks[1].happened(event(99))
        assert [e.request_id for e in await events(reader, 1)] == ["r99"]
        await reader.close()
        assert desks[1].statistics()["open"] == 0

    in_virtual_time(scenario())
