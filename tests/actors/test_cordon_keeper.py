"""That servers have hosts for a cordon before something is deployed into it."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from actors.cordon_keeper import CordonKeeper, NoHosts


class Owner:
    """Writes down what it is asked for. ``broken``: why it has no hosts."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.broken = ""

    async def have_hosts(self, cordons: tuple[str, ...]) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise NoHosts(self.broken)
        self.asked.append(cordons)


def played(scenario: Callable[[CordonKeeper, Owner, set[str]], Coroutine[object, None, None]], most: int = 3) -> None:
    owner, used = Owner(), {"default", "b"}
    asyncio.run(scenario(CordonKeeper(lambda: set(used), owner.have_hosts, most), owner, used))


async def deploy(keeper: CordonKeeper, cordon: str, used: set[str]) -> None:
    async with keeper.hosts_for(cordon):
        used.add(cordon)


def test_the_owner_is_asked_once_a_cordon_and_told_of_all() -> None:
    async def scenario(keeper: CordonKeeper, owner: Owner, used: set[str]) -> None:
        for cordon in ("default", "b", "@users", "@users"):
            await deploy(keeper, cordon, used)
        assert owner.asked == [("default", "b", "@users")]
        assert keeper.cordons == ("default", "b", "@users")

    played(scenario)


def test_two_deploys_at_once_have_room_for_one_cordon_more() -> None:
    """Neither has workers yet, and the second may not take the place of the first."""

    async def scenario(keeper: CordonKeeper, owner: Owner, used: set[str]) -> None:
        done = await asyncio.gather(*(deploy(keeper, c, used) for c in ("x", "y", "x")), return_exceptions=True)
        assert done[0] is None
        assert done[2] is None
        assert isinstance(done[1], NoHosts)
        assert owner.asked == [("default", "b", "x")]

    played(scenario)


def test_a_cordon_without_workers_gives_way() -> None:
    async def scenario(keeper: CordonKeeper, owner: Owner, used: set[str]) -> None:
        await deploy(keeper, "x", used)
        with pytest.raises(NoHosts, match="3 cordons have workers"):
            await deploy(keeper, "y", used)
        used.remove("b")
        await deploy(keeper, "y", used)
        assert owner.asked[-1] == ("default", "x", "y")

    played(scenario)


def test_what_the_owner_could_not_do_is_tried_again() -> None:
    async def scenario(keeper: CordonKeeper, owner: Owner, used: set[str]) -> None:
        owner.broken = "nobody is there"
        with pytest.raises(NoHosts, match="nobody is there"):
            await deploy(keeper, "x", used)
        owner.broken = ""
        await deploy(keeper, "x", used)
        assert owner.asked == [("default", "b", "x")]

    played(scenario)


def test_where_nobody_starts_hosts_there_is_one_cordon() -> None:
    async def scenario() -> None:
        keeper = CordonKeeper(set)
        await deploy(keeper, "default", set())
        with pytest.raises(NoHosts, match="default alone"):
            await deploy(keeper, "@users", set())

    asyncio.run(scenario())
