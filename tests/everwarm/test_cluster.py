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
