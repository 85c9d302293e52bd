import dataclasses

import pytest

from isolates.limits import IsolateLimits, Verdict, unmeasured, verdict_after
from isolates.outcome import Outcome

#: What becomes of an isolate whose guest came back by itself. Endings that a returned guest cannot have are
#: condemned: nobody knows what its state is.
AFTER_RETURN = {
    Outcome.OK: Verdict.KEEP,
    Outcome.RESPONSE_STREAM_DISCONNECTED: Verdict.KEEP,
    Outcome.HUNG: Verdict.CONDEMN,
    Outcome.EXCEPTION: Verdict.KEEP,  # it answered with an error; a trap does not come back
    Outcome.EXCEEDED_CPU: Verdict.CONDEMN,
    Outcome.EXCEEDED_MEMORY: Verdict.CONDEMN,
    Outcome.EXCEEDED_WALL_TIME: Verdict.CONDEMN,
    Outcome.LOAD_SHED: Verdict.CONDEMN,
    Outcome.SCRIPT_NOT_FOUND: Verdict.CONDEMN,
    Outcome.CANCELED: Verdict.CONDEMN,
    Outcome.HOME_LOST: Verdict.CONDEMN,
    Outcome.KILL_SWITCH: Verdict.CONDEMN,
    Outcome.INTERNAL_ERROR: Verdict.CONDEMN,
}


@pytest.mark.parametrize("outcome", Outcome)
def test_verdicts(outcome: Outcome) -> None:
    assert verdict_after(outcome, returned=False) is Verdict.KILL, "frames that were not unwound are never seen again"
    assert verdict_after(outcome, returned=True) is AFTER_RETURN[outcome]
    over = verdict_after(outcome, returned=True, over_soft=True)
    assert over is Verdict.CONDEMN, "with more than its soft memory it finishes what it runs, and takes nothing new"


def test_the_defaults_are_those_of_the_plan() -> None:
    limits = IsolateLimits()
    assert (limits.cpu_ms, limits.startup_cpu_ms, limits.wall_ms) == (50, 400, 30_000)
    assert (limits.memory_soft_bytes, limits.memory_bytes_max) == (128 << 20, 160 << 20)
    assert limits.log_bytes_max == 256 << 10
    assert limits.header_bytes_max == 128 << 10
    with pytest.raises(dataclasses.FrozenInstanceError):
        limits.cpu_ms = 1.0  # type: ignore[misc]


def test_who_can_not_be_measured_has_its_soft_limit_and_no_more() -> None:
    limits = IsolateLimits(cpu_ms=7, memory_soft_bytes=10, memory_bytes_max=12)
    assert unmeasured(limits) == IsolateLimits(cpu_ms=7, memory_soft_bytes=10, memory_bytes_max=10)
    low = IsolateLimits(memory_soft_bytes=10, memory_bytes_max=8)
    assert unmeasured(low) is low, "never more than it had"


def test_the_names_of_endings_are_those_of_traces() -> None:
    assert [o.value for o in Outcome] == (
        "ok exception exceededCpu exceededMemory exceededWallTime loadShed scriptNotFound canceled homeLost"
        " responseStreamDisconnected hung killSwitch internalError"
    ).split()
