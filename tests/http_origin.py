"""An origin on loopback that behaves as its path says: HTTP/1.1 in plain and over TLS, and HTTP/2 over TLS.

It notes what reached it and what left it, so that a test can ask the other side of the network.
"""

import asyncio
import contextlib
import json
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h11

from ingress.authority import LocalAuthority

PIECE_BYTES = 64 * 1024


class Origin:
    """Listens at ``port`` while it is entered. ``context`` makes it speak TLS."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self._server: asyncio.AbstractServer | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0
        #: Connections that have ended, by the path of the last request on them.
        self.gone: Counter[str] = Counter()
        self.requests: list[str] = []
        self.sent_bytes = 0
        self.received_bytes = 0
        self.go = asyncio.Event()

    async def __aenter__(self) -> "Origin":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.connections += 1
        plain = writer.get_extra_info("socket")
        # Small buffers, so that whoever is not read feels it soon.
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE_BYTES)
        encrypted = writer.get_extra_info("ssl_object")
        http2 = encrypted is not None and encrypted.selected_alpn_protocol() == "h2"
        spoken = _Http2(self, reader, writer) if http2 else _Http1(self, reader, writer)
        try:
            await spoken.serve()
        except (OSError, h11.RemoteProtocolError, h2.exceptions.ProtocolError, asyncio.CancelledError):
            pass
        finally:
            self.gone[spoken.path] += 1
            self._serving.discard(task)
            with contextlib.suppress(OSError):
                writer.transport.abort()

    async def behave(self, exchange: "_Http1 | _Http2") -> bool:
        """One request, by its path. False cuts the connection."""
        url = urlsplit(exchange.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        match url.path:
            case "/hello":
                await exchange.answer(200, body=b"hello")
            case "/headers":
                body = json.dumps(exchange.headers).encode()
                await exchange.answer(200, [("x-origin", "here"), ("everwarm-fake", "1")], body)
            case "/sink":
                size = 0
                async for piece in exchange.pieces():
                    size += len(piece)
                await exchange.answer(200, body=str(size).encode())
            case "/echo":
                await exchange.begin(200)
                async for piece in exchange.pieces():
                    await exchange.send(piece)
                await exchange.end()
            case "/big":
                await exchange.begin(200)
                for _ in range(int(query["pieces"])):
                    await exchange.send(bytes(PIECE_BYTES))
                await exchange.end()
            case "/silent":
                await exchange.closed()
            case "/deaf":
                await self.go.wait()
            case "/stalls":
                await exchange.begin(200)
                await exchange.send(b"some")
                await exchange.closed()
            case "/half":
                await exchange.begin(200)
                await exchange.send(b"half of i")
                return False
            case "/cut":
                return False
            case "/redirect":
                await exchange.answer(302, [("location", "/hello"), ("set-cookie", "a=b")])
            case "/long-head":
                await exchange.answer(200, [("x-long", "y" * int(query["bytes"]))])
            case "/odd-status":
                assert isinstance(exchange, _Http2)
                await exchange.answer(query["is"])
            case "/early":
                await exchange.answer(413, body=b"too much")
            case "/once":
                await exchange.answer(200, [] if isinstance(exchange, _Http2) else [("connection", "close")], b"bye")
                return False
            case "/gzip":
                await exchange.answer(200, [("content-encoding", "gzip")], b"not really")
            case _:
                await exchange.answer(404)
        return True


class _Http1:
    def __init__(self, origin: Origin, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._origin = origin
        self._reader = reader
        self._writer = writer
        self._state = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        self.path = ""
        self.headers: list[list[str]] = []

    async def serve(self) -> None:
        while True:
            event = await self._next()
            if not isinstance(event, h11.Request):
                return
            self.path = event.target.decode()
            self.headers = [[name.decode(), value.decode()] for name, value in event.headers]
            self._origin.requests.append(f"{event.method.decode()} {self.path}")
            if not await self._origin.behave(self):
                self._writer.close()
                await self._writer.wait_closed()
                return
            async for _ in self.pieces():
                pass
            if self._state.our_state is not h11.DONE:
                return
            self._state.start_next_cycle()

    async def _next(self) -> object:
        while (event := self._state.next_event()) is h11.NEED_DATA:
            self._state.receive_data(await self._reader.read(PIECE_BYTES))
        return event

    async def pieces(self) -> AsyncIterator[bytes]:
        """The request's body."""
        while self._state.their_state is h11.SEND_BODY:
            event = await self._next()
            if isinstance(event, h11.Data):
                self._origin.received_bytes += len(event.data)
                yield bytes(event.data)

    async def closed(self) -> None:
        """Until the client goes."""
        while await self._reader.read(PIECE_BYTES):
            pass
        raise ConnectionResetError

    async def answer(self, status: int, headers: list[tuple[str, str]] | None = None, body: bytes = b"") -> None:
        """A whole answer."""
        await self.begin(status, [*(headers or []), ("content-length", str(len(body)))])
        await self.send(body)
        await self.end()

    async def begin(self, status: int, headers: list[tuple[str, str]] | None = None) -> None:
        """Status and headers."""
        await self._write(h11.Response(status_code=status, headers=headers or []))

    async def send(self, data: bytes) -> None:
        """A piece of the answer's body."""
        await self._write(h11.Data(data=data))
        self._origin.sent_bytes += len(data)

    async def end(self) -> None:
        """The answer is whole."""
        await self._write(h11.EndOfMessage())

    async def _write(self, event: h11.Event) -> None:
        self._writer.write(self._state.send(event) or b"")
        await self._writer.drain()


class _Http2:
    """The same, a stream at a time."""

    def __init__(self, origin: Origin, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._origin = origin
        self._reader = reader
        self._writer = writer
        self._state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._requests: asyncio.Queue[h2.events.RequestReceived | None] = asyncio.Queue()
        self._body: asyncio.Queue[tuple[bytes, int] | None] = asyncio.Queue()
        self._window = asyncio.Event()
        self._id = 0
        self.path = ""
        self.headers: list[list[str]] = []

    async def serve(self) -> None:
        self._state.initiate_connection()
        await self._flush()
        reading = asyncio.create_task(self._read())
        behaving: asyncio.Future[bool] | None = None
        try:
            while (request := await self._requests.get()) is not None:
                self._id = request.stream_id
                fields = [(str(name), str(value)) for name, value in request.headers]
                self.headers = [list(field) for field in fields]
                self.path = dict(fields)[":path"]
                self._origin.requests.append(f"{dict(fields)[':method']} {self.path}")
                behaving = asyncio.ensure_future(self._origin.behave(self))
                await asyncio.wait({behaving, reading}, return_when=asyncio.FIRST_COMPLETED)
                if not behaving.done():
                    behaving.cancel()
                if not await behaving:
                    return
        finally:
            left = [task for task in (reading, behaving) if task is not None]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(PIECE_BYTES):
                for event in self._state.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        self._body = asyncio.Queue()
                        self._requests.put_nowait(event)
                    elif isinstance(event, h2.events.DataReceived):
                        self._body.put_nowait((event.data, event.flow_controlled_length))
                    elif isinstance(event, h2.events.StreamEnded):
                        self._body.put_nowait(None)
                    self._window.set()
                await self._flush()
        finally:
            self._requests.put_nowait(None)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The request's body."""
        while (item := await self._body.get()) is not None:
            data, counted = item
            self._state.acknowledge_received_data(counted, self._id)
            await self._flush()
            self._origin.received_bytes += len(data)
            yield data

    async def closed(self) -> None:
        """Until the client goes: then this is cancelled."""
        await asyncio.Event().wait()

    async def answer(self, status: int | str, headers: list[tuple[str, str]] | None = None, body: bytes = b"") -> None:
        """A whole answer."""
        await self.begin(status, headers)
        await self.send(body)
        await self.end()

    async def begin(self, status: int | str, headers: list[tuple[str, str]] | None = None) -> None:
        """Status and headers."""
        self._state.send_headers(self._id, [(":status", str(status)), *(headers or [])])
        await self._flush()

    async def send(self, data: bytes) -> None:
        """A piece of the answer's body."""
        while data:
            self._window.clear()
            size = min(self._state.local_flow_control_window(self._id), self._state.max_outbound_frame_size, len(data))
            if not size:
                await self._window.wait()
                continue
            self._state.send_data(self._id, data[:size])
            data = data[size:]
            self._origin.sent_bytes += size
            await self._flush()

    async def end(self) -> None:
        """The answer is whole."""
        self._state.end_stream(self._id)
        await self._flush()

    async def _flush(self) -> None:
        self._writer.write(self._state.data_to_send())
        await self._writer.drain()


def tls(directory: Path, *names: str, http2: bool = False) -> tuple[ssl.SSLContext, str]:
    """A context to listen with, and the authority (PEM) that has to be trusted for it."""
    authority = LocalAuthority.open(directory)
    issued = authority.issue(*names)
    chain = directory / "origin.pem"
    chain.touch(mode=0o600)
    chain.write_bytes(issued.chain_pem + issued.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    context.set_alpn_protocols(["h2"] if http2 else ["http/1.1"])
    return context, authority.certificate_pem.decode()
