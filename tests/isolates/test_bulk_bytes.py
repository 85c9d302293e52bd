"""Byte streams that pass as text: to a guest there is no difference, whatever its bytes, addresses and allocator.

Each component is here in two shapes, as it came and rewritten, and is asked the same in both.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from wasmtime.component import Component

from isolates import bulk_bytes
from isolates.artifact import ArtifactStore, Compiled, Mapped, digest_of
from isolates.compiler import compile_and_start
from isolates.component_binary import Root
from isolates.engine import Sandbox
from isolates.isolate import Finished, Isolate
from isolates.limits import IsolateLimits, Verdict
from isolates.outcome import Outcome
from tests.isolates.conftest import ROOT, Start
from tests.isolates.telling_guest import (
    ALL_BYTES,
    BLOCKING_READ,
    BREAKS,
    DONE,
    ENDS,
    FILL,
    FLUSH,
    PAGE_BYTES,
    PATTERN,
    READ,
    READS,
    STREAMS_TYPE,
    TAKE,
    TAKE_LOWERED,
    TAKE_TYPE,
    TRAPS,
    WRITE,
    Heard,
    Told,
    heard,
    keeps_on,
    tell,
    told,
)
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
