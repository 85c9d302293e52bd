"""What a host's residency decides, for the host to carry out outside its lock. Pure."""

from collections.abc import Hashable
from dataclasses import dataclass

from actors.exchange import ColdCause, StartType


@dataclass(frozen=True, slots=True)
class Use:
    """Run the ticket's request on this isolate."""

    ticket: Hashable
    isolate: int
    start_type: StartType


@dataclass(frozen=True, slots=True)
class Start:
    """Start this isolate. With a ticket: on its thread, for its request; without: ahead of any."""

    ticket: Hashable | None
    isolate: int
    version: str
    start_type: StartType
    cause: ColdCause


@dataclass(frozen=True, slots=True)
class Fail:
    """The version does not start: answer the ticket with ``why``, which the host gave to ``start_failed``."""

    ticket: Hashable
    why: object


@dataclass(frozen=True, slots=True)
class Shed:
    """The line is full: answer the ticket with ``loadShed``."""

    ticket: Hashable


@dataclass(frozen=True, slots=True)
class Close:
    """Delete this isolate. ``last``: the version has no other here."""

    isolate: int
    version: str
    last: bool


Decision = Use | Start | Fail | Shed | Close
