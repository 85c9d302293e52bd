"""Incoming requests and their answers, as the host functions see them: heads, bodies and streams."""

from typing import Any

import pytest

from isolates.component_value import GuestTrap
from isolates.engine import Sandbox
from isolates.isolate import RunningGuest
from isolates.outcome import Outcome
from isolates.wasi.http.fields import FORBIDDEN, Fields
from isolates.wasi.http.incoming import IncomingBody, IncomingRequest
from isolates.wasi.http.response import ResponseBody
from isolates.wasi.io import CLOSED, READ_BYTES_MAX, WRITE_BYTES_MAX, EmptyInput
from tests.isolates.host_functions import Functions, answer, case_of, guest_for, response_of
from tests.scripted_conversation import ScriptedConversation


class TestFields:
    def test_names_are_told_apart_without_case_and_values_keep_their_order(self, types: Functions) -> None:
        guest = guest_for()
        fields = types["[constructor]fields"](guest)
        for name, value in (("Accept", b"a"), ("X-b", b"1"), ("ACCEPT", b"b")):
            assert case_of(types["[method]fields.append"](guest, fields, name, value)) == "ok"
        assert types["[method]fields.get"](guest, fields, "aCCept") == [b"a", b"b"]
        assert types["[method]fields.has"](guest, fields, "ACCEPT") is True
        assert types["[method]fields.has"](guest, fields, "other") is False
        assert types["[method]fields.entries"](guest, fields) == [("accept", b"a"), ("x-b", b"1"), ("accept", b"b")]
        types["[method]fields.set"](guest, fields, "accept", [b"c"])
        assert types["[method]fields.entries"](guest, fields) == [("x-b", b"1"), ("accept", b"c")]
        types["[method]fields.delete"](guest, fields, "X-B")
        assert types["[method]fields.entries"](guest, fields) == [("accept", b"c")]

    @pytest.mark.parametrize(
        ("name", "value", "problem"),
        [("", b"", "invalid-syntax"), ("a b", b"", "invalid-syntax"), ("a:", b"", "invalid-syntax"),
         ("ä", b"", "invalid-syntax"), ("a\n", b"", "invalid-syntax"), ("a" * 1_025, b"", "invalid-syntax"),
         ("a", b"1\r\nset-cookie: x", "invalid-syntax"), ("a", b"\n", "invalid-syntax"), ("a", b"\0", "invalid-syntax"),
         ("a", b"\xff\t~", "ok"), ("!#$%&'*+-.^_`|~09azAZ", b"", "ok"),
         *((name, b"", "forbidden") for name in sorted(FORBIDDEN)), ("Transfer-Encoding", b"chunked", "forbidden")],
    )  # fmt: skip
    def test_what_may_stand_in_a_field(self, name: str, value: bytes, problem: str, types: Functions) -> None:
        guest, fields = guest_for(), Fields([], mutable=True)
        assert case_of(types["[method]fields.append"](guest, fields, name, value)) == problem
        assert case_of(types["[method]fields.set"](guest, Fields([], mutable=True), name, [value])) == problem
        assert case_of(types["[static]fields.from-list"](guest, [("ok", b""), (name, value)])) == problem
        assert bool(fields.items) == (problem == "ok")

    def test_headers_of_a_request_and_of_a_response_cannot_be_changed_but_their_clones_can(
        self, types: Functions
    ) -> None:
        guest = guest_for()
        of_request = types["[method]incoming-request.headers"](
            guest, IncomingRequest(ScriptedConversation(headers=(("a", b"1"),)).head)
        )
        given = Fields([("a", b"1")], mutable=True)
        of_response = types["[method]outgoing-response.headers"](
            guest, types["[constructor]outgoing-response"](guest, given)
        )
        for fields in (of_request, of_response, given):
            assert case_of(types["[method]fields.append"](guest, fields, "b", b"")) == "immutable"
            assert case_of(types["[method]fields.set"](guest, fields, "a", [])) == "immutable"
            assert case_of(types["[method]fields.delete"](guest, fields, "a")) == "immutable"
            clone = types["[method]fields.clone"](guest, fields)
            assert case_of(types["[method]fields.delete"](guest, clone, "a")) == "ok"
            assert fields.items == [("a", b"1")]

    @pytest.mark.parametrize("limits", [{"headers_max": 3}, {"header_bytes_max": 30}])
    def test_a_guest_that_fills_the_host_with_fields_is_ended(self, limits: dict[str, Any], types: Functions) -> None:
        guest, fields = guest_for(**limits), Fields([], mutable=True)
        for _ in range(3):
            types["[method]fields.append"](guest, fields, "abcde", b"12345")
        with pytest.raises(GuestTrap):
            types["[method]fields.append"](guest, fields, "abcde", b"1")
        assert guest.ended is Outcome.EXCEPTION
        assert len(fields.items) == 3

    def test_the_caps_are_on_what_is_there_not_on_what_ever_was(self, types: Functions) -> None:
        guest, fields = guest_for(headers_max=2, header_bytes_max=20), Fields([], mutable=True)
        for _ in range(100):
            types["[method]fields.set"](guest, fields, "abc", [b"1234", b"5678"])
        for _ in range(100):
            types["[method]fields.delete"](guest, fields, "abc")
            types["[method]fields.append"](guest, fields, "abc", b"1234")
        assert fields.items == [("abc", b"1234")]


class TestRequest:
    @pytest.mark.parametrize(
        ("method", "seen"), [("GET", ("get", None)), ("PATCH", ("patch", None)), ("PURGE", ("other", "PURGE"))]
    )
    def test_method(self, method: str, seen: Any, types: Functions) -> None:
        request = IncomingRequest(ScriptedConversation(method=method).head)
        assert types["[method]incoming-request.method"](guest_for(), request) == seen

    def test_the_rest_of_the_head(self, types: Functions) -> None:
        request, guest = IncomingRequest(ScriptedConversation("/a?b").head), guest_for()
        assert types["[method]incoming-request.path-with-query"](guest, request) == "/a?b"
        assert types["[method]incoming-request.scheme"](guest, request) == ("HTTPS", None)
        assert types["[method]incoming-request.authority"](guest, request) == "test.localhost"

    def test_the_body_and_its_stream_are_taken_once(self, types: Functions) -> None:
        guest, request = guest_for(ScriptedConversation()), IncomingRequest(ScriptedConversation().head)
        body = types["[method]incoming-request.consume"](guest, request).value
        assert case_of(types["[method]incoming-request.consume"](guest, request)) is None
        assert case_of(types["[method]incoming-body.stream"](guest, body)) == "ok"
        assert case_of(types["[method]incoming-body.stream"](guest, body)) is None

    @pytest.mark.parametrize("sent", [None, (), (("checksum", b"1"),)])
    def test_trailers_are_given_once(self, sent: Any, types: Functions) -> None:
        guest = guest_for(ScriptedConversation(trailers=sent))
        future = types["[static]incoming-body.finish"](guest, IncomingBody())
        assert types["[method]future-trailers.subscribe"](guest, future).ready(guest)
        trailers = types["[method]future-trailers.get"](guest, future).value.value
        assert (None if trailers is None else tuple(trailers.items)) == sent
        assert trailers is None or not trailers.mutable
        assert case_of(types["[method]future-trailers.get"](guest, future)) is None

    def test_trailers_of_a_request_that_is_over_are_nobodys(self, types: Functions) -> None:
        guest = guest_for(ScriptedConversation())
        guest.lend(body := IncomingBody())
        guest.leave()
        guest.begin(ScriptedConversation(trailers=(("a", b"of the next"),)), wall_ms=1_000)
        future = types["[static]incoming-body.finish"](guest, body)
        assert types["[method]future-trailers.get"](guest, future).value.value is None


class TestInput:
    def input(self, types: Functions, conversation: ScriptedConversation) -> tuple[RunningGuest, Any]:
        guest = guest_for(conversation)
        request = IncomingRequest(conversation.head)
        return guest, types["[method]incoming-request.consume"](guest, request).value

    def test_reads_what_is_there_up_to_the_end(self, types: Functions, streams: Functions) -> None:
        guest, body = self.input(types, ScriptedConversation(body=[b"abc", b"defg"]))
        read, skip = streams["[method]input-stream.read"], streams["[method]input-stream.skip"]
        assert read(guest, body, 2).value == b"ab"
        assert read(guest, body, 2**64 - 1).value == b"c"
        assert read(guest, body, 0).value == b""
        assert skip(guest, body, 3).value == 3
        assert streams["[method]input-stream.blocking-skip"](guest, body, 9).value == 1
        assert read(guest, body, 1) is CLOSED
        assert streams["[method]input-stream.blocking-read"](guest, body, 1) is CLOSED

    def test_one_read_gives_a_chunk_at_most(self, types: Functions, streams: Functions) -> None:
        guest, body = self.input(types, ScriptedConversation(body=[bytes(READ_BYTES_MAX + 1)]))
        assert len(streams["[method]input-stream.blocking-read"](guest, body, 2**63).value) == READ_BYTES_MAX

    def test_a_body_that_breaks_off_is_an_error_with_a_message_not_an_end(
        self, types: Functions, streams: Functions, box: Sandbox
    ) -> None:
        guest, body = self.input(types, ScriptedConversation(body=[b"a"], body_breaks=True))
        assert streams["[method]input-stream.read"](guest, body, 9).value == b"a"
        case, error = streams["[method]input-stream.read"](guest, body, 9).value
        assert case == "last-operation-failed"
        text = Functions(box, "io/error")["[method]error.to-debug-string"](guest, error)
        assert text == "the request body broke off"
        assert types["http-error-code"](guest, error) is None

    def test_blocking_waits_for_the_body(self, types: Functions, streams: Functions) -> None:
        class LateBody(ScriptedConversation):
            """Its body is there after the third wait."""

            waits = 0

            def body_ready(self) -> bool:
                return self.waits >= 3

            def wait(self, timeout_s: float, *, for_body: bool, **descriptors: Any) -> None:
                assert for_body
                self.waits += 1

        guest, body = self.input(types, conversation := LateBody(body=[b"late"]))
        assert streams["[method]input-stream.blocking-read"](guest, body, 9).value == b"late"
        assert conversation.waits == 3

    def test_standard_input_is_empty(self, box: Sandbox, streams: Functions) -> None:
        stdin = Functions(box, "cli/stdin")["get-stdin"](guest_for())
        assert isinstance(stdin, EmptyInput)
        assert streams["[method]input-stream.blocking-read"](guest_for(), stdin, 1) is CLOSED


class TestOutput:
    def test_head_first_then_what_was_held_then_the_rest_then_the_end(
        self, types: Functions, streams: Functions
    ) -> None:
        guest = guest_for(conversation := ScriptedConversation())
        response = response_of(types, guest, ("a", b"1"))
        assert case_of(types["[method]outgoing-response.set-status-code"](guest, response, 201)) == "ok"
        body = types["[method]outgoing-response.body"](guest, response).value
        stream = types["[method]outgoing-body.write"](guest, body).value
        assert case_of(types["[method]outgoing-body.write"](guest, body)) is None
        assert case_of(types["[method]outgoing-response.body"](guest, response)) is None
        assert streams["[method]output-stream.check-write"](guest, stream).value == WRITE_BYTES_MAX
        assert case_of(streams["[method]output-stream.write"](guest, stream, b"held ")) == "ok"
        assert conversation.response is None
        answer(types, guest, response)
        assert conversation.response is not None
        assert (conversation.response.status, conversation.response.headers) == (201, (("a", b"1"),))
        assert conversation.body == b"held "
        assert case_of(streams["[method]output-stream.blocking-write-and-flush"](guest, stream, b"now")) == "ok"
        assert case_of(streams["[method]output-stream.blocking-write-zeroes-and-flush"](guest, stream, 2)) == "ok"
        assert case_of(streams["[method]output-stream.write-zeroes"](guest, stream, 1)) == "ok"
        assert conversation.body == b"held now\0\0\0"
        assert not conversation.finished
        assert case_of(types["[static]outgoing-body.finish"](guest, body, None)) == "ok"
        assert conversation.finished
        for function in ("check-write", "flush", "blocking-flush"):
            assert streams[f"[method]output-stream.{function}"](guest, stream) is CLOSED
        assert streams["[method]output-stream.write"](guest, stream, b"x") is CLOSED

    def test_more_than_was_permitted_is_a_trap(self, streams: Functions) -> None:
        guest, body = guest_for(ScriptedConversation()), ResponseBody(None)
        for name, value in (("write", bytes(WRITE_BYTES_MAX + 1)), ("write-zeroes", WRITE_BYTES_MAX + 1),
                            ("write-zeroes", 2**64 - 1), ("blocking-write-zeroes-and-flush", 4_097)):  # fmt: skip
            with pytest.raises(GuestTrap):
                streams[f"[method]output-stream.{name}"](guest, body, value)

    def test_splice_moves_a_chunk(self, types: Functions, streams: Functions) -> None:
        guest = guest_for(conversation := ScriptedConversation(body=[b"abc", b"def"]))
        source = types["[method]incoming-request.consume"](guest, IncomingRequest(conversation.head)).value
        response = response_of(types, guest)
        body = types["[method]outgoing-response.body"](guest, response).value
        answer(types, guest, response)
        assert streams["[method]output-stream.splice"](guest, body, source, 2).value == 2
        assert streams["[method]output-stream.blocking-splice"](guest, body, source, 99).value == 1
        assert streams["[method]output-stream.blocking-splice"](guest, body, source, 99).value == 3
        assert streams["[method]output-stream.splice"](guest, body, source, 99) is CLOSED
        assert conversation.body == b"abcdef"

    def test_all_that_is_written_before_any_head_has_one_cap(self, types: Functions, streams: Functions) -> None:
        guest = guest_for(ScriptedConversation())
        bodies = [types["[method]outgoing-response.body"](guest, response_of(types, guest)).value for _ in range(4)]
        for body in bodies:
            for _ in range(4):
                streams["[method]output-stream.write"](guest, body, bytes(65_536))
        with pytest.raises(GuestTrap):
            streams["[method]output-stream.write"](guest, bodies[0], b"x")
        assert guest.ended is Outcome.HUNG

    @pytest.mark.parametrize("status", [0, 100, 199, 600, 65_535])
    def test_a_status_that_is_no_answer_is_refused(self, status: int, types: Functions) -> None:
        guest = guest_for()
        response = response_of(types, guest)
        assert case_of(types["[method]outgoing-response.set-status-code"](guest, response, status)) is None
        assert types["[method]outgoing-response.status-code"](guest, response) == 200

    def test_a_second_answer_ends_the_guest(self, types: Functions) -> None:
        guest = guest_for(ScriptedConversation())
        answer(types, guest, response_of(types, guest))
        with pytest.raises(GuestTrap):
            answer(types, guest, response_of(types, guest))

    def test_a_client_that_is_gone_cancels(self, types: Functions) -> None:
        class Deaf(ScriptedConversation):
            def send(self, data: bytes) -> None:
                self.wait(0.0, for_body=False)

        guest = guest_for(Deaf(client_leaves_after_s=0.0))
        response = response_of(types, guest)
        body = types["[method]outgoing-response.body"](guest, response).value
        body.write(guest, b"x")
        with pytest.raises(GuestTrap):
            answer(types, guest, response)
        assert guest.ended is Outcome.CANCELED


class TestContentLength:
    @pytest.mark.parametrize(
        ("declared", "written", "whole"),
        [(b"3", b"abc", True), (b"3", b"ab", False), (b"3", b"abcd", False), (b"0", b"", True), (b"0", b"a", False)],
    )
    def test_a_body_keeps_its_declared_length_or_is_not_whole(
        self, declared: bytes, written: bytes, whole: bool, types: Functions, streams: Functions
    ) -> None:
        guest = guest_for(conversation := ScriptedConversation())
        response = response_of(types, guest, ("content-length", declared))
        body = types["[method]outgoing-response.body"](guest, response).value
        answer(types, guest, response)
        streams["[method]output-stream.write"](guest, body, written)
        finished = types["[static]outgoing-body.finish"](guest, body, None)
        assert case_of(finished) == ("ok" if whole else "HTTP-response-body-size")
        assert (body.finished, conversation.finished) == (whole, whole)
        assert len(conversation.body) <= int(declared), "never more than was declared"

    @pytest.mark.parametrize(("declared", "whole"), [(None, True), (b"0", True), (b"5", False)])
    def test_a_response_whose_body_was_never_asked_for_is_whole_when_it_is_empty(
        self, declared: bytes | None, whole: bool, types: Functions
    ) -> None:
        guest = guest_for(conversation := ScriptedConversation())
        headers = [] if declared is None else [("content-length", declared)]
        answer(types, guest, response_of(types, guest, *headers))
        assert conversation.response is not None
        assert conversation.finished == whole

    @pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 304)])
    def test_a_head_alone_may_declare_the_length_it_would_have(
        self, method: str, status: int, types: Functions
    ) -> None:
        for ask_for_body in (True, False):
            guest = guest_for(conversation := ScriptedConversation(method=method))
            response = response_of(types, guest, ("content-length", b"5"))
            types["[method]outgoing-response.set-status-code"](guest, response, status)
            body = types["[method]outgoing-response.body"](guest, response).value if ask_for_body else None
            answer(types, guest, response)
            if body is not None:
                assert case_of(types["[static]outgoing-body.finish"](guest, body, None)) == "ok"
            assert conversation.finished

    @pytest.mark.parametrize("values", [[b"1", b"2"], [b"-1"], [b"1x"], [b""], [b"9" * 5_000], [b"1, 1"]])
    def test_a_length_that_is_none_is_refused(self, values: list[bytes], types: Functions) -> None:
        headers = [("content-length", v) for v in values]
        guest = guest_for(ScriptedConversation())
        assert case_of(types["[method]outgoing-response.body"](guest, response_of(types, guest, *headers))) is None
        guest = guest_for(conversation := ScriptedConversation())
        with pytest.raises(GuestTrap):
            answer(types, guest, response_of(types, guest, *headers))
        assert (guest.ended, conversation.response) == (Outcome.EXCEPTION, None)


class TestWhatIsKeptBeyondARequest:
    def test_a_kept_response_body_never_reaches_the_next_client(self, types: Functions, streams: Functions) -> None:
        guest = guest_for(ScriptedConversation())
        response = response_of(types, guest)
        body = types["[method]outgoing-response.body"](guest, response).value
        guest.lend(body)
        unanswered = response_of(types, guest)
        kept = types["[method]outgoing-response.body"](guest, unanswered).value
        guest.lend(unanswered)  # only the response is held, its body hangs on it
        kept.write(guest, b"secret of the first")
        answer(types, guest, response)
        guest.leave()
        guest.begin(second := ScriptedConversation(), wall_ms=1_000)
        assert streams["[method]output-stream.write"](guest, body, b"late") is CLOSED
        assert case_of(types["[static]outgoing-body.finish"](guest, body, None)) == "HTTP-response-body-size"
        assert (second.response, second.sent, second.finished) == (None, [], False)
        answer(types, guest, unanswered)
        assert (second.sent, second.finished) == ([], False), "an old response is never whole"

    def test_a_kept_request_does_not_read_the_next_body(self, types: Functions, streams: Functions) -> None:
        guest = guest_for(first := ScriptedConversation(body=[b"1"]))
        unread, read = IncomingRequest(first.head), IncomingRequest(first.head)
        body = types["[method]incoming-request.consume"](guest, read).value
        for thing in (unread, body):
            guest.lend(thing)
        guest.leave()
        guest.begin(second := ScriptedConversation(body=[b"2"]), wall_ms=1_000)
        assert case_of(types["[method]incoming-request.consume"](guest, unread)) is None
        assert case_of(streams["[method]input-stream.blocking-read"](guest, body, 9)) == "last-operation-failed"
        assert second.pulled_bytes == 0
