"""TailDesk: a Server's part in what tail workers hear. It opens flows, gathers what stages tell, and calls the tails.

    Server._answer ── entering ──► a flow, for the outermost worker with a tail; else what its caller's flow is told
    host ── STAGE ──► told ── report_stage ──► the desk that keeps the flow ── tick ──► one request to each tail worker

The flow of a tree (``flow``) is kept where the request of its outermost worker with a tail was sent from: the Server
that got it from outside, or the caller's. So it outlives the machine that runs that worker, and the refusals before.
What a stage tells reaches it on the side, never in the way of an answer.

A tail worker is asked like any other, with a POST of the stages as JSON, under a trace of its own; nothing below it is
told to anybody, or two workers that are each other's tails would never end. It is asked once: what is shed or fails is
counted, and not repeated, since its guest may have run.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace as replaced

import msgspec
from msgspec.structs import replace

from actors.calling_stage import CallingStage
from actors.exchange import Capability, Ended, Outcome, ReportTraces, Request, RequestHead, Served
from actors.flow import Flows
from actors.link import Answer, BodySource
from actors.peer import Calls, PeerFailed, PeerLost, Peers
from actors.side_work import SideWork
from actors.stage_over import STAGE_OVER, StageOver, seen_of
from actors.stage_report import Report, Stage
from actors.tail_events import TailBatch
from actors.wire import Codec
from actors.worker import Version

_log = logging.getLogger("everwarm.tail_desk")

#: How often trees are looked through for those that are over: a tail worker is never waited for.
_TICK_S = 0.2
#: Tail workers that are asked at once; more wait. A slow one must not take the machine's places from requests.
_ASKED_MAX = 32
#: A tail worker that takes longer is left alone: a stage may go on for 30 s after its answer, and has started before.
_ASK_S_MAX = 60.0
#: Another Server's flow: what it does not take in this time it will not hear.
_TELL_S_MAX = 5.0
#: Below a tail worker.
_NOBODY = Capability("", 0)


class _Told(msgspec.Struct, frozen=True):
    """``report``: that a stage is over; without it, that it was called."""

    to: Capability
    stage: Stage
    report: Report | None = None


_TOLD = Codec(_Told)


class TailDesk:
    """What one Server does for tail workers."""

    def __init__(
        self,
        server: str,
        *,
        peers: Peers,
        ask: Callable[[Request, BodySource], Awaitable[Ended]],
        entropy: Callable[[int], bytes],
    ) -> None:
        """``ask`` runs a request of this Server's own, with a trace of its own, to its end."""
        self._owner = f"{server}/server"
        self._peers = peers
        self._ask = ask
        self._entropy = entropy
        self._flows = Flows(self._owner)
        self._side = SideWork(f"{server}/tails")
        self._places = asyncio.Semaphore(_ASKED_MAX)
        self._counts = {"trees": 0, "told": 0, "failed": 0, "unheard_of": 0}
        self.calls: Calls = {"report_stage": self.report_stage}

    def statistics(self) -> dict[str, object]:
        """Counters; ``unheard_of``: trees without a place, or whose flow was away."""
        reports = self._flows.counts
        return {
            **self._counts,
            "flows": len(self._flows),
            "late": reports.late,
            "doubled": reports.doubled,
            "stale": reports.stale,
            "dropped": reports.dropped,
            "unheard": reports.unheard,
        }

    @property
    def owes(self) -> int:
        """Trees that are not over, and what is being told of those that are."""
        return len(self._flows) + len(self._side)

    async def work(self) -> None:
        """Call the tails of trees that are over, for as long as it is not cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            if len(self._flows):
                for batch in self._flows.tick(_now_s()):
                    self._side.begin(self._deliver(batch))

    async def stop(self) -> None:
        """Leave tails alone that have not answered."""
        await self._side.stop()

    # ---------------------------------------------------------------------------------------------- a stage is called

    def entering(self, request: Request, version: Version | None) -> "tuple[Request, Root | None]":
        """A request whose version is known now, with what its stage will tell. Also, if a flow begins with it: what
        wants to know how it ends."""
        report = request.report_traces
        if version is None or (report is None and version.bindings.tail is None):
            return request, None
        bindings = version.bindings
        stage = self._root_of(request) if report is None else report.stage
        stage = replaced(
            stage,
            version=version.version_id,
            tails=() if bindings.tail is None else bindings.tail.workers,
            dispatches=tuple(binding.namespace for binding in bindings.dispatch),
        )
        to = None if report is None else report.to
        if to is not None:
            if to.owner:
                self._tell(_Told(to, stage))
            return replace(request, report_traces=ReportTraces(stage, to)), None
        opened = self._flows.open(stage)
        if opened is None:
            self._counts["unheard_of"] += 1
            return replace(request, report_traces=None), None
        self._counts["trees"] += 1

        def over(ended: Ended, status: int | None) -> None:
            ending, ran = seen_of(ended, request.head, status)
            self._flows.answered(opened.key, ending, ran, _now_s())

        return replace(request, report_traces=ReportTraces(stage, opened)), Root(over)

    def _root_of(self, request: Request) -> Stage:
        """A request from outside: the span that it came with is its caller's, so it gets a name of its own."""
        return Stage(self._entropy(8).hex(), "", request.worker)

    # ------------------------------------------------------------------------------------------------ a stage is over

    def told(self, payload: bytes, calling: Callable[[str], CallingStage | None]) -> None:
        """A host of this machine says that a stage is over. ``calling`` finds what it called by its handler."""
        over = STAGE_OVER.decode(payload)
        self._side.begin(self._report(over, calling(over.handler)))

    async def _report(self, over: StageOver, calling: CallingStage | None) -> None:
        assert over.report.to is not None
        if calling is not None:
            await calling.wait_idle()  # or soon: its callees' ends are told with its own, if they are there
        calls = () if calling is None else tuple(calling.made.values())
        stage = over.report.stage
        await self._tell_now(_Told(over.report.to, stage, Report(stage, over.ending, calls)))

    def _tell(self, told: _Told) -> None:
        if told.to.owner == self._owner:
            self._take(told)
        else:
            self._side.begin(self._tell_now(told))

    async def _tell_now(self, told: _Told) -> None:
        if told.to.owner == self._owner:
            self._take(told)
            return
        try:
            async with asyncio.timeout(_TELL_S_MAX):
                await (await self._peers.get(told.to.owner)).call("report_stage", _TOLD.encode(told))
        except (PeerLost, PeerFailed, TimeoutError) as away:
            self._counts["unheard_of"] += 1
            _log.info("%s did not hear of a stage: %s", told.to.owner, away or "it took too long")

    async def report_stage(self, payload: bytes) -> bytes:
        """A stage of a tree whose flow is kept here was called somewhere, or is over."""
        self._take(_TOLD.decode(payload))
        return b""

    def _take(self, told: _Told) -> None:
        if told.report is None:
            self._flows.begin(told.to.key, told.stage, _now_s())
        else:
            self._flows.report(told.to.key, told.report, _now_s())

    # ------------------------------------------------------------------------------------------------- a tree is over

    async def _deliver(self, batch: TailBatch) -> None:
        """Ask one tail worker, once."""
        body = json.dumps(batch.events, ensure_ascii=False, separators=(",", ":")).encode()
        stage = Stage(self._entropy(8).hex(), "", batch.worker)
        request = Request(
            secrets.token_hex(8),
            batch.worker,
            RequestHead(
                "POST", "http", f"{batch.worker.rpartition('/')[2]}.tail.internal", "/",
                (("content-type", b"application/json"), ("content-length", str(len(body)).encode())),
            ),
            "",
            body_complete=False,
            report_traces=ReportTraces(stage, _NOBODY),
        )  # fmt: skip
        try:
            async with self._places, asyncio.timeout(_ASK_S_MAX):
                ended = await self._ask(request, Whole(body))
        except TimeoutError:
            self._counts["failed"] += 1
            _log.info("the tail worker %s took too long", batch.worker)
            return
        self._counts["told" if ended.server else "failed"] += 1


class Whole:
    """A body that is there."""

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    async def read(self, bytes_max: int) -> bytes | None:
        piece, self._left = self._left[:bytes_max], self._left[bytes_max:]
        return bytes(piece) or None


class Root:
    """The stage that a flow begins with, for whoever sends it: its end is told once, on every path."""

    def __init__(self, tell: Callable[[Ended, int | None], None]) -> None:
        self._tell: Callable[[Ended, int | None], None] | None = tell

    def over(self, ended: Ended, status: int | None = None) -> None:
        """How it ended. After the first time nothing."""
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(ended, status)

    def __enter__(self) -> None:
        """While it is being sent."""

    def __exit__(self, kind: type[BaseException] | None, failed: object, traceback: object) -> None:
        if kind is not None:
            self.over(Ended(Outcome.CANCELED))

    def watched(self, answer: Answer) -> Answer:
        """Its answer, with an eye on the end."""
        return _RootAnswer(answer, self)


class _RootAnswer:
    """Another answer; its end is told."""

    def __init__(self, answer: Answer, root: Root) -> None:
        self._answer = answer
        self._root = root
        self._status: int | None = None

    async def served(self) -> Served | None:
        served = await self._answer.served()
        self._status = None if served is None else served.status
        return served

    async def read(self) -> bytes | None:
        return await self._answer.read()

    @property
    def whole(self) -> bool:
        return self._answer.whole

    async def ended(self) -> Ended:
        ended = await self._answer.ended()
        self._root.over(ended, self._status)
        return ended

    def cancel(self) -> None:
        self._answer.cancel()
        self._root.over(Ended(Outcome.CANCELED), self._status)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
