"""NestedAnswer: one call of a worker to another, from when it is sent until the callee has had its last word.

Its caller's host gets the head and the body as they come. An ending without a head is an answer too, with a status that
says whose fault it is, and the ending's name in ``everwarm-outcome``; an answer that breaks off is ``CallRefused``.

After the answer there is more: what the callee's guest still does, how all ended and what it cost. ``settle`` waits for
that, on the side; then what was not spent goes back, and the stage's spans go to the edge of the tree.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from msgspec.structs import replace

from actors.budget import Budget, Exceeded, Resource, Spent
from actors.calling_stage import LAST_WORD_S_MAX, CallingStage
from actors.connection import Connection, Frame, LinkBroken
from actors.exchange import Capability, Ended, Outcome, Request, Served, status_of
from actors.link import Answer, BodySource
from actors.stage import is_error, root_attributes
from actors.stage_calls import Call, Refused, stripped
from actors.stage_over import seen_of
from actors.stage_report import Call as StageCall
from actors.submission import spans_of
from isolates.conversation import BodyLost, ResponseHead
from isolates.egress import ErrorCode
from tracing.recorder import Recorder
from tracing.trace import Attr, Span, SpanName

OUTCOME_HEADER = "everwarm-outcome"

#: Finds version and place of a request, and sends it: ``Server``'s own way for any request.
Answering = Callable[[Request, BodySource, Recorder], Awaitable[tuple[Answer, Request | None, str]]]

#: What a caller gets for a callee's ending: whose fault it is, as far as a status can say. A limit is the callee's own
#: (it did too much), a full cluster passes, and what failed behind the caller is a bad gateway.
_STATUS = {
    Outcome.SCRIPT_NOT_FOUND: 404,
    Outcome.EXCEEDED_CPU: 429,
    Outcome.EXCEEDED_MEMORY: 429,
    Outcome.EXCEEDED_WALL_TIME: 429,
    Outcome.LOAD_SHED: 503,
    Outcome.KILL_SWITCH: 503,
}
_BAD_GATEWAY = 502
_BROKEN_OFF: ErrorCode = ("HTTP-response-incomplete", None)
_NOTHING = Spent()
#: After these, nobody can tell what was spent.
_UNTOLD = frozenset({Outcome.HOME_LOST, Outcome.CANCELED, Outcome.INTERNAL_ERROR})


def status_for_caller(outcome: Outcome) -> int:
    """The status of the page that stands for an ending without a head."""
    return _STATUS.get(outcome, _BAD_GATEWAY)


class CallRefused(Exception):
    """A fetch for a worker that is not made, or not to its end; the code is its guest's."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.why)
        self.code = refused.code


class NestedAnswer:
    """A callee's answer on its way to the host of its caller. Whoever opened it closes it, on every path."""

    def __init__(
        self,
        stage: CallingStage,
        call: Call,
        recorder: Recorder,
        span_id: str,
        *,
        over: "Callable[[NestedAnswer, Spent | None], None]",
        report: Callable[[str, list[Span]], None],
        told: Callable[[Request, Ended], None],
    ) -> None:
        """``recorder`` is the caller's, and ``span_id`` the callee's span below it. ``over`` is told once, after the
        last word, what the callee spent (None: nobody knows); ``report`` takes spans for the Server of that name,
        ``told`` how it ended."""
        self.stage = stage
        self._call = call
        self._parent = recorder.context.span_id
        self._span_id = span_id
        self._began_ns = time.time_ns()
        self._recorder = recorder
        recorder.context = recorder.context.child(span_id)
        self._tell_over = over
        self._report = report
        self._tell_ended = told
        self._served: Served | None = None
        self._request: Request
        self._answer: Answer
        self._home = ""
        self._is_answered = False
        #: This call as what it lends to its callee.
        self.capability: Capability | None = None
        self._subtree: asyncio.Future[Spent] = asyncio.get_running_loop().create_future()
        stage.began()

    async def begin(self, request: Request, answering: Answering, body: BodySource) -> tuple[Request, str] | None:
        """Send it. The request with its version, and its home, if a lease may be given for it."""
        self._request = request
        if request.report_traces is not None:
            self.stage.made[self._call.context.stage] = StageCall(request.report_traces.stage)
        self._answer, leased, self._home = await answering(request, body, self._recorder)
        return None if leased is None else (leased, self._home)

    def abandon(self) -> None:
        """It could not be sent, or its caller left before it was."""
        self._over(None)

    def more(self, what: Resource) -> Budget | Exceeded:
        """Its callee's share has too little of something."""
        return self.stage.calls.more(self._call, what)

    def told(self, spent: Spent) -> None:
        """Its callee's Server says what the subtree spent."""
        if not self._subtree.done():
            self._subtree.set_result(spent)

    def _over(self, spent: Spent | None) -> None:
        self.stage.over(self._call.key, spent)
        self.stage.settled(answered=self._is_answered)
        self._tell_over(self, spent)

    async def head(self) -> ResponseHead:
        """The head of the answer, or of the page that stands for an ending without one."""
        self._served = await self._answer.served()
        if self._served is not None:
            return ResponseHead(self._served.status, stripped(self._served.headers))
        ended = await self._answer.ended()
        return ResponseHead(
            status_for_caller(ended.outcome),
            ((OUTCOME_HEADER, ended.outcome.value.encode()), ("content-type", b"text/plain; charset=utf-8")),
        )

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body. ``CallRefused`` when it breaks off."""
        if self._served is None:
            ended = await self._answer.ended()
            yield status_of(ended.outcome).text.encode() + b"\n"
            return
        while (data := await self._answer.read()) is not None:
            yield data
        if not self._answer.whole:
            raise CallRefused(Refused(_BROKEN_OFF, "the callee's answer broke off"))

    def close(self) -> None:
        """The caller has all that it will read: what the callee does after its answer it may finish."""
        if not self._answer.whole:
            self._answer.cancel()  # nothing, when it ended without a head
        self._is_answered = True
        self.stage.answered()

    async def settle(self) -> None:
        """Wait for the callee's last word; pay, and report."""
        spent: Spent | None = None
        try:
            ended = await self._answer.ended()
            self._note(ended)
            self._tell_ended(self._request, ended)
            spent = _spent(ended)
            if ended.called and ended.outcome not in _UNTOLD:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LAST_WORD_S_MAX):
                        spent = await self._subtree
        finally:
            self._answer.cancel()  # nothing, when it is over
            self._over(spent)
        ended = replace(ended, home=self._home, hop=ended.server not in ("", self._recorder.server))
        served = None if self._served is None else replace(self._served, home=self._home)
        status = served.status if served is not None else status_for_caller(ended.outcome)
        attributes = root_attributes(self._request, served, ended, status)
        attributes[Attr.DEPTH] = len(self._call.context.layers)
        attributes[Attr.BINDING] = self._call.by
        spans = [span for report in ended.spans for span in spans_of(report)]
        self._recorder.span(
            SpanName.REQUEST, self._began_ns, time.time_ns(), attributes, span_id=self._span_id,
            parent=self._parent, error=is_error(ended.outcome),
        )  # fmt: skip
        self._report(self._request.edge, [*spans, *self._recorder.spans])

    def _note(self, ended: Ended) -> None:
        """How the call ended, for the tails that hear of its caller."""
        report = self._request.report_traces
        if report is not None:
            status = None if self._served is None else self._served.status
            ending, ran = seen_of(ended, self._request.head, status)
            self.stage.made[self._call.context.stage] = StageCall(report.stage, ending, ran)


class FramesBody:
    """A guest's request body as it comes on its connection to the way out."""

    def __init__(self, connection: Connection, complete: bool) -> None:
        self._connection = connection
        self._complete = complete

    async def read(self, bytes_max: int) -> bytes | None:
        while not self._complete:
            try:
                kind, payload = await self._connection.receive()
            except LinkBroken as gone:
                raise BodyLost from gone
            if kind is Frame.BODY and payload:
                return payload
            if kind is Frame.BODY_END:
                self._complete = True
            elif kind is not Frame.BODY:
                raise BodyLost
        return None


def _spent(ended: Ended) -> Spent | None:
    """What a callee's subtree used up; None when nobody can tell: it called others, or went away."""
    if ended.called or ended.outcome in _UNTOLD:
        return None
    if ended.outcome in (Outcome.SCRIPT_NOT_FOUND, Outcome.LOAD_SHED):
        return _NOTHING
    return Spent(cpu_us=int(ended.cpu_ms * 1_000), subrequests=ended.subrequests, invocations=1)
