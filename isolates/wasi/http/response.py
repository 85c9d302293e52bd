"""The guest's answer to its client: ``outgoing-response`` with its body, and ``response-outparam``."""

from typing import Any

from isolates.component_value import DONE, Err, Ok
from isolates.conversation import ConversationLost, ResponseHead
from isolates.guest import Guest
from isolates.outcome import Outcome
from isolates.wasi.http.fields import Fields
from isolates.wasi.http.outgoing_body import OutgoingBody
from isolates.wasi.io import ALWAYS, WRITE_BYTES_MAX, Pollable
from isolates.wit import Interface

_FAILED: Err[None] = Err(None)


class ResponseBody(OutgoingBody):
    """The response's body and, at once, its one output stream. ``head_sent``: what is written goes to the client."""

    __slots__ = ("head_sent",)
    whose = "response"
    wrong_size = "HTTP-response-body-size"

    def __init__(self, expected: int | None) -> None:
        super().__init__(expected)
        self.head_sent = False

    def request_over(self) -> None:
        # Kept beyond its request: its bytes must not reach the next request's client, nor their lack look whole.
        self.open = False
        self.held.clear()
        if not self.head_sent:
            self.finished = False

    def stream(self) -> "ResponseBody":
        return self

    def room(self, guest: Guest) -> int | None:
        return WRITE_BYTES_MAX if self.open else None

    def put(self, guest: Guest, data: bytes) -> bool:
        if not self.head_sent:
            self.hold(guest, data)
            return True
        try:
            guest.conversation.send(data)  # type: ignore[union-attr]
        except ConversationLost:
            guest.end(Outcome.CANCELED)
        return True

    def flush(self, guest: Guest) -> bool:
        # What is written leaves at the next wait, tick or end, at most a tick later: see Isolate.
        return self.open

    def pollable(self) -> Pollable:
        # Its backpressure is felt inside ``send``.
        return ALWAYS

    def release(self, guest: Guest) -> None:
        """The head is out: send what was held."""
        self.head_sent = True
        while self.held:
            guest.conversation.send(self.take_piece(guest))  # type: ignore[union-attr]
        if self.finished:
            guest.response_is_whole(self.trailers)

    def completed(self, guest: Guest) -> None:
        if self.head_sent:
            guest.response_is_whole(self.trailers)


class OutgoingResponse:
    """A response that the guest prepares."""

    __slots__ = ("body", "fields", "status")

    def __init__(self, fields: Fields) -> None:
        fields.mutable = False
        self.fields = fields
        self.status = 200
        self.body: ResponseBody | None = None

    def expected_bytes(self, method: str) -> int | None:
        """How long the body must be. A head alone (HEAD, 304) may declare a length that it does not have."""
        return None if method == "HEAD" or self.status == 304 else self.fields.content_length()

    def request_over(self) -> None:
        if self.body is not None:
            self.body.request_over()


class Outparam:
    """Where the guest puts its response, once."""

    __slots__ = ()


def set_response(guest: Guest, answer: Ok[OutgoingResponse] | Err[tuple[str, Any]]) -> None:
    """The guest answers: keep it for the isolate, and let the head go out with what was written so far."""
    if guest.response is not None:
        guest.end(Outcome.EXCEPTION)
    guest.response = answer
    if isinstance(answer, Err) or guest.conversation is None:
        return
    response, body = answer.value, answer.value.body
    if body is None:
        # Never asked for, so it is empty, and that may not be what was declared.
        try:
            body = response.body = ResponseBody(response.expected_bytes(guest.conversation.head.method))
        except ValueError:
            guest.log("stderr", "the response's content-length is not a number of bytes")
            guest.end(Outcome.EXCEPTION)
        body.finish(guest)
    try:
        guest.conversation.send_head(ResponseHead(response.status, tuple(response.fields.items)))
        body.release(guest)
    except ConversationLost:
        guest.end(Outcome.CANCELED)


def define(types: Interface) -> None:
    """``outgoing-response``, ``response-outparam``."""

    @types.func("[constructor]outgoing-response: func(headers: own<headers>) -> own<outgoing-response>")
    def constructor(guest: Guest, fields: Fields) -> OutgoingResponse:
        return OutgoingResponse(fields)

    @types.func("[method]outgoing-response.status-code: func(self: borrow<outgoing-response>) -> status-code")
    def status_code(guest: Guest, self: OutgoingResponse) -> int:
        return self.status

    @types.func(
        "[method]outgoing-response.set-status-code: func(self: borrow<outgoing-response>, status-code: status-code)"
        " -> result"
    )
    def set_status_code(guest: Guest, self: OutgoingResponse, status: int) -> Any:
        # 1xx are not answers: send-informational is the way for those.
        if not 200 <= status <= 599:
            return _FAILED
        self.status = status
        return DONE

    @types.func("[method]outgoing-response.headers: func(self: borrow<outgoing-response>) -> own<headers>")
    def headers(guest: Guest, self: OutgoingResponse) -> Fields:
        return Fields(list(self.fields.items), mutable=False)

    @types.func("[method]outgoing-response.body: func(self: borrow<outgoing-response>) -> result<own<outgoing-body>>")
    def body(guest: Guest, self: OutgoingResponse) -> Any:
        if self.body is not None:
            return _FAILED
        try:
            method = "" if guest.conversation is None else guest.conversation.head.method
            self.body = ResponseBody(self.expected_bytes(method))
        except ValueError:
            guest.log("stderr", "the response's content-length is not a number of bytes")
            return _FAILED
        return Ok(self.body)

    @types.func(
        "[static]response-outparam.set: func(param: own<response-outparam>,"
        " response: result<own<outgoing-response>, error-code>)"
    )
    def set_outparam(guest: Guest, self: Outparam, response: Any) -> None:
        set_response(guest, response)

    @types.func(
        "[method]response-outparam.send-informational: func(self: borrow<response-outparam>, status: u16,"
        " headers: own<headers>) -> result<_, error-code>"
    )
    def send_informational(guest: Guest, self: Outparam, status: int, headers: Fields) -> Any:
        # 101 changes the protocol, which a request of this world can not.
        if not 100 <= status <= 199 or status == 101:
            return Err(("HTTP-protocol-error", None))
        # A guest may hold an outparam and have answered through another: then it is too late, and nobody is told.
        if guest.conversation is not None and guest.response is None:
            guest.conversation.inform(ResponseHead(status, tuple(headers.items)))
        return DONE
