"""Bounds of bringing code to many servers at once."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from actors.distribution import Distribution, OtherEngine
from actors.view import encode_plain
from isolates.artifact import Piece
from isolates.engine import engine_text
from tests.simulation.virtual_loop import play


class Fleet:
    """Servers that have nothing. What is sent to them is seen; one that ``stalls`` answers when it goes on, and one of
    those that are ``full`` puts nothing on its disk."""

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces = pieces
        self.sent: dict[str, list[bytes]] = {}
        self.stalls: dict[str, asyncio.Event] = {}
        self.full: set[str] = set()
        self.manifests: list[str] = []
        self.engine = engine_text()

    async def call(self, server: str, method: str, payload: bytes = b"") -> bytes:
        if server in self.stalls:
            await self.stalls[server].wait()
        if method == "engine":
            return self.engine.encode()
        if method == "missing_code":
            return encode_plain(["a digest"])
        if method == "missing_pieces":
            return encode_plain([asdict(piece) for piece in self._pieces])
        if method == "install_piece":
            if server in self.full:
                return b"its disk is full"
            await asyncio.sleep(0.1)
            self.sent.setdefault(server, []).append(payload)
        if method == "install_code":
            self.manifests.append(server)
        return b""


class Catalog:
    """A catalog that counts how often all of it is read."""

    def __init__(self) -> None:
        self.changes = 1
        self.read = 0

    def seq(self) -> int:
        return self.changes

    def current(self) -> list[Any]:
        self.read += 1
        return []


class Deployer:
    def __init__(self, path: Path) -> None:
        self.store_of_artifacts = self
        self.piece_path: Callable[[str], Path] = lambda digest: path


class Component:
    """As much of a compiled component as its way needs."""

    component_digest = "a digest"

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces


def piece(name: str) -> Piece:
    return Piece(**{**dict.fromkeys(Piece.__dataclass_fields__, name), "artifact_bytes": 4, "shared": False})


class Site:
    """A distribution of pieces that are on disk, and how it went."""

    def __init__(self, directory: Path, names: list[str]) -> None:
        self.pieces = [piece(name) for name in names]
        self.fleet = Fleet(self.pieces)
        self.shared: list[bytes] = []
        self.unplaced: list[tuple[str, str]] = []
        for name in names:
            (directory / name).write_bytes(b"code")
        deployer = Deployer(directory)
        deployer.piece_path = lambda digest: directory / digest
        self.distribution = Distribution(Catalog(), deployer, self.fleet, self.share)  # type: ignore[arg-type]
        self.distribution.on_unplaced = lambda server, why: self.unplaced.append((server, why))

    async def share(self, payload: bytes) -> bytes:
        self.shared.append(payload)
        return payload

    async def distribute(self, *servers: str) -> dict[str, str]:
        return await self.distribution.distribute(servers, Component(self.pieces))  # type: ignore[arg-type]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Site]:
    monkeypatch.setattr("actors.distribution.encode_compiled", lambda compiled: b"")
    monkeypatch.setattr("asyncio.to_thread", called)  # virtual time has no threads
    return lambda *names: Site(tmp_path, list(names))


async def called(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)


def test_three_hundred_servers_get_an_engine_that_is_read_once(make: Callable[..., Site]) -> None:
    async def scenario() -> None:
        site = make("engine")
        assert await site.distribute(*(f"server-{i}" for i in range(300))) == {}
        assert len(site.fleet.manifests) == 300
        assert len(site.shared) == 1
        assert {id(payload) for payloads in site.fleet.sent.values() for payload in payloads} == {id(site.shared[0])}
        assert site.distribution._shared == {}

    play(scenario())


def test_a_few_pieces_are_held_at_once(make: Callable[..., Site]) -> None:
    async def scenario() -> None:
        site, most = make(*(f"piece-{i}" for i in range(30))), list[int]()

        async def one(number: int) -> None:
            only = site.pieces[number % 30]
            async with site.distribution._payload(only):
                most.append(sum(held.payload.done() for held in site.distribution._shared.values()))
                await asyncio.sleep(1.0)

        await asyncio.gather(*(one(number) for number in range(60)))
        assert len(site.shared) == 30
        assert max(most) == 8

    play(scenario())


def test_who_waits_for_a_piece_and_leaves_holds_no_place(make: Callable[..., Site]) -> None:
    async def scenario() -> None:
        site = make(*(f"piece-{i}" for i in range(9)))

        async def one(number: int) -> None:
            async with site.distribution._payload(site.pieces[number]):
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(one(number)) for number in range(9)]
        await asyncio.sleep(1.0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.sleep(0.0)
        assert site.distribution._places._value == 8

    play(scenario())


def test_the_slowest_is_not_waited_for_and_gets_it_all_the_same(make: Callable[..., Site]) -> None:
    async def scenario() -> None:
        site, loop = make("engine"), asyncio.get_running_loop()
        site.fleet.stalls["c"] = asyncio.Event()
        began_s = loop.time()
        assert await site.distribute("a", "b", "c") == {"c": "it has not answered yet"}
        assert loop.time() - began_s < 0.5
        site.fleet.stalls["c"].set()
        await asyncio.sleep(1.0)
        assert sorted(site.fleet.manifests) == ["a", "b", "c"]
        assert site.unplaced == []

    play(scenario())


def test_a_machine_whose_disk_is_full_is_late_alone_and_says_why(make: Callable[..., Site]) -> None:
    async def scenario() -> None:
        site = make("engine")
        site.fleet.full = {"b"}
        assert await site.distribute("a", "b", "c") == {"b": "its disk is full"}
        assert site.unplaced == [("b", "its disk is full")]
        assert sorted(site.fleet.manifests) == ["a", "c"]

    play(scenario())


def test_a_machine_of_another_kind_gets_nothing(make: Callable[..., Site]) -> None:
    async def scenario() -> None:
        site = make("engine")
        site.fleet.engine = "wasmtime 50.0.1 for aarch64 (settings 00000000)"
        with pytest.raises(OtherEngine, match=r"it has wasmtime 50.0.1 for aarch64 .*; code here is compiled by"):
            await site.distribution.install_all("a")

    play(scenario())


def test_what_is_on_its_way_ends_with_the_control_plane(make: Callable[..., Site]) -> None:
    async def scenario() -> None:
        site = make("engine")
        site.fleet.stalls["c"] = asyncio.Event()
        await site.distribute("a", "b", "c")
        await site.distribution.stop()
        assert site.distribution._late == set()

    play(scenario())


def test_servers_that_start_together_have_the_catalog_read_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        catalog = Catalog()
        distribution = Distribution(catalog, Deployer(tmp_path), Fleet([]))  # type: ignore[arg-type]
        await asyncio.gather(*(distribution.install_all(f"server-{i}") for i in range(300)))
        assert catalog.read == 1
        catalog.changes += 1
        await distribution.install_all("server-1")
        assert catalog.read == 2

    asyncio.run(scenario())
