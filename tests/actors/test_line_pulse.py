"""When a line asks, doubts, and gives up: with a clock of our own."""

from actors.call_line import _SILENT_MS_MAX
from actors.line_pulse import LinePulse, Pulse, PulseLimits
from actors.membership import MembershipLimits

LIMITS = PulseLimits()


def looks(line: LinePulse, since_s: float, until_s: float) -> list[Pulse]:
    """What it finds at each look after ``since_s``."""
    count = round((until_s - since_s) / LIMITS.look_every_s)
    return [line.look(since_s + (i + 1) * LIMITS.look_every_s) for i in range(count)]


def test_who_says_nothing_is_asked_then_doubted_then_given_up() -> None:
    line = LinePulse()
    line.called(10.0)
    found = looks(line, 10.0, 14.0)
    assert found == [Pulse.ASKED] * 3 + [Pulse.IN_DOUBT] * 12 + [Pulse.SILENT]


def test_whoever_is_heard_is_asked_anew_and_no_guest_is_too_slow() -> None:
    line, now_s = LinePulse(), 0.0
    line.called(now_s)
    for _ in range(1_000):
        assert looks(line, now_s, now_s + 0.5) == [Pulse.ASKED, Pulse.ASKED]
        now_s += 0.5
        line.heard(now_s)
        assert line.pulse is Pulse.WAITING


def test_a_doubt_ends_with_a_word() -> None:
    line = LinePulse()
    line.called(0.0)
    looks(line, 0.0, 2.0)
    assert line.pulse is Pulse.IN_DOUBT
    line.heard(2.1)
    assert line.pulse is Pulse.WAITING
    line.called(2.2)  # one call more changes nothing
    assert line.look(2.25) is Pulse.WAITING


def test_a_line_that_owes_nothing_is_never_in_doubt() -> None:
    line = LinePulse()
    line.heard(1.0)
    assert (line.pulse, line.look(100.0)) == (Pulse.IDLE, Pulse.IDLE)
    line.called(100.0)
    looks(line, 100.0, 102.0)
    line.owes_nothing()
    line.called(200.0)
    assert line.look(200.25) is Pulse.ASKED


def test_the_time_in_which_nobody_looked_does_not_count() -> None:
    line = LinePulse()
    line.called(0.0)
    assert line.look(0.25) is Pulse.ASKED
    assert line.look(60.0) is Pulse.ASKED  # this process was stopped itself; what was answered lies before it
    assert line.look(60.25) is Pulse.ASKED
    assert looks(line, 60.25, 61.0)[-1] is Pulse.IN_DOUBT


def test_the_bounds_are_in_order() -> None:
    """The way is given up before the process at its end, and both before the ring turns."""
    assert LIMITS.look_every_s < LIMITS.doubt_s < _SILENT_MS_MAX / 1e3 < LIMITS.silent_s < MembershipLimits().silent_s
