"""Long bodies in little memory, both ways; guests whose client is gone; and what goes on behind an answer.

100 MB each way with ``EVERWARM_STREAM_MB=100``; a third of it otherwise.
"""

import hashlib
import os
import socket
import threading
from collections.abc import Callable

import pytest
from wasmtime import wat2wasm

from actors.connection import Frame, FrameReader
from actors.exchange import Request, Served
from actors.host_conversation import HostConversation, LinkSocket
from isolates.artifact import ArtifactStore, Compiled, Mapped
from isolates.brevity import Brevity
from isolates.compiler import compile_and_start
from isolates.conversation import ConversationLost, FieldItems, RequestHead
from isolates.engine import Sandbox
from isolates.isolate import Isolate
from isolates.limits import MIB, IsolateLimits, Verdict
from isolates.outcome import Outcome
from tests.isolates.answering_guest import CALLS, HTTP, STREAMS, lowered
from tests.isolates.conftest import Guests, Start
from tests.isolates.guest_text import handler
from tests.scripted_conversation import ScriptedConversation

STREAM_BYTES = int(os.environ.get("EVERWARM_STREAM_MB", "32")) * 1_000_000
PIECE_BYTES = 64 * 1024
#: What a process may grow by while a body of any length passes: the guest's buffers, a few pieces on their way.
GROWTH_BYTES_MAX = 16 * MIB
AMPLE = {"cpu_ms": 120_000.0, "wall_ms": 240_000.0}


Answering = Callable[..., Mapped]


@pytest.fixture(scope="module")
def answering(box: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Answering:
    """A guest that answers with so many pieces of 64 KiB and then does what is behind, compiled as a deploy does it."""
    store = ArtifactStore(tmp_path_factory.mktemp("answering"))

    def mapped(*, pieces: int, behind: str = "") -> Mapped:
        component = bytes(wat2wasm(answering_text(pieces, behind)))
        compiled = compile_and_start(component, store, IsolateLimits(startup_cpu_ms=5_000))
        assert isinstance(compiled, Compiled), compiled
        assert compiled.prepared
        return store.map(box, compiled.component_digest)

    return mapped


def rss_bytes() -> int:
    """Memory of this process that is really there."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


class Flow(ScriptedConversation):
    """A body that is made as it is pulled, an answer of which a digest is kept, and the memory meanwhile."""

    def __init__(self, path: str = "/", *, upload_bytes: int = 0) -> None:
        super().__init__(path, method="POST" if upload_bytes else "GET")
        self._left = upload_bytes
        self._block = os.urandom(PIECE_BYTES)
        self.uploaded, self.answered = hashlib.sha256(), hashlib.sha256()
        self.received_bytes = 0
        self.answer_begin = b""
        self._rss_first = 0
        self.growth_bytes = 0

    def _measure(self) -> None:
        rss, passed = rss_bytes(), self.pulled_bytes + self.received_bytes
        # The first few bring the allocators to their working size.
        if passed <= 8 * PIECE_BYTES:
            self._rss_first = rss
        self.growth_bytes = max(self.growth_bytes, rss - self._rss_first)

    def read_body(self, bytes_max: int) -> bytes | None:
        size = min(bytes_max, self._left, PIECE_BYTES)
        self._left -= size
        self.pulled_bytes += size
        # No two pieces are the same, so that none can be lost or exchanged.
        piece = (self._left.to_bytes(8) + self._block)[:size]
        self.uploaded.update(piece)
        self._measure()
        return piece or None

    def send(self, data: bytes) -> None:
        assert self.response is not None
        assert not self.finished
        self.received_bytes += len(data)
        self.answered.update(data)
        self.answer_begin = self.answer_begin or data[:200]
        self._measure()


class TestLongBodies:
    def test_a_body_goes_through_and_back(self, guests: Guests, start: Start) -> None:
        conversation = Flow(upload_bytes=STREAM_BYTES)
        finished = start(guests("echo"), **AMPLE).run(conversation)
        assert (finished.outcome, finished.verdict) == (Outcome.OK, Verdict.KEEP)
        assert conversation.finished
        assert conversation.received_bytes == STREAM_BYTES
        assert conversation.answered.digest() == conversation.uploaded.digest()
        assert conversation.growth_bytes < GROWTH_BYTES_MAX

    def test_a_body_goes_in(self, guests: Guests, start: Start) -> None:
        conversation = Flow("/?digest", upload_bytes=STREAM_BYTES)
        finished = start(guests("echo"), **AMPLE).run(conversation)
        assert finished.outcome is Outcome.OK
        digest = conversation.uploaded.hexdigest()
        assert conversation.answer_begin.decode() == f"sha256={digest} bytes={STREAM_BYTES}\n"
        assert conversation.growth_bytes < GROWTH_BYTES_MAX

    def test_an_answer_comes_out(self, answering: Answering, start: Start) -> None:
        conversation = Flow()
        finished = start(answering(pieces=STREAM_BYTES // PIECE_BYTES), **AMPLE).run(conversation)
        assert (finished.outcome, finished.verdict) == (Outcome.OK, Verdict.KEEP)
        assert conversation.finished
        assert conversation.received_bytes == STREAM_BYTES // PIECE_BYTES * PIECE_BYTES
        assert conversation.growth_bytes < GROWTH_BYTES_MAX

    def test_what_the_guest_does_not_read_is_not_pulled(self, guests: Guests, start: Start) -> None:
        conversation = Flow(upload_bytes=STREAM_BYTES)
        assert start(guests("hello")).run(conversation).outcome is Outcome.OK
        assert conversation.pulled_bytes == 0


# -------------------------------------------------------------------------------------------- a guest that answers

_CALLS = CALLS | {
    "stdout": ("stdout", "get-stdout", "(result i32)"),
    "timer": ("clock", "subscribe-duration", "(param i64) (result i32)"),
    "block": ("poll", "[method]pollable.block", "(param i32)"),
}
_DROPS = {"stream": "$stream", "response": "$response", "pollable": "$pollable"}
_IMPORTS = f"""{STREAMS}
    (alias export $types "outgoing-response" (type $response))
    (import "wasi:cli/stdout@0.2.3" (instance $stdout
        (alias outer 1 $stream (type $outer)) (export "output-stream" (type $stream (eq $outer)))
        (export "get-stdout" (func (result (own $stream))))))
    (import "wasi:io/poll@0.2.3" (instance $poll
        (export "pollable" (type $pollable (sub resource)))
        (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
    (alias export $poll "pollable" (type $pollable))
    (import "wasi:clocks/monotonic-clock@0.2.3" (instance $clock
        (alias outer 1 $pollable (type $outer)) (export "pollable" (type $pollable (eq $outer)))
        (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))"""
_ITEMS = """
    (data (i32.const 512) "behind it\\n")
    (global $answer (mut i32) (i32.const 0)) (global $out (mut i32) (i32.const 0))
    (global $left (mut i32) (i32.const 0))
    (func $good (param $at i32) (if (i32.load8_u (local.get $at)) (then unreachable)))
    (func $say (local $stdout i32)
        (local.set $stdout (call $stdout))
        (call $write (local.get $stdout) (i32.const 512) (i32.const 10) (i32.const 64)) (call $good (i32.const 64))
        (call $drop-stream (local.get $stdout)))
    (func $wait (param $ns i64) (local $timer i32)
        (local.set $timer (call $timer (local.get $ns)))
        (call $block (local.get $timer)) (call $drop-pollable (local.get $timer)))"""
_BODY = """
    (call $drop-request (local.get $request))
    (global.set $answer (call $response (call $fields)))
    (call $body (global.get $answer) (i32.const 64)) (call $good (i32.const 64))
    (call $set (local.get $outparam) (i32.const 0) (global.get $answer))
    (call $stream (i32.load (i32.const 68)) (i32.const 80)) (call $good (i32.const 80))
    (global.set $out (i32.load (i32.const 84)))
    (global.set $left (i32.const {pieces}))
    (if (global.get $left) (then (loop $more
        (call $write (global.get $out) (i32.const 65536) (i32.const 65536) (i32.const 96)) (call $good (i32.const 96))
        (global.set $left (i32.sub (global.get $left) (i32.const 1)))
        (br_if $more (global.get $left)))))
    (call $drop-stream (global.get $out))
    (call $finish (i32.load (i32.const 68)) (i32.const 0) (i32.const 0) (i32.const 96)) (call $good (i32.const 96))
    {behind}"""


def answering_text(pieces: int, behind: str) -> str:
    body = _BODY.format(pieces=pieces, behind=behind)
    return handler(
        http_exports=HTTP, imports=_IMPORTS, **lowered(_CALLS, _DROPS), core_items=_ITEMS, body=body, pages="3"
    )


class TestBackpressure:
    def test_a_reader_that_does_not_read_bounds_what_is_held_for_it(self, answering: Answering, start: Start) -> None:
        isolate = start(answering(pieces=STREAM_BYTES // PIECE_BYTES), **AMPLE)
        with SlowReader() as reader:
            finished = isolate.run(reader.conversation)
            reader.conversation.flush()
            reader.join()
        assert finished.outcome is Outcome.OK
        assert reader.received_bytes == STREAM_BYTES // PIECE_BYTES * PIECE_BYTES
        # What the conversation holds, one frame that is being sent, and both ends' buffers in the kernel.
        assert PIECE_BYTES < reader.held_bytes_most < MIB
        assert reader.growth_bytes < GROWTH_BYTES_MAX


class SlowReader(threading.Thread):
    """A client at the other end of a real link. Now and then it reads nothing until its host has stopped sending."""

    _PAUSES, _STANDING_STILL, _LOOK_S = 3, 10, 0.01

    def __init__(self) -> None:
        super().__init__()
        ours, self._theirs = socket.socketpair()
        self._link = LinkSocket(ours)
        request = Request("id", "worker", RequestHead("GET", "https", "test.localhost", "/"), "", body_complete=True)
        self.conversation = HostConversation(
            self._link, request, lambda head: Served(head.status, (), "s", "warm", 0, 0)
        )
        self._rss_first = rss_bytes()
        self.received_bytes = self.held_bytes_most = self.growth_bytes = 0

    def run(self) -> None:
        reader, pauses_left = FrameReader(), self._PAUSES
        while received := self._theirs.recv(PIECE_BYTES):
            for kind, payload in reader.feed(received):
                self.received_bytes += len(payload) if kind is Frame.DATA else 0
                if kind is Frame.END:
                    return
            if self.received_bytes and pauses_left:
                pauses_left -= 1
                self._pause()

    def _pause(self) -> None:
        sent, looks = -1, 0
        while looks < self._STANDING_STILL:
            threading.Event().wait(self._LOOK_S)  # that somebody has stopped, only time tells
            looks = looks + 1 if sent == self.conversation.body_sent_bytes else 0
            sent = self.conversation.body_sent_bytes
        self.held_bytes_most = max(self.held_bytes_most, sent - self.received_bytes)
        self.growth_bytes = max(self.growth_bytes, rss_bytes() - self._rss_first)

    def __enter__(self) -> "SlowReader":
        self.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self._link.close()
        self.join(60)
        self._theirs.close()


class Gone(ScriptedConversation):
    """Its client is gone from the ``at``-th look on, or from the ``at``-th piece of the answer on."""

    def __init__(self, *, at_look: int = 1 << 30, at_send: int = 1 << 30) -> None:
        super().__init__()
        self._at_look, self._at_send = at_look, at_send
        self.looks = self.sends = 0

    def flush(self) -> None:
        """All of it is on its way already."""

    def listening(self) -> bool:
        self.looks += 1
        return self.looks < self._at_look

    def send(self, data: bytes) -> None:
        self.sends += 1
        if self.sends >= self._at_send:
            raise ConversationLost


class TestClientGone:
    @pytest.mark.parametrize("held", [False, True], ids=["released", "held"])
    def test_a_guest_that_computes_stops_at_the_next_tick(self, held: bool, guests: Guests, start: Start) -> None:
        mapped = guests("spin")
        mapped.brevity = Brevity(call_us=0.0, request_ms=0.0) if held else Brevity()
        isolate, conversation = start(mapped, **AMPLE), Gone(at_look=4)
        ticks, tick = 0, isolate.guest.tick

        def counted() -> None:
            nonlocal ticks
            ticks += 1
            tick()

        isolate.guest.tick = counted  # type: ignore[method-assign]
        finished = isolate.run(conversation)
        assert (finished.outcome, finished.verdict) == (Outcome.CANCELED, Verdict.KILL)
        assert conversation.looks == 4
        assert ticks - 4 <= 2, "it may have been looked at before it was gone, and is stopped in two ticks at most"
        mapped.brevity = Brevity()

    @pytest.mark.parametrize("at_send", [1, 2, 50])
    def test_a_guest_that_writes_stops_at_once(self, at_send: int, answering: Answering, start: Start) -> None:
        conversation = Gone(at_send=at_send)
        finished = start(answering(pieces=1_000, behind="(call $say)"), **AMPLE).run(conversation)
        assert (finished.outcome, finished.verdict) == (Outcome.CANCELED, Verdict.KILL)
        assert conversation.sends == at_send
        assert not conversation.finished
        assert finished.logs == ()


class Whole(ScriptedConversation):
    """Notes what the guest had logged when its answer was whole."""

    def __init__(self, isolate: Isolate) -> None:
        super().__init__()
        self._guest = isolate.guest
        self.logged_before = -1

    def finish(self, trailers: FieldItems = ()) -> None:
        super().finish(trailers)
        self.logged_before = len(self._guest.logs)


SPIN = "(loop $for-ever (br $for-ever))"


class TestBehindTheAnswer:
    def test_a_guest_goes_on_behind_its_answer(self, answering: Answering, start: Start) -> None:
        isolate = start(answering(pieces=2, behind="(call $wait (i64.const 20000000)) (call $say)"), cpu_ms=10_000)
        for _ in range(2):
            conversation = Whole(isolate)
            finished = isolate.run(conversation)
            assert (finished.outcome, finished.verdict) == (Outcome.OK, Verdict.KEEP)
            assert (conversation.logged_before, [line.text for line in finished.logs]) == (0, ["behind it\n"])
            assert finished.usage.wall_ms >= 20
            assert len(conversation.body) == 2 * PIECE_BYTES

    @pytest.mark.parametrize("behind", [SPIN, "(call $wait (i64.const 60000000000))"], ids=["computes", "waits"])
    def test_not_for_longer_than_its_limit(self, behind: str, answering: Answering, start: Start) -> None:
        isolate = start(answering(pieces=1, behind=behind + "(call $say)"), cpu_ms=60_000, wait_until_ms=300)
        conversation = Whole(isolate)
        finished = isolate.run(conversation)
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEEDED_WALL_TIME, Verdict.KILL)
        assert 300 <= finished.usage.wall_ms < 10_000
        assert finished.logs == ()
        assert finished.answered
        assert conversation.finished, "its client has a whole answer all the same"
        assert len(conversation.body) == PIECE_BYTES

    @pytest.mark.parametrize(
        ("limits", "outcome"),
        [({"cpu_ms": 100.0, "wait_until_ms": 60_000.0}, Outcome.EXCEEDED_CPU),
         ({"cpu_ms": 60_000.0, "wall_ms": 300.0, "wait_until_ms": 60_000.0}, Outcome.EXCEEDED_WALL_TIME)],
    )  # fmt: skip
    def test_the_limits_of_the_request_hold_as_well(
        self, limits: dict[str, float], outcome: Outcome, answering: Answering, start: Start
    ) -> None:
        isolate = start(answering(pieces=1, behind=SPIN), **limits)
        conversation = Whole(isolate)
        finished = isolate.run(conversation)
        assert (finished.outcome, conversation.finished) == (outcome, True)
        assert finished.usage.wall_ms < 10_000
