"""One request tree as its tail workers hear of it: once, after everything has ended, one event a stage. Pure.

Stages run anywhere, end in any order, go on after their answers (waitUntil), die with their machines; their reports are
late, doubled or lost. The flow is kept on the machine of the tree's outermost worker with a tail, and lent to all
stages below as the capability ``report_traces``. A stage *holds* it from when it is called until its report is here.

    begin    a caller tells that it calls          ┐
    report   a stage tells how it ended            ├─►  held by nobody  ─►  tail_events(), once
               and whom it had called              │
    lost     a caller, or a machine's end, tells   ┘
    answered whoever keeps it saw the root end: from then on there is a bound to waiting

**When it is over** is not a matter of time. A report names all calls that its stage made, so as long as nothing is
lost, the reports alone close the tree: the root's names its children, which are held until theirs are here, and those
name their own. In which order they come changes nothing, and ``begin`` may be lost; it only tells sooner who would
be lost with a machine. A lost holder has released. What it had called is then not known, unless somebody said so: its
orphans are cancelled and report within a second, so a loss, and only a loss, is followed by a wait (``orphans_s``).
A report that got lost alone holds the flow until ``unheard_s`` after the root ended; by then no stage may still run.
A call that was cancelled may never have reached a guest: who does not report like an orphan was not there.

**One event a stage.** A call has one id, whoever refuses it and wherever it falls back to; a refusal reports nothing.
It may run a second time after a loss, with a higher ``run``: the last run counts. How it ended is told by its own
report, else by what its caller saw, else it is ``homeLost``. If the caller saw ``homeLost``, that is how it ended for
everybody above, whatever its guest believes.

Who hears what of it, and in which shape, is ``tail_events``.

Why this is not ``tracing.collector``: that one joins spans of many traces on every machine, samples them, completes
them by count or by time, and hands out what is late as a second batch. A tail hears of every tree, exactly once, and
not of its neighbour's stages. Spans of nested stages go the way that spans go, to the collector; they share the ids,
as a stage is named like its ``request`` span.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from actors.capability import Exports, ExportsFull
from actors.exchange import Capability
from actors.stage_report import Call, Ending, Report, Stage
from actors.tail_events import TailBatch, Told, batches
from isolates.outcome import Outcome


@dataclass(frozen=True, slots=True)
class FlowLimits:
    """``stages_max``: the invocations of a tree. ``log_bytes_max``: a stage may have 256 KiB (semantics, section 1),
    and one report takes at most half of what is left, so that the first does not leave nothing to the others.
    ``orphans_s``: a report leaves its machine within a second of the cancellation. ``unheard_s``: twice the 30 s that
    a stage may go on. ``flows_max``: as many trees as a Server has requests. ``flows_bytes_max``: 2,000 trees with
    32 KiB of logs each; beyond it, logs are cut. ``machines_max``: lost ones that are remembered, of a cluster that
    falls apart.
    """

    stages_max: int = 32
    log_bytes_max: int = 512 * 1024
    orphans_s: float = 2.0
    unheard_s: float = 60.0
    flows_max: int = 8_192
    flows_bytes_max: int = 64 * 1024 * 1024
    machines_max: int = 64


LIMITS: Final = FlowLimits()

#: How a call ends for its caller when the stage may not have a last word.
_BROKEN_OFF: Final = frozenset({Outcome.HOME_LOST, Outcome.CANCELED})


@dataclass(slots=True)
class FlowCounts:
    """What became of reports. ``late``: after the flow was told. ``doubled``, ``stale``: of a run that is over already,
    or was followed by another. ``dropped``: stages beyond the bound. ``unheard``: stages whose report never came."""

    late: int = 0
    doubled: int = 0
    stale: int = 0
    dropped: int = 0
    unheard: int = 0


@dataclass(slots=True)
class _Held:
    """What is known of one stage: its own word, its caller's, and whether it was lost."""

    stage: Stage
    own: Ending | None = None
    seen: Ending | None = None
    lost: bool = False
    calls: tuple[str, ...] = ()

    @property
    def open(self) -> bool:
        return self.own is None and not self.lost

    def ending(self) -> Ending:
        known = self.own or self.seen or Ending(Outcome.HOME_LOST)
        if self.seen is not None and self.seen.outcome in _BROKEN_OFF:
            gone = self.seen.outcome is Outcome.HOME_LOST
        else:
            gone = self.own is None and self.lost
        return replace(known, outcome=Outcome.HOME_LOST) if gone else known


class Flow:
    """One tree. Not thread-safe; ``now_s`` is any clock that does not run backwards."""

    def __init__(self, root: Stage, limits: FlowLimits = LIMITS, counts: FlowCounts | None = None) -> None:
        self._limits = limits
        self.counts = counts or FlowCounts()
        self._root = root.stage
        self._held = {root.stage: _Held(root)}
        self._lost_machines: dict[str, None] = {}
        self._lost_s: float | None = None
        self._root_over_s: float | None = None
        self.log_bytes = 0
        self.done = False

    # ---------------------------------------------------------------------------------------------------- what comes

    def begin(self, stage: Stage, now_s: float) -> None:
        """A stage is about to be called, or run again. Optional, and never waited for."""
        if not self._is_late():
            held = self._note(stage)
            if held is not None and held.open and stage.machine in self._lost_machines:
                self._lose(held, now_s)
            self._settle(now_s)

    def report(self, report: Report, now_s: float) -> None:
        """A stage is over."""
        if self._is_late():
            return
        held = self._note(report.stage)
        if held is None:
            return
        if held.own is not None:
            self.counts.doubled += 1
            return
        held.stage = report.stage  # a stage knows more of itself than its caller does
        held.own = report.ending.cut((self._limits.log_bytes_max - self.log_bytes) // 2)
        self.log_bytes += held.own.log_bytes
        calls = report.calls[: self._limits.stages_max]
        held.calls = tuple(call.stage.stage for call in calls)
        for call in calls:
            self._seen(call, now_s)
        self._settle(now_s)

    def answered(self, ending: Ending, ran: bool, now_s: float) -> None:
        """How the root ended for whoever asked. ``ran``: a guest was reached, which has its own word."""
        if not self._is_late():
            self._seen(Call(self._held[self._root].stage, ending, ran), now_s)
            self._root_over_s = now_s if self._root_over_s is None else self._root_over_s
            self._settle(now_s)

    def lost(self, stage: str, now_s: float) -> None:
        """A caller's call broke off without an answer: its holder has released."""
        if self._is_late():
            return
        held = self._held.get(stage)
        if held is not None:
            self._lose(held, now_s)
            self._settle(now_s)

    def machine_lost(self, machine: str, now_s: float) -> None:
        """A machine is gone, and all that ran on it. What it had reported before stands."""
        if self.done:
            return
        self._lost_machines[machine] = None
        if len(self._lost_machines) > self._limits.machines_max:
            del self._lost_machines[next(iter(self._lost_machines))]
        for held in self._held.values():
            if held.stage.machine == machine and held.open:
                self._lose(held, now_s)
        self._settle(now_s)

    def tick(self, now_s: float) -> bool:
        """Whether it is over; to be asked once in a while, since after a loss only time tells."""
        self._settle(now_s)
        return self.done

    @property
    def holders(self) -> tuple[str, ...]:
        """The stages that hold it."""
        return tuple(stage for stage, held in self._held.items() if held.open)

    def __repr__(self) -> str:
        return f"<Flow {self._root} stages={len(self._held)} holders={self.holders} done={self.done}>"

    def _is_late(self) -> bool:
        self.counts.late += self.done
        return self.done

    def _note(self, stage: Stage) -> _Held | None:
        """The stage as it is known from now on; None when this is word of a run that was followed by another, or of
        one stage too many."""
        held = self._held.get(stage.stage)
        if held is None:
            if len(self._held) >= self._limits.stages_max:
                self.counts.dropped += 1
                return None
            held = self._held[stage.stage] = _Held(stage)
        elif stage.run < held.stage.run:
            self.counts.stale += 1
            return None
        elif stage.run > held.stage.run:
            if held.own is not None:
                self.log_bytes -= held.own.log_bytes
            held.stage, held.own, held.seen, held.lost, held.calls = stage, None, None, False, ()
        return held

    def _seen(self, call: Call, now_s: float) -> None:
        known = self._held.get(call.stage.stage)  # a caller does not know how often its call was run
        run = call.stage.run if known is None else max(call.stage.run, known.stage.run)
        held = self._note(replace(call.stage, run=run))
        if held is None:
            return
        if call.ending is not None:
            held.seen = call.ending.cut(0)
        if not call.ran and held.own is None:
            held.own = held.seen or Ending(Outcome.INTERNAL_ERROR)
        if held.open and (
            call.stage.machine in self._lost_machines or (held.seen is not None and held.seen.outcome in _BROKEN_OFF)
        ):
            self._lose(held, now_s)

    def _lose(self, held: _Held, now_s: float) -> None:
        if held.own is None:
            held.lost = True
            self._lost_s = now_s

    def _settle(self, now_s: float) -> None:
        """Whether this was the last that was to come."""
        if self.done:
            return
        if self._root_over_s is None:
            if self._held[self._root].open:
                return
            self._root_over_s = now_s
        holders = self.holders
        if holders and now_s - self._root_over_s < self._limits.unheard_s:
            return
        orphans_may_come = any(held.own is None for held in self._held.values()) and self._lost_s is not None
        if orphans_may_come and self._lost_s is not None and now_s - self._lost_s < self._limits.orphans_s:
            return
        self.counts.unheard += len(holders)
        self.done = True

    # --------------------------------------------------------------------------------------------------- what is told

    def tail_events(self) -> list[TailBatch]:
        """What each tail worker hears. A flow that is ``done`` may be asked; the order of reports changes nothing."""
        assert self.done, "a flow is told when it is over"
        return batches([Told(held.stage, held.ending(), held.own is not None) for held in self._in_order()])

    def _in_order(self) -> Iterator[_Held]:
        """Parents before children, siblings as they were called; those whose caller is not known last."""
        by_parent: dict[str, list[str]] = {}
        for name in sorted(self._held):
            by_parent.setdefault(self._held[name].stage.parent, []).append(name)
        left = dict.fromkeys([self._root, *sorted(self._held)])
        stack: list[str] = []
        while left:
            stack = stack or [next(iter(left))]
            name = stack.pop()
            if name in left:
                del left[name]
                held = self._held[name]
                children = dict.fromkeys((*held.calls, *by_parent.get(name, ())))
                stack += reversed([child for child in children if child in left])
                yield held


class Flows:
    """All flows that one machine keeps, each under the capability that its stages report to."""

    def __init__(self, owner: str, limits: FlowLimits = LIMITS) -> None:
        self._limits = limits
        self._exports: Exports[Flow] = Exports(owner)
        self._flows: dict[int, Flow] = {}
        self.counts = FlowCounts()
        self.log_bytes = 0

    def open(self, root: Stage) -> Capability | None:
        """A new tree. None when there are too many: then its tails hear nothing, and the request goes on."""
        if len(self._flows) >= self._limits.flows_max:
            return None
        flow = Flow(root, self._limits, self.counts)
        try:
            capability = self._exports.mint(flow)
        except ExportsFull:
            return None
        self._flows[capability.key] = flow
        return capability

    def begin(self, key: int, stage: Stage, now_s: float) -> None:
        """See ``Flow.begin``. A key that is not out is a late caller, as in the next two."""
        self._told(key, lambda flow: flow.begin(stage, now_s))

    def report(self, key: int, report: Report, now_s: float) -> None:
        """See ``Flow.report``."""
        if self.log_bytes >= self._limits.flows_bytes_max:
            report = replace(report, ending=report.ending.cut(0))
        self._told(key, lambda flow: flow.report(report, now_s))

    def answered(self, key: int, ending: Ending, ran: bool, now_s: float) -> None:
        """See ``Flow.answered``."""
        self._told(key, lambda flow: flow.answered(ending, ran, now_s))

    def lost(self, key: int, stage: str, now_s: float) -> None:
        """See ``Flow.lost``."""
        self._told(key, lambda flow: flow.lost(stage, now_s))

    def machine_lost(self, machine: str, now_s: float) -> None:
        """See ``Flow.machine_lost``."""
        for flow in self._flows.values():
            flow.machine_lost(machine, now_s)

    def tick(self, now_s: float) -> list[TailBatch]:
        """What is to be told now, of the trees that are over; their capabilities are released."""
        told: list[TailBatch] = []
        for key, flow in [(key, flow) for key, flow in self._flows.items() if flow.tick(now_s)]:
            del self._flows[key]
            self._exports.release(Capability(self._exports.owner, key))
            self.log_bytes -= flow.log_bytes
            told += flow.tail_events()
        return told

    def _told(self, key: int, tell: Callable[[Flow], None]) -> None:
        flow = self._exports.resolve(key)
        if flow is None:
            self.counts.late += 1
            return
        before_bytes = flow.log_bytes
        tell(flow)
        self.log_bytes += flow.log_bytes - before_bytes

    def __len__(self) -> int:
        return len(self._flows)
