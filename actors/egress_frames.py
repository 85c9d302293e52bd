"""What a host and its machine's way out say to each other. See ``link.py`` for the frames.

HEAD carries a ``ResponseHead``; BODY and DATA carry bytes, at most ``PIECE_BYTES_MAX`` of them.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from actors.egress_policy import LOOPS_MAX
from actors.exchange import Capability, ReportTraces
from actors.handed_books import Handed
from actors.wire import Codec, Undecodable
from isolates.conversation import ResponseHead
from isolates.egress import ErrorCode, OutgoingHead, OutgoingTimeouts

#: A piece of a body in one frame: what a guest writes or reads at once.
PIECE_BYTES_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Asked:
    """An outgoing request without its body, and for whom it is made.

    ``allow`` is the worker's allow-list (see ``egress_policy``), None without one. ``loops_left`` is how often the
    request may still go out. ``connections_max`` requests of the tree ``request_id`` are open at once; more wait.
    """

    head: OutgoingHead
    worker: str
    version: str = ""
    request_id: str = ""
    traceparent: str = ""
    timeouts: OutgoingTimeouts = field(default_factory=OutgoingTimeouts)
    allow: tuple[str, ...] | None = None
    loops_left: int = LOOPS_MAX
    connections_max: int = 6
    #: What the asking request runs under, where its trace is gathered, and what it is, as in ``exchange.Request``.
    context: bytes = b""
    call: Capability | None = None
    edge: str = ""
    #: Until the asking request has to be over; None: it may last as long as its client stays.
    left_ms: int | None = None
    report_traces: ReportTraces | None = None
    #: The books of the asking stage and of those above it, if its host kept them, the root's first.
    books: tuple[Handed, ...] = ()


ASKED: Final = Codec(Asked)
ANSWER_HEAD: Final = Codec(ResponseHead)
_FAILED = msgspec.msgpack.Decoder(tuple[str, Any])


def encode_failed(code: ErrorCode) -> bytes:
    """An error code as bytes."""
    return msgspec.msgpack.encode(code)


def decode_failed(data: bytes) -> ErrorCode:
    """An error code; payloads that are records come back as tuples. ``Undecodable`` for anything else."""
    try:
        case, payload = _FAILED.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as wrong:
        raise Undecodable(f"not an error code: {wrong}") from wrong
    return case, tuple(payload) if isinstance(payload, list) else payload
