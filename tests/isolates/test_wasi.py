"""The host functions, as the plain functions they are, and a few guests that look at the host from inside."""

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from isolates.component_value import GuestTrap, Ok
from isolates.conversation import BodyLost
from isolates.engine import Sandbox
from isolates.isolate import Finished, RunningGuest
from isolates.limits import IsolateLimits, Verdict
from isolates.outcome import Outcome
from isolates.wasi.http.fields import FORBIDDEN, Fields
from isolates.wasi.http.incoming import IncomingBody, IncomingRequest
from isolates.wasi.http.response import OutgoingResponse, Outparam, ResponseBody
from isolates.wasi.io import CLOSED, READ_BYTES_MAX, WRITE_BYTES_MAX, EmptyInput
from tests.isolates.conftest import Start, TextGuest
from tests.isolates.guest_text import DROP_BOTH, IN_LIBC
from tests.scripted_conversation import ScriptedConversation

Host = Callable[..., Any]


class Functions:
    """The functions of one interface, called with a guest, without a guest's machine code in between."""

    def __init__(self, box: Sandbox, interface: str) -> None:
        self._functions = box.world.interfaces[f"wasi:{interface}@0.2.12"].functions

    def __getitem__(self, name: str) -> Host:
        return self._functions[name]


@pytest.fixture
def types(box: Sandbox) -> Functions:
    return Functions(box, "http/types")


@pytest.fixture
def streams(box: Sandbox) -> Functions:
    return Functions(box, "io/streams")


def guest_for(conversation: ScriptedConversation | None = None, **limits: Any) -> RunningGuest:
    guest = RunningGuest(IsolateLimits(**limits), os.urandom)
    guest.begin(conversation, wall_ms=limits.get("wall_ms", 30_000))
    return guest


def case_of(result: Any) -> Any:
    """``ok`` or the case of the error."""
    if isinstance(result, Ok):
        return "ok"
    return result.value if result.value is None else result.value[0]


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


def response_of(types: Functions, guest: RunningGuest, *headers: tuple[str, bytes]) -> OutgoingResponse:
    response: OutgoingResponse = types["[constructor]outgoing-response"](guest, Fields(list(headers), mutable=True))
    return response


def answer(types: Functions, guest: RunningGuest, response: OutgoingResponse) -> None:
    types["[static]response-outparam.set"](guest, Outparam(), Ok(response))


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


class TestPoll:
    def test_timers(self, box: Sandbox) -> None:
        clocks, poll = Functions(box, "clocks/monotonic-clock"), Functions(box, "io/poll")
        guest = guest_for()
        past, near, far = (clocks["subscribe-duration"](guest, ns) for ns in (0, 2_000_000, 10**15))
        assert poll["[method]pollable.ready"](guest, past)
        assert not poll["[method]pollable.ready"](guest, far)
        assert poll["poll"](guest, [far, past]) == [1]
        began_ns = time.monotonic_ns()
        assert poll["poll"](guest, [near, far]) == [0]
        assert time.monotonic_ns() >= near.at_ns > began_ns - 2_000_000
        poll["[method]pollable.block"](guest, clocks["subscribe-instant"](guest, guest.monotonic_ns + 1_000_000))
        assert clocks["subscribe-duration"](guest, 2**64 - 1).at_ns == 2**64 - 1

    @pytest.mark.parametrize("count", [0, 1_025])
    def test_the_number_of_pollables_has_bounds(self, count: int, box: Sandbox) -> None:
        guest = guest_for()
        timer = Functions(box, "clocks/monotonic-clock")["subscribe-duration"](guest, 0)
        with pytest.raises(GuestTrap):
            Functions(box, "io/poll")["poll"](guest, [timer] * count)

    def test_waiting_ends_with_the_wall_time_and_with_the_client(self, box: Sandbox) -> None:
        far = Functions(box, "clocks/monotonic-clock")["subscribe-duration"](guest_for(), 10**13)
        for guest, outcome in (
            (guest_for(ScriptedConversation(), wall_ms=5), Outcome.EXCEEDED_WALL_TIME),
            (guest_for(None, wall_ms=5), Outcome.EXCEEDED_WALL_TIME),
            (guest_for(ScriptedConversation(client_leaves_after_s=0.005)), Outcome.CANCELED),
        ):
            with pytest.raises(GuestTrap):
                Functions(box, "io/poll")["poll"](guest, [far])
            assert guest.ended is outcome


class TestTheRest:
    def test_random_has_a_cap(self, box: Sandbox) -> None:
        guest = guest_for()
        for interface, name in (
            ("random/random", "get-random-bytes"),
            ("random/insecure", "get-insecure-random-bytes"),
        ):
            draw = Functions(box, interface)[name]
            assert [len(draw(guest, n)) for n in (0, 1, 65_536)] == [0, 1, 65_536]
            with pytest.raises(GuestTrap):
                draw(guest, 65_537)
        assert 0 <= Functions(box, "random/random")["get-random-u64"](guest) < 2**64
        assert len(Functions(box, "random/insecure-seed")["insecure-seed"](guest)) == 2

    def test_there_is_no_environment(self, box: Sandbox) -> None:
        environment = Functions(box, "cli/environment")
        answers = [environment[n](guest_for()) for n in ("get-environment", "get-arguments", "initial-cwd")]
        assert answers == [[], [], None]

    def test_there_are_no_files_and_no_network(self, box: Sandbox) -> None:
        guest = guest_for()
        assert Functions(box, "filesystem/preopens")["get-directories"](guest) == []
        network = Functions(box, "sockets/instance-network")["instance-network"](guest)
        lookup = Functions(box, "sockets/ip-name-lookup")["resolve-addresses"]
        assert lookup(guest, network, "localhost").value == "access-denied"
        for protocol in ("tcp", "udp"):
            create = Functions(box, f"sockets/{protocol}-create-socket")[f"create-{protocol}-socket"]
            assert create(guest, "ipv4").value == "access-denied"

    def test_output_becomes_log_lines_up_to_a_cap(self, box: Sandbox, streams: Functions) -> None:
        guest = guest_for(ScriptedConversation(), log_bytes_max=200)
        out, err = (Functions(box, f"cli/{n}")[f"get-{n}"](guest) for n in ("stdout", "stderr"))
        write = streams["[method]output-stream.blocking-write-and-flush"]
        write(guest, out, b"one \xff\n")
        write(guest, err, b"")
        write(guest, err, b"two")
        write(guest, out, b"x" * 1_000)
        write(guest, out, b"never seen")
        assert [(line.stream, line.text) for line in guest.logs] == [
            ("stdout", "one \ufffd\n"), ("stderr", "two"), ("stdout", "x" * 72),
        ]  # fmt: skip
        assert guest.log_truncated

    def test_a_log_written_byte_by_byte_is_bounded_in_pieces_too(self) -> None:
        guest = guest_for(log_bytes_max=64 * 1024)
        for _ in range(5_000):
            guest.log("stdout", "x")
        assert len(guest.logs) == 1_024
        assert guest.log_truncated


def run(start: Start, guest: Any, **limits: float) -> Finished:
    finished: Finished = start(guest, **limits).run(ScriptedConversation())
    return finished


class TestFromInside:
    """The same, seen by guests of machine code."""

    def test_clocks_stand_still_while_a_guest_computes(self, text_guest: TextGuest, start: Start) -> None:
        """It reads the clocks, counts to three million, reads them again, and traps when one has moved."""
        guest = text_guest(
            imports="""(import "wasi:clocks/monotonic-clock@0.2.0" (instance $mono (export "now" (func (result u64)))))
                (import "wasi:clocks/wall-clock@0.2.0" (instance $wall
                    (type $datetime-shape (record (field "seconds" u64) (field "nanoseconds" u32)))
                    (export "datetime" (type $datetime (eq $datetime-shape)))
                    (export "now" (func (result $datetime)))))""",
            lowered=f"""(core func $mono (canon lower (func $mono "now")))
                (core func $wall (canon lower (func $wall "now") {IN_LIBC}))""",
            functions="mono (result i64)\nwall (param i32)",
            core_items="""(func $count (local $i i32) (loop $l
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $l (i32.lt_u (local.get $i) (i32.const 3000000)))))""",
            body=f"""{DROP_BOTH}
                (i64.store (i32.const 64) (call $mono)) (call $wall (i32.const 16))
                (call $count)
                (call $wall (i32.const 32))
                (if (i64.ne (call $mono) (i64.load (i32.const 64))) (then unreachable))
                (if (i64.ne (i64.load (i32.const 16)) (i64.load (i32.const 32))) (then unreachable))
                (if (i32.ne (i32.load (i32.const 24)) (i32.load (i32.const 40))) (then unreachable))
                (if (i64.eqz (i64.load (i32.const 64))) (then unreachable))""",
        )
        isolate = start(guest, cpu_ms=60_000)
        seen = []
        for _ in range(2):
            assert isolate.run(ScriptedConversation()).outcome is Outcome.HUNG
            seen.append(isolate.guest.monotonic_ns)
        assert seen[0] < seen[1], "between requests time goes on"

    def test_exit_is_an_end_that_is_logged(self, text_guest: TextGuest, start: Start) -> None:
        guest = text_guest(
            imports='(import "wasi:cli/exit@0.2.0" (instance $exit (export "exit" (func (param "status" (result))))))',
            lowered='(core func $exit (canon lower (func $exit "exit")))',
            functions="exit (param i32)",
            body="(call $exit (i32.const 1))",
        )
        finished = run(start, guest)
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEPTION, Verdict.KILL)
        assert [line.text for line in finished.logs] == ["the worker called exit (failure)"]

    def test_too_many_random_bytes_trap(self, text_guest: TextGuest, start: Start) -> None:
        guest = text_guest(
            imports="""(import "wasi:random/random@0.2.0" (instance $random
                (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))""",
            lowered=f'(core func $random (canon lower (func $random "get-random-bytes") {IN_LIBC}))',
            functions="random (param i64 i32)",
            body=f"{DROP_BOTH} (call $random (i64.const 65537) (i32.const 16))",
        )
        finished = run(start, guest)
        assert (finished.outcome, finished.reason) == (
            Outcome.EXCEPTION, "more than 65536 random bytes in one call",
        )  # fmt: skip

    def test_a_client_that_leaves_while_the_body_is_read_cancels(self, guests: Any, start: Start) -> None:
        class Leaving(ScriptedConversation):
            def read_body(self, bytes_max: int) -> bytes | None:
                self.wait(0.0, for_body=True)
                raise BodyLost

        conversation = Leaving("/", method="POST", client_leaves_after_s=0.0)
        finished = start(guests("echo"), cpu_ms=1_000).run(conversation)
        assert finished.outcome is Outcome.CANCELED
