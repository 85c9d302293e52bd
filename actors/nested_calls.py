"""NestedCalls: carries out what guests of this machine ask of other workers. It lives in the Server's process.

A guest's fetch comes over the machine's way out (``egress.py``), which asks here first. A fetch that is for a worker
becomes a request like a client's: the same view, the same routing, here or at its home. What is different is that it
has a *context* (``context.py``), and that somebody other than a client gets its ending.

    host ── OUTGOING ──► EgressServer ── open ──► NestedCalls ── Server._answer ──► host here, or home
         ◄─ HEAD DATA ─                 ◄─ NestedAnswer ─

**Stages.** A stage that calls has a ``StageCalls`` here: its context and the books of its share. It is made by its
first call and put away when its host says that the request is over. A request from outside has no context yet; its
first call makes the root's. Most requests call nobody, and then nothing of this exists.

**Endings.** An ending of a callee is an answer for its caller, with a status that says whose fault it is and the
ending's name in ``everwarm-outcome``; only the edge turns endings into the tree's. An answer that breaks off later is
``HTTP-response-incomplete``.

**Spans** of a callee are reported to the Server of the machine that got the tree's request from outside, where the rest
of the trace is. They go when the callee is over, which may be long after its caller.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

from actors.bindings import is_internal
from actors.budget import Budget, Exceeded, Spent
from actors.connection import Connection, Frame, LinkBroken
from actors.context import Context
from actors.context_wire import TooLarge, decode_context, encode_context
from actors.egress_frames import Asked
from actors.exchange import Ended, Outcome, Request, RequestHead, Served, status_of
from actors.link import Answer, BodySource
from actors.side_work import SideWork
from actors.stage import is_error, root_attributes
from actors.stage_calls import Aim, Call, Refused, StageCalls, World, stripped
from actors.submission import spans_of
from actors.wire import Undecodable
from actors.worker import Limits, Plan, Version, plain_limits
from isolates.conversation import BodyLost, ResponseHead
from isolates.egress import ErrorCode
from tracing.recorder import Recorder
from tracing.trace import Attr, Role, Span, SpanName, parse_traceparent

_log = logging.getLogger("everwarm.nested_calls")

OUTCOME_HEADER = "everwarm-outcome"

#: Finds version and place of a request, and sends it: ``Server``'s own way for any request.
Answering = Callable[[Request, BodySource, Recorder], Awaitable[tuple[Answer, Request | None, str]]]
#: The version of a worker that has an id, also for a while after it was replaced; None when nobody knows it.
VersionOf = Callable[[str, str], Version | None]
#: The version of a worker that answers next; ``SCRIPT_NOT_FOUND`` when nothing is deployed.
Chosen = Callable[[str, bytes], Version | Outcome]
#: Takes spans for the Server of that name.
Reporting = Callable[[str, list[Span]], None]

#: What a caller gets for a callee's ending: whose fault it is, as far as a status can say. A limit is the callee's own
#: (as an answer to too much), a full cluster passes, and what failed behind the caller is a bad gateway.
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


class NestedCalls:
    """What the guests of one machine ask of other workers."""

    #: Stages that have called somebody and still run. A host has 512 threads; what is beyond was never put away.
    STAGES_MAX = 8_192

    def __init__(
        self,
        server: str,
        *,
        answer: Answering,
        version_of: VersionOf,
        chosen: Chosen,
        report: Reporting,
        entropy: Callable[[int], bytes],
    ) -> None:
        self._server = server
        self._answer = answer
        self._version_of = version_of
        self._chosen = chosen
        self._report = report
        self._entropy = entropy
        self._stages: OrderedDict[str, StageCalls] = OrderedDict()
        self._side = SideWork(f"{server}/nested")
        self.counts = {"calls": 0, "refused": 0}

    def statistics(self) -> dict[str, int]:
        """Counters, and the stages that called somebody and still run."""
        return {**self.counts, "stages": len(self._stages)}

    def over(self, stage: str) -> None:
        """A host tells that the request with this handler's span is over: it calls nobody any more."""
        self._stages.pop(stage, None)

    async def stop(self) -> None:
        """Forget what is on the side."""
        await self._side.stop()

    def aim(self, asked: Asked) -> "Aimed | None":
        """Whose a fetch is; None: the world's, and counted as such. ``CallRefused``: nobody's."""
        calls = self._stage_of(asked)
        if calls is None:
            if is_internal(asked.head.authority):
                raise self._refusal(asked, Refused(("destination-not-found", None), "its version is bound to nothing"))
            return None
        aim = calls.aim(asked.head.authority)
        if isinstance(aim, World):
            refused = calls.out()
            if refused is not None:
                raise self._refusal(asked, refused)
            return None
        if isinstance(aim, Refused):
            raise self._refusal(asked, aim)
        return Aimed(asked, calls, aim)

    async def open(self, aimed: "Aimed", first: tuple[Frame, bytes] | None, rest: Connection) -> "NestedAnswer":
        """Carry out a fetch that is for a worker. ``first`` is the first frame of its body, if it has come, ``rest``
        where the others come from. ``CallRefused`` says why not."""
        asked, calls, aim = aimed.asked, aimed.calls, aimed.aim
        recorder = Recorder.under(asked.traceparent, self._server, Role.SERVER, self._entropy)
        stage = recorder.new_id()
        version = self._chosen(aim.worker, asked.request_id.encode())
        limits = version.limits if isinstance(version, Version) else Limits.for_plan(Plan.FREE)
        call = calls.call(aim, asked.head, stage, limits)
        if isinstance(call, Refused):
            raise self._refusal(asked, call)
        context = encode_context(call.context)
        if isinstance(context, TooLarge):
            calls.over(call, _NOTHING)
            raise self._refusal(asked, Refused(("HTTP-request-denied", None), "what its callers set is too large"))
        self.counts["calls"] += 1
        parent = recorder.context.span_id
        recorder.context = recorder.context.child(stage)
        head = asked.head
        request = Request(
            asked.request_id,
            call.worker,
            RequestHead(head.method, head.scheme, head.authority, head.path, call.headers),
            recorder.context.traceparent(),
            limits=plain_limits(call.context.limits_of(limits)),
            body_first=first[1] if first is not None and first[0] is Frame.BODY else b"",
            body_complete=first is not None and first[0] is Frame.BODY_END,
            context=context,
            edge=asked.edge or self._server,
        )
        began = _Began(time.time_ns(), parent, stage, len(call.context.layers))
        try:
            answer, _, home = await self._answer(request, _FramesBody(rest, request.body_complete), recorder)
        except BaseException:
            calls.over(call, None)
            raise
        return NestedAnswer(self, calls, call, request, recorder, began, answer, home)

    def _refusal(self, asked: Asked, refused: Refused) -> "CallRefused":
        self.counts["refused"] += 1
        _log.info("a call of %s is refused: %s", asked.worker, refused.why)
        return CallRefused(refused)

    def _stage_of(self, asked: Asked) -> StageCalls | None:
        """The stage that asks; None for one of a version that is not known here any more: it is bound to nothing."""
        trace = parse_traceparent(asked.traceparent)
        version = self._version_of(asked.worker, asked.version)
        if trace is None or version is None:
            return None
        known = self._stages.get(trace.span_id)
        if known is not None:
            return known
        try:
            context = (
                decode_context(asked.context)
                if asked.context
                else Context(trace.span_id, Budget.of(version.limits), traceparent=asked.traceparent)
            )
        except (Undecodable, ValueError) as wrong:
            _log.error("a context of %s is none: %s", asked.worker, wrong)
            raise CallRefused(Refused(("internal-error", None), "its context was not understood")) from wrong
        begun = StageCalls.begin(version, context)
        if isinstance(begun, Exceeded):
            raise self._refusal(asked, Refused(begun.code, begun.text))
        self._stages[trace.span_id] = begun
        if len(self._stages) > self.STAGES_MAX:
            self._stages.popitem(last=False)
        return begun

    def finish(self, answer: "NestedAnswer") -> None:
        """Wait, on the side, for the last word on a callee whose answer is over."""
        self._side.begin(answer.settle())

    def report(self, edge: str, spans: list[Span]) -> None:
        """Tell the Server at the tree's edge of a callee's spans."""
        self._report(edge, spans)


class CallRefused(Exception):
    """A fetch for a worker that is not made; the code is its guest's."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.why)
        self.code = refused.code


@dataclass(frozen=True, slots=True)
class Aimed:
    """A fetch that is for a worker, not carried out yet."""

    asked: Asked
    calls: StageCalls
    aim: Aim


class _Began:
    """When a call began, and where it hangs in its trace."""

    __slots__ = ("at_ns", "depth", "parent", "stage")

    def __init__(self, at_ns: int, parent: str, stage: str, depth: int) -> None:
        self.at_ns = at_ns
        self.parent = parent
        self.stage = stage
        self.depth = depth


class NestedAnswer:
    """A callee's answer on its way to the host of its caller. Whoever opened it closes it, on every path."""

    def __init__(
        self,
        nested: NestedCalls,
        calls: StageCalls,
        call: Call,
        request: Request,
        recorder: Recorder,
        began: _Began,
        answer: Answer,
        home: str,
    ) -> None:
        self._nested = nested
        self._calls = calls
        self._call = call
        self._request = request
        self._recorder = recorder
        self._began = began
        self._answer = answer
        self._home = home
        self._served: Served | None = None
        self._settled = False

    async def head(self) -> ResponseHead:
        """The head of the answer, or of the page that stands for an ending without one."""
        self._served = await self._answer.served()
        if self._served is not None:
            return ResponseHead(self._served.status, stripped(self._served.headers))
        ended = await self._answer.ended()
        status = _STATUS.get(ended.outcome, _BAD_GATEWAY)
        return ResponseHead(
            status, ((OUTCOME_HEADER, ended.outcome.value.encode()), ("content-type", b"text/plain; charset=utf-8"))
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
        if not self._answer.whole and self._served is not None:
            self._answer.cancel()
        self._nested.finish(self)

    async def settle(self) -> None:
        """Wait for the callee's last word; pay, and report."""
        try:
            ended = await self._answer.ended()
        finally:
            if not self._settled:
                self._settled = True
                self._answer.cancel()  # nothing, when it is over
        self._calls.over(self._call, _spent(ended))
        ended = replace(ended, home=self._home, hop=ended.server not in ("", self._recorder.server))
        served = None if self._served is None else replace(self._served, home=self._home)
        status = served.status if served is not None else _STATUS.get(ended.outcome, _BAD_GATEWAY)
        attributes = root_attributes(self._request, served, ended, status)
        attributes[Attr.DEPTH] = self._began.depth
        attributes[Attr.BINDING] = self._call.by
        spans = [span for report in ended.spans for span in spans_of(report)]
        self._recorder.span(
            SpanName.REQUEST, self._began.at_ns, time.time_ns(), attributes, span_id=self._began.stage,
            parent=self._began.parent, error=is_error(ended.outcome),
        )  # fmt: skip
        self._nested.report(self._request.edge, [*spans, *self._recorder.spans])


class _FramesBody:
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
    if ended.called or ended.outcome in (Outcome.HOME_LOST, Outcome.CANCELED, Outcome.INTERNAL_ERROR):
        return None
    if ended.outcome in (Outcome.SCRIPT_NOT_FOUND, Outcome.LOAD_SHED):
        return _NOTHING
    return Spent(cpu_us=int(ended.cpu_ms * 1_000), subrequests=ended.subrequests, invocations=1)


_NOTHING = Spent()
