"""When a home says no, and in which order its reasons count."""

import pytest

from actors.admission import Admission, AdmissionLimits, decide
from actors.exchange import Load, RefusalReason

LIMITS = AdmissionLimits(in_flight_max=4, queue_ms_max=20.0, memory_bytes_max=1_000)
IDLE = Load()


@pytest.mark.parametrize(
    ("load", "in_flight", "code_here", "draining", "reason"),
    [
        (IDLE, 0, True, False, None),
        (IDLE, 3, True, False, None),
        (IDLE, 4, True, False, RefusalReason.BUSY),
        (IDLE, 0, False, False, RefusalReason.NOT_HERE),
        (IDLE, 0, True, True, RefusalReason.DRAINING),
        (Load(queued=1, queue_ms=20.0), 0, True, False, None),
        (Load(queued=1, queue_ms=20.1), 0, True, False, RefusalReason.QUEUE),
        (Load(queued=0, queue_ms=999.0), 0, True, False, None),  # the line is gone, and what was measured with it
        (Load(memory_bytes=1_000), 0, True, False, None),
        (Load(memory_bytes=1_001), 0, True, False, RefusalReason.MEMORY),
        # Several at once: the first of draining, code, busy, queue, memory.
        (Load(queued=1, queue_ms=99.0, memory_bytes=2_000), 9, False, True, RefusalReason.DRAINING),
        (Load(queued=1, queue_ms=99.0, memory_bytes=2_000), 9, False, False, RefusalReason.NOT_HERE),
        (Load(queued=1, queue_ms=99.0, memory_bytes=2_000), 9, True, False, RefusalReason.BUSY),
        (Load(queued=1, queue_ms=99.0, memory_bytes=2_000), 0, True, False, RefusalReason.QUEUE),
    ],
)
def test_table(load: Load, in_flight: int, code_here: bool, draining: bool, reason: RefusalReason | None) -> None:
    verdict = decide(load, in_flight, LIMITS, code_here=code_here, draining=draining)
    assert verdict.reason is reason
    assert verdict.admission is (Admission.ADMIT if reason is None else Admission.REFUSE)


def test_no_room_at_all_refuses_everything() -> None:
    nothing = AdmissionLimits(in_flight_max=0)
    assert decide(IDLE, 0, nothing, code_here=True, draining=False).reason is RefusalReason.BUSY
