"""What is believed of others' load."""

from hypothesis import given
from hypothesis import strategies as st

from actors.exchange import Load
from actors.load_board import LoadBoard, LoadBoardLimits

LIMITS = LoadBoardLimits()


def board(**loads: float) -> LoadBoard:
    made = LoadBoard()
    for server, load in loads.items():
        made.reported(server, Load(cpu_load=load), 0.0)
    return made


def test_nothing_is_known_of_a_stranger() -> None:
    empty = LoadBoard()
    assert empty.load_of("a", 0.0) == empty.mean(0.0) == 0.0
    assert not empty.over("a", 0.0)
    assert not empty.nearly_full("a", 0.0)


def test_a_line_counts_as_load() -> None:
    made = LoadBoard()
    made.reported("a", Load(cpu_load=0.5, queued=10), 0.0)
    assert made.load_of("a", 1.0) == 0.5 + 10 * LIMITS.request_share


def test_over_is_beyond_the_mean() -> None:
    made = board(a=0.9, b=0.5, c=0.4)
    assert made.over("a", 1.0)
    assert not made.over("b", 1.0)
    assert made.overloaded(("a", "b", "c", "d"), 1.0) == {"a"}


def test_all_busy_alike_is_not_over() -> None:
    assert board(a=0.95, b=0.95, c=0.9).overloaded(("a", "b", "c"), 0.0) == frozenset()


def test_an_idle_cluster_has_nobody_over() -> None:
    assert not board(a=0.2, b=0.0, c=0.0).over("a", 0.0)


def test_own_sends_count_until_the_next_report() -> None:
    made = board(a=0.4, b=0.4, c=0.4)
    for _ in range(20):
        made.sent("a", now_s=1.0)
    assert made.over("a", 1.0)
    made.reported("a", Load(cpu_load=0.45), 2.0)
    assert not made.over("a", 2.0)


def test_own_sends_to_a_stranger_count_too() -> None:
    made = board(b=0.2, c=0.2)
    made.sent("a", cost=40.0, now_s=1.0)
    assert made.over("a", 1.0)


def test_a_report_is_forgotten() -> None:
    made = LoadBoard()
    made.reported("a", Load(cpu_load=1.0, nearly_full=True), 0.0)
    made.reported("b", Load(), 0.0)
    assert made.nearly_full("a", LIMITS.report_s_max)
    assert made.over("a", LIMITS.report_s_max)
    later_s = LIMITS.report_s_max + 0.1
    assert not made.nearly_full("a", later_s)
    assert not made.over("a", later_s)
    made.sent("a", now_s=later_s)
    assert made.load_of("a", later_s) == LIMITS.request_share


def test_there_is_a_bound() -> None:
    made = LoadBoard(LoadBoardLimits(servers_max=2))
    for server in "abc":
        made.sent(server, now_s=0.0)
    assert len(made) == 2
    assert made.load_of("a", 0.0) == 0.0
    made.forget("b")
    assert len(made) == 1


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 4), min_size=1), st.floats(1.01, 3))
def test_somebody_always_has_load_to_spare(loads: dict[str, float], c: float) -> None:
    made = board(**loads)
    over = made.overloaded(tuple(loads), 0.0, c)
    assert over < set(loads)
    assert over == {server for server in loads if made.over(server, 0.0, c)}
