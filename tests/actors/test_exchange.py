"""Every ending has its page, and it is the one of semantics section 2."""

import pytest

from actors.exchange import status_of
from isolates.outcome import Outcome

STATUSES = {
    Outcome.EXCEPTION: 500,
    Outcome.EXCEEDED_CPU: 503,
    Outcome.EXCEEDED_MEMORY: 503,
    Outcome.EXCEEDED_WALL_TIME: 504,
    Outcome.LOAD_SHED: 503,
    Outcome.SCRIPT_NOT_FOUND: 404,
    Outcome.CANCELED: 499,
    Outcome.HOME_LOST: 502,
    Outcome.RESPONSE_STREAM_DISCONNECTED: 502,  # before a head; after one it is a reset
    Outcome.HUNG: 500,
    Outcome.KILL_SWITCH: 503,
    Outcome.INTERNAL_ERROR: 500,
}


def test_the_list_is_closed() -> None:
    assert set(STATUSES) == set(Outcome) - {Outcome.OK}


@pytest.mark.parametrize("outcome", STATUSES, ids=str)
def test_what_a_client_gets(outcome: Outcome) -> None:
    failure = status_of(outcome)
    assert failure.status == STATUSES[outcome]
    assert failure.code == outcome.value
    assert failure.text.endswith(".")
    assert "/" not in failure.text
    assert (failure.retry_after_s is not None) == (outcome is Outcome.LOAD_SHED)


def test_ok_is_answered_by_the_worker() -> None:
    with pytest.raises(ValueError, match="answered by the worker"):
        status_of(Outcome.OK)
