"""What is remembered of versions, and for how long."""

from actors.exchange import ColdCause
from actors.past_starts import Cost, PastLimits, PastStarts


def test_a_failure_is_remembered_for_seconds() -> None:
    past = PastStarts(PastLimits(failure_remembered_s=3.0))
    past.failed("v", "why", 10.0)
    failure = past.failure("v", 12.9)
    assert failure is not None
    assert failure.why == "why"
    assert past.failure("v", 13.0) is None
    assert past.failure("another", 10.0) is None


def test_a_cause_is_that_of_one_start() -> None:
    past = PastStarts(PastLimits())
    past.gone("v", ColdCause.EVICTED)
    assert past.cause("v", ColdCause.FIRST_EVER) is ColdCause.EVICTED
    assert past.cause("v", ColdCause.FIRST_EVER) is ColdCause.FIRST_EVER


def test_what_was_not_measured_again_is_kept() -> None:
    past = PastStarts(PastLimits())
    past.measured("v", 10.0, 500)
    past.measured("v", 20.0, 0)
    assert past.cost("v") == Cost(20.0, 500)


def test_an_unknown_version_is_expected_to_be_like_the_others() -> None:
    past = PastStarts(PastLimits())
    for number in range(200):
        past.measured(f"v{number}", 40.0, 500)
    expected = past.expected("unknown")
    assert 39 < expected.start_ms <= 40
    assert expected.bytes_ == 0
    assert past.cost("unknown") is None


def test_memory_is_bounded_and_the_oldest_goes() -> None:
    past = PastStarts(PastLimits(versions_max=2))
    for version in ("a", "b", "c"):
        past.measured(version, 1.0, 1)
        past.gone(version, ColdCause.EVICTED)
        past.failed(version, "why", 0.0)
    assert [past.cost(version) is not None for version in ("a", "b", "c")] == [False, True, True]
    assert past.cause("a", ColdCause.DEPLOY) is ColdCause.DEPLOY
    assert past.cause("c", ColdCause.DEPLOY) is ColdCause.EVICTED
    assert past.failure("c", 0.0) is not None
