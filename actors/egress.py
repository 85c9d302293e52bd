"""EgressServer: the machine's only way out for guests. It lives in the Server's process; hosts reach it over a socket.

A connection from a host carries one exchange (frames: ``link.py``; the host's end: ``egress_line.py``). What is
decided is ``egress_policy``, what is done on the network is ``egress_origin``; here an exchange meets its bounds:

    admitted ─► judged ─► its tree's turn ─► first byte of its body ─► head ─► body ─► END
        └───────────┴──────────┴──────────────────┴─────────────────────┴───────┴──► FAILED code

Whatever goes wrong is a case of ``wasi:http``'s error-code, told in a FAILED frame; an exchange never fails a request
by itself. Tenants are kept apart by construction: each worker has a pool of its own, and bounds of its own.

Cancellation is a closed connection. A socket that is not read, because the origin takes nothing, would not show it;
so one epoll for all connections hears when the other end goes, and nothing else (``_Departures``).
"""

import asyncio
import contextlib
import logging
import os
import select
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from actors.connection import Connection, Frame, LinkBroken
from actors.egress_connect import Connector
from actors.egress_frames import ANSWER_HEAD, ASKED, PIECE_BYTES_MAX, Asked, encode_failed
from actors.egress_http import ExchangeFailed
from actors.egress_names import Lookup, SystemNames
from actors.egress_origin import Closings, OriginLimits, OriginPool, OriginTimeouts
from actors.egress_policy import (
    EgressPolicy,
    Headers,
    Target,
    content_length,
    end_to_end,
    outgoing_headers,
    parse_target,
    request_refusal,
    shorter,
)
from actors.nested_answer import CallRefused
from actors.nested_calls import Aimed, NestedCalls
from actors.wire import Undecodable
from isolates.conversation import ResponseHead
from isolates.egress import ErrorCode

_log = logging.getLogger("everwarm.egress")

_FULL: ErrorCode = ("connection-limit-reached", None)
#: Methods whose requests seldom have a body, and those whose empty body is said with a length of zero.
_BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "DELETE", "TRACE"})
_LENGTH_WANTED = frozenset({"POST", "PUT", "PATCH"})


@dataclass(frozen=True, slots=True)
class EgressLimits:
    """Bounds of one machine's way out."""

    #: Exchanges under way on this machine. Each holds up to half a MiB that its reader has not taken.
    exchanges_max: int = 1_024
    #: Of them for one worker, those that wait for a connection included: no worker takes all.
    worker_exchanges_max: int = 256
    #: Workers whose idle connections are kept; the longest unused are closed first.
    pools_max: int = 256
    #: What guests may ask for at most. The last two leave room for models that think for minutes; a request that
    #: ends, or whose client leaves, ends its exchanges at once whatever these say.
    connect_s: float = 15.0
    first_byte_s: float = 300.0
    between_bytes_s: float = 300.0
    #: How long a guest may neither take nor give anything. Its own request has ended long before, or is a wait that
    #: nobody will miss.
    guest_s: float = 600.0
    #: From a host's connection to its first frame: both ends are ours, on one machine.
    ask_s: float = 10.0
    #: How long the head waits for a first byte of the body, or for its end. After it the body is taken to exist, and
    #: is sent in chunks; before, a request without a body is sent without one, as origins expect.
    body_wait_s: float = 0.002
    bodiless_wait_s: float = 0.02
    #: How often pools that nobody uses are looked for.
    sweep_s: float = 5.0
    #: Waiting connections of hosts: as many as a host has threads.
    backlog: int = 512
    origin: OriginLimits = field(default_factory=OriginLimits)


@dataclass(slots=True)
class _Tenant:
    """A worker's part of the way out."""

    pool: OriginPool
    open: int = 0
    used_s: float = 0.0


@dataclass(slots=True)
class _Tree:
    """The turns of one request tree."""

    turns: asyncio.Semaphore
    users: int = 0


@dataclass(slots=True)
class _Counts:
    requests: int = 0
    canceled: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    failures: dict[str, int] = field(default_factory=dict)


class EgressServer:
    """Carries out what guests of this machine ask of the world."""

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        limits: EgressLimits | None = None,
        lookup: Lookup | None = None,
        authorities_pem: str = "",
        nested: NestedCalls | None = None,
    ) -> None:
        """``lookup`` finds a name's addresses, without one the machine's resolver. ``authorities_pem`` are trusted
        beside the public certificate authorities. ``nested`` carries out what is for other workers."""
        self._policy = policy
        self._limits = limits or EgressLimits()
        self._nested = nested
        self._names = SystemNames() if lookup is None else None
        self._connector = Connector(policy, lookup or self._system_lookup, authorities_pem)
        self._closings = Closings()
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        self._trees: dict[str, _Tree] = {}
        self._tasks: dict[Connection, asyncio.Task[None]] = {}
        self._counts = _Counts()
        self._departures = _Departures()
        self._server: asyncio.AbstractServer | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def _system_lookup(self, worker: str, host: str, port: int) -> list[str]:
        assert self._names is not None
        return await self._names.lookup(worker, host, port)

    # -------------------------------------------------------------------------------------------------- lifecycle

    async def start(self, path: Path) -> None:
        """Listen at ``path``, which only this user may enter."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: Connection(self._accept), str(path), backlog=self._limits.backlog
        )
        os.chmod(path, 0o600)
        self._departures.start(loop)
        self._sweeping = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Stop listening, cancel what is under way, close all connections."""
        if self._server is not None:
            self._server.close()
        tasks = [*self._tasks.values(), *([self._sweeping] if self._sweeping is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for tenant in self._tenants.values():
            await tenant.pool.aclose()
        await self._closings.ended()
        self._tenants.clear()
        self._departures.stop()
        if self._names is not None:
            self._names.close()

    def statistics(self) -> dict[str, object]:
        """Counters, and what is open now."""
        return {
            "requests": self._counts.requests,
            "open": sum(tenant.open for tenant in self._tenants.values()),
            "links": len(self._tasks),
            "canceled": self._counts.canceled,
            "failures": dict(self._counts.failures),
            "sent_bytes": self._counts.sent_bytes,
            "received_bytes": self._counts.received_bytes,
            "pools": len(self._tenants),
            "connections": sum(len(tenant.pool.connections) for tenant in self._tenants.values()),
        }

    async def _sweep(self) -> None:
        """Close the pools that nobody has used for as long as an idle connection is kept."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._limits.sweep_s)
            await self._close_pools(lambda tenant: loop.time() - tenant.used_s > self._limits.origin.idle_s)

    async def _close_pools(self, which: Callable[[_Tenant], bool]) -> None:
        unused = [worker for worker, tenant in self._tenants.items() if not tenant.open and which(tenant)]
        closing = [self._tenants.pop(worker).pool for worker in unused]
        for pool in closing:
            await pool.aclose()

    # ------------------------------------------------------------------------------------------- a host's connection

    def _accept(self, connection: Connection) -> None:
        if len(self._tasks) >= self._limits.exchanges_max:
            self._count(_FULL)
            connection.send(Frame.FAILED, encode_failed(_FULL))
            assert connection.transport is not None
            connection.transport.close()
            return
        task = asyncio.create_task(self._serve(connection))
        self._tasks[connection] = task
        task.add_done_callback(lambda _: self._tasks.pop(connection, None))
        connection.on_closed = lambda: _cancel(task)
        self._departures.watch(connection)

    async def _serve(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self._limits.ask_s):
                kind, payload = await connection.receive()
            if kind is not Frame.OUTGOING:
                return
            asked = ASKED.decode(payload)
            self._counts.requests += 1
            try:
                await self._carry_out(asked, connection)
                connection.send(Frame.END)
            except ExchangeFailed as failed:
                self._count(failed.code)
                connection.send(Frame.FAILED, encode_failed(failed.code))
            except asyncio.CancelledError:
                self._counts.canceled += 1
                raise
            except (LinkBroken, TimeoutError):
                self._counts.canceled += 1
                return
            except Exception:
                # One exchange's, whatever it is: its guest is told, and so are we.
                _log.exception("an outgoing request of %s failed in the way out", asked.worker)
                code = ("internal-error", None)
                self._count(code)
                connection.send(Frame.FAILED, encode_failed(code))
            await self._let_read(connection)
        except (LinkBroken, Undecodable, TimeoutError):
            pass  # the host went away, or speaks nonsense, or nothing
        finally:
            self._departures.forget(connection)
            connection.on_closed = None
            connection.close()

    async def _let_read(self, connection: Connection) -> None:
        """Wait until all that was sent is in the host's hands: closing would take the rest back."""
        assert connection.transport is not None
        connection.transport.set_write_buffer_limits(0)
        async with asyncio.timeout(self._limits.guest_s):
            await connection.drain()

    def _count(self, code: ErrorCode) -> None:
        self._counts.failures[code[0]] = self._counts.failures.get(code[0], 0) + 1

    # ------------------------------------------------------------------------------------------------- one exchange

    async def _carry_out(self, asked: Asked, connection: Connection) -> None:
        """An exchange up to the last byte of its answer. ``ExchangeFailed`` says why not."""
        if self._nested is None:
            await self._go_out(asked, connection, self._turn(asked))
            return
        try:
            aimed = await self._nested.aim(asked)
            if isinstance(aimed, Aimed):
                await self._call(self._nested, aimed, connection)
                return
            within_s = self._connect_s(asked)
            turn = self._turn(asked) if aimed is None else self._nested.connected(aimed, within_s)
            await self._go_out(asked, connection, turn)
        except CallRefused as refused:
            raise ExchangeFailed(refused.code) from refused

    async def _go_out(
        self, asked: Asked, connection: Connection, turn: contextlib.AbstractAsyncContextManager[None]
    ) -> None:
        """An exchange with the world, in its ``turn``."""
        target, headers = self._judge(asked)
        async with self._admitted(asked.worker) as pool, _in_time(turn):
            length = content_length(headers)
            if isinstance(length, tuple):
                raise ExchangeFailed(length)
            first = None if length else await self._first_of_body(asked, connection)
            has_body = first != (Frame.BODY_END, b"")
            if not has_body and length is None and asked.head.method in _LENGTH_WANTED:
                headers = (*headers, ("content-length", b"0"))
            body = self._pieces(connection, first, length) if has_body else None
            timeouts = OriginTimeouts(
                self._connect_s(asked),
                shorter(asked.timeouts.first_byte_s, self._limits.first_byte_s),
                shorter(asked.timeouts.between_bytes_s, self._limits.between_bytes_s),
            )
            exchange = pool.exchange(asked.head.method, target, asked.head.path, headers, body, timeouts)
            async with exchange as (status, answered, pieces):
                kept = end_to_end(tuple((name.decode("latin-1"), value) for name, value in answered))
                connection.send(Frame.HEAD, ANSWER_HEAD.encode(ResponseHead(status, kept)))
                async for piece in pieces:
                    await self._pass_on(piece, connection)

    async def _call(self, nested: NestedCalls, aimed: Aimed, connection: Connection) -> None:
        """A call to another worker, up to the last byte of its answer."""
        async with self._admitted(aimed.asked.worker):
            answer = await nested.open(aimed, await self._first_of_body(aimed.asked, connection), connection)
            try:
                connection.send(Frame.HEAD, ANSWER_HEAD.encode(await answer.head()))
                async for piece in answer.pieces():
                    await self._pass_on(piece, connection)
            finally:
                nested.close(answer)

    def _judge(self, asked: Asked) -> tuple[Target, Headers]:
        head = asked.head
        target = parse_target(head.scheme.lower(), head.authority)
        if not isinstance(target, Target):
            raise ExchangeFailed(target)
        refused = request_refusal(head.method, head.path, head.headers) or self._policy.refusal(target, asked.allow)
        if refused is not None:
            raise ExchangeFailed(refused)
        headers = outgoing_headers(head.headers, traceparent=asked.traceparent, loops_left=asked.loops_left)
        if headers and isinstance(headers[0], str):
            raise ExchangeFailed(headers)
        return target, headers

    @contextlib.asynccontextmanager
    async def _admitted(self, worker: str) -> AsyncIterator[OriginPool]:
        """A place among the exchanges of a worker, and its pool."""
        tenant = self._tenants.get(worker)
        if tenant is None:
            tenant = self._tenants[worker] = _Tenant(
                OriginPool(worker, self._connector, self._closings, self._limits.origin)
            )
        self._tenants.move_to_end(worker)
        if tenant.open >= self._limits.worker_exchanges_max:
            raise ExchangeFailed(_FULL)
        tenant.open += 1
        try:
            if len(self._tenants) > self._limits.pools_max:
                surplus = iter(range(len(self._tenants) - self._limits.pools_max))
                await self._close_pools(lambda _: next(surplus, None) is not None)
            yield tenant.pool
        finally:
            tenant.open -= 1
            tenant.used_s = asyncio.get_running_loop().time()

    def _connect_s(self, asked: Asked) -> float:
        """How long a connection may take, and the wait for a turn to make it."""
        return shorter(asked.timeouts.connect_s, self._limits.connect_s)

    @contextlib.asynccontextmanager
    async def _turn(self, asked: Asked) -> AsyncIterator[None]:
        """A turn among the open exchanges of a request that is alone in its tree. ``TimeoutError`` when it does not
        come while a connection may take."""
        if not asked.request_id:
            yield
            return
        tree = self._trees.setdefault(asked.request_id, _Tree(asyncio.Semaphore(max(1, asked.connections_max))))
        tree.users += 1
        try:
            async with asyncio.timeout(self._connect_s(asked)):
                await tree.turns.acquire()
            try:
                yield
            finally:
                tree.turns.release()
        finally:
            tree.users -= 1
            if not tree.users:
                self._trees.pop(asked.request_id, None)

    async def _first_of_body(self, asked: Asked, connection: Connection) -> tuple[Frame, bytes] | None:
        """The first frame of the body, or None when it does not come soon."""
        wait_s = self._limits.bodiless_wait_s if asked.head.method in _BODILESS else self._limits.body_wait_s
        try:
            async with asyncio.timeout(wait_s):
                return await connection.receive()
        except TimeoutError:
            return None

    async def _pieces(
        self, connection: Connection, first: tuple[Frame, bytes] | None, length: int | None
    ) -> AsyncIterator[bytes]:
        """The request's body as its guest sends it. It must be as long as its head says."""
        sent_bytes = 0
        while True:
            if first is None:
                try:
                    async with asyncio.timeout(self._limits.guest_s):
                        kind, payload = await connection.receive()
                except TimeoutError as late:
                    raise ExchangeFailed(("internal-error", "the request's body did not come")) from late
            else:
                (kind, payload), first = first, None
            if kind is Frame.BODY:
                sent_bytes += len(payload)
                if length is not None and sent_bytes > length:
                    raise ExchangeFailed(("HTTP-request-body-size", sent_bytes))
                if payload:
                    yield payload
                    self._counts.sent_bytes += len(payload)
            elif kind is Frame.BODY_END and (length is None or sent_bytes == length):
                return
            else:
                raise ExchangeFailed(("HTTP-request-body-size", sent_bytes))

    async def _pass_on(self, piece: bytes, connection: Connection) -> None:
        self._counts.received_bytes += len(piece)
        for start in range(0, len(piece), PIECE_BYTES_MAX):
            connection.send(Frame.DATA, piece[start : start + PIECE_BYTES_MAX])
        async with asyncio.timeout(self._limits.guest_s):
            await connection.drain()


@contextlib.asynccontextmanager
async def _in_time(turn: contextlib.AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
    """Within ``turn``. ``ExchangeFailed`` when that does not come in time."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(turn)
        except TimeoutError as late:
            raise ExchangeFailed(_FULL) from late
        yield


def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()


class _Departures:
    """Closes the connections whose other end has gone, read or not."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Connection] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """An epoll is itself something that can be waited for."""
        self._loop = loop
        loop.add_reader(self._epoll.fileno(), self._on_gone)

    def stop(self) -> None:
        if self._loop is not None and not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._watched.clear()

    def watch(self, connection: Connection) -> None:
        assert connection.transport is not None
        number = connection.transport.get_extra_info("socket").fileno()
        # One-shot: it is said once, and then the connection is closed.
        self._epoll.register(number, select.EPOLLRDHUP | select.EPOLLONESHOT)
        self._watched[number] = connection

    def forget(self, connection: Connection) -> None:
        """No longer of interest. Its socket may be closed by now, and the number someone else's."""
        for number, watched in list(self._watched.items()):
            if watched is connection:
                del self._watched[number]
                with contextlib.suppress(OSError):
                    self._epoll.unregister(number)

    def _on_gone(self) -> None:
        for number, _ in self._epoll.poll(0):
            connection = self._watched.pop(number, None)
            if connection is not None:
                connection.close()
