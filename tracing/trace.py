"""What one request leaves behind: its place in a distributed trace, and its spans.

One request tree is one trace. The ingress makes (or continues) a `TraceContext`, hands it on as data, and whoever
does a part of the work makes `Span`s for it, wherever that is. Spans are plain values: they are made on the hot path,
so their constructor checks nothing; `validate` does, at the border where reports arrive and in tests.

The lists here are closed: a span name or an attribute name that is not in this file does not exist. HTTP names follow
the OpenTelemetry semantic conventions; what is ours starts with `everwarm.`.

`msgspec` structs where a request makes several: they are made in a fifth of the time of a frozen dataclass.

Pure: identifiers are made from random bytes, and times from nanoseconds, that the caller passes in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, TypeAlias

import msgspec

AttributeValue: TypeAlias = str | int | float | bool

TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8

# W3C Trace Context, level 1. A version after 00 may add fields behind the flags, separated by a dash.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
# Version 00 has 55 characters; a later one that needs more than this is not a header anyone sends in good faith.
_TRACEPARENT_CHARS_MAX: Final = 256
_TRACE_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_SPAN_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_TRACE_ID_ZERO: Final = "0" * 32
_SPAN_ID_ZERO: Final = "0" * 16


def new_trace_id(entropy: bytes) -> str:
    """A trace id of 32 hex digits from exactly 16 random bytes. ValueError for another length."""
    return _hex_id(entropy, TRACE_ID_BYTES)


def new_span_id(entropy: bytes) -> str:
    """A span id of 16 hex digits from exactly 8 random bytes. ValueError for another length."""
    return _hex_id(entropy, SPAN_ID_BYTES)


def _hex_id(entropy: bytes, size_bytes: int) -> str:
    if len(entropy) != size_bytes:
        raise ValueError(f"an id needs {size_bytes} random bytes, not {len(entropy)}")
    # All zeros means "no id" to every reader of the format.
    return entropy.hex() if any(entropy) else "0" * (2 * size_bytes - 1) + "1"


class TraceContext(msgspec.Struct, frozen=True):
    """Where in which trace the bearer is: `span_id` is the parent of the spans it will make.

    `trace_id`: 32 lower-case hex digits, `span_id`: 16, neither all zeros. `sampled`: the caller keeps its part.
    """

    trace_id: str
    span_id: str
    sampled: bool

    def traceparent(self) -> str:
        """The W3C header value, always as version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    def child(self, span_id: str) -> TraceContext:
        """The same trace, one span further down."""
        return TraceContext(self.trace_id, span_id, self.sampled)


@lru_cache(maxsize=4_096)  # several read each: every role on the way, and each stage for those that it calls
def parse_traceparent(header: str) -> TraceContext | None:
    """Read a `traceparent` header. None when a W3C reader must ignore it (and start a trace of its own).

    Strict: lower-case hex only, no spaces, no zero ids, version ff refused. Of later versions the first four fields
    are read, as the specification asks, and what follows them is ignored.
    """
    if len(header) > _TRACEPARENT_CHARS_MAX:
        return None
    match = _TRACEPARENT.fullmatch(header)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    if trace_id == _TRACE_ID_ZERO or span_id == _SPAN_ID_ZERO:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1))


class SpanName(StrEnum):
    """What a span can be. `request` is a stage of the tree; the others are phases of one."""

    REQUEST = "request"
    TLS = "tls"
    ROUTE = "route"
    HOP = "hop"
    QUEUE = "queue"
    FETCH_CODE = "fetch_code"
    MAP = "map"
    INSTANTIATE = "instantiate"
    STARTUP = "startup"
    HANDLER = "handler"
    SUBREQUEST = "subrequest"
    RESPOND = "respond"


class Role(StrEnum):
    """Who made a span."""

    INGRESS = "ingress"
    SERVER = "server"
    SHARD_SERVER = "shard-server"
    ISOLATE_HOST = "isolate-host"


class EventName(StrEnum):
    """What can happen inside a span without a duration of its own."""

    LOG = "log"
    STDOUT = "stdout"
    STDERR = "stderr"
    EXCEPTION = "exception"


class Attr:
    """The attribute names. Values are `str`, `int` (64 bits), `float` or `bool`; units are at the end of the names."""

    WORKER: Final = "everwarm.worker"
    VERSION: Final = "everwarm.version"
    REQUEST_ID: Final = "everwarm.request_id"
    START_TYPE: Final = "everwarm.start_type"
    COLD_CAUSE: Final = "everwarm.cold_cause"
    OUTCOME: Final = "everwarm.outcome"
    PHASE: Final = "everwarm.phase"
    CPU_MS: Final = "everwarm.cpu_ms"
    QUEUE_MS: Final = "everwarm.queue_ms"
    ISOLATE: Final = "everwarm.isolate"
    ISOLATE_REQUESTS: Final = "everwarm.isolate_requests"
    SERVER: Final = "everwarm.server"
    ROLE: Final = "everwarm.role"
    HOME: Final = "everwarm.home"
    HOP: Final = "everwarm.hop"
    REFUSED: Final = "everwarm.refused"
    RING_EPOCH: Final = "everwarm.ring_epoch"
    DEPTH: Final = "everwarm.depth"
    BINDING: Final = "everwarm.binding"
    STAGES: Final = "everwarm.stages"
    SAMPLED: Final = "everwarm.sampled"
    LOG_TEXT: Final = "everwarm.log_text"
    TRUNCATED: Final = "everwarm.truncated"

    HTTP_METHOD: Final = "http.request.method"
    HTTP_STATUS: Final = "http.response.status_code"
    HTTP_REQUEST_BYTES: Final = "http.request.body.size"
    HTTP_RESPONSE_BYTES: Final = "http.response.body.size"
    URL_SCHEME: Final = "url.scheme"
    URL_PATH: Final = "url.path"
    URL_QUERY: Final = "url.query"
    SERVER_ADDRESS: Final = "server.address"
    ERROR_TYPE: Final = "error.type"
    EXCEPTION_MESSAGE: Final = "exception.message"


ATTRIBUTES: Final[frozenset[str]] = frozenset(
    value for name, value in vars(Attr).items() if not name.startswith("_") and isinstance(value, str)
)


class SpanEvent(msgspec.Struct, frozen=True, array_like=True):
    """Something at one moment (`at_ns`, unix nanoseconds) inside a span, e.g. a line of a guest's log."""

    name: str
    at_ns: int
    attributes: dict[str, AttributeValue] = msgspec.field(default_factory=dict)


class Span(msgspec.Struct, frozen=True, array_like=True):
    """One piece of work. Times are unix nanoseconds; `server` is the machine ("server-1"), `role` one of `Role`.

    `parent_span_id` is None for a trace that started here. `error` is true when the work failed, not when it was
    refused: a refusal is an answer. Nothing is checked here, see `validate`.
    """

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: SpanName
    start_ns: int
    end_ns: int
    server: str
    role: str
    attributes: dict[str, AttributeValue] = msgspec.field(default_factory=dict)
    events: tuple[SpanEvent, ...] = ()
    error: bool = False


@dataclass(frozen=True, slots=True)
class SpanLimits:
    """What `validate` lets pass; a span over these is refused, so reporters truncate first.

    A trace may carry 256 KiB of logs (the limit of a request), and a guest cannot make one line of all of it.
    """

    attributes_max: int = 64
    attribute_chars_max: int = 16 * 1024
    events_max: int = 1024
    name_chars_max: int = 256


# What the objects themselves weigh in CPython, rounded up: a span with its ids and dict, a dict entry, an event.
_SPAN_BYTES: Final = 512
_ATTRIBUTE_BYTES: Final = 96
_EVENT_BYTES: Final = 256


def approximate_bytes(span: Span) -> int:
    """About how much memory `span` holds, for the byte bounds of queues and rings. Strings count by their length."""
    return (
        _SPAN_BYTES
        + _attributes_bytes(span.attributes)
        + sum(_EVENT_BYTES + _attributes_bytes(event.attributes) for event in span.events)
    )


def _attributes_bytes(attributes: dict[str, AttributeValue]) -> int:
    return sum(_ATTRIBUTE_BYTES + (len(value) if isinstance(value, str) else 0) for value in attributes.values())


_NS_MAX: Final = 2**63 - 1
_SPAN_NAMES: Final = frozenset(name.value for name in SpanName)
_ROLES: Final = frozenset(role.value for role in Role)
_EVENT_NAMES: Final = frozenset(name.value for name in EventName)


def validate(span: Span, limits: SpanLimits = SpanLimits()) -> str | None:
    """What is wrong with `span`, in words, or None. Knows the closed lists, the forms of ids, and the bounds."""
    if not _TRACE_ID.fullmatch(span.trace_id) or span.trace_id == _TRACE_ID_ZERO:
        return "trace_id is not 32 hex digits"
    if not is_span_id(span.span_id):
        return "span_id is not 16 hex digits"
    if span.parent_span_id is not None and not is_span_id(span.parent_span_id):
        return "parent_span_id is not 16 hex digits"
    if span.parent_span_id == span.span_id:
        return "a span is its own parent"
    if span.name not in _SPAN_NAMES:
        return f"no such span: {span.name[:64]}"
    if span.role not in _ROLES:
        return f"no such role: {span.role[:64]}"
    if not 0 < len(span.server) <= limits.name_chars_max:
        return "server is empty or too long"
    if not 0 <= span.start_ns <= span.end_ns <= _NS_MAX:
        return "a span ends before it starts"
    if len(span.events) > limits.events_max:
        return f"more than {limits.events_max} events"
    wrong = _wrong_attributes(span.attributes, limits)
    if wrong is not None:
        return wrong
    for event in span.events:
        if event.name not in _EVENT_NAMES:
            return f"no such event: {event.name[:64]}"
        if not 0 <= event.at_ns <= _NS_MAX:
            return "an event without a time"
        wrong = _wrong_attributes(event.attributes, limits)
        if wrong is not None:
            return wrong
    return None


def is_span_id(text: str) -> bool:
    """16 lower-case hex digits, not all zeros."""
    return _SPAN_ID.fullmatch(text) is not None and text != _SPAN_ID_ZERO


def _wrong_attributes(attributes: dict[str, AttributeValue], limits: SpanLimits) -> str | None:
    if len(attributes) > limits.attributes_max:
        return f"more than {limits.attributes_max} attributes"
    for name, value in attributes.items():
        if name not in ATTRIBUTES:
            return f"no such attribute: {name[:64]}"
        if isinstance(value, str):
            if len(value) > limits.attribute_chars_max:
                return f"{name} is longer than {limits.attribute_chars_max} characters"
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                return f"{name} does not fit 64 bits"
        elif not isinstance(value, float):
            return f"{name} is of type {type(value).__name__}"
    return None
