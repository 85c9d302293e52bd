"""Processes that are kept ready, on actors of our own: one a machine, and never one that is dead."""

import asyncio
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import ray
import ray.exceptions

from everwarm.standbys import NoProcess, Standbys
from tests.simulation.virtual_loop import play


@dataclass(frozen=True)
class Place:
    node: str


class Actor:
    """What Ray calls a handle: of a process that takes its time to be ready."""

    def __init__(self, name: str, place: Place) -> None:
        self.name, self.place = name, place
        self.dead = False
        self.hangs = False
        self.start = SimpleNamespace(remote=self._ready)
        self.probe = SimpleNamespace(remote=self._there)

    async def _ready(self) -> None:
        await asyncio.sleep(3.0)
        if self.dead:
            raise ray.exceptions.RayActorError

    async def _there(self) -> float:
        if self.hangs:
            await asyncio.Event().wait()
        if self.dead:
            raise ray.exceptions.RayActorError
        return 0.0


class Town:
    """Makes actors, and sees which are ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[Actor] = []
        self.ended: list[str] = []
        monkeypatch.setattr(ray, "kill", lambda actor, no_restart: self.ended.append(actor.name))
        self.standbys = Standbys[Place](self._make)

    def _make(self, name: str, place: Place) -> Actor:
        self.made.append(Actor(name, place))
        return self.made[-1]


HERE, THERE = Place(""), Place("there")


def test_one_a_machine_is_ready_and_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(monkeypatch)

    async def scenario() -> None:
        clock = asyncio.get_running_loop().time
        for _ in range(5):
            town.standbys.have([HERE, HERE, THERE])
            await asyncio.sleep(1.0)
        assert [actor.place for actor in town.made] == [HERE, THERE]
        assert list(town.standbys.are_ready().values()) == [True, True]
        began_s = clock()
        taken = await town.standbys.take(HERE)
        assert (taken.actor, clock() - began_s) == (town.made[0], 0.0)
        town.standbys.have([HERE, THERE])
        began_s = clock()
        second = await town.standbys.take(HERE)  # which waits for the one that is on its way
        assert (second.actor, clock() - began_s) == (town.made[2], 3.0)
        assert len({actor.name for actor in town.made}) == 3
        assert town.ended == []

    play(scenario())


@pytest.mark.parametrize("how", ["dead", "hangs"])
def test_one_that_is_gone_by_then_is_not_given_out(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    town = Town(monkeypatch)

    async def scenario() -> None:
        town.standbys.have([HERE])
        await asyncio.sleep(4.0)
        setattr(town.made[0], how, True)
        taken = await town.standbys.take(HERE)
        assert taken.actor is town.made[1]
        assert town.ended == [town.made[0].name]

    play(scenario())


def test_when_none_can_be_started_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(monkeypatch)

    async def scenario() -> None:
        town.standbys.have([HERE])
        town.made[0].dead = True
        with pytest.raises(NoProcess, match="RayActorError"):
            await town.standbys.take(HERE)
        assert town.ended == [town.made[0].name]

    play(scenario())


def test_of_a_machine_that_has_left_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(monkeypatch)

    async def scenario() -> None:
        town.standbys.have([HERE, THERE])
        await asyncio.sleep(4.0)
        town.standbys.have([HERE])
        assert town.ended == [town.made[1].name]
        town.standbys.end()
        assert len(town.ended) == 2
        assert town.standbys.are_ready() == {}

    play(scenario())


def test_one_that_failed_to_start_is_replaced_before_anybody_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(monkeypatch)

    async def scenario() -> None:
        town.standbys.have([HERE])
        town.made[0].dead = True
        await asyncio.sleep(4.0)
        assert list(town.standbys.are_ready().values()) == [False]
        town.standbys.have([HERE])
        await asyncio.sleep(4.0)
        assert town.standbys.are_ready() == {town.made[1].name: True}

    play(scenario())
