"""The way out, both ends: a real EgressServer on a loop of its own, hosts' threads, and a real origin on loopback."""

import asyncio
import contextlib
import hashlib
import json
import os
import select
import shutil
import socket
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import pytest
from complete_servers import wait_until
from http_origin import PIECE_BYTES, Origin, tls

from actors.connection import Connection, Frame, frame
from actors.egress import EgressLimits, EgressServer
from actors.egress_connect import _is_own
from actors.egress_http import HttpLimits
from actors.egress_line import HostEgress, HostOutgoing
from actors.egress_names import SystemNames
from actors.egress_origin import OriginLimits
from actors.egress_policy import LOOP_HEADER, EgressPolicy, parse_rule
from isolates.conversation import ResponseHead
from isolates.egress import AnswerLost, ErrorCode, OutgoingHead, OutgoingTimeouts

T = TypeVar("T")
MIB = 1 << 20
LIMIT_S = 20.0


class OwnLoop:
    """An event loop in a thread of its own, as the Server has one in its process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT_S)

    def close(self) -> None:
        self.call(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class Names:
    """Answers look-ups from a script: each name has answers, of which the last is given again and again."""

    answers: dict[str, list[list[str]]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def __call__(self, worker: str, host: str, port: int) -> list[str]:
        self.asked.append((worker, host))
        if host == "never.test":
            await asyncio.Event().wait()
        given = self.answers.get(host)
        if given is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return given.pop(0) if len(given) > 1 else given[0]


@dataclass
class Way:
    """A way out and an origin behind it."""

    loop: OwnLoop
    server: EgressServer
    origin: Origin
    names: Names
    path: Path
    scheme: str
    speaks: str = "http"

    @property
    def plenty_bytes(self) -> int:
        """20 MB; HTTP/2 is an order slower here, at both ends, and as much says as much."""
        return (6 if self.speaks == "http2" else 20) * MIB

    def open(
        self,
        path: str,
        method: str = "GET",
        *,
        host: str = "origin.test",
        worker: str = "worker",
        headers: tuple[tuple[str, bytes], ...] = (),
        timeouts: OutgoingTimeouts | None = None,
        **about: Any,
    ) -> HostOutgoing:
        head = OutgoingHead(method, self.scheme, f"{host}:{self.origin.port}", path, headers)
        opened = HostEgress(self.path, worker=worker, **about).open(head, timeouts or OutgoingTimeouts())
        assert isinstance(opened, HostOutgoing), opened
        return opened

    def get(self, path: str, method: str = "GET", **about: Any) -> "Got":
        """A request without a body, read to its end."""
        outgoing = self.open(path, method, **about)
        outgoing.finish()
        return read(outgoing)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for the other side."""

        async def reached() -> bool:
            return condition()

        try:
            self.loop.call(wait_until(reached, what))
        except AssertionError as late:
            raise AssertionError(f"{late}: {self.statistics()}") from late

    def statistics(self) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            return self.server.statistics()

        return (
            self.loop.call(ask()) if threading.current_thread() is not self.loop._thread else self.server.statistics()
        )


@dataclass(frozen=True)
class Got:
    """An answer, or why there is none, or why it broke off."""

    head: ResponseHead | None
    body: bytes = b""
    code: ErrorCode | None = None


def wait_head(outgoing: HostOutgoing) -> ResponseHead | ErrorCode:
    waiting = select.poll()
    waiting.register(outgoing.fileno(), select.POLLIN)
    while (head := outgoing.head()) is None:
        assert waiting.poll(LIMIT_S * 1e3), "no answer"
    return head


def read_piece(outgoing: HostOutgoing, bytes_max: int = 1 << 20) -> bytes | None:
    waiting = select.poll()
    waiting.register(outgoing.fileno(), select.POLLIN)
    while not outgoing.body_ready():
        assert waiting.poll(LIMIT_S * 1e3), "no more"
    data = outgoing.read_body(bytes_max)
    assert data != b"", "it was ready"
    return data


def read(outgoing: HostOutgoing) -> Got:
    try:
        head = wait_head(outgoing)
        if not isinstance(head, ResponseHead):
            return Got(None, code=head)
        pieces = []
        try:
            while (data := read_piece(outgoing)) is not None:
                pieces.append(data)
        except AnswerLost as lost:
            return Got(head, b"".join(pieces), lost.code)
        return Got(head, b"".join(pieces))
    finally:
        outgoing.close()


Make = Callable[..., Way]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    loop = OwnLoop()
    sockets = Path(tempfile.mkdtemp(prefix="ew-"))
    made: list[Way] = []

    def one(
        speaks: str = "http",
        *,
        limits: EgressLimits | None = None,
        added: str | None = "127.0.0.1",
        own: tuple[str, ...] = (),
        names: dict[str, list[list[str]]] | None = None,
        trusted: bool = True,
    ) -> Way:
        context, pem = None, ""
        if speaks != "http":
            context, pem = tls(tmp_path / "ca", "origin.test", "127.0.0.1", http2=speaks == "http2")
        answers = Names({"origin.test": [["127.0.0.1"]], **(names or {})})
        policy = EgressPolicy(
            added=() if added is None else (parse_rule(added),), own=tuple(parse_rule(text) for text in own)
        )

        async def start() -> Way:
            origin = await Origin(context).__aenter__()
            server = EgressServer(policy, limits=limits, lookup=answers, authorities_pem=pem if trusted else "")
            await server.start(sockets / f"e{len(made)}.sock")
            scheme = "http" if speaks == "http" else "https"
            return Way(loop, server, origin, answers, sockets / f"e{len(made)}.sock", scheme, speaks)

        way = loop.call(start())
        made.append(way)
        return way

    yield one

    async def stop() -> None:
        for way in made:
            await way.server.stop()
            await way.origin.__aexit__()
            assert way.server.statistics()["open"] == 0

    try:
        loop.call(stop())
    finally:
        loop.close()
        shutil.rmtree(sockets)


@pytest.fixture(params=["http", "https", "http2"])
def way(request: pytest.FixtureRequest, make: Make) -> Way:
    return make(request.param)


# ----------------------------------------------------------------------------------------------------- good answers


def test_hello(way: Way) -> None:
    got = way.get("/hello")
    assert got.head is not None
    assert (got.head.status, got.body, got.code) == (200, b"hello", None)
    assert way.origin.requests == ["GET /hello"]


def test_what_the_origin_sees_and_what_the_guest_sees(way: Way) -> None:
    got = way.get(
        "/headers",
        headers=(("x-mine", b"1"), ("connection", b"x-gone"), ("x-gone", b"2"), ("everwarm-forged", b"3")),
        traceparent="00-ab-cd-01",
        loops_left=7,
    )
    assert got.head is not None
    seen = dict(map(tuple, json.loads(got.body)))
    host = f"origin.test:{way.origin.port}"
    assert seen.get("host", seen.get(":authority")) == host
    assert (seen["x-mine"], seen["traceparent"], seen[LOOP_HEADER]) == ("1", "00-ab-cd-01", "6")
    assert not {"connection", "x-gone", "everwarm-forged", "transfer-encoding", "user-agent", "cookie"} & set(seen)
    answered = dict(got.head.headers)
    assert answered["x-origin"] == b"here"
    assert "everwarm-fake" not in answered


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_an_empty_body_has_a_length(way: Way, method: str) -> None:
    assert way.get("/sink", method).body == b"0"


def test_no_redirect_is_followed_no_cookie_kept_nothing_decoded(way: Way) -> None:
    got = way.get("/redirect")
    assert got.head is not None
    assert (got.head.status, dict(got.head.headers)["location"]) == (302, b"/hello")
    assert "cookie" not in way.get("/headers").body.decode()
    assert way.get("/gzip").body == b"not really"
    assert way.origin.requests == ["GET /redirect", "GET /headers", "GET /gzip"]


def test_a_head_request_has_no_body(way: Way) -> None:
    got = way.get("/hello", "HEAD") if way.scheme == "http" else way.get("/once", "GET")
    assert got.code is None


def test_uploads_of_plenty_with_and_without_a_length(way: Way) -> None:
    for headers in ((), (("content-length", str(way.plenty_bytes).encode()),)):
        outgoing = way.open("/sink", "POST", headers=headers)
        for _ in range(way.plenty_bytes // PIECE_BYTES):
            assert outgoing.send(bytes(PIECE_BYTES))
        outgoing.finish()
        assert read(outgoing).body == str(way.plenty_bytes).encode()
    assert way.statistics()["sent_bytes"] == 2 * way.plenty_bytes


def test_plenty_come_down_in_bounded_memory(way: Way) -> None:
    way.get("/hello")
    tracemalloc.start()
    try:
        outgoing = way.open(f"/big?pieces={way.plenty_bytes // PIECE_BYTES}")
        outgoing.finish()
        size = 0
        while (data := read_piece(outgoing, PIECE_BYTES)) is not None:
            size += len(data)
        outgoing.close()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == way.plenty_bytes
    assert peak < 4 * MIB


def test_plenty_go_both_ways_at_once_in_bounded_memory(way: Way) -> None:
    """The origin answers while it reads; whoever sends everything first would never end."""
    way.get("/hello")
    tracemalloc.start()
    try:
        outgoing = way.open("/echo", "POST")
        sent, came = hashlib.sha256(), hashlib.sha256()
        left, ended = way.plenty_bytes // PIECE_BYTES, False
        size = 0
        waiting = select.poll()
        while not ended:
            waiting.register(outgoing.fileno(), select.POLLIN | (select.POLLOUT if left else 0))
            assert waiting.poll(LIMIT_S * 1e3)
            while left and outgoing.writable():
                piece = left.to_bytes(4) * (PIECE_BYTES // 4)
                assert outgoing.send(piece)
                sent.update(piece)
                left -= 1
                if not left:
                    outgoing.finish()
            while outgoing.body_ready():
                data = outgoing.read_body(10_000)
                if data is None:
                    ended = True
                    break
                came.update(data or b"")
                size += len(data or b"")
        outgoing.close()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (size, came.digest()) == (way.plenty_bytes, sent.digest())
    assert peak < 5 * MIB


def test_a_guest_that_does_not_read_holds_the_origin_back(make: Make) -> None:
    for speaks in ("http", "http2"):
        way = make(speaks)
        outgoing = way.open(f"/big?pieces={64 * MIB // PIECE_BYTES}")
        outgoing.finish()
        assert isinstance(wait_head(outgoing), ResponseHead)
        seen = -1

        def stands(way: Way = way) -> bool:
            nonlocal seen
            before, seen = seen, way.origin.sent_bytes
            return before == seen > 0

        way.until(stands, "the origin waits")
        assert way.origin.sent_bytes < 32 * MIB
        outgoing.close()
        way.until(lambda way=way: sum(way.origin.gone.values()) == 1, "the origin has noticed")


def test_the_head_comes_before_the_body_is_sent(way: Way) -> None:
    outgoing = way.open("/echo", "POST")
    assert isinstance(wait_head(outgoing), ResponseHead)
    assert not outgoing.body_ready()
    assert outgoing.read_body(10) == b""
    assert outgoing.send(b"ping")
    assert read_piece(outgoing) == b"ping"
    outgoing.finish()
    assert read_piece(outgoing) is None
    assert outgoing.read_body(10) is None
    outgoing.close()
    outgoing.close()


def test_an_answer_that_comes_early_ends_the_upload(way: Way) -> None:
    outgoing = way.open("/early", "POST")
    outgoing.send(b"x")
    head = wait_head(outgoing)
    assert isinstance(head, ResponseHead)
    assert head.status == 413
    got = read(outgoing)
    assert got.body == b"too much"
    way.until(lambda: way.statistics()["open"] == 0, "it is over, though its body was not")
    assert outgoing.writable()
    assert not outgoing.send(b"more")


def test_the_socket_is_readable_exactly_when_there_is_something(way: Way) -> None:
    outgoing = way.open("/big?pieces=3")
    outgoing.finish()
    wait_head(outgoing)
    waiting = select.poll()
    waiting.register(outgoing.fileno(), select.POLLIN)
    size = 0
    while True:
        while not outgoing.body_ready():
            assert waiting.poll(LIMIT_S * 1e3)
        assert waiting.poll(0) or outgoing._whole
        data = outgoing.read_body(7_777)
        if data is None:
            break
        size += len(data)
    assert size == 3 * PIECE_BYTES
    outgoing.close()


def test_eight_host_threads_at_once(way: Way) -> None:
    def ask(number: int) -> int:
        for i in range(10):
            outgoing = way.open("/echo", "POST", worker=f"worker-{number % 3}", request_id=f"r-{number}-{i}")
            piece = bytes([number]) * 50_000
            assert outgoing.send(piece)
            outgoing.finish()
            assert read(outgoing).body == piece
        return number

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == list(range(8))
    statistics = way.statistics()
    assert (statistics["requests"], statistics["failures"], statistics["pools"]) == (80, {}, 3)


# ------------------------------------------------------------------------------------------------------ connections


def test_a_connection_is_used_again_by_its_worker_alone(way: Way) -> None:
    for _ in range(3):
        assert way.get("/hello", worker="one").body == b"hello"
    assert way.origin.connections == 1
    assert way.get("/hello", worker="two").body == b"hello"
    assert way.origin.connections == 2
    assert way.get("/sink", "POST", worker="two").body == b"0"
    assert (way.origin.connections, way.statistics()["pools"]) == (2, 2)


def test_a_connection_is_not_used_again_after_half_an_answer(way: Way) -> None:
    outgoing = way.open("/stalls")
    outgoing.finish()
    assert read_piece(outgoing) == b"some"
    outgoing.close()
    way.until(lambda: way.origin.gone["/stalls"] == 1, "closed")
    assert way.get("/hello").body == b"hello"
    assert way.origin.connections == 2


def test_an_origin_that_closes_what_was_idle_costs_nothing(make: Make) -> None:
    way = make("http")
    assert way.get("/once").body == b"bye"
    assert way.get("/once").body == b"bye"
    assert way.origin.connections == 2


def test_idle_connections_are_closed(make: Make) -> None:
    for speaks in ("http", "http2"):
        way = make(speaks, limits=EgressLimits(sweep_s=0.01, origin=OriginLimits(idle_s=0.02)))
        assert way.get("/hello").body == b"hello"
        way.until(lambda way=way: way.origin.gone["/hello"] == 1, "the origin sees it")
        assert way.statistics()["pools"] == 0


def test_the_longest_unused_pool_goes_first(make: Make) -> None:
    way = make(limits=EgressLimits(pools_max=2))
    for worker in ("a", "b", "c"):
        way.get("/hello", worker=worker)
    way.until(lambda: way.origin.gone["/hello"] == 1, "the pool of a is closed")
    assert list(way.server._tenants) == ["b", "c"]


# ------------------------------------------------------------------------------------------------------------ ends


@pytest.mark.parametrize("path", ["/silent", "/stalls"])
def test_a_guest_that_leaves_is_noticed_by_the_origin(way: Way, path: str) -> None:
    outgoing = way.open(path)
    outgoing.finish()
    way.until(lambda: way.origin.requests == [f"GET {path}"], "it is there")
    outgoing.close()
    way.until(lambda: way.origin.gone[path] == 1, "the origin has noticed")
    way.until(lambda: way.statistics()["canceled"] == 1, "counted")
    way.until(lambda: way.statistics()["connections"] == 0, "closed")


@pytest.mark.parametrize("path", ["/silent", "/stalls"])
def test_what_is_cancelled_again_while_it_ends_is_closed_all_the_same(way: Way, path: str) -> None:
    async def cancel_twice(steps: int) -> None:
        (task,) = way.server._tasks.values()
        task.cancel()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()

    for steps in range(8):
        outgoing = way.open(path)
        outgoing.finish()
        way.until(lambda steps=steps: len(way.origin.requests) == steps + 1, "it is there")
        if path == "/stalls":
            assert read_piece(outgoing) == b"some"
        way.loop.call(cancel_twice(steps))
        way.until(lambda steps=steps: way.origin.gone[path] == steps + 1, f"closed after {steps} steps")
        outgoing.close()
    assert nothing_is_lent(way)


def test_a_guest_that_leaves_in_the_moment_of_the_head(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exchange ends because nobody takes the head; the news that it left comes while it does."""
    sent = Connection.send

    def leave(connection: Connection, kind: Frame, payload: bytes = b"") -> None:
        if kind is Frame.HEAD:
            connection.close()
        sent(connection, kind, payload)

    monkeypatch.setattr(Connection, "send", leave)
    outgoing = way.open("/stalls")
    outgoing.finish()
    way.until(lambda: way.origin.gone["/stalls"] == 1, "the origin has noticed")
    way.until(lambda: way.statistics()["canceled"] == 1, "counted")
    assert nothing_is_lent(way)
    outgoing.close()


def test_a_guest_that_leaves_while_tls_begins(make: Make) -> None:
    way = make("http")
    way.scheme = "https"
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(LIMIT_S)
        way.origin.port = mute.getsockname()[1]
        outgoing = way.open("/")
        outgoing.finish()
        connected, _ = mute.accept()
        with connected:
            connected.settimeout(LIMIT_S)
            assert connected.recv(MIB)
            outgoing.close()
            with contextlib.suppress(ConnectionResetError):
                assert connected.recv(MIB) == b""
    way.until(lambda: nothing_is_lent(way), "it is over")


def nothing_is_lent(way: Way) -> bool:
    """Whether no connection is open, and no request of a pool holds one or waits for one."""
    return all(not tenant.pool.connections and not tenant.pool._requests for tenant in way.server._tenants.values())


def test_a_guest_that_leaves_while_the_origin_takes_nothing(way: Way) -> None:
    """The way out does not read its host's socket then, and notices all the same."""
    outgoing = way.open("/deaf", "POST")
    waiting = select.poll()
    waiting.register(outgoing.fileno(), select.POLLOUT)
    while waiting.poll(200):  # what gets stuck stays stuck: nobody reads at the other end
        assert outgoing.send(bytes(PIECE_BYTES))
    outgoing.close()
    way.until(lambda: way.statistics()["open"] == 0, "given up")
    assert way.statistics()["canceled"] == 1


def test_an_upload_that_is_abandoned_is_not_a_short_body(way: Way) -> None:
    outgoing = way.open("/sink", "POST")
    outgoing.send(b"some")
    way.until(lambda: way.origin.received_bytes == 4, "the origin has the beginning")
    outgoing.close()
    way.until(lambda: way.origin.gone["/sink"] == 1, "the origin has noticed")
    assert way.origin.sent_bytes == 0


def test_an_answer_that_breaks_off(way: Way) -> None:
    got = way.get("/half")
    assert got.head is not None
    assert got.body == b"half of i"
    assert got.code == ("HTTP-response-incomplete", None)


def test_an_origin_that_hangs_up(way: Way) -> None:
    assert way.get("/cut", "POST").code == ("connection-terminated", None)


def test_a_way_out_that_ends(way: Way) -> None:
    outgoing = way.open("/stalls")
    outgoing.finish()
    assert read_piece(outgoing) == b"some"
    way.loop.call(way.server.stop())
    got = read(outgoing)
    assert got.code is not None
    assert got.code[0] == "internal-error"
    assert not outgoing.send(b"x")
    os.unlink(way.path)
    refused = HostEgress(way.path, worker="w").open(OutgoingHead("GET", "http", "a", "/"), OutgoingTimeouts())
    assert isinstance(refused, tuple)
    assert refused[0] == "internal-error"
    assert str(way.path) not in str(refused)


@pytest.mark.parametrize("declared", [3, 5])
def test_a_body_of_another_length_than_promised(way: Way, declared: int) -> None:
    outgoing = way.open("/sink", "POST", headers=(("content-length", str(declared).encode()),))
    outgoing.send(b"four")
    outgoing.finish()
    assert read(outgoing).code == ("HTTP-request-body-size", 4)


def test_a_head_that_is_too_long(make: Make) -> None:
    for speaks in ("http", "http2"):
        way = make(speaks, limits=EgressLimits(origin=OriginLimits(http=HttpLimits(head_bytes_max=16_384))))
        assert way.get("/long-head?bytes=10000").code is None
        assert way.get("/long-head?bytes=20000").code == ("HTTP-response-header-section-size", 16_384)
        assert way.get("/long-head?bytes=40000").code == ("HTTP-response-header-section-size", 16_384)


@pytest.mark.parametrize("status", ["ok", "20", "2_00", "99999", "-200"])
def test_a_status_that_is_none(make: Make, status: str) -> None:
    assert make("http2").get(f"/odd-status?is={status}").code == ("HTTP-protocol-error", None)


# --------------------------------------------------------------------------------------------------------- timeouts


def test_an_origin_that_does_not_answer(way: Way) -> None:
    asked = OutgoingTimeouts(first_byte_s=0.05)
    assert way.get("/silent", timeouts=asked).code == ("HTTP-response-timeout", None)
    way.until(lambda: way.origin.gone["/silent"] == 1, "closed")


def test_an_origin_that_stops_in_the_middle(way: Way) -> None:
    got = way.get("/stalls", timeouts=OutgoingTimeouts(between_bytes_s=0.05))
    assert (got.body, got.code) == (b"some", ("connection-read-timeout", None))


def test_an_origin_that_takes_nothing(way: Way) -> None:
    outgoing = way.open("/deaf", "POST", timeouts=OutgoingTimeouts(between_bytes_s=0.1, first_byte_s=0.01))
    while outgoing.send(bytes(PIECE_BYTES)):
        pass
    assert read(outgoing).code == ("connection-write-timeout", None)


def test_an_origin_that_waits_for_its_guest_is_not_late(way: Way) -> None:
    asked = OutgoingTimeouts(first_byte_s=0.1, between_bytes_s=0.1)  # and time for a head, on a busy machine
    outgoing = way.open("/echo", "POST", timeouts=asked)
    assert isinstance(wait_head(outgoing), ResponseHead)
    assert not select.select([outgoing.fileno()], [], [], 0.3)[0]
    outgoing.send(b"late")
    assert read_piece(outgoing) == b"late"
    outgoing.close()


def test_the_smaller_timeout_holds(make: Make) -> None:
    way = make(limits=EgressLimits(first_byte_s=0.05))
    assert way.get("/silent", timeouts=OutgoingTimeouts(first_byte_s=1e9)).code == ("HTTP-response-timeout", None)


def test_a_handshake_that_hangs(make: Make) -> None:
    way = make("http")
    way.scheme = "https"
    with socket.create_server(("127.0.0.1", 0)) as mute:
        way.origin.port = mute.getsockname()[1]
        code = way.get("/", timeouts=OutgoingTimeouts(connect_s=0.1)).code
    assert code == ("connection-timeout", None)


def test_names_that_take_too_long(make: Make) -> None:
    way = make()
    code = way.get("/", host="never.test", timeouts=OutgoingTimeouts(connect_s=0.05)).code
    assert code == ("DNS-timeout", None)


# -------------------------------------------------------------------------------------------------------- refusals


def test_nobody_listens(make: Make) -> None:
    way = make()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        way.origin.port = taken.getsockname()[1]
    assert way.get("/").code == ("connection-refused", None)
    assert way.statistics()["failures"] == {"connection-refused": 1}


def test_unknown_names(make: Make) -> None:
    assert make().get("/", host="nowhere.test").code == ("DNS-error", ("NXDOMAIN", None))


def test_a_name_with_a_private_address_is_refused(make: Make) -> None:
    way = make(added=None, names={"evil.test": [["127.0.0.1", "10.0.0.1", "::1", "169.254.169.254"]]})
    way.origin.port = 80
    assert way.get("/", host="evil.test").code == ("destination-IP-prohibited", None)
    assert way.get("/", host="127.0.0.1").code == ("destination-IP-prohibited", None)
    assert way.get("/", host="[::ffff:127.0.0.1]").code == ("destination-IP-prohibited", None)
    assert way.get("/", host="169.254.169.254").code == ("destination-IP-prohibited", None)
    assert way.get("/", host="localhost").code == ("destination-not-found", None)
    assert way.get("/", host="2130706433").code == ("DNS-error", ("NXDOMAIN", None))
    way.origin.port = 8080
    assert way.get("/", host="evil.test").code == ("HTTP-request-denied", None)


def test_of_several_addresses_only_permitted_ones_are_tried(make: Make) -> None:
    way = make(names={"mixed.test": [["10.0.0.1", "192.168.0.1", "127.0.0.1"]]})
    assert way.get("/hello", host="mixed.test").body == b"hello"


def test_the_next_address_is_tried(make: Make) -> None:
    way = make(added="127.0.0.0/8", names={"two.test": [["127.0.0.2", "127.0.0.1"]]})
    assert way.get("/hello", host="two.test").body == b"hello"


def test_a_name_that_answers_differently_the_next_time(make: Make) -> None:
    way = make(names={"rebind.test": [["127.0.0.1"], ["169.254.169.254"]]})
    assert way.get("/once", host="rebind.test").body == b"bye"
    assert way.names.asked == [("worker", "rebind.test")]  # once, and what was judged was connected to
    assert way.get("/once", host="rebind.test").code == ("destination-IP-prohibited", None)


def test_the_clusters_own_addresses(make: Make) -> None:
    way = make(own=("127.0.0.1",))
    assert way.get("/hello").code == ("destination-IP-prohibited", None)
    assert way.get("/hello", host="127.0.0.1").code == ("destination-IP-prohibited", None)


def test_this_machines_own_addresses() -> None:
    assert _is_own("127.0.0.1")
    assert _is_own("::1") or not socket.has_ipv6
    assert not _is_own("8.8.8.8")


def test_an_allow_list_holds_also_for_a_connection_that_is_open(make: Make) -> None:
    way = make()
    assert way.get("/hello").body == b"hello"
    assert way.get("/hello", allow=("other.test",)).code == ("HTTP-request-denied", None)
    assert way.get("/hello", allow=("*.test",)).body == b"hello"


def test_a_circle_is_broken(way: Way) -> None:
    assert way.get("/hello", loops_left=1).body == b"hello"
    assert way.get("/hello", loops_left=0).code == ("loop-detected", None)


@pytest.mark.parametrize(
    ("method", "path", "case"),
    [("CONNECT", "/", "HTTP-request-method-invalid"), ("GET", "/a b", "HTTP-request-URI-invalid")],
)
def test_nonsense_is_refused(make: Make, method: str, path: str, case: str) -> None:
    assert make().get(path, method).code == (case, None)


def test_certificates_that_are_not_the_names(make: Make) -> None:
    way = make("https", names={"other.test": [["127.0.0.1"]]})
    assert way.get("/hello", host="other.test").code == ("TLS-certificate-error", None)
    assert way.get("/hello", host="127.0.0.1").body == b"hello"
    stranger = make("https", trusted=False)
    assert stranger.get("/hello").code == ("TLS-certificate-error", None)


def test_an_origin_that_speaks_no_tls(make: Make) -> None:
    way = make("http")
    way.scheme = "https"
    code = way.get("/hello").code
    assert code is not None
    assert code[0] in ("TLS-protocol-error", "connection-terminated")


# ----------------------------------------------------------------------------------------------------------- bounds


def hold(way: Way, count: int, **about: Any) -> list[HostOutgoing]:
    """Exchanges that are open at the origin."""
    before = len(way.origin.requests)
    held = [way.open("/silent", **about) for _ in range(count)]
    for one in held:
        one.finish()
    way.until(lambda: len(way.origin.requests) >= before + count, "they are there")
    return held


def test_the_exchanges_of_a_worker_and_of_a_machine(make: Make) -> None:
    way = make(limits=EgressLimits(worker_exchanges_max=2, exchanges_max=3))
    held = hold(way, 2)
    assert way.get("/hello").code == ("connection-limit-reached", None)
    assert way.get("/hello", worker="other").body == b"hello"
    way.until(lambda: way.statistics()["links"] == 2, "its connection is gone")
    held += [way.open("/silent", worker="other")]
    way.until(lambda: way.statistics()["links"] == 3, "full")
    assert way.get("/hello", worker="third").code == ("connection-limit-reached", None)
    for one in held:
        one.close()


def test_the_seventh_of_a_tree_waits(make: Make) -> None:
    way = make()
    held = hold(way, 6, request_id="tree")
    seventh = way.open("/hello", request_id="tree")
    seventh.finish()
    assert way.get("/hello", request_id="other tree").body == b"hello"
    assert seventh.head() is None
    held[0].close()
    assert read(seventh).body == b"hello"
    late = way.get("/hello", request_id="tree", connections_max=6, timeouts=OutgoingTimeouts(connect_s=5.0))
    assert late.body == b"hello"
    held += hold(way, 1, request_id="tree")
    full = way.get("/hello", request_id="tree", timeouts=OutgoingTimeouts(connect_s=0.02))
    assert full.code == ("connection-limit-reached", None)
    for one in held:
        one.close()
    way.until(lambda: not way.server._trees, "nothing is kept of a tree that is over")


def test_the_six_are_those_of_all_stages_of_a_tree(make: Make) -> None:
    way = make()
    held = [one for worker in ("a", "b", "c") for one in hold(way, 2, request_id="tree", worker=worker)]
    seventh = way.open("/hello", request_id="tree", worker="d")
    seventh.finish()
    full = way.get("/hello", request_id="tree", worker="a", timeouts=OutgoingTimeouts(connect_s=0.02))
    assert full.code == ("connection-limit-reached", None)
    assert seventh.head() is None
    held[-1].close()
    assert read(seventh).body == b"hello"
    for one in held:
        one.close()


def test_a_worker_that_has_all_its_connections_waits(make: Make) -> None:
    way = make(limits=EgressLimits(origin=OriginLimits(connections_max=1)))
    (held,) = hold(way, 1)
    waiting = way.open("/hello")
    waiting.finish()
    full = way.get("/hello", timeouts=OutgoingTimeouts(connect_s=0.02))
    assert full.code == ("connection-limit-reached", None)
    assert way.get("/hello", worker="other").body == b"hello"
    assert waiting.head() is None
    held.close()
    assert read(waiting).body == b"hello"


def test_the_socket_is_this_users_alone(make: Make) -> None:
    assert os.stat(make().path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", frame(Frame.BODY, b"x"), frame(Frame.OUTGOING, b"nonsense"), frame(Frame.OUTGOING)[:3]],
)
def test_nonsense_ends_the_connection_and_nothing_else(make: Make, data: bytes) -> None:
    way = make(limits=EgressLimits(ask_s=0.1))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(way.path))
        stranger.sendall(data)
        stranger.settimeout(LIMIT_S)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    assert way.get("/hello").body == b"hello"


# ------------------------------------------------------------------------------------------------------------ names


def test_the_machines_resolver() -> None:
    async def play() -> None:
        names = SystemNames()
        try:
            found = await names.lookup("w", "localhost", 80)
            assert found
            assert all(ip_address(address).is_loopback for address in found)
            with pytest.raises(socket.gaierror):
                await names.lookup("w", "nowhere.invalid", 80)
            for _ in range(10):
                await names.lookup("w", "127.0.0.1", 80)

            async def idle() -> bool:
                return not names._gates and not names._under_way

            await wait_until(idle, "nothing is kept")
        finally:
            names.close()

    asyncio.run(play())
