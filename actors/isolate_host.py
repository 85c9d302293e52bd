"""IsolateHost: a process of isolates. It listens on a Unix socket, with a thread per connection.

A thread reads a request, asks ``residency`` for an isolate, runs the guest on itself, and says how it ended.
``residency`` is asked under one lock and decides; starting, running and closing isolates happens outside the lock.
A thread that must wait for an isolate waits on its own ticket.

Nothing a guest does ends this process on purpose; when the engine itself crashes, it is this process alone.
"""

import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from actors.connection import Frame, LinkBroken, frame
from actors.crash_reports import Quarantine
from actors.crash_table import CrashTable, Phase
from actors.decision import Close, Decision, Fail, Shed, Start, Use
from actors.egress_line import HostEgress
from actors.egress_policy import loops_left
from actors.exchange import ColdCause, Ended, Load, Request, Served, StartType
from actors.handover import first_request
from actors.host_choice import says_started
from actors.host_conversation import HostConversation, LinkSocket
from actors.host_counts import HostCounts
from actors.host_gauge import Filled, GaugeLimits, HostGauge
from actors.host_news import HostNews
from actors.inner_call import InnerConversation
from actors.inner_calls import InnerCalls
from actors.inner_stage import InnerStage, Taken
from actors.lease_line import LeaseLine
from actors.living import Living
from actors.mapped_code import MappedCodeLimits
from actors.past_starts import Cost
from actors.residency import Residency, ResidencyLimits
from actors.stage_over import ending_of
from actors.stage_report import Line
from actors.starts_ahead import Recipe, StartsAhead
from actors.wire import ENDED, REQUEST, Undecodable
from actors.worker import Version
from isolates.conversation import ConversationLost, ResponseHead
from isolates.isolate import Finished, StartFailed
from isolates.limits import Verdict
from isolates.outcome import Outcome
from tracing.recorder import Recorder
from tracing.trace import Attr, AttributeValue, Role, Span, SpanEvent, SpanName
from tracing.wire import encode_spans

_log = logging.getLogger("everwarm.host")

_UNMEASURED = Cost(0.0, 0)
#: Until another connection is taken after one that could not be.
_ACCEPT_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class HostLimits:
    """Bounds of one host process."""

    #: A connection is a thread. Enough for hundreds of guests that wait for a slow origin; a thread that waits costs
    #: its touched stack, some tens of kilobytes.
    connections_max: int = 512
    #: Wasm frames run on the thread's stack (512 KiB at most), Python's host functions on top of them.
    thread_stack_bytes: int = 2 << 20
    #: The longest a request waits in line for an isolate.
    queue_s_max: float = 10.0
    #: Threads that start isolates ahead of requests. Two: a prewarm must not take the cores from what runs.
    prewarm_threads: int = 2
    prewarm_queue_max: int = 256
    #: How often the host measures its memory, and looks for isolates that were unused for too long.
    pressure_every_s: float = 0.5
    #: How far ahead a rate of requests tells anything: the horizon of the slower of the two averages in ``heat``.
    foreseen_s: float = 600.0
    mapped_code: MappedCodeLimits = field(default_factory=MappedCodeLimits)
    gauge: GaugeLimits = field(default_factory=GaugeLimits)


class _Ticket:
    """One request's place in line; it gets one decision."""

    __slots__ = ("_given", "decision")

    def __init__(self) -> None:
        self._given = threading.Event()
        self.decision: Use | Start | Fail | Shed | None = None

    def give(self, decision: Use | Start | Fail | Shed) -> None:
        self.decision = decision
        self._given.set()

    def wait(self, timeout_s: float) -> bool:
        return self._given.wait(timeout_s)


class IsolateHost:
    """One process of isolates."""

    def __init__(
        self,
        name: str,
        socket_path: Path,
        code_directory: Path,
        *,
        server: str,
        tell_server: Callable[[Frame, bytes], None],
        egress_socket: Path | None = None,
        server_socket: Path | None = None,
        residency_limits: ResidencyLimits | None = None,
        limits: HostLimits | None = None,
        table: CrashTable | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        """``egress_socket``: where the machine's way out listens; without one guests have none. ``server_socket``: of
        the Server, asked for what guests find in their environment and in stores, and for leases of calls between this
        host's guests. ``table``: where it is written who runs, for whoever finds this process dead. ``quarantine``:
        who is kept out."""
        self.name = name
        self.server = server
        self._path = socket_path
        self._news = HostNews(server, tell_server)
        self._egress_socket = egress_socket
        self._limits = limits or HostLimits()
        self._living = Living(code_directory, self._limits.mapped_code, server_socket)
        # Ids of spans need to be different, not secret; the system's source costs a system call and the GIL.
        self._ids = random.Random(secrets.randbits(128)).randbytes
        self._lock = threading.Lock()
        self._telling = threading.Lock()  # taken before the other one
        self._residency = Residency(residency_limits or ResidencyLimits())
        self._gauge = HostGauge(len(os.sched_getaffinity(0)), self._limits.gauge)
        self._links: set[LinkSocket] = set()
        self._running = 0
        self._queue_ms = 0.0
        self._memory_bytes = 0
        self._ahead = StartsAhead(
            self._start_ahead, threads=self._limits.prewarm_threads, prewarms_max=self._limits.prewarm_queue_max
        )
        self._counts = HostCounts()
        self._inner = InnerCalls(self, self._ids)
        self._leases = None if server_socket is None else LeaseLine(server_socket, socket_path, self._inner.leases)
        self._asked: dict[str, tuple[int, float]] = {}  # by worker, since the last report of it
        self._table = table
        self._quarantine = quarantine
        self._listener: socket.socket | None = None
        self._stopping = False

    # -------------------------------------------------------------------------------------------------- lifecycle

    def start(self) -> str:
        """Listen; returns the socket's path."""
        threading.stack_size(self._limits.thread_stack_bytes)
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        os.chmod(self._path, 0o600)
        self._listener.listen(128)
        threading.Thread(target=self._accept, name="accept", daemon=True).start()
        threading.Thread(target=self._watch_memory, name="memory", daemon=True).start()
        self._ahead.begin()
        if self._leases is not None:
            self._leases.begin()
        return str(self._path)

    def stop(self) -> None:
        """Stop listening and close all connections; guests that run see their client gone."""
        self._stopping = True
        if self._listener is not None:
            # Closing alone would leave the thread in accept, and the socket open for one more client.
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self._ahead.stop()
        if self._leases is not None:
            self._leases.stop()
        self._inner.stop()
        with self._lock:
            links = list(self._links)
        for link in links:
            with suppress(OSError):  # its client was faster
                link.socket.shutdown(socket.SHUT_RDWR)
        if self._table is not None:
            self._table.remove()

    def statistics(self) -> dict[str, object]:
        """Counters and the state of the house, for operators and tests."""
        inner = self._inner.statistics()
        with self._lock:
            return {
                "inner_calls": inner,
                "host": self.name,
                "pid": os.getpid(),
                "residency": repr(self._residency),
                "isolates": len(self._residency),
                "isolates_max": self._residency.limits.isolates_max,
                "states": self._residency.states(),
                "memory_bytes": self._memory_bytes,
                "memory_bytes_max": self._residency.limits.memory_bytes_max,
                "starts": {t.value: n for t, n in self._residency.starts.items() if n},
                "cold_starts": {c.value: n for c, n in self._residency.cold_starts.items() if n},
                "spares": self._residency.spares,
                "used_up": self._residency.used_up,
                "expired": self._residency.expired,
                "wasted": {t.value: n for t, n in self._residency.wasted.items() if n},
                "prewarms_declined": self._residency.prewarms_declined,
                "code": self._living.code_statistics(),
                "evictions": self._residency.evictions,
                "running": self._running,
                "queued": self._residency.queued,
                **self._counts.plain(),
                "connections": len(self._links),
                "warm_versions": sorted(self._residency.warm_versions()),
                "quarantined": [] if self._quarantine is None else self._quarantine.versions,
            }

    def load(self) -> Load:
        """How busy this host is."""
        with self._lock:
            return self._load()

    def drop_version(self, version: str) -> None:
        """A version is no longer deployed: let its isolates go."""
        with self._lock:
            decisions = self._residency.drop(version, time.monotonic())
        self._carry_out(decisions)

    # ---------------------------------------------------------------------------------------------------- threads

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._stopping:
            try:
                connected, _ = self._listener.accept()
            except OSError as fault:
                if self._stopping:
                    return
                # Out of file descriptors, most likely: guests that are connected to much give some back.
                _log.error("no connection can be taken: %s", fault)
                time.sleep(_ACCEPT_AGAIN_S)
                continue
            if len(self._links) >= self._limits.connections_max:
                connected.close()
                continue
            link = LinkSocket(connected)
            with self._lock:
                self._links.add(link)
            threading.Thread(target=self._serve_link, args=(link,), name="link", daemon=True).start()

    def _serve_link(self, link: LinkSocket) -> None:
        try:
            while True:
                received = link.receive(None)
                if received is None:
                    continue
                kind, payload = received
                if kind is Frame.REQUEST:
                    self._serve(link, REQUEST.decode(payload))
                elif kind in (Frame.PREWARM, Frame.PRELOAD):
                    self.prewarm(
                        REQUEST.decode(payload), StartType.PREWARM if kind is Frame.PREWARM else StartType.PRELOAD
                    )
                elif kind is Frame.NOTICE:
                    self.drop_version(payload.decode())
                elif kind is Frame.LIVE:
                    self._news.watched(payload)
                # Anything else is the body that a request pulled and ended without; it is before the next request.
        except (LinkBroken, ConversationLost):
            pass  # the client went away, which is how a link ends
        except Undecodable as wrong:
            _log.error("a link sent nonsense: %s", wrong)
        finally:
            with self._lock:
                self._links.discard(link)
            link.close()

    def prewarm(self, request: Request, start_type: StartType = StartType.PREWARM) -> None:
        """A request for this version is likely. Returns at once; over the bound it is forgotten. The Server hears of
        it in any case: that it is warm, that it is cold, or that nothing was started for it.

        The decision is made here and the start on another thread: a request that comes while it is still to be done
        waits for it, and does not start an isolate of its own.
        """
        decisions: list[Decision] = []
        with self._lock:
            if self._ahead.has_room and not self._keeps_out(request.version):
                decisions = self._residency.prewarm(
                    request.version, start_type, ColdCause(request.cold_cause), time.monotonic(), request.reuse,
                    at_home=request.at_home, expected=self._expected(request),
                )  # fmt: skip
        if not decisions:
            self._news.unstarted(request.version)
        self._carry_out(decisions, Recipe.of(request))

    def _expected(self, request: Request) -> int:
        """How many requests like this one will come while an isolate lives here. Under the lock."""
        residence_s = min(self._residency.residence_s(time.monotonic()), self._limits.foreseen_s)
        return int(request.rate_per_s * residence_s)

    def _start_ahead(self, start: Start, recipe: Recipe) -> None:
        self._start(start, recipe, None)

    def _watch_memory(self) -> None:
        with open("/proc/self/statm", encoding="ascii") as statm:
            while not self._stopping:
                time.sleep(self._limits.pressure_every_s)
                statm.seek(0)
                _, resident, shared, *_ = (int(part) * 4096 for part in statm.read().split())
                try:
                    self._measured(resident - shared)
                    self._report()
                    if self._table is not None:
                        self._table.beat(_now_ms())
                    if self._quarantine is not None:
                        self._quarantine.look(time.time())
                except Exception:
                    # Without the next measurement nothing is evicted any more, and the machine's memory is the bound.
                    _log.exception("a measurement failed")

    def _measured(self, memory_bytes: int) -> None:
        """What follows from the memory that the host has now, and from the time."""
        with self._lock:
            now_s = time.monotonic()
            self._memory_bytes = memory_bytes
            self._gauge.used(time.process_time(), now_s)
            decisions = self._residency.pressure(memory_bytes, now_s)
            decisions += self._residency.tick(now_s)
            short = self._residency.is_short_of_memory
        self._carry_out(decisions)
        if short:
            self._living.put_away_idle_code()

    def _report(self) -> None:
        """Tell the Server who ran here since the last time, and how busy this host is."""
        with self._lock:
            asked, self._asked = self._asked, {}
            load = self._load()
        self._news.heat(self._path, load, asked, self._residency.limits.memory_bytes_max)

    def _load(self) -> Load:
        """How busy this host is. Under the lock."""
        residency = self._residency
        in_use_bytes = max(0, self._memory_bytes - residency.idle_bytes)
        return self._gauge.load(
            running=self._running,
            queue=Filled(residency.queued, residency.limits.queued_max),
            queue_ms=self._queue_ms,
            isolates=len(residency),
            memory_bytes=self._memory_bytes,
            memory_in_use=Filled(in_use_bytes, residency.limits.memory_bytes_max),
            connections=Filled(len(self._links), self._limits.connections_max),
            residence_s=residency.residence_s(time.monotonic()),
        )

    # ------------------------------------------------------------------------------------------------ one request

    def _serve(self, link: LinkSocket, request: Request) -> None:
        """Run one request, or say why not."""
        arrived_ns = time.time_ns()
        recorder = Recorder.under(request.traceparent, self.server, Role.ISOLATE_HOST, self._ids)
        if self._keeps_out(request.version):
            why = StartFailed(Outcome.KILL_SWITCH, "hosts crashed while it ran; it is kept out for a while")
            self._end_failed(link, request, why, recorder)
            return
        recipe = Recipe.of(request)
        ticket = _Ticket()
        with self._lock:
            decisions = self._residency.requested(
                ticket, request.version, ColdCause(request.cold_cause), time.monotonic(), request.reuse,
                at_home=request.at_home, paid=request.plan == "paid",
            )  # fmt: skip
        self._carry_out(decisions, recipe)
        if not ticket.wait(self._limits.queue_s_max) and self._give_up(ticket, request.version):
            ticket.give(Shed(ticket))
        ticket.wait(self._limits.queue_s_max)
        decision = ticket.decision
        queued_ns = time.time_ns()
        if decision is None or isinstance(decision, Shed):
            self._end_unrun(link, request, Ended(Outcome.LOAD_SHED, "no isolate is free"), recorder)
            return
        if isinstance(decision, Fail):
            self._end_failed(link, request, decision.why, recorder)
            return
        start_type = decision.start_type
        cause = ""
        if isinstance(decision, Start):
            cause = decision.cause.value
            failed = self._start(decision, recipe, recorder)
            if failed is not None:
                self._end_failed(link, request, failed, recorder)
                return
        isolate = self._living[decision.isolate]
        queue_ms = (queued_ns - arrived_ns) / 1e6
        self._queue_ms = queue_ms
        if queue_ms > 0.5:
            recorder.span(SpanName.QUEUE, arrived_ns, queued_ns)
        taken = Taken(decision.isolate, start_type, cause, queue_ms)

        def serve(head: ResponseHead) -> Served:
            cpu_ms = isolate.guest.cpu_ms
            return Served(head.status, head.headers, self.server, start_type.value, queue_ms, cpu_ms)

        def begin() -> None:
            if says_started(request.head.method):
                link.send(frame(Frame.STARTED))

        conversation = HostConversation(link, request, serve)
        handler_id = recorder.new_id()
        stage = self._inner.root(request, handler_id, recorder.context.child(handler_id).traceparent())
        ended = self._run(conversation, request, taken, recorder, stage, begin)
        recorder.spans += stage.take_spans()
        if stage.is_remarkable:
            ended = replace(ended, called=True)  # so that its edge reads the spans
        self._end(link, request, ended, recorder, conversation.take_held())

    def _run(
        self,
        conversation: HostConversation | InnerConversation,
        request: Request,
        taken: Taken,
        recorder: Recorder,
        stage: InnerStage,
        begin: Callable[[], None] = lambda: None,
    ) -> Ended:
        """Run a request on the isolate that was taken for it, and give that back. ``begin`` is called right before
        guest code runs, and may raise."""
        number, start_type, handler_id = taken.number, taken.start_type, stage.handler
        isolate, recipe = self._living[number], Recipe.of(request)
        egress = self._egress_of(request, stage)
        began_ns = time.time_ns()
        with self._lock:
            self._running += 1
        keep = True  # until guest code runs, nothing can be wrong with it
        slot = self._write_down(Phase.RUNS, request.version, request.worker, request.request_id)
        try:
            begin()
            keep = False
            finished = isolate.run(conversation, egress=egress, limits=recipe.isolate_limits)
            keep = finished.verdict is Verdict.KEEP
        finally:
            self._cross_out(slot)
            # One place gives the isolate back, on every path: whatever happens here, it is not lost and not shared.
            with self._lock:
                self._running -= 1
                decisions = self._residency.released(
                    number, keep=keep, now_s=time.monotonic(), memory_bytes=isolate.memory_bytes
                )
            self._carry_out(decisions, recipe)
        ended_ns = time.time_ns()
        attributes: dict[str, AttributeValue] = {
            Attr.WORKER: request.worker,
            Attr.VERSION: request.version,
            Attr.START_TYPE: start_type.value,
            Attr.OUTCOME: finished.outcome.value,
            Attr.CPU_MS: round(finished.usage.cpu_ms, 3),
            Attr.QUEUE_MS: round(taken.queue_ms, 3),
            Attr.ISOLATE: number,
            Attr.ISOLATE_REQUESTS: isolate.requests,
            Attr.HTTP_REQUEST_BYTES: conversation.body_read_bytes,
            Attr.HTTP_RESPONSE_BYTES: conversation.body_sent_bytes,
        }
        if taken.cause:
            attributes[Attr.COLD_CAUSE] = taken.cause
        if finished.reason:
            attributes[Attr.ERROR_TYPE] = finished.reason[:300]
        recorder.span(
            SpanName.HANDLER, began_ns, ended_ns, attributes, span_id=handler_id, events=_log_events(finished),
            error=finished.outcome not in (Outcome.OK, Outcome.CANCELED),
        )  # fmt: skip
        if finished.outcome is Outcome.INTERNAL_ERROR:
            _log.error("request %s: %s", request.request_id, finished.reason)
        usage, called = finished.usage, egress is not None and egress.called
        ended = Ended(
            finished.outcome, finished.reason, usage.cpu_ms, usage.wall_ms, self.server, start_type.value,
            taken.queue_ms, subrequests=finished.subrequests, called=called,
        )  # fmt: skip
        if self._news.is_heard(request):
            lines = (Line(line.at_ns // 1_000_000, line.stream, line.text) for line in finished.logs)
            ending = ending_of(
                request, ended, at_ms=began_ns // 1_000_000, status=conversation.status, cold_cause=taken.cause,
                lines=lines,
            )  # fmt: skip
            self._news.stage_over(request, ending, handler_id)
        cpu_us = int(ended.cpu_ms * 1_000)
        stage.over(cpu_us)
        if stage.handed or (egress is not None and egress.used):
            # What a guest used is in the books of its stage, which were here if what was left of them was handed over.
            cpu_us = 0 if stage.handed else cpu_us
            self._news.calls_nobody(handler_id, cpu_us)
        return ended

    def _keeps_out(self, version: str) -> bool:
        return self._quarantine is not None and self._quarantine.keeps_out(version)

    def _write_down(self, phase: Phase, version: str, worker: str = "", request_id: str = "") -> int:
        """That something begins which may be the end of this process."""
        return -1 if self._table is None else self._table.begin(phase, _now_ms(), version, worker, request_id)

    def _cross_out(self, slot: int) -> None:
        if self._table is not None:
            self._table.end(slot)

    def take_warm(self, version: Version, *, at_home: bool) -> Taken | None:
        """An idle isolate for a call of a guest of this host; None when there is none."""
        if self._keeps_out(version.version_id):
            return None
        with self._lock:
            decisions = self._residency.claim(object(), version.version_id, time.monotonic(), at_home=at_home)
        if not decisions:
            return None
        use, *spares = decisions
        assert isinstance(use, Use), "an isolate, or nothing"
        if spares:
            self._carry_out(spares, Recipe.of(first_request(version)))
        return Taken(use.isolate, use.start_type)

    def put_back(self, taken: Taken, version: Version) -> None:
        """An isolate of ``version`` was taken, and nothing ran on it."""
        with self._lock:
            decisions = self._residency.released(taken.number, keep=True, now_s=time.monotonic())
        self._carry_out(decisions, Recipe.of(first_request(version)))

    def run_inner(
        self, conversation: InnerConversation, request: Request, taken: Taken, recorder: Recorder, stage: InnerStage
    ) -> Ended:
        """Run a call of a guest of this host on the isolate that was taken for it."""
        ended = self._run(conversation, request, taken, recorder, stage)
        self._note(request, ended)
        return ended

    def tell_spans(self, edge: str, spans: list[Span]) -> None:
        """Spans of a stage that was over after the root of its tree, for the server where that came in."""
        self._news.late_spans(edge, encode_spans(spans))

    def _egress_of(self, request: Request, stage: InnerStage) -> HostEgress | None:
        """The way out of one request, which begins now."""
        if self._egress_socket is None:
            return None
        wall_ms = request.limits.get("wall_ms")
        stage.deadline_s = None if wall_ms is None else time.monotonic() + wall_ms / 1e3
        return HostEgress(
            self._egress_socket,
            worker=request.worker,
            version=request.version,
            request_id=request.request_id,
            traceparent=stage.traceparent,
            loops_left=loops_left(request.head.headers),
            context=request.context,
            call=request.call,
            edge=request.edge,
            deadline_s=stage.deadline_s,
            report_traces=request.report_traces,
            shorter=stage,
        )

    def _end_failed(self, link: LinkSocket, request: Request, why: object, recorder: Recorder) -> None:
        assert isinstance(why, StartFailed)
        now_ns = time.time_ns()
        attributes: dict[str, AttributeValue] = {
            Attr.OUTCOME: why.outcome.value, Attr.PHASE: "startup", Attr.ERROR_TYPE: why.reason[:300],
        }  # fmt: skip
        recorder.span(SpanName.STARTUP, now_ns, now_ns, attributes, error=True)
        self._end_unrun(link, request, Ended(why.outcome, why.reason), recorder)

    def _end_unrun(self, link: LinkSocket, request: Request, ended: Ended, recorder: Recorder) -> None:
        if self._news.is_heard(request):
            self._news.stage_over(request, ending_of(request, ended, at_ms=time.time_ns() // 1_000_000))
        self._end(link, request, ended, recorder)

    def _end(self, link: LinkSocket, request: Request, ended: Ended, recorder: Recorder, held: bytes = b"") -> None:
        self._note(request, ended)
        with self._lock:
            load = self._load()
            cost = self._residency.cost_of(request.version) or _UNMEASURED
        last = replace(
            ended, server=self.server, spans=(encode_spans(recorder.spans),), load=load,
            start_cost_ms=cost.start_ms, isolate_bytes=cost.bytes_,
        )  # fmt: skip
        try:
            link.send(held + frame(Frame.ENDED, ENDED.encode(last)))
        except LinkBroken:
            # Whoever asked has left, and with it the way that spans go. They belong into the trace all the same.
            self._news.late_spans(request.edge, last.spans[0])
            raise

    def _note(self, request: Request, ended: Ended) -> None:
        """Count a request that is over."""
        with self._lock:
            requests, cpu_s = self._asked.get(request.worker, (0, 0.0))
            self._asked[request.worker] = (requests + 1, cpu_s + ended.cpu_ms / 1e3)
            self._counts.ended(ended)

    # --------------------------------------------------------------------------------------- residency's decisions

    def _carry_out(self, decisions: list[Decision], recipe: Recipe | None = None) -> None:
        """``recipe``: how to start what is started ahead, which is always of the version that the decisions are on."""
        for decision in decisions:
            if isinstance(decision, Close):
                self._living.close(decision.isolate)
                if decision.last:
                    self._tell_warmth(decision.version)
            elif isinstance(decision, Start) and decision.ticket is None:
                assert recipe is not None, "started ahead of nothing"
                assert recipe.version == decision.version, "started ahead of another version"
                self._ahead.put(decision, recipe)
            else:
                assert isinstance(decision.ticket, _Ticket)
                decision.ticket.give(decision)

    def _tell_warmth(self, version: str) -> None:
        """Tell the Server whether a version has a started isolate here: in turn, and as it is by then. Of two threads,
        one of which starts an isolate and one closes another, the last to speak is right about both."""
        with self._telling:
            with self._lock:
                is_warm = self._residency.is_warm(version)
            self._news.warmth(version, is_warm=is_warm)

    def _give_up(self, ticket: _Ticket, version: str) -> bool:
        with self._lock:
            return self._residency.gave_up(ticket, version)

    def _start(self, decision: Start, recipe: Recipe, recorder: Recorder | None) -> StartFailed | None:
        """Start an isolate on this thread and tell residency."""
        slot = self._write_down(Phase.STARTS, recipe.version)
        try:
            began = self._living.start(decision.isolate, recipe)
        finally:
            self._cross_out(slot)
        with self._lock:
            now_s = time.monotonic()
            if isinstance(began, StartFailed):
                decisions = self._residency.start_failed(decision.isolate, began, now_s)
            else:
                decisions = self._residency.started(
                    decision.isolate, began.cost_ms, now_s, memory_bytes=began.isolate.memory_bytes
                )
        self._carry_out(decisions, recipe)
        # After a failed start too: a refusal sticks until this machine's isolate is gone, and now there may be none.
        self._tell_warmth(recipe.version)
        if isinstance(began, StartFailed):
            return began
        if recorder is not None:
            cpu_ms = round(began.isolate.start_cpu_ms, 3)
            recorder.span(SpanName.MAP, began.mapping_ns, began.instantiating_ns)
            recorder.span(SpanName.INSTANTIATE, began.instantiating_ns, began.ready_ns, {Attr.CPU_MS: cpu_ms})
        return None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _log_events(finished: Finished) -> tuple[SpanEvent, ...]:
    return tuple(SpanEvent(line.stream, line.at_ns, {Attr.LOG_TEXT: line.text[:4096]}) for line in finished.logs[:256])
