"""Connections to origins, kept warm for one worker and lent by httpcore's pool to one exchange at a time.

    OriginPool ── httpcore decides who gets which connection, and who waits; one pool a worker
      └ OriginConnection ── who may use it, the body sent on the side, the clocks
          └ Http1 | Http2 (egress_http.py) over a stream (egress_connect.py)

Rules that hold: a connection is used again only when both messages on it were whole. Timeouts blame who is late:
while the request's body waits for its guest, a silent origin is not late. A request goes out twice only when nothing
of it can have been answered: it had no body, is idempotent, and met a connection that was just being closed.

Nobody waits for a connection to close (``Closings``). Whoever waits can be cancelled there, a second time or while he
ends for another reason, and would leave behind a connection that is half closed, and a pool that counts it.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, cast

import httpcore

from actors.egress_connect import Connector
from actors.egress_http import MALFORMED, PROTOCOL, TERMINATED, ExchangeFailed, Head, Http1, Http2, HttpLimits, Speaker
from actors.egress_policy import Target

#: A request that an origin may see twice without harm, when it had no body.
_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})


@dataclass(frozen=True, slots=True)
class OriginLimits:
    """Bounds of one worker's connections."""

    #: Open at once for one worker, on one machine: eight request trees with all of their six. More wait.
    connections_max: int = 48
    #: How long an idle connection is kept. Most origins keep theirs for a minute or a little more.
    idle_s: float = 45.0
    http: HttpLimits = field(default_factory=HttpLimits)


@dataclass(frozen=True, slots=True)
class OriginTimeouts:
    """The clocks of one exchange, in seconds, all of them set."""

    connect_s: float
    first_byte_s: float
    between_bytes_s: float


class Closings:
    """What is being closed, beside those who asked for it. As many at once as there were connections; each is over
    after a few turns of the event loop, since nothing is said to an origin any more."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[None]] = set()

    def begin(self, closing: Coroutine[None, None, None]) -> None:
        """Let ``closing`` run to its end."""
        task = asyncio.create_task(closing)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def ended(self) -> None:
        """Wait for what was begun."""
        while self._under_way:
            await asyncio.wait(self._under_way)


class _State(Enum):
    NEW = auto()
    BUSY = auto()
    IDLE = auto()
    CLOSED = auto()


class OriginConnection(httpcore.AsyncConnectionInterface):
    """A connection to one origin for one worker. Not connected until its first request."""

    def __init__(
        self, worker: str, origin: httpcore.Origin, connector: Connector, closings: Closings, limits: OriginLimits
    ) -> None:
        self._worker = worker
        self._origin = origin
        self._connector = connector
        self._closings = closings
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._state = _State.NEW
        self._expires_s = self._loop.time() + limits.idle_s
        self._speaker: Speaker | None = None
        self._upload: asyncio.Task[None] | None = None
        self._upload_fault: Exception | None = None
        self.requests = 0

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and wait for the head of its answer. Its extensions: ``timeouts`` and ``body``."""
        if self._state not in (_State.NEW, _State.IDLE):
            raise httpcore.ConnectionNotAvailable
        reused = self._state is _State.IDLE
        self._state = _State.BUSY
        self.requests += 1
        timeouts: OriginTimeouts = request.extensions["timeouts"]
        body: bool = request.extensions["body"]
        try:
            speaker = self._speaker
            if speaker is None:
                speaker = self._speaker = await self._connect(timeouts)
            status, headers = await self._exchange(speaker, request, body, timeouts)
        except BaseException as fault:
            heard = self._speaker is not None and self._speaker.heard
            self._close()
            repeatable = reused and not heard and not body and request.method in _IDEMPOTENT
            if repeatable and isinstance(fault, ExchangeFailed) and fault.code == TERMINATED:
                # It was closed in the moment in which it was used again. The pool finds, or makes, another.
                raise httpcore.ConnectionNotAvailable from fault
            raise
        return httpcore.Response(status, headers=headers, content=_Body(self, speaker, timeouts))

    async def _connect(self, timeouts: OriginTimeouts) -> Speaker:
        target = Target(self._origin.scheme.decode(), self._origin.host.decode(), self._origin.port)
        stream, http2 = await self._connector.connect(self._worker, target, timeouts.connect_s)
        return Http2(stream, self._limits.http) if http2 else Http1(stream, self._limits.http)

    async def _exchange(
        self, speaker: Speaker, request: httpcore.Request, body: bool, timeouts: OriginTimeouts
    ) -> tuple[int, Head]:
        try:
            await speaker.send_head(request, body=body, timeout_s=timeouts.between_bytes_s)
        except httpcore.WriteTimeout as late:
            raise ExchangeFailed(("connection-write-timeout", None)) from late
        except httpcore.NetworkError as broken:
            raise ExchangeFailed(TERMINATED) from broken
        except MALFORMED as wrong:
            raise ExchangeFailed(PROTOCOL) from wrong
        self._upload_fault = None
        self._upload = asyncio.create_task(self._send_body(speaker, request, timeouts)) if body else None
        reading = asyncio.create_task(speaker.receive_head())
        try:
            if self._upload is not None:
                await asyncio.wait({reading, self._upload}, return_when=asyncio.FIRST_COMPLETED)
            self.check_upload()
            if not reading.done():
                await asyncio.wait({reading}, timeout=timeouts.first_byte_s)
            if not reading.done():
                raise ExchangeFailed(("HTTP-response-timeout", None))
            return await reading
        except httpcore.NetworkError as broken:
            raise ExchangeFailed(TERMINATED) from broken
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _send_body(self, speaker: Speaker, request: httpcore.Request, timeouts: OriginTimeouts) -> None:
        """Send the body beside the answer. A failure that the guest should hear of ends the answer as well."""
        assert isinstance(request.stream, AsyncIterator)
        try:
            async for piece in request.stream:
                await speaker.send_data(piece, timeouts.between_bytes_s)
            await speaker.send_end(timeouts.between_bytes_s)
            return
        except (httpcore.WriteError, *MALFORMED):
            # It takes no more, perhaps because it has answered already: then the answer counts.
            return
        except httpcore.WriteTimeout:
            self._upload_fault = ExchangeFailed(("connection-write-timeout", None))
        except ExchangeFailed as failed:
            self._upload_fault = failed
        await speaker.close()  # who reads the answer wakes up

    @property
    def uploading(self) -> bool:
        """Whether the request's body is still under way."""
        return self._upload is not None and not self._upload.done()

    def check_upload(self) -> None:
        """Raise what went wrong with the request's body."""
        if self._upload_fault is not None:
            raise self._upload_fault

    def over(self, *, whole: bool) -> None:
        """The exchange is over; ``whole``: its answer was read to the end."""
        if self._state is not _State.BUSY:
            return
        if whole and not self.uploading and self._speaker is not None and self._speaker.finish():
            self._upload = None
            self._expires_s = self._loop.time() + self._limits.idle_s
            self._state = _State.IDLE
        else:
            self._close()

    def _close(self) -> None:
        """Free at once; what is left of it ends on its own."""
        self._state = _State.CLOSED
        upload, self._upload = self._upload, None
        speaker, self._speaker = self._speaker, None
        if upload is not None:
            upload.cancel()
        if speaker is not None:
            self._closings.begin(_end(upload, speaker))

    # What the pool asks

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        return origin == self._origin

    def is_available(self) -> bool:
        return self._state is _State.IDLE

    def is_idle(self) -> bool:
        # A new one whose request was cancelled before it came: nobody else would ever use it, or close it.
        return self._state in (_State.IDLE, _State.NEW)

    def is_closed(self) -> bool:
        return self._state is _State.CLOSED

    def has_expired(self) -> bool:
        if not self.is_idle():
            return False
        dead = self._speaker is not None and not self._speaker.is_alive()
        return dead or self._loop.time() > self._expires_s

    def info(self) -> str:
        return f"{self._origin}, {self._state.name}, {self.requests} requests"

    async def aclose(self) -> None:
        self._close()


async def _end(upload: "asyncio.Task[None] | None", speaker: Speaker) -> None:
    if upload is not None:
        await asyncio.gather(upload, return_exceptions=True)
    await speaker.close()


class _Body:
    """The body of an answer. The connection is free when this is closed."""

    def __init__(self, connection: OriginConnection, speaker: Speaker, timeouts: OriginTimeouts) -> None:
        self._connection = connection
        self._speaker = speaker
        self._timeouts = timeouts
        self._whole = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            waits_for_guest = self._connection.uploading
            try:
                piece = await self._speaker.receive_data(self._timeouts.between_bytes_s)
            except httpcore.ReadTimeout as late:
                if waits_for_guest:
                    continue  # and after the last of the request's body, the origin has all of its time
                raise ExchangeFailed(("connection-read-timeout", None)) from late
            except (httpcore.NetworkError, ExchangeFailed) as broken:
                self._connection.check_upload()
                raise broken if isinstance(broken, ExchangeFailed) else ExchangeFailed(TERMINATED) from broken
            if piece is None:
                self._whole = True
                return
            if piece:
                yield piece

    async def aclose(self) -> None:
        self._connection.over(whole=self._whole)


# ------------------------------------------------------------------------------------------------- one worker's pool


class OriginPool(httpcore.AsyncConnectionPool):
    """One worker's connections. httpcore decides who gets which; nothing in it knows of other workers."""

    def __init__(self, worker: str, connector: Connector, closings: Closings, limits: OriginLimits) -> None:
        super().__init__(max_connections=limits.connections_max)
        self._worker = worker
        self._connector = connector
        self._closings = closings
        self._limits = limits

    def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
        return OriginConnection(self._worker, origin, self._connector, self._closings, self._limits)

    @contextlib.asynccontextmanager
    async def exchange(
        self,
        method: str,
        target: Target,
        path: str,
        headers: tuple[tuple[str, bytes], ...],
        body: AsyncIterator[bytes] | None,
        timeouts: OriginTimeouts,
    ) -> AsyncIterator[tuple[int, Head, AsyncIterator[bytes]]]:
        """Send a request; the answer's status, headers and body, inside the block. ``ExchangeFailed`` for all that
        may go wrong, in the head or while the body is read."""
        request = httpcore.Request(
            method,
            httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=path),
            headers=[(b"host", target.authority.encode()), *((n.encode(), v) for n, v in headers)],
            content=body,
            extensions={"timeout": {"pool": timeouts.connect_s}, "timeouts": timeouts, "body": body is not None},
        )
        try:
            response = await self.handle_async_request(request)
        except httpcore.PoolTimeout as full:
            raise ExchangeFailed(("connection-limit-reached", None)) from full
        try:
            async with contextlib.aclosing(cast("AsyncGenerator[bytes]", response.aiter_stream())) as pieces:
                yield response.status, response.headers, pieces
        finally:
            await response.aclose()
