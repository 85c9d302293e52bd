"""A context as bytes: MessagePack, with a version and a size that are checked before anything else.

A context decides what a stranger's code may do, so half of one must never be read. What arrives is read by type, every
value checks itself, and then it is written again and compared: whatever this program did not understand (a field of
another version, one that is missing, one that is there twice, another spelling of a number) would not come out the
same. So one context has exactly one form, and anything else is ``Undecodable``.

``CONTEXT_BYTES_MAX``: it rides with the head of a request and up to 64 KiB of its body in one call, and calls of over
about 100 KB leave Ray's inline path. 16 KiB leave as much for the head. A dispatcher's is some 500 bytes; sixteen
layers with nothing special in them are 3 KiB.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from actors.context import Context
from actors.wire import Undecodable

CONTEXT_BYTES_MAX: Final = 16 * 1024
#: Goes up with every change of a field of ``Context`` or of what is in it.
CONTEXT_VERSION: Final = 2


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A context that may not travel: the call fails in its caller, who has set more than fits."""

    size_bytes: int


class _Envelope(msgspec.Struct, array_like=True, frozen=True):
    version: int
    context: Context


class _Version(msgspec.Struct, array_like=True, frozen=True):
    version: int


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_Envelope)
_VERSION_DECODER: Final = msgspec.msgpack.Decoder(_Version)


def encode_context(context: Context) -> bytes | TooLarge:
    """The context as bytes, at most ``CONTEXT_BYTES_MAX``."""
    data = _ENCODER.encode(_Envelope(CONTEXT_VERSION, context))
    return TooLarge(len(data)) if len(data) > CONTEXT_BYTES_MAX else data


def decode_context(data: bytes | memoryview) -> Context:
    """The context in ``data``. ``Undecodable`` for anything else; it says what is wrong, never what was in it."""
    if len(data) > CONTEXT_BYTES_MAX:
        raise Undecodable(f"a context of {len(data)} bytes")
    try:
        version = _VERSION_DECODER.decode(data).version
        if version != CONTEXT_VERSION:
            raise Undecodable(f"a context of version {version}, and this program reads {CONTEXT_VERSION}")
        envelope = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as wrong:
        raise Undecodable(f"not a context: {wrong}") from wrong
    if _ENCODER.encode(envelope) != data:
        raise Undecodable("not a context: fields that are unknown, missing or doubled")
    return envelope.context
