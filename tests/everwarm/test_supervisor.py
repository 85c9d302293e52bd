"""Processes that die, hang and come back, in virtual time: who is restarted, when, and who is left alone."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from actors.supervision import SupervisionLimits
from everwarm.cluster import StartFailed, Unanswered
from everwarm.supervisor import Supervisor
from tests.simulation.virtual_loop import play

LIMITS = SupervisionLimits()


class Town:
    """Processes by address, each with a number that tells it from the one before."""

    #: What it takes to give a role another process.
    REPLACE_S = 0.5

    def __init__(self, *addresses: str) -> None:
        self.numbers = self.pids = dict.fromkeys(addresses, 1)
        self.hanging: set[str] = set()
        self.standing: set[str] = set()
        self.running: set[str] = set()  # of those that hang, the ones whose threads run
        self.broken: set[str] = set()  # roles that do not start
        self.killed: list[str] = []
        self.machines: dict[str, str] = {}  # of those that are on another one
        self.on_role_lost: Callable[[str], None] = lambda address: None
        self.said: list[str] = []
        self.changed = 0
        self.probes = 0

    @property
    def roles_up(self) -> list[str]:
        return list(self.numbers)

    def restarts_of(self, address: str) -> SupervisionLimits:
        return LIMITS

    async def replace(self, address: str) -> None:
        await asyncio.sleep(self.REPLACE_S)
        if address in self.broken:
            raise StartFailed(f"{address} did not start: its disk.")
        self.hanging.discard(address)
        self.standing.discard(address)
        self.numbers[address] += 1

    async def probe(self, address: str) -> float:
        self.probes += 1
        if address in self.hanging:
            await asyncio.Event().wait()
        if address not in self.numbers:
            raise Unanswered(address)
        return 60.0 if address in self.standing else 0.01

    async def ran_ns(self, address: str) -> int | None:
        machine = self.machines.get(address)
        beside = [a for a in self.numbers if a != address and self.machines.get(a) == machine]
        if machine and all(a in self.hanging for a in beside):
            await asyncio.Event().wait()  # nobody there answers
        return int(asyncio.get_running_loop().time() * 1e9) if address in self.running else 5

    def kill(self, address: str) -> None:
        self.killed.append(address)
        self.on_role_lost(address)  # the call that stays open breaks

    def have_standbys(self) -> None:
        pass

    @property
    def standbys(self) -> dict[str, bool]:
        return {"standby-1": True}


def supervised(town: Town, scenario: Callable[[Supervisor], Awaitable[None]]) -> None:
    """Play a scenario with a supervisor."""

    def changed() -> None:
        town.changed += 1

    async def whole() -> None:
        supervisor = Supervisor(
            town, on_changed=changed, progress=town.said.append, clock=asyncio.get_running_loop().time
        )
        supervisor.start()
        try:
            await scenario(supervisor)
        finally:
            await supervisor.stop()
        assert not supervisor._restarting or town.broken

    play(whole())


def test_who_dies_is_back_at_once_and_nobody_else_is_touched() -> None:
    town = Town("a/host", "a/server", "control")

    async def scenario(supervisor: Supervisor) -> None:
        for round_ in range(2, 6):
            town.on_role_lost("a/host")
            town.on_role_lost("control")
            await asyncio.sleep(Town.REPLACE_S + 0.01)
            assert town.numbers == {"a/host": round_, "a/server": 1, "control": round_}
            await asyncio.sleep(LIMITS.well_s)
        assert supervisor.report()["a/host"] == {
            "pid": 5,
            "state": "running",
            "restarts": 4,
            "took_s": [0.5] * 4,
        }

    supervised(town, scenario)
    assert town.changed == 8
    assert town.said[:2] == ["a/host died", "control died"]
    assert "a/host is back after 0.5 s" in town.said


def test_who_hangs_is_ended_and_replaced_once() -> None:
    for way in ("hanging", "standing"):
        town = Town("a/host", "a/server")
        getattr(town, way).add("a/host")

        async def scenario(supervisor: Supervisor, town: Town = town) -> None:
            await asyncio.sleep(60.0)
            assert town.killed == ["a/host"]
            assert town.numbers == {"a/host": 2, "a/server": 1}

        supervised(town, scenario)


@pytest.mark.parametrize("runs", [False, True])
def test_a_stopped_process_is_ended_within_five_seconds_and_one_that_runs_is_waited_for(runs: bool) -> None:
    town = Town("a/host", "a/server")

    async def scenario(supervisor: Supervisor) -> None:
        await asyncio.sleep(10.5)
        town.hanging.add("a/host")
        if runs:
            town.running.add("a/host")
        await asyncio.sleep(14.9 if runs else 3.9)
        assert town.killed == []
        await asyncio.sleep(1.1)
        assert town.killed == ["a/host"]
        await asyncio.sleep(Town.REPLACE_S)

    supervised(town, scenario)


def test_a_busy_process_that_answers_at_last_lives() -> None:
    for way in ("hanging", "standing"):
        town = Town("a/host", "a/server")

        async def scenario(supervisor: Supervisor, town: Town = town, way: str = way) -> None:
            town.running.add("a/host")
            getattr(town, way).add("a/host")
            await asyncio.sleep(12.0)
            assert supervisor.report()["a/host"]["state"] == "suspect"
            getattr(town, way).clear()
            await asyncio.sleep(3.0)
            assert supervisor.report()["a/host"]["state"] == "running"
            assert town.killed == []

        supervised(town, scenario)


def test_a_link_that_is_whole_again_is_given_time() -> None:
    """Ray makes its connections anew one after the other: one process there is heard of before another."""
    town = Town("a/host", "b/host", "b/server")
    town.machines = {"b/host": "b", "b/server": "b"}

    async def scenario(supervisor: Supervisor) -> None:
        town.running |= {"b/host", "b/server"}
        await asyncio.sleep(10.5)
        town.hanging |= {"b/host", "b/server"}
        await asyncio.sleep(8.0)
        town.hanging.remove("b/server")
        await asyncio.sleep(8.0)
        town.hanging.clear()
        await asyncio.sleep(3.0)
        assert {role["state"] for role in supervisor.report().values()} == {"running", "ready"}

    supervised(town, scenario)
    assert town.killed == []


def test_a_machine_that_is_away_has_no_process_ended_and_one_that_hangs_there_has() -> None:
    town = Town("a/host", "a/server", "b/host", "b/server")
    town.machines = {"b/host": "b", "b/server": "b"}

    async def scenario(supervisor: Supervisor) -> None:
        await asyncio.sleep(10.0)
        town.hanging |= {"b/host", "b/server"}
        await asyncio.sleep(60.0)
        assert town.killed == []
        assert supervisor.report()["b/host"]["state"] == "suspect"
        town.hanging.clear()  # the link is whole again
        await asyncio.sleep(3.0)
        assert supervisor.report()["b/host"]["state"] == "running"
        town.hanging.add("b/host")
        await asyncio.sleep(6.0)

    supervised(town, scenario)
    assert town.killed == ["b/host"]


def test_a_machine_that_goes_while_its_processes_are_in_doubt_is_asked_no_more() -> None:
    town = Town("a/host", "a/server", "b/host", "b/server")
    town.machines = {"b/host": "b", "b/server": "b"}

    async def scenario(supervisor: Supervisor) -> None:
        town.hanging |= {"b/host", "b/server"}
        await asyncio.sleep(10.0)
        for address in town.machines:
            del town.numbers[address]
        await asyncio.sleep(3.0)
        assert not supervisor._probing.keys() & town.machines.keys()

    supervised(town, scenario)
    assert town.killed == []


def test_a_process_that_nobody_is_told_of_is_replaced_all_the_same() -> None:
    """It died long ago, and the call that was to say so stays open."""
    town = Town("a/host", "a/server")
    town.hanging.add("a/host")
    told = []
    town.kill = told.append  # type: ignore[method-assign, assignment]

    async def scenario(supervisor: Supervisor) -> None:
        await asyncio.sleep(8.0)

    supervised(town, scenario)
    assert (told, town.numbers["a/host"]) == (["a/host"], 2)


def test_who_is_slow_for_a_while_is_left_in_peace() -> None:
    town = Town("a/host")

    async def scenario(supervisor: Supervisor) -> None:
        for _ in range(10):
            town.hanging.add("a/host")
            await asyncio.sleep(LIMITS.probe_s_max * 2)
            town.hanging.clear()
            await asyncio.sleep(LIMITS.probe_s_max * 2)

    supervised(town, scenario)
    assert (town.killed, town.numbers) == ([], {"a/host": 1})


def test_who_never_starts_is_left_alone_and_said() -> None:
    town = Town("a/host", "a/server")
    town.broken.add("a/host")

    async def scenario(supervisor: Supervisor) -> None:
        town.on_role_lost("a/host")
        await asyncio.sleep(600.0)
        assert supervisor.report()["a/host"]["state"] == "given up"
        town.on_role_lost("a/server")
        await asyncio.sleep(1.0)
        assert town.numbers["a/server"] == 2

    supervised(town, scenario)
    assert [line for line in town.said if "left alone" in line] == [
        "a/host is left alone: it died 10 times within 96 s",
    ]
    assert town.probes < 2_000


def test_who_is_removed_is_forgotten_even_while_it_is_restarted() -> None:
    town = Town("a/host", "b/host")

    async def scenario(supervisor: Supervisor) -> None:
        town.broken.add("a/host")
        town.on_role_lost("a/host")
        await asyncio.sleep(1.2)  # it waits for the next try
        del town.numbers["a/host"]
        await asyncio.sleep(60.0)
        assert list(supervisor.report()) == ["standby-1", "b/host"]

    supervised(town, scenario)


def test_a_role_of_a_server_that_comes_or_goes_is_not_restarted() -> None:
    town = Town("a/host")

    async def scenario(supervisor: Supervisor) -> None:
        town.on_role_lost("b/host")
        await asyncio.sleep(10.0)

    supervised(town, scenario)
    assert town.numbers == {"a/host": 1}


def test_a_bug_in_a_restart_is_a_restart_that_failed() -> None:
    town = Town("a/host")
    replace, failures = town.replace, [KeyError("a bug")]

    async def failing(address: str) -> None:
        if failures:
            raise failures.pop()
        await replace(address)

    town.replace = failing  # type: ignore[method-assign]

    async def scenario(supervisor: Supervisor) -> None:
        town.on_role_lost("a/host")
        await asyncio.sleep(5.0)

    supervised(town, scenario)
    assert town.numbers == {"a/host": 2}
