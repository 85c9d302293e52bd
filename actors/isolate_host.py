"""IsolateHost: a process of isolates. It listens on a Unix socket, with a thread per connection.

A thread reads a request, takes an isolate from the ``IsolateDesk``, runs the guest on itself, gives the isolate back,
and says how it ended. ``HostWatch`` counts along, and looks at the process itself twice a second.

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
from actors.crash_table import CrashTable, Phase, WrittenDown
from actors.egress_line import HostEgress
from actors.egress_policy import loops_left
from actors.exchange import Ended, Request, Served, StartType
from actors.host_choice import says_started
from actors.host_conversation import HostConversation, LinkSocket
from actors.host_gauge import Filled
from actors.host_news import HostNews
from actors.host_watch import HostWatch, WatchLimits
from actors.inner_call import InnerConversation
from actors.inner_calls import InnerCalls
from actors.inner_stage import InnerStage
from actors.isolate_desk import DeskLimits, IsolateDesk, Taken
from actors.lease_line import LeaseLine
from actors.residency import ResidencyLimits
from actors.stage_over import ending_of
from actors.stage_report import Line
from actors.starts_ahead import Recipe
from actors.wire import ENDED, REQUEST, Undecodable
from actors.worker import CORDON_DEFAULT
from isolates.conversation import ConversationLost, ResponseHead
from isolates.isolate import Finished, StartFailed
from isolates.limits import Verdict
from isolates.outcome import Outcome
from tracing.recorder import Recorder
from tracing.trace import Attr, AttributeValue, Role, Span, SpanEvent, SpanName
from tracing.wire import encode_spans

_log = logging.getLogger("everwarm.host")

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
    desk: DeskLimits = field(default_factory=DeskLimits)
    watch: WatchLimits = field(default_factory=WatchLimits)


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
        cordon: str = CORDON_DEFAULT,
    ) -> None:
        """``egress_socket``: where the machine's way out listens; without one guests have none. ``server_socket``: of
        the Server, asked for what guests find in their environment and in stores, and for leases of calls between this
        host's guests. ``table``: where it is written who runs, for whoever finds this process dead. ``quarantine``:
        who is kept out. ``cordon``: whose isolates it takes, for as long as it lives; it refuses all others."""
        self.name = name
        self.server = server
        self._path = socket_path
        self._news = HostNews(server, tell_server)
        self._egress_socket = egress_socket
        self._limits = limits or HostLimits()
        # Ids of spans need to be different, not secret; the system's source costs a system call and the GIL.
        self._ids = random.Random(secrets.randbits(128)).randbytes
        self._lock = threading.Lock()
        self._links: set[LinkSocket] = set()
        self.desk = IsolateDesk(
            code_directory,
            self._news,
            server_socket=server_socket,
            residency_limits=residency_limits,
            limits=self._limits.desk,
            table=table,
            quarantine=quarantine,
            cordon=cordon,
        )
        self.watch = HostWatch(
            socket_path,
            self.desk,
            self._news,
            cores=len(os.sched_getaffinity(0)),
            connections=lambda: Filled(len(self._links), self._limits.connections_max),
            limits=self._limits.watch,
            table=table,
            quarantine=quarantine,
        )
        self._inner = InnerCalls(self, self.desk, self._ids)
        self._leases = None if server_socket is None else LeaseLine(server_socket, socket_path, self._inner.leases)
        self._table = table
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
        self.watch.begin()
        self.desk.begin()
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
        self.watch.stop()
        self.desk.stop()
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
        return {
            "inner_calls": self._inner.statistics(),
            "host": self.name,
            "pid": os.getpid(),
            "connections": len(self._links),
            **self.desk.statistics(),
            **self.watch.statistics(),
        }

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
                    start_type = StartType.PREWARM if kind is Frame.PREWARM else StartType.PRELOAD
                    self.desk.prewarm(REQUEST.decode(payload), start_type)
                elif kind is Frame.NOTICE:
                    self.desk.drop_version(payload.decode())
                elif kind is Frame.LIVE:
                    self._news.watched(payload)
                elif kind is Frame.MEMORY:
                    self.desk.have_memory(int(payload))
                # Anything else is the body that a request pulled and ended without; it is before the next request.
        except (LinkBroken, ConversationLost):
            pass  # the client went away, which is how a link ends
        except Undecodable as wrong:
            _log.error("a link sent nonsense: %s", wrong)
        finally:
            with self._lock:
                self._links.discard(link)
            link.close()

    # ------------------------------------------------------------------------------------------------ one request

    def _serve(self, link: LinkSocket, request: Request) -> None:
        """Run one request, or say why not."""
        recorder = Recorder.under(request.traceparent, self.server, Role.ISOLATE_HOST, self._ids)
        taken = self.desk.take(request, recorder)
        if taken is None:
            self._end_unrun(link, request, Ended(Outcome.LOAD_SHED, "no isolate is free"), recorder)
            return
        if isinstance(taken, StartFailed):
            self._end_failed(link, request, taken, recorder)
            return
        self.watch.waited(taken.queue_ms)
        isolate = self.desk[taken]

        def serve(head: ResponseHead) -> Served:
            cpu_ms = isolate.guest.cpu_ms
            return Served(head.status, head.headers, self.server, taken.start_type.value, taken.queue_ms, cpu_ms)

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
        isolate, recipe = self.desk[taken], Recipe.of(request)
        start_type, handler_id = taken.start_type, stage.handler
        egress = self._egress_of(request, stage)
        began_ns = time.time_ns()
        self.watch.began()
        keep = True  # until guest code runs, nothing can be wrong with it
        try:
            with WrittenDown(self._table, Phase.RUNS, request.version, request.worker, request.request_id):
                begin()
                keep = False
                finished = isolate.run(conversation, egress=egress, limits=recipe.isolate_limits)
                keep = finished.verdict is Verdict.KEEP
        finally:
            # One place gives the isolate back, on every path: whatever happens here, it is not lost and not shared.
            self.desk.give_back(taken, recipe, keep=keep, memory_bytes=isolate.memory_bytes)
            self.watch.ran()
        if stage.has_others:
            # What is to be written down of a tree is more than of a request: its answer does not wait for that. It does
            # for the isolate, or whoever reads it and asks again would find that busy.
            conversation.pass_on()
        ended_ns = time.time_ns()
        attributes: dict[str, AttributeValue] = {
            Attr.WORKER: request.worker,
            Attr.VERSION: request.version,
            Attr.START_TYPE: start_type.value,
            Attr.OUTCOME: finished.outcome.value,
            Attr.CPU_MS: round(finished.usage.cpu_ms, 3),
            Attr.QUEUE_MS: round(taken.queue_ms, 3),
            Attr.ISOLATE: taken.number,
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

    def run_inner(
        self, conversation: InnerConversation, request: Request, taken: Taken, recorder: Recorder, stage: InnerStage
    ) -> Ended:
        """Run a call of a guest of this host on the isolate that was taken for it."""
        ended = self._run(conversation, request, taken, recorder, stage)
        self.watch.ended(request.worker, ended)
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

    def _end_failed(self, link: LinkSocket, request: Request, why: StartFailed, recorder: Recorder) -> None:
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
        self.watch.ended(request.worker, ended)
        load, cost = self.watch.load(), self.desk.cost_of(request.version)
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


def _log_events(finished: Finished) -> tuple[SpanEvent, ...]:
    return tuple(SpanEvent(line.stream, line.at_ns, {Attr.LOG_TEXT: line.text[:4096]}) for line in finished.logs[:256])
