"""Calls between guests of one host, on complete servers: what holds by way of the Server holds here."""

import asyncio
import dataclasses
from typing import Any

import msgspec
import pytest
from complete_servers import CompleteServers, Got, Pieces, Play, component, request, upload, wait_until
from request_trees import bound, drive, spans_at

from actors.bindings import Bindings, DispatchBinding, Outbound
from actors.connection import Frame
from actors.exchange import Outcome
from actors.handover import first_request
from tracing.trace import Attr, SpanName

CALL = "/?url=http://callee.binding.internal/"


def inner(cluster: CompleteServers, number: int = 1) -> dict[str, int]:
    """What a machine's host counts."""
    counts = cluster[number].host.statistics()["inner_calls"]
    assert isinstance(counts, dict)
    return counts


async def until_leased(cluster: CompleteServers, leases: int = 1) -> None:
    """Leases come beside the answer of the first call, which the Server carries out."""

    async def leased() -> bool:
        return inner(cluster)["leases"] >= leases

    await wait_until(leased, f"{leases} leases")


async def by_the_server(cluster: CompleteServers) -> int:
    """How many calls Servers have carried out."""
    return sum([int((await machine.statistics())["nested"]["calls"]) for machine in cluster.machines])


async def ask_until_inner(cluster: CompleteServers, worker: str, path: str = CALL, **fields: Any) -> Got:
    """The answer of the first request whose calls all stayed in the host."""
    got: list[Got] = []

    async def stayed() -> bool:
        before, calls = await by_the_server(cluster), inner(cluster)["calls"]
        got[:] = [await cluster[1].ask(request(worker, path, **fields))]
        return await by_the_server(cluster) == before and inner(cluster)["calls"] > calls

    await wait_until(stayed, "calls stay in the host")
    return got[0]


def test_a_call_to_a_warm_worker_of_the_same_host_does_not_leave_it(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        callee = await cluster.deploy_at(1, "hello")
        caller = await cluster.deploy_at(1, "fetch", bound(callee=callee))
        first = await cluster[1].ask(request(caller, CALL))
        assert (await by_the_server(cluster), inner(cluster)["calls"]) == (1, 0)
        await until_leased(cluster)
        for number in range(1, 4):
            got = await cluster[1].ask(request(caller, CALL))
            assert got.served is not None
            assert (got.served.status, got.body, got.ended.outcome) == (200, first.body, Outcome.OK)
            assert (await by_the_server(cluster), inner(cluster)["calls"]) == (1, number)
        assert inner(cluster)["running"] == 0

    play(scenario, servers=1)


def test_an_inner_stage_is_in_the_trace_below_its_caller(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        callee = await cluster.deploy_at(1, "hello")
        caller = await cluster.deploy_at(1, "fetch", bound(callee=callee))
        await ask_until_inner(cluster, caller)
        before = await by_the_server(cluster)
        assert (await drive(cluster, 1, caller, CALL))[0] == 200
        assert await by_the_server(cluster) == before
        spans = await spans_at(cluster, 1, stages=2)
        root, stage = sorted((s for s in spans if s.name == SpanName.REQUEST), key=lambda s: s.start_ns)
        handlers = {s.attributes[Attr.WORKER]: s for s in spans if s.name == SpanName.HANDLER}
        assert (root.attributes[Attr.WORKER], stage.attributes[Attr.WORKER]) == (caller, callee)
        assert stage.parent_span_id == handlers[caller].span_id
        assert handlers[callee].parent_span_id == stage.span_id
        assert (stage.attributes[Attr.DEPTH], stage.attributes[Attr.BINDING]) == (1, "callee")
        assert stage.attributes[Attr.START_TYPE] == "warm"
        assert stage.attributes[Attr.OUTCOME] == "ok"

    play(scenario, servers=1)


def test_bodies_stream_both_ways_within_a_host(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        callee = await cluster.deploy_at(1, "echo")
        caller = await cluster.deploy_at(1, "fetch", bound(callee=callee))
        await ask_until_inner(cluster, caller)
        before = await by_the_server(cluster)
        data = bytes(range(256)) * 8192
        fields, rest = upload(data)
        got = await cluster[1].ask(request(caller, CALL, method="POST", **fields), rest)
        assert (got.ended.outcome, got.whole, len(got.body)) == (Outcome.OK, True, len(data)), got.ended.reason
        assert got.body == data
        assert await by_the_server(cluster) == before

    play(scenario, servers=1)


@pytest.mark.parametrize(("guest", "status"), [("spin", 429), ("trap", 502), ("silent", 502)])
def test_an_ending_of_an_inner_callee_is_an_answer_for_its_caller(play: Play, guest: str, status: int) -> None:
    """Its isolate is torn, and the next call finds none: that one goes by the Server, which has another one started."""

    async def scenario(cluster: CompleteServers) -> None:
        callee = await cluster.deploy_at(1, guest, cpu_ms=20)
        caller = await cluster.deploy_at(1, "fetch", bound(callee=callee))
        warm = cluster[1].server._view.workers[callee].versions[0]
        endings: list[tuple[int, Outcome]] = []

        async def stayed() -> bool:
            calls = inner(cluster)["calls"]
            await cluster[1].server._hosts.tell(first_request(warm), Frame.PREWARM)
            got = await cluster[1].ask(request(caller, CALL))
            assert got.served is not None
            endings.append((got.served.status, got.ended.outcome))
            return inner(cluster)["calls"] > calls

        await wait_until(stayed, "a call stays in the host")
        assert set(endings) == {(status, Outcome.OK)}

    play(scenario, servers=1)


def test_a_tree_that_stays_here_ends_at_the_sixteenth_all_the_same(play: Play) -> None:
    """Its shares are asked for from caller to caller in the host, and the last word is the Server's."""

    async def scenario(cluster: CompleteServers) -> None:
        assert (await cluster.deploy("ring", component("fetch"), bound(callee="ring"), cpu_ms=1_000))["error"] is None
        path = "/" + "?url=http://callee.binding.internal/" * 20

        async def stayed() -> bool:
            before, calls = await by_the_server(cluster), inner(cluster)["calls"]
            got = await cluster[1].ask(request("ring", path))
            assert (got.ended.outcome, got.body) == (Outcome.OK, b"loop-detected\n")
            made = inner(cluster)["calls"] - calls
            assert made + await by_the_server(cluster) - before == 15
            await cluster.settled()
            return made == 15

        await wait_until(stayed, "all fifteen calls stay in the host")
        counts = (await cluster[1].statistics())["nested"]
        assert (counts["shares_lost"], counts["lent_out"], counts["stages"]) == (0, 0, 0)

    play(scenario, servers=1)


def test_books_are_begun_with_what_was_called_before(play: Play) -> None:
    """A first call is entered only when there is a second one, or one that the Server carries out, beside it."""

    async def scenario(cluster: CompleteServers) -> None:
        near, far = await cluster.deploy_at(1, "hello"), await cluster.deploy_at(2, "hello")
        root = await cluster.deploy_at(1, "fetch", bound(callee=near, far=far))
        await ask_until_inner(cluster, root)
        before = await by_the_server(cluster) + inner(cluster)["calls"]
        got = await cluster[1].ask(request(root, "/?times=5&url=http://callee.binding.internal/"))
        assert got.body == b"5\n"
        assert await by_the_server(cluster) + inner(cluster)["calls"] == before + 5
        both = request(root)
        urls = b"http://callee.binding.internal/ http://far.binding.internal/ http://callee.binding.internal/"
        asked = msgspec.structs.replace(both, head=dataclasses.replace(both.head, headers=(("fetch-url", urls),)))
        for _ in range(3):
            before = await by_the_server(cluster) + inner(cluster)["calls"]
            got = await cluster[1].ask(asked)
            assert got.body.count(b"200") == 3, got.body
            assert await by_the_server(cluster) + inner(cluster)["calls"] == before + 3
            await cluster.settled()
        counts = (await cluster[1].statistics())["nested"]
        assert (counts["lent_out"], counts["stages"]) == (0, 0)

    play(scenario, servers=2)


@pytest.mark.parametrize("far", [1, 2])
def test_what_can_not_stay_takes_the_books_along(play: Play, far: int) -> None:
    """A callee here calls one whose home is elsewhere, or a world that is not there."""

    async def scenario(cluster: CompleteServers) -> None:
        leaf = await cluster.deploy_at(2, "hello")
        middle = await cluster.deploy_at(1, "fetch", bound(leaf=leaf, near=await cluster.deploy_at(1, "hello")))
        root = await cluster.deploy_at(1, "fetch", bound(callee=middle))
        await ask_until_inner(cluster, root, f"{CALL}?url=http://near.binding.internal/")
        url = "http://leaf.binding.internal/far" if far == 2 else "http://origin.invalid/"
        expected = b"hello from Zig\nyou asked for /far\n" if far == 2 else b"DNS-error\n"
        for _ in range(3):
            calls, handed = inner(cluster)["calls"], inner(cluster)["handed_over"]
            got = await cluster[1].ask(request(root, f"{CALL}?url={url}"))
            assert got.body == expected
            assert (inner(cluster)["calls"] - calls, inner(cluster)["handed_over"] - handed) == (1, 1)
        await cluster.settled()
        counts = (await cluster[1].statistics())["nested"]
        assert (counts["shares_lost"], counts["lent_out"], counts["stages"]) == (0, 0, 0)

    play(scenario, servers=2)


def test_what_a_users_worker_fetches_goes_through_the_outbound_worker_within_a_host(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        user = await cluster.deploy_at(1, "fetch", namespace="customers", cordon="default")
        guard = await cluster.deploy_at(1, "hello")
        bindings = Bindings(dispatch=(DispatchBinding("dispatch", "customers"),), outbound=Outbound(guard))
        dispatcher = await cluster.deploy_at(1, "fetch", bindings)
        name = user.partition("/")[2]
        path = f"/?url=http://{name}.dispatch.internal/?url=http://origin.invalid/secret"
        got = await ask_until_inner(cluster, dispatcher, path)
        assert got.body == b"hello from Zig\nyou asked for /secret\n"
        calls = inner(cluster)["calls"]
        await cluster[1].ask(request(dispatcher, path))
        assert inner(cluster)["calls"] == calls + 2

    play(scenario, servers=1)


def test_a_deploy_takes_the_lease_back(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        callee = await cluster.deploy_at(1, "hello")
        caller = await cluster.deploy_at(1, "fetch", bound(callee=callee))
        await ask_until_inner(cluster, caller)
        assert (await cluster.deploy(callee, component("trap"), cpu_ms=10_000))["error"] is None

        async def taken_back() -> bool:
            return inner(cluster)["leases"] == 0

        await wait_until(taken_back, "the lease is taken back")
        got = await cluster[1].ask(request(caller, CALL))
        assert got.served is not None
        assert got.served.status == 502

    play(scenario, servers=1)


def test_without_a_server_that_could_take_them_back_there_are_no_leases(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        callee = await cluster.deploy_at(1, "hello")
        caller = await cluster.deploy_at(1, "fetch", bound(callee=callee))
        await ask_until_inner(cluster, caller)
        for host in cluster[1].server._subscribers._hosts.values():
            host.connection.close()

        async def again() -> bool:
            return (await by_the_server(cluster)) > before

        before = await by_the_server(cluster)

        async def gone() -> bool:
            await cluster[1].ask(request(caller, CALL))
            return await again()

        await wait_until(gone, "calls go by the Server again")
        await ask_until_inner(cluster, caller)

    play(scenario, servers=1)


@pytest.mark.parametrize("guest", ["spin", "stream"])
def test_a_client_that_leaves_stops_an_inner_callee(play: Play, guest: str) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        callee = await cluster.deploy_at(1, guest, cpu_ms=60_000)
        caller = await cluster.deploy_at(1, "fetch", bound(callee=callee))
        path = f"{CALL}?chunks=100000&interval_ms=5"

        async def running(wanted: int) -> None:
            async def run() -> bool:
                return int(str(cluster[1].host.statistics()["running"])) == wanted

            await wait_until(run, f"{wanted} run")

        async def stayed() -> bool:
            calls = inner(cluster)["calls"]
            warm = cluster[1].server._view.workers[callee].versions[0]
            await cluster[1].server._hosts.tell(first_request(warm), Frame.PREWARM)
            answer = await cluster[1].begin(request(caller, path), Pieces())
            await running(2)
            if guest == "stream":
                assert await answer.served() is not None
                assert await answer.read()
            answer.cancel()
            await running(0)
            await cluster.settled()
            return inner(cluster)["calls"] > calls

        await wait_until(stayed, "a call stays in the host")

        async def none_runs() -> bool:
            return inner(cluster)["running"] == 0

        await wait_until(none_runs, "no call runs")

    play(scenario, servers=1)


def test_calls_at_once_find_an_isolate_each_or_go_by_the_server(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        callee = await cluster.deploy_at(1, "stream")
        caller = await cluster.deploy_at(1, "fetch", bound(callee=callee))
        path = f"{CALL}?chunks=3&interval_ms=5"
        await ask_until_inner(cluster, caller, path)
        before = await by_the_server(cluster) + inner(cluster)["calls"]
        answers = await asyncio.gather(*(cluster[1].ask(request(caller, path)) for _ in range(12)))
        assert {(got.ended.outcome, got.whole) for got in answers} == {(Outcome.OK, True)}
        assert len({got.body for got in answers}) == 1
        assert await by_the_server(cluster) + inner(cluster)["calls"] == before + 12

    play(scenario, servers=1)
