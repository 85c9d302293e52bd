"""Who is accused by which crashes, and for how long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.crash_blame import BlameLimits, Crash, quarantined

LIMITS = BlameLimits()


def crashes(*versions: str, every_s: float = 10.0, began_s: float = 1_000.0) -> list[Crash]:
    """One crash after the other; each a word of one letter a version."""
    return [Crash(began_s + i * every_s, frozenset(word)) for i, word in enumerate(versions)]


@pytest.mark.parametrize(
    ("story", "offenders"),
    [
        ([], ""),
        (["a"], ""),
        (["a", "a"], ""),  # one request, tried on a second host
        (["a", "a", "a"], "a"),
        (["ab", "ac", "ad"], "a"),
        (["abc", "abc", "abc"], "abc"),  # nobody can tell them apart; one that is innocent is back after a minute
        (["a", "b", "c", "a", "b", "c", "a", "b", "c"], "abc"),  # in turn: a third each, and alone
        (["ab", "cd", "ef", "ac", "bd", "ad"], ""),  # half of them at most, and never alone
        (["", "", "", "", "a", "a", "a"], "a"),  # when nothing ran, nobody is less suspect
        (["a", "b", "c", "d", "e", "ab", "ac"], ""),  # a busy one, three in seven
    ],
)
def test_who_is_a_repeat_offender(story: list[str], offenders: str) -> None:
    known = crashes(*story)
    now_s = known[-1].at_s if known else 0.0
    assert set(quarantined(known, now_s)) == set(offenders)


def test_each_further_crash_doubles_the_time() -> None:
    known = crashes("a", "a", "a")
    for lasts_s in (60.0, 120.0, 240.0, 480.0, 960.0, 1_800.0, 1_800.0):
        last_s = known[-1].at_s
        assert quarantined(known, last_s) == {"a": last_s + lasts_s}
        assert quarantined(known, last_s + lasts_s) == {}
        known = [*known, Crash(last_s + 1.0, frozenset("a"))]


def test_crashes_of_another_hour_do_not_count() -> None:
    apart_s = LIMITS.window_s / 2
    assert quarantined(crashes(*"aaaaaaaa", every_s=apart_s), 1_000.0 + 7 * apart_s) == {}


_CRASHES = st.lists(st.builds(Crash, st.floats(0, 10_000), st.frozensets(st.sampled_from("abcdef"))), max_size=20)


@given(_CRASHES, st.floats(0, 20_000))
def test_nobody_is_kept_out_for_ever_or_for_nothing(known: list[Crash], now_s: float) -> None:
    for version, until_s in quarantined(known, now_s).items():
        accused = [crash for crash in known if version in crash.versions]
        assert len(accused) >= LIMITS.crashes_min
        assert now_s < until_s <= max(crash.at_s for crash in accused) + LIMITS.quarantine_s_max


@given(_CRASHES, st.floats(0, 20_000), st.randoms())
def test_whoever_has_the_same_list_judges_alike(known: list[Crash], now_s: float, dice: object) -> None:
    shuffled = list(known)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    assert quarantined(shuffled, now_s) == quarantined(known, now_s)
