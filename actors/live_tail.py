"""What somebody who watches a worker live is told, and what is kept for whoever reads slowly. Pure.

    hosts, edges ── LiveEvent ──► LiveTails ── queue of each tail ──► read
        ▲                            │
        └──── LiveSwitch: who is watched ◄── leases

Every request of a watched worker is an event, sampled or not, nested or not: it is told by whoever ended it, which is
the host that ran it, or the edge when no host had a word. Nobody watches most workers, and then nothing of this is
made: a host asks its ``LiveSwitch`` first, which is a look into an empty set.

Nothing here may slow a request down or grow. A tail that is not read loses its oldest events and says how many; one
whose reader is gone ends with its lease; a worker that is asked more often than anybody can read is told of at a rate,
and what is left out is counted.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import Any, Final

import msgspec

from actors.exchange import Ended, Outcome, Request, status_of
from actors.live_headers import NAMES_MAX, HeaderFilter, checked_header, has_header, parse_header, told_headers
from actors.stage_report import Ending
from actors.wire import Codec
from tracing.redaction import redact_query
from tracing.sampling import in_ratio
from tracing.token_bucket import TokenBucket
from tracing.trace import parse_traceparent


@dataclass(frozen=True, slots=True)
class LiveLimits:
    """``tails_per_worker_max``: as many people as look at one worker at once. ``tails_max``: of a machine.
    ``events_max``, ``bytes_max``: what waits for a reader, some seconds of a busy worker. ``log_bytes_max`` of one
    event: a screen or two; all of it is in the trace. ``batch_bytes_max`` of one answer to a reader. ``lease_s``: three
    reads that wait as long as they may. ``wait_s``: how long a read without events stays open. ``told_s``: how long
    hosts and edges believe that somebody watches, three times as long as it takes to say so again. ``events_per_s``: of
    one host or edge; more than that nobody reads, and ``--sampling`` is for.
    """

    tails_per_worker_max: int = 10
    tails_max: int = 64
    events_max: int = 512
    bytes_max: int = 1024 * 1024
    log_bytes_max: int = 32 * 1024
    batch_bytes_max: int = 256 * 1024
    lease_s: float = 30.0
    wait_s: float = 10.0
    told_s: float = 15.0
    events_per_s: float = 500.0


LIMITS: Final = LiveLimits()
_FILTERS_MAX: Final = 32
_SEARCH_CHARS_MAX: Final = 256
#: What an event weighs beside its texts.
_EVENT_BYTES: Final = 256


class LiveEvent(msgspec.Struct, frozen=True):
    """One invocation that is over. ``server``: who told of it. ``ending.url`` is redacted, its status what a client
    gets. ``missed``: events that the teller left out since its last one. ``headers``: those of the request that a
    reader asked for (``live_headers``)."""

    worker: str
    version: str
    server: str
    request_id: str
    trace_id: str
    nested: bool
    ending: Ending
    missed: int = 0
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def bytes_(self) -> int:
        """About what it weighs."""
        headers = sum(len(name) + len(value) for name, value in self.headers)
        return _EVENT_BYTES + self.ending.log_bytes + len(self.ending.url) + len(self.ending.exception) + headers


LIVE_EVENT = Codec(LiveEvent)


def live_event(
    request: Request, ending: Ending, server: str, missed: int = 0, headers: Collection[str] = ()
) -> LiveEvent:
    """What is told of a request: with the secrets in its query redacted, and logs cut. ``headers``: the names of those
    that somebody asks for."""
    path, question, query = ending.url.partition("?")
    status = ending.status
    if status is None and ending.outcome is not Outcome.OK:
        status = status_of(ending.outcome).status
    ending = replaced(ending, url=path + question + redact_query(query), status=status).cut(LIMITS.log_bytes_max)
    context = parse_traceparent(request.traceparent)
    return LiveEvent(
        request.worker, request.version, server, request.request_id, "" if context is None else context.trace_id,
        bool(request.context), ending, missed, told_headers(request.head.headers, headers) if headers else (),
    )  # fmt: skip


def untold(ended: Ended) -> bool:
    """Whether no host has a word on a request, so that whoever sent it has to tell. Not so of one that was cancelled:
    its host says so, if it reached one."""
    return not ended.server and ended.outcome is not Outcome.CANCELED


# ------------------------------------------------------------------------------------------------------------ filters


class LiveFilter(msgspec.Struct, frozen=True):
    """Which events a reader wants: those that are in every list that is not empty.

    ``statuses`` are ranges, both ends included. ``search`` is in the url, a line of log or the exception, as it is
    written. ``sampling``: the share of traces, from 0 to 1; all stages of one are told, or none. ``headers``: names,
    each with a text that is in the value.
    """

    statuses: tuple[tuple[int, int], ...] = ()
    methods: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    search: str = ""
    sampling: float = 1.0
    headers: tuple[HeaderFilter, ...] = ()

    def wants(self, event: LiveEvent) -> bool:
        """Whether an event passes."""
        ending = event.ending
        if self.methods and ending.method not in self.methods:
            return False
        if self.outcomes and ending.outcome.value not in self.outcomes:
            return False
        status = ending.status
        if self.statuses and (status is None or not any(low <= status <= high for low, high in self.statuses)):
            return False
        if self.headers and not has_header(event.headers, self.headers):
            return False
        if self.search and not any(self.search in text for text in _texts(ending)):
            return False
        return self.sampling >= 1.0 or in_ratio(event.trace_id, self.sampling)


def _texts(ending: Ending) -> Iterable[str]:
    yield ending.url
    yield ending.exception
    for line in ending.lines:
        yield line.text


def parse_filter(
    *,
    statuses: Iterable[str] = (),
    methods: Iterable[str] = (),
    outcomes: Iterable[str] = (),
    search: str = "",
    sampling: float = 1.0,
    headers: Iterable[str] = (),
) -> LiveFilter:
    """A filter as people write it: ``404``, ``5xx``, ``400-499``; in any case; ``KEY:VALUE`` or ``KEY`` for a header.
    ValueError says what is wrong."""
    known = {outcome.value.lower(): outcome.value for outcome in Outcome}
    found = []
    for outcome in outcomes:
        if outcome.lower() not in known:
            raise ValueError(f"there is no outcome {outcome!r}; there are {', '.join(known.values())}")
        found.append(known[outcome.lower()])
    made = LiveFilter(
        tuple(_statuses(text) for text in statuses), tuple(method.upper() for method in methods), tuple(found), search,
        sampling, tuple(parse_header(text) for text in headers),
    )  # fmt: skip
    return checked(made)


def _statuses(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    if not dash and len(text) == 3 and text[0].isdecimal() and text[1:].lower() == "xx":
        low, high = f"{text[0]}00", f"{text[0]}99"
    high = high or low
    if not (low.isdecimal() and high.isdecimal() and 100 <= int(low) <= int(high) <= 599):
        raise ValueError(f"a status is like 404, 5xx or 400-499, not {text!r}")
    return int(low), int(high)


def checked(wanted: LiveFilter) -> LiveFilter:
    """The filter, if it is within its bounds. ValueError says what is wrong."""
    if not 0.0 < wanted.sampling <= 1.0:
        raise ValueError("sampling is a share above 0 and up to 1")
    if len(wanted.search) > _SEARCH_CHARS_MAX:
        raise ValueError(f"a search has at most {_SEARCH_CHARS_MAX} characters")
    if max(map(len, (wanted.statuses, wanted.methods, wanted.outcomes, wanted.headers))) > _FILTERS_MAX:
        raise ValueError(f"at most {_FILTERS_MAX} statuses, methods, outcomes or headers")
    for header in wanted.headers:
        checked_header(header)
    return wanted


# ----------------------------------------------------------------------------------------------------------- who tells


class Watched(msgspec.Struct, frozen=True):
    """The workers that are watched through a Server, and no others. ``said_ns``: of what a Server says, the largest is
    the last. ``headers``: the names of those that events are to have."""

    said_ns: int
    workers: tuple[str, ...]
    headers: tuple[str, ...] = ()


WATCHED = Codec(Watched)


class LiveSwitch:
    """Which workers are watched, as a host or an edge knows it. Not thread-safe, except for ``is_on``.

    It believes what it was told for ``told_s``: a Server that is gone takes nothing back.
    """

    def __init__(self, limits: LiveLimits = LIMITS) -> None:
        self._limits = limits
        self._workers: frozenset[str] = frozenset()
        #: The names of headers that events are to have.
        self.headers: frozenset[str] = frozenset()
        self._said_ns = 0
        self._until_s = 0.0
        self._tokens = TokenBucket(limits.events_per_s, burst_s=1.0)
        self._missed = 0

    def set(self, watched: "Watched", now_s: float) -> None:
        """Whom the Server says to be watched. What it said before comes over another connection, and may come later."""
        if watched.said_ns < self._said_ns and now_s < self._until_s:
            return
        self._workers, self._said_ns = frozenset(watched.workers), watched.said_ns
        self.headers = frozenset(watched.headers)
        self._until_s = now_s + self._limits.told_s

    def is_on(self, worker: str) -> bool:
        """Whether somebody may watch a worker: the question that each request asks."""
        return worker in self._workers

    def take(self, now_s: float) -> int | None:
        """Leave to tell of one event, as the number of those left out before it; None: this one is left out."""
        if now_s >= self._until_s:
            self._workers = frozenset()
            return None
        if not self._tokens.take(now_s):
            self._missed += 1
            return None
        missed, self._missed = self._missed, 0
        return missed


# ----------------------------------------------------------------------------------------------------------- who reads


@dataclass(slots=True)
class _Tail:
    worker: str
    wanted: LiveFilter
    until_s: float
    events: deque[LiveEvent] = field(default_factory=deque)
    bytes: int = 0
    dropped: int = 0


class Batch(msgspec.Struct, frozen=True):
    """What a reader gets. ``dropped``: events that it missed since its last read. ``over``: there is no such tail any
    more, because it was not read for too long, or its Server began anew."""

    events: tuple[LiveEvent, ...] = ()
    dropped: int = 0
    over: bool = False


BATCH = Codec(Batch)


class LiveTails:
    """The tails of one Server, by their keys. ``now_s`` is any clock that does not run backwards."""

    def __init__(self, limits: LiveLimits = LIMITS) -> None:
        self._limits = limits
        self._tails: dict[str, _Tail] = {}
        self.dropped = 0

    @property
    def workers(self) -> frozenset[str]:
        """Who is watched."""
        return frozenset(tail.worker for tail in self._tails.values())

    @property
    def headers(self) -> frozenset[str]:
        """The names of the headers that readers ask for."""
        return frozenset(name for tail in self._tails.values() for name, _ in tail.wanted.headers)

    def open(self, key: str, worker: str, wanted: LiveFilter, now_s: float) -> str | None:
        """One more tail; why not, if there are too many."""
        limits = self._limits
        if sum(tail.worker == worker for tail in self._tails.values()) >= limits.tails_per_worker_max:
            return f"{limits.tails_per_worker_max} readers watch {worker} already"
        if len(self._tails) >= limits.tails_max:
            return f"{limits.tails_max} readers watch workers on this server already"
        if len(self.headers | {name for name, _ in wanted.headers}) > NAMES_MAX:
            return f"readers on this server ask for {NAMES_MAX} headers already"
        self._tails[key] = _Tail(worker, wanted, now_s + limits.lease_s)
        return None

    def close(self, key: str) -> None:
        """Its reader leaves."""
        self._tails.pop(key, None)

    def offer(self, event: LiveEvent) -> set[str]:
        """An event; the keys of the tails that have something to read by it."""
        woken = set()
        for key, tail in self._tails.items():
            if tail.worker != event.worker:
                continue
            if event.missed:
                self._drop(tail, event.missed)
                woken.add(key)
            if tail.wanted.wants(event):
                self._put(tail, event)
                woken.add(key)
        return woken

    def has_news(self, key: str) -> bool:
        """Whether a read would not be empty."""
        tail = self._tails.get(key)
        return tail is None or bool(tail.events) or tail.dropped > 0

    def read(self, key: str, now_s: float) -> Batch:
        """What waits for a reader, the oldest first; its lease begins anew."""
        tail = self._tails.get(key)
        if tail is None:
            return Batch(over=True)
        tail.until_s = now_s + self._limits.lease_s
        found: list[LiveEvent] = []
        weight = 0
        while tail.events and (not found or weight + tail.events[0].bytes_ <= self._limits.batch_bytes_max):
            event = tail.events.popleft()
            tail.bytes -= event.bytes_
            weight += event.bytes_
            found.append(event)
        dropped, tail.dropped = tail.dropped, 0
        return Batch(tuple(found), dropped)

    def expire(self, now_s: float) -> list[str]:
        """End the tails whose readers stay away; their keys."""
        over = [key for key, tail in self._tails.items() if now_s >= tail.until_s]
        for key in over:
            del self._tails[key]
        return over

    def _put(self, tail: _Tail, event: LiveEvent) -> None:
        limits = self._limits
        tail.events.append(event)
        tail.bytes += event.bytes_
        while len(tail.events) > limits.events_max or (tail.bytes > limits.bytes_max and len(tail.events) > 1):
            tail.bytes -= tail.events.popleft().bytes_
            self._drop(tail, 1)

    def _drop(self, tail: _Tail, count: int) -> None:
        tail.dropped += count
        self.dropped += count

    def __len__(self) -> int:
        return len(self._tails)

    def __repr__(self) -> str:
        return f"<LiveTails of {sorted(self.workers)}: {len(self._tails)}, {self.dropped} dropped>"


def plain_event(event: LiveEvent) -> dict[str, Any]:
    """An event as plain data: a line of ``everwarm tail --json``."""
    ending = event.ending
    plain: Mapping[str, Any] = {
        "at_ms": ending.at_ms,
        "worker": event.worker,
        "version": event.version,
        "server": event.server,
        "request_id": event.request_id,
        "trace_id": event.trace_id,
        "nested": event.nested,
        "method": ending.method,
        "url": ending.url,
        "headers": [list(header) for header in event.headers],
        "status": ending.status,
        "outcome": ending.outcome.value,
        "start_type": ending.start_type or None,
        "cold_cause": ending.cold_cause or None,
        "cpu_ms": round(ending.cpu_ms, 3),
        "wall_ms": round(ending.wall_ms, 3),
        "exception": ending.exception or None,
        "logs": [{"at_ms": line.at_ms, "level": line.level, "text": line.text} for line in ending.lines],
        "truncated": ending.truncated,
    }
    return dict(plain)
