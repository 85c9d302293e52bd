"""One stage of a request tree whose books its host keeps, and the calls that it makes within it. See ``inner_calls``.

    root ── books begun with its first call, or not at all if that is a ``Plan`` and the only one
      └─ Callee ── its stage ── ...                     one lock for all of a tree: guests' threads call, others settle

A stage is over when its guest is and all that it called; then its caller gets back what it did not spend.
"""

import threading
import time
from typing import TYPE_CHECKING

from actors.bindings import NOTHING_BOUND
from actors.budget import Budget, Exceeded, Resource, Spent
from actors.context import Context
from actors.context_wire import TooLarge, encode_context
from actors.exchange import Ended, Outcome, Request, RequestHead, Served, StartType
from actors.handed_books import Handed
from actors.inner_call import InnerCall, InnerOutgoing
from actors.inner_leases import InnerLease, Plan
from actors.isolate_desk import Taken
from actors.nested_answer import status_for_caller
from actors.nested_calls import within
from actors.stage import is_error, root_attributes
from actors.stage_calls import Aim, Call, Refused, StageCalls, stripped
from actors.worker import Version, plain_limits
from isolates.conversation import FieldItems
from isolates.egress import ErrorCode, OutgoingHead
from tracing.recorder import Recorder
from tracing.trace import Attr, Role, Span, SpanName

if TYPE_CHECKING:
    from actors.inner_calls import InnerCalls

#: The longest that a guest waits for what comes back of callees that have answered and still run.
_LAST_WORD_S_MAX = 0.1


class InnerStage:
    """One stage of a tree whose books are here, or may be. Its guest's thread opens; others settle."""

    def __init__(
        self,
        inner: "InnerCalls",
        request: Request,
        handler: str,
        traceparent: str,
        *,
        caller: "tuple[InnerStage, Callee] | None" = None,
        version: Version | None = None,
    ) -> None:
        self._inner = inner
        self._request = request
        self.handler = handler
        self.traceparent = traceparent
        self._caller = caller
        self._version = version
        self._books: StageCalls | None = None
        self._root: InnerStage = self if caller is None else caller[0]._root
        self._lock: threading.Lock = threading.Lock() if caller is None else caller[0]._lock
        #: Whether all that it asks for goes to the Server: that has its books, or it has none here.
        self._by_server = caller is None and bool(request.context or request.report_traces)
        self._settled: threading.Condition | None = None  # made by who waits for callees to be settled
        self._out: set[Callee] = set()
        self._unbooked: Callee | None = None
        self._used_us: int | None = None  # when its guest is over
        self._spans: list[Span] = []
        self._is_told = False  # the root's ending is on its way
        #: When its request has to be over, on the monotonic clock; None: there is no such time.
        self.deadline_s: float | None = None
        self._handings = 0
        #: Whether it called anybody here.
        self.called = False
        #: Of a root: whether something below it is worth a trace, whatever becomes of itself.
        self.is_remarkable = False

    @property
    def handed(self) -> bool:
        """Whether the Server has its books."""
        return self._handings > 0

    @property
    def has_others(self) -> bool:
        """Whether it is not the only stage of its tree in this host."""
        return self.called or self._caller is not None

    # -------------------------------------------------------------------------------------------- its guest's thread

    def open(self, head: OutgoingHead) -> InnerOutgoing | ErrorCode | None:
        """Carry out a fetch. None: it is the Server's to carry out, with what ``hand_over`` gives."""
        if self._by_server:
            return None
        inner, house = self._inner, self._inner.house
        with self._lock:
            plan: Plan | None = None
            if self._books is None and self._caller is None and not self.called:
                plan = inner.leases.plan(self._request.version, head.authority)
            if plan is not None:
                aim, lease = plan.aim, plan.lease
            else:
                books = self._begun()
                if not isinstance(books, StageCalls):
                    return books
                found = books.aim(head.authority)
                leased = inner.leases.lease(found.worker) if isinstance(found, Aim) else None
                if leased is None:
                    return None
                assert isinstance(found, Aim)
                aim, lease = found, leased
            if not inner.begins(self._request.worker):
                return None
            taken: Taken | None = None
            called: InnerOutgoing | None = None
            try:
                taken = inner.desk.take_warm(lease.version, at_home=lease.at_home)
                if taken is not None:
                    recorder = Recorder.under(self.traceparent, house.server, Role.ISOLATE_HOST, inner.ids)
                    callee = Callee(recorder.new_id(), aim, head, lease)
                    if plan is not None:
                        self._version = plan.version
                        self._unbooked = callee
                        called = self._call(callee, plan.limits, stripped(head.headers), taken, recorder)
                    elif self._book(callee):
                        assert callee.call is not None
                        limits = plain_limits(callee.call.context.limits_of(lease.version.limits))
                        called = self._call(callee, limits, callee.call.headers, taken, recorder)
            finally:
                if called is None:
                    inner.ended(self._request.worker)
                    if taken is not None:
                        inner.desk.put_back(taken, lease.version)
            return called

    def _begun(self) -> StageCalls | ErrorCode | None:
        """Its books. None when it has none here; a code when its tree has nothing left for it. Under the lock."""
        if self._books is not None:
            return self._books
        version = self._version or self._inner.leases.version(self._request.version)
        if version is None or (self._caller is None and version.bindings == NOTHING_BOUND):
            return None
        if self._caller is None:
            context = Context(self.handler, Budget.of(version.limits), traceparent=self.traceparent)
        else:
            caller, as_callee = self._caller
            caller._begun()
            assert as_callee.call is not None, "its caller has books, and in them this call"
            context = as_callee.call.context
        begun = StageCalls.begin(version, context)
        if isinstance(begun, Exceeded):
            return begun.code
        self._books = begun
        callee, self._unbooked = self._unbooked, None
        if callee is not None:
            booked = self._book(callee)
            assert booked, "it was planned like this"
            if callee.spent is not None:
                assert callee.call is not None
                begun.ledger.settle(callee.call.key, callee.spent)
        return begun

    def _book(self, callee: "Callee") -> bool:
        """Enter a call into the books; False when they do not suffice. Under the lock."""
        books, limits = self._books, callee.lease.version.limits
        assert books is not None
        call = books.call(callee.aim, callee.head, callee.stage, limits)
        if isinstance(call, Refused) and call.exceeded and self._wait_settled():
            call = books.call(callee.aim, callee.head, callee.stage, limits)
        if isinstance(call, Refused) and call.exceeded and self._has_more(call.exceeded):
            call = books.call(callee.aim, callee.head, callee.stage, limits)
        if isinstance(call, Refused):
            return False
        if isinstance(encode_context(call.context), TooLarge):
            books.ledger.refuse(call.key)
            return False
        callee.call = call
        return True

    def _call(
        self,
        callee: "Callee",
        limits: dict[str, int | None],
        headers: FieldItems,
        taken: Taken,
        recorder: Recorder,
    ) -> InnerOutgoing | None:
        """Call a worker on the isolate that was taken for it. None when no thread is free. Under the lock."""
        inner, asking, head, lease = self._inner, self._request, callee.head, callee.lease
        left_ms: int | None = None
        if self.deadline_s is not None:
            left_ms = max(0, int((self.deadline_s - time.monotonic()) * 1_000))
        version = lease.version
        request = Request(
            asking.request_id,
            version.worker,
            RequestHead(head.method, head.scheme, head.authority, head.path, headers),
            recorder.context.child(callee.stage).traceparent(),
            version=version.version_id,
            component_digest=version.component_digest,
            plan=version.plan.value,
            limits=within(limits, left_ms),
            has_variables=version.bindings.has_variables,
            reuse=version.reuse,
            at_home=lease.at_home,
            edge=asking.edge,
        )
        made = callee.made = InnerCall(request.head, inner.bells)
        self._out.add(callee)
        if not inner.run(_Run(self, callee, request, taken, recorder).run):
            self._out.discard(callee)
            self._unbooked = None
            if callee.call is not None and self._books is not None:
                self._books.ledger.refuse(callee.call.key)
            made.let_go()
            made.let_go()
            return None
        self.called = True
        inner.counts["calls"] += 1
        return made.outgoing

    def _wait_settled(self) -> bool:
        """Until those callees are settled whose answers are over; whether there were any. Under the lock."""
        self._settled = self._settled or threading.Condition(self._lock)
        until_s = time.monotonic() + _LAST_WORD_S_MAX
        waited = False
        while any(callee.made.is_answered for callee in self._out):
            waited = True
            if not self._settled.wait(until_s - time.monotonic()):
                break
        return waited

    def _has_more(self, what: Resource) -> bool:
        """Ask its caller for more of its share, as far as that has its books here. Under the lock."""
        if self._caller is None or self._books is None or self.handed:
            return False
        stage, call = self._caller[0], self._caller[1].call
        assert stage._books is not None
        assert call is not None
        extra = stage._books.more(call, what)
        if isinstance(extra, Exceeded) and stage._has_more(what):
            extra = stage._books.more(call, what)
        if isinstance(extra, Exceeded):
            return False
        self._books.ledger.granted_more(extra)
        return True

    def hand_over(self) -> tuple[Handed, ...]:
        """What goes along with a fetch that the Server carries out: all that its books and those above it have left,
        the root first. Nothing, when there are none."""
        with self._lock:
            self._by_server = True
            if self._caller is None and not self.called:
                return ()  # nothing was done with them: the Server begins them anew
            begun = self._begun()
            assert isinstance(begun, StageCalls), "it has called, or was"
            self._inner.counts["handed_over"] += not self.handed
            chain: list[Handed] = []
            stage: InnerStage | None = self
            while stage is not None:
                chain.append(stage._handed())
                stage = stage._caller[0] if stage._caller is not None else None
            return tuple(reversed(chain))

    def _handed(self) -> Handed:
        books, request = self._books, self._request
        assert books is not None
        left = books.ledger.hand_over()
        if self._caller is not None:
            stage, call = self._caller[0], self._caller[1].call
            assert stage._books is not None
            assert call is not None
            stage._books.ledger.handed_over(call.key, left)
        context = encode_context(books.context)
        assert isinstance(context, bytes), "it was checked when the call was made, and a root's is small"
        self._handings += 1
        is_over = self._used_us is not None
        return Handed(self.handler, request.worker, request.version, context, left, self._handings, is_over)

    # ---------------------------------------------------------------------------------------------------- its end

    def over(self, cpu_us: int) -> None:
        """Its guest is over, and used so much. Before its caller hears of that, which may want what comes back. Safe
        to call again."""
        if self._caller is None and not self.called:
            self._used_us = cpu_us  # most requests: nobody is below it, and nobody above to be told
            return
        with self._lock:
            if self._used_us is None:
                self._used_us = cpu_us
                self._close()

    def _settle(self, callee: "Callee", spent: Spent) -> None:
        """A callee is over. Under the lock."""
        callee.spent = spent
        if callee.call is not None:
            assert self._books is not None
            self._books.ledger.settle(callee.call.key, spent)
        self._out.discard(callee)
        if self._settled is not None:
            self._settled.notify_all()
        self._close()

    def _close(self) -> None:
        """Give back what it did not spend, when it and all that it called are over. Under the lock."""
        if self._used_us is None or self._out or self._caller is None:
            return
        spent = Spent(self._used_us, invocations=1) if self._books is None else self._books.ledger.close(self._used_us)
        self._caller[0]._settle(self._caller[1], spent)

    def tell(self, spans: list[Span], *, remarkable: bool) -> None:
        """Spans of a callee, which go with the root's ending, or after it by themselves."""
        root = self._root
        with root._lock:
            root.is_remarkable = root.is_remarkable or remarkable
            if not root._is_told:
                root._spans += spans
                return
        self._inner.house.tell_spans(self._request.edge, spans)

    def take_spans(self) -> list[Span]:
        """Of a root: what its callees have told until now; from here on they tell by themselves."""
        with self._lock:
            self._is_told = True
            return self._spans


class Callee:
    """One call as its caller's stage knows it. ``stage``: its id."""

    __slots__ = ("aim", "call", "head", "lease", "made", "spent", "stage")

    def __init__(self, stage: str, aim: Aim, head: OutgoingHead, lease: InnerLease) -> None:
        self.stage = stage
        self.aim = aim
        self.head = head
        self.lease = lease
        self.made: InnerCall
        #: In its caller's books, if that has begun them.
        self.call: Call | None = None
        self.spent: Spent | None = None


class _Run:
    """One call on its thread."""

    __slots__ = ("_began_ns", "_callee", "_caller", "_recorder", "_request", "_taken")

    def __init__(self, caller: InnerStage, callee: Callee, request: Request, taken: Taken, recorder: Recorder) -> None:
        self._caller = caller
        self._callee = callee
        self._request = request
        self._taken = taken
        self._recorder = recorder
        self._began_ns = time.time_ns()

    def run(self) -> None:
        """Run it, and say all that is to be said of it."""
        caller, callee, request, made = self._caller, self._callee, self._request, self._callee.made
        inner = caller._inner
        house = inner.house
        below = self._recorder.context.child(callee.stage)
        recorder = Recorder(below, house.server, Role.ISOLATE_HOST, inner.ids)
        handler = recorder.new_id()
        stage = InnerStage(
            inner, request, handler, below.child(handler).traceparent(),
            caller=(caller, callee), version=callee.lease.version,
        )  # fmt: skip
        ended = Ended(Outcome.INTERNAL_ERROR)
        try:
            ended = house.run_inner(made.conversation, request, self._taken, recorder, stage)
        finally:
            made.conversation.pass_on()
            inner.ended(caller._request.worker)
            stage.over(0)  # nothing, when its host has said so
            made.end(ended)
        if recorder.context.sampled:
            self._record(ended)
            remarkable = ended.outcome is not Outcome.OK or self._taken.start_type is not StartType.WARM
            caller.tell([*recorder.spans, *self._recorder.spans], remarkable=remarkable)

    def _record(self, ended: Ended) -> None:
        request, callee, recorder = self._request, self._callee, self._recorder
        conversation = callee.made.conversation
        served: Served | None = None
        status = status_for_caller(ended.outcome)
        if conversation.status is not None:
            status = conversation.status
            served = Served(
                status, (), ended.server, ended.start_type, ended.queue_ms, ended.cpu_ms, home=callee.lease.home
            )
        attributes = root_attributes(request, served, ended, status)
        # Of a call that is in no books its caller is a root.
        attributes[Attr.DEPTH] = 1 if callee.call is None else len(callee.call.context.layers)
        attributes[Attr.BINDING] = callee.aim.by
        recorder.span(
            SpanName.REQUEST, self._began_ns, time.time_ns(), attributes, span_id=callee.stage,
            error=is_error(ended.outcome),
        )  # fmt: skip
