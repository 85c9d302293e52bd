"""What the bytes of a connection to an origin mean: HTTP/1.1 over h11, HTTP/2 over h2, on an httpcore stream.

httpcore has both, and they are not used: it sends all of a request before it reads the answer. A guest may read while
it still writes, and an origin that answers as it reads would stop reading when its answer is not taken, so that both
would wait for ever. Here sending and receiving are apart, and may be under way at once in two tasks.

One exchange at a time, also on HTTP/2: then closing is the one cancellation, which every origin notices, and a guest
that reads slowly fills no window that others need. What came and was not asked for has a bound: one read of the
socket, or HTTP/2's window.
"""

import asyncio
import re
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, Protocol

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h11
import hpack
import httpcore

from isolates.egress import ErrorCode

Head = list[tuple[bytes, bytes]]

_READ_BYTES: Final = 64 * 1024
#: h11 looks at an answer's status, h2 does not.
_STATUS: Final = re.compile(rb"[1-9][0-9]{2}")
TERMINATED: Final[ErrorCode] = ("connection-terminated", None)
PROTOCOL: Final[ErrorCode] = ("HTTP-protocol-error", None)
_INCOMPLETE: Final[ErrorCode] = ("HTTP-response-incomplete", None)
#: What either library raises for a message that is none.
MALFORMED: Final = (h11.LocalProtocolError, h2.exceptions.ProtocolError)


class ExchangeFailed(Exception):
    """An exchange with an origin failed; ``code`` is what its guest is told."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code[0])
        self.code = code


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one connection."""

    #: Status line and headers of an answer. Origins send 2 KiB; unpacking HTTP/2's code for more would be noticed by
    #: everybody on this event loop (half a microsecond a byte).
    head_bytes_max: int = 64 * 1024
    #: What an origin may send on HTTP/2 ahead of its reader.
    window_bytes: int = 256 * 1024
    #: The longest that an answer to a ping or to settings may take to be written.
    answer_s: float = 30.0


class Speaker(Protocol):
    """HTTP on one stream, one exchange after the other. Raises httpcore's network exceptions and ExchangeFailed."""

    #: Whether anything of this exchange's answer has come.
    heard: bool

    async def send_head(self, request: httpcore.Request, *, body: bool, timeout_s: float) -> None: ...

    async def send_data(self, data: bytes, timeout_s: float) -> None: ...

    async def send_end(self, timeout_s: float) -> None: ...

    async def receive_head(self) -> tuple[int, Head]: ...

    async def receive_data(self, timeout_s: float) -> bytes | None: ...

    def finish(self) -> bool:
        """The exchange is over: whether another may follow."""

    def is_alive(self) -> bool:
        """Whether an idle connection can still be used, as far as is known."""

    async def close(self) -> None: ...


class Http1:
    """HTTP/1.1 over h11."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, limits: HttpLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._state = h11.Connection(h11.CLIENT, max_incomplete_event_size=limits.head_bytes_max)
        self._head_came = False
        self._cut = False
        self.heard = False

    async def send_head(self, request: httpcore.Request, *, body: bool, timeout_s: float) -> None:
        self.heard = self._head_came = False
        headers = list(request.headers)
        if body and all(name != b"content-length" for name, _ in headers):
            headers.append((b"transfer-encoding", b"chunked"))
        await self._send(h11.Request(method=request.method, target=request.url.target, headers=headers), timeout_s)
        if not body:
            await self.send_end(timeout_s)

    async def send_data(self, data: bytes, timeout_s: float) -> None:
        await self._send(h11.Data(data=data), timeout_s)

    async def send_end(self, timeout_s: float) -> None:
        await self._send(h11.EndOfMessage(), timeout_s)

    async def _send(self, event: h11.Event, timeout_s: float) -> None:
        data = self._state.send(event)
        if data:
            await self._stream.write(data, timeout_s)

    async def receive_head(self) -> tuple[int, Head]:
        while True:
            event = await self._next(None)
            if isinstance(event, h11.Response):
                self._head_came = True
                headers = [(bytes(name), bytes(value)) for name, value in event.headers]
                if sum(len(n) + len(v) + 4 for n, v in headers) > self._limits.head_bytes_max:
                    raise ExchangeFailed(self._too_long())
                return event.status_code, headers
            if not isinstance(event, h11.InformationalResponse):
                raise ExchangeFailed(PROTOCOL)
            if event.status_code == 101:
                raise ExchangeFailed(("HTTP-upgrade-failed", None))

    async def receive_data(self, timeout_s: float) -> bytes | None:
        event = await self._next(timeout_s)
        return bytes(event.data) if isinstance(event, h11.Data) else None

    async def _next(self, timeout_s: float | None) -> object:
        while True:
            try:
                event = self._state.next_event()
            except h11.RemoteProtocolError as wrong:
                if self._cut:
                    raise ExchangeFailed(_INCOMPLETE if self.heard else TERMINATED) from wrong
                if wrong.error_status_hint == 431 and not self._head_came:
                    raise ExchangeFailed(self._too_long()) from wrong
                raise ExchangeFailed(PROTOCOL) from wrong
            if event is not h11.NEED_DATA:
                return event
            data = await self._stream.read(_READ_BYTES, timeout_s)
            self._cut = not data
            self.heard = self.heard or bool(data)
            if self._cut and not self._head_came:
                raise ExchangeFailed(_INCOMPLETE if self.heard else TERMINATED)
            self._state.receive_data(data)

    def _too_long(self) -> ErrorCode:
        return ("HTTP-response-header-section-size", self._limits.head_bytes_max)

    def finish(self) -> bool:
        if self._state.our_state is h11.DONE and self._state.their_state is h11.DONE:
            self._state.start_next_cycle()
            return True
        return False

    def is_alive(self) -> bool:
        # Nothing is owed, so what can be read now is the end, or bytes that belong to no request.
        return not self._stream.get_extra_info("is_readable")

    async def close(self) -> None:
        await self._stream.aclose()


class _PlainEncoder(hpack.Encoder):
    """HPACK without its Huffman code, which in Python takes time with the square of a value's length: a guest's header
    of 100 KB would stop the event loop for seconds."""

    def encode(self, headers: Any, huffman: bool = True) -> bytes:
        return super().encode(headers, huffman=False)


class Http2:
    """HTTP/2 over h2, a stream at a time. One task reads for as long as the connection lives, since what it says may
    be for the sender (its window), for the reader, or for nobody (pings, settings)."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, limits: HttpLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self._state.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: limits.window_bytes,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: limits.head_bytes_max,
            },
        )
        self._state.encoder = _PlainEncoder()
        self._state.decoder.max_header_list_size = limits.head_bytes_max
        self._id = 0
        self._head: tuple[int, Head] | None = None
        self._data: deque[tuple[bytes, int]] = deque()
        self._sent_end = self._ended = False
        self._fault: ExchangeFailed | None = None
        self._going_away = False
        self._changed = asyncio.Event()
        self._writing = asyncio.Lock()
        self._pump: asyncio.Task[None] | None = None
        self.heard = False

    async def send_head(self, request: httpcore.Request, *, body: bool, timeout_s: float) -> None:
        self._head, self.heard, self._ended, self._sent_end = None, False, False, not body
        self._data.clear()
        if self._pump is None:
            self._state.initiate_connection()
            # The connection's own window starts at 64 KiB whatever the settings say.
            self._state.increment_flow_control_window(self._limits.window_bytes - 65_535)
            self._pump = asyncio.create_task(self._read())
        self._id = self._state.get_next_available_stream_id()
        headers = [
            (b":method", request.method),
            (b":authority", next(value for name, value in request.headers if name == b"host")),
            (b":scheme", request.url.scheme),
            (b":path", request.url.target),
            *((name, value) for name, value in request.headers if name != b"host"),
        ]
        self._state.send_headers(self._id, headers, end_stream=not body)
        await self._flush(timeout_s)

    async def send_data(self, data: bytes, timeout_s: float) -> None:
        while data:
            size = await self._window(timeout_s)
            self._state.send_data(self._id, data[:size])
            data = data[size:]
            await self._flush(timeout_s)

    async def _window(self, timeout_s: float) -> int:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if self._fault is not None:
                        raise httpcore.WriteError("the stream is over")
                    size = min(self._state.local_flow_control_window(self._id), self._state.max_outbound_frame_size)
                    if size > 0:
                        return size
                    await self._change()
        except TimeoutError as late:
            raise httpcore.WriteTimeout from late

    async def send_end(self, timeout_s: float) -> None:
        self._state.end_stream(self._id)
        self._sent_end = True
        await self._flush(timeout_s)

    async def receive_head(self) -> tuple[int, Head]:
        while self._head is None:
            if self._fault is not None:
                raise self._fault
            await self._change()
        return self._head

    async def receive_data(self, timeout_s: float) -> bytes | None:
        try:
            async with asyncio.timeout(timeout_s):
                while not self._data:
                    if self._ended:
                        return None
                    if self._fault is not None:
                        raise self._fault
                    await self._change()
        except TimeoutError as late:
            raise httpcore.ReadTimeout from late
        data, counted = self._data.popleft()
        if counted:
            self._state.acknowledge_received_data(counted, self._id)
            await self._flush(timeout_s)
        return data

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _flush(self, timeout_s: float) -> None:
        async with self._writing:
            data = self._state.data_to_send()
            if data:
                await self._stream.write(data, timeout_s)

    async def _read(self) -> None:
        try:
            while True:
                data = await self._stream.read(_READ_BYTES)
                if not data:
                    self._fail(_INCOMPLETE if self.heard else TERMINATED)
                    return
                for event in self._state.receive_data(data):
                    self._on_event(event)
                self._changed.set()
                await self._flush(self._limits.answer_s)
        except h2.exceptions.DenialOfServiceError:
            self._fail(("HTTP-response-header-section-size", self._limits.head_bytes_max))
        except h2.exceptions.ProtocolError:
            self._fail(PROTOCOL)
        except (httpcore.NetworkError, httpcore.TimeoutException):
            pass  # it is terminated
        finally:
            self._fail(TERMINATED)  # unless it was said before why: nobody is to wait for what does not come any more

    def _on_event(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self._going_away = True
            if event.last_stream_id is not None and event.last_stream_id < self._id:
                self._fail(TERMINATED)
            return
        if getattr(event, "stream_id", None) != self._id:
            return
        if isinstance(event, h2.events.ResponseReceived):
            self.heard = True
            fields = [(bytes(name), bytes(value)) for name, value in event.headers]
            status = dict(fields).get(b":status", b"")
            if not _STATUS.fullmatch(status):
                self._fail(PROTOCOL)
                return
            self._head = (int(status), [(name, value) for name, value in fields if not name.startswith(b":")])
        elif isinstance(event, h2.events.DataReceived):
            self._data.append((bytes(event.data), event.flow_controlled_length))
        elif isinstance(event, h2.events.StreamEnded):
            self._ended = True
        elif isinstance(event, h2.events.StreamReset):
            self._fail(_INCOMPLETE if self.heard else TERMINATED)

    def _fail(self, code: ErrorCode) -> None:
        self._fault = self._fault or ExchangeFailed(code)
        self._changed.set()

    def finish(self) -> bool:
        return self._sent_end and self._ended and not self._data and self.is_alive()

    def is_alive(self) -> bool:
        return self._fault is None and not self._going_away and self._pump is not None and not self._pump.done()

    async def close(self) -> None:
        self._fail(TERMINATED)  # who reads the answer wakes up
        if self._pump is not None:
            self._pump.cancel()
        await self._stream.aclose()
        if self._pump is not None:
            await asyncio.wait({self._pump})
