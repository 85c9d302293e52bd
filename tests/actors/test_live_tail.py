"""What a reader of a worker's live events gets: which events, how many, and for how long."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.exchange import Ended, Outcome, Request, RequestHead
from actors.live_tail import (
    LIVE_EVENT,
    LiveEvent,
    LiveFilter,
    LiveLimits,
    LiveSwitch,
    LiveTails,
    Watched,
    checked,
    live_event,
    parse_filter,
    plain_event,
    untold,
)
from actors.stage_over import ending_of
from actors.stage_report import Ending, Line

TRACE = "0af7651916cd43dd8448eb211c80319c"
REQUEST = Request(
    "r1", "shop", RequestHead("GET", "https", "shop.localhost", "/cart?api_key=hunter2&n=7"),
    f"00-{TRACE}-b7ad6b7169203331-01", version="v1",
)  # fmt: skip


def event(number: int = 0, worker: str = "shop", missed: int = 0, **ending: object) -> LiveEvent:
    made = Ending(Outcome.OK, method="GET", url=f"https://shop.localhost/{number}", status=200)
    return LiveEvent(worker, "v1", "server-1", f"r{number}", TRACE, False, replace(made, **ending), missed)  # type: ignore[arg-type]


def numbers(events: tuple[LiveEvent, ...]) -> list[int]:
    return [int(each.request_id[1:]) for each in events]


def test_an_event_says_what_a_client_saw_and_no_secret() -> None:
    ended = Ended(Outcome.EXCEEDED_CPU, "used 10 ms of CPU time", 10.5, start_type="cold")
    lines = [Line(5, "stdout", "x" * 20_000) for _ in range(3)]
    made = live_event(REQUEST, ending_of(REQUEST, ended, at_ms=7, cold_cause="deploy", lines=lines), "server-2", 3)
    assert made.ending.url == "https://shop.localhost/cart?api_key=REDACTED&n=7"
    assert (made.ending.status, made.trace_id, made.missed) == (503, TRACE, 3)
    assert len(made.ending.lines) == 1
    assert made.ending.truncated
    assert LIVE_EVENT.decode(LIVE_EVENT.encode(made)) == made
    plain = plain_event(made)
    assert (plain["outcome"], plain["status"], plain["cold_cause"]) == ("exceededCpu", 503, "deploy")
    assert "hunter2" not in str(plain)


def test_whoever_sent_a_request_tells_only_what_no_host_did() -> None:
    assert untold(Ended(Outcome.HOME_LOST))
    assert untold(Ended(Outcome.LOAD_SHED))
    assert not untold(Ended(Outcome.LOAD_SHED, server="server-1"))
    assert not untold(Ended(Outcome.CANCELED))


# ------------------------------------------------------------------------------------------------------------ filters


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        (parse_filter(), True),
        (parse_filter(statuses=["404", "5xx"]), True),
        (parse_filter(statuses=["200-499"]), False),
        (parse_filter(methods=["post", "put"]), True),
        (parse_filter(methods=["GET"]), False),
        (parse_filter(outcomes=["EXCEEDEDCPU"]), True),
        (parse_filter(outcomes=["ok"]), False),
        (parse_filter(search="/cart"), True),
        (parse_filter(search="out of tea"), True),
        (parse_filter(search="too long"), True),
        (parse_filter(search="/Cart"), False),
        (parse_filter(statuses=["503"], methods=["POST"], outcomes=["ok", "exceededCpu"], search="tea"), True),
        (parse_filter(statuses=["503"], methods=["GET"]), False),
    ],
)
def test_an_event_passes_what_it_is(wanted: LiveFilter, passes: bool) -> None:
    ending = Ending(
        Outcome.EXCEEDED_CPU, method="POST", url="https://shop.localhost/cart", status=503, exception="took too long",
        lines=(Line(1, "log", "we are out of tea"),),
    )  # fmt: skip
    assert wanted.wants(LiveEvent("shop", "v1", "s", "r", TRACE, False, ending)) is passes


HEADERS = (("accept-language", "de-AT,de;q=0.9"), ("x-canary", ""), ("referer", "https://a.example/?token=REDACTED"))


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        (["Accept-Language: de-AT"], True), (["accept-language:DE"], False), (["accept-language"], True),
        (["x-canary"], True), (["x-canary:1"], False), (["x-other"], False), (["x-other", "accept-language:de"], True),
        (["referer:hunter2"], False),
    ],
)  # fmt: skip
def test_a_header_is_there_with_what_is_asked_for(headers: list[str], passes: bool) -> None:
    made = event()
    told = LiveEvent("shop", "v1", "s", "r", TRACE, False, made.ending, headers=HEADERS)
    assert parse_filter(headers=headers).wants(told) is passes
    assert parse_filter(headers=headers, methods=["POST"]).wants(told) is False


@pytest.mark.parametrize(
    "name", ["authorization", "Proxy-Authorization", "Cookie", "x-api-key", "X-CSRF-Token", "everwarm-parameter-tenant"]
)
def test_nobody_can_look_for_a_header_that_may_hold_a_secret(name: str) -> None:
    for text in (name, f"{name}:", f"{name}:a"):
        with pytest.raises(ValueError, match=f"{name.lower()} is redacted"):
            parse_filter(headers=[text])
    with pytest.raises(ValueError, match="is redacted"):
        checked(LiveFilter(headers=((name.lower(), "a"),)))  # what a reader of another making sends


def test_an_event_has_the_headers_that_are_asked_for_and_no_others() -> None:
    head = RequestHead(
        "GET", "https", "shop.localhost", "/",
        (
            ("Accept", b"text/html"), ("accept", b"x" * 2_000), ("authorization", b"Basic aHVudGVyMg=="),
            ("x-id", b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"),
            ("referer", b"https://me:hunter2@a.example/?api_key=hunter2&n=1"), ("x-other", b"1"),
        ),
    )  # fmt: skip
    asked = Request("r1", "shop", head, "")
    ending = ending_of(asked, Ended(Outcome.OK), at_ms=7)
    assert live_event(asked, ending, "server-1").headers == ()
    made = live_event(asked, ending, "server-1", 0, {"accept", "x-id", "referer", "authorization", "nobody-sends-it"})
    assert made.headers == (
        ("accept", "text/html"), ("accept", "x" * 1_024), ("authorization", "REDACTED"), ("x-id", "REDACTED"),
        ("referer", "https://REDACTED@a.example/?api_key=REDACTED&n=1"),
    )  # fmt: skip
    assert LIVE_EVENT.decode(LIVE_EVENT.encode(made)) == made
    assert made.bytes_ > live_event(asked, ending, "server-1").bytes_ + 1_024
    assert plain_event(made)["headers"][0] == ["accept", "text/html"]


def test_only_so_many_headers_are_asked_for_on_a_machine() -> None:
    tails = LiveTails()
    for number in range(4):
        wanted = parse_filter(headers=[f"x-{number}-{i}" for i in range(16)])
        assert tails.open(f"k{number}", f"w{number}", wanted, 0.0) is None
    assert len(tails.headers) == 64
    assert tails.open("again", "w0", parse_filter(headers=["x-0-0"]), 0.0) is None
    assert "64 headers" in str(tails.open("more", "w9", parse_filter(headers=["x-more"]), 0.0))
    tails.close("k3")
    assert tails.open("more", "w9", parse_filter(headers=["x-more"]), 0.0) is None


def test_an_event_without_a_status_has_none_that_is_asked_for() -> None:
    assert not parse_filter(statuses=["1xx", "2xx", "3xx", "4xx", "5xx"]).wants(event(status=None))


@pytest.mark.parametrize(
    "wrong",
    [
        {"statuses": ["6xx"]}, {"statuses": ["2x"]}, {"statuses": ["-"]}, {"statuses": ["500-400"]}, {"statuses": [""]},
        {"statuses": ["²00"]}, {"outcomes": ["fine"]}, {"sampling": 0.0}, {"sampling": 1.5}, {"sampling": float("nan")},
        {"search": "x" * 257}, {"methods": ["GET"] * 33}, {"headers": ["a:b"] * 33}, {"headers": ["a b:c"]},
        {"headers": [":c"]}, {"headers": ["a:" + "x" * 257]}, {"headers": ["Authorization:Bearer a"]},
    ],
)  # fmt: skip
def test_what_is_no_filter_is_said(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_filter(**wrong)  # type: ignore[arg-type]


@given(st.floats(0.001, 1.0), st.lists(st.text(max_size=40), max_size=20))
def test_all_stages_of_a_trace_are_told_or_none(share: float, traces: list[str]) -> None:
    wanted = checked(LiveFilter(sampling=share))
    for trace in traces:
        one = event()
        stages = [LiveEvent(w, "v", s, "r", trace, n, one.ending) for w in "ab" for s in "cd" for n in (True, False)]
        assert len({wanted.wants(stage) for stage in stages}) == 1


def test_a_share_is_about_that_share() -> None:
    wanted = parse_filter(sampling=0.25)
    one = event()
    told = sum(wanted.wants(LiveEvent("w", "v", "s", "r", f"{n:032x}", False, one.ending)) for n in range(4_000))
    assert 900 < told < 1_100


# ----------------------------------------------------------------------------------------------------------- who tells


def test_nobody_is_watched_until_it_is_said_and_for_as_long_as_it_is_said_again() -> None:
    switch = LiveSwitch(LiveLimits(told_s=15.0))
    assert not switch.is_on("shop")
    switch.set(Watched(1, ("shop",)), 100.0)
    assert switch.is_on("shop")
    assert not switch.is_on("blog")
    assert switch.take(114.9) == 0
    switch.set(Watched(2, ("shop",)), 110.0)
    assert switch.take(124.9) == 0
    assert switch.take(125.0) is None  # whoever watched is gone, and so is whoever would have said so
    assert not switch.is_on("shop")


def test_what_was_said_last_holds_in_whichever_order_it_comes() -> None:
    switch = LiveSwitch(LiveLimits(told_s=15.0))
    switch.set(Watched(20, ()), 0.0)
    switch.set(Watched(10, ("shop",)), 0.1)
    assert not switch.is_on("shop")
    # The machine was started anew, and its clock with it: nobody has said anything for long.
    switch.set(Watched(3, ("shop",)), 15.0)
    assert switch.is_on("shop")


def test_more_than_anybody_reads_is_counted_and_not_told() -> None:
    switch = LiveSwitch(LiveLimits(events_per_s=10.0))
    switch.set(Watched(1, ("shop",)), 0.0)
    assert [switch.take(0.0) for _ in range(13)] == [0] * 10 + [None] * 3
    assert switch.take(0.1) == 3
    assert switch.take(0.2) == 0


# ----------------------------------------------------------------------------------------------------------- who reads


def test_a_reader_gets_what_it_wants_in_order_and_once() -> None:
    tails = LiveTails()
    assert tails.open("a", "shop", parse_filter(search="2"), 0.0) is None
    assert tails.open("b", "shop", LiveFilter(), 0.0) is None
    assert tails.open("c", "blog", LiveFilter(), 0.0) is None
    woken = [tails.offer(event(number)) for number in range(4)]
    assert woken == [{"b"}, {"b"}, {"a", "b"}, {"b"}]
    assert numbers(tails.read("a", 1.0).events) == [2]
    assert numbers(tails.read("b", 1.0).events) == [0, 1, 2, 3]
    assert tails.read("b", 1.0).events == tails.read("c", 1.0).events == ()
    assert tails.workers == {"shop", "blog"}
    tails.close("c")
    assert tails.workers == {"shop"}


def test_a_slow_reader_loses_the_oldest_and_hears_how_many() -> None:
    tails = LiveTails(LiveLimits(events_max=3))
    tails.open("a", "shop", LiveFilter(), 0.0)
    for number in range(10):
        tails.offer(event(number))
    batch = tails.read("a", 1.0)
    assert (numbers(batch.events), batch.dropped) == ([7, 8, 9], 7)
    assert tails.read("a", 1.0).dropped == 0
    tails.offer(event(11, missed=5))  # and its host had no leave to tell of five before that
    batch = tails.read("a", 1.0)
    assert (numbers(batch.events), batch.dropped) == ([11], 5)
    assert tails.dropped == 12


def test_what_waits_is_bounded_in_bytes_too_and_read_in_pieces() -> None:
    one = event(1, exception="x" * 1_000)
    tails = LiveTails(LiveLimits(bytes_max=4 * one.bytes_, batch_bytes_max=2 * one.bytes_))
    tails.open("a", "shop", LiveFilter(), 0.0)
    for number in range(6):
        tails.offer(event(number, exception="x" * 1_000))
    assert [numbers(tails.read("a", 1.0).events) for _ in range(3)] == [[2, 3], [4, 5], []]
    tails.offer(event(7, exception="x" * 100_000))  # one that is too large alone is told all the same
    assert numbers(tails.read("a", 1.0).events) == [7]


def test_a_reader_that_stays_away_is_forgotten() -> None:
    tails = LiveTails(LiveLimits(lease_s=30.0))
    tails.open("a", "shop", LiveFilter(), 0.0)
    tails.open("b", "shop", LiveFilter(), 0.0)
    tails.read("b", 20.0)
    assert tails.expire(29.9) == []
    assert tails.expire(30.0) == ["a"]
    assert tails.read("a", 31.0).over
    assert tails.has_news("a")
    assert tails.offer(event()) == {"b"}
    assert tails.expire(50.0) == ["b"]
    assert not tails.workers


def test_there_are_so_many_readers_and_no_more() -> None:
    tails = LiveTails(LiveLimits(tails_per_worker_max=2, tails_max=3))
    assert [tails.open(f"a{i}", "shop", LiveFilter(), 0.0) for i in range(2)] == [None, None]
    assert tails.open("b", "shop", LiveFilter(), 0.0) == "2 readers watch shop already"
    assert tails.open("b", "blog", LiveFilter(), 0.0) is None
    assert tails.open("c", "news", LiveFilter(), 0.0) == "3 readers watch workers on this server already"
    tails.close("a0")
    assert tails.open("b2", "shop", LiveFilter(), 0.0) is None
