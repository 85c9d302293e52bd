"""What a deploy carries from a manifest to the catalog, and what it says about it. No server is needed for that."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from complete_servers import Compiled, CompleteServers, Play, component, request

from actors.bindings import Bindings, DispatchBinding, Outbound, ServiceBinding, Tail
from actors.view import decode_plain, encode_plain
from actors.worker import Version
from isolates.outcome import Outcome

SHOP = Bindings(
    services=(ServiceBinding("auth", "auth-worker"), ServiceBinding("self", "shop")),
    dispatch=(DispatchBinding("customers", "production"),),
    vars=(("COLOR", "green"),),
    secrets=("STRIPE_KEY",),
    outbound=Outbound("guard", ("customer",)),
    tail=Tail(("logs",)),
)


class Control:
    """A ControlPlane alone, as its clients see it."""

    def __init__(self, directory: Path, seed: Path) -> None:
        self.control = CompleteServers(directory, servers=0, seed=seed).control

    def deploy(self, name: str, **order: object) -> dict[str, Any]:
        """Deploy the smallest example as ``name``: the job as it ended."""
        plain = {"plan": "free", "limits": {}, "component": component("hello"), "author": "ada", **order, "name": name}

        async def whole() -> dict[str, Any]:
            job = decode_plain(await self.control.deploy(encode_plain(plain)))["job"]
            await asyncio.gather(*self.control._deploys._tasks)
            ended: dict[str, Any] = decode_plain(await self.control.deploy_progress(encode_plain({"job": job})))
            return ended

        return asyncio.run(whole())

    def ask(self, call: str, **order: object) -> Any:
        return decode_plain(asyncio.run(self.control.calls[call](encode_plain(order))))


@pytest.fixture
def control(zig: Compiled, tmp_path: Path) -> Iterator[Control]:
    made = Control(tmp_path, zig.directory)
    yield made
    made.control.close()


def test_bindings_and_routes_are_there_to_be_seen(control: Control) -> None:
    job = control.deploy("shop", bindings=SHOP.to_plain(), routes=["shop.example.com"])
    assert (job["error"], job["result"]["missing"]) == (None, ["auth-worker", "guard", "logs"])
    told = control.ask("describe", name="shop")
    (version,) = (Version.from_plain(plain) for plain in told["deployed"]["versions"])
    assert version.bindings == SHOP
    assert told["deployed"]["deployment"]["routes"] == ["shop.example.com"]
    assert told["missing"] == ["auth-worker", "guard", "logs"]
    (listed,) = control.ask("list", after="")["workers"]
    assert listed == told["deployed"]


def test_who_is_bound_may_come_later(control: Control) -> None:
    bindings = Bindings(services=(ServiceBinding("auth", "auth-worker"),)).to_plain()
    assert control.deploy("shop", bindings=bindings)["result"]["missing"] == ["auth-worker"]
    assert control.deploy("auth-worker")["result"]["missing"] == []
    assert control.ask("describe", name="shop")["missing"] == []
    control.ask("remove", name="auth-worker", author="ada")
    assert control.ask("describe", name="shop")["missing"] == ["auth-worker"]


def test_a_client_that_knows_no_bindings_deploys_as_before(control: Control) -> None:
    assert control.deploy("shop")["error"] is None
    assert control.ask("describe", name="shop")["deployed"]["versions"][0]["bindings"] == Bindings().to_plain()
    assert control.ask("describe", name="nobody") == {"deployed": None}


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"bindings": {**SHOP.to_plain(), "services": [{"name": "A", "worker": "w"}]}}, "services.name: must match"),
        ({"bindings": {"vars": {}}}, "services: missing from bindings"),
        ({"bindings": 3}, "bindings: must be a dict"),
        ({"routes": ["auth.binding.internal"]}, "routes: must be host names"),
        ({"routes": "x"}, "routes: must be a list"),
    ],
)
def test_what_is_wrong_is_refused_with_nothing_changed(
    control: Control, order: dict[str, object], message: str
) -> None:
    error = control.deploy("shop", **order)["error"]
    assert error["code"] == "refused"
    assert error["message"].startswith(message)
    assert control.ask("history", name="shop") == []


def test_parts_of_a_host_may_be_different_workers(control: Control) -> None:
    assert control.deploy("shop", routes=["shop.example.com/*"])["error"] is None
    assert control.deploy("api", routes=["shop.example.com/api/*"])["error"] is None
    told = control.ask("describe", name="shop")["deployed"]["deployment"]["routes"]
    assert told == ["shop.example.com"]
    for route in ("shop.example.com", "shop.example.com/*", "shop.example.com/api/*"):
        message = control.deploy("thief", routes=[route])["error"]["message"]
        assert (
            message == f"routes: {route.removesuffix('/*') if route.count('/') == 1 else route} leads to another worker"
        )


def test_a_route_is_never_taken_over_silently(control: Control) -> None:
    control.deploy("shop", routes=["shop.example.com", "*.shop.example.com"])
    error = control.deploy("thief", routes=["a.example", "shop.example.com"])["error"]
    assert error["message"] == "routes: shop.example.com leads to another worker"
    assert control.ask("describe", name="thief") == {"deployed": None}
    assert control.ask("history", name="thief") == []
    assert control.deploy("shop", routes=["shop.example.com"])["error"] is None  # its own, again
    assert control.deploy("heir", routes=["*.shop.example.com"])["error"] is None  # given up
    control.ask("remove", name="shop", author="ada")
    assert control.deploy("heir", routes=["shop.example.com"])["error"] is None


def test_users_of_two_namespaces_and_a_worker_may_have_one_name(control: Control) -> None:
    for name in ("ada", "production/ada", "staging/ada"):
        assert control.deploy(name)["result"]["worker"] == name
    assert [worker["deployment"]["worker"] for worker in control.ask("list", after="")["workers"]] == [
        "ada", "production/ada", "staging/ada"
    ]  # fmt: skip
    for wrong in ("production/", "/ada", "a/b/c", "production/Ada"):
        assert control.deploy(wrong)["error"]["message"].startswith("worker: must match")


def test_a_users_worker_has_a_home_and_runs(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        job = await cluster.deploy("production/ada", component("hello"), cpu_ms=10_000)
        assert job["error"] is None
        homes = {machine.server._view.home_of("production/ada") for machine in cluster.machines}
        assert homes <= {"server-1", "server-2"}
        assert len(homes) == 1
        for machine in cluster.machines:
            got = await machine.ask(request("production/ada"))
            assert got.ended.outcome is Outcome.OK
            assert got.served is not None
            assert got.served.home in homes

    play(scenario)
