"""What comes back from an origin by the way out, and over which connection."""

import hashlib
import json
import select
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from http_origin import PIECE_BYTES
from way_out import LIMIT_S, MIB, Make, Way, read, read_piece, wait_head

from actors.egress import EgressLimits
from actors.egress_origin import OriginLimits
from actors.egress_policy import LOOP_HEADER
from isolates.conversation import ResponseHead

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
