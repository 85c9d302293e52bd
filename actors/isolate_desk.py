"""IsolateDesk: where threads of a host get an isolate for their request, and give it back.

``residency`` decides: use this one, start one, wait, close that one. It is asked under one lock, here and nowhere else.
What it decides is carried out outside the lock, because starting and closing take milliseconds:

    Use, Fail, Shed   the ticket of a waiting thread gets it, and that thread goes on
    Start             with a ticket: that thread starts the isolate itself; without: one of ``starts_ahead`` does
    Close             the isolate is deleted on the thread that was told so

Each answer of ``residency`` may hold decisions for others, so whoever asks it carries out all that it said. *Telling*
the Server which versions are warm has a lock of its own, taken before the first.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from actors.crash_reports import Quarantine
from actors.crash_table import CrashTable, Phase, WrittenDown
from actors.decision import Close, Decision, Fail, Shed, Start, Use
from actors.exchange import ColdCause, Request, StartType
from actors.handover import first_request
from actors.host_gauge import Filled
from actors.host_news import HostNews
from actors.living import Living
from actors.mapped_code import MappedCodeLimits
from actors.past_starts import Cost
from actors.residency import Residency, ResidencyLimits
from actors.starts_ahead import Recipe, StartsAhead
from actors.worker import CORDON_DEFAULT, Version
from isolates.isolate import Isolate, StartFailed
from isolates.outcome import Outcome
from tracing.recorder import Recorder
from tracing.trace import Attr, SpanName

_log = logging.getLogger("everwarm.host")

_UNMEASURED = Cost(0.0, 0)
#: A wait of less is no wait, but the turn of a thread; it gets no span.
_QUEUE_MS_SHOWN = 0.5


@dataclass(frozen=True, slots=True)
class DeskLimits:
    """Bounds of one desk, beside those of its residency."""

    #: The longest a request waits in line for an isolate.
    queue_s_max: float = 10.0
    #: Threads that start isolates ahead of requests. Two: a prewarm must not take the cores from what runs.
    prewarm_threads: int = 2
    prewarm_queue_max: int = 256
    #: How far ahead a rate of requests tells anything: the horizon of the slower of the two averages in ``heat``.
    foreseen_s: float = 600.0
    mapped_code: MappedCodeLimits = field(default_factory=MappedCodeLimits)


class Taken(msgspec.Struct, frozen=True):
    """An isolate that is somebody's for one request. ``cause``: of its cold start, if it was started for this one."""

    number: int
    start_type: StartType
    cause: str = ""
    queue_ms: float = 0.0


class Stock(msgspec.Struct, frozen=True):
    """What is there at one moment. ``residence_s``: how long an isolate lives here unasked; infinite while none has to
    go."""

    queue: Filled
    isolates: int
    idle_bytes: int
    residence_s: float


class _Ticket:
    """One request's place in line; it gets one decision. A lock that is held until then, and not an event: most
    requests are given theirs before they wait, and an event takes as long to make as the decision."""

    __slots__ = ("_pending", "decision")

    def __init__(self) -> None:
        self._pending = threading.Lock()
        self._pending.acquire()
        self.decision: Use | Start | Fail | Shed | None = None

    def give(self, decision: Use | Start | Fail | Shed) -> None:
        self.decision = decision
        self._pending.release()

    def wait(self, timeout_s: float) -> bool:
        return self.decision is not None or self._pending.acquire(timeout=timeout_s)


class IsolateDesk:
    """The isolates of one host. Used by any of its threads."""

    def __init__(
        self,
        code_directory: Path,
        news: HostNews,
        *,
        server_socket: Path | None = None,
        residency_limits: ResidencyLimits | None = None,
        limits: DeskLimits | None = None,
        table: CrashTable | None = None,
        quarantine: Quarantine | None = None,
        cordon: str = CORDON_DEFAULT,
    ) -> None:
        """``news``: hears which versions are warm. The rest as ``IsolateHost`` has it."""
        self._limits = limits or DeskLimits()
        self._news = news
        self._living = Living(code_directory, self._limits.mapped_code, server_socket)
        self._lock = threading.Lock()
        self._telling = threading.Lock()  # taken before the other one
        self._residency = Residency(residency_limits or ResidencyLimits())
        self._ahead = StartsAhead(
            self._start_ahead, threads=self._limits.prewarm_threads, prewarms_max=self._limits.prewarm_queue_max
        )
        self._table = table
        self._quarantine = quarantine
        self._cordon = cordon

    @property
    def memory_bytes_max(self) -> int:
        """What all isolates may hold."""
        return self._residency.limits.memory_bytes_max

    def begin(self) -> None:
        """Begin to start isolates ahead."""
        self._ahead.begin()

    def stop(self) -> None:
        """Start nothing ahead any more."""
        self._ahead.stop()

    def statistics(self) -> dict[str, object]:
        """Counters and the state of the house, for operators and tests."""
        with self._lock:
            return {
                "cordon": self._cordon,
                "residency": repr(self._residency),
                "isolates": len(self._residency),
                "isolates_max": self._residency.limits.isolates_max,
                "states": self._residency.states(),
                "memory_bytes_max": self.memory_bytes_max,
                "starts": {t.value: n for t, n in self._residency.starts.items() if n},
                "cold_starts": {c.value: n for c, n in self._residency.cold_starts.items() if n},
                "spares": self._residency.spares,
                "used_up": self._residency.used_up,
                "expired": self._residency.expired,
                "wasted": {t.value: n for t, n in self._residency.wasted.items() if n},
                "prewarms_declined": self._residency.prewarms_declined,
                "code": self._living.code_statistics(),
                "evictions": self._residency.evictions,
                "queued": self._residency.queued,
                "warm_versions": sorted(self._residency.warm_versions()),
                "quarantined": [] if self._quarantine is None else self._quarantine.versions,
            }

    def stock(self) -> Stock:
        """What is there now."""
        with self._lock:
            residency = self._residency
            return Stock(
                Filled(residency.queued, residency.limits.queued_max),
                len(residency),
                residency.idle_bytes,
                residency.residence_s(time.monotonic()),
            )

    def cost_of(self, version: str) -> Cost:
        """What a start of this version takes and its isolate holds, as far as it was measured here; 0 is unknown."""
        with self._lock:
            return self._residency.cost_of(version) or _UNMEASURED

    # ---------------------------------------------------------------------------------------------- for one request

    def take(self, request: Request, recorder: Recorder) -> Taken | StartFailed | None:
        """An isolate for this request, which may have to wait for it or to start it on this thread. None when none was
        free in time. What was taken is for ``give_back``."""
        if not self._is_ours(request.cordon):
            return StartFailed(Outcome.INTERNAL_ERROR, "sent to a host of another cordon")
        if self._keeps_out(request.version):
            return StartFailed(Outcome.KILL_SWITCH, "hosts crashed while it ran; it is kept out for a while")
        arrived_ns = time.time_ns()
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
            return None
        if isinstance(decision, Fail):
            assert isinstance(decision.why, StartFailed)
            return decision.why
        cause = ""
        if isinstance(decision, Start):
            cause = decision.cause.value
            failed = self._start(decision, recipe, recorder)
            if failed is not None:
                return failed
        queue_ms = (queued_ns - arrived_ns) / 1e6
        if queue_ms > _QUEUE_MS_SHOWN:
            recorder.span(SpanName.QUEUE, arrived_ns, queued_ns)
        return Taken(decision.isolate, decision.start_type, cause, queue_ms)

    def take_warm(self, version: Version, *, at_home: bool) -> Taken | None:
        """An idle isolate for a call of a guest of this host; None when there is none right now. For ``give_back``, or
        ``put_back``."""
        if not self._is_ours(version.cordon) or self._keeps_out(version.version_id):
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

    def __getitem__(self, taken: Taken) -> Isolate:
        return self._living[taken.number]

    def give_back(self, taken: Taken, recipe: Recipe, *, keep: bool, memory_bytes: int = 0) -> None:
        """Its request is over. ``keep``: it may serve again. ``memory_bytes``: what it holds now."""
        with self._lock:
            decisions = self._residency.released(
                taken.number, keep=keep, now_s=time.monotonic(), memory_bytes=memory_bytes
            )
        self._carry_out(decisions, recipe)

    def put_back(self, taken: Taken, version: Version) -> None:
        """An isolate of ``version`` was taken warm, and nothing ran on it."""
        self.give_back(taken, Recipe.of(first_request(version)), keep=True)

    def _give_up(self, ticket: _Ticket, version: str) -> bool:
        with self._lock:
            return self._residency.gave_up(ticket, version)

    def _is_ours(self, cordon: str) -> bool:
        """Whether what is of that cordon may be in this process. Nobody asks for anything else; but if somebody did,
        two that do not trust each other would share a process, so this is where it ends."""
        if cordon != self._cordon:
            _log.error("a host of the cordon %s was asked to run what is of %s", self._cordon, cordon)
        return cordon == self._cordon

    def _keeps_out(self, version: str) -> bool:
        return self._quarantine is not None and self._quarantine.keeps_out(version)

    # ------------------------------------------------------------------------------------------------ for the house

    def prewarm(self, request: Request, start_type: StartType = StartType.PREWARM) -> None:
        """A request for this version is likely. Returns at once; over the bound it is forgotten. The Server hears of
        it in any case: that it is warm, that it is cold, or that nothing was started for it.

        The decision is made here and the start on another thread: a request that comes while it is still to be done
        waits for it, and does not start an isolate of its own.
        """
        decisions: list[Decision] = []
        with self._lock:
            if self._ahead.has_room and self._is_ours(request.cordon) and not self._keeps_out(request.version):
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

    def drop_version(self, version: str) -> None:
        """A version is no longer deployed: let its isolates go."""
        with self._lock:
            decisions = self._residency.drop(version, time.monotonic())
        self._carry_out(decisions)

    def have_memory(self, bytes_max: int) -> None:
        """All isolates may hold so much from now on. The next look acts on it."""
        with self._lock:
            self._residency.have_memory(bytes_max)

    def look(self, memory_bytes: int) -> None:
        """What follows from the memory that the host has now, and from the time."""
        with self._lock:
            now_s = time.monotonic()
            decisions = self._residency.pressure(memory_bytes, now_s)
            decisions += self._residency.tick(now_s)
            short = self._residency.is_short_of_memory
        self._carry_out(decisions)
        if short:
            self._living.put_away_idle_code()

    # -------------------------------------------------------------------------------------- residency's decisions

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

    def _start_ahead(self, start: Start, recipe: Recipe) -> None:
        self._start(start, recipe, None)

    def _start(self, decision: Start, recipe: Recipe, recorder: Recorder | None) -> StartFailed | None:
        """Start an isolate on this thread and tell residency."""
        with WrittenDown(self._table, Phase.STARTS, recipe.version):
            began = self._living.start(decision.isolate, recipe)
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
