"""Spans as bytes, for the way between processes: MessagePack, versioned, bounded.

What arrives may come from a process that runs tenants' code, so it is checked whole before it is a `Span`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec.structs import replace

from tracing.trace import AttributeValue, Span, SpanEvent, validate

_WIRE_VERSION: Final = 2
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class WireLimits:
    """A trace may carry 256 KiB of logs; 4 MiB hold a report of a dozen such, and thousands of ordinary spans."""

    message_bytes_max: int = 4 * 1024 * 1024
    spans_max: int = 4096


@dataclass(frozen=True, slots=True)
class Malformed:
    """A report that was not accepted, and why (safe to log: names and sizes, no values)."""

    reason: str


class _Report(msgspec.Struct, array_like=True, frozen=True):
    version: int
    spans: list[Span]


class _Version(msgspec.Struct, array_like=True, frozen=True):
    version: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Report)
_version_decoder = msgspec.msgpack.Decoder(_Version)


def encode_spans(spans: Sequence[Span]) -> bytes:
    """`spans` as one report. Never raises for odd values: what MessagePack cannot carry is carried as text."""
    listed = list(spans)
    try:
        return _encoder.encode(_Report(_WIRE_VERSION, listed))
    except (OverflowError, UnicodeEncodeError):
        return _encoder.encode(_Report(_WIRE_VERSION, [_carriable(span) for span in listed]))


def decode_spans(data: bytes, limits: WireLimits = WireLimits()) -> list[Span] | Malformed:
    """The spans of a report, or why it is refused: too large, not a report, or a span that `validate` refuses."""
    if len(data) > limits.message_bytes_max:
        return Malformed(f"a report of {len(data)} bytes is over the limit of {limits.message_bytes_max}")
    try:
        version = _version_decoder.decode(data).version
        if version != _WIRE_VERSION:
            return Malformed(f"a report of version {version}, and this is version {_WIRE_VERSION}")
        spans = _decoder.decode(data).spans
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Malformed(f"not a report: {type(error).__name__}")
    if len(spans) > limits.spans_max:
        return Malformed(f"a report of {len(spans)} spans is over the limit of {limits.spans_max}")
    for span in spans:
        wrong = validate(span)
        if wrong is not None:
            return Malformed(wrong)
    return spans


def _carriable(span: Span) -> Span:
    return replace(
        span,
        server=_text(span.server),
        attributes=_values(span.attributes),
        events=tuple(SpanEvent(_text(event.name), event.at_ns, _values(event.attributes)) for event in span.events),
    )


def _values(attributes: dict[str, AttributeValue]) -> dict[str, AttributeValue]:
    return {_text(name): _value(value) for name, value in attributes.items()}


def _value(value: AttributeValue) -> AttributeValue:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int) and not _INT64_MIN <= value <= _INT64_MAX:
        # hex(), since printing a huge number in decimal is quadratic.
        return hex(value)[:64]
    return value


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
