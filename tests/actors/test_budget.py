"""What is taken and what comes back add up."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.budget import NOTHING, Ask, Budget, Resource, Spent
from actors.ledger import Ledger
from actors.worker import Limits, Plan

FREE = Budget.of(Limits.for_plan(Plan.FREE))
PAID = Budget.of(Limits.for_plan(Plan.PAID))
AMOUNTS = st.integers(0, 50)
BUDGETS = st.builds(Budget, st.integers(0, 500_000), AMOUNTS, AMOUNTS, st.integers(0, 16), st.integers(0, 6))
SPENT = st.builds(Spent, st.integers(0, 500_000), AMOUNTS, AMOUNTS, st.integers(0, 6))
COUNTED = ("cpu_us", "subrequests", "invocations", "connections")


def test_what_the_published_limits_give_a_tree() -> None:
    assert Budget(320_000, 50, 32, 16, 6) == FREE
    assert Budget(1_600_000, 1_000, 32, 16, 6) == PAID


@given(BUDGETS, BUDGETS, SPENT)
def test_taking_and_giving_back(there: Budget, share: Budget, spent: Spent) -> None:
    left = there.take(share)
    fits = all(getattr(share, name) <= getattr(there, name) for name in COUNTED) and share.depth < there.depth
    assert isinstance(left, Budget) is fits
    if isinstance(left, Budget):
        assert left.give_back(share, NOTHING) == there
        assert left.give_back(share, None) == left
        back = left.give_back(share, spent)
        for name in COUNTED:
            gone = min(getattr(spent, name), getattr(share, name))
            assert getattr(there, name) - getattr(back, name) == gone
        assert back.depth == there.depth


@given(BUDGETS, st.builds(Ask, st.integers(0, 500_000), AMOUNTS))
def test_a_share_can_always_be_taken_and_lets_one_stage_begin(there: Budget, ask: Ask) -> None:
    share = there.share(ask)
    if isinstance(share, Budget):
        assert isinstance(there.take(share), Budget)
        assert isinstance(Ledger.begin(share, ask.cpu_us), Ledger)
        assert share.subrequests <= ask.subrequests_max
        assert share.cpu_us >= min(ask.cpu_us, there.cpu_us)
    else:
        assert share.what in (Resource.DEPTH, Resource.INVOCATIONS, Resource.CPU)


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("wrong", [-1, 1 << 60, True, 1.0, None])
def test_what_is_no_amount_is_refused(name: str, wrong: object) -> None:
    with pytest.raises(ValueError, match=name):
        replace(FREE, **{name: wrong})  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match=name):
        replace(NOTHING, **{name: wrong})  # type: ignore[arg-type]
