"""Requests that a guest makes, at the host functions, and a guest of machine code that informs and sends trailers."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from isolates.component_value import DONE, Err, GuestTrap, Ok
from isolates.conversation import ResponseHead
from isolates.engine import Sandbox
from isolates.isolate import RunningGuest
from isolates.outcome import Outcome
from isolates.wasi.http import error_code
from isolates.wasi.http.fields import Fields
from isolates.wasi.http.outgoing_body import HELD_BYTES_MAX
from isolates.wasi.http.response import Outparam
from isolates.wasi.io import CLOSED, WRITE_BYTES_MAX, wait_for
from tests.isolates.conftest import Start, TextGuest
from tests.isolates.guest_text import IN_LIBC
from tests.isolates.host_functions import Functions, answer, case_of, guest_for, response_of
from tests.local_origin import LocalOrigin, SocketEgress
from tests.scripted_conversation import ScriptedConversation


@pytest.fixture
def handle(box: Sandbox) -> Any:
    return Functions(box, "http/outgoing-handler")["handle"]


@pytest.fixture
def origin() -> Iterator[LocalOrigin]:
    with LocalOrigin().running() as origin:
        yield origin


@pytest.fixture
def guest() -> Iterator[RunningGuest]:
    """A guest with a way out, which leaves nothing open."""
    guest = guest_for(ScriptedConversation())
    guest.egress = egress = SocketEgress()
    yield guest
    guest.leave()
    assert egress.all_closed
    egress.join()


def request_to(types: Functions, guest: RunningGuest, url: str, *headers: tuple[str, bytes], post: bool = False) -> Any:
    request = types["[constructor]outgoing-request"](guest, Fields(list(headers), mutable=True))
    _, _, authority, path = url.split("/", 3)
    for name, value in (
        ("method", ("post" if post else "get", None)), ("scheme", ("HTTP", None)), ("authority", authority),
        ("path-with-query", f"/{path}"),
    ):  # fmt: skip
        assert types[f"[method]outgoing-request.set-{name}"](guest, request, value) is DONE
    return request


def answered(types: Functions, guest: RunningGuest, handled: Any) -> Any:
    """The response, or the error-code, when it is there."""
    assert isinstance(handled, Ok), handled.value
    wait_for(guest, [types["[method]future-incoming-response.subscribe"](guest, handled.value)])
    return types["[method]future-incoming-response.get"](guest, handled.value).value.value


def body_of(types: Functions, streams: Functions, guest: RunningGuest, response: Any) -> bytes:
    """All of the body; the stream is read to its end."""
    body = types["[method]incoming-response.consume"](guest, response).value
    stream = types["[method]incoming-body.stream"](guest, body).value
    data = b""
    while isinstance(read := streams["[method]input-stream.blocking-read"](guest, stream, 9_999), Ok):
        data += read.value
    assert read is CLOSED
    return data


class TestRequest:
    @pytest.mark.parametrize(
        ("name", "good", "bad"),
        [("method", [("get", None), ("other", "PURGE"), ("other", "M-SEARCH")],
          [("other", ""), ("other", "A B"), ("other", "A\r\nX: y"), ("other", "x" * 65)]),
         ("scheme", [None, ("HTTP", None), ("HTTPS", None), ("other", "ws+unix")],
          [("other", ""), ("other", "a/b"), ("other", "1a")]),
         ("authority", [None, "a", "a.b-c_d:8080", "[::1]", "[2001:db8::1]:443", "127.0.0.1:1"],
          ["", "a b", "a/b", "user@a", "a:", "a:0", "a:65536", "a:b", "é.example", "a\r\n", "[::1", "x" * 254, "a?b"]),
         ("path-with-query", [None, "", "/", "/a?b=c&d=%20", "?q", "*", "/" + "x" * 16_383],
          ["a", "/a b", "/a#b", "/\n", "/é", "/" + "x" * 16_384])],
    )  # fmt: skip
    def test_what_may_be_asked(self, name: str, good: list[Any], bad: list[Any], types: Functions) -> None:
        guest = guest_for()
        request = types["[constructor]outgoing-request"](guest, Fields([], mutable=True))
        get, put = types[f"[method]outgoing-request.{name}"], types[f"[method]outgoing-request.set-{name}"]
        assert get(guest, request) == (("get", None) if name == "method" else None)
        for value in good:
            assert put(guest, request, value) is DONE, value
            assert get(guest, request) == value
        for value in bad:
            assert isinstance(put(guest, request, value), Err), value
            assert get(guest, request) == good[-1]

    def test_headers_can_not_be_changed_behind_its_back(self, types: Functions) -> None:
        guest, fields = guest_for(), Fields([("a", b"1")], mutable=True)
        request = types["[constructor]outgoing-request"](guest, fields)
        for held in (fields, types["[method]outgoing-request.headers"](guest, request)):
            assert case_of(types["[method]fields.append"](guest, held, "b", b"")) == "immutable"

    def test_options(self, types: Functions) -> None:
        guest = guest_for()
        options = types["[constructor]request-options"](guest)
        for i, name in enumerate(("connect", "first-byte", "between-bytes")):
            get = types[f"[method]request-options.{name}-timeout"]
            assert get(guest, options) is None
            assert types[f"[method]request-options.set-{name}-timeout"](guest, options, 10**9 * (i + 1)) is DONE
            assert get(guest, options) == 10**9 * (i + 1)
        timeouts = options.timeouts()
        assert (timeouts.connect_s, timeouts.first_byte_s, timeouts.between_bytes_s) == (1.0, 2.0, 3.0)

    @pytest.mark.parametrize(
        ("name", "value", "code"),
        [("method", ("connect", None), "HTTP-request-method-invalid"),
         ("method", ("other", "connect"), "HTTP-request-method-invalid"),
         ("scheme", ("other", "ftp"), "HTTP-request-URI-invalid"), ("authority", None, "HTTP-request-URI-invalid")],
    )  # fmt: skip
    def test_what_can_not_be_sent_is_refused(
        self, name: str, value: Any, code: str, types: Functions, handle: Any, guest: RunningGuest
    ) -> None:
        request = request_to(types, guest, "http://a/")
        assert types[f"[method]outgoing-request.set-{name}"](guest, request, value) is DONE
        body = types["[method]outgoing-request.body"](guest, request).value
        body.write(guest, b"held")
        assert case_of(handle(guest, request, None)) == code
        assert (guest.held_bytes, guest.subrequests, body.open) == (0, 0, False)

    def test_what_is_left_out_has_a_default(self, types: Functions, guest: RunningGuest) -> None:
        request = types["[constructor]outgoing-request"](guest, Fields([], mutable=True))
        types["[method]outgoing-request.set-authority"](guest, request, "a")
        head = request.head()
        assert (head.method, head.scheme, head.authority, head.path) == ("GET", "https", "a", "/")
        types["[method]outgoing-request.set-path-with-query"](guest, request, "?a")
        assert request.head().path == "/?a"

    def test_start_up_code_and_guests_without_a_way_out_are_denied(self, types: Functions, handle: Any) -> None:
        starting = guest_for(None)
        starting.egress = SocketEgress()
        for guest in (starting, guest_for(ScriptedConversation())):
            request = request_to(types, guest, "http://a/")
            assert case_of(types["[method]outgoing-request.body"](guest, request)) == "ok"
            assert case_of(types["[method]outgoing-request.body"](guest, request)) is None
            assert case_of(handle(guest, request, None)) == "HTTP-request-denied"
            assert guest.exchanges == []
        assert starting.egress.opened == []

    def test_every_error_code_can_be_told(self) -> None:
        assert len(error_code.CASES) == 39


class TestBody:
    def test_written_before_and_after_it_is_sent(
        self, types: Functions, streams: Functions, handle: Any, guest: RunningGuest, origin: LocalOrigin
    ) -> None:
        request = request_to(types, guest, origin.url("/echo"), post=True)
        body = types["[method]outgoing-request.body"](guest, request).value
        stream = types["[method]outgoing-body.write"](guest, body).value
        write, check = streams["[method]output-stream.write"], streams["[method]output-stream.check-write"]
        assert check(guest, stream).value == WRITE_BYTES_MAX
        assert write(guest, stream, b"before ") is DONE
        assert streams["[method]output-stream.blocking-flush"](guest, stream) is DONE, "nobody waits for handle"
        assert guest.held_bytes == 7
        handled = handle(guest, request, None)
        assert guest.held_bytes == 0
        assert streams["[method]output-stream.blocking-write-and-flush"](guest, stream, b"after") is DONE
        assert types["[static]outgoing-body.finish"](guest, body, None) is DONE
        assert write(guest, stream, b"late") is CLOSED
        response = answered(types, guest, handled)
        assert types["[method]incoming-response.status"](guest, response) == 200
        assert body_of(types, streams, guest, response) == b"before after"
        assert guest.exchanges == [], "read to the end, it holds no place"

    def test_what_is_held_has_one_bound(self, types: Functions, guest: RunningGuest) -> None:
        bodies = [types["[method]outgoing-request.body"](guest, request_to(types, guest, "http://a/")).value
                  for _ in range(4)]  # fmt: skip
        for i in range(HELD_BYTES_MAX // WRITE_BYTES_MAX):
            bodies[i % 4].write(guest, bytes(WRITE_BYTES_MAX))
        bodies[0].on_drop()
        for _ in range(4):
            bodies[1].write(guest, bytes(WRITE_BYTES_MAX))
        with pytest.raises(GuestTrap):
            bodies[1].write(guest, b"x")
        assert guest.ended is Outcome.HUNG

    @pytest.mark.parametrize("before", [True, False])
    @pytest.mark.parametrize("written", [b"ab", b"abcd"])
    def test_a_declared_length_is_kept_or_the_request_fails(
        self, written: bytes, before: bool, types: Functions, handle: Any, guest: RunningGuest, origin: LocalOrigin
    ) -> None:
        request = request_to(types, guest, origin.url("/count/go"), ("content-length", b"3"), post=True)
        body = types["[method]outgoing-request.body"](guest, request).value
        handled = None if before else handle(guest, request, None)
        body.write(guest, written)
        assert case_of(types["[static]outgoing-body.finish"](guest, body, None)) == "HTTP-request-body-size"
        if before:
            assert case_of(handle(guest, request, None)) == "HTTP-request-body-size"
        else:
            assert answered(types, guest, handled) == ("HTTP-request-body-size", len(written))
        assert guest.exchanges == []

    @pytest.mark.parametrize("length", [b"x", b"5"])
    def test_a_body_that_nobody_asked_for_is_empty(
        self, length: bytes, types: Functions, handle: Any, guest: RunningGuest
    ) -> None:
        request = request_to(types, guest, "http://a/", ("content-length", length))
        assert case_of(handle(guest, request, None)) == "HTTP-request-body-size"

    def test_one_that_is_dropped_unfinished_fails_the_request(
        self, types: Functions, handle: Any, guest: RunningGuest, origin: LocalOrigin
    ) -> None:
        for when in ("before", "after"):
            request = request_to(types, guest, origin.url("/count/go"), post=True)
            number = guest.lend(types["[method]outgoing-request.body"](guest, request).value)
            if when == "before":
                guest.dropped(number)
                assert case_of(handle(guest, request, None)) == "HTTP-protocol-error"
            else:
                handled = handle(guest, request, None)
                guest.dropped(number)
                assert answered(types, guest, handled) == ("HTTP-protocol-error", None)

    def test_one_that_is_dropped_after_the_answer_does_not(
        self, types: Functions, streams: Functions, handle: Any, guest: RunningGuest, origin: LocalOrigin
    ) -> None:
        request = request_to(types, guest, origin.url("/early"), post=True)
        number = guest.lend(types["[method]outgoing-request.body"](guest, request).value)
        response = answered(types, guest, handle(guest, request, None))
        guest.dropped(number)
        assert body_of(types, streams, guest, response) == b""

    def test_the_reason_is_behind_the_stream_that_fails(
        self, types: Functions, streams: Functions, handle: Any, guest: RunningGuest, origin: LocalOrigin
    ) -> None:
        request = request_to(types, guest, origin.refusing_url, post=True)
        body = types["[method]outgoing-request.body"](guest, request).value
        stream = types["[method]outgoing-body.write"](guest, body).value
        assert answered(types, guest, handle(guest, request, None)) == ("connection-refused", None)
        for name, arguments in (("check-write", ()), ("write", (b"x",)), ("flush", ()), ("splice", (stream, 1))):
            case, error = streams[f"[method]output-stream.{name}"](guest, stream, *arguments).value
            assert case == "last-operation-failed"
            assert types["http-error-code"](guest, error) == ("connection-refused", None)
        assert types["[static]outgoing-body.finish"](guest, body, None).value == ("connection-refused", None)


class TestAnswer:
    def test_head_and_body_are_taken_once(
        self, types: Functions, streams: Functions, handle: Any, guest: RunningGuest, origin: LocalOrigin
    ) -> None:
        handled = handle(guest, request_to(types, guest, origin.url("/turn/now")), None)
        assert types["[method]future-incoming-response.get"](guest, handled.value) is None
        assert not types["[method]future-incoming-response.subscribe"](guest, handled.value).ready(guest)
        origin.let_go("now")
        response = answered(types, guest, handled)
        assert case_of(types["[method]future-incoming-response.get"](guest, handled.value)) is None
        headers = types["[method]incoming-response.headers"](guest, response)
        assert types["[method]fields.get"](guest, headers, "Content-Length") == [b"3"]
        assert case_of(types["[method]fields.delete"](guest, headers, "content-length")) == "immutable"
        body = types["[method]incoming-response.consume"](guest, response).value
        assert case_of(types["[method]incoming-response.consume"](guest, response)) is None
        stream = types["[method]incoming-body.stream"](guest, body).value
        assert case_of(types["[method]incoming-body.stream"](guest, body)) is None
        assert streams["[method]input-stream.blocking-read"](guest, stream, 2).value == b"no"
        trailers = types["[static]incoming-body.finish"](guest, body)
        assert types["[method]future-trailers.get"](guest, trailers).value.value is None
        assert guest.exchanges == []
        case, error = streams["[method]input-stream.read"](guest, stream, 1).value
        assert (case, types["http-error-code"](guest, error)) == (
            "last-operation-failed",
            ("connection-terminated", None),
        )

    @pytest.mark.parametrize("holder", ["future", "response", "body"])
    def test_whoever_holds_it_lets_go_of_it(
        self, holder: str, types: Functions, handle: Any, guest: RunningGuest, origin: LocalOrigin
    ) -> None:
        handled = handle(guest, request_to(types, guest, origin.url("/size/100000")), None)
        future = guest.lend(handled.value)
        response = guest.lend(answered(types, guest, handled)) if holder != "future" else 0
        body = guest.lend(types["[method]incoming-response.consume"](guest, guest.borrowed(response)).value) \
            if holder == "body" else 0  # fmt: skip
        for number in (future, response, body):
            assert len(guest.exchanges) == 1
            guest.dropped(number)
            if number == {"future": future, "response": response, "body": body}[holder]:
                break
        assert guest.exchanges == []

    def test_what_is_kept_beyond_the_request_is_closed(
        self, types: Functions, streams: Functions, handle: Any, guest: RunningGuest, origin: LocalOrigin
    ) -> None:
        unasked = handle(guest, request_to(types, guest, origin.url("/hello")), None).value
        request = request_to(types, guest, origin.url("/count/go"), post=True)
        guest.lend(upload := types["[method]outgoing-request.body"](guest, request).value)
        handle(guest, request, None)
        response = answered(types, guest, handle(guest, request_to(types, guest, origin.url("/hello")), None))
        guest.leave()
        guest.begin(ScriptedConversation(), wall_ms=1_000, egress=(second := SocketEgress()))
        assert case_of(types["[method]incoming-response.consume"](guest, response)) is None
        assert types["[method]future-incoming-response.get"](guest, unasked).value.value[0] == "connection-terminated"
        assert not upload.write(guest, b"x")
        assert case_of(types["[static]outgoing-body.finish"](guest, upload, None)) == "connection-terminated"
        assert second.opened == []

    def test_a_descriptor_that_promises_too_much_does_not_cost_a_core(
        self, types: Functions, handle: Any, origin: LocalOrigin
    ) -> None:
        class Restless(ScriptedConversation):
            """Every wait ends at once, as if something had come."""

            waits = 0

            def wait(self, timeout_s: float, *, for_body: bool, **descriptors: Any) -> None:
                self.waits += 1
                if not descriptors["readable"]:
                    super().wait(timeout_s, for_body=for_body)

        guest = guest_for(conversation := Restless(), wall_ms=150)
        guest.egress = egress = SocketEgress()
        began_s = time.monotonic()
        with pytest.raises(GuestTrap):
            answered(types, guest, handle(guest, request_to(types, guest, origin.url("/never")), None))
        assert guest.ended is Outcome.EXCEEDED_WALL_TIME
        assert conversation.waits < 100 + 2_000 * (time.monotonic() - began_s)
        guest.leave()
        egress.join()


class TestInformingAndTrailers:
    @pytest.mark.parametrize("status", [100, 102, 103, 199])
    def test_informational_heads_go_to_the_client(self, status: int, types: Functions) -> None:
        guest = guest_for(conversation := ScriptedConversation())
        inform = types["[method]response-outparam.send-informational"]
        assert inform(guest, Outparam(), status, Fields([("link", b"</a>")], mutable=True)) is DONE
        assert conversation.informed == [ResponseHead(status, (("link", b"</a>"),))]

    @pytest.mark.parametrize("status", [0, 99, 101, 200, 65_535])
    def test_others_do_not(self, status: int, types: Functions) -> None:
        guest = guest_for(conversation := ScriptedConversation())
        inform = types["[method]response-outparam.send-informational"]
        assert case_of(inform(guest, Outparam(), status, Fields([], mutable=True))) == "HTTP-protocol-error"
        assert conversation.informed == []

    @pytest.mark.parametrize("answered_first", [True, False])
    def test_trailers_follow_the_body(self, answered_first: bool, types: Functions) -> None:
        guest = guest_for(conversation := ScriptedConversation())
        response = response_of(types, guest)
        body = types["[method]outgoing-response.body"](guest, response).value
        if answered_first:
            answer(types, guest, response)
        body.write(guest, b"x")
        trailers = Fields([("checksum", b"1")], mutable=True)
        assert types["[static]outgoing-body.finish"](guest, body, trailers) is DONE
        if not answered_first:
            answer(types, guest, response)
        assert (conversation.body, conversation.trailers_sent) == (b"x", (("checksum", b"1"),))

    def test_from_inside(self, text_guest: TextGuest, start: Start) -> None:
        """It informs, asks in vain for 101, answers, and ends its body with a trailer; it traps when one is refused."""
        lowered = {
            "fields": ("[constructor]fields", "(result i32)", ""),
            "append": ("[method]fields.append", "(param i32 i32 i32 i32 i32 i32)", IN_LIBC),
            "inform": ("[method]response-outparam.send-informational", "(param i32 i32 i32 i32)", IN_LIBC),
            "response": ("[constructor]outgoing-response", "(param i32) (result i32)", ""),
            "body": ("[method]outgoing-response.body", "(param i32 i32)", IN_LIBC),
            "set": ("[static]response-outparam.set", "(param i32 i32 i32)", ""),
            "finish": ("[static]outgoing-body.finish", "(param i32 i32 i32 i32)", IN_LIBC),
        }
        guest = text_guest(
            # Of the errors only those that it names: a host function answers with cases by their names.
            http_exports="""
                (type $code-shape (variant (case "HTTP-protocol-error")))
                (export "error-code" (type $code (eq $code-shape)))
                (type $header-error-shape (variant (case "invalid-syntax") (case "forbidden") (case "immutable")))
                (export "header-error" (type $header-error (eq $header-error-shape)))
                (export "fields" (type $fields (sub resource)))
                (export "outgoing-response" (type $response (sub resource)))
                (export "outgoing-body" (type $body (sub resource)))
                (export "[constructor]fields" (func (result (own $fields))))
                (export "[method]fields.append" (func (param "self" (borrow $fields)) (param "name" string)
                    (param "value" (list u8)) (result (result (error $header-error)))))
                (export "[method]response-outparam.send-informational" (func (param "self" (borrow 1))
                    (param "status" u16) (param "headers" (own $fields)) (result (result (error $code)))))
                (export "[constructor]outgoing-response" (func (param "headers" (own $fields))
                    (result (own $response))))
                (export "[method]outgoing-response.body" (func (param "self" (borrow $response))
                    (result (result (own $body)))))
                (export "[static]response-outparam.set" (func (param "param" (own 1))
                    (param "response" (result (own $response) (error $code)))))
                (export "[static]outgoing-body.finish" (func (param "this" (own $body))
                    (param "trailers" (option (own $fields))) (result (result (error $code)))))""",
            lowered="\n".join(
                f'(core func ${name} (canon lower (func $types "{function}") {options}))'
                for name, (function, _, options) in lowered.items()
            ),
            functions="\n".join(f"{name} {kind}" for name, (_, kind, _) in lowered.items()),
            core_items="""
                (data (i32.const 512) "link</style.css>checksumabc")
                (global $made (mut i32) (i32.const 0))
                (func $field (param i32 i32 i32 i32) (result i32) (local $made i32)
                    (local.set $made (call $fields))
                    (call $append (local.get $made) (local.get 0) (local.get 1) (local.get 2) (local.get 3)
                        (i32.const 32))
                    (if (i32.load8_u (i32.const 32)) (then unreachable))
                    (local.get $made))""",
            body="""
                (call $drop-request (local.get $request))
                (call $inform (local.get $outparam) (i32.const 103)
                    (call $field (i32.const 512) (i32.const 4) (i32.const 516) (i32.const 12)) (i32.const 48))
                (if (i32.load8_u (i32.const 48)) (then unreachable))
                (call $inform (local.get $outparam) (i32.const 101) (call $fields) (i32.const 48))
                (if (i32.eqz (i32.load8_u (i32.const 48))) (then unreachable))
                (global.set $made (call $response (call $fields)))
                (call $body (global.get $made) (i32.const 64))
                (call $set (local.get $outparam) (i32.const 0) (global.get $made))
                (call $finish (i32.load (i32.const 68)) (i32.const 1)
                    (call $field (i32.const 528) (i32.const 8) (i32.const 536) (i32.const 3)) (i32.const 48))
                (if (i32.load8_u (i32.const 48)) (then unreachable))""",
        )
        conversation = ScriptedConversation()
        finished = start(guest).run(conversation)
        assert finished.outcome is Outcome.OK, finished
        assert conversation.informed == [ResponseHead(103, (("link", b"</style.css>"),))]
        assert conversation.response == ResponseHead(200)
        assert conversation.trailers_sent == (("checksum", b"abc"),)
