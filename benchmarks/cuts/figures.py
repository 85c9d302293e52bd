"""What a fault cost, from what clients saw and what the cluster said of itself. Values in, values out.

All times are of one monotonic clock: the machines are namespaces of one kernel.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

#: What takes longer was held up. A request that starts an isolate on busy cores takes some tenths of this.
SLOW_S = 1.0

#: What the cluster says of itself when all is well, by who says it.
_WELL = {"ring": "member", "ray": "alive", "owner": "running"}
#: What is only a doubt: nothing follows from it yet.
_DOUBTS = frozenset({"suspect"})


@dataclass(frozen=True, slots=True)
class Seen:
    """One request of a client. ``status`` 0: no answer came."""

    sent_s: float
    over_s: float
    edge: str
    worker: str
    method: str
    status: int
    #: Nothing of it was sent: no connection was to be had.
    refused: bool = False
    #: Why it is none that a client wants; empty when it is.
    why: str = ""
    #: It ran at its home, on another machine.
    hop: bool = False

    @property
    def ok(self) -> bool:
        return self.status == 200 and not self.why

    @property
    def took_s(self) -> float:
        return self.over_s - self.sent_s

    @property
    def well(self) -> bool:
        """Answered rightly, and not held up."""
        return self.ok and self.took_s <= SLOW_S


@dataclass(frozen=True, slots=True)
class News:
    """What somebody says of somebody: ``ring`` of a server, ``ray`` of a node, ``owner`` of a role's process."""

    at_s: float
    by: str
    of: str
    state: str


@dataclass(frozen=True, slots=True)
class Span:
    """A quiet time before, the fault, and the time after it until all was well, or nobody waited any longer."""

    event: str
    quiet_s: float
    began_s: float
    ended_s: float
    closed_s: float


Figure = float | int | str | None | dict[str, "Figure"]


def noticed(span: Span, news: Iterable[News]) -> dict[str, Figure]:
    """How long after the fault's beginning each of them first said that something is not well."""
    found: dict[str, Figure] = {}
    for one in news:
        if not span.began_s <= one.at_s < span.closed_s or one.by in found or one.state in _DOUBTS:
            continue
        if one.state != _WELL[one.by]:
            found[one.by] = round(one.at_s - span.began_s, 1)
    return found


def cluster_well_s(span: Span, news: Sequence[News]) -> float | None:
    """From the fault's end until nobody says any more that something is not well: 0 when that was before, None when it
    was not until the span's end."""
    states: dict[tuple[str, str], str] = {}
    last_s = span.ended_s
    for one in news:
        if one.at_s < span.closed_s:
            states[one.by, one.of] = one.state
            last_s = max(last_s, one.at_s)
    if not is_well(states):
        return None
    return round(last_s - span.ended_s, 1)


def is_well(states: dict[tuple[str, str], str]) -> bool:
    """Whether all is well, by the last word on everybody. Who is forgotten is not missed."""
    return all(state in (_WELL[by], "forgotten") for (by, _), state in states.items())


def clients_well_s(span: Span, seen: Sequence[Seen]) -> float | None:
    """From the fault's end until the last request was sent that failed or was held up: 0 when that was before, None
    when requests were not well until the span's end."""
    bad = [one.sent_s for one in seen if span.began_s <= one.sent_s < span.closed_s and not one.well]
    last_s = max(bad, default=0.0)
    if last_s > span.closed_s - SLOW_S:
        return None
    return round(max(0.0, last_s - span.ended_s), 1)


def of_requests(seen: Sequence[Seen]) -> dict[str, Figure]:
    """Counts and times of some requests."""
    if not seen:
        return {"asked": 0}
    took_s = [one.took_s for one in seen if one.ok]
    return {
        "asked": len(seen),
        "ok": sum(one.ok for one in seen),
        "refused": sum(one.refused for one in seen),
        "failed": sum(not one.ok and not one.refused for one in seen),
        "failed_gets": sum(not one.ok and not one.refused and one.method == "GET" for one in seen),
        "wrong": sum(one.why == "wrong" for one in seen),
        "held_up": sum(one.ok and not one.well for one in seen),
        "hops": sum(one.hop for one in seen),
        "p50_ms": round(median(took_s) * 1e3, 1) if took_s else None,
        "slowest_s": round(max(one.took_s for one in seen), 2),
    }


def of_event(span: Span, seen: Sequence[Seen], news: Sequence[News]) -> dict[str, Figure]:
    """All figures of one fault."""
    quiet = [one for one in seen if span.quiet_s <= one.sent_s < span.began_s]
    during = [one for one in seen if span.began_s <= one.sent_s < span.ended_s]
    after = [one for one in seen if span.ended_s <= one.sent_s < span.closed_s]
    edges = sorted({one.edge for one in during})
    return {
        "event": span.event,
        "lasted_s": round(span.ended_s - span.began_s, 1),
        "noticed_s": noticed(span, news),
        "doubts": sum(one.state in _DOUBTS and span.began_s <= one.at_s < span.closed_s for one in news),
        "quiet": of_requests(quiet),
        "during": of_requests(during),
        **{f"during_{edge}": of_requests([one for one in during if one.edge == edge]) for edge in edges},
        "after": of_requests(after),
        "clients_well_s": clients_well_s(span, seen),
        "cluster_well_s": cluster_well_s(span, news),
    }
