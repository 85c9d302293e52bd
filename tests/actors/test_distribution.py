"""Bounds of bringing code to many servers at once."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.distribution import Distribution
from actors.view import encode_plain
from isolates.artifact import Piece


class Fleet:
    """Servers that have nothing, and how many of them are sent a piece at once."""

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces = pieces
        self.under_way = 0
        self.most = 0
        self.sent = 0

    async def call(self, server: str, method: str, payload: bytes = b"") -> bytes:
        if method == "missing_code":
            return encode_plain(["a digest"])
        if method == "missing_pieces":
            return encode_plain([asdict(piece) for piece in self._pieces])
        if method == "install_piece":
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            await asyncio.sleep(0)
            self.under_way -= 1
            self.sent += 1
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


def test_three_hundred_servers_do_not_get_an_engine_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    artifact = tmp_path / "engine"
    artifact.write_bytes(b"code")
    piece = Piece(**dict[str, Any](dict.fromkeys(Piece.__dataclass_fields__, "x")))
    monkeypatch.setattr("actors.distribution.encode_compiled", lambda compiled: b"")

    async def scenario() -> None:
        fleet = Fleet([piece])
        distribution = Distribution(Catalog(), Deployer(artifact), fleet)  # type: ignore[arg-type]
        late = await distribution.distribute([f"server-{i}" for i in range(300)], Component([piece]))  # type: ignore[arg-type]
        assert late == []
        assert fleet.sent == 300
        assert fleet.most <= 8

    asyncio.run(scenario())


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
