"""Deploys and rings as they become known on complete servers, also to one that missed them or joins meanwhile."""

import asyncio
from typing import Any

from complete_servers import CompleteServers, Play, component, request

from actors.view import decode_plain, encode_plain
from isolates.outcome import Outcome


def test_a_deploy_is_known_everywhere(play: Play) -> None:
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


def test_a_deploy_that_is_refused_changes_nothing(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        job = await cluster.deploy("hello", b"not a component")
        assert job["error"]["code"] == "notAComponent"
        job = await cluster.deploy("Not A Name", component("hello"))
        assert job["error"]["code"] == "refused"
        job = await cluster.deploy("hello", component("hello"), cpu_ms=10**9)
        assert "cpu_ms" in job["error"]["message"]
        assert {m.server._view.seq for m in cluster.machines} == {0}

    play(scenario)


def test_an_unknown_worker_is_not_found(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        got = await cluster[1].ask(request("nobody"))
        assert (got.served, got.ended.outcome) == (None, Outcome.SCRIPT_NOT_FOUND)

    play(scenario)


def test_a_server_that_missed_a_change_asks_for_everything(play: Play) -> None:
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


def test_a_change_that_arrives_during_a_sync_is_not_lost(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        held = cluster.delay("control", "snapshot", after=True)
        syncing = asyncio.create_task(cluster[1].server.sync())
        await held.arrived.wait()  # the page was made before the deploy, and arrives after it
        await cluster.deploy("late", component("hello"))
        held.go.set()
        await syncing
        assert (await cluster[1].ask(request("late"))).ended.outcome is Outcome.OK

    play(scenario)


def test_code_is_in_place_before_a_machine_joins_the_ring(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        late = cluster.machines[2]
        await cluster.control.leave(encode_plain({"server": late.name}))
        await cluster.deploy("hello", component("hello"))
        await cluster.control.join(encode_plain({"server": late.name, "weight": 1}))
        await late.server.sync()
        late.server._view.ring = None  # it runs there, whatever its home
        assert (await late.ask(request("hello"))).ended.outcome is Outcome.OK

    play(scenario, servers=3)


def test_a_deploy_during_a_join_reaches_the_newcomer(play: Play) -> None:
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


def test_a_machine_that_joins_during_a_deploy_gets_its_code(play: Play) -> None:
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


def test_an_answer_that_began_before_a_deploy_brings_no_lease(play: Play) -> None:
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


def test_an_answer_that_began_before_a_new_ring_brings_no_lease(play: Play) -> None:
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
