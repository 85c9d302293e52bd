"""Houses of isolates for the tests of residency, and short words for what happens in them."""

from collections.abc import Iterable

from actors.decision import Close, Decision, Start
from actors.exchange import ColdCause
from actors.residency import Residency, ResidencyLimits
from actors.worker import Reuse

FIRST = ColdCause.FIRST_EVER
ONCE = Reuse(max_requests=1)
MIB = 1 << 20


def house(**limits: float) -> Residency:
    return Residency(ResidencyLimits(**limits))  # type: ignore[arg-type]  # a test's shorthand


def ask(residency: Residency, ticket: str, version: str = "a", now_s: float = 0.0) -> list[Decision]:
    return residency.requested(ticket, version, FIRST, now_s)


def busy(residency: Residency, ticket: str, version: str = "a", now_s: float = 0.0) -> int:
    """One more isolate of ``version``, started for ``ticket`` and running it."""
    (start,) = (d for d in ask(residency, ticket, version, now_s) if isinstance(d, Start))
    assert residency.started(start.isolate, 10.0, now_s) == []
    return start.isolate


def idle(residency: Residency, version: str = "a", now_s: float = 0.0, *, cost_ms: float = 10.0) -> int:
    """One idle isolate of ``version`` that has served once."""
    (start,) = (d for d in ask(residency, f"first of {version}", version, now_s) if isinstance(d, Start))
    residency.started(start.isolate, cost_ms, now_s)
    assert residency.released(start.isolate, keep=True, now_s=now_s) == []
    return start.isolate


def twice(residency: Residency, version: str, now_s: float = 0.0) -> int:
    """One idle isolate of ``version`` that has served two requests."""
    isolate = idle(residency, version, now_s)
    residency.requested("second", version, FIRST, now_s)
    residency.released(isolate, keep=True, now_s=now_s)
    return isolate


def closed(decisions: Iterable[Decision]) -> list[int]:
    return [d.isolate for d in decisions if isinstance(d, Close)]


def once(residency: Residency, ticket: str, version: str = "a", now_s: float = 0.0) -> list[Decision]:
    """A request for a version whose isolates serve one each."""
    return residency.requested(ticket, version, FIRST, now_s, ONCE)


def spare(residency: Residency, version: str = "a", now_s: float = 0.0) -> int:
    """A first request of a single-shot version, over; the spare that was started ahead of the next one."""
    (start,) = (d for d in once(residency, f"first of {version}", version, now_s) if isinstance(d, Start))
    ahead = [d for d in residency.started(start.isolate, 10.0, now_s) if isinstance(d, Start)]
    (ahead_of_next,) = ahead
    assert residency.started(ahead_of_next.isolate, 10.0, now_s) == []
    residency.released(start.isolate, keep=True, now_s=now_s)
    return ahead_of_next.isolate
