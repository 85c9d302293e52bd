"""A server on each node, with Ray's nodes from a list and the cluster's actors from a script, in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from everwarm.cluster import Place, StartFailed
from everwarm.cluster_config import ClusterConfig
from everwarm.node_keeper import NodeKeeper
from everwarm.nodes import Node
from tests.simulation.virtual_loop import play

HEAD, OTHER = Node("h", "10.0.0.1"), Node("o", "10.0.0.2")
FIRST, SECOND = "node-10-0-0-1", "node-10-0-0-2"


class ScriptedCluster:
    """Servers come in a second and go in one. One in ``broken`` does not come, one in ``stuck`` never answers."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.ports: dict[str, int] = {}
        self.broken: set[str] = set()
        self.stuck: set[str] = set()
        self.said: list[str] = []

    async def start_control(self) -> None:
        self.said.append("control")

    async def bring(self, server: str, place: Place) -> None:
        self.places[server] = place
        try:
            if server in self.stuck:
                await asyncio.Event().wait()
            await asyncio.sleep(1.0)
            if server in self.broken:
                raise StartFailed(f"{server} is broken.")
        except BaseException:
            del self.places[server]
            raise
        self.ports[server] = place.edge_port
        self.said.append(f"{server} came")

    async def remove(self, server: str, progress: Callable[[str], None]) -> None:
        await asyncio.sleep(1.0)
        await self.forget(server)
        self.said.append(f"{server} left")

    async def forget(self, server: str) -> None:
        self.places.pop(server, None)
        self.ports.pop(server, None)

    async def stop(self) -> None:
        self.said.append("stopped")


class Town:
    """A keeper, its nodes and its cluster."""

    def __init__(self, *nodes: Node) -> None:
        self.nodes = list(nodes)
        self.cluster = ScriptedCluster()
        self.progress: list[str] = []
        self.changes = 0
        self.looks_fail = False
        config = ClusterConfig(home="/head", servers=1, address="", ray_address="10.0.0.1:6379")
        self.keeper = NodeKeeper(
            self.cluster,  # type: ignore[arg-type]
            config,
            own_node="h",
            look=self.look,
            progress=self.progress.append,
            clock=lambda: asyncio.get_running_loop().time(),
        )
        self.keeper.on_changed = self.changed

    async def look(self) -> list[Node]:
        if self.looks_fail:
            raise RuntimeError("Ray's head is busy")
        return list(self.nodes)

    def changed(self) -> None:
        self.changes += 1

    def run(self, scenario: Callable[["Town"], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            try:
                await scenario(self)
            finally:
                await self.keeper.stop()

        play(whole())
        assert self.cluster.said[-1] == "stopped"


async def refused(asked: Awaitable[object]) -> str:
    with pytest.raises(StartFailed) as why:
        await asked
    return str(why.value)


def test_each_node_gets_a_server_that_listens_where_the_node_is() -> None:
    async def scenario(town: Town) -> None:
        await town.keeper.start(town.progress.append)
        assert town.cluster.ports == {FIRST: 8443, SECOND: 8443}
        first, second = town.cluster.places[FIRST], town.cluster.places[SECOND]
        assert (first.node, first.config.home, first.config.address) == ("h", "/head", "10.0.0.1")
        assert (second.node, second.config.home, second.config.line_address) == ("o", "", "10.0.0.2")
        assert set(second.config.edges) == {"10.0.0.1", "10.0.0.2"}

    Town(HEAD, OTHER).run(scenario)


def test_a_node_that_joins_gets_its_server_and_one_that_dies_is_forgotten() -> None:
    async def scenario(town: Town) -> None:
        await town.keeper.start(town.progress.append)
        town.nodes.append(OTHER)
        await asyncio.sleep(2.0)
        assert sorted(town.cluster.ports) == [FIRST, SECOND]
        town.nodes.remove(OTHER)
        await asyncio.sleep(0.6)
        assert sorted(town.cluster.places) == [FIRST]
        assert town.changes == 3

    Town(HEAD).run(scenario)


def test_a_node_that_dies_while_its_server_comes_keeps_nobody_waiting() -> None:
    async def scenario(town: Town) -> None:
        town.cluster.stuck = {SECOND}
        starting = asyncio.create_task(town.keeper.start(town.progress.append))
        await asyncio.sleep(2.0)
        town.nodes.remove(OTHER)
        await starting
        await asyncio.sleep(0.0)
        assert sorted(town.cluster.places) == [FIRST]
        town.cluster.stuck = set()
        town.nodes.append(Node("o2", OTHER.address))
        await asyncio.sleep(2.0)
        assert sorted(town.cluster.ports) == [FIRST, SECOND]

    Town(HEAD, OTHER).run(scenario)


def test_one_machine_that_is_broken_does_not_keep_the_cluster_down() -> None:
    async def scenario(town: Town) -> None:
        town.cluster.broken = {SECOND}
        await town.keeper.start(town.progress.append)
        assert sorted(town.cluster.ports) == [FIRST]
        assert f"{SECOND} is broken." in town.progress
        town.cluster.broken = set()
        await asyncio.sleep(4.0)
        assert sorted(town.cluster.ports) == [FIRST, SECOND]

    Town(HEAD, OTHER).run(scenario)


def test_without_any_server_the_start_says_why() -> None:
    async def scenario(town: Town) -> None:
        town.cluster.broken = {FIRST}
        assert await refused(town.keeper.start(town.progress.append)) == f"{FIRST} is broken."

    Town(HEAD).run(scenario)


def test_a_server_is_removed_and_called_back() -> None:
    async def scenario(town: Town) -> None:
        await town.keeper.start(town.progress.append)
        assert await refused(town.keeper.add(town.progress.append)) == (
            "Every node has its server. Another one comes with: ray start --address"
        )
        assert await town.keeper.remove(SECOND, town.progress.append) == SECOND
        await asyncio.sleep(5.0)
        assert sorted(town.cluster.ports) == [FIRST]
        assert await refused(town.keeper.remove(SECOND, town.progress.append)) == (
            f"There is no server {SECOND}; there are {FIRST}."
        )
        assert await refused(town.keeper.remove(FIRST, town.progress.append)) == (
            f"{FIRST} is the last one. End the cluster with: everwarm down"
        )
        assert await town.keeper.add(town.progress.append) == SECOND
        assert sorted(town.cluster.ports) == [FIRST, SECOND]

    Town(HEAD, OTHER).run(scenario)


def test_a_node_that_ray_drains_is_left_in_peace() -> None:
    async def scenario(town: Town) -> None:
        await town.keeper.start(town.progress.append)
        town.nodes[1] = Node(OTHER.node_id, OTHER.address, leaves=True)
        await asyncio.sleep(2.0)
        assert town.cluster.said[-1] == f"{SECOND} left"
        assert sorted(town.cluster.ports) == [FIRST]

    Town(HEAD, OTHER).run(scenario)


def test_a_head_that_does_not_answer_changes_nothing() -> None:
    async def scenario(town: Town) -> None:
        await town.keeper.start(town.progress.append)
        town.looks_fail = True
        town.nodes.append(OTHER)
        await asyncio.sleep(5.0)
        assert sorted(town.cluster.ports) == [FIRST]
        town.looks_fail = False
        await asyncio.sleep(2.0)
        assert sorted(town.cluster.ports) == [FIRST, SECOND]

    Town(HEAD).run(scenario)
