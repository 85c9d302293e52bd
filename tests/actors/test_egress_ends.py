"""Exchanges that end before they are over: by the guest, by the origin, by the way out, by time."""

import asyncio
import contextlib
import os
import select
import socket

import pytest
from http_origin import PIECE_BYTES
from way_out import LIMIT_S, MIB, Make, Way, nothing_is_lent, read, read_piece, wait_head

from actors.connection import Connection, Frame
from actors.egress import EgressLimits
from actors.egress_http import HttpLimits
from actors.egress_line import HostEgress
from actors.egress_origin import OriginLimits
from isolates.conversation import ResponseHead
from isolates.egress import OutgoingHead, OutgoingTimeouts

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
