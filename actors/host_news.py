"""HostNews: all that a host tells the Server of its machine, over the line that is there for it.

Nothing here is waited for, and what does not arrive is told again or missed by nobody for long (``server_line``):

    NOTICE       warm, cold, unstarted: which versions have an isolate; over: a stage calls nobody any more
    HEAT         who ran here since the last time, and how busy the host is
    STAGE, LIVE  how a stage ended of which a tail worker hears, or whose worker somebody watches
    LATE_SPANS   what belongs into a trace whose root is over already
"""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from actors.connection import Frame
from actors.exchange import HeatReport, Load, Request
from actors.live_tail import LIVE_EVENT, WATCHED, LiveSwitch, live_event
from actors.stage_over import STAGE_OVER, stage_over
from actors.stage_report import Ending
from actors.wire import HEAT

#: Workers in one report: a frame holds 1 MiB, and each of these less than 100 bytes.
_REPORTED_AT_ONCE = 8_192


class HostNews:
    """Used by any thread of the host."""

    def __init__(self, server: str, tell: Callable[[Frame, bytes], None]) -> None:
        self._server = server
        self._tell = tell
        self._lock = threading.Lock()
        self._live = LiveSwitch()

    # ------------------------------------------------------------------------------------------------------ isolates

    def warmth(self, version: str, *, is_warm: bool) -> None:
        """A version has a started isolate here, or none any more."""
        self._tell(Frame.NOTICE, f"{'warm' if is_warm else 'cold'} {version}".encode())

    def unstarted(self, version: str) -> None:
        """Nothing was started ahead: there is one already, or no room."""
        self._tell(Frame.NOTICE, f"unstarted {version}".encode())

    def heat(self, socket: Path, load: Load, asked: Mapping[str, tuple[int, float]], memory_bytes_max: int) -> None:
        """By worker, requests that ended and CPU seconds of their guests since the last time; and how busy it is."""
        workers = list(asked)
        for i in range(0, max(1, len(workers)), _REPORTED_AT_ONCE):
            page = {worker: asked[worker] for worker in workers[i : i + _REPORTED_AT_ONCE]}
            self._tell(Frame.HEAT, HEAT.encode(HeatReport(str(socket), load, page, memory_bytes_max)))

    # -------------------------------------------------------------------------------------------------------- stages

    def watched(self, payload: bytes) -> None:
        """The Server says whose requests somebody watches."""
        with self._lock:
            self._live.set(WATCHED.decode(payload), time.monotonic())

    def is_heard(self, request: Request) -> bool:
        """Whether a tail worker hears of this stage, or somebody watches its worker."""
        report = request.report_traces
        return (report is not None and report.is_wanted) or self._live.is_on(request.worker)

    def stage_over(self, request: Request, ending: Ending, handler: str = "") -> None:
        """A stage is over. Before ``calls_nobody``: what it called is then still known."""
        over = stage_over(request, ending, self._server, handler=handler)
        if over is not None:
            self._tell(Frame.STAGE, STAGE_OVER.encode(over))
        if self._live.is_on(request.worker):
            with self._lock:
                missed = self._live.take(time.monotonic())
            if missed is not None:
                event = live_event(request, ending, self._server, missed, self._live.headers)
                self._tell(Frame.LIVE, LIVE_EVENT.encode(event))

    def calls_nobody(self, handler: str, cpu_us: int) -> None:
        """A stage that used the way out calls nobody any more, and used so much itself."""
        self._tell(Frame.NOTICE, f"over {handler} {cpu_us}".encode())

    def late_spans(self, edge: str, report: bytes) -> None:
        """Spans for the server where their tree came in, of a stage whose answer takes none along any more."""
        self._tell(Frame.LATE_SPANS, edge.encode() + b"\0" + report)
