"""Here or home, over every situation."""

from itertools import product

import pytest

from actors.routing import Place, Situation, decide


@pytest.mark.parametrize(
    ("home", "warm_here", "refused_before", "place", "reason"),
    [
        (None, False, False, Place.HERE, "no ring"),
        ("a", False, False, Place.HERE, "home"),
        ("b", True, False, Place.HERE, "warm here"),
        ("b", True, True, Place.HERE, "warm here"),
        ("b", False, True, Place.HERE, "refused before"),
        ("b", False, False, Place.HOME, "sharded"),
    ],
)
def test_table(home: str | None, warm_here: bool, refused_before: bool, place: Place, reason: str) -> None:
    route = decide(Situation("a", home, warm_here, refused_before))
    assert (route.place, route.reason) == (place, reason)


@pytest.mark.parametrize(("home", "warm", "refused"), list(product([None, "a", "b"], [False, True], [False, True])))
def test_it_goes_home_only_when_nothing_speaks_for_here(home: str | None, warm: bool, refused: bool) -> None:
    away = decide(Situation("a", home, warm, refused)).place is Place.HOME
    assert away == (home == "b" and not warm and not refused)
