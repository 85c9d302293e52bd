"""Variables and secrets on complete servers: what guests find in their environment, and who else sees of it."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from complete_servers import Compiled, CompleteServers, Play, component, request, seed_with, wait_until

from actors.bindings import Bindings
from actors.connection import Frame, frame
from actors.host_conversation import LinkSocket
from actors.variables import ASKED, TOLD, VariablesAsked, VariablesAway, ask_variables, variables_of
from actors.view import decode_plain, encode_plain
from tests.isolates.environment_guest import environment_guest

SHOP = Bindings(vars=(("CURRENCY", "EUR"),), secrets=("STRIPE_KEY",))


@pytest.fixture(scope="module")
def seed(zig: Compiled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlPlane's directory with the guest compiled."""
    return seed_with(zig, tmp_path_factory.mktemp("seed") / "control", environment_guest())


async def control(cluster: CompleteServers, call: str, **order: object) -> Any:
    return decode_plain(await cluster.control.calls[call](encode_plain(order)))


async def put(cluster: CompleteServers, worker: str, value: str, name: str = "STRIPE_KEY") -> list[str]:
    done = await control(cluster, "put_secret", worker=worker, name=name, value=value, author="ada")
    assert "error" not in done, done
    versions: list[str] = done["versions"]
    return versions


async def deploy(cluster: CompleteServers, worker: str = "shop", bindings: Bindings = SHOP) -> dict[str, Any]:
    job = await cluster.deploy(worker, environment_guest(), bindings, cpu_ms=10_000)
    assert job["error"] is None, job
    result: dict[str, Any] = job["result"]
    return result


async def asked(cluster: CompleteServers, worker: str = "shop") -> list[str]:
    """What each server's clients hear of a worker, as lines."""
    got = [await machine.ask(request(worker)) for machine in cluster.machines]
    answers = {one.body.decode() for one in got}
    assert len(answers) == 1, answers
    return answers.pop().splitlines()


def files_with(data: bytes, directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_file() and data in path.read_bytes()]


def test_a_guest_finds_its_variables_and_the_secrets_that_it_names() -> None:
    secrets = {"KEY": "s3cret", "UNNAMED": "x"}
    bindings = Bindings(vars=(("MODE", "test"),), secrets=("KEY", "UNSET"))
    assert variables_of(bindings, secrets) == (("KEY", "s3cret"), ("MODE", "test"))
    assert variables_of(Bindings(), secrets) == ()


@pytest.mark.parametrize("preload", [False, True])
def test_a_secret_is_there_before_its_worker(play: Play, preload: bool) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        assert await put(cluster, "shop", "s3cret") == []
        assert (await deploy(cluster))["unset_secrets"] == []
        assert await asked(cluster) == ["CURRENCY=EUR", "STRIPE_KEY=s3cret"]

    play(scenario, preload=preload)


@pytest.mark.parametrize("preload", [False, True])
def test_a_change_is_a_new_version_whose_isolates_have_it(play: Play, preload: bool) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        result = await deploy(cluster)
        assert result["unset_secrets"] == ["STRIPE_KEY"]
        assert await asked(cluster) == ["CURRENCY=EUR"]
        (second,) = await put(cluster, "shop", "first")
        assert second != result["version"]
        assert await asked(cluster) == ["CURRENCY=EUR", "STRIPE_KEY=first"]
        (third,) = await put(cluster, "shop", "second")
        assert await asked(cluster) == ["CURRENCY=EUR", "STRIPE_KEY=second"]
        assert cluster.version_of("shop") == third

        async def old_ones_are_gone() -> bool:
            warm = [version for m in cluster.machines for version in m.host.statistics()["warm_versions"]]  # type: ignore[attr-defined]
            return set(warm) == {third}

        await wait_until(old_ones_are_gone, "the isolates of versions before are gone")
        deleted = await control(cluster, "delete_secret", worker="shop", name="STRIPE_KEY", author="ada")
        assert deleted["deleted"]
        assert len(deleted["versions"]) == 1
        assert await asked(cluster) == ["CURRENCY=EUR"]

    play(scenario, preload=preload)


def test_one_that_no_version_names_changes_nothing(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        version = (await deploy(cluster))["version"]
        assert await put(cluster, "shop", "x", name="OTHER") == []
        assert cluster.version_of("shop") == version
        assert await asked(cluster) == ["CURRENCY=EUR"]
        assert (await control(cluster, "delete_secret", worker="shop", name="OTHER", author="ada"))["deleted"]
        assert not (await control(cluster, "delete_secret", worker="shop", name="OTHER", author="ada"))["deleted"]

    play(scenario)


def test_it_is_nobody_elses(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        await put(cluster, "shop", "the shop's")
        await put(cluster, "production/shop", "the user's")
        await deploy(cluster)
        await deploy(cluster, "thief", Bindings(secrets=("STRIPE_KEY",)))
        assert await asked(cluster, "thief") == []
        assert await asked(cluster) == ["CURRENCY=EUR", "STRIPE_KEY=the shop's"]

    play(scenario)


def test_no_value_is_in_what_is_public(play: Play, tmp_path: Path) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        await put(cluster, "shop", "s3cret-value")
        await deploy(cluster)
        await asked(cluster)
        await put(cluster, "shop", "s3cret-value-2")
        told = [
            await cluster.control.calls["describe"](encode_plain({"name": "shop"})),
            await cluster.control.calls["list"](encode_plain({"after": ""})),
            await cluster.control.calls["history"](encode_plain({"name": "shop"})),
            await cluster.control.calls["list_secrets"](encode_plain({"worker": "shop"})),
            *[await machine.server.statistics() for machine in cluster.machines],
            *[await machine.server._traces.traces(encode_plain({"limit": 100})) for machine in cluster.machines],
        ]
        assert not any(b"s3cret" in data for data in told)
        listed = decode_plain(told[3])
        assert [(secret["name"], secret["author"]) for secret in listed["secrets"]] == [("STRIPE_KEY", "ada")]
        assert listed["unset"] == []
        assert files_with(b"s3cret", tmp_path) == ["secrets.sqlite"]

    play(scenario)


def test_what_is_wrong_is_said(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        order = {"worker": "shop", "name": "KEY", "value": "x" * 6_000, "author": "ada"}
        assert (await control(cluster, "put_secret", **order))["error"] == "KEY: 6000 bytes are more than 5120"
        order |= {"worker": "No Name", "value": "x"}
        assert "error" in await control(cluster, "put_secret", **order)

    play(scenario, servers=1)


def test_a_server_that_missed_the_deploy_asks_for_everything(play: Play) -> None:
    """Its own view does not have the version; the request of another server has."""

    async def scenario(cluster: CompleteServers) -> None:
        home, other = cluster.machines
        name = next(f"shop-{i}" for i in range(100) if home.server._view.home_of(f"shop-{i}") == home.name)
        await put(cluster, name, "s3cret")
        cluster.lose(f"{home.name}/server", "apply_change", delivered=False)
        await deploy(cluster, name)
        assert name not in home.server._view.workers
        got = await other.ask(request(name))
        assert got.body == b"CURRENCY=EUR\nSTRIPE_KEY=s3cret\n"
        assert got.ended.server == home.name

    play(scenario)


def test_a_server_that_joins_has_them(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        await put(cluster, "shop", "s3cret")
        await deploy(cluster)
        await cluster[1].server.sync()
        assert await asked(cluster) == ["CURRENCY=EUR", "STRIPE_KEY=s3cret"]

    play(scenario, servers=1)


def test_who_has_none_is_not_asked_for(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        job = await cluster.deploy("plain", component("hello"), cpu_ms=10_000)
        assert job["error"] is None
        seen: list[bytes] = []

        async def never(payload: bytes) -> bytes:
            seen.append(payload)
            return b""

        cluster[1].server._link_server._answers = {Frame.VARIABLES: never}
        assert (await cluster[1].ask(request("plain"))).whole
        assert seen == []

    play(scenario, servers=1)


def test_a_version_that_nobody_knows_is_not_started_without_its_variables(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        with pytest.raises(VariablesAway, match="not known here"):
            await asyncio.to_thread(ask_variables, cluster[1].server_socket, "shop", "0" * 16)
        with pytest.raises(VariablesAway):
            await asyncio.to_thread(ask_variables, cluster[1].server_socket.with_name("nobody.sock"), "shop", "0" * 16)

    play(scenario, servers=1)


def test_an_answer_is_a_frame_of_its_own_kind(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        version = (await deploy(cluster))["version"]

        def twice() -> list[tuple[str, str]]:
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connected.connect(str(cluster[1].server_socket))
            link = LinkSocket(connected)
            pairs: list[tuple[str, str]] = []
            for _ in range(2):
                link.send(frame(Frame.VARIABLES, ASKED.encode(VariablesAsked("shop", version))))
                received = link.receive(5.0)
                assert received is not None
                assert received[0] is Frame.VARIABLES
                pairs += TOLD.decode(received[1]).pairs
            link.close()
            return pairs

        assert await asyncio.to_thread(twice) == [("CURRENCY", "EUR")] * 2

    play(scenario, servers=1)


def test_one_that_is_set_while_its_worker_is_deployed_is_not_missed(play: Play) -> None:
    """The first isolate has started without it: its version never answers anybody."""

    async def scenario(cluster: CompleteServers) -> None:
        home = cluster[1].server._view.home_of("shop")
        held = cluster.delay(f"{home}/server", "preload", after=True)
        deploying = asyncio.create_task(deploy(cluster))
        await held.arrived.wait()
        assert await put(cluster, "shop", "s3cret") == [], "nothing is deployed yet"
        held.go.set()
        await deploying
        assert await asked(cluster) == ["CURRENCY=EUR", "STRIPE_KEY=s3cret"]

    play(scenario, preload=True)


def test_a_deploy_and_a_change_at_once_end_with_both(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        await deploy(cluster)
        home = cluster[1].server._view.home_of("shop")
        held = cluster.delay(f"{home}/server", "preload", after=True)
        after = Bindings(vars=(("CURRENCY", "USD"),), secrets=("STRIPE_KEY",))
        deploying = asyncio.create_task(deploy(cluster, bindings=after))
        await held.arrived.wait()
        changing = asyncio.create_task(put(cluster, "shop", "s3cret"))
        await wait_until(lambda: is_set(cluster), "the secret is set")
        held.go.set()
        await asyncio.gather(deploying, changing)
        assert await asked(cluster) == ["CURRENCY=USD", "STRIPE_KEY=s3cret"]

    play(scenario, preload=True)


async def is_set(cluster: CompleteServers) -> bool:
    return bool((await control(cluster, "list_secrets", worker="shop"))["secrets"])
