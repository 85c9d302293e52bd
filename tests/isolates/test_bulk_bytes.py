"""Byte streams that pass as text: to a guest there is no difference, whatever its bytes, addresses and allocator.

Each component is here in two shapes, as it came and rewritten, and is asked the same in both.
"""

import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from wasmtime import wat2wasm
from wasmtime.component import Component

from isolates import bulk_bytes
from isolates.artifact import ArtifactStore, Compiled, Mapped, digest_of
from isolates.compiler import compile_and_start
from isolates.component_binary import Root
from isolates.conversation import BodyLost
from isolates.engine import Sandbox
from isolates.isolate import Finished, Isolate
from isolates.limits import IsolateLimits, Verdict
from isolates.outcome import Outcome
from tests.isolates.conftest import ROOT, Start
from tests.scripted_conversation import ScriptedConversation

ECHO = (ROOT / "workers" / "zig" / "echo" / "worker.wasm").read_bytes()
AMPLE = {"cpu_ms": 60_000.0}
READ_BYTES_MAX = 64 * 1024


def rewritten(component: bytes) -> bytes:
    root = Root.parse(component)
    assert bulk_bytes.rewrite(root), "there is nothing to rewrite"
    return root.encode()


Shapes = Callable[[bytes], dict[str, Mapped]]


@pytest.fixture(scope="module")
def shapes(box: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    """A component as it came and rewritten."""
    folder = tmp_path_factory.mktemp("shapes")
    made: dict[str, Mapped] = {}

    def mapped(component: bytes) -> Mapped:
        digest = digest_of(component)
        if digest not in made:
            (folder / digest).write_bytes(bytes(Component(box.engine, component).serialize()))
            made[digest] = Mapped(box, folder / digest, digest)
        return made[digest]

    return lambda component: {"plain": mapped(component), "rewritten": mapped(rewritten(component))}


SIZES = (0, 1, 63, 64, 65, 4_095, 4_096, 4_097, 65_535, 65_536, 65_537)
_SEEDED = random.Random(20_251)
ALL_BYTES = bytes(range(256))


class TestEcho:
    """A stock guest. Its toolchain knows nothing of the rewriting."""

    @pytest.fixture(params=["plain", "rewritten"])
    def echo(self, request: pytest.FixtureRequest, shapes: Shapes, start: Start) -> Isolate:
        return start(shapes(ECHO)[request.param], **AMPLE)

    def returned(self, echo: Isolate, chunks: list[bytes], *, breaks: bool = False) -> tuple[Finished, bytes, bool]:
        conversation = ScriptedConversation("/", method="POST", body=list(chunks), body_breaks=breaks)
        finished = echo.run(conversation)
        assert echo.guest.resources == 0
        assert echo.guest.filled == b""
        return finished, conversation.body, conversation.finished

    def test_all_bytes_and_all_sizes(self, echo: Isolate) -> None:
        bodies = [[ALL_BYTES], *([bytes([value])] for value in range(256))]
        bodies += [[_SEEDED.randbytes(size)] for size in SIZES]
        bodies += [[b"\0" * 300], [b"\x7f" * 300], [b"\x80" * 300], [b"\xff" * 65_536], ["é€😀".encode() * 1_000]]
        bodies += [
            [_SEEDED.randbytes(_SEEDED.randrange(9_000)) for _ in range(_SEEDED.randrange(6))] for _ in range(40)
        ]
        for body in bodies:
            finished, answer, whole = self.returned(echo, body)
            assert (finished.outcome, finished.verdict, whole) == (Outcome.OK, Verdict.KEEP, True)
            assert answer == b"".join(body)

    @pytest.mark.parametrize("chunks", [[], [b""], [b"part"], [b"\xe9" * 5_000], [b"\x80" * 64, b"", b"x" * 65_536]])
    def test_a_body_that_breaks_off(self, chunks: list[bytes], echo: Isolate) -> None:
        finished, answer, whole = self.returned(echo, chunks, breaks=True)
        assert (finished.outcome, finished.verdict) == (Outcome.RESPONSE_STREAM_DISCONNECTED, Verdict.KEEP)
        assert (answer, whole) == (b"".join(chunks), False)
        assert self.returned(echo, [b"next"])[1] == b"next"

    def test_a_mebibyte_takes_few_calls(self, shapes: Shapes, start: Start) -> None:
        body = os.urandom(1 << 20)
        calls = {}
        for shape, mapped in shapes(ECHO).items():
            finished, answer, _ = self.returned(start(mapped, **AMPLE), [body])
            assert answer == body
            calls[shape] = finished.usage.host_calls
        assert calls["rewritten"] < 200
        assert calls["rewritten"] < 2 * calls["plain"]


# ------------------------------------------------------------------------------------------- a guest that is told what

PAGE_BYTES = 65_536
#: Where memory has a pattern, the same at every start: everything behind the guest's own variables.
PATTERN_AT = 1_024
PATTERN = bytes((at * 7 + (at >> 8)) & 0xFF for at in range(PAGE_BYTES))
_RESULT_AT, _NEXT_AT = 256, 512

WRITE, FLUSH, READ, BLOCKING_READ, TAKE, FILL = range(6)
#: Places that are none: the allocator traps, or reads of the stream itself before it returns 4,096.
TRAPS, READS = 0xDEAD_0000, 0xBEEF_0000

STREAMS_TYPE = """
    (alias outer 1 $error (type $e))
    (export "error" (type $error (eq $e)))
    (type $failed (variant (case "last-operation-failed" (own $error)) (case "closed")))
    (export "stream-error" (type $stream-error (eq $failed)))
    (export "input-stream" (type $in (sub resource)))
    (export "output-stream" (type $out (sub resource)))
    (export "[method]input-stream.read" (func (param "self" (borrow $in)) (param "len" u64)
      (result (result (list u8) (error $stream-error)))))
    (export "[method]input-stream.blocking-read" (func (param "self" (borrow $in)) (param "len" u64)
      (result (result (list u8) (error $stream-error)))))
    (export "[method]output-stream.write" (func (param "self" (borrow $out)) (param "contents" (list u8))
      (result (result (error $stream-error)))))
    (export "[method]output-stream.blocking-write-and-flush" (func
      (param "self" (borrow $out)) (param "contents" (list u8)) (result (result (error $stream-error)))))
"""
TAKE_TYPE = """
    (export "[method]input-stream.everwarm-take" (func (param "self" (borrow $in)) (result string)))
    (export "[method]input-stream.everwarm-fill" (func (param "self" (borrow $in)) (param "len" u64)
      (result (result u32 (error $stream-error)))))
"""
TAKE_LOWERED = """
  (core func $take (canon lower (func $streams "[method]input-stream.everwarm-take") string-encoding=utf8
    (memory $memory) (realloc $realloc)))
  (core func $fill (canon lower (func $streams "[method]input-stream.everwarm-fill") (memory $memory)))
"""

#: For each command of 16 bytes that it reads of the request's body: one call of a stream's function with those
#: arguments. What came of it goes out, in front of a read's bytes. ``place``: what the allocator returns meanwhile.
TOLD = """
(component
  (import "wasi:io/error@0.2.3" (instance $errors (export "error" (type (sub resource)))))
  (alias export $errors "error" (type $error))
  (import "wasi:io/streams@0.2.3" (instance $streams {streams_type}))
  (alias export $streams "input-stream" (type $in))
  (alias export $streams "output-stream" (type $out))
  (import "wasi:http/types@0.2.3" (instance $types
    (alias outer 1 $in (type $i)) (export "input-stream" (type $in (eq $i)))
    (alias outer 1 $out (type $o)) (export "output-stream" (type $out (eq $o)))
    (export "incoming-request" (type $request (sub resource)))
    (export "incoming-body" (type $body (sub resource)))
    (export "response-outparam" (type $outparam (sub resource)))
    (export "fields" (type $fields (sub resource)))
    (export "outgoing-response" (type $response (sub resource)))
    (export "outgoing-body" (type $answer (sub resource)))
    (export "[method]incoming-request.consume" (func (param "self" (borrow $request)) (result (result (own $body)))))
    (export "[method]incoming-body.stream" (func (param "self" (borrow $body)) (result (result (own $in)))))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[constructor]outgoing-response" (func (param "headers" (own $fields)) (result (own $response))))
    (export "[method]outgoing-response.body" (func (param "self" (borrow $response)) (result (result (own $answer)))))
    (export "[method]outgoing-body.write" (func (param "self" (borrow $answer)) (result (result (own $out)))))
    (export "[static]response-outparam.set" (func (param "param" (own $outparam))
      (param "response" (result (own $response)))))
  ))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "incoming-body" (type $body))
  (alias export $types "response-outparam" (type $outparam))
  (alias export $types "outgoing-body" (type $answer))
  (core module $libc
    (memory (export "memory") {pages} 4)
    (global $place (mut i32) (i32.const 512))
    (global $asked (mut i32) (i32.const 0))
    (global $least (mut i32) (i32.const 0))
    (type $read (func (param i32 i64 i32)))
    (table (export "table") 1 funcref)
    (func (export "place") (param i32) (global.set $place (local.get 0)) (global.set $asked (i32.const 0)))
    (func (export "asked") (result i32) (global.get $asked))
    (func (export "least") (result i32) (global.get $least))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (if (i32.or (local.get 0) (local.get 1)) (then unreachable))
      (if (i32.ne (local.get 2) (i32.const 1)) (then unreachable))
      (global.set $asked (i32.add (global.get $asked) (i32.const 1)))
      (global.set $least (local.get 3))
      (if (i32.eq (global.get $place) (i32.const {traps})) (then unreachable))
      (if (i32.eq (global.get $place) (i32.const {reads}))
        (then
          (global.set $place (i32.const 2048))
          (call_indirect (type $read) (i32.load (i32.const 1000)) (i64.const 50) (i32.const 900) (i32.const 0))
          (global.set $place (i32.const 4096))))
      (global.get $place)))
  (core instance $libc (instantiate $libc))
  (alias core export $libc "memory" (core memory $memory))
  (alias core export $libc "realloc" (core func $realloc))
  (core func $drop-error (canon resource.drop $error))
  (core func $drop-in (canon resource.drop $in))
  (core func $drop-out (canon resource.drop $out))
  (core func $drop-request (canon resource.drop $request))
  (core func $drop-body (canon resource.drop $body))
  (core func $drop-answer (canon resource.drop $answer))
  (core func $consume (canon lower (func $types "[method]incoming-request.consume") (memory $memory)))
  (core func $stream (canon lower (func $types "[method]incoming-body.stream") (memory $memory)))
  (core func $fields (canon lower (func $types "[constructor]fields")))
  (core func $response (canon lower (func $types "[constructor]outgoing-response")))
  (core func $answer (canon lower (func $types "[method]outgoing-response.body") (memory $memory)))
  (core func $open (canon lower (func $types "[method]outgoing-body.write") (memory $memory)))
  (core func $set (canon lower (func $types "[static]response-outparam.set")))
  (core func $read (canon lower (func $streams "[method]input-stream.read")
    (memory $memory) (realloc $realloc)))
  (core func $blocking-read (canon lower (func $streams "[method]input-stream.blocking-read")
    (realloc $realloc) (memory $memory)))
  (core func $write (canon lower (func $streams "[method]output-stream.write") (memory $memory)))
  (core func $flush (canon lower (func $streams "[method]output-stream.blocking-write-and-flush") (memory $memory)))
  {lowered}
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "libc" "table" (table 1 funcref))
    (import "libc" "place" (func $place (param i32)))
    (import "libc" "asked" (func $asked (result i32)))
    (import "libc" "least" (func $least (result i32)))
    (import "host" "drop-error" (func $drop-error (param i32)))
    (import "host" "drop-in" (func $drop-in (param i32)))
    (import "host" "drop-out" (func $drop-out (param i32)))
    (import "host" "drop-request" (func $drop-request (param i32)))
    (import "host" "drop-body" (func $drop-body (param i32)))
    (import "host" "drop-answer" (func $drop-answer (param i32)))
    (import "host" "consume" (func $consume (param i32 i32)))
    (import "host" "stream" (func $stream (param i32 i32)))
    (import "host" "fields" (func $fields (result i32)))
    (import "host" "response" (func $response (param i32) (result i32)))
    (import "host" "answer" (func $answer (param i32 i32)))
    (import "host" "open" (func $open (param i32 i32)))
    (import "host" "set" (func $set (param i32 i32 i32)))
    (import "host" "read" (func $read (param i32 i64 i32)))
    (import "host" "blocking-read" (func $blocking-read (param i32 i64 i32)))
    (import "host" "write" (func $write (param i32 i32 i32 i32)))
    (import "host" "flush" (func $flush (param i32 i32 i32 i32)))
    {imported}
    (global $in (mut i32) (i32.const 0))
    (global $out (mut i32) (i32.const 0))
    (func $start (local $at i32)
      (local.set $at (i32.const {pattern_at}))
      (loop $next
        (i32.store8 (local.get $at)
          (i32.add (i32.mul (local.get $at) (i32.const 7)) (i32.shr_u (local.get $at) (i32.const 8))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $next (i32.lt_u (local.get $at) (i32.const {page_bytes})))))
    (start $start)
    (elem (i32.const 0) func $read)
    (func $say (param $at i32) (param $size i32)
      (call $write (global.get $out) (local.get $at) (local.get $size) (i32.const 288))
      (if (i32.load8_u (i32.const 288)) (then unreachable)))
    (func $told (param $op i32) (param $at i32) (param $size i32) (param $place i32)
      (i64.store (i32.const 256) (i64.const 0))
      (i64.store (i32.const 264) (i64.const 0))
      (call $place (local.get $place))
      (block $end (block $fill (block $take (block $blocking-read (block $read (block $flush (block $write
        (br_table $write $flush $read $blocking-read $take $fill $fill (local.get $op)))
        (call $write (global.get $out) (local.get $at) (local.get $size) (i32.const 256)) (br $end))
        (call $flush (global.get $out) (local.get $at) (local.get $size) (i32.const 256)) (br $end))
        (call $read (global.get $in) (i64.extend_i32_u (local.get $size)) (i32.const 256)) (br $end))
        (call $blocking-read (global.get $in) (i64.extend_i32_u (local.get $size)) (i32.const 256)) (br $end))
        {take} (br $end))
        {fill})
      (i32.store (i32.const 268) (call $asked))
      (i32.store (i32.const 272) (call $least))
      (call $place (i32.const 512))
      (call $say (i32.const 256) (i32.const 20))
      (if (i32.and (i32.gt_u (local.get $op) (i32.const 1)) (i32.eqz (i32.load8_u (i32.const 256))))
        (then (call $say-all (i32.load (i32.const 260)) (i32.load (i32.const 264)))))
      (if (i32.and (i32.eq (i32.load8_u (i32.const 256)) (i32.const 1)) (i32.eqz (i32.load8_u (i32.const 260))))
        (then (call $drop-error (i32.load (i32.const 264))))))
    (func $say-all (param $at i32) (param $size i32)
      (loop $next
        (if (i32.gt_u (local.get $size) (i32.const 60))
          (then
            (call $say (local.get $at) (i32.const 60))
            (local.set $at (i32.add (local.get $at) (i32.const 60)))
            (local.set $size (i32.sub (local.get $size) (i32.const 60)))
            (br $next))))
      (call $say (local.get $at) (local.get $size)))
    (func (export "handle") (param $request i32) (param $outparam i32)
      (local $body i32) (local $response i32) (local $answer i32)
      (call $place (i32.const 512))
      (call $consume (local.get $request) (i32.const 256))
      (local.set $body (i32.load (i32.const 260)))
      (call $drop-request (local.get $request))
      (call $stream (local.get $body) (i32.const 256))
      (global.set $in (i32.load (i32.const 260)))
      (i32.store (i32.const 1000) (global.get $in))
      (local.set $response (call $response (call $fields)))
      (call $answer (local.get $response) (i32.const 256))
      (local.set $answer (i32.load (i32.const 260)))
      (call $open (local.get $answer) (i32.const 256))
      (global.set $out (i32.load (i32.const 260)))
      (call $set (local.get $outparam) (i32.const 0) (local.get $response))
      (loop $next
        (call $place (i32.const 512))
        (call $read (global.get $in) (i64.const 16) (i32.const 256))
        (if (i32.eqz (i32.or (i32.load8_u (i32.const 256)) (i32.ne (i32.load (i32.const 264)) (i32.const 16))))
          (then
            (call $told (i32.load (i32.const 512)) (i32.load (i32.const 516)) (i32.load (i32.const 520))
              (i32.load (i32.const 524)))
            (br $next)))
        (if (i32.and (i32.eq (i32.load8_u (i32.const 256)) (i32.const 1)) (i32.eqz (i32.load8_u (i32.const 260))))
          (then (call $drop-error (i32.load (i32.const 264))))))
      (call $drop-in (global.get $in))
      (call $drop-body (local.get $body))
      (call $drop-out (global.get $out))
      (call $drop-answer (local.get $answer))))
  (core instance $main (instantiate $main (with "libc" (instance $libc)) (with "host" (instance
    (export "drop-error" (func $drop-error)) (export "drop-in" (func $drop-in)) (export "drop-out" (func $drop-out))
    (export "drop-request" (func $drop-request)) (export "drop-body" (func $drop-body))
    (export "drop-answer" (func $drop-answer)) (export "consume" (func $consume)) (export "stream" (func $stream))
    (export "fields" (func $fields)) (export "response" (func $response)) (export "answer" (func $answer))
    (export "open" (func $open)) (export "set" (func $set)) (export "read" (func $read))
    (export "blocking-read" (func $blocking-read)) (export "write" (func $write)) (export "flush" (func $flush))
    {given}))))
  (func $handle (param "request" (own $request)) (param "response-out" (own $outparam))
    (canon lift (core func $main "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.3" (instance $handler)))
"""


def told(**parts: str) -> bytes:
    """The guest that is told what to do, with more functions where ``parts`` say so."""
    defaults = {"streams_type": STREAMS_TYPE, "lowered": "", "imported": "", "take": "", "fill": "", "given": "",
                "pages": "1"}  # fmt: skip
    numbers = {"traps": TRAPS, "reads": READS, "pattern_at": PATTERN_AT, "page_bytes": PAGE_BYTES}
    return bytes(wat2wasm(TOLD.format(**defaults | parts, **numbers)))


@dataclass(frozen=True)
class Told:
    """One call that the guest is told to make."""

    op: int
    at: int = 0
    size: int = 0
    place: int = _NEXT_AT
    #: What the next read finds, where it is a read.
    chunk: bytes | None = None

    @property
    def chunks(self) -> list[bytes]:
        command = struct.pack("<4I", self.op, self.at, self.size, self.place)
        return [command] if self.chunk is None else [command, self.chunk]


@dataclass(frozen=True)
class Heard:
    """What came of one call: its result, where a failed one has its error's case and handle for place and size; how
    often the allocator was asked since; for how much it was last asked, which a read of a command does with 16."""

    case: int
    place: int
    size: int
    asked: int
    least: int
    contents: bytes


DONE = Heard(0, 0, 0, 0, 16, b"")

#: What a body does in the place of its next chunk.
ENDS, BREAKS = b"\0the body ends here", b"\0the body breaks off here"


class Telling(ScriptedConversation):
    """A body of commands and of what they read. Where it ends or breaks off it goes on for the next read, so that the
    guest can be told to read again."""

    def read_body(self, bytes_max: int) -> bytes | None:
        if self._chunks and self._chunks[0] in (ENDS, BREAKS):
            if self._chunks.pop(0) == BREAKS:
                raise BodyLost
            return None
        return super().read_body(bytes_max)


def tell(isolate: Isolate, *calls: Told) -> tuple[Finished, bytes]:
    conversation = Telling(method="POST", body=[chunk for call in calls for chunk in call.chunks])
    finished = isolate.run(conversation)
    return finished, conversation.body


def heard(data: bytes) -> Heard:
    case, place, size, asked, least = struct.unpack("<B3x4I", data[:20])
    return Heard(case, place, size, asked, least, data[20:])


def keeps_on(isolate: Isolate, finished: Finished) -> None:
    """The guest came back, nothing is left of what it was lent, and it can be told again."""
    assert (finished.outcome, finished.verdict) == (Outcome.RESPONSE_STREAM_DISCONNECTED, Verdict.KEEP), finished
    assert isolate.guest.resources == 0
    assert isolate.guest.filled == b""
    again, body = tell(isolate, Told(READ, size=256, place=2_048, chunk=ALL_BYTES), Told(WRITE, 2_048, 256))
    assert (again.verdict, body[20:276], body[276:-20]) == (Verdict.KEEP, ALL_BYTES, ALL_BYTES)


GUEST = told()


@pytest.fixture(params=["plain", "rewritten"])
def guest(request: pytest.FixtureRequest, shapes: Shapes, start: Start) -> Callable[[], Isolate]:
    mapped = shapes(GUEST)[request.param]
    return lambda: start(mapped, **AMPLE)


NewGuest = Callable[[], Isolate]


class TestWrites:
    @pytest.mark.parametrize("op", [WRITE, FLUSH])
    def test_from_any_address_in_any_size(self, op: int, guest: NewGuest) -> None:
        isolate = guest()
        places = [(at, size) for at in (8_192, 8_193) for size in (0, 1, 2, 63, 64, 65, 66, 4_096, 57_343)]
        ends = [(PAGE_BYTES - size, size) for size in (0, 1, 63, 64, 65, 66, PAGE_BYTES - 1_024, PAGE_BYTES - 1_025)]
        for at, size in places + ends:
            finished, body = tell(isolate, Told(op, at, size))
            assert body[:-20] == PATTERN[at : at + size]
            assert heard(body[-20:]) == DONE
            assert finished.verdict is Verdict.KEEP
        keeps_on(isolate, finished)

    @pytest.mark.parametrize("op", [WRITE, FLUSH])
    @pytest.mark.parametrize(
        ("at", "size"),
        [(PAGE_BYTES - 63, 64), (PAGE_BYTES - 62, 63), (PAGE_BYTES - 64, 65), (PAGE_BYTES - 65, 66), (PAGE_BYTES, 1),
         (PAGE_BYTES + 1, 0), (0, PAGE_BYTES + 1), (2**32 - 1, 1), (2**32 - 1, 64), (2**32 - 2, 64), (2**32 - 64, 64),
         (1, 2**32 - 1), (0, 2**32 - 1), (8_192, 2**31), (8_193, 2**31), (8_192, 2**31 + 1), (8_193, 2**31 + 1),
         (8_192, 2**31 + 100), (8_193, 2**31 + 100), (2**31, 2**31), (8_192, 2**31 - 1)],
    )  # fmt: skip
    def test_past_the_end_is_a_trap_of_the_guest(self, op: int, at: int, size: int, guest: NewGuest) -> None:
        isolate = guest()
        finished, body = tell(isolate, Told(op, at, size))
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEPTION, Verdict.KILL), finished.reason
        assert "out of bounds" in finished.reason
        assert len(body) <= 1, "an odd address sends its first byte alone"
        other = guest()
        keeps_on(other, tell(other)[0])

    def test_more_than_was_permitted(self, shapes: Shapes, start: Start) -> None:
        """From an even address. From an odd one the first byte is a write of its own, so one more is permitted."""
        component = told(pages="2")
        for mapped in shapes(component).values():
            finished, body = tell(start(mapped, **AMPLE), Told(WRITE, 2_048, 65_537))
            assert finished.reason == "a write of 65537 bytes where 65536 were permitted"
            assert (finished.verdict, body) == (Verdict.KILL, b"")
            finished, body = tell(start(mapped, **AMPLE), Told(WRITE, 2_049, 65_538))
            assert finished.reason.startswith("a write of 6553")
            assert finished.verdict is Verdict.KILL


HIGH = bytes(0x80 + i % 0x80 for i in range(PAGE_BYTES))


class TestReads:
    @pytest.mark.parametrize("op", [READ, BLOCKING_READ])
    @pytest.mark.parametrize("contents", [HIGH, b"ascii" * 13_000, PATTERN], ids=["high", "ascii", "mixed"])
    def test_into_any_place(self, op: int, contents: bytes, guest: NewGuest) -> None:
        isolate = guest()
        for size in (1, 2, 3, 63, 64, 65, 100, 4_096, 4_097, 29_999):
            near_the_end = [PAGE_BYTES - 2 * size + d for d in (-1, 0, 1, min(2, size))] + [
                PAGE_BYTES - size - d for d in (0, 1)
            ]
            for place in (2_048, 2_049, *near_the_end, *([0, 1] if size <= 100 else [])):
                finished, body = tell(isolate, Told(op, size=size, place=place, chunk=contents[:size]))
                assert heard(body) == Heard(0, place, size, 1, size, contents[:size])
                assert finished.verdict is Verdict.KEEP
        keeps_on(guest(), finished)

    def test_a_read_of_nothing_and_of_less_than_asked(self, guest: NewGuest) -> None:
        isolate = guest()
        for op in (READ, BLOCKING_READ):
            for place in (2_048, 2_049, PAGE_BYTES - 1, PAGE_BYTES):
                _, body = tell(isolate, Told(op, size=100, place=place, chunk=b""))
                assert heard(body) == Heard(0, place, 0, 1, 0, b"")
        finished, body = tell(isolate, Told(READ, size=60_000, place=2_049, chunk=b"less"))
        assert heard(body) == Heard(0, 2_049, 4, 1, 4, b"less")
        keeps_on(isolate, finished)

    @pytest.mark.parametrize("op", [READ, BLOCKING_READ])
    @pytest.mark.parametrize(
        ("place", "said"),
        [(PAGE_BYTES, "beyond end of memory"), (PAGE_BYTES - 99, "beyond end of memory"),
         (PAGE_BYTES - 98, "beyond end of memory"), (2**32 - 1, "beyond end of memory"),
         (2**32 - 50, "beyond end of memory"), (2**31, "beyond end of memory"), (TRAPS, "unreachable")],
    )  # fmt: skip
    def test_an_allocator_that_fails_is_a_trap_of_the_guest(
        self, op: int, place: int, said: str, guest: NewGuest
    ) -> None:
        finished, body = tell(guest(), Told(op, size=100, place=place, chunk=HIGH[:100]))
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEPTION, Verdict.KILL), finished.reason
        assert said in finished.reason
        assert body == b""
        other = guest()
        keeps_on(other, tell(other)[0])

    def test_an_allocator_that_reads(self, shapes: Shapes, start: Start) -> None:
        """The canonical allocator may not call out. In front of ours it may, and confuses nobody but itself."""
        read = Told(READ, size=100, place=READS, chunk=HIGH[:100])
        plain, rewritten = (start(mapped, **AMPLE) for mapped in shapes(GUEST).values())
        finished, _ = tell(plain, read)
        assert (finished.verdict, finished.reason) == (Verdict.KILL, "wasm trap: cannot leave component instance")
        finished, body = tell(rewritten, read, Told(READ, chunk=ENDS))
        assert heard(body) == Heard(0, 4_096, 0, 2, 16, b""), "the inner read took the next command, the outer nothing"
        keeps_on(rewritten, finished)

    def test_reads_after_the_end(self, guest: NewGuest) -> None:
        isolate = guest()
        calls = [Told(op, size=n, chunk=ENDS if n else None) for op in (READ, BLOCKING_READ) for n in (1, 100, 0)]
        finished, body = tell(isolate, *calls)
        reports = [heard(body[i : i + 20]) for i in range(0, len(body), 20)]
        assert [(r.case, r.place & 0xFF, r.asked) for r in reports] == [(1, 1, 0)] * 6
        keeps_on(isolate, finished)

    def test_reads_after_it_broke_off(self, guest: NewGuest) -> None:
        isolate = guest()
        calls = [Told(op, size=size, chunk=BREAKS) for op in (READ, BLOCKING_READ) for size in (1, 100)]
        finished, body = tell(isolate, Told(READ, size=3, place=2_049, chunk=b"abc"), *calls)
        assert heard(body[:23]) == Heard(0, 2_049, 3, 1, 3, b"abc")
        reports = [heard(body[i : i + 20]) for i in range(23, len(body), 20)]
        assert [(r.case, r.place & 0xFF, r.asked) for r in reports] == [(1, 0, 0)] * 4
        assert all(r.size for r in reports), "the handle of an error"
        keeps_on(isolate, finished)

    def test_both_shapes_say_the_same(self, shapes: Shapes, start: Start) -> None:
        """Seeded calls, valid ones and a few that trap: the same answers and the same endings."""
        seeded = random.Random(7)
        for _ in range(60):
            calls = []
            for _ in range(seeded.randrange(1, 8)):
                size = seeded.choice((0, 1, 63, 64, 65, 200, 3_000))
                place = seeded.choice((2_048, 2_049, PAGE_BYTES - size, PAGE_BYTES - size - 1, PAGE_BYTES - size + 1))
                if seeded.random() < 0.5:
                    calls.append(Told(seeded.choice((WRITE, FLUSH)), place & ~1, size))
                else:
                    chunk = seeded.choice((seeded.randbytes(size), ENDS))
                    calls.append(Told(seeded.choice((READ, BLOCKING_READ)), size=size, place=place, chunk=chunk))
            ends = []
            for mapped in shapes(GUEST).values():
                finished, body = tell(start(mapped, **AMPLE), *calls)
                ends.append((finished.outcome, finished.verdict, body))
            assert ends[0] == ends[1], calls


class TestSeveralOfOneFunction:
    """A function that is lowered more than once, as by an adapter beside its module."""

    def test_with_another_allocator(self, shapes: Shapes, start: Start) -> None:
        component = told(
            lowered="""
              (core module $second (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 3001)))
              (core instance $second (instantiate $second))
              (core func $take (canon lower (func $streams "[method]input-stream.read")
                (memory $memory) (realloc (core func $second "realloc"))))""",
            imported='(import "host" "take" (func $take (param i32 i64 i32)))',
            take="(call $take (global.get $in) (i64.extend_i32_u (local.get $size)) (i32.const 256))",
            given='(export "take" (func $take))',
        )
        for mapped in shapes(component).values():
            isolate = start(mapped, **AMPLE)
            for size in (1, 64, 5_000):
                finished, body = tell(
                    isolate,
                    Told(TAKE, size=size, place=9, chunk=HIGH[:size]),
                    Told(READ, size=size, place=40_000, chunk=HIGH[:size]),
                )
                assert heard(body[: 20 + size]) == Heard(0, 3_001, size, 0, 16, HIGH[:size])
                assert heard(body[20 + size :]) == Heard(0, 40_000, size, 1, size, HIGH[:size])
            keeps_on(isolate, finished)

    def test_with_another_memory(self, shapes: Shapes, start: Start) -> None:
        """Isolates have one memory, so this one's limit is lifted: what matters is that nothing lands in the other."""
        component = told(
            lowered="""
              (core module $second
                (memory (export "memory") 1)
                (func (export "byte") (param i32) (result i32) (i32.load8_u (local.get 0)))
                (func (export "fill") (memory.fill (i32.const 1024) (i32.const 0xaa) (i32.const 64512)))
                (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 3000)))
              (core instance $second (instantiate $second))
              (alias core export $second "byte" (core func $byte))
              (alias core export $second "fill" (core func $clear))
              (core func $take (canon lower (func $streams "[method]input-stream.read")
                (memory (core memory $second "memory")) (realloc (core func $second "realloc"))))
              (core func $fill (canon lower (func $streams "[method]output-stream.write")
                (memory (core memory $second "memory"))))""",
            imported="""
              (import "host" "byte" (func $byte (param i32) (result i32)))
              (import "host" "clear" (func $clear))
              (import "host" "take" (func $take (param i32 i64 i32)))
              (import "host" "fill" (func $fill (param i32 i32 i32 i32)))
              (func $copy (param $from i32) (param $to i32) (param $size i32)
                (loop $next
                  (if (local.get $size) (then
                    (local.set $size (i32.sub (local.get $size) (i32.const 1)))
                    (i32.store8 (i32.add (local.get $to) (local.get $size))
                      (call $byte (i32.add (local.get $from) (local.get $size))))
                    (br $next)))))""",
            take="""
              (call $take (global.get $in) (i64.extend_i32_u (local.get $size)) (i32.const 256))
              (call $copy (i32.const 256) (i32.const 256) (i32.const 12))
              (call $copy (i32.load (i32.const 260)) (i32.const 50000) (i32.load (i32.const 264)))
              (i32.store (i32.const 260) (i32.const 50000))""",
            fill="""
              (call $clear)
              (call $fill (global.get $out) (local.get $at) (local.get $size) (i32.const 256))""",
            given="""(export "byte" (func $byte)) (export "clear" (func $clear)) (export "take" (func $take))
              (export "fill" (func $fill))""",
        )
        for mapped in shapes(component).values():
            isolate = start(mapped, memories_max=2, **AMPLE)
            for size in (1, 64, 5_000):
                finished, body = tell(
                    isolate,
                    Told(TAKE, size=size, chunk=HIGH[:size]),
                    Told(READ, size=size, place=40_000, chunk=(ALL_BYTES * 20)[:size]),
                    Told(FILL, 8_193, size),
                    Told(WRITE, 8_193, size),
                )
                read, body = heard(body[: 20 + size]), body[20 + size :]
                assert (read.place, read.size, read.contents) == (50_000, size, HIGH[:size])
                assert heard(body[: 20 + size]) == Heard(0, 40_000, size, 1, size, (ALL_BYTES * 20)[:size])
                body = body[20 + size :]
                assert (body[:size], heard(body[size:][:20])) == (b"\xaa" * size, DONE)
                body = body[size + 20 :]
                assert (body[:size], heard(body[size:])) == (PATTERN[8_193 : 8_193 + size], DONE)
            keeps_on(isolate, finished)


#: The two functions that a rewriting uses for reads, imported by the guest itself; and that for writes.
TAKES = told(
    streams_type=STREAMS_TYPE + TAKE_TYPE,
    lowered=TAKE_LOWERED,
    imported="""(import "host" "take" (func $take (param i32 i32)))
      (import "host" "fill" (func $fill (param i32 i64 i32)))""",
    take="(call $take (global.get $in) (i32.const 260))",
    fill="(call $fill (global.get $in) (i64.extend_i32_u (local.get $size)) (i32.const 256))",
    given='(export "take" (func $take)) (export "fill" (func $fill))',
)
TALKS = told(
    streams_type=STREAMS_TYPE
    + '(export "[method]output-stream.everwarm-write" (func (param "self" (borrow $out)) (param "contents" string)'
    " (result (result (error $stream-error)))))",
    lowered="""
      (core func $take (canon lower (func $streams "[method]output-stream.everwarm-write") string-encoding=utf16
        (memory $memory)))
      (core func $fill (canon lower (func $streams "[method]output-stream.everwarm-write")
        string-encoding=latin1+utf16 (memory $memory)))""",
    imported="""(import "host" "take" (func $take (param i32 i32 i32 i32)))
      (import "host" "fill" (func $fill (param i32 i32 i32 i32)))""",
    take="(call $take (global.get $out) (local.get $at) (local.get $size) (i32.const 256))",
    fill="(call $fill (global.get $out) (local.get $at) (local.get $size) (i32.const 256))",
    given='(export "take" (func $take)) (export "fill" (func $fill))',
)


class TestImportedByTheGuestItself:
    """What the host defines for the rewriting, any component can import. It gets nothing by it that it has not."""

    @pytest.fixture
    def deployed(self, box: Sandbox, tmp_path: Path) -> Callable[[bytes], Mapped]:
        def deploy(component: bytes) -> Mapped:
            store = ArtifactStore(tmp_path)
            compiled = compile_and_start(component, store, IsolateLimits(startup_cpu_ms=5_000))
            assert isinstance(compiled, Compiled), compiled
            return store.map(box, compiled.component_digest)

        return deploy

    def test_a_take_without_a_fill_gives_nothing(self, deployed: Callable[[bytes], Mapped], start: Start) -> None:
        mapped = deployed(TAKES)
        isolate, other = start(mapped, **AMPLE), start(mapped, **AMPLE)
        finished, body = tell(isolate, Told(TAKE), Told(TAKE))
        assert [heard(body[:20]).size, heard(body[20:]).size] == [0, 0]
        finished, body = tell(isolate, Told(FILL, size=9, chunk=b"secret"), Told(TAKE), Told(TAKE))
        assert [heard(body[20:46]).contents, heard(body[46:]).contents] == [b"secret", b""], "once"
        keeps_on(isolate, finished)
        assert tell(other, Told(TAKE))[1][8:12] == bytes(4), "an isolate has its own"

    def test_what_was_filled_does_not_outlive_its_request(
        self, deployed: Callable[[bytes], Mapped], start: Start
    ) -> None:
        isolate = start(deployed(TAKES), **AMPLE)
        tell(isolate, Told(FILL, size=9, chunk=b"secret"))
        assert isolate.guest.filled == b""
        finished, body = tell(isolate, Told(TAKE))
        assert heard(body).size == 0
        keeps_on(isolate, finished)

    def test_text_that_is_bytes(self, deployed: Callable[[bytes], Mapped], start: Start) -> None:
        isolate = start(deployed(TALKS), **AMPLE)
        finished, body = tell(isolate, Told(FILL, 8_192, 5_000))
        assert body == PATTERN[8_192:13_192] + body[-20:]
        keeps_on(isolate, finished)

    @pytest.mark.parametrize("call", [Told(TAKE, 2_048, 40), Told(FILL, 2_048, 2**31 + 40)])
    def test_text_that_is_no_bytes_is_a_fault_of_the_guest(
        self, call: Told, deployed: Callable[[bytes], Mapped], start: Start
    ) -> None:
        euros = "€".encode("utf-16-le") * 40
        finished, _ = tell(start(deployed(TALKS), **AMPLE), Told(READ, size=80, place=2_048, chunk=euros), call)
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEPTION, Verdict.KILL), finished.reason
