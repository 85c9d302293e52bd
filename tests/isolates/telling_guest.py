"""A guest that is told what to do with byte streams: it reads commands, and answers each with what came of it."""

import struct
from dataclasses import dataclass

from wasmtime import wat2wasm

from isolates.conversation import BodyLost
from isolates.isolate import Finished, Isolate
from isolates.limits import Verdict
from isolates.outcome import Outcome
from tests.scripted_conversation import ScriptedConversation

ALL_BYTES = bytes(range(256))
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
