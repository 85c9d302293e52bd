"""An origin on 127.0.0.1 for guests to ask, and the way there: a server and an ``Egress`` that really talk HTTP/1.1.

The origin does what the path says. Nothing in here is timed: what is slow waits until a test lets it go.
"""

import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse, RemoteDisconnected
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from isolates.conversation import ResponseHead
from isolates.egress import AnswerLost, ErrorCode, Outgoing, OutgoingHead, OutgoingTimeouts

#: Kernel buffers of a connection between egress and origin: small, so that what an origin has sent is nearly what has
#: arrived, and what it does not read soon stops its sender.
KERNEL_BUFFER_BYTES = 64 * 1024
_PIECE_BYTES = 64 * 1024


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_any(self) -> None:
        # One request a connection: how an answer ends is then visible on its connection.
        self.close_connection = True
        origin, (_, kind, *rest) = self.server.origin, self.path.partition("?")[0].split("/")
        origin.note(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        with suppress(OSError):
            getattr(self, f"answer_{kind}")(*rest)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PURGE = do_any

    def body(self) -> Iterator[bytes]:
        """The request's body as it comes."""
        length = int(self.headers.get("content-length") or 0)
        while length:
            data = self.rfile.read1(min(length, _PIECE_BYTES))
            if not data:
                return
            length -= len(data)
            yield data
        while "chunked" in (self.headers.get("transfer-encoding") or ""):
            size = int(self.rfile.readline() or b"0", 16)
            data = self.rfile.read(size)
            self.rfile.readline()
            if not size:
                self.server.origin.whole_bodies += 1
                return
            yield data

    def head(self, status: int, **fields: str) -> None:
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.server.origin.sent_bytes += len(data)

    def send_many(self, size: int) -> None:
        while size > 0:
            self.send(bytes(min(size, _PIECE_BYTES)))
            size -= _PIECE_BYTES

    # What the path says:

    def answer_hello(self) -> None:
        self.head(200, content_type="text/plain", content_length="6")
        self.send(b"hello\n")

    def answer_status(self, status: str) -> None:
        self.head(int(status), content_length="0")

    def answer_echo(self) -> None:
        """The request's body, each piece as it comes."""
        self.head(200, transfer_encoding="chunked")
        for data in self.body():
            self.wfile.write(b"%x\r\n" % len(data))
            self.send(data)
            self.wfile.write(b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def answer_size(self, size: str) -> None:
        self.head(200, content_length=size)
        self.send_many(int(size))

    def answer_turn(self, name: str) -> None:
        """Nothing until it is let go."""
        self.server.origin.wait_for(name)
        self.head(200, content_length=str(len(name)))
        self.send(name.encode())

    def answer_never(self) -> None:
        self.server.origin.wait_for("the end")

    def answer_stall(self, size: str) -> None:
        """So many bytes of twice as many, and then nothing."""
        self.head(200, content_length=str(2 * int(size)))
        self.send_many(int(size))
        self.server.origin.wait_for("the end")

    def answer_break(self, size: str) -> None:
        """So many bytes of twice as many, and then the connection ends."""
        self.head(200, content_length=str(2 * int(size)))
        self.send_many(int(size))

    def answer_nonsense(self) -> None:
        self.wfile.write(b"this is not HTTP\r\n\r\n")

    def answer_silence(self) -> None:
        """The connection ends without an answer."""

    def answer_early(self) -> None:
        """An answer without a look at the request's body."""
        self.head(413, content_length="0")
        self.server.origin.wait_for("the end")

    def answer_count(self, name: str) -> None:
        """How long the request's body is; it is read when it is let go."""
        self.server.origin.wait_for(name)
        text = b"%d" % sum(len(data) for data in self.body())
        self.head(200, content_length=str(len(text)))
        self.send(text)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = True
    origin: "LocalOrigin"

    def get_request(self) -> tuple[socket.socket, Any]:
        connected, address = super().get_request()
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            connected.setsockopt(socket.SOL_SOCKET, option, KERNEL_BUFFER_BYTES)
        return connected, address


class LocalOrigin:
    """The server. ``seen``: method, path and headers of what it was asked; ``sent_bytes``: of bodies, all together."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.sent_bytes = 0
        self.whole_bodies = 0
        #: Called by the thread of a request with the path, when the head is there.
        self.on_request: Callable[[str], None] = lambda path: None
        self._lock = threading.Lock()
        self._gates: dict[str, threading.Event] = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.origin = self
        # Bound and not listening: nobody else gets the port, and whoever connects is refused.
        self._refusing = socket.socket()
        self._refusing.bind(("127.0.0.1", 0))

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    @property
    def refusing_url(self) -> str:
        return f"http://127.0.0.1:{self._refusing.getsockname()[1]}/"

    def note(self, method: str, path: str, headers: dict[str, str]) -> None:
        with self._lock:
            self.seen.append((method, path, headers))
        self.on_request(path)

    def _gate(self, name: str) -> threading.Event:
        with self._lock:
            return self._gates.setdefault(name, threading.Event())

    def wait_for(self, name: str) -> None:
        assert self._gate(name).wait(60), f"nobody let {name} go"

    def let_go(self, name: str) -> None:
        self._gate(name).set()

    @contextmanager
    def running(self) -> Iterator["LocalOrigin"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self.let_go("the end")
            for gate in list(self._gates.values()):
                gate.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()
            self._refusing.close()


class SocketEgress:
    """An ``Egress`` that connects to whom it is asked, with two threads for each exchange."""

    def __init__(self) -> None:
        self.opened: list[SocketOutgoing] = []
        self.open_most = 0

    def open(self, head: OutgoingHead, timeouts: OutgoingTimeouts) -> Outgoing | ErrorCode:
        self.opened.append(SocketOutgoing(head, timeouts))
        self.open_most = max(self.open_most, sum(not outgoing.closed for outgoing in self.opened))
        return self.opened[-1]

    @property
    def all_closed(self) -> bool:
        return all(outgoing.closed for outgoing in self.opened)

    def join(self) -> None:
        """Every thread has ended, which they do when their exchange is closed."""
        for outgoing in self.opened:
            outgoing.join()


class SocketOutgoing:
    """One exchange: a pair of sockets with the guest's thread at one end and the connection to the origin at the other.

    What passes between them are frames: a letter, a length, and so many bytes. The letters: head, error, data, finish,
    lost.
    """

    def __init__(self, head: OutgoingHead, timeouts: OutgoingTimeouts) -> None:
        self.asked, self.timeouts = head, timeouts
        self.closed = False
        #: The most that ever waited on this side of the kernel for the guest to read it.
        self.held_bytes_most = 0
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._received = bytearray()
        self._head: ResponseHead | ErrorCode | None = None
        self._ended = False
        self._lost: ErrorCode | None = None
        self._output = select.poll()
        self._output.register(self._ours, select.POLLOUT)
        self._origin = socket.socket()
        self._origin.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER_BYTES)
        self._origin.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER_BYTES)
        self._connected = threading.Event()
        self._threads = [threading.Thread(target=self._answer), threading.Thread(target=self._ask)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    # The guest's side:

    def fileno(self) -> int:
        return self._ours.fileno()

    def wait_for_room(self, readable: set[int], writable: set[int]) -> None:
        writable.add(self.fileno())

    def writable(self) -> bool:
        return bool(self._output.poll(0))

    def send(self, data: bytes) -> bool:
        view = memoryview(_frame(b"D", data))
        while view:
            try:
                view = view[self._ours.send(view) :]
            except BlockingIOError:
                self._output.poll()
            except OSError:
                return False
        return True

    def finish(self) -> None:
        with suppress(OSError):
            self._ours.setblocking(True)
            self._ours.sendall(_frame(b"F"))
            self._ours.setblocking(False)

    def _next(self) -> tuple[bytes, bytes] | None:
        """The next whole frame. It stays where it is."""
        while True:
            if len(self._received) >= 5:
                size = int.from_bytes(self._received[1:5])
                if len(self._received) >= 5 + size:
                    return bytes(self._received[:1]), bytes(self._received[5 : 5 + size])
            try:
                data = self._ours.recv(_PIECE_BYTES)
            except BlockingIOError:
                return None
            except OSError:
                data = b""
            self._received += data or _frame(b"L", b'["connection-terminated", null]')
            self.held_bytes_most = max(self.held_bytes_most, len(self._received))

    def _drop(self, payload: bytes) -> None:
        del self._received[: 5 + len(payload)]

    def head(self) -> ResponseHead | ErrorCode | None:
        if self._head is None and (found := self._next()) is not None:
            kind, payload = found
            self._drop(payload)
            if kind == b"H":
                status, headers = json.loads(payload)
                self._head = ResponseHead(status, tuple((n, v.encode("latin-1")) for n, v in headers))
            else:
                code, detail = json.loads(payload)
                self._head = (code, detail)
        return self._head

    def body_ready(self) -> bool:
        return self._ended or self._lost is not None or self._next() is not None

    def read_body(self, bytes_max: int) -> bytes | None:
        if self._lost is not None:
            raise AnswerLost(self._lost)
        if self._ended:
            return None
        found = self._next()
        if found is None:
            return b""
        kind, payload = found
        self._drop(payload)
        if kind == b"D":
            if len(payload) > bytes_max:
                self._received[:0] = _frame(b"D", payload[bytes_max:])
            return payload[:bytes_max]
        if kind == b"F":
            self._ended = True
        else:
            code, detail = json.loads(payload)
            self._lost = (code, detail)
        return self.read_body(bytes_max)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._ours.close()
            self._connected.wait(60)
            with suppress(OSError):
                self._origin.shutdown(socket.SHUT_RDWR)

    # The origin's side:

    def _tell(self, kind: bytes, what: Any = None) -> None:
        payload = what if isinstance(what, bytes) else json.dumps(what).encode()
        self._theirs.sendall(_frame(kind, payload))

    def _answer(self) -> None:
        """Connect, ask, and hand on what comes back."""
        with suppress(OSError):
            try:
                self._hand_on()
            finally:
                self._connected.set()
                self._theirs.shutdown(socket.SHUT_WR)

    def _hand_on(self) -> None:
        host, _, port = self.asked.authority.partition(":")
        response = HTTPResponse(self._origin, method=self.asked.method)
        try:
            self._origin.settimeout(self.timeouts.connect_s)
            self._origin.connect((host, int(port)))
            self._origin.settimeout(self.timeouts.first_byte_s)
            self._connected.set()
            response.begin()
        except ConnectionRefusedError:
            return self._tell(b"E", ["connection-refused", None])
        except TimeoutError:
            return self._tell(b"E", ["connection-read-timeout", None])
        except (RemoteDisconnected, ConnectionError):
            return self._tell(b"E", ["connection-terminated", None])
        except HTTPException:
            return self._tell(b"E", ["HTTP-protocol-error", None])
        self._tell(b"H", [response.status, [(n.lower(), v) for n, v in response.getheaders()]])
        self._origin.settimeout(self.timeouts.between_bytes_s)
        try:
            while data := response.read1(_PIECE_BYTES):
                self._tell(b"D", data)
        except TimeoutError:
            return self._tell(b"L", ["connection-read-timeout", None])
        except HTTPException:
            return self._tell(b"L", ["HTTP-response-incomplete", None])
        if response.length and self.asked.method != "HEAD":
            return self._tell(b"L", ["HTTP-response-incomplete", None])
        return self._tell(b"F")

    def _ask(self) -> None:
        """Send the request. When the guest lets go of it, so does the connection."""
        self._connected.wait(60)
        head = self.asked
        names = {name for name, _ in head.headers}
        chunked = head.method not in ("GET", "HEAD") and "content-length" not in names
        lines = [f"{head.method} {head.path} HTTP/1.1".encode(), b"host: " + head.authority.encode()]
        lines += [name.encode() + b": " + value for name, value in head.headers]
        lines += [b"transfer-encoding: chunked"] * chunked
        with suppress(OSError), self._theirs.makefile("rb") as frames:
            self._origin.sendall(b"\r\n".join([*lines, b"", b""]))
            while (kind := frames.read(1)) == b"D":
                data = frames.read(int.from_bytes(frames.read(4)))
                self._origin.sendall(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            if kind == b"F" and chunked:
                self._origin.sendall(b"0\r\n\r\n")
        self._threads[0].join()
        self._theirs.close()
        self._origin.close()


def _frame(kind: bytes, payload: bytes = b"") -> bytes:
    return kind + len(payload).to_bytes(4) + payload
