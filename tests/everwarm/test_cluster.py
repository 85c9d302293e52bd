"""Servers that do not come up: nothing of them may stay, and nobody may wait for them for ever. Handles are our own."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import ray.exceptions

from everwarm.cluster import Cluster, Place, StartFailed
from everwarm.cluster_config import ClusterConfig
from everwarm.one_machine import OneMachine
from everwarm.roles import CONTROL
from tests.simulation.virtual_loop import play


class Method:
    """A method of an actor handle."""

    def __init__(self, answer: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self.remote = answer


class Handle:
    """An actor: it starts, and does not answer ``begin``. One that is ``dead`` answers nothing."""

    def __init__(self, *, dead: bool = False) -> None:
        async def answer(*_: object) -> dict[str, object]:
            if dead:
                raise ray.exceptions.RayActorError
            return {"pid": 1}

        async def never(*_: object) -> None:
            if dead:
                raise ray.exceptions.RayActorError
            await asyncio.Event().wait()

        self.start = self.stop = self.register = self.forget = Method(answer)
        self.call = Method(never)


def _adds(monkeypatch: pytest.MonkeyPatch, *, dead_control: bool) -> tuple[Cluster, list[Handle], BaseException]:
    """A cluster that was asked for one more server, the actors that were ended, and how it failed."""
    ended: list[Handle] = []
    monkeypatch.setattr("everwarm.cluster.ray.kill", lambda actor, no_restart: ended.append(actor))
    config = ClusterConfig(home="/nowhere", servers=1)
    cluster = Cluster(Place(config, 0))
    cluster._actors[CONTROL] = Handle(dead=dead_control)

    def make(role: Any, server: str, control: Any) -> Handle:
        handle = cluster._actors[f"{server}/{role.name}"] = Handle()
        return handle

    cluster._make = make  # type: ignore[method-assign]
    machine = OneMachine(cluster, config)
    with pytest.raises((StartFailed, ray.exceptions.RayError)) as failed:
        play(asyncio.wait_for(machine.add(lambda line: None), 600.0))
    return cluster, ended, failed.value


@pytest.mark.parametrize("dead_control", [False, True])
def test_of_a_server_that_does_not_join_nothing_is_left(monkeypatch: pytest.MonkeyPatch, dead_control: bool) -> None:
    cluster, ended, _ = _adds(monkeypatch, dead_control=dead_control)
    assert list(cluster._actors) == [CONTROL]
    assert len(ended) == 4
    assert cluster.places == {}


def test_a_join_that_hangs_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, failed = _adds(monkeypatch, dead_control=False)
    assert isinstance(failed, StartFailed)
    assert str(failed) == "server-1 did not join: TimeoutError."


def test_a_way_that_breaks_is_no_death_and_is_looked_at_again() -> None:
    """Ray breaks the call that stays open also when a link is cut; the process lives on."""
    cluster = Cluster(Place(ClusterConfig(home="/nowhere"), 0))
    ends: list[BaseException] = [
        ray.exceptions.ActorDiedError(),
        *(ray.exceptions.ActorUnavailableError("its link is cut", None) for _ in range(3)),
    ]
    lost: list[tuple[str, int]] = []
    cluster.on_role_lost = lambda address: lost.append((address, len(ends)))

    async def stay(*_: object) -> None:
        await asyncio.sleep(1.0)
        raise ends.pop()

    actor = Handle()
    actor.call = Method(stay)
    play(cluster._watch("a/host", actor))
    assert lost == [("a/host", 0)]


def test_a_process_that_hangs_on_another_machine_is_ended_by_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everwarm.cluster.own_node", lambda: "node of the owner")
    monkeypatch.setattr("everwarm.cluster.ray.kill", lambda actor, no_restart: None)
    config = ClusterConfig(home="/nowhere")
    cluster = Cluster(Place(config, 0, "node of the owner"))
    asked: list[tuple[str, int]] = []

    class Neighbour:
        def __init__(self, name: str) -> None:
            self.name = name
            self.end = self

        def options(self, concurrency_group: str) -> "Neighbour":
            assert concurrency_group == "probe"  # its own event loop may be busy
            return self

        def remote(self, pid: int) -> None:
            asked.append((self.name, pid))

    cluster._places["a"] = Place(config, 0, "another node")
    cluster._actors |= {name: Neighbour(name) for name in ("a/host", "a/server", "a/shard", "b/server")}
    cluster.pids["a/host"] = 7
    assert (cluster._machine("a/host"), cluster._machine(CONTROL)) == ("another node", "")
    cluster.kill("a/host")
    assert asked == [("a/server", 7), ("a/shard", 7)]


def test_a_process_on_another_machine_is_looked_at_by_whichever_neighbour_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("everwarm.cluster.own_node", lambda: "node of the owner")
    config = ClusterConfig(home="/nowhere")
    cluster = Cluster(Place(config, 0, "node of the owner"))
    answers: dict[str, int | None] = {"a/server": None, "a/shard": 0, "a/ingress": 42}  # one is gone, one is silent

    class Neighbour:
        def __init__(self, name: str) -> None:
            self.name = name
            self.ran_ns = self

        def options(self, concurrency_group: str) -> "Neighbour":
            assert concurrency_group == "probe"
            return self

        async def remote(self, pid: int) -> int:
            assert pid == 7
            answer = answers[self.name]
            if answer is None:
                raise ray.exceptions.ActorUnavailableError(self.name, None)
            if answer == 0:
                await asyncio.Event().wait()
            return answer

    async def looked() -> int | None:
        ran = await cluster.ran_ns("a/host")
        await asyncio.sleep(0)  # who was not waited for hears that
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return ran

    cluster._places["a"] = Place(config, 0, "another node")
    cluster._actors |= {name: Neighbour(name) for name in ("a/host", "b/server", *answers)}
    assert asyncio.run(looked()) is None  # its number is not known
    cluster.pids["a/host"] = 7
    assert asyncio.run(looked()) == 42
    answers |= {"a/shard": None, "a/ingress": None}
    assert asyncio.run(looked()) is None


class Leaver:
    """An actor that writes down what it is asked for, and when its process ends."""

    def __init__(self, address: str, said: list[str], hangs: str = "") -> None:
        async def call(method: str, payload: bytes) -> bytes:
            said.append(f"{address} {method}")
            if method == hangs:
                await asyncio.Event().wait()
            return b""

        async def stop() -> None:
            said.append(f"{address} stops")

        async def forget(of: str) -> None:
            """Nobody is introduced to it any more."""

        self.call, self.stop, self.forget = Method(call), Method(stop), Method(forget)


@pytest.mark.parametrize("hangs", ["", "leave", "drain", "finish"])
def test_a_server_that_is_removed_finishes_what_it_owes_before_it_ends(
    monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    """Home to nothing first, then its clients' requests, then what else began there. One that hangs goes as well."""
    monkeypatch.setattr("everwarm.cluster.ray.kill", lambda actor, no_restart: None)
    config = ClusterConfig(home="/nowhere", servers=2)
    cluster, said, progress = Cluster(Place(config, 0)), [], []  # type: ignore[var-annotated]
    cluster._places = {"server-1": Place(config, 0), "server-2": Place(config, 0)}
    for address in (CONTROL, *(f"server-1/{role}" for role in ("server", "host", "shard", "ingress"))):
        cluster._actors[address] = Leaver(address, said, hangs)
    play(cluster.remove("server-1", progress.append))
    steps = [f"{CONTROL} leave", "server-1/ingress drain", "server-1/server finish"]
    asked = steps[: ["leave", "drain", "finish", ""].index(hangs) + 1] if hangs else steps
    assert said[: len(asked)] == asked
    ended = [line for line in said if line.endswith("stops")]
    assert said == [*asked, *ended]
    assert ended[0] == "server-1/ingress stops"
    assert len(ended) == 4
    assert list(cluster.places) == ["server-2"]
    assert ("server-1 did not leave in peace: TimeoutError" in progress) == bool(hangs)
