"""Tail workers hear of each request tree once, whatever becomes of its stages. Real guests, on complete servers."""

from dataclasses import replace
from typing import Any

import pytest
from complete_servers import CompleteServers, Pieces, Play, component, request
from request_trees import bound, drive, heard

from actors.bindings import Bindings, DispatchBinding, Outbound, Tail
from actors.exchange import Outcome

Event = dict[str, Any]


class Platform:
    """A dispatcher with its tail at server 1, a user's worker at server 2, and a guard for what that fetches at 3."""

    def __init__(self, dispatcher: str, user: str, guard: str, tail: str) -> None:
        self.dispatcher, self.user, self.guard, self.tail = dispatcher, user, guard, tail

    @classmethod
    async def deployed(cls, cluster: CompleteServers, user: str = "fetch", guard: str = "hello", **limits: int) -> Any:
        tail = await cluster.deploy_at(1, "tail")
        users = await cluster.deploy_at(2, user, namespace="customers", **limits)
        guards = await cluster.deploy_at(3, guard)
        bindings = Bindings(
            dispatch=(DispatchBinding("dispatch", "customers"),), outbound=Outbound(guards), tail=Tail((tail,))
        )
        return cls(await cluster.deploy_at(1, "fetch", bindings), users, guards, tail)

    @property
    def path(self) -> str:
        """What makes the dispatcher call the user's worker, and that fetch something from the world."""
        name = self.user.partition("/")[2]
        return f"/?url=http://{name}.dispatch.internal/?url=http://origin.invalid/secret"


def stages(events: list[Event]) -> list[tuple[str | None, str]]:
    return [(event["scriptName"], event["outcome"]) for event in events]


@pytest.mark.parametrize("refusing", [(), (1,), (2,), (3,), (1, 2, 3)])
def test_a_tree_over_three_servers_is_heard_once_whoever_refuses(play: Play, refusing: tuple[int, ...]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        platform = await Platform.deployed(cluster)
        for number in refusing:
            await cluster[number].configure(draining=True)
        for edge in (1, 2, 3):
            status, body = await drive(cluster, edge, platform.dispatcher, platform.path)
            assert (status, body) == (200, b"hello from Zig\nyou asked for /secret\n")
            (events,) = await heard(cluster, edge, platform.tail)
            assert stages(events) == [
                (platform.dispatcher, "ok"), (platform.user.partition("/")[2], "ok"), (platform.guard, "ok"),
            ]  # fmt: skip
            shop, user, guard = (event["everwarm"] for event in events)
            assert (shop["parent"], user["parent"], guard["parent"]) == (None, shop["stage"], user["stage"])
            assert all(event["everwarm"]["reported"] for event in events)
            assert all(event["cpuTime"] > 0 and event["everwarm"]["startType"] for event in events)
            assert [event["event"]["request"]["method"] for event in events] == ["GET", "GET", "GET"]
            assert events[1]["dispatchNamespace"] == "customers"
            assert events[2]["event"] == {
                "request": {"method": "GET", "url": "http://origin.invalid/secret"}, "response": {"status": 200},
            }  # fmt: skip
            tails = (await cluster[edge].statistics())["tails"]
            assert (tails["trees"], tails["told"], tails["flows"]) == (1, 1, 0)

    play(scenario, servers=3)


def test_a_users_worker_over_its_limit_is_heard_whatever_is_answered(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        platform = await Platform.deployed(cluster, user="spin", cpu_ms=5)
        status, _ = await drive(cluster, 1, platform.dispatcher, platform.path)
        assert status == 429
        (events,) = await heard(cluster, 1, platform.tail)
        assert stages(events) == [(platform.dispatcher, "ok"), (platform.user.partition("/")[2], "exceededCpu")]
        assert events[1]["cpuTime"] >= 5
        assert events[1]["event"]["response"] is None
        assert events[0]["event"]["response"] == {"status": 429}

    play(scenario, servers=3)


@pytest.mark.parametrize(
    ("method", "delivered", "status", "outcome"),
    [("POST", True, 502, "homeLost"), ("POST", False, 200, "ok"), ("GET", True, 200, "ok"), ("GET", False, 200, "ok")],
)
def test_a_stage_whose_machine_is_lost(play: Play, method: str, delivered: bool, status: int, outcome: str) -> None:
    """What may have run is not run again, and is told as lost; a GET is, and is one stage all the same."""

    async def scenario(cluster: CompleteServers) -> None:
        platform = await Platform.deployed(cluster, user="hello")
        cluster.lose("server-2/shard", "serve", delivered=delivered)
        got = await cluster[1].ask(request(platform.dispatcher, platform.path, method))
        assert got.served is not None
        assert got.served.status == status
        (events,) = await heard(cluster, 1, platform.tail)
        assert stages(events) == [(platform.dispatcher, "ok"), (platform.user.partition("/")[2], outcome)]

    play(scenario, servers=3)


def test_a_client_that_leaves_is_heard_of_once(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        platform = await Platform.deployed(cluster, guard="spin")
        answer = await cluster[1].begin(request(platform.dispatcher, platform.path), Pieces())
        await cluster.running(3)
        answer.cancel()
        await cluster.settled()
        (events,) = await heard(cluster, 1, platform.tail)
        assert [event["outcome"] for event in events] == ["canceled"] * 3
        assert all(event["everwarm"]["reported"] for event in events)

    play(scenario, servers=3)


def test_nobody_by_that_name_is_a_stage_too(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        platform = await Platform.deployed(cluster)
        platform.user = "customers/nobody"
        assert (await drive(cluster, 1, platform.dispatcher, platform.path))[0] == 404
        (events,) = await heard(cluster, 1, platform.tail)
        assert stages(events) == [(platform.dispatcher, "ok"), ("nobody", "scriptNotFound")]

    play(scenario, servers=3)


def test_workers_that_are_each_others_tails_are_not_asked_for_ever(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        first, second = "first", "second"
        for name, other in ((first, second), (second, first)):
            bindings = replace(bound(other=other), tail=Tail((other,)))
            assert (await cluster.deploy(name, component("tail"), bindings, cpu_ms=10_000))["error"] is None
        await drive(cluster, 1, first, "/")
        (events,) = await heard(cluster, 1, second)
        assert stages(events) == [(first, "ok")]
        tails = (await cluster[1].statistics())["tails"]
        assert (tails["trees"], tails["told"], tails["failed"]) == (1, 1, 0)

    play(scenario, servers=1)


def test_a_tree_begins_for_a_tail_where_its_first_worker_with_one_is_called(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        tail = await cluster.deploy_at(1, "tail")
        leaf = await cluster.deploy_at(3, "hello")
        middle = await cluster.deploy_at(2, "fetch", replace(bound(leaf=leaf), tail=Tail((tail,))))
        root = await cluster.deploy_at(1, "fetch", bound(middle=middle))
        path = "/?url=http://middle.binding.internal/?url=http://leaf.binding.internal/far"
        for _ in range(2):
            assert (await drive(cluster, 3, root, path))[1] == b"hello from Zig\nyou asked for /far\n"
        for events in await heard(cluster, 1, tail, times=2):
            assert stages(events) == [(middle, "ok"), (leaf, "ok")]

    play(scenario, servers=3)


def test_what_a_worker_writes_is_heard(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        tail = await cluster.deploy_at(1, "tail")
        writer = await cluster.deploy_at(2, "tail", Bindings(tail=Tail((tail,))))
        said = b"out of stock: 7"
        asked = request(writer, method="POST", body_first=said)
        got = await cluster[1].ask(asked)
        assert (got.ended.outcome, got.served is not None and got.served.lease) == (Outcome.OK, None)
        (events,) = await heard(cluster, 1, tail)
        assert [(line["level"], line["message"]) for line in events[0]["logs"]] == [("stdout", [said.decode()])]

    play(scenario, servers=3)
