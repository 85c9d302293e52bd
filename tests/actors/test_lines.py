"""Lines: who is next, and whose turn it is."""

import pytest

from actors.lines import LineLimits, Lines


def test_a_line_is_first_in_first_out() -> None:
    lines = Lines(LineLimits())
    for ticket in "xyz":
        lines.join("v", ticket)
    assert [lines.next("v") for _ in range(3)] == ["x", "y", "z"]
    assert (lines.queued, lines.length("v"), lines.by_turn()) == (0, 0, [])
    with pytest.raises(KeyError):
        lines.next("v")


def test_who_leaves_is_not_next() -> None:
    lines = Lines(LineLimits())
    for ticket in "xy":
        lines.join("v", ticket)
    assert lines.leave("v", "x")
    assert not lines.leave("v", "x")
    assert not lines.leave("nobody's", "x")
    assert (lines.next("v"), lines.queued) == ("y", 0)


def test_versions_take_turns() -> None:
    lines = Lines(LineLimits())
    for version in "aabc":
        lines.join(version, object())
    assert lines.by_turn() == ["a", "b", "c"]
    lines.next("a")
    lines.had_turn("a")
    assert lines.by_turn() == ["b", "c", "a"]
    lines.next("b")
    lines.had_turn("b")
    assert lines.by_turn() == ["c", "a"]


def test_a_line_and_all_of_them_are_bounded() -> None:
    lines = Lines(LineLimits(line_max=2, queued_max=3))
    lines.join("a", 1)
    lines.join("a", 2)
    assert (lines.has_place("a"), lines.has_place("b")) == (False, True)
    lines.join("b", 3)
    assert not lines.has_place("c")


def test_who_does_not_pay_gives_way_to_who_does() -> None:
    lines = Lines(LineLimits(line_max=8, queued_max=8))
    lines.join("paid", "p1")
    assert lines.give_way() is None
    for ticket in ("a1", "a2"):
        lines.join("a", ticket, paid=False)
    lines.join("b", "b1", paid=False)
    # The last of the longest line, and so on until only those who pay are left.
    assert [lines.give_way() for _ in range(4)] == [("a", "a2"), ("b", "b1"), ("a", "a1"), None]
    assert (lines.queued, lines.by_turn()) == (1, ["paid"])
