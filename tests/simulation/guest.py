"""Guests by behaviour: what one request makes a guest do, and what its bytes look like.

The bytes of a body say whose they are: worker, request and place, over and over. So a byte that is lost, doubled,
moved or somebody else's shows wherever it is read.
"""

from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from random import Random

from isolates.outcome import Outcome


class Reading(Enum):
    """How much of the request body a guest reads, and when."""

    NOTHING = auto()
    PART = auto()  # the first piece, and then it answers
    ALL = auto()  # everything, and then it answers
    LATE = auto()  # it answers first and reads everything after
    ECHO = auto()  # it sends on what it reads, as it comes


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a request makes its guest do."""

    #: Before the head of the answer. Of a guest that is bound by the CPU it is CPU time, which is shared.
    runs_s: float = 0.001
    cpu_bound: bool = False
    reading: Reading = Reading.ALL
    #: Pieces of the answer's body after its first line, their size, and the time between two.
    pieces: int = 0
    piece_bytes: int = 0
    pause_s: float = 0.0
    #: How it ends; and whether that is after the head was sent.
    ends: Outcome = Outcome.OK
    after_head: bool = False
    #: Whether the isolate may serve again.
    keep: bool = True


#: The guest's own endings: what fails here fails on a calm day as well.
OWN_ENDINGS = (Outcome.EXCEPTION, Outcome.EXCEEDED_CPU, Outcome.HUNG, Outcome.EXCEEDED_MEMORY)
_CALM = Behaviour()


def behaviour(chance: Random, *, has_body: bool) -> Behaviour:
    """One at random; most are short and simple, as most requests are."""
    if chance.random() < 0.55:
        return Behaviour(
            runs_s=chance.choice((0.0005, 0.001, 0.003, 0.01)), reading=Reading.ALL if has_body else Reading.NOTHING
        )
    draw = chance.random()
    ends, after_head, keep = Outcome.OK, False, True
    if draw < 0.12:
        ends = chance.choice(OWN_ENDINGS)
        after_head = ends is not Outcome.HUNG and chance.random() < 0.4
        keep = ends is Outcome.EXCEPTION
    pieces = chance.choice((0, 0, 1, 2, 4, 8))
    piece_bytes = chance.choice((10, 200, 3_000)) if chance.random() < 0.97 else 60_000
    reading = chance.choice(tuple(Reading)) if has_body else Reading.NOTHING
    return Behaviour(
        runs_s=chance.choice((0.001, 0.005, 0.02, 0.1, 0.5)) * (0.5 + chance.random()),
        cpu_bound=chance.random() < 0.3,
        reading=reading,
        pieces=pieces,
        piece_bytes=piece_bytes,
        pause_s=chance.choice((0.0, 0.0, 0.002, 0.05)),
        ends=ends,
        after_head=after_head,
        keep=keep,
    )


def upload_of(worker: str, request_id: str, size: int) -> bytes:
    """The body of a request: worker, request and place, over and over."""
    return _marked(f"{worker}>{request_id}", size)


def download_of(worker: str, request_id: str, size: int) -> bytes:
    """The body of an answer after its first line."""
    return _marked(f"{worker}<{request_id}", size)


def first_line(worker: str, version: str, request_id: str) -> bytes:
    """How every answer begins: who answers, and whom."""
    return f"{worker} {version} {request_id}\n".encode()


#: Places in a body, eight digits each, between which its mark stands; enough for the largest.
_PLACES = tuple(f"{i:08d}".encode() for i in range(40_000))


@lru_cache(maxsize=512)  # a body is looked at where it is sent, where it is read and where it is compared
def _marked(mark: str, size: int) -> bytes:
    if not size:
        return b""
    mark_bytes = f";{mark}@".encode()
    return mark_bytes.join(_PLACES[: size // (8 + len(mark_bytes)) + 2])[:size]
