"""When a home says no, to whom first, and in which order its reasons count."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from actors.admission import Admission, AdmissionLimits, Offer, decide, nearly_full, offer_of
from actors.exchange import Load, RefusalReason, Request, RequestHead
from actors.residency import ResidencyLimits

LIMITS = AdmissionLimits(in_flight_max=8, queue_ms_max=40.0, memory_bytes_max=1_000)
IDLE = Load()
HOT_FREE, HOT_PAID = Offer(hot=True, paid=False), Offer(hot=True)
TAIL_FREE, TAIL_PAID = Offer(paid=False), Offer()
#: As they are refused when the pressure rises.
KINDS = [HOT_FREE, HOT_PAID, TAIL_FREE, TAIL_PAID]


def waiting(queue_ms: float) -> Load:
    return Load(queued=1, queue_ms=queue_ms)


@pytest.mark.parametrize(
    ("load", "in_flight", "offer", "draining", "reason"),
    [
        (IDLE, 0, TAIL_PAID, False, None),
        (IDLE, 7, TAIL_PAID, False, None),
        (IDLE, 8, TAIL_PAID, False, RefusalReason.BUSY),
        (IDLE, 0, Offer(code_here=False), False, RefusalReason.NOT_HERE),
        (IDLE, 0, TAIL_PAID, True, RefusalReason.DRAINING),
        # By delay: hot before tail, free before paid.
        (waiting(20.0), 0, HOT_FREE, False, None),
        (waiting(20.1), 0, HOT_FREE, False, RefusalReason.QUEUE),
        (waiting(25.0), 0, HOT_PAID, False, None),
        (waiting(25.1), 0, HOT_PAID, False, RefusalReason.QUEUE),
        (waiting(30.0), 0, TAIL_FREE, False, None),
        (waiting(30.1), 0, TAIL_FREE, False, RefusalReason.QUEUE),
        (waiting(40.0), 0, TAIL_PAID, False, None),
        (waiting(40.1), 0, TAIL_PAID, False, RefusalReason.QUEUE),
        # By count: the last places are kept for those whom a refusal costs a cold start.
        (IDLE, 3, HOT_FREE, False, None),
        (IDLE, 4, HOT_FREE, False, RefusalReason.BUSY),
        (IDLE, 4, HOT_PAID, False, None),
        (IDLE, 5, HOT_PAID, False, RefusalReason.BUSY),
        (IDLE, 5, TAIL_FREE, False, None),
        (IDLE, 6, TAIL_FREE, False, RefusalReason.BUSY),
        (Load(queued=0, queue_ms=999.0), 0, HOT_FREE, False, None),  # the line is gone, and its delay with it
        (Load(memory_bytes=1_000), 0, TAIL_PAID, False, None),
        (Load(memory_bytes=1_001), 0, TAIL_PAID, False, RefusalReason.MEMORY),
        (Load(memory_bytes=1_001), 0, Offer(resident=True), False, None),  # it takes no more than there is
        # Several at once: the first of draining, code, busy, queue, memory.
        (structs.replace(waiting(99.0), memory_bytes=2_000), 9, Offer(code_here=False), True, RefusalReason.DRAINING),
        (structs.replace(waiting(99.0), memory_bytes=2_000), 9, Offer(code_here=False), False, RefusalReason.NOT_HERE),
        (structs.replace(waiting(99.0), memory_bytes=2_000), 9, TAIL_PAID, False, RefusalReason.BUSY),
        (structs.replace(waiting(99.0), memory_bytes=2_000), 0, TAIL_PAID, False, RefusalReason.QUEUE),
    ],
)
def test_table(load: Load, in_flight: int, offer: Offer, draining: bool, reason: RefusalReason | None) -> None:
    verdict = decide(load, in_flight, LIMITS, offer, draining=draining)
    assert verdict.reason is reason
    assert verdict.admission is (Admission.ADMIT if reason is None else Admission.REFUSE)


def test_no_room_at_all_refuses_everything() -> None:
    nothing = AdmissionLimits(in_flight_max=0)
    for kind in KINDS:
        assert decide(IDLE, 0, nothing, kind, draining=False).reason is RefusalReason.BUSY


loads = st.builds(
    Load,
    queued=st.integers(0, 50),
    queue_ms=st.floats(0, 200),
    memory_bytes=st.integers(0, 2_000),
    cpu_load=st.floats(0, 1),
)


@given(load=loads, in_flight=st.integers(0, 16), resident=st.booleans())
def test_whoever_is_refused_first_is_refused_with_all_after_it(load: Load, in_flight: int, resident: bool) -> None:
    """A tail request is never refused where a hot one is taken, nor a paid one where a free one is."""
    refused = [
        decide(load, in_flight, LIMITS, replace(kind, resident=resident), draining=False).admission is Admission.REFUSE
        for kind in KINDS
    ]
    assert refused == sorted(refused, reverse=True)


@given(load=loads, in_flight=st.integers(0, 15), more_ms=st.floats(0, 100))
def test_more_pressure_never_admits(load: Load, in_flight: int, more_ms: float) -> None:
    worse = structs.replace(load, queued=load.queued + 1, queue_ms=load.queue_ms + more_ms)
    for kind in KINDS:
        if decide(load, in_flight, LIMITS, kind, draining=False).admission is Admission.REFUSE:
            assert decide(worse, in_flight + 1, LIMITS, kind, draining=False).admission is Admission.REFUSE


@given(load=loads, in_flight=st.integers(0, 16))
def test_the_hint_comes_before_the_first_refusal(load: Load, in_flight: int) -> None:
    """Nobody is refused for want of room by a home that does not say that it is nearly full."""
    if any(decide(load, in_flight, LIMITS, kind, draining=False).admission is Admission.REFUSE for kind in KINDS):
        assert nearly_full(load, in_flight, LIMITS)


@pytest.mark.parametrize(
    ("load", "in_flight", "said"),
    [
        (IDLE, 0, False),
        (IDLE, 3, False),
        (IDLE, 4, True),
        (waiting(15.9), 0, False),
        (waiting(16.0), 0, True),
        (Load(cpu_load=0.89), 0, False),
        (Load(cpu_load=0.9), 0, True),
    ],
)
def test_nearly_full(load: Load, in_flight: int, said: bool) -> None:
    assert nearly_full(load, in_flight, LIMITS) is said


@pytest.mark.parametrize(
    ("rate_per_s", "residence_s", "hot"),
    [
        (0.0, 0.0, False),  # of a sender that knows nothing
        (0.004, 0.0, False),
        (0.005, 0.0, True),  # nothing was ever evicted: ten minutes are believed
        (1.0, 2.9, False),  # memory is short: isolates live for seconds, and only the busiest are hot
        (1.0, 3.0, True),
        (0.005, 1e9, True),
        (0.004, 1e9, False),
    ],
)
def test_hot_is_who_would_live_on_where_it_is_refused(rate_per_s: float, residence_s: float, hot: bool) -> None:
    request = Request("id", "w", RequestHead("GET", "https", "w.localhost", "/"), "", rate_per_s=rate_per_s)
    offer = offer_of(request, Load(residence_s=residence_s), AdmissionLimits(), resident=False, code_here=True)
    assert (offer.hot, offer.paid) == (hot, False)


def test_memory_is_measured_against_the_hosts_own_budget() -> None:
    """A host evicts at its budget; a home that refused before that would have room and not use it."""
    budget = ResidencyLimits().memory_bytes_max
    assert AdmissionLimits().memory_bytes_max == AdmissionLimits.within(budget).memory_bytes_max == budget * 9 // 8
