"""Asking the process that owns a cluster, over its real socket; the cluster answers from a script."""

import asyncio
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from everwarm.cluster import StartFailed
from everwarm.home import Home
from everwarm.owner import Book, OrderFailed, Owner, ask_owner


class ScriptedCluster:
    """Adds ``server-4``, and removes whatever it has."""

    def __init__(self) -> None:
        self.servers = ["server-1", "server-2", "server-3"]
        self.at_once = 0

    async def add(self, progress: Callable[[str], None]) -> str:
        assert self.at_once == 0, "two orders at a time"
        self.at_once += 1
        progress("starting server-4")
        await asyncio.sleep(0)  # whoever asks as well has a turn
        self.at_once -= 1
        self.servers.append("server-4")
        return "server-4"

    async def remove(self, server: str, progress: Callable[[str], None]) -> str:
        if server not in self.servers:
            raise StartFailed(f"There is no server {server}.")
        progress(f"{server} leaves")
        self.servers.remove(server)
        return server


class NoBook:
    """Nobody asks from another machine."""

    async def next_order(self) -> tuple[int, bytes]:
        raise ConnectionError

    def ordered(self, number: int, answer: bytes) -> None:
        raise AssertionError

    async def have_cordons(self, cordons: Sequence[str]) -> None:
        raise AssertionError


class WrittenBook:
    """Orders that are there already, and what became of them."""

    def __init__(self, *orders: bytes) -> None:
        self.orders = list(enumerate(orders))
        self.answers: dict[int, dict[str, Any]] = {}
        self.cordons: list[Sequence[str]] = []
        self.done = threading.Event()

    async def next_order(self) -> tuple[int, bytes]:
        if not self.orders:
            await asyncio.Event().wait()
        return self.orders.pop(0)

    async def have_cordons(self, cordons: Sequence[str]) -> None:
        self.cordons.append(cordons)
        if "broken" in cordons:
            raise StartFailed("server-1/host-broken did not start.")

    def ordered(self, number: int, answer: bytes) -> None:
        self.answers[number] = json.loads(answer)
        if len(self.answers) == 4:
            self.done.set()


def with_owner(
    directory: Path, orders: Callable[[Home], Any], book: Book | None = None
) -> tuple[Any, ScriptedCluster, int]:
    """Run ``orders`` on a thread, as another process would; also how often the owner said that servers changed."""
    home, cluster, changes = Home(directory), ScriptedCluster(), []

    async def whole() -> Any:
        owner = Owner(home, cluster, lambda: changes.append(1), book or NoBook())
        await owner.start()
        (socket,) = home.sockets().glob("owner.sock")
        assert os.stat(socket).st_mode & 0o777 == 0o600
        try:
            return await asyncio.to_thread(orders, home)
        finally:
            await owner.stop()

    return asyncio.run(whole()), cluster, len(changes)


def test_servers_come_and_go(tmp_path: Path) -> None:
    said: list[str] = []

    def orders(home: Home) -> list[str]:
        return [
            ask_owner(home, {"do": "add"}, said.append),
            ask_owner(home, {"do": "remove", "server": "server-2"}, said.append),
        ]

    done, cluster, changes = with_owner(tmp_path, orders)
    assert done == ["server-4", "server-2"]
    assert said == ["starting server-4", "server-2 leaves"]
    assert (cluster.servers, changes) == (["server-1", "server-3", "server-4"], 2)


@pytest.mark.parametrize(
    ("order", "said"),
    [({"do": "remove", "server": "server-9"}, "There is no server server-9"), ({"do": "dance"}, "nobody can do")],
)
def test_what_cannot_be_done_is_said_in_a_line(tmp_path: Path, order: dict[str, str], said: str) -> None:
    def orders(home: Home) -> None:
        with pytest.raises(OrderFailed, match=said):
            ask_owner(home, order, lambda line: None)

    _, _, changes = with_owner(tmp_path, orders)
    assert changes == 0


def test_hosts_of_cordons_wait_for_no_server_that_comes_or_goes(tmp_path: Path) -> None:
    book = WrittenBook(
        b'{"do": "cordons", "cordons": ["default", "@production"]}', b'{"do": "cordons", "cordons": ["broken"]}',
        b'{"do": "cordons"}', b'{"do": "add"}',
    )  # fmt: skip
    _, _, changes = with_owner(tmp_path, lambda home: book.done.wait(10.0), book)
    assert book.cordons == [["default", "@production"], ["broken"]]
    assert book.answers[0] == {"done": {}}
    assert book.answers[1] == {"error": "server-1/host-broken did not start."}
    assert "KeyError" in book.answers[2]["error"]
    assert changes == 2


def test_nobody_owns_a_cluster_here(tmp_path: Path) -> None:
    with pytest.raises(OrderFailed, match="does not answer"):
        ask_owner(Home(tmp_path), {"do": "add"}, lambda line: None)


def test_orders_from_other_machines_are_carried_out_in_turn(tmp_path: Path) -> None:
    book = WrittenBook(b'{"do": "add"}', b'{"do": "remove", "server": "server-9"}', b"junk", b'{"do": "add"}')
    _, _, changes = with_owner(tmp_path, lambda home: book.done.wait(10.0), book)
    assert book.answers[0] == book.answers[3] == {"done": {"server": "server-4"}}
    assert book.answers[1] == {"error": "There is no server server-9."}
    assert book.answers[2]["error"].startswith("JSONDecodeError")
    assert changes == 2
