"""What a cluster promises, told as scenarios on complete servers in one process.

After each of them everything that was lent is back and nothing runs: ``CompleteServers`` checks it when it ends.
"""

import asyncio
import hashlib
from dataclasses import replace

from complete_servers import NO_COPIES, CompleteServers, Pieces, Play, collect, request, upload, wait_until
from msgspec import structs

from actors.connection import Frame
from actors.exchange import WINDOW_BYTES_MAX, Load, Request, Served
from actors.prewarm import Source
from actors.view import encode_plain
from actors.wire import REQUEST
from isolates.outcome import Outcome

MIB = 1 << 20


# ----------------------------------------------------------------------------------------------------- here or home


def test_a_request_runs_at_its_home(play: Play) -> None:
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


def test_the_home_needs_no_hop_and_gives_a_lease(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        got = await cluster[2].ask(request(worker))
        assert got.served is not None
        assert (got.served.server, got.served.hop, got.served.home) == ("server-2", False, "server-2")
        assert got.served.lease is not None
        assert got.served.lease.socket == str(cluster[2].host_socket)
        assert (await cluster[2].sharded())["offered"] == 0

    play(scenario)


def test_without_sharding_every_machine_is_a_home(play: Play) -> None:
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


def test_an_upload_and_a_large_answer_cross_the_hop_whole(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "echo", cpu_ms=10_000)
        data = bytes(range(256)) * 4096
        fields, rest = upload(data)
        got = await cluster[1].ask(request(worker, method="POST", **fields), rest)
        assert (got.ended.outcome, got.whole, len(got.body)) == (Outcome.OK, True, len(data)), got.ended.reason
        assert got.body == data
        assert (await cluster[1].sharded())["sent_bytes"] >= MIB

    play(scenario)


def test_a_body_that_breaks_off_is_never_a_short_body(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        for home in (1, 2):
            worker = await cluster.deploy_at(home, "echo")
            asked = request(worker, "/?digest", "POST", body_first=b"begin", body_complete=False)
            got = await cluster[1].ask(asked, Pieces(b"more", breaks=True))
            assert b"sha256" not in got.body
            assert not (got.whole and got.served is not None and got.served.status == 200)

    play(scenario)


def test_more_lent_than_a_server_may_lend_is_shed(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        cluster[1].server._exports.OUT_MAX = 0
        got = await cluster[1].ask(request(worker))
        assert got.ended.outcome is Outcome.LOAD_SHED

    play(scenario)


def test_a_prewarm_goes_where_the_request_would_run(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        await cluster.make_cold(2, worker)
        assert cluster[2].isolates() == 0
        await cluster[1].links.tell(str(cluster[1].server_socket), Frame.PREWARM, REQUEST.encode(request(worker)))

        async def warm() -> bool:
            return cluster[2].isolates() == 1

        await wait_until(warm, "the home is warm")
        got = await cluster[1].ask(request(worker))
        assert got.served is not None
        assert (got.served.start_type, got.served.server) == ("prewarm", "server-2")

    play(scenario)


def test_what_waits_to_be_started_holds_nothing_of_its_client(play: Play) -> None:
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


# --------------------------------------------------------------------------------------------------------- refusals


def test_a_refused_upload_runs_here_from_its_first_byte(play: Play) -> None:
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


def test_a_refusal_sticks_until_this_machines_isolate_is_gone(play: Play) -> None:
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
        await cluster.make_cold(1, worker)
        got = await cluster[1].ask(request(worker))
        assert got.served is not None
        assert got.served.server == "server-2"
        assert (await cluster[1].sharded())["offered"] == 2

    play(scenario)


def test_a_home_that_drains_is_asked_again(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        await cluster[2].configure(draining=True)
        got = await cluster[1].ask(request(worker))
        assert got.served is not None
        assert (got.served.server, got.served.refused) == ("server-1", "draining")
        assert (await cluster[1].statistics())["sticky_refusals"] == 0
        assert (await cluster[2].shard_statistics())["draining"] is True

    play(scenario)


def test_a_busy_report_grows_old(play: Play) -> None:
    """A home that was busy once takes requests again, even when nobody has told it since that it is not."""

    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        shard = cluster[2].shard
        shard._note_load(str(cluster[2].host_socket), Load(queued=3, queue_ms=900.0))
        got = await cluster[1].ask(request(worker))
        assert got.served is not None
        assert got.served.refused == "queue"
        await cluster.make_cold(1, worker)
        cluster.jump(5)
        got = await cluster[1].ask(request(worker))
        assert got.served is not None
        assert (got.served.server, got.served.refused) == ("server-2", "")

    play(scenario)


def test_an_unused_fallback_starts_nothing(play: Play) -> None:
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


def test_a_worker_that_is_asked_often_gets_a_copy_and_nobody_waits_for_it(play: Play) -> None:
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


def test_a_home_that_is_nearly_full_is_left_before_it_refuses(play: Play) -> None:
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


def test_what_ran_over_a_lease_is_known_to_the_server(play: Play) -> None:
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


def test_two_views_of_the_ring_never_loop(play: Play) -> None:
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
