"""A call within a host, with a thread at each end."""

import os
import select
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from actors.bells import Bells
from actors.exchange import Ended, Outcome
from actors.inner_call import HELD_BYTES_MAX, InnerCall
from isolates.conversation import BodyLost, ConversationLost, RequestHead, ResponseHead
from isolates.egress import AnswerLost

PIECE = 64 * 1024


@pytest.fixture
def call() -> Iterator[InnerCall]:
    made = InnerCall(RequestHead("GET", "http", "api.binding.internal", "/"), Bells())
    yield made
    assert made.outgoing._closed, "the caller closes"
    assert made.ended is not None, "the callee ends"
    assert made._holds == [], "the bells were given back"


@pytest.fixture
def on_a_thread() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Runs something beside the test, and gives back what went wrong there."""
    threads: list[threading.Thread] = []
    faults: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        def kept() -> None:
            try:
                job()
            except BaseException as fault:
                faults.append(fault)

        thread = threading.Thread(target=kept, daemon=True)
        threads.append(thread)
        thread.start()

    yield run
    for thread in threads:
        thread.join(10.0)
        assert not thread.is_alive()
    assert not faults, faults


def wait_for_answer(call: InnerCall, within_s: float = 10.0) -> bool:
    """Wait as a guest does: look, then wait in one call of the kernel. Whether anything came."""
    poll = select.poll()
    poll.register(call.outgoing.fileno(), select.POLLIN)
    return bool(poll.poll(within_s * 1e3))


def read_all(call: InnerCall) -> bytes:
    pieces = []
    while (data := call.outgoing.read_body(1 << 20)) is not None:
        if not data:
            assert wait_for_answer(call)
        pieces.append(data)
    return b"".join(pieces)


def test_an_answer_comes_whole_and_the_platforms_headers_do_not(call: InnerCall) -> None:
    callee = call.conversation
    assert call.outgoing.head() is None
    callee.send_head(ResponseHead(201, (("x", b"y"), ("everwarm-outcome", b"ok"))))
    callee.send(b"hello")
    callee.finish()
    assert call.outgoing.head() is None, "held back until the guest waits or ends"
    callee.pass_on()
    call.end(Ended(Outcome.OK))
    assert call.outgoing.head() == ResponseHead(201, (("x", b"y"),))
    assert (call.outgoing.read_body(3), call.outgoing.read_body(3), call.outgoing.read_body(3)) == (b"hel", b"lo", None)
    call.outgoing.close()


def test_an_ending_without_a_head_is_a_page(call: InnerCall) -> None:
    call.end(Ended(Outcome.EXCEEDED_CPU))
    head = call.outgoing.head()
    assert isinstance(head, ResponseHead)
    assert (head.status, head.headers[0]) == (429, ("everwarm-outcome", b"exceededCpu"))
    assert call.outgoing.body_ready()
    assert call.outgoing.read_body(1000) == b"The worker used more CPU time than it may.\n"
    assert call.outgoing.read_body(1000) is None
    call.outgoing.close()


def test_an_answer_that_breaks_off_is_lost_after_what_came(call: InnerCall) -> None:
    call.conversation.send_head(ResponseHead(200))
    call.conversation.send(b"half")
    call.conversation.pass_on()
    call.end(Ended(Outcome.EXCEEDED_CPU))
    assert call.outgoing.head() == ResponseHead(200)
    assert call.outgoing.read_body(1000) == b"half"
    with pytest.raises(AnswerLost) as lost:
        call.outgoing.read_body(1000)
    assert lost.value.code == ("HTTP-response-incomplete", None)
    call.outgoing.close()


def test_a_body_waits_for_its_reader_at_a_bound(
    call: InnerCall, on_a_thread: Callable[[Callable[[], None]], None]
) -> None:
    """And its writer waits for room in one call of the kernel."""
    sent = [bytes([i]) * PIECE for i in range(20)]
    most: list[int] = []
    got: list[bytes] = []

    def upload() -> None:
        for piece in sent:
            while not call.outgoing.writable():
                readable: set[int] = set()
                call.outgoing.wait_for_room(readable, set())
                poll = select.poll()
                for descriptor in readable:
                    poll.register(descriptor, select.POLLIN)
                assert poll.poll(10_000)
            assert call.outgoing.send(piece)
            most.append(call.body.held_bytes)
        call.outgoing.finish()

    on_a_thread(upload)
    while (data := call.conversation.read_body(10_000)) is not None:
        if data:
            got.append(data)
        else:
            call.conversation.wait(10.0, for_body=True)
    assert b"".join(got) == b"".join(sent)
    assert max(most) <= HELD_BYTES_MAX
    call.end(Ended(Outcome.OK))
    call.outgoing.close()


def test_an_answer_waits_for_its_reader_at_a_bound(
    call: InnerCall, on_a_thread: Callable[[Callable[[], None]], None]
) -> None:
    sent = [bytes([i]) * (PIECE // 2) for i in range(40)]
    most: list[int] = []

    def answer() -> None:
        call.conversation.send_head(ResponseHead(200))
        for piece in sent:
            call.conversation.send(piece)
            most.append(call.answer.held_bytes)
        call.conversation.finish()
        call.conversation.pass_on()
        call.end(Ended(Outcome.OK))

    on_a_thread(answer)
    while call.outgoing.head() is None:
        assert wait_for_answer(call)
    assert read_all(call) == b"".join(sent)
    assert max(most) <= HELD_BYTES_MAX
    call.outgoing.close()


@pytest.mark.parametrize("doing", ["waits", "waits for the body", "waits for room"])
def test_a_caller_that_leaves_ends_whatever_its_callee_waits_for(
    call: InnerCall, on_a_thread: Callable[[Callable[[], None]], None], doing: str
) -> None:
    begun = threading.Event()
    left_s: list[float] = []

    def answer() -> None:
        callee = call.conversation
        begun.set()
        try:
            if doing == "waits for room":
                callee.send_head(ResponseHead(200))
                while True:
                    callee.send(b"x" * PIECE)
            while callee.read_body(10) != b"never":
                callee.wait(30.0, for_body=doing == "waits for the body")
        except (ConversationLost, BodyLost):
            pass
        left_s.append(time.monotonic())
        call.end(Ended(Outcome.CANCELED))

    on_a_thread(answer)
    assert begun.wait(10.0)
    at_s = time.monotonic()
    call.outgoing.close()
    while not left_s:
        assert time.monotonic() < at_s + 10.0
        os.sched_yield()
    assert not call.conversation.listening()


def test_whoever_leaves_with_the_whole_answer_ends_nothing(call: InnerCall) -> None:
    callee = call.conversation
    callee.send_head(ResponseHead(200))
    callee.finish()
    callee.flush()
    assert call.outgoing.head() == ResponseHead(200)
    assert call.outgoing.read_body(10) is None
    assert call.is_answered
    call.outgoing.close()
    assert callee.listening()
    callee.wait(0.0, for_body=False)
    call.end(Ended(Outcome.OK))


def test_a_caller_that_waits_is_woken_by_what_it_does_not_have_yet(
    call: InnerCall, on_a_thread: Callable[[Callable[[], None]], None]
) -> None:
    """Whatever comes between its last look and its wait, it does not sleep over it."""
    turns = [threading.Event() for _ in range(4)]

    def answer() -> None:
        callee = call.conversation
        for i, turn in enumerate(turns):
            assert turn.wait(10.0)
            if i == 0:
                callee.send_head(ResponseHead(200))
            elif i < 3:
                callee.send(b"piece")
            else:
                callee.finish()
            callee.flush()
        call.end(Ended(Outcome.OK))

    on_a_thread(answer)
    assert call.outgoing.head() is None
    turns[0].set()
    while call.outgoing.head() is None:  # a bell may ring for nothing
        assert wait_for_answer(call)
    for turn in turns[1:3]:
        assert call.outgoing.read_body(100) == b""
        turn.set()
        while not call.outgoing.body_ready():
            assert wait_for_answer(call)
        assert call.outgoing.read_body(100) == b"piece"
    turns[3].set()
    while not call.outgoing.body_ready():
        assert wait_for_answer(call)
    assert call.outgoing.read_body(100) is None
    call.outgoing.close()
