"""Key-value stores on complete servers: one store for all machines, and nobody in another's."""

import asyncio
from pathlib import Path

import pytest
from complete_servers import Compiled, CompleteServers, Play, request, seed_with, wait_until

from actors.bindings import Bindings, KvBinding
from actors.stores import ORDER, TOLD, StoreOrder, store_id
from isolates.outcome import Outcome
from isolates.stores import StoreAsked, StoreTold
from tests.isolates.store_guest import store_guest

BOUND = Bindings(kv=(KvBinding("sessions", "shop-sessions"),))


@pytest.fixture(scope="module")
def seed(zig: Compiled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlPlane's directory with the guest compiled."""
    return seed_with(zig, tmp_path_factory.mktemp("seed") / "control", store_guest())


async def deploy(cluster: CompleteServers, worker: str, bindings: Bindings = BOUND) -> None:
    job = await cluster.deploy(worker, store_guest(), bindings, cpu_ms=10_000)
    assert job["error"] is None, job


async def asked(cluster: CompleteServers, server: int, worker: str, path: str = "/") -> str:
    got = await cluster[server].ask(request(worker, path))
    assert got.ended.outcome is Outcome.OK, got.ended
    return got.body.decode()


def order(cluster: CompleteServers, worker: str, asked: StoreAsked, store: str = "sessions") -> bytes:
    """An operation as a host sends it."""
    return ORDER.encode(StoreOrder(store, asked, worker, cluster.version_of(worker)))


def test_all_machines_have_the_same_store(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        await deploy(cluster, "shop")
        said = [await asked(cluster, server, "shop", f"/{server}") for server in (1, 2, 1, 2)]
        assert said == ["1 /1", "2 /2", "3 /1", "4 /2"]

    play(scenario, sharding=False)


def test_workers_without_a_namespace_share_by_name_and_users_do_not(play: Play) -> None:
    assert store_id("shop", "sessions") == "sessions"
    assert store_id("customers/shop", "sessions") == "customers/shop:sessions"

    async def scenario(cluster: CompleteServers) -> None:
        for worker in ("shop", "back-office", "customers/shop", "customers/eve"):
            await deploy(cluster, worker)
        said = [
            await asked(cluster, 1, worker) for worker in ("shop", "back-office", "customers/shop", "customers/eve")
        ]
        assert said == ["1 /", "2 /", "1 /", "1 /"]

    play(scenario, servers=1, sharding=False)


def test_what_the_manifest_does_not_bind_is_not_there(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        await deploy(cluster, "shop")
        await deploy(cluster, "thief", Bindings(kv=(KvBinding("other", "thiefs"),)))
        assert await asked(cluster, 1, "thief") == "no such store"
        desk = cluster[1].server._stores
        for store in ("shop-sessions", "sessions", ""):
            told = TOLD.decode(await desk.answer(order(cluster, "thief", StoreAsked("get", ("last",)), store)))
            assert told.error == ("no-such-store", None)
        unknown = ORDER.encode(StoreOrder("sessions", StoreAsked("open"), "shop", "0" * 16))
        assert TOLD.decode(await desk.answer(unknown)).error == ("no-such-store", None)

    play(scenario, servers=1, sharding=False)


def test_without_the_control_plane_a_guest_is_told_so(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        await deploy(cluster, "shop")
        lost = cluster.lose("control", "store", delivered=None)
        told = TOLD.decode(await cluster[1].server._stores.answer(order(cluster, "shop", StoreAsked("get", ("a",)))))
        assert told.error == ("other", "the stores are away")
        got = await cluster[1].ask(request("shop"))
        assert got.ended.outcome is Outcome.EXCEPTION, "it does not expect that"
        assert lost.lost == 2

    play(scenario, servers=1, sharding=False)


def test_operations_under_way_are_bounded_and_given_back(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        await deploy(cluster, "shop")
        await deploy(cluster, "other")
        held = cluster.delay("control", "store")
        desk = cluster[1].server._stores
        waiting = [
            asyncio.create_task(desk.answer(order(cluster, "shop", StoreAsked("get", ("a",))))) for _ in range(32)
        ]
        await held.arrived.wait()

        async def all_are_under_way() -> bool:
            return desk._under_way["shop"] == 32

        await wait_until(all_are_under_way, "32 operations are under way")
        told = TOLD.decode(await desk.answer(order(cluster, "shop", StoreAsked("get", ("a",)))))
        assert told.error == ("other", "too many operations at once")
        another = asyncio.create_task(desk.answer(order(cluster, "other", StoreAsked("get", ("a",)))))
        waiting[0].cancel()  # its host went away
        held.go.set()
        answers = await asyncio.gather(*waiting[1:], another)
        assert {TOLD.decode(answer) for answer in answers} == {StoreTold(values=(None,))}
        assert desk._under_way == {}

    play(scenario, servers=1, sharding=False)


def test_who_waits_for_a_store_leaves_with_its_client(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        await deploy(cluster, "shop")
        held = cluster.delay("control", "store")
        answer = await cluster[1].begin(request("shop"))
        await held.arrived.wait()
        answer.cancel()

        async def over() -> bool:
            return cluster[1].host.statistics()["running"] == 0

        await wait_until(over, "the guest has left")
        held.go.set()

    play(scenario, servers=1, sharding=False)
