"""What the benchmark of cuts makes of what was seen."""

from dataclasses import replace

from benchmarks.cuts.figures import News, Seen, Span, clients_well_s, cluster_well_s, noticed, of_event, of_requests

SPAN = Span("a fault", quiet_s=5.0, began_s=10.0, ended_s=20.0, closed_s=30.0)
ASKED = Seen(sent_s=12.0, over_s=12.01, edge="head", worker="hello", method="GET", status=200)
WELL = [News(1.0, "ring", "one", "member"), News(1.0, "ray", "10.0.0.1", "alive"), News(1.0, "owner", "x", "running")]


def asked(sent_s: float, took_s: float = 0.01, **other: object) -> Seen:
    return replace(ASKED, sent_s=sent_s, over_s=sent_s + took_s, **other)  # type: ignore[arg-type]


def test_who_noticed_first_and_a_doubt_is_no_notice() -> None:
    news = [
        *WELL,
        News(11.0, "owner", "x", "suspect"),
        News(14.0, "owner", "x", "dead"),
        News(15.5, "ring", "one", "lost"),
        News(16.0, "ring", "two", "lost"),
        News(31.0, "ray", "10.0.0.1", "gone"),  # the next fault's
    ]
    assert noticed(SPAN, news) == {"owner": 4.0, "ring": 5.5}


def test_the_cluster_is_well_with_the_last_word_on_everybody() -> None:
    assert cluster_well_s(SPAN, WELL) == 0.0
    lost, back = News(15.0, "ring", "one", "lost"), News(22.0, "ring", "one", "member")
    assert cluster_well_s(SPAN, [*WELL, lost]) is None
    assert cluster_well_s(SPAN, [*WELL, lost, back]) == 2.0
    assert cluster_well_s(SPAN, [*WELL, lost, replace(back, at_s=17.0)]) == 0.0
    assert cluster_well_s(SPAN, [*WELL, lost, replace(back, state="forgotten")]) == 2.0


def test_clients_are_well_after_the_last_that_failed_or_was_held_up() -> None:
    assert clients_well_s(SPAN, [asked(12.0), asked(21.0)]) == 0.0
    assert clients_well_s(SPAN, [asked(12.0, 8.0), asked(21.0)]) == 0.0
    assert clients_well_s(SPAN, [asked(12.0), asked(21.0, 3.0), asked(23.0)]) == 1.0
    assert clients_well_s(SPAN, [asked(22.5, status=502)]) == 2.5
    assert clients_well_s(SPAN, [asked(29.5, status=502)]) is None  # at its end they were not
    assert clients_well_s(SPAN, [asked(8.0, status=502)]) == 0.0  # before the fault


def test_requests_are_counted_by_what_came_of_them() -> None:
    figures = of_requests(
        [
            asked(1.0, hop=True),
            asked(1.0, 0.03),
            asked(1.0, 2.0),
            asked(1.0, 4.0, status=0, refused=True),
            asked(1.0, 5.0, status=502, why="homeLost", method="POST"),
            asked(1.0, 0.05, why="wrong"),
        ]
    )
    counts = {"asked": 6, "ok": 3, "refused": 1, "failed": 2, "failed_gets": 1, "wrong": 1, "held_up": 1, "hops": 1}
    assert figures == {**counts, "p50_ms": 30.0, "slowest_s": 5.0}
    assert of_requests([]) == {"asked": 0}


def test_an_event_has_its_requests_by_when_they_were_sent_and_by_edge() -> None:
    seen = [asked(4.0), asked(6.0), asked(12.0), asked(19.0, 5.0, edge="worker-1"), asked(21.0), asked(31.0)]
    figures = of_event(SPAN, seen, WELL)
    during = figures["during_worker-1"]
    assert isinstance(during, dict)
    assert during["held_up"] == 1
    assert [figures[part]["asked"] for part in ("quiet", "during", "after")] == [1, 2, 1]  # type: ignore[index, call-overload]
    assert (figures["clients_well_s"], figures["cluster_well_s"], figures["lasted_s"]) == (0.0, 0.0, 10.0)
