"""What a cluster promises, told as scenarios on complete servers in one process.

After each of them everything that was lent is back and nothing runs: ``CompleteServers`` checks it when it ends.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from complete_servers import (
    NO_COPIES,
    Compiled,
    CompleteServers,
    HeldBody,
    Pieces,
    collect,
    component,
    request,
    upload,
    wait_until,
)
from msgspec import structs

from actors.capability import ExportsFull
from actors.connection import Frame
from actors.exchange import WINDOW_BYTES_MAX, Load, Request, Served
from actors.prewarm import Source
from actors.view import decode_plain, encode_plain
from actors.wire import CHUNK, REQUEST, SERVED
from isolates.outcome import Outcome

Scenario = Callable[[CompleteServers], Awaitable[None]]
MIB = 1 << 20


@pytest.fixture
def play(zig: Compiled, tmp_path: Path) -> Callable[..., None]:
    """Play a scenario on a fresh cluster."""

    def run(scenario: Scenario, servers: int = 2, **made_with: Any) -> None:
        async def whole() -> None:
            made = CompleteServers(tmp_path, servers, zig.directory, **made_with)
            async with asyncio.timeout(30) as limit, made as cluster:
                cluster.limit = limit
                await scenario(cluster)

        asyncio.run(whole())

    return run


def jump(cluster: CompleteServers, seconds: float) -> None:
    """Let the event loop's clock, which the roles look at, be ``seconds`` later."""
    loop = asyncio.get_running_loop()
    before, until = loop.time, cluster.limit.when()
    loop.time = lambda: before() + seconds  # type: ignore[method-assign]
    assert until is not None
    cluster.limit.reschedule(until + seconds)


async def cold(cluster: CompleteServers, number: int, worker: str) -> None:
    """Let the isolates of a worker go on one machine, and wait until its Server knows."""
    machine, version = cluster[number], cluster.version_of(worker)
    machine.host.desk.drop_version(version)

    async def known() -> bool:
        return not machine.server._warmth.is_warm(version) and version not in machine.server._client.refusals

    await wait_until(known, f"{machine.name} knows that {worker} is cold")


# ----------------------------------------------------------------------------------------------------- here or home


def test_a_request_runs_at_its_home(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        got = await cluster[1].ask(request(worker, "/far"))
        assert got.body == b"hello from Zig\nyou asked for /far\n"
        assert (got.ended.outcome, got.whole) == (Outcome.OK, True)
        assert got.served is not None
        assert (got.served.server, got.served.home, got.served.hop) == ("server-2", "server-2", True)
        assert (got.served.start_type, got.served.refused, got.served.lease) == ("cold", "", None)
        again = await cluster[1].ask(request(worker))
        assert again.served is not None
        assert (again.served.server, again.served.start_type) == ("server-2", "warm")
        assert cluster[1].isolates() == 0

    play(scenario)


def test_the_home_needs_no_hop_and_gives_a_lease(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        got = await cluster[2].ask(request(worker))
        assert got.served is not None
        assert (got.served.server, got.served.hop, got.served.home) == ("server-2", False, "server-2")
        assert got.served.lease is not None
        assert got.served.lease.socket == str(cluster[2].host_socket)
        assert (await cluster[2].sharded())["offered"] == 0

    play(scenario)


def test_without_sharding_every_machine_is_a_home(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        for number in (1, 2):
            for start_type in ("cold", "warm"):
                served = (await cluster[number].ask(request(worker))).served
                assert served is not None
                assert (served.server, served.hop, served.start_type) == (f"server-{number}", False, start_type)
                assert served.lease is not None
                assert (served.home, served.lease.at_home) == (f"server-{number}", True)
            assert (await cluster[number].sharded())["offered"] == 0

    play(scenario, sharding=False)


def test_an_upload_and_a_large_answer_cross_the_hop_whole(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "echo", cpu_ms=10_000)
        data = bytes(range(256)) * 4096
        fields, rest = upload(data)
        got = await cluster[1].ask(request(worker, method="POST", **fields), rest)
        assert (got.ended.outcome, got.whole, len(got.body)) == (Outcome.OK, True, len(data)), got.ended.reason
        assert got.body == data
        assert (await cluster[1].sharded())["sent_bytes"] >= MIB

    play(scenario)


def test_a_body_that_breaks_off_is_never_a_short_body(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        for home in (1, 2):
            worker = await cluster.deploy_at(home, "echo")
            asked = request(worker, "/?digest", "POST", body_first=b"begin", body_complete=False)
            got = await cluster[1].ask(asked, Pieces(b"more", breaks=True))
            assert b"sha256" not in got.body
            assert not (got.whole and got.served is not None and got.served.status == 200)

    play(scenario)


# --------------------------------------------------------------------------------------------------------- refusals


def test_a_refused_upload_runs_here_from_its_first_byte(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "echo", cpu_ms=10_000)
        await cluster[2].configure(in_flight_max=0)
        data = hashlib.sha256(b"seed").digest() * (MIB // 32)
        fields, rest = upload(data)
        got = await cluster[1].ask(request(worker, "/?digest", "POST", **fields), rest)
        assert got.body == f"sha256={hashlib.sha256(data).hexdigest()} bytes={MIB}\n".encode()
        assert got.served is not None
        assert (got.served.server, got.served.refused, got.served.hop) == ("server-1", "busy", False)
        counts = await cluster[1].sharded()
        assert (counts["offered"], counts["refused"]) == (1, 1)
        head_bytes = 4_096
        assert counts["sent_bytes"] <= WINDOW_BYTES_MAX + head_bytes
        assert cluster[2].host.statistics()["outcomes"] == {}

    play(scenario)


def test_a_refusal_sticks_until_this_machines_isolate_is_gone(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        await cluster[2].configure(in_flight_max=0)
        for _ in range(5):
            got = await cluster[1].ask(request(worker))
            assert got.ended.outcome is Outcome.OK
            cluster[1].server._warmth._warm.clear()  # the host's word that it is warm may be late
        assert (await cluster[1].statistics())["sticky_refusals"] == 1
        assert (await cluster[1].sharded())["offered"] == 1
        await cluster[2].configure(in_flight_max=128)
        await cluster[1].ask(request(worker))
        assert (await cluster[1].sharded())["offered"] == 1
        await cold(cluster, 1, worker)
        got = await cluster[1].ask(request(worker))
        assert got.served is not None
        assert got.served.server == "server-2"
        assert (await cluster[1].sharded())["offered"] == 2

    play(scenario)


def test_a_home_that_drains_is_asked_again(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        await cluster[2].configure(draining=True)
        got = await cluster[1].ask(request(worker))
        assert got.served is not None
        assert (got.served.server, got.served.refused) == ("server-1", "draining")
        assert (await cluster[1].statistics())["sticky_refusals"] == 0
        assert (await cluster[2].shard_statistics())["draining"] is True

    play(scenario)


def test_a_busy_report_grows_old(play: Callable[..., None]) -> None:
    """A home that was busy once takes requests again, even when nobody has told it since that it is not."""

    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        shard = cluster[2].shard
        shard._note_load(str(cluster[2].host_socket), Load(queued=3, queue_ms=900.0))
        got = await cluster[1].ask(request(worker))
        assert got.served is not None
        assert got.served.refused == "queue"
        await cold(cluster, 1, worker)
        jump(cluster, 5)
        got = await cluster[1].ask(request(worker))
        assert got.served is not None
        assert (got.served.server, got.served.refused) == ("server-2", "")

    play(scenario)


def test_an_unused_fallback_starts_nothing(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        for _ in range(20):
            answers = await asyncio.gather(*(cluster[1].ask(request(worker)) for _ in range(10)))
            assert {a.ended.outcome for a in answers} == {Outcome.OK}, [a.ended for a in answers]
        counts = await cluster[1].sharded()
        assert (counts["answered"], counts["refused"]) == (200, 0)
        assert cluster[1].isolates() == 0
        assert cluster[1].host.statistics()["cold_starts"] == {}

    play(scenario, routing_limits=NO_COPIES)


def test_a_worker_that_is_asked_often_gets_a_copy_and_nobody_waits_for_it(play: Callable[..., None]) -> None:
    """It goes home until its copy is warm, so that becoming hot is no cold start for anybody."""

    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        seen: list[tuple[str, str]] = []
        # How many it takes depends on what a start and a hop were measured to cost.
        while len(seen) < 1_000 and seen[-2:] != [("server-1", "warm")] * 2:
            got = await cluster[1].ask(request(worker))
            assert got.served is not None
            seen.append((got.served.server, got.served.start_type))
        assert seen[0] == ("server-2", "preload")
        assert ("server-1", "prewarm") in seen, seen
        assert {start for _, start in seen} == {"preload", "prewarm", "warm"}
        here = [server for server, _ in seen].index("server-1")
        assert {server for server, _ in seen[here:]} == {"server-1"}
        told = await cluster[1].statistics()
        assert told["prewarms"]["begun"] == {"hot": 1}
        assert (await cluster[2].statistics())["prewarms"]["begun"] == {"deploy": 1}
        for machine in cluster.machines:
            assert machine.host.statistics()["cold_starts"] == {}

    play(scenario, preload=True)


def test_a_home_that_is_nearly_full_is_left_before_it_refuses(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        await cluster[2].configure(nearly_full_at=0.0)
        seen: list[Served] = []
        while len(seen) < 1_000 and not (seen and seen[-1].server == "server-1"):
            got = await cluster[1].ask(request(worker))
            assert got.served is not None
            seen.append(got.served)
        assert {served.refused for served in seen} == {""}
        assert (seen[0].server, seen[-1].server) == ("server-2", "server-1")
        assert "home nearly full" in (await cluster[1].statistics())["routes"]

    play(scenario, routing_limits=replace(NO_COPIES, popular_per_s=1 / 300))


def test_what_ran_over_a_lease_is_known_to_the_server(play: Callable[..., None]) -> None:
    """Requests that went straight to the host: it reports who was asked for, twice a second."""

    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(1, "hello")
        got = await cluster[1].ask(request(worker))
        assert got.served is not None
        lease = got.served.lease
        assert lease is not None
        assert lease.at_home
        for _ in range(10):
            await collect(await cluster[1].links.exchange(lease.socket, request(worker).under(lease), Pieces()))

        async def known() -> bool:
            return (await cluster[1].statistics())["ran_here"] == 11

        await wait_until(known, "the host has reported")
        told = await cluster[1].statistics()
        assert [name for name, _ in told["hottest"]] == [worker]
        assert told["requests"] == 1

    play(scenario)


def test_two_views_of_the_ring_never_loop(play: Callable[..., None]) -> None:
    """Server 2 is asked as home and believes in server 3: it serves, and sends nothing on."""

    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        ring = {"epoch": 1 << 60, "servers": {"server-3": 1}, "secret": b"x" * 32}
        await cluster[2].server.calls["apply_ring"](encode_plain(ring))
        got = await cluster[1].ask(request(worker))
        assert got.served is not None
        assert got.served.server == "server-2"
        assert (await cluster[2].sharded())["offered"] == 0

    play(scenario, servers=3)


# ------------------------------------------------------------------------------------------------------ a lost home


def test_an_unreachable_home_is_not_remembered(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        there = cluster.peers.known.pop("server-2/shard")
        for _ in range(2):
            got = await cluster[1].ask(request(worker, method="POST"))
            assert got.served is not None
            assert (got.served.server, got.served.hop) == ("server-1", False)
            await cold(cluster, 1, worker)
        cluster.peers.known["server-2/shard"] = there
        got = await cluster[1].ask(request(worker))
        assert got.served is not None
        assert got.served.server == "server-2"
        assert (await cluster[1].sharded())["lost"] == 2

    play(scenario)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("method", "outcome"),
    [("GET", Outcome.OK), ("PUT", Outcome.OK), ("POST", Outcome.HOME_LOST), ("PATCH", Outcome.HOME_LOST)],
)
def test_a_home_lost_after_delivery(play: Callable[..., None], method: str, outcome: Outcome, after: bool) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        cluster.lose("server-2/shard", "serve", delivered=None, after=after)
        got = await cluster[1].ask(request(worker, method=method, body_first=b"all of it"))
        assert got.ended.outcome is outcome
        if outcome is Outcome.OK:
            assert got.served is not None
            assert got.served.server == "server-1"
        else:
            assert (got.served, got.body, cluster[1].isolates()) == (None, b"", 0)
        jump(cluster, 60)  # a home that lives and whose answer was lost ends it, since nobody reads

    play(scenario)


def test_a_home_lost_while_it_reads_an_upload_is_not_repeated(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "echo")
        cluster.lose("server-2/shard", "serve", delivered=None, after=True)
        fields, rest = upload(bytes(200_000))
        got = await cluster[1].ask(request(worker, "/?digest", "PUT", **fields), rest)
        assert got.ended.outcome is Outcome.HOME_LOST
        assert cluster[1].isolates() == 0
        jump(cluster, 60)

    play(scenario)


def test_a_home_lost_in_the_middle_of_its_answer(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "stream")
        cluster.lose("server-2/shard", "read_response", delivered=None)
        answer = await cluster[1].begin(request(worker, "/?chunks=3&interval_ms=50"))
        assert await answer.served() is not None
        while await answer.read() is not None:
            pass
        assert not answer.whole  # a client must never see a clean end here
        assert (await answer.ended()).outcome is Outcome.HOME_LOST
        jump(cluster, 60)  # who believes its home lost cannot tell it; the home sees that nobody reads

    play(scenario)


# --------------------------------------------------------------------------------------------------- cancellation


@pytest.mark.parametrize("home", [1, 2])
def test_a_client_that_leaves_stops_the_guest(play: Callable[..., None], home: int) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(home, "spin", cpu_ms=60_000)
        answer = await cluster[1].begin(request(worker))

        async def running() -> bool:
            return cluster[home].host.statistics()["running"] == 1

        await wait_until(running, "the guest spins")
        answer.cancel()
        await cluster.settled()
        outcomes = cluster[home].host.statistics()["outcomes"]
        assert isinstance(outcomes, dict)
        assert set(outcomes) <= {"canceled"}

    play(scenario)


def test_a_client_that_leaves_in_the_middle_of_an_answer(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "stream")
        answer = await cluster[1].begin(request(worker, "/?chunks=10000&interval_ms=5"))
        assert await answer.served() is not None
        assert await answer.read() is not None
        answer.cancel()
        await cluster.settled()
        assert (await cluster[2].shard_statistics())["aborted"] == 1

    play(scenario)


def test_a_client_that_leaves_while_its_home_connects(play: Callable[..., None]) -> None:
    """The abort overtakes the start of the run: the guest must not run on for nobody, and nothing stays lent."""

    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "stream")
        shard = cluster[2].shard
        connecting, go = asyncio.Event(), asyncio.Event()
        links = shard._hosts._links
        exchange = links.exchange

        async def slow_exchange(*arguments: object) -> object:
            connecting.set()
            await go.wait()
            return await exchange(*arguments)  # type: ignore[arg-type]

        links.exchange = slow_exchange  # type: ignore[method-assign,assignment]
        answer = await cluster[1].begin(request(worker, "/?chunks=10000&interval_ms=10"))
        await connecting.wait()
        answer.cancel()

        async def aborted() -> bool:
            return bool((await cluster[2].shard_statistics())["aborted"] == 1)

        await wait_until(aborted, "the home has heard of it")
        go.set()
        await cluster.settled()

    play(scenario)


def test_a_client_that_leaves_before_the_verdict(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        held = cluster.delay("server-2/shard", "serve", after=True)
        answer = await cluster[1].begin(request(worker))
        await held.arrived.wait()
        answer.cancel()
        await cluster.settled()
        held.go.set()

    play(scenario)


def test_an_answer_that_comes_before_the_upload_leaves_nobody_waiting(play: Callable[..., None]) -> None:
    """The guest runs out of its time while it waits for a body; the read that it asked for ends with it."""

    async def scenario(cluster: CompleteServers) -> None:
        for home in (1, 2):
            worker = await cluster.deploy_at(home, "echo", wall_ms=200)
            body = HeldBody()
            asked = request(worker, "/?digest", "POST", body_first=b"x", body_complete=False)
            got = await cluster[1].ask(asked, body)
            assert got.ended.outcome is Outcome.EXCEEDED_WALL_TIME
            assert body.asked.is_set()
            await cluster.settled()
            assert (await cluster[1].ask(request(worker, "/?digest", "POST"))).ended.outcome is Outcome.OK

    play(scenario)


# -------------------------------------------------------------------------------------------- deploys, view, drivers


def test_a_deploy_is_known_everywhere(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        job = await cluster.deploy("hello", component("hello"))
        assert job["error"] is None
        assert job["result"]["late"] == []
        assert len({m.server._view.seq for m in cluster.machines}) == 1
        for machine in cluster.machines:
            got = await machine.ask(request("hello"))
            assert got.ended.outcome is Outcome.OK
        listed = decode_plain(await cluster.control.calls["list"](encode_plain({"after": ""})))
        assert [w["deployment"]["worker"] for w in listed["workers"]] == ["hello"]
        await cluster.control.remove(encode_plain({"name": "hello", "author": "a test"}))
        for machine in cluster.machines:
            got = await machine.ask(request("hello"))
            assert got.ended.outcome is Outcome.SCRIPT_NOT_FOUND

    play(scenario, servers=3)


def test_a_deploy_that_is_refused_changes_nothing(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        job = await cluster.deploy("hello", b"not a component")
        assert job["error"]["code"] == "notAComponent"
        job = await cluster.deploy("Not A Name", component("hello"))
        assert job["error"]["code"] == "refused"
        job = await cluster.deploy("hello", component("hello"), cpu_ms=10**9)
        assert "cpu_ms" in job["error"]["message"]
        assert {m.server._view.seq for m in cluster.machines} == {0}

    play(scenario)


def test_an_unknown_worker_is_not_found(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        got = await cluster[1].ask(request("nobody"))
        assert (got.served, got.ended.outcome) == (None, Outcome.SCRIPT_NOT_FOUND)

    play(scenario)


def test_a_server_that_missed_a_change_asks_for_everything(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        here = cluster.peers.known["server-1/server"]
        cluster.lose("server-1/server", "apply_change", delivered=False)
        first = await cluster.deploy("first", component("hello"))
        assert first["error"] is None
        assert (await cluster[1].ask(request("first"))).ended.outcome is Outcome.SCRIPT_NOT_FOUND
        cluster.peers.known["server-1/server"] = here
        await cluster.deploy("second", component("hello"))
        for worker in ("first", "second"):
            assert (await cluster[1].ask(request(worker))).ended.outcome is Outcome.OK

    play(scenario)


def test_a_change_that_arrives_during_a_sync_is_not_lost(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        held = cluster.delay("control", "snapshot", after=True)
        syncing = asyncio.create_task(cluster[1].server.sync())
        await held.arrived.wait()  # the page was made before the deploy, and arrives after it
        await cluster.deploy("late", component("hello"))
        held.go.set()
        await syncing
        assert (await cluster[1].ask(request("late"))).ended.outcome is Outcome.OK

    play(scenario)


def test_code_is_in_place_before_a_machine_joins_the_ring(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        late = cluster.machines[2]
        await cluster.control.leave(encode_plain({"server": late.name}))
        await cluster.deploy("hello", component("hello"))
        await cluster.control.join(encode_plain({"server": late.name, "weight": 1}))
        await late.server.sync()
        late.server._view.ring = None  # it runs there, whatever its home
        assert (await late.ask(request("hello"))).ended.outcome is Outcome.OK

    play(scenario, servers=3)


def test_a_deploy_during_a_join_reaches_the_newcomer(play: Callable[..., None]) -> None:
    """The newcomer was told what code there is before the deploy, and becomes a member after it."""

    async def scenario(cluster: CompleteServers) -> None:
        late = cluster.machines[2]
        await cluster.deploy("early", component("echo"))
        await cluster.control.leave(encode_plain({"server": late.name}))
        held = cluster.delay(f"{late.name}/server", "missing_code", after=True)
        joining = asyncio.create_task(cluster.control.join(encode_plain({"server": late.name, "weight": 1})))
        await held.arrived.wait()
        job = await cluster.deploy("hello", component("hello"))
        assert job["error"] is None
        held.go.set()
        await joining
        digest = job["result"]["component_digest"]
        assert decode_plain(await late.server.calls["missing_code"](encode_plain([digest]))) == []

    play(scenario, servers=3)


def test_a_machine_that_joins_during_a_deploy_gets_its_code(play: Callable[..., None]) -> None:
    """The deploy had counted the members before, and records what it deploys after."""

    async def scenario(cluster: CompleteServers) -> None:
        late = cluster.machines[2]
        await cluster.control.leave(encode_plain({"server": late.name}))
        held = cluster.delay("server-1/server", "install_code")
        deploying = asyncio.create_task(cluster.deploy("hello", component("hello")))
        await held.arrived.wait()
        await cluster.control.join(encode_plain({"server": late.name, "weight": 1}))
        held.go.set()
        job = await deploying
        digest = job["result"]["component_digest"]
        assert decode_plain(await late.server.calls["missing_code"](encode_plain([digest]))) == []

    play(scenario, servers=3)


def test_a_drivers_request_in_one_call_and_in_pieces(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        for home in (1, 2):
            worker = await cluster.deploy_at(home, "echo")
            data = bytes(50_000)
            asked = request(worker, method="POST", body_first=data)
            plain = decode_plain(await cluster[1].server.calls["submit"](REQUEST.encode(asked)))
            assert SERVED.decode(plain["served"]).server == f"server-{home}"
            chunk = CHUNK.decode(plain["chunk"])
            body = chunk.data
            while chunk.ended is None:
                chunk = CHUNK.decode(await cluster[1].server.calls["read_submitted"](plain["rest"]))
                body += chunk.data
            assert (body, chunk.ended.outcome, chunk.end) == (data, Outcome.OK, True)

    play(scenario)


@pytest.mark.parametrize("home", [1, 2])
def test_a_driver_that_does_not_want_the_rest(play: Callable[..., None], home: int) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(home, "stream")
        asked = request(worker, "/?chunks=10000&interval_ms=5")
        plain = decode_plain(await cluster[1].server.calls["submit"](REQUEST.encode(asked)))
        assert plain["rest"] is not None
        await cluster[1].server.calls["cancel_submitted"](plain["rest"])
        late = CHUNK.decode(await cluster[1].server.calls["read_submitted"](plain["rest"]))
        assert late.lost

    play(scenario)


@pytest.mark.parametrize("home", [1, 2])
def test_a_drivers_answer_that_cannot_be_lent_is_ended(play: Callable[..., None], home: int) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(home, "stream")
        cluster[1].server._submissions._out.OUT_MAX = 0
        with pytest.raises(ExportsFull):
            await cluster[1].server.calls["submit"](REQUEST.encode(request(worker, "/?chunks=10000&interval_ms=5")))

    play(scenario)


def test_more_lent_than_a_server_may_lend_is_shed(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        cluster[1].server._exports.OUT_MAX = 0
        got = await cluster[1].ask(request(worker))
        assert got.ended.outcome is Outcome.LOAD_SHED

    play(scenario)


def test_a_prewarm_goes_where_the_request_would_run(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        await cold(cluster, 2, worker)
        assert cluster[2].isolates() == 0
        await cluster[1].links.tell(str(cluster[1].server_socket), Frame.PREWARM, REQUEST.encode(request(worker)))

        async def warm() -> bool:
            return cluster[2].isolates() == 1

        await wait_until(warm, "the home is warm")
        got = await cluster[1].ask(request(worker))
        assert got.served is not None
        assert (got.served.start_type, got.served.server) == ("prewarm", "server-2")

    play(scenario)


# --------------------------------------------------------------------------------------- what must not outlive a change


def test_an_answer_that_began_before_a_deploy_brings_no_lease(play: Callable[..., None]) -> None:
    """The deploy has taken leases back already: with this one the old version would answer for ever."""

    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        server = cluster[2].server
        run, reached, go = server._hosts.run, asyncio.Event(), asyncio.Event()

        async def slowly(*arguments: Any) -> Any:
            answer = await run(*arguments)
            reached.set()
            await go.wait()
            return answer

        server._hosts.run = slowly  # type: ignore[method-assign, assignment]
        begun = asyncio.create_task(cluster[2].ask(request(worker)))
        await reached.wait()
        server._hosts.run = run  # type: ignore[method-assign]
        await cluster.deploy(worker, component("echo"))
        go.set()
        got = await begun
        assert got.served is not None
        assert got.body.startswith(b"hello from Zig")
        assert got.served.lease is None

    play(scenario)


def test_an_answer_that_began_before_a_new_ring_brings_no_lease(play: Callable[..., None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        server = cluster[2].server
        run = server._hosts.run

        async def meanwhile(*arguments: Any) -> Any:
            answer = await run(*arguments)
            ring = {"epoch": server._view.epoch + 1, "servers": {"server-1": 1}, "secret": b"s" * 32}
            await server._keeper.apply_ring(encode_plain(ring))
            return answer

        server._hosts.run = meanwhile  # type: ignore[method-assign, assignment]
        got = await cluster[2].ask(request(worker))
        assert got.served is not None
        assert (got.served.server, got.served.home, got.served.lease) == ("server-2", "server-2", None)

    play(scenario)


def test_what_waits_to_be_started_holds_nothing_of_its_client(play: Callable[..., None]) -> None:
    """Thousands may wait, and a request may have 200 KiB of head and body, its secrets among them."""

    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "echo")
        prewarmer = cluster[1].server._ahead._prewarmer
        offered: list[Request] = []

        def offer(asked: Request, source: Source) -> bool:
            offered.append(asked)
            return True

        prewarmer.offer = offer  # type: ignore[method-assign, assignment]
        fields, rest = upload(b"a secret" * 4)
        while not offered:
            asked = request(worker, "/?token=secret", "POST", **fields)
            asked = structs.replace(asked, head=replace(asked.head, headers=(("authorization", b"secret"),)))
            await cluster[1].ask(asked, rest)
        (ahead, *_) = offered
        assert b"secret" not in REQUEST.encode(ahead)
        assert (ahead.version, ahead.at_home) == (cluster.version_of(worker), False)
        assert ahead.rate_per_s > 0  # or in a full house nobody would be worth less than it
        assert ahead.body_complete

    play(scenario, preload=True)
