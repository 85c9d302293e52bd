"""The values of ``exchange`` as bytes: MessagePack, decoded strictly, with a size that was checked before.

One codec per type, made once. What comes in is checked against the type while it is read; a peer of another version
that sends something else is ``Undecodable``, never half a value.
"""

from typing import Generic, TypeVar

import msgspec

from actors.exchange import Answered, Capability, Chunk, Ended, HeatReport, Refused, Request, Served

T = TypeVar("T")


class Undecodable(Exception):
    """Bytes that are not the value they should be. Says which type, never what was in them."""


class Codec(Generic[T]):
    """Encoder and decoder of one type."""

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(kind)

    def encode(self, value: T) -> bytes:
        """The value as bytes."""
        return self._encoder.encode(value)

    def decode(self, data: bytes | memoryview) -> T:
        """The value in ``data``. ``Undecodable`` for anything else."""
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as wrong:
            raise Undecodable(f"not a {self._kind.__name__}: {wrong}") from wrong


class Verdict(msgspec.Struct, tag_field="verdict", tag="", frozen=True):
    """A home's reply to an offer, told apart by its tag."""


class RefusedReply(Verdict, tag="refused", frozen=True):
    """The home took nothing."""

    refused: Refused


class AnsweredReply(Verdict, tag="answered", frozen=True):
    """The home ran it."""

    answered: Answered


REQUEST = Codec(Request)
SERVED = Codec(Served)
ENDED = Codec(Ended)
CHUNK = Codec(Chunk)
HEAT = Codec(HeatReport)
CAPABILITY = Codec(Capability)
_VERDICT = msgspec.msgpack.Decoder(RefusedReply | AnsweredReply)
_ENCODER = msgspec.msgpack.Encoder()


def encode_verdict(verdict: Refused | Answered) -> bytes:
    """A home's reply as bytes."""
    return _ENCODER.encode(RefusedReply(verdict) if isinstance(verdict, Refused) else AnsweredReply(verdict))


def decode_verdict(data: bytes) -> Refused | Answered:
    """A home's reply. ``Undecodable`` for anything else."""
    try:
        reply = _VERDICT.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as wrong:
        raise Undecodable(f"not a verdict: {wrong}") from wrong
    return reply.refused if isinstance(reply, RefusedReply) else reply.answered
