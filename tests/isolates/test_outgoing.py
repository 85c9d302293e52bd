"""Guests that ask others: the example worker ``fetch`` against a real origin, and what is left after each ending."""

import os
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from actors.connection import Frame, FrameReader, frame
from actors.exchange import Request, Served
from actors.host_conversation import HostConversation, LinkSocket
from isolates.conversation import FieldItems, RequestHead, ResponseHead
from isolates.egress import ErrorCode, Outgoing, OutgoingHead, OutgoingTimeouts
from isolates.isolate import Finished, Isolate
from isolates.limits import MIB, Verdict
from isolates.outcome import Outcome
from tests.isolates.conftest import Guests, Start
from tests.local_origin import LocalOrigin, SocketEgress
from tests.scripted_conversation import ScriptedConversation

AMPLE = {"cpu_ms": 60_000.0}


@pytest.fixture
def origin() -> Iterator[LocalOrigin]:
    with LocalOrigin().running() as origin:
        yield origin


@pytest.fixture
def egress() -> Iterator[SocketEgress]:
    """Whatever a test does: when its guest is gone, so is everything that it had opened."""
    egress = SocketEgress()
    yield egress
    assert egress.all_closed, "an exchange was left open"
    egress.join()


@pytest.fixture
def fetch(guests: Guests, start: Start) -> Isolate:
    return start(guests("fetch"), **AMPLE)


def to(*urls: str) -> FieldItems:
    return (("fetch-url", " ".join(urls).encode()),)


def ask(isolate: Isolate, egress: Any, url: str, query: str = "", **options: Any) -> tuple[Finished, "Counting"]:
    conversation = Counting(f"/?{query}", headers=to(url), **options)
    finished = isolate.run(conversation, egress=egress)
    assert isolate.guest.exchanges == []
    assert isolate.guest.held_bytes == 0
    return finished, conversation


class Counting(ScriptedConversation):
    """Counts how often the host waits, so that it is seen when it does not."""

    waits = 0

    def wait(self, timeout_s: float, *, for_body: bool, **descriptors: Any) -> None:
        self.waits += 1
        super().wait(timeout_s, for_body=for_body, **descriptors)


class TestAsking:
    def test_a_request_and_its_answer(self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress) -> None:
        finished, conversation = ask(fetch, egress, origin.url("/hello?a=b"))
        assert (finished.outcome, finished.verdict) == (Outcome.OK, Verdict.KEEP)
        assert conversation.response == ResponseHead(200, (("content-type", b"text/plain"),))
        assert conversation.body == b"hello\n"
        (method, path, headers), *more = origin.seen
        assert (method, path, more) == ("GET", "/hello?a=b", [])
        assert headers["host"] == origin.url("").removeprefix("http://")
        assert fetch.guest.resources == 0

    def test_an_isolate_asks_again_and_again(self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress) -> None:
        for _ in range(20):
            assert ask(fetch, egress, origin.url("/hello"))[1].body == b"hello\n"
            assert fetch.guest.resources == 0
        assert len(egress.opened) == 20
        assert egress.open_most == 1

    def test_bodies_stream_both_ways(self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress) -> None:
        body = [os.urandom(size) for size in (1, 40_000, 70_000, 3)]
        finished, conversation = ask(fetch, egress, origin.url("/echo"), method="POST", body=body)
        assert finished.outcome is Outcome.OK
        assert conversation.body == b"".join(body)
        assert origin.whole_bodies == 1

    def test_each_piece_goes_out_and_comes_back_before_the_next_exists(
        self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress
    ) -> None:
        """The guest waits for its client, for room and for the origin at once: whoever has something is served."""
        pieces = [os.urandom(2_000 + i) for i in range(5)]
        with Client(to(origin.url("/echo")), pieces) as client:
            finished = fetch.run(client.conversation, egress=egress)
            assert finished.outcome is Outcome.OK
            client.conversation.flush()
            assert client.answered() == b"".join(pieces)

    def test_ten_megabytes_pass_in_bounded_memory(
        self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress
    ) -> None:
        conversation = Sink(origin, to(origin.url(f"/size/{10 * MIB}")))
        finished = fetch.run(conversation, egress=egress)
        assert finished.outcome is Outcome.OK
        assert conversation.received_bytes == 10 * MIB
        # All there is between the two: four buffers of the kernel (64 KiB doubled, 208 KiB twice), a piece in each
        # thread and the guest.
        assert conversation.on_the_way_most < 1.5 * MIB
        assert egress.opened[0].held_bytes_most <= 2 * 65_536 + 5

    def test_an_origin_that_does_not_read_stops_the_client(
        self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress
    ) -> None:
        conversation = Upload(origin, to(origin.url("/count/go")), 4 * MIB)
        finished = fetch.run(conversation, egress=egress)
        assert finished.outcome is Outcome.OK
        assert conversation.body == b"%d" % (4 * MIB)
        assert 0 < conversation.pulled_before_bytes < 2 * MIB

    def test_three_at_once_are_told_in_the_order_of_their_answers(
        self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress
    ) -> None:
        urls = [origin.url(f"/turn/{name}") for name in ("a", "bb", "ccc")]
        conversation = InTurns(origin, to(*urls), {"start": "ccc", "2 200 3\n": "a", "0 200 1\n": "bb"})
        origin.on_request = lambda path: conversation.seen(len(origin.seen) == 3)
        assert fetch.run(conversation, egress=egress).outcome is Outcome.OK
        assert conversation.body == b"2 200 3\n0 200 1\n1 200 2\n"
        assert egress.open_most == 3

    def test_an_answer_without_the_whole_body(self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress) -> None:
        """The origin says no without reading: the answer gets through, and the upload stops."""
        conversation = Upload(origin, to(origin.url("/early")), 64 * MIB)
        finished = fetch.run(conversation, egress=egress)
        assert finished.outcome is Outcome.OK
        assert conversation.response is not None
        assert conversation.response.status == 413
        assert conversation.pulled_bytes < 2 * MIB


class Sink(ScriptedConversation):
    """Keeps nothing of a long answer but how much of it was on the way at most."""

    def __init__(self, origin: LocalOrigin, headers: FieldItems) -> None:
        super().__init__("/", headers=headers)
        self._origin = origin
        self.received_bytes = self.on_the_way_most = 0

    def send(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self.on_the_way_most = max(self.on_the_way_most, self._origin.sent_bytes - self.received_bytes)


class Upload(ScriptedConversation):
    """A long body, made as it is pulled. When its guest waits in vain for room, the origin is let go."""

    def __init__(self, origin: LocalOrigin, headers: FieldItems, size: int) -> None:
        super().__init__("/", method="POST", headers=headers)
        self._origin, self._left = origin, size
        self.pulled_before_bytes = 0

    def read_body(self, bytes_max: int) -> bytes | None:
        size = min(bytes_max, self._left)
        self._left -= size
        self.pulled_bytes += size
        return bytes(size) if size else None

    def wait(self, timeout_s: float, *, for_body: bool, **descriptors: Any) -> None:
        if descriptors["writable"] and not self.pulled_before_bytes:
            poll = select.poll()
            for descriptor in descriptors["writable"]:
                poll.register(descriptor, select.POLLOUT)
            if not poll.poll(50):
                self.pulled_before_bytes = self.pulled_bytes
                self._origin.let_go("go")
        super().wait(timeout_s, for_body=for_body, **descriptors)


class InTurns(ScriptedConversation):
    """Lets the origin's answers go: one when all were asked for, each other one when a certain line has come."""

    def __init__(self, origin: LocalOrigin, headers: FieldItems, turns: dict[str, str]) -> None:
        super().__init__("/", headers=headers)
        self._origin, self._turns = origin, turns

    def seen(self, all_of_them: bool) -> None:
        if all_of_them:
            self._origin.let_go(self._turns["start"])

    def send(self, data: bytes) -> None:
        super().send(data)
        if (name := self._turns.get(data.decode())) is not None:
            self._origin.let_go(name)


class Client(threading.Thread):
    """A client at the other end of a real link, that sends a piece of its body when the last one came back."""

    def __init__(self, headers: FieldItems, pieces: list[bytes]) -> None:
        super().__init__()
        ours, self._theirs = socket.socketpair()
        self._theirs.settimeout(60)
        self._link = LinkSocket(ours)
        self._pieces = pieces
        self._answered = bytearray()
        head = RequestHead("POST", "https", "test.localhost", "/", headers)
        request = Request("id", "worker", head, "", body_complete=False)
        self.conversation = HostConversation(
            self._link, request, lambda head: Served(head.status, (), "s", "warm", 0, 0)
        )
        self.start()

    def run(self) -> None:
        sent, left, wanted = b"", list(self._pieces), False
        reader, ended = FrameReader(), False
        while not ended:
            received = self._theirs.recv(1 << 20)
            if not received:
                return
            for kind, payload in reader.feed(received):
                wanted |= kind is Frame.PULL
                ended |= kind is Frame.END
                self._answered += payload if kind is Frame.DATA else b""
            if wanted and bytes(self._answered) == sent:
                wanted = False
                piece = left.pop(0) if left else b""
                sent += piece
                self._theirs.sendall(frame(Frame.BODY, piece) if piece else frame(Frame.BODY_END))

    def answered(self) -> bytes:
        """All of the answer, when its end has come."""
        self.join(60)
        assert not self.is_alive()
        return bytes(self._answered)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *fault: object) -> None:
        self._link.close()
        self.join(60)
        self._theirs.close()


class TestFailures:
    def test_without_a_way_out_every_request_is_denied(self, fetch: Isolate) -> None:
        conversation = ScriptedConversation("/", headers=to("http://example.org/"))
        assert fetch.run(conversation).outcome is Outcome.OK
        assert conversation.body == b"HTTP-request-denied\n"

    @pytest.mark.parametrize(
        ("path", "query", "code"),
        [("/never", "first_byte_ms=30", b"connection-read-timeout"), ("/silence", "", b"connection-terminated"),
         ("/nonsense", "", b"HTTP-protocol-error")],
    )  # fmt: skip
    def test_no_answer(
        self, path: str, query: str, code: bytes, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress
    ) -> None:
        finished, conversation = ask(fetch, egress, origin.url(path), query)
        assert finished.outcome is Outcome.OK
        assert conversation.response is not None
        assert (conversation.response.status, conversation.body) == (502, code + b"\n")
        assert conversation.waits < 10, "waiting is not looking again and again"

    def test_nobody_listens_there(self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress) -> None:
        assert ask(fetch, egress, origin.refusing_url)[1].body == b"connection-refused\n"
        body = [bytes(65_536)] * 20
        finished, conversation = ask(fetch, egress, origin.refusing_url, method="POST", body=body)
        assert (finished.outcome, conversation.body) == (Outcome.OK, b"connection-refused\n")

    @pytest.mark.parametrize(
        ("path", "query", "code"),
        [("/break/100000", "", b"HTTP-response-incomplete"),
         ("/stall/100000", "between_bytes_ms=400", b"connection-read-timeout")],
    )  # fmt: skip
    def test_an_answer_that_breaks_off_breaks_off_the_guests_own(
        self, path: str, query: str, code: bytes, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress
    ) -> None:
        finished, conversation = ask(fetch, egress, origin.url(path), query)
        assert finished.outcome is Outcome.RESPONSE_STREAM_DISCONNECTED
        assert conversation.body == bytes(100_000) + b"\n" + code + b"\n", "the reason is told behind what came"
        assert not conversation.finished
        assert fetch.guest.resources == 0

    def test_one_that_fails_among_others(self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress) -> None:
        urls = (origin.url("/hello"), origin.refusing_url, origin.url("/size/70000"), "http://user@a/", "ftp://a/")
        conversation = ScriptedConversation("/", headers=to(*urls))
        assert fetch.run(conversation, egress=egress).outcome is Outcome.OK
        lines = conversation.body.decode().splitlines()
        assert sorted(lines) == ["0 200 6", "1 connection-refused", "2 200 70000", "3 rejected", "4 rejected"]

    def test_a_fault_in_the_way_out_is_not_the_guests(self, fetch: Isolate, origin: LocalOrigin) -> None:
        class Faulty(SocketEgress):
            """Its third exchange is broken in itself."""

            def open(self, head: OutgoingHead, timeouts: OutgoingTimeouts) -> Outgoing | ErrorCode:
                if len(self.opened) == 2:
                    raise RuntimeError("a fault of ours")
                return super().open(head, timeouts)

        egress = Faulty()
        conversation = ScriptedConversation("/?hold=3", headers=to(origin.url("/hello")))
        finished = fetch.run(conversation, egress=egress)
        assert (finished.outcome, finished.reason) == (Outcome.INTERNAL_ERROR, "the host failed (RuntimeError)")
        assert len(egress.opened) == 2
        assert egress.all_closed
        egress.join()


class TestLettingGo:
    def test_a_future_that_is_dropped_cancels(self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress) -> None:
        closed_when_told: list[bool] = []

        class Told(ScriptedConversation):
            def send(self, data: bytes) -> None:
                super().send(data)
                closed_when_told.append(egress.all_closed)

        conversation = Told("/?drop", headers=to(origin.url("/never")))
        assert fetch.run(conversation, egress=egress).outcome is Outcome.OK
        assert (conversation.body, closed_when_told) == (b"let go\n", [True])

    @pytest.mark.parametrize("path", ["/never", "/stall/1000"])
    def test_a_client_that_leaves_while_the_origin_is_waited_for(
        self, path: str, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress
    ) -> None:
        ours, theirs = socket.socketpair()
        link = LinkSocket(ours)
        request = Request("id", "worker", RequestHead("GET", "https", "a", "/", to(origin.url(path))), "")
        conversation = HostConversation(link, request, lambda head: Served(head.status, (), "s", "warm", 0, 0))
        origin.on_request = lambda path: theirs.close()
        finished = fetch.run(conversation, egress=egress)
        assert (finished.outcome, finished.verdict) == (Outcome.CANCELED, Verdict.KILL)
        assert egress.all_closed
        link.close()

    def test_wall_time(self, guests: Guests, start: Start, origin: LocalOrigin, egress: SocketEgress) -> None:
        finished, _ = ask(start(guests("fetch"), wall_ms=50), egress, origin.url("/never"))
        assert finished.outcome is Outcome.EXCEEDED_WALL_TIME
        assert egress.all_closed

    def test_a_guest_that_is_killed_leaves_nothing_open(
        self, guests: Guests, start: Start, origin: LocalOrigin, egress: SocketEgress
    ) -> None:
        finished, _ = ask(start(guests("fetch"), cpu_ms=40), egress, origin.url("/stall/10"), "spin=6")
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEEDED_CPU, Verdict.KILL)
        assert len(egress.opened) == 6
        assert egress.all_closed

    def test_an_answer_that_was_kept_is_closed_for_the_next_request(
        self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress
    ) -> None:
        assert ask(fetch, egress, origin.url("/stall/10"), "keep")[1].body == b"200 kept\n"
        assert egress.all_closed
        assert fetch.guest.resources == 1
        assert ask(fetch, egress, "", "kept")[1].body == b"closed\n"
        assert fetch.guest.resources == 0


class TestLimits:
    def test_the_fifty_first_request_is_refused(
        self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress
    ) -> None:
        for _ in range(2):
            finished, conversation = ask(fetch, egress, origin.url("/status/204"), "times=60")
            assert conversation.body == b"50 HTTP-request-denied\n", "counted anew for each request"
            assert [line.text for line in finished.logs] == ["more than 50 outgoing requests in one request"]
        assert len(egress.opened) == 100

    @pytest.mark.parametrize(("query", "told"), [("hold=6&then_read", b"200\n"), ("hold=5", b"200\n")])
    def test_the_seventh_connection_waits_for_one_of_the_six(
        self, query: str, told: bytes, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress
    ) -> None:
        finished, conversation = ask(fetch, egress, origin.url("/size/100000"), query)
        assert (finished.outcome, conversation.body) == (Outcome.OK, told)
        assert egress.open_most == 6
        assert fetch.guest.resources == 0

    def test_a_guest_that_holds_six_and_waits_for_the_seventh_is_told(
        self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress
    ) -> None:
        finished, conversation = ask(fetch, egress, origin.url("/size/100000"), "hold=6&connect_ms=60")
        assert (finished.outcome, conversation.body) == (Outcome.OK, b"connection-limit-reached\n")
        assert len(egress.opened) == 6
        assert conversation.waits < 60, "waiting is not looking again and again"

    def test_more_than_six_at_once_take_turns(self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress) -> None:
        conversation = ScriptedConversation("/", headers=to(*[origin.url("/hello")] * 20))
        assert fetch.run(conversation, egress=egress).outcome is Outcome.OK
        assert sorted(conversation.body.decode().splitlines()) == sorted(f"{i} 200 6" for i in range(20))
        assert egress.open_most <= 6

    def test_those_that_fail_unseen_make_room(self, fetch: Isolate, origin: LocalOrigin, egress: SocketEgress) -> None:
        urls = [origin.refusing_url] * 12 + [origin.url("/hello")]
        conversation = ScriptedConversation("/", headers=to(*urls))
        assert fetch.run(conversation, egress=egress).outcome is Outcome.OK
        assert "12 200 6" in conversation.body.decode()
