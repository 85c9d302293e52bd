"""NestedCalls: carries out what guests of this machine ask of other workers. It lives in the Server's process.

A guest's fetch comes over the machine's way out (``egress.py``), which asks here first. A fetch that is for a worker
becomes a request like a client's: the same view, the same routing, here or at its home. What is different is that it
has a *context* (``context.py``), and that somebody other than a client gets its ending.

    host ── OUTGOING ──► EgressServer ── open ──► NestedCalls ── Server._answer ──► host here, or home
         ◄─ HEAD DATA ─                 ◄─ NestedAnswer ─

**Stages.** A stage that calls has a ``StageCalls`` here: its context and the books of its share. It is made by its
first call and put away when its host says that the request is over. A request from outside has no context yet; its
first call makes the root's. Most requests call nobody, and then nothing of this exists.

**Budget.** A share is a guess, and a stage whose share is used up asks: its Server calls the one of its caller
(``more_budget``), which gives out of its own, or asks further up. When a stage that called others is over, its Server
tells the caller's what the subtree spent (``spent``), because no answer's end can say so. ``Request.call`` is that call
as a capability: lent with the request, taken back when the callee has had its last word.

**Spans** of a callee are reported to the Server of the machine that got the tree's request from outside, where the rest
of the trace is. They go when the callee is over, which may be long after its caller (``nested_answer.py``).
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from actors.bindings import NOTHING_BOUND, is_internal
from actors.budget import Budget, Exceeded, Resource, Spent
from actors.calling_stage import CallingStage
from actors.capability import Exports, ExportsFull
from actors.connection import Connection, Frame
from actors.context import Context
from actors.context_wire import TooLarge, decode_context, encode_context
from actors.egress_frames import Asked
from actors.exchange import Capability, Ended, Outcome, ReportTraces, Request, RequestHead
from actors.handed_books import HandedCall
from actors.ledger import Ledger
from actors.nested_answer import Answering, CallRefused, FramesBody, NestedAnswer
from actors.peer import Calls, PeerFailed, PeerLost, Peers
from actors.side_work import SideWork
from actors.stage_calls import Aim, Call, Refused, StageCalls, World
from actors.submission import spans_of
from actors.wire import Undecodable
from actors.worker import Limits, Plan, Version, plain_limits
from tracing.recorder import Recorder
from tracing.trace import Role, Span, parse_traceparent
from tracing.wire import encode_spans

_log = logging.getLogger("everwarm.nested_calls")

_T = TypeVar("_T")

#: The version of a worker that has an id, also for a while after it was replaced; None when nobody knows it.
VersionOf = Callable[[str, str], Version | None]
#: The version of a worker that answers next; ``SCRIPT_NOT_FOUND`` when nothing is deployed.
Chosen = Callable[[str, bytes], Version | Outcome]

#: Another Server's answer about a budget: one that hangs must not hold a guest's call.
_ASK_S_MAX = 2.0
_NOTHING = Spent()


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
        report: Callable[[list[Span]], None],
        entropy: Callable[[int], bytes],
        peers: Peers,
        over: Callable[[Request, Ended], None],
        lease: Callable[[Version, Request, str], None] = lambda caller, callee, home: None,
    ) -> None:
        """``report`` takes spans, ``over`` hears how each call ended. ``lease`` hears of each call that this machine
        carries out: the caller's version, the request with its version, and its home."""
        self._lease = lease
        self._server = server
        self._answer = answer
        self._version_of = version_of
        self._chosen = chosen
        self._report = report
        self._entropy = entropy
        self._peers = peers
        self._tell_over = over
        self._stages: OrderedDict[str, CallingStage] = OrderedDict()
        self._lent: Exports[NestedAnswer] = Exports(f"{server}/server")
        self._side = SideWork(f"{server}/nested")
        self.counts = {"calls": 0, "refused": 0, "asked_for_more": 0, "shares_lost": 0}
        self.calls: Calls = {
            "more_budget": self.more_budget,
            "spent": self.spent,
            "report_spans": self.report_spans,
        }

    def statistics(self) -> dict[str, int]:
        """Counters, and the stages that called somebody and still run."""
        return {**self.counts, "stages": len(self._stages), "lent_out": len(self._lent)}

    def stage(self, handler: str) -> CallingStage | None:
        """The stage with this handler's span, if it called anybody."""
        return self._stages.get(handler)

    def over(self, stage: str, cpu_us: int) -> None:
        """A host tells that the request with this handler's span is over: it calls nobody any more."""
        over = self._stages.pop(stage, None)
        if over is not None and over.caller is not None:
            self._side.begin(self._tell_spent(over, over.caller, cpu_us))

    async def _tell_spent(self, over: CallingStage, caller: Capability | HandedCall, cpu_us: int) -> None:
        """Say what a stage and all below it spent, once those have had their last word, or soon."""
        await over.wait_idle()
        spent = over.calls.ledger.close(cpu_us)
        if isinstance(caller, HandedCall):
            caller.over(spent)
            return
        report = _SpentReport(caller, spent)
        await self._ask(caller.owner, "spent", _ENCODER.encode(report))

    async def spent(self, payload: bytes) -> bytes:
        """What became of a call's share; nobody waits for it when its caller has gone."""
        report = _SPENT.decode(payload)
        answer = self._lent.owned(report.call)
        if answer is not None:
            answer.told(report.spent)
        return b""

    def report_to(self, edge: str, spans: list[Span]) -> None:
        """Spans of a stage, for the Server where the tree's request came in."""
        if not spans:
            return  # its trace is not sampled
        if edge in ("", self._server):
            self._report(spans)
        else:
            self._side.begin(self._send_spans(f"{edge}/server", encode_spans(spans)))

    async def _send_spans(self, server: str, report: bytes) -> None:
        await self._ask(server, "report_spans", report)

    async def report_spans(self, payload: bytes) -> bytes:
        """A stage of a tree whose request came in here is over somewhere."""
        self._report(spans_of(payload))
        return b""

    async def more_budget(self, payload: bytes) -> bytes:
        """A callee's share has too little of something: a ``Budget`` on top, or nothing."""
        asked = _MORE.decode(payload)
        answer = self._lent.owned(asked.call)
        if answer is None:
            return b""
        extra = await self._afforded(answer.stage, lambda: answer.more(asked.what))
        return b"" if isinstance(extra, Exceeded) else _ENCODER.encode(extra)

    async def _afforded(self, stage: CallingStage, attempt: Callable[[], _T]) -> _T:
        """What ``attempt`` comes to with all that a stage may spend: what it has, what comes back of callees that have
        answered, what is on its way from its host, and what its caller gives on top."""
        result = attempt()
        if _lacks(result) is not None:
            await stage.wait_settled()
            result = attempt()
        lacks = _lacks(result)
        if lacks is not None and await self._has_more(stage, lacks):
            result = attempt()
        return result

    async def _has_more(self, stage: CallingStage, what: Resource) -> bool:
        """Ask a stage's caller for more of its share; whether there was any."""
        if stage.caller is None:
            return False
        self.counts["asked_for_more"] += 1
        if isinstance(stage.caller, HandedCall):
            caller = stage.caller
            extra = await self._afforded(caller.caller, lambda: caller.more(what))
            if isinstance(extra, Exceeded):
                return False
            stage.granted_more(extra)
            return True
        asked = _MoreAsked(stage.caller, what)
        answered = await self._ask(stage.caller.owner, "more_budget", _ENCODER.encode(asked))
        if not answered:
            return False
        stage.granted_more(_BUDGET.decode(answered))
        return True

    async def _ask(self, server: str, method: str, payload: bytes) -> bytes:
        """Ask the Server of another stage; nothing when it is away, or takes too long."""
        if server == f"{self._server}/server":
            return await self.calls[method](payload)
        try:
            async with asyncio.timeout(_ASK_S_MAX):
                return await (await self._peers.get(server)).call(method, payload)
        except (PeerLost, PeerFailed, TimeoutError) as away:
            _log.info("%s did not answer %s: %s", server, method, away or "it took too long")
            return b""

    async def stop(self) -> None:
        """Forget what is on the side."""
        await self._side.stop()

    async def aim(self, asked: Asked) -> "Aimed | CallingStage | None":
        """Whose a fetch is: a worker's, or the world's, and counted as such. Then it is the stage whose tree has places
        for its connection; None: it is alone in its tree. ``CallRefused``: nobody's."""
        stage = self._stage_of(asked)
        if stage is None:
            if is_internal(asked.head.authority):
                raise self._refusal(asked, Refused(("destination-not-found", None), "its version is bound to nothing"))
            return None
        aim = stage.calls.aim(asked.head.authority)
        if isinstance(aim, World):
            refused = await self._afforded(stage, stage.calls.out)
            if refused is not None:
                raise self._refusal(asked, refused)
            return stage
        if isinstance(aim, Refused):
            raise self._refusal(asked, aim)
        return Aimed(asked, stage, aim)

    @asynccontextmanager
    async def connected(self, stage: CallingStage, within_s: float) -> AsyncIterator[None]:
        """A place for a connection to the world among those of a stage's tree. ``TimeoutError`` when its turn does not
        come in time, ``CallRefused`` when too many wait."""
        async with stage.connected(within_s, lambda: self._has_more(stage, Resource.CONNECTIONS)) as exceeded:
            if exceeded is not None:
                self.counts["refused"] += 1
                raise CallRefused(Refused(exceeded.code, exceeded.text, exceeded.what))
            yield

    async def open(self, aimed: "Aimed", first: tuple[Frame, bytes] | None, rest: Connection) -> NestedAnswer:
        """Carry out a fetch that is for a worker. ``first`` is the first frame of its body, if it has come, ``rest``
        where the others come from. ``CallRefused`` says why not."""
        asked, stage, aim = aimed.asked, aimed.stage, aimed.aim
        deadline_s = None if asked.left_ms is None else _now_s() + asked.left_ms / 1_000
        recorder = Recorder.under(asked.traceparent, self._server, Role.SERVER, self._entropy)
        callee = recorder.new_id()
        version = self._chosen(aim.worker, asked.request_id.encode())
        limits = version.limits if isinstance(version, Version) else Limits.for_plan(Plan.FREE)
        call = await self._afforded(stage, lambda: stage.calls.call(aim, asked.head, callee, limits))
        if isinstance(call, Refused):
            raise self._refusal(asked, call)
        # Its caller's time is its own: a callee that is lost sight of does not outlive the tree.
        leaving = call.context.leaving(_now_s(), deadline_s)
        context = encode_context(leaving)
        if isinstance(context, TooLarge):
            stage.over(call.key, _NOTHING)
            raise self._refusal(asked, Refused(("HTTP-request-denied", None), "what its callers set is too large"))
        self.counts["calls"] += 1
        answer = NestedAnswer(
            stage, call, recorder, callee, over=self._take_back, report=self.report_to, told=self._tell_over
        )
        head = asked.head
        request = Request(
            asked.request_id,
            call.worker,
            RequestHead(head.method, head.scheme, head.authority, head.path, call.headers),
            recorder.context.traceparent(),
            limits=within(plain_limits(call.context.limits_of(limits)), leaving.left_ms),
            body_first=first[1] if first is not None and first[0] is Frame.BODY else b"",
            body_complete=first is not None and first[0] is Frame.BODY_END,
            context=context,
            call=self._lend(answer),
            edge=asked.edge or self._server,
            report_traces=_report_of(call, version),
        )
        try:
            leased = await answer.begin(request, self._answer, FramesBody(rest, request.body_complete))
            if leased is not None:
                self._lease(stage.calls.version, *leased)
        except BaseException:
            answer.abandon()
            raise
        return answer

    def _lend(self, answer: NestedAnswer) -> Capability | None:
        """The call as a capability; None when too much is lent: then its share is all that it gets."""
        try:
            answer.capability = self._lent.mint(answer)
        except ExportsFull:
            return None
        return answer.capability

    def _take_back(self, answer: NestedAnswer, spent: Spent | None) -> None:
        self.counts["shares_lost"] += spent is None
        if answer.capability is not None:
            self._lent.release(answer.capability)

    def _refusal(self, asked: Asked, refused: Refused) -> CallRefused:
        self.counts["refused"] += 1
        _log.info("a call of %s is refused: %s", asked.worker, refused.why)
        return CallRefused(refused)

    def _stage_of(self, asked: Asked) -> CallingStage | None:
        """The stage that asks; None for a client's request of a version that is bound to nothing, or not known here any
        more: its host counts what it fetches. Whoever was called by another may be guarded, and does not get out
        without its version."""
        if asked.books:
            return self._take_over(asked)
        trace = parse_traceparent(asked.traceparent)
        version = self._version_of(asked.worker, asked.version)
        if trace is None or version is None:
            if asked.context:
                raise self._refusal(asked, Refused(("internal-error", None), "its version is not known here any more"))
            return None
        if not asked.context and version.bindings == NOTHING_BOUND:
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
            if asked.report_traces is not None:
                context = replace(context, stage=asked.report_traces.stage.stage, report_traces=asked.report_traces.to)
        except (Undecodable, ValueError) as wrong:
            _log.error("a context of %s is none: %s", asked.worker, wrong)
            raise CallRefused(Refused(("internal-error", None), "its context was not understood")) from wrong
        begun = StageCalls.begin(version, context)
        if isinstance(begun, Exceeded):
            raise self._refusal(asked, Refused(begun.code, begun.text))
        return self._keep(trace.span_id, CallingStage(begun, asked.call))

    def _keep(self, handler: str, stage: CallingStage) -> CallingStage:
        self._stages[handler] = stage
        if len(self._stages) > self.STAGES_MAX:
            self._stages.popitem(last=False)
        return stage

    def _take_over(self, asked: Asked) -> CallingStage:
        """The stage that asks, whose host kept its books until now, or has some more for them."""
        stage: CallingStage | None = None
        for handed in asked.books:
            known = self._stages.get(handed.handler)
            if known is not None:
                known.granted_more(handed.left)
                if isinstance(known.caller, HandedCall):
                    known.caller.brought(handed.left)
                known.part_came(handed.number)
                stage = known
                continue
            version = self._version_of(handed.worker, handed.version)
            if version is None:
                raise self._refusal(asked, Refused(("internal-error", None), "its version is not known here any more"))
            try:
                context = decode_context(handed.context)
            except (Undecodable, ValueError) as wrong:
                _log.error("a context of %s is none: %s", handed.worker, wrong)
                raise CallRefused(Refused(("internal-error", None), "its context was not understood")) from wrong
            calls = StageCalls(version, context, Ledger.taken_over(handed.left))
            caller = None if stage is None else HandedCall(stage, calls, handed.left)
            stage = CallingStage(calls, caller)
            if not handed.over:
                self._keep(handed.handler, stage).part_came(handed.number)
        assert stage is not None, "there is one at least"
        return stage

    def close(self, answer: NestedAnswer) -> None:
        """The caller has all that it will read."""
        answer.close()
        self._side.begin(answer.settle())


def _report_of(call: Call, version: Version | Outcome) -> ReportTraces | None:
    """What a callee is in its tree, if a tail worker hears of the tree, or begins to with this callee."""
    to = call.context.report_traces
    if to is None and (isinstance(version, Outcome) or version.bindings.tail is None):
        return None
    return ReportTraces(call.context.as_stage(call.worker), to)


def within(limits: dict[str, int | None], left_ms: int | None) -> dict[str, int | None]:
    """A callee's limits in the time that is left."""
    wall_ms = limits["wall_ms"]
    if left_ms is None or (wall_ms is not None and wall_ms <= left_ms):
        return limits
    return limits | {"wall_ms": left_ms}


def _lacks(result: object) -> Resource | None:
    """What there was too little of for this result, if that is why."""
    if isinstance(result, Exceeded):
        return result.what
    return result.exceeded if isinstance(result, Refused) else None


def _now_s() -> float:
    return asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True)
class Aimed:
    """A fetch that is for a worker, not carried out yet."""

    asked: Asked
    stage: CallingStage
    aim: Aim


class _MoreAsked(msgspec.Struct, frozen=True):
    call: Capability
    what: Resource


class _SpentReport(msgspec.Struct, frozen=True):
    call: Capability
    spent: Spent


_ENCODER = msgspec.msgpack.Encoder()
_SPENT = msgspec.msgpack.Decoder(_SpentReport)
_MORE = msgspec.msgpack.Decoder(_MoreAsked)
_BUDGET = msgspec.msgpack.Decoder(Budget)
