"""A real uvicorn on loopback, raw bytes in, on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
import uvloop

from ingress.http_limits import HeadLimits, protocol_class

HOST = b"Host: hello.example.com\r\n"
GET = b"GET /read HTTP/1.1\r\n" + HOST + b"\r\n"
# A linger that no test waits for: where one ends only after it, the test says so.
LIMITS = HeadLimits(
    head_bytes_max=2_000,
    url_bytes_max=500,
    headers_max=10,
    slice_bytes=64,
    pipelined_max=3,
    drain_bytes_max=5_000,
    linger_ms=60_000,
)
BYTE_BY_BYTE = HeadLimits(
    head_bytes_max=2_000,
    url_bytes_max=500,
    headers_max=10,
    slice_bytes=1,
    pipelined_max=3,
    drain_bytes_max=5_000,
    linger_ms=60_000,
)

Scenario = Callable[["Edge"], Awaitable[None]]


class Worker:
    """Answers by path: /read reads the body first, /ignore never does, /wait waits for `go` or the disconnect, /half
    begins an answer and then waits for the disconnect."""

    def __init__(self) -> None:
        self.served: list[str] = []
        self.scopes: list[dict[str, Any]] = []
        self.body_bytes = 0
        self.gone = asyncio.Event()
        self.began = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        path = scope["path"]
        body = 0
        self.began.set()
        if path == "/half":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        if path == "/wait":
            await self.go.wait()
        while path != "/ignore":
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                return
            body += len(message["body"])
            self.body_bytes += len(message["body"])
            if not message["more_body"] and path != "/half":
                break
        self.served.append(path)
        text = f"{path} {body}".encode()
        headers = [(b"content-length", str(len(text)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, body

    async def end(self) -> bytes:
        """Everything up to the server's end of the connection."""
        return await self.reader.read()


class Edge:
    """The server and how to reach it."""

    def __init__(self, port: int, worker: Worker, server: uvicorn.Server) -> None:
        self.port = port
        self.worker = worker
        self.server = server
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def answers(self, data: bytes) -> bytes:
        """All that the server says to `data` until it ends the connection."""
        client = await self.connect()
        client.send(data)
        return await client.end()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def edge(request: pytest.FixtureRequest) -> Callable[..., None]:
    def run(scenario: Scenario, limits: HeadLimits = LIMITS) -> None:
        async def main() -> None:
            worker = Worker()
            config = uvicorn.Config(
                worker,
                http=protocol_class(limits, lambda count: bytes(range(count))),
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=60,
            )
            config.load()
            server = uvicorn.Server(config)
            server.lifespan = config.lifespan_class(config)
            listener = socket.create_server(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            await server.startup(sockets=[listener])
            edge = Edge(port, worker, server)
            try:
                await asyncio.wait_for(scenario(edge), 10)
            finally:
                worker.go.set()
                for client in edge.clients:
                    client.writer.transport.abort()
                for listening in server.servers:
                    listening.close()
                tasks = list(server.server_state.tasks)
                for task in tasks:  # none is left, unless the scenario failed
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for connection in list(server.server_state.connections):
                    connection.transport.abort()

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main())

    return run


def status_of(answer: bytes) -> int:
    """The status of a whole, well-formed refusal that names a request and closes."""
    match = re.fullmatch(
        rb"HTTP/1\.1 (\d{3}) [A-Za-z -]+\r\n"
        rb"content-type: text/plain; charset=utf-8\r\n"
        rb"content-length: (\d+)\r\n"
        rb"connection: close\r\n"
        rb"everwarm-request-id: 000102030405060708090a0b0c0d0e0f\r\n\r\n"
        rb"(.*\n)",
        answer,
    )
    assert match is not None, answer
    assert len(match[3]) == int(match[2])
    assert match[3].startswith(match[1] + b" ")
    return int(match[1])


def post(*headers: bytes, body: bytes = b"", path: bytes = b"/read") -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in headers) + b"\r\n" + body


REFUSED = {
    "not http at all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a smtp client": (b"EHLO example.com\r\n", 400),
    "http/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "bare line feeds": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "space in the url": (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "raw utf-8 in the url": ("GET /é HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 400),
    "space before the colon": (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    "folded header": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n", 400),
    "nul in a header": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n", 400),
    "bare carriage return": (b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\nAccept: */*\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "two hosts on 1.0": (b"GET / HTTP/1.0\r\n" + HOST + HOST + b"\r\n", 400),
    "another host in the url": (b"GET http://victim.example.com/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a user in the url": (b"GET http://a@hello.example.com/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a star": (b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "length and chunks": (post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "chunks and length": (post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"), 400),
    "two lengths": (post(b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"), 400),
    "one length twice": (post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"), 400),
    "a list of lengths": (post(b"Content-Length: 3, 3", body=b"abc"), 400),
    "a signed length": (post(b"Content-Length: +3", body=b"abc"), 400),
    "a huge length": (post(b"Content-Length: 99999999999999999999", body=b"abc"), 400),
    "chunks on 1.0": (post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n").replace(b"1.1", b"1.0"), 400),
    "gzip, chunked": (post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501),
    "gzip and chunked": (post(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "identity": (post(b"Transfer-Encoding: identity", body=b"abc"), 501),
    "xchunked": (post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 501),
    "bad chunk size": (post(b"Transfer-Encoding: chunked", body=b"zz\r\nabc\r\n"), 400),
    "endless chunk size": (post(b"Transfer-Encoding: chunked", body=b"f" * 19 + b"\r\n"), 400),
    "chunk longer than said": (post(b"Transfer-Encoding: chunked", body=b"3\r\nabcd\r\n0\r\n\r\n"), 400),
    "chunk with line feeds": (post(b"Transfer-Encoding: chunked", body=b"3\nabc\n0\n\n"), 400),
    "upgrade with a body": (post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 2", body=b"ab"), 501),
    "connect": (b"CONNECT hello.example.com:443 HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "http/2.0 in words": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    "http/0.9 in words": (b"GET / HTTP/0.9\r\n" + HOST + b"\r\n", 505),
    "url too long": (b"GET /" + b"a" * 500 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "endless url": (b"GET /" + b"a" * 5_000, 414),
    "one header too long": (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 2_000 + b"\r\n\r\n", 431),
    "endless header value": (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 5_000, 431),
    "endless header name": (b"GET / HTTP/1.1\r\n" + HOST + b"X" * 5_000, 431),
    "headers too long together": (b"GET / HTTP/1.1\r\n" + HOST + (b"X: " + b"a" * 300 + b"\r\n") * 8, 431),
    "too many headers": (b"GET / HTTP/1.1\r\n" + HOST + b"X: 1\r\n" * 10 + b"\r\n", 431),
    "endless trailer": (post(b"Transfer-Encoding: chunked", body=b"0\r\nX: " + b"a" * 5_000), 431),
    "too many trailers": (post(b"Transfer-Encoding: chunked", body=b"0\r\n" + b"X: 1\r\n" * 11), 431),
    "endless chunk extension": (post(b"Transfer-Encoding: chunked", body=b"3;" + b"a" * 5_000), 431),
    "endless empty lines": (b"\r\n" * 5_000, 431),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("junk", [b"", b"\x00\xff junk", GET * 3], ids=["whole", "junk behind", "requests behind"])
def test_what_is_refused(edge: Callable[..., None], case: str, junk: bytes) -> None:
    data, status = REFUSED[case]

    async def scenario(edge: Edge) -> None:
        assert status_of(await edge.answers(data + junk)) == status
        assert edge.worker.served == []

    edge(scenario)
    edge(scenario, BYTE_BY_BYTE)


ACCEPTED = {
    "a request": (GET, [b"/read 0"]),
    "empty lines first": (b"\r\n\r\n" + GET, [b"/read 0"]),
    "1.0 without host": (b"GET /read HTTP/1.0\r\n\r\n", [b"/read 0"]),
    "an empty host": (b"GET /read HTTP/1.1\r\nHost:\r\n\r\n", [b"/read 0"]),
    "the longest url": (b"GET /read?" + b"a" * 494 + b" HTTP/1.1\r\n" + HOST + b"\r\n", [b"/read 0"]),
    "the most headers": (b"GET /read HTTP/1.1\r\n" + HOST + b"X: 1\r\n" * 9 + b"\r\n", [b"/read 0"]),
    # 5 for /read, 25 for Host and its line, 5 for X and its line: 1965 of 2000 are left for the value.
    "the longest head": (b"GET /read HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 1_965 + b"\r\n\r\n", [b"/read 0"]),
    "an absolute url": (b"GET http://HELLO.example.com:80/read HTTP/1.1\r\n" + HOST + b"\r\n", [b"/read 0"]),
    "a length": (post(b"Content-Length: 5", body=b"abcde"), [b"/read 5"]),
    "chunks": (post(b"Transfer-Encoding: Chunked", body=b"3;x=1\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), [b"/read 5"]),
    "a long body": (post(b"Content-Length: 30000", body=b"a" * 30_000), [b"/read 30000"]),
    "three in line": (GET + post(b"Content-Length: 2", body=b"ab") + GET, [b"/read 0", b"/read 2", b"/read 0"]),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_accepted(edge: Callable[..., None], case: str) -> None:
    data, bodies = ACCEPTED[case]

    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.send(data)
        for expected in bodies:
            status, headers, body = await client.answer()
            assert (status, body) == (200, expected)
        if b"1.0" in data:
            assert headers["connection"] == "close"
            assert await client.end() == b""
        else:
            client.send(GET)
            assert (await client.answer())[2] == b"/read 0"

    edge(scenario)
    edge(scenario, BYTE_BY_BYTE)


def test_byte_by_byte_over_the_wire(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in post(b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\nX: 1\r\n\r\n") + GET:
            client.send(bytes([byte]))
            await asyncio.sleep(0)  # the edge may read it by itself
        assert (await client.answer())[2] == b"/read 3"
        assert (await client.answer())[2] == b"/read 0"

    edge(scenario)


def test_a_trailer_does_not_become_a_header(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.send(post(b"Transfer-Encoding: chunked", body=b"1\r\na\r\n0\r\nHost: evil\r\nX-Admin: 1\r\n\r\n"))
        assert (await client.answer())[0] == 200
        assert [name for name, _ in edge.worker.scopes[0]["headers"]] == [b"host", b"transfer-encoding"]

    edge(scenario)


def test_a_slow_head_ends_and_a_silent_connection_too(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        assert await edge.answers(b"") == b""
        assert await edge.answers(b"\r\n") == b""
        assert status_of(await edge.answers(b"GET / HTTP/1.1\r\nHost: a\r\nX: b")) == 408
        client = await edge.connect()
        client.send(GET)
        assert (await client.answer())[0] == 200
        client.send(b"GET / HT")  # a later head on a kept connection has the same time
        assert status_of(await client.end()) == 408

    edge(scenario, HeadLimits(head_ms_max=30))


def test_a_slow_body_is_not_a_slow_head(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        slow, prompt = await edge.connect(), await edge.connect()
        slow.send(post(b"Content-Length: 2", body=b"a"))
        await edge.worker.began.wait()
        assert await prompt.end() == b""  # a silent connection opened later: the time is up for heads
        slow.send(b"b")
        assert (await slow.answer())[2] == b"/read 2"

    edge(scenario, HeadLimits(head_ms_max=30))


def test_a_bad_head_waits_for_the_answers_before_it(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.send(GET.replace(b"/read", b"/wait") + GET + b"nonsense\r\n" + GET)
        await edge.worker.began.wait()
        edge.worker.go.set()
        assert (await client.answer())[2] == b"/wait 0"
        assert (await client.answer())[2] == b"/read 0"
        assert status_of(await client.end()) == 400
        assert edge.worker.served == ["/wait", "/read"]

    edge(scenario)


def test_a_bad_body_in_line_drops_its_request_only(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.send(GET.replace(b"/read", b"/wait") + post(b"Transfer-Encoding: chunked", body=b"nonsense\r\n"))
        await edge.worker.began.wait()
        edge.worker.go.set()
        assert (await client.answer())[2] == b"/wait 0"
        assert status_of(await client.end()) == 400
        assert edge.worker.served == ["/wait"]

    edge(scenario)


def test_a_bad_body_after_the_answer_began_cuts_the_connection(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.send(post(b"Transfer-Encoding: chunked", path=b"/half"))
        await client.reader.readuntil(b"half")
        client.send(b"nonsense\r\n")
        assert await client.end() == b""  # 4 of 100 promised bytes: nobody takes that for whole
        await edge.worker.gone.wait()

    edge(scenario)


def test_too_many_in_line_are_refused_after_the_answers(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.send(GET * 10)
        for _ in range(4):  # one being answered and three in line
            assert (await client.answer())[0] == 200
        assert status_of(await client.end()) == 400
        assert len(edge.worker.served) == 4

    edge(scenario)


def test_the_request_being_answered_hears_that_the_client_is_gone(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.send(GET.replace(b"/read", b"/half") + GET)
        await client.reader.readuntil(b"half")
        client.writer.transport.abort()
        await edge.worker.gone.wait()
        assert edge.worker.served == []

    # Without a second request in line uvicorn tells it as well; with one, only this class does.
    edge(scenario)


def test_a_small_body_nobody_read_is_dropped_and_the_connection_kept(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.send(post(b"Content-Length: 4000", body=b"a" * 1_000, path=b"/ignore"))
        assert (await client.answer())[2] == b"/ignore 0"
        client.send(b"a" * 3_000 + GET)
        assert (await client.answer())[2] == b"/read 0"

    edge(scenario)


@pytest.mark.parametrize("behind", [b"a" * 1_000, b"a" * 300_000])
def test_a_long_body_nobody_read_ends_the_connection_after_the_linger(edge: Callable[..., None], behind: bytes) -> None:
    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.send(post(b"Content-Length: 900000", path=b"/ignore") + behind)
        assert (await client.answer())[2] == b"/ignore 0"  # whole, though the upload is not over
        try:
            assert await client.end() == b""
        except ConnectionResetError:
            assert len(behind) > 5_000
        assert edge.worker.body_bytes == 0

    edge(scenario, HeadLimits(drain_bytes_max=5_000, linger_ms=30))


def test_a_bad_body_nobody_read_is_not_answered_twice(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.send(post(b"Transfer-Encoding: chunked", path=b"/ignore"))
        assert (await client.answer())[2] == b"/ignore 0"
        client.send(b"nonsense\r\n")
        assert await client.end() == b""

    edge(scenario)


def test_expect_continue(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.send(post(b"Content-Length: 3", b"Expect: 100-continue"))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"abc")
        assert (await client.answer())[2] == b"/read 3"
        # Never told to go on, the client may send the body or the next request: only an end is clear.
        client.send(post(b"Content-Length: 3", b"Expect: 100-continue", path=b"/ignore"))
        assert (await client.answer())[2] == b"/ignore 0"
        client.send(GET)
        assert await client.end() == b""
        assert edge.worker.served == ["/read", "/ignore"]

    edge(scenario)


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
def test_an_upgrade_is_answered_as_http_and_closes(edge: Callable[..., None], protocol: bytes) -> None:
    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.send(
            b"GET /read HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n" + GET
        )
        status, headers, body = await client.answer()
        assert (status, body, headers["connection"]) == (200, b"/read 0", "close")
        with contextlib.suppress(ConnectionResetError):
            assert await client.end() == b""
        assert edge.worker.served == ["/read"]

    edge(scenario)


def test_the_published_limits() -> None:
    limits = HeadLimits()
    assert (limits.head_bytes_max, limits.url_bytes_max, limits.headers_max) == (131_072, 16_384, 256)
    assert limits.head_ms_max == 30_000


# ------------------------------------------------------------------------------------------------- an edge that goes


def leave(edge: Edge) -> None:
    protocol: Any = edge.server.config.http_protocol_class
    protocol.is_leaving = True
    for connection in list(edge.server.server_state.connections):
        connection.make_last()  # type: ignore[union-attr]


def test_a_kept_connection_asks_once_more_when_the_edge_goes(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.send(GET)
        assert "connection" not in (await client.answer())[1]
        leave(edge)
        # What must not be sent twice is not lost, though the client did not know yet.
        client.send(post(b"Content-Length: 3", body=b"abc"))
        status, headers, body = await client.answer()
        assert (status, headers["connection"], body) == (200, "close", b"/read 3")
        assert await client.end() == b""

    edge(scenario)


def test_a_request_under_way_when_the_edge_goes_is_its_connections_last(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        client.send(GET.replace(b"/read", b"/wait") + GET)
        await edge.worker.began.wait()
        leave(edge)
        edge.worker.go.set()
        assert "connection" not in (await client.answer())[1]  # of two in line the later is the last
        status, headers, body = await client.answer()
        assert (status, headers["connection"], body) == (200, "close", b"/read 0")
        assert await client.end() == b""

    edge(scenario)


def test_a_connection_that_comes_while_the_edge_goes_has_one_request(edge: Callable[..., None]) -> None:
    async def scenario(edge: Edge) -> None:
        leave(edge)
        assert b"connection: close" in await edge.answers(GET)

    edge(scenario)


@pytest.mark.parametrize("rest", [b"a" * 3_000, b""], ids=["the body goes on", "it stays away"])
def test_an_answer_before_its_upload_is_over_is_the_last_and_not_reset(edge: Callable[..., None], rest: bytes) -> None:
    """A client whose answers always come before its body would never hear that the edge goes."""

    async def scenario(edge: Edge) -> None:
        client = await edge.connect()
        leave(edge)
        client.send(post(b"Content-Length: 4000", body=b"a" * 1_000, path=b"/ignore"))
        assert (await client.answer())[1]["connection"] == "close"
        client.send(rest + GET if rest else b"")
        assert await client.end() == b""
        assert edge.worker.served == ["/ignore"]

    edge(scenario)
