"""What to do about a role whose process died or hangs: restart it, wait with that, or leave it alone.

Pure: news and `now` in, decisions out. Times are seconds of any clock.

A process's way, and what is done on it:

    STARTING ── up ──► RUNNING ── a probe fails ──► SUSPECT ── so many in a row ──► DEAD          KILL
        ▲                 ▲└──────── a probe is answered ────┘                        │
        │                 └───────────────────────────────────────────────────────────┤ its process is gone
        └── the time to restart has come ── WAITING ◄── at once, or later ────────────┤           RESTART at …
                                                        GIVEN_UP ◄── too many ────────┘           GIVE UP

**The first restart waits for nothing.** A process that ran well for a while and dies is back as soon as it can be. One
that dies again soon after is broken by something that a restart does not mend: the code, the disk, a port. It is tried
again with growing distance, so that it does not take the cores from those that serve, and after so many deaths it is
left alone, and a human is told.

**A slow request is not a dead process.** Probes are answered beside the requests, by a thread of their own, and say how
long ago the role's event loop last turned. A probe that is not answered, or tells of a loop that stands, makes a
process SUSPECT, and nothing follows from that. Only failures in a row make it DEAD. They are counted and not timed:
whoever probes may have been held up himself, and then nobody was asked.

**A busy process is not a dead one either.** One that has ten thousand calls to read on a slow machine answers late, and
one whose connection was cut for a while is heard of again only when Ray has made another. So whoever misses a probe is
*looked at* by the kernel of its machine: have its threads run since the last look? Those of a stopped process have not.
One that runs has several times the patience, and an end all the same: an endless loop runs too.

**A machine that is away is no process that hangs.** When nobody on another machine can look, its link is cut, or all of
it stands still. To end its processes would then cost what is warm there, and the orders would arrive when the link is
whole again. So only a failure that comes with a look counts.

**Awkward:** a process that hangs still holds its sockets and its port. So DEAD is first of all an order to end it; the
restart follows from its end, as from any other.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class SupervisionLimits:
    """Bounds and times, in seconds."""

    #: A probe is one small call. At 1,000 processes it is what 1,000 more heartbeats cost.
    probe_every_s: float = 1.0
    #: Whoever does not answer for so long is asked again at once. Measured beside 12 processes that compute without a
    #: pause on two cores: see docs/cluster.md.
    probe_s_max: float = 1.0
    #: An event loop that has not turned for so long stands, though its process answers. Nothing in a role blocks its
    #: loop for a tenth of it, but ten thousand calls at once on a busy machine keep it for some seconds.
    loop_s_max: float = 4.0
    #: Failures in a row of a process that stands still, each a probe that took `probe_s_max` or told of a loop that
    #: stands: with the wait for the first, 4 to 5 s for a process that is stopped. Its requests hang for so long; a
    #: server that is silent is out of the ring by then.
    probes_failed_max: int = 4
    #: The same of a process that runs. Ten thousand calls at once took a host 5.3 s to read, and more than 6 on the
    #: same machine in a slower hour; a connection that was cut for 8 s can take as long again.
    probes_failed_running_max: int = 15
    #: A process that was ended is gone within so long, or nobody is told of it. Its next one may need its port.
    end_s_max: float = 1.0
    #: Who ran for so long was well: its next death counts as the first.
    well_s: float = 30.0
    #: The first wait, doubled with each further death up to the longest.
    wait_s_first: float = 0.5
    wait_s_max: float = 30.0
    #: Deaths within `deaths_s`, of a process that was never well between them, after which it is left alone: with the
    #: waits, about two minutes of trying.
    deaths_max: int = 10
    deaths_s: float = 600.0
    #: Restarts of a role that are remembered, for whoever asks.
    remembered_max: int = 32


class State(Enum):
    """Where a process is on its way."""

    STARTING = "starting"
    RUNNING = "running"
    SUSPECT = "suspect"  # it did not answer the last probe, or its event loop stands; or its machine is away
    DEAD = "dead"  # it is to be ended, or is known to be gone
    WAITING = "waiting"  # it died again soon, and is restarted later
    GIVEN_UP = "given up"  # it is left alone until somebody changes something


class Event(Enum):
    """What happens to one process."""

    BEGAN = "began"  # a new process is made for the role
    UP = "up"  # the role has started
    ANSWERED = "answered"  # a probe
    MISSED = "missed"  # a probe: it took too long, or the loop stands
    CONDEMNED = "condemned"  # too many were missed in a row
    GONE = "gone"  # the process ended, or could not start


def _row(**to: State) -> dict[Event, State]:
    return {Event[name]: state for name, state in to.items()}


_STARTING, _RUNNING, _SUSPECT, _DEAD = State.STARTING, State.RUNNING, State.SUSPECT, State.DEAD
_WAITING, _GIVEN_UP = State.WAITING, State.GIVEN_UP

#: Every pair that can be. Probes of a process may be answered, or missed, after its end. GONE leads to DEAD first; what
#: comes of it is decided there.
TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    _STARTING: _row(UP=_RUNNING, ANSWERED=_STARTING, MISSED=_STARTING, GONE=_DEAD, BEGAN=_STARTING),
    _RUNNING: _row(ANSWERED=_RUNNING, MISSED=_SUSPECT, CONDEMNED=_DEAD, GONE=_DEAD),
    _SUSPECT: _row(ANSWERED=_RUNNING, MISSED=_SUSPECT, CONDEMNED=_DEAD, GONE=_DEAD),
    _DEAD: _row(ANSWERED=_DEAD, MISSED=_DEAD, GONE=_DEAD, BEGAN=_STARTING),
    _WAITING: _row(ANSWERED=_WAITING, MISSED=_WAITING, BEGAN=_STARTING),
    _GIVEN_UP: _row(ANSWERED=_GIVEN_UP, MISSED=_GIVEN_UP, BEGAN=_STARTING),
}


@dataclass(frozen=True, slots=True)
class Restart:
    """Make a new process for the role, after so many seconds; 0: now."""

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Leave the role alone. ``why`` is one line for the operator."""

    why: str


@dataclass(frozen=True, slots=True)
class Kill:
    """The process is there and does nothing: end it."""

    why: str


class Supervised:
    """What is known of one role's process."""

    def __init__(self, limits: SupervisionLimits = SupervisionLimits()) -> None:
        self.limits = limits
        self.state = State.STARTING
        self.restarts = 0
        self._up_s: float | None = None
        self._missed = 0
        self._stood = 0  # of those, in a row, the ones between which it did not run
        self._ran_ns: int | None = None  # what was seen of its process at the last one
        self._deaths: deque[float] = deque(maxlen=max(limits.deaths_max, 1))  # since it was last well
        #: How long the last restarts took, from the death to the role's start.
        self.took_s: deque[float] = deque(maxlen=limits.remembered_max)
        self._died_s: float | None = None

    def __repr__(self) -> str:
        return f"<{self.state.value}, {self.restarts} restarts, {len(self._deaths)} deaths, {self._missed} missed>"

    def _on(self, event: Event) -> None:
        after = TRANSITIONS[self.state].get(event)
        if after is None:
            raise AssertionError(f"a process is {self.state.value}, where {event.value} cannot be")
        self.state = after

    def began(self) -> None:
        """A new process is made for the role."""
        self._on(Event.BEGAN)
        self._well()
        self._up_s = None

    def up(self, now_s: float) -> None:
        """The role has started."""
        self._on(Event.UP)
        self._up_s = now_s
        if self._died_s is not None:
            self.restarts += 1
            self.took_s.append(now_s - self._died_s)
            self._died_s = None

    def answered(self, loop_s: float, *, ran_ns: int | None = None) -> Kill | None:
        """A probe was answered; the role's event loop last turned ``loop_s`` ago. ``ran_ns``: as ``missed``."""
        if loop_s > self.limits.loop_s_max:
            return self._miss(f"its event loop has stood for {loop_s:.1f} s", ran_ns)
        self._well()
        self._on(Event.ANSWERED)
        return None

    def missed(self, ran_ns: int | None) -> Kill | None:
        """A probe was not answered in time. ``ran_ns``: how long its threads have run, in ns; None when nobody on its
        machine can tell."""
        return self._miss("it does not answer", ran_ns)

    def _well(self) -> None:
        self._missed = self._stood = 0
        self._ran_ns = None

    def _miss(self, why: str, ran_ns: int | None) -> Kill | None:
        self._on(Event.MISSED)
        if self.state is not State.SUSPECT:
            return None  # one that starts has a time of its own; the others are gone
        if ran_ns is None:
            return None
        runs = self._ran_ns is not None and ran_ns != self._ran_ns
        self._ran_ns = ran_ns
        self._missed += 1
        self._stood = 0 if runs else self._stood + 1
        if self._stood < self.limits.probes_failed_max and self._missed < self.limits.probes_failed_running_max:
            return None
        self._on(Event.CONDEMNED)
        return Kill(f"{why}, {self._missed} probes in a row, and {'runs' if runs else 'stands still'}")

    def gone(self, now_s: float) -> Restart | GiveUp:
        """The process ended, whatever ended it, or the role could not be started in it."""
        self._on(Event.GONE)
        limits = self.limits
        if self._up_s is not None and now_s - self._up_s >= limits.well_s:
            self._deaths.clear()
        self._up_s = None
        self._deaths.append(now_s)
        if self._died_s is None:
            self._died_s = now_s
        lately = sum(now_s - died_s < limits.deaths_s for died_s in self._deaths)
        if lately >= limits.deaths_max:
            self.state = State.GIVEN_UP
            return GiveUp(f"it died {lately} times within {now_s - self._deaths[0]:.0f} s")
        after_s = wait_s(lately - 1, limits)
        if after_s:
            self.state = State.WAITING
        return Restart(after_s)


def wait_s(again: int, limits: SupervisionLimits) -> float:
    """How long a restart waits, of a process that died ``again`` times more than once since it was well."""
    if again <= 0:
        return 0.0
    # Beyond 64 doublings a float is as good as none.
    return min(limits.wait_s_max, limits.wait_s_first * 2.0 ** min(again - 1, 64))
