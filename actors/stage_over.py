"""A host's word that a stage is over of which tail workers hear: what it was, how it ended, what it wrote. Pure.

It goes to the Server of the same machine at once, ahead of the answer's own end, and from there to whoever keeps the
tree's ``flow``: nothing of it is in the way of an answer, and it outlives the isolate.
"""

from collections.abc import Iterable
from dataclasses import replace

from msgspec import Struct

from actors.exchange import Ended, Outcome, ReportTraces, Request, RequestHead
from actors.stage_report import Ending, Line
from actors.wire import Codec

#: A stage may write 256 KiB (semantics, section 1), so that a frame has room for it.
LOG_BYTES_MAX = 256 * 1024
#: Endings that are the platform's: what it says of them is for its operators.
_OURS = frozenset({Outcome.INTERNAL_ERROR, Outcome.HUNG, Outcome.HOME_LOST})


class StageOver(Struct, frozen=True):
    """``handler``: the span of its handler, by which its Server knows what it called; empty when no guest ran."""

    report: ReportTraces
    ending: Ending
    handler: str = ""


STAGE_OVER = Codec(StageOver)


def stage_over(request: Request, ending: Ending, machine: str, *, handler: str = "") -> StageOver | None:
    """What a host tells of a request; None when no tail worker wants to hear it."""
    report = request.report_traces
    if report is None or not report.is_wanted:
        return None
    stage = replace(report.stage, machine=machine, run=len(request.lost_with))
    return StageOver(ReportTraces(stage, report.to), ending, handler)


def ending_of(
    request: Request,
    ended: Ended,
    *,
    at_ms: int,
    status: int | None = None,
    cold_cause: str = "",
    lines: Iterable[Line] = (),
) -> Ending:
    """How a request ended, for whoever looks after its worker. ``at_ms``: when it began, unix time."""
    head = request.head
    ending = Ending(
        ended.outcome, ended.cpu_ms, ended.wall_ms, ended.start_type, cold_cause, at_ms, head.method,
        head.url, status, exception_of(ended), tuple(lines),
    )  # fmt: skip
    return ending.cut(LOG_BYTES_MAX)


def seen_of(ended: Ended, head: RequestHead, status: int | None) -> tuple[Ending, bool]:
    """How a call ended for its caller, and whether a guest was reached that has its own word."""
    ending = Ending(
        ended.outcome, ended.cpu_ms, ended.wall_ms, ended.start_type, method=head.method, url=head.url, status=status,
        exception=exception_of(ended),
    )  # fmt: skip
    return ending, bool(ended.server) or ended.outcome in (Outcome.HOME_LOST, Outcome.CANCELED)


def exception_of(ended: Ended) -> str:
    """What a worker's owner may read of why it failed."""
    return "" if ended.outcome in (Outcome.OK, Outcome.CANCELED) or ended.outcome in _OURS else ended.reason
