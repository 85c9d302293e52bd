"""One request's journey through a Server, as a table. Pure.

    ARRIVED ──routed here──────────────────────────────► RUNNING_HERE ──ended──► DONE
       │                                                     ▲
       └──routed home──► OFFERED ──refused / unreachable──────┘
                            │  └───lost, may run again ───────┘
                            │
                            ├──body read──► AT_HOME ──answered──► RELAYING ──ended──► DONE
                            └──answered─────────────────────────►─┘

The request is *offered*: head, first bytes and the capability go out at once, nobody is asked first. What the home
does next tells whether it took it. A refusal is a typed reply. Reading the body is an acceptance, for only an executor
reads. An answer is one, of course. Until one of them is seen nothing is known: **no verdict means unknown, not
refused**. If the home is lost then, the guest may have run, and the request runs again only if HTTP says that doing
it twice is doing it once, and if every byte of its body is still here.

The window is what makes both cases cheap: the first bytes stay with the request until the home reads beyond them.

A pair that is missing from the table is a bug in the caller and raises, with both names.
"""

from dataclasses import dataclass
from enum import Enum, auto

#: RFC 9110 section 9.2.2: the idempotent methods.
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})


class Phase(Enum):
    """Where a request is."""

    ARRIVED = auto()
    OFFERED = auto()
    AT_HOME = auto()
    RELAYING = auto()
    RUNNING_HERE = auto()
    DONE = auto()


class Event(Enum):
    """What happened."""

    ROUTED_HERE = auto()
    ROUTED_HOME = auto()
    BODY_READ = auto()
    REFUSED = auto()
    UNREACHABLE = auto()  # the offer was certainly not delivered
    LOST_REPEATABLE = auto()  # the home went away; running it again is safe
    LOST = auto()  # the home went away; running it again might do it twice
    ANSWERED = auto()
    ENDED = auto()
    CLIENT_GONE = auto()


class Command(Enum):
    """What is to be done."""

    OFFER = auto()
    RUN_HERE = auto()
    RUN_HERE_AND_REMEMBER = auto()  # the refusal sticks until this machine's isolate of the version is evicted
    KEEP_READING = auto()
    RELAY = auto()
    FAIL_HOME_LOST = auto()
    BREAK_OFF = auto()  # the response was under way: reset, never a clean end
    ABORT_HOME = auto()
    FINISH = auto()


_TABLE: dict[Phase, dict[Event, tuple[Phase, Command]]] = {
    Phase.ARRIVED: {
        Event.ROUTED_HERE: (Phase.RUNNING_HERE, Command.RUN_HERE),
        Event.ROUTED_HOME: (Phase.OFFERED, Command.OFFER),
        Event.CLIENT_GONE: (Phase.DONE, Command.FINISH),
    },
    Phase.OFFERED: {
        Event.BODY_READ: (Phase.AT_HOME, Command.KEEP_READING),
        Event.REFUSED: (Phase.RUNNING_HERE, Command.RUN_HERE_AND_REMEMBER),
        Event.UNREACHABLE: (Phase.RUNNING_HERE, Command.RUN_HERE),
        Event.LOST_REPEATABLE: (Phase.RUNNING_HERE, Command.RUN_HERE),
        Event.LOST: (Phase.DONE, Command.FAIL_HOME_LOST),
        Event.ANSWERED: (Phase.RELAYING, Command.RELAY),
        Event.CLIENT_GONE: (Phase.DONE, Command.ABORT_HOME),
    },
    Phase.AT_HOME: {
        Event.BODY_READ: (Phase.AT_HOME, Command.KEEP_READING),
        Event.LOST_REPEATABLE: (Phase.RUNNING_HERE, Command.RUN_HERE),
        Event.LOST: (Phase.DONE, Command.FAIL_HOME_LOST),
        Event.ANSWERED: (Phase.RELAYING, Command.RELAY),
        Event.CLIENT_GONE: (Phase.DONE, Command.ABORT_HOME),
    },
    Phase.RELAYING: {
        # A guest may answer first and read its body later.
        Event.BODY_READ: (Phase.RELAYING, Command.KEEP_READING),
        Event.LOST_REPEATABLE: (Phase.DONE, Command.BREAK_OFF),
        Event.LOST: (Phase.DONE, Command.BREAK_OFF),
        Event.ENDED: (Phase.DONE, Command.FINISH),
        Event.CLIENT_GONE: (Phase.DONE, Command.ABORT_HOME),
    },
    Phase.RUNNING_HERE: {
        # A home that was believed lost may still read; it gets the end of a body that is no longer its own.
        Event.BODY_READ: (Phase.RUNNING_HERE, Command.KEEP_READING),
        Event.ENDED: (Phase.DONE, Command.FINISH),
        Event.CLIENT_GONE: (Phase.DONE, Command.FINISH),
    },
    Phase.DONE: {
        Event.BODY_READ: (Phase.DONE, Command.KEEP_READING),
        Event.CLIENT_GONE: (Phase.DONE, Command.FINISH),
    },
}


class IllegalStep(Exception):
    """An event that cannot happen in this phase: a bug in whoever drives the journey."""


def step(phase: Phase, event: Event) -> tuple[Phase, Command]:
    """The next phase and what to do. ``IllegalStep`` for a pair that is not in the table."""
    try:
        return _TABLE[phase][event]
    except KeyError:
        raise IllegalStep(f"{event.name} in {phase.name}") from None


def lost_event(method: str, *, delivered: bool | None, body_intact: bool) -> Event:
    """What the loss of the home means before any byte of its answer was seen.

    ``delivered``: False when the offer certainly did not reach it, None when that is unknown.
    ``body_intact``: every byte of the request body is still here.
    """
    if delivered is False:
        return Event.UNREACHABLE
    if method.upper() in IDEMPOTENT and body_intact:
        return Event.LOST_REPEATABLE
    return Event.LOST


@dataclass(slots=True)
class Journey:
    """The state of one request: its phase, and whether its window is still whole."""

    method: str
    phase: Phase = Phase.ARRIVED
    body_intact: bool = True

    def on(self, event: Event) -> Command:
        """Take one step."""
        if event is Event.BODY_READ and self.phase in (Phase.OFFERED, Phase.AT_HOME):
            self.body_intact = False
        self.phase, command = step(self.phase, event)
        return command

    def on_lost(self, *, delivered: bool | None) -> Command:
        """The home went away."""
        return self.on(lost_event(self.method, delivered=delivered, body_intact=self.body_intact))
