"""When a role is restarted, when it is waited for, and when it is left alone: with a clock of our own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.supervision import (
    TRANSITIONS,
    Event,
    GiveUp,
    Kill,
    Restart,
    State,
    Supervised,
    SupervisionLimits,
    wait_s,
)

LIMITS = SupervisionLimits()


def running(now_s: float = 0.0) -> Supervised:
    role = Supervised()
    role.up(now_s)
    return role


def dies(role: Supervised, now_s: float, *, runs_again_for_s: float | None = None) -> Restart | GiveUp:
    """It dies; and is restarted, unless it is left alone, when it should be."""
    decided = role.gone(now_s)
    if isinstance(decided, Restart) and runs_again_for_s is not None:
        role.began()
        role.up(now_s + decided.after_s)
    return decided


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_pair_is_in_the_table_or_raises(state: State, event: Event) -> None:
    role = Supervised()
    role.state = state
    if event in TRANSITIONS[state]:
        role._on(event)
        assert role.state is TRANSITIONS[state][event]
    else:
        with pytest.raises(AssertionError, match=event.value):
            role._on(event)


def test_who_was_well_is_restarted_at_once_however_often() -> None:
    role, now_s = running(), 0.0
    for _ in range(100):
        now_s += LIMITS.well_s
        assert dies(role, now_s, runs_again_for_s=0) == Restart(0.0)
    assert role.restarts == 100
    assert len(role.took_s) == LIMITS.remembered_max


def test_who_dies_again_soon_is_waited_for_and_then_left_alone() -> None:
    role, now_s, waits = running(), 0.0, []
    while isinstance(decided := dies(role, now_s, runs_again_for_s=0), Restart):
        waits.append(decided.after_s)
        now_s += decided.after_s + 1.0
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert decided == GiveUp("it died 10 times within 100 s")
    assert role.state is State.GIVEN_UP
    role.began()  # somebody changed something, and asks for it
    assert role.state is State.STARTING


def test_a_role_that_cannot_start_is_a_death_like_any_other() -> None:
    role = running()
    assert role.gone(1.0) == Restart(0.0)
    role.began()
    assert role.gone(2.0) == Restart(0.5)
    role.began()
    assert role.gone(3.0) == Restart(1.0)
    role.began()
    role.up(5.0)
    assert list(role.took_s) == [4.0]  # from the first death on: all the while it was away


def test_old_deaths_do_not_count() -> None:
    role, now_s = running(), 0.0
    for _ in range(3 * LIMITS.deaths_max):  # never well, but so seldom that there are never ten in ten minutes
        assert isinstance(dies(role, now_s), Restart)
        role.began()
        now_s += LIMITS.deaths_s / (LIMITS.deaths_max - 1) + 1.0


def test_what_is_missed_counts_only_when_somebody_there_can_look() -> None:
    role = running()
    assert [role.missed(None) for _ in range(100)] == [None] * 100
    assert role.state is State.SUSPECT
    assert [role.missed(7) for _ in range(LIMITS.probes_failed_max - 1)] == [None] * (LIMITS.probes_failed_max - 1)
    assert role.missed(None) is None
    assert isinstance(role.missed(7), Kill)


def test_a_probe_that_is_missed_now_and_then_means_nothing() -> None:
    role = running()
    for _ in range(20):
        for _ in range(LIMITS.probes_failed_max - 1):
            assert role.missed(7) is None
        assert role.state is State.SUSPECT
        assert role.answered(0.01) is None
        assert role.state is State.RUNNING


@pytest.mark.parametrize("stuck", ["silent", "stands"])
def test_who_misses_so_many_in_a_row_is_ended_once(stuck: str) -> None:
    role = running()
    said = [role.missed(7) if stuck == "silent" else role.answered(60.0, ran_ns=7) for _ in range(10)]
    kills = [kill for kill in said if kill is not None]
    assert said.index(kills[0]) == LIMITS.probes_failed_max - 1
    assert len(kills) == 1
    assert isinstance(kills[0], Kill)
    assert ("does not answer" if stuck == "silent" else "event loop") in kills[0].why
    assert role.state is State.DEAD
    assert role.gone(9.0) == Restart(0.0)  # now its process is gone


@pytest.mark.parametrize("way", ["silent", "stands"])
def test_who_runs_has_more_patience_and_an_end(way: str) -> None:
    role = running()
    for number in range(1, LIMITS.probes_failed_running_max + 1):
        kill = role.missed(number) if way == "silent" else role.answered(60.0, ran_ns=number)
        assert (kill is None) == (number < LIMITS.probes_failed_running_max)
    assert kill is not None
    assert kill.why.endswith("15 probes in a row, and runs")


def test_who_stops_running_is_ended_after_as_many_as_any() -> None:
    role = running()
    assert [role.missed(number) for number in range(7)] == [None] * 7
    said = [role.missed(6) for _ in range(LIMITS.probes_failed_max)]
    assert said[:-1] == [None] * (LIMITS.probes_failed_max - 1)
    assert said[-1] == Kill("it does not answer, 11 probes in a row, and stands still")


def test_how_it_ran_before_it_was_well_counts_for_nothing() -> None:
    role = running()
    assert role.missed(1) is None
    assert role.answered(0.0) is None
    said = [role.missed(9) for _ in range(LIMITS.probes_failed_max)]
    assert [kill is not None for kill in said] == [False] * (LIMITS.probes_failed_max - 1) + [True]


def test_who_starts_is_not_probed_to_death() -> None:
    role = Supervised()
    assert [role.missed(7) for _ in range(100)] == [None] * 100
    role.up(60.0)
    assert role.state is State.RUNNING


def test_a_late_answer_of_a_dead_process_revives_nobody() -> None:
    role = running()
    role.gone(1.0)
    assert role.answered(0.0) is None
    assert role.state is State.DEAD


@given(st.integers(-5, 10_000))
def test_waits_grow_and_have_a_bound(again: int) -> None:
    assert 0.0 <= wait_s(again, LIMITS) <= wait_s(again + 1, LIMITS) <= LIMITS.wait_s_max


@given(
    st.lists(
        st.tuples(st.sampled_from(["die", "miss", "answer", "stand", "begin", "up"]), st.floats(0.0, 100.0)),
        max_size=80,
    )
)
def test_whatever_happens_it_waits_within_bounds_and_gives_up_only_with_a_reason(
    story: list[tuple[str, float]],
) -> None:
    role, now_s, since_well = Supervised(), 0.0, 0
    for what, later_s in story:
        now_s += later_s
        if what == "die" and role.state not in (State.WAITING, State.GIVEN_UP, State.DEAD):
            decided = role.gone(now_s)
            since_well += 1
            if isinstance(decided, Restart):
                assert 0.0 <= decided.after_s <= LIMITS.wait_s_max
                assert (decided.after_s > 0) == (role.state is State.WAITING)
            else:
                assert since_well >= LIMITS.deaths_max
                assert role.state is State.GIVEN_UP
        elif what == "miss":
            role.missed(int(later_s) or None)
        elif what in ("answer", "stand"):
            role.answered(60.0 if what == "stand" else 0.0)
        elif what == "begin" and role.state in (State.WAITING, State.DEAD, State.GIVEN_UP):
            role.began()
        elif what == "up" and role.state is State.STARTING:
            role.up(now_s)
