"""The Unix-socket exchange on one machine: one request at a time per connection.

A connection (``connection.py``, with the frames) carries

    client ─► REQUEST                                  ◄─ STARTED      (guest code runs; see ``host_choice``)
                                                       ◄─ PULL n       (the guest wants up to n bytes of body)
           ─► BODY bytes | BODY_END | BODY_LOST        ◄─ HEAD  served (at most once)
                                                       ◄─ DATA  bytes  (any number)
                                                       ◄─ END          (the response body is whole)
                                                       ◄─ ENDED ended  (always last; then the next request may come)

The request body is sent only when it is pulled, one pull at a time. So nothing unread is ever left in a connection,
it can be used again after every ending, and a body that nobody reads costs its window. Closing the connection is the
cancellation, in both directions: who waits sees it at once, who computes sees it within a few ticks.

A connection to the machine's way out (``egress.py``) carries one outgoing request of a guest, and then it is over:

    host ─► OUTGOING  head, timeouts, whose it is       ◄─ HEAD  status and headers (at most once)
         ─► BODY bytes | BODY_END                       ◄─ DATA  bytes  (any number)
                                                        ◄─ END   (the answer is whole) | FAILED  error code  (last)

There bodies are not pulled: both flow at once, and the socket's own buffers are the backpressure.

PREWARM, PRELOAD, NOTICE, HEAT, SPANS, STAGE and LIVE are single frames without a reply, VARIABLES and STORE are ones
with a reply of their kind (``variables``, ``stores``). A connection that sent SUBSCRIBE gets NOTICE frames for as long
as it stays open; a host says with it at which socket it listens.

This file is the asyncio side (ingress, Server, ShardServer); the host's side, on blocking sockets and threads, is
``host_conversation.py``. Frames and their bounds are shared.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from actors.connection import Connection, Frame, LinkBroken, NobodyListens
from actors.exchange import WINDOW_BYTES_MAX, Ended, Outcome, Request, Served
from actors.wire import ENDED, REQUEST, SERVED, Undecodable
from isolates.conversation import BodyLost

#: A Unix socket's path has at most 107 bytes.
SOCKET_PATH_BYTES_MAX = 107


class BodySource(Protocol):
    """Where the rest of a request body comes from."""

    async def read(self, bytes_max: int) -> bytes | None:
        """The next bytes, at least one; None at the end. ``BodyLost`` when it broke off."""


class Answer(Protocol):
    """An answer on its way, wherever the request runs. Read in this order: served, read ..., ended."""

    async def served(self) -> Served | None:
        """The head, or None when the stage ended without one."""

    async def read(self) -> bytes | None:
        """The next bytes of the response body; None when no more come: ``ended`` says whether it is whole."""

    @property
    def whole(self) -> bool:
        """Whether the end of the response body has been read: without it, a client must not see a clean end."""

    async def ended(self) -> Ended:
        """How it ended. Waits for everything, also for what runs after the response."""

    def cancel(self) -> None:
        """Nobody wants it any more. Safe at any time, also after the end."""


class WindowAnswer(Answer, Protocol):
    """An answer of which one can see what has arrived already."""

    def ready(self) -> bool:
        """Whether something has arrived, so that the next read does not wait."""

    @property
    def is_over(self) -> bool:
        """Whether the last word has been read."""


class Links:
    """Idle connections to the sockets of this machine, by path. An idle connection costs a thread in the host."""

    #: Kept idle per socket. More concurrent requests than this open and close connections, at 30 µs each.
    IDLE_MAX = 64

    def __init__(self) -> None:
        self._idle: dict[str, list[Connection]] = {}

    async def take(self, path: str) -> Connection:
        """A connection to the socket at ``path``. ``NobodyListens`` there, or another ``LinkBroken``: it is busy."""
        idle = self._idle.get(path)
        while idle:
            connection = idle.pop()
            if not connection.closed:
                return connection
        return await self._connect(path)

    async def stays(self, path: str, seconds: float) -> bool:
        """Whether a new connection to ``path`` is still open after so long. Raises as ``take`` does."""
        connection = await self._connect(path)
        try:
            async with asyncio.timeout(seconds):
                await connection.receive()  # nobody answers without a request: this ends when the connection does
        except LinkBroken:
            return False
        except TimeoutError:
            return True
        finally:
            connection.close()
        return True

    async def _connect(self, path: str) -> Connection:
        try:
            _, connection = await asyncio.get_running_loop().create_unix_connection(Connection, path)
        except (ConnectionRefusedError, FileNotFoundError) as nobody:
            raise NobodyListens(f"nobody listens: {nobody.strerror}") from nobody
        except OSError as refused:
            raise LinkBroken(f"it takes no connection: {refused.strerror}") from refused
        return connection

    def give_back(self, path: str, connection: Connection) -> None:
        """The exchange on ``connection`` is over and it is clean."""
        idle = self._idle.setdefault(path, [])
        if connection.closed or len(idle) >= self.IDLE_MAX:
            connection.close()
        else:
            idle.append(connection)

    async def open_ahead(self, path: str) -> None:
        """Have a connection to ``path`` before the first request needs one.

        Nobody listening yet is no failure here: the first exchange says what is wrong.
        """
        with contextlib.suppress(LinkBroken):
            self.give_back(path, await self.take(path))

    async def exchange(self, path: str, request: Request, body: BodySource) -> "LinkAnswer":
        """Send a request to the socket at ``path``."""
        connection = await self.take(path)
        connection.send(Frame.REQUEST, REQUEST.encode(request))
        return LinkAnswer(self, path, connection, body)

    async def tell(self, path: str, kind: Frame, payload: bytes) -> None:
        """Send one frame that has no reply."""
        connection = await self.take(path)
        connection.send(kind, payload)
        self.give_back(path, connection)

    def close(self) -> None:
        """Close all idle connections."""
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()


class LinkAnswer:
    """An answer that arrives on a link. A link that breaks is an ending: ``internalError``."""

    def __init__(self, links: Links, path: str, connection: Connection, body: BodySource) -> None:
        self._links = links
        self.path = path
        self._connection: Connection | None = connection
        self._body = body
        self._feeding: asyncio.Task[None] | None = None
        self._ended: Ended | None = None
        self.whole = False
        #: The other end said that guest code runs.
        self.started = False
        #: The other end asked for more of the body.
        self.pulled = False
        #: The link broke, and not because this end cancelled.
        self.lost = False
        #: It broke before the other end had read the request: certainly nothing ran.
        self.unread = False

    async def served(self) -> Served | None:
        kind, payload = await self._next()
        return SERVED.decode(payload) if kind is Frame.HEAD else None

    async def read(self) -> bytes | None:
        if self._ended is not None:
            return None
        kind, payload = await self._next()
        self.whole = self.whole or kind is Frame.END
        return payload if kind is Frame.DATA else None

    async def ended(self) -> Ended:
        while self._ended is None:
            await self._next()
        return self._ended

    def ready(self) -> bool:
        """Whether something has arrived, so that the next read does not wait."""
        return self._connection is not None and self._connection.has_answer

    @property
    def is_over(self) -> bool:
        """Whether the last word has been read."""
        return self._ended is not None

    def cancel(self) -> None:
        if self._feeding is not None:
            self._feeding.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def _next(self) -> tuple[Frame, bytes]:
        """The next frame that is not a pull; pulls are served on the side."""
        while True:
            if self._connection is None:
                self._ended = self._ended or Ended(Outcome.CANCELED)
                return Frame.ENDED, b""
            try:
                kind, payload = await self._connection.receive()
            except LinkBroken as broken:
                cancelled = self._connection is None
                self.lost = not cancelled
                # Nothing follows the request but what the other end asks for.
                self.unread = self._connection is not None and self._connection.unread and not self.pulled
                self._ended = Ended(Outcome.CANCELED if cancelled else Outcome.INTERNAL_ERROR, str(broken))
                self.cancel()
                return Frame.ENDED, b""
            if kind is Frame.STARTED:
                self.started = True
                continue
            if kind is Frame.PULL:
                self.pulled = True
                self._feeding = asyncio.create_task(self._feed(int.from_bytes(payload)))
                continue
            if kind is Frame.ENDED:
                self._ended = ENDED.decode(payload)
                self._finish()
            return kind, payload

    def _finish(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._feeding is not None and not self._feeding.done():
            # The guest ended without waiting for what it had pulled: the late frame would meet the next request.
            self._feeding.cancel()
            connection.close()
        else:
            self._links.give_back(self.path, connection)

    async def _feed(self, bytes_max: int) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            try:
                data = await self._body.read(min(bytes_max, WINDOW_BYTES_MAX))
            except BodyLost:
                connection.send(Frame.BODY_LOST)
                return
            connection.send(*((Frame.BODY, data) if data is not None else (Frame.BODY_END, b"")))
        except LinkBroken:
            pass  # whoever waits for the answer sees the same, and says so


async def read_window(answer: WindowAnswer, *, wait: bool) -> bytes:
    """What has arrived of a response body, about a window at most; with ``wait`` at least something, if more comes."""
    pieces: list[bytes] = []
    size = 0
    while size < WINDOW_BYTES_MAX and not answer.is_over and (answer.ready() or (wait and not pieces)):
        data = await answer.read()
        if data is None:
            break
        pieces.append(data)
        size += len(data)
    return b"".join(pieces)


class PulledBody:
    """A request body that is read from the other end of a link, a pull at a time."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._done = request.body_complete

    async def read(self, bytes_max: int) -> bytes | None:
        if self._done:
            return None
        try:
            self._connection.send(Frame.PULL, bytes_max.to_bytes(4))
            kind, payload = await self._connection.receive()
        except LinkBroken as broken:
            raise BodyLost from broken
        if kind is Frame.BODY:
            return payload
        self._done = True
        if kind is Frame.BODY_END:
            return None
        raise BodyLost


class Reply:
    """Where a role that serves a link writes its answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def head(self, served: Served) -> None:
        """The head, once."""
        self._connection.send(Frame.HEAD, SERVED.encode(served))

    async def data(self, data: bytes) -> None:
        """A piece of the body; waits for a slow reader."""
        self._connection.send(Frame.DATA, data)
        await self._connection.drain()

    def end(self) -> None:
        """The body is whole."""
        self._connection.send(Frame.END)

    def ended(self, ended: Ended) -> None:
        """The last word."""
        self._connection.send(Frame.ENDED, ENDED.encode(ended))


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


RequestHandler = Callable[[Request, PulledBody, Reply], Awaitable[None]]
NoticeHandler = Callable[[Frame, bytes], None]
SubscribeHandler = Callable[["Connection", bytes], None]


class LinkServer:
    """Serves links at a socket of this machine. A connection that closes cancels the request on it."""

    #: Each is a request in work here; beyond it connections are closed at once, which their clients take for busy.
    CONNECTIONS_MAX = 4_096

    def __init__(
        self,
        on_request: RequestHandler,
        on_notice: NoticeHandler,
        on_subscribe: SubscribeHandler | None = None,
        answers: Mapping[Frame, Callable[[bytes], Awaitable[bytes]]] = MappingProxyType({}),
    ) -> None:
        self._on_request = on_request
        self._on_notice = on_notice
        self._on_subscribe = on_subscribe
        self._answers = answers
        self._tasks: dict[Connection, asyncio.Task[None]] = {}
        self._server: asyncio.AbstractServer | None = None

    async def start(self, path: Path) -> None:
        """Listen at ``path``, which only this user may enter."""
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: Connection(self._accept), str(path))
        os.chmod(path, 0o600)

    def _accept(self, connection: Connection) -> None:
        if len(self._tasks) >= self.CONNECTIONS_MAX:
            connection.close()
            return
        task = asyncio.create_task(self._serve(connection))
        self._tasks[connection] = task
        task.add_done_callback(lambda _: self._tasks.pop(connection, None))
        connection.on_closed = lambda: _cancel(task)

    async def _serve(self, connection: Connection) -> None:
        try:
            while True:
                kind, payload = await connection.receive()
                if kind is Frame.REQUEST:
                    request = REQUEST.decode(payload)
                    await self._on_request(request, PulledBody(connection, request), Reply(connection))
                elif kind is Frame.SUBSCRIBE and self._on_subscribe is not None:
                    self._on_subscribe(connection, payload)
                elif kind in self._answers:
                    connection.send(kind, await self._answers[kind](payload))
                else:
                    self._on_notice(kind, payload)
        except (LinkBroken, Undecodable):
            pass  # the client went away, or speaks nonsense: that is how a link ends
        finally:
            connection.on_closed = None
            connection.close()

    @property
    def requests(self) -> int:
        """Connections that are open."""
        return len(self._tasks)

    async def stop(self) -> None:
        """Stop listening and cancel what runs."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
