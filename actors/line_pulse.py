"""Whether the other end of a line is there, told by what comes from it. Pure: news and `now` in, decisions out.

    IDLE ── a call goes out ──► WAITING ── nothing is heard ──► ASKED ── still nothing ──► IN DOUBT ──► SILENT
      ▲                           │  ▲                            │                           │
      └── the last call is over ──┘  └───── anything is heard ────┴───────────────────────────┘

The kernel looks after the way to another machine, and says nothing of the process there: one that is stopped has its
bytes acknowledged for ever. So the other end's event loop is asked, while it owes an answer, and says that it turns; a
guest may take as long as it likes.

**Two bounds, for two mistakes.** Who is in doubt is sent nothing new that can go elsewhere: that is safe, since it was
not sent, and costs a cold start if the doubt was wrong. So the doubt comes early. Who is silent is given up, with all
that is under way there and may have run: requests that must not run twice fail. So silence comes late.

**Awkward:** whoever looks may have been held up himself, with the answers unread before him. When a look comes late,
that time does not count.
"""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class PulseLimits:
    """Bounds, in seconds."""

    #: How often a line with calls under way is looked at, and how long it may be quiet before it is asked.
    look_every_s: float = 0.25
    #: What must not run twice and goes out by then, into a link that was cut, fails: about one request of each that
    #: come within this time. Above the turn of a process on cores that are shared, nearly always.
    doubt_s: float = 1.0
    #: Above the 3 s after which the kernel gives up the way, and below the 5 s after which a server is out of the ring.
    silent_s: float = 4.0


class Pulse(Enum):
    """What is known of the other end."""

    IDLE = "idle"  # it owes nothing
    WAITING = "waiting"
    ASKED = "asked"
    IN_DOUBT = "in doubt"
    SILENT = "silent"  # the line is to be closed


class LinePulse:
    """One line, as its caller sees it."""

    def __init__(self, limits: PulseLimits = PulseLimits()) -> None:
        self.limits = limits
        self.pulse = Pulse.IDLE
        self._since_s = 0.0  # from when on nothing was heard
        self._look_s = 0.0  # when the next look is due

    def called(self, now_s: float) -> None:
        """A call goes out."""
        if self.pulse is Pulse.IDLE:
            self.pulse = Pulse.WAITING
            self._since_s = now_s
            self._look_s = now_s + self.limits.look_every_s

    def heard(self, now_s: float) -> None:
        """Something came from the other end."""
        if self.pulse is not Pulse.IDLE:
            self.pulse = Pulse.WAITING
            self._since_s = now_s

    def owes_nothing(self) -> None:
        """No call is under way any more."""
        self.pulse = Pulse.IDLE

    def look(self, now_s: float) -> Pulse:
        """What is known by now. To be called each ``look_every_s`` while it is not idle. ``ASKED``: it is to be asked,
        and once more at the next look if it has not answered by then."""
        late_s = now_s - self._look_s
        if late_s > self.limits.look_every_s:
            self._since_s += late_s
        self._look_s = now_s + self.limits.look_every_s
        quiet_s = now_s - self._since_s
        if self.pulse is Pulse.WAITING and quiet_s >= self.limits.look_every_s:
            self.pulse = Pulse.ASKED
            return Pulse.ASKED
        if self.pulse in (Pulse.ASKED, Pulse.IN_DOUBT):
            if quiet_s >= self.limits.silent_s:
                self.pulse = Pulse.SILENT
            elif quiet_s >= self.limits.doubt_s:
                self.pulse = Pulse.IN_DOUBT
        return self.pulse
