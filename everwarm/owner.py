"""The line to the process that owns a cluster: what only the owner of its actors can do is asked for here.

Who started a cluster's actors (``up``) follows what becomes of them, so servers that are added later are started there
too. It listens on a Unix socket in the run directory, which is its user's alone. One order a connection, one order at
a time; lines of JSON:

    {"do": "add"} or {"do": "remove", "server": "server-2"}
    {"progress": "starting server-4"} …  and at last  {"done": {"server": "server-4"}}  or  {"error": "…"}

``{"do": "roles"}`` is a question and waits for no order: {"done": {"roles": {"server-1/host": {"pid": …, "state":
"running", "restarts": 0, "took_s": []}, …}}}

From other machines orders come through the ControlPlane's process (``order_book``), and have the last line as answer.
From there also comes ``{"do": "cordons", "cordons": ["default", …]}``: the ControlPlane needs host processes for a
deploy.
"""

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from actors.side_work import SideWork
from everwarm.home import Home

#: Longer than a server may take to come or to go.
_ORDER_S_MAX = 240.0
_LINE_BYTES_MAX = 64 << 10
#: How long until the book is asked for again that could not be read.
_BOOK_AGAIN_S = 1.0
#: Orders that wait for the one under way.
_ORDERS_MAX = 8


class OrderFailed(Exception):
    """What was asked for was not done; the message says why, in one line."""


class Servers(Protocol):
    """The servers of a cluster, as somebody may change them. Both say what they did it to; ``StartFailed``."""

    async def add(self, progress: Callable[[str], None]) -> str:
        """Start another one, and wait until it is a member."""

    async def remove(self, server: str, progress: Callable[[str], None]) -> str:
        """Have one leave, and wait until it has ended."""


def _socket_path(home: Home) -> Path:
    return home.sockets() / "owner.sock"


class Book(Protocol):
    """Orders from other machines."""

    async def next_order(self) -> tuple[int, bytes]:
        """Waits for the next: its number and the order. ``ConnectionError`` when it can not."""

    def ordered(self, number: int, answer: bytes) -> None:
        """What became of it."""

    async def have_cordons(self, cordons: Sequence[str]) -> None:
        """Have host processes of these cordons on every server, and of no others. ``StartFailed``."""


class Owner:
    """The owner's end. ``on_changed`` hears when servers came or went."""

    def __init__(
        self,
        home: Home,
        servers: Servers,
        on_changed: Callable[[], object],
        book: Book,
        roles: Callable[[], dict[str, dict[str, object]]] = dict,
    ) -> None:
        """``roles``: what is known of each role's process."""
        self._path = _socket_path(home)
        self._book = book
        self._reading: asyncio.Task[None] | None = None
        self._side = SideWork("owner")
        self._servers = servers
        self._on_changed = on_changed
        self._roles = roles
        self._one_at_a_time = asyncio.Lock()
        self._orders = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_LINE_BYTES_MAX)
        os.chmod(self._path, 0o600)
        self._reading = asyncio.create_task(self._read_book())

    async def stop(self) -> None:
        """Listen no longer."""
        if self._reading is not None:
            self._reading.cancel()
        await self._side.stop()
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(**line: object) -> None:
            writer.write(json.dumps(line).encode() + b"\n")

        self._orders += 1
        try:
            line = await asyncio.wait_for(reader.readline(), 5.0)
            if self._orders > _ORDERS_MAX:
                say(error="Too many orders are waiting.")
                return
            if _is(line, "roles"):  # a question
                say(done={"roles": self._roles()})
                return
            say(**await self._answer(line, lambda progress: say(progress=progress)))
        except (OSError, TimeoutError, ValueError) as nonsense:
            say(error=f"not an order: {type(nonsense).__name__}")
        finally:
            self._orders -= 1
            writer.close()

    async def _read_book(self) -> None:
        while True:
            try:
                number, order = await self._book.next_order()
            except ConnectionError:
                await asyncio.sleep(_BOOK_AGAIN_S)
                continue
            # Taken at once, whatever is under way: the book bounds how many there are.
            self._side.begin(self._carry_out(number, order))

    async def _carry_out(self, number: int, order: bytes) -> None:
        if _is(order, "cordons"):
            # Out of turn: a deploy waits for it, and what comes or goes meanwhile is seen to there.
            answer = await _answered(self._have_cordons(json.loads(order)))
        else:
            answer = await self._answer(order, lambda progress: None)
        self._book.ordered(number, json.dumps(answer).encode())

    async def _answer(self, line: bytes, progress: Callable[[str], None]) -> dict[str, object]:
        """Carry out an order, when its turn comes: the last line of the answer."""
        async with self._one_at_a_time:
            return await _answered(self._do(line, progress))

    async def _have_cordons(self, order: dict[str, list[str]]) -> dict[str, object]:
        await self._book.have_cordons(order["cordons"])
        self._on_changed()  # processes came or went
        return {}

    async def _do(self, line: bytes, progress: Callable[[str], None]) -> dict[str, object]:
        order = json.loads(line)
        if order["do"] == "add":
            server = await self._servers.add(progress)
        elif order["do"] == "remove":
            server = await self._servers.remove(order["server"], progress)
        else:
            raise ValueError(f"nobody can do {order['do']!r}")
        self._on_changed()
        return {"server": server}


async def _answered(doing: Awaitable[dict[str, object]]) -> dict[str, object]:
    """What an order came to: the last line of its answer."""
    try:
        return {"done": await doing}
    except Exception as failed:
        from everwarm.cluster import StartFailed

        return {"error": str(failed) if isinstance(failed, StartFailed) else f"{type(failed).__name__}: {failed}"}


def _is(line: bytes, what: str) -> bool:
    """Whether a line asks for that; not, when it is no line of ours."""
    try:
        asked = json.loads(line)
    except ValueError:
        return False
    return isinstance(asked, dict) and asked.get("do") == what


def ask_owner(home: Home, order: dict[str, str], progress: Callable[[str], None]) -> str:
    """Ask the owner of the cluster that runs from ``home``: the name of the server it was about. ``OrderFailed``."""
    return str(_done(home, order, progress)["server"])


def ask_roles(home: Home) -> dict[str, dict[str, Any]]:
    """What the owner knows of each role's process, by address: ``pid``, ``state``, ``restarts``, and ``took_s`` of the
    last ones. ``OrderFailed``."""
    found: dict[str, dict[str, Any]] = _done(home, {"do": "roles"}, lambda line: None)["roles"]
    return found


def _done(home: Home, order: dict[str, str], progress: Callable[[str], None]) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(_ORDER_S_MAX)
        try:
            line.connect(str(_socket_path(home)))
            line.sendall(json.dumps(order).encode() + b"\n")
            for said in line.makefile("r", encoding="utf-8"):
                word = json.loads(said)
                if "done" in word:
                    done: dict[str, Any] = word["done"]
                    return done
                if "error" in word:
                    raise OrderFailed(str(word["error"]))
                progress(str(word["progress"]))
        except OSError as broken:
            raise OrderFailed(f"The process that owns the cluster does not answer ({broken}).") from broken
    raise OrderFailed("The process that owns the cluster went away.")
