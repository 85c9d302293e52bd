"""The order of eviction: each idea as a small story, then all of it against a model that looks at everybody."""

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.eviction import EvictionLimits, EvictionOrder

MIB = 1 << 20
LIMITS = EvictionLimits()


def put(
    order: EvictionOrder, item: int, *, uses: int = 2, cost_ms: float = 10.0, bytes_: int = MIB, at_home: bool = False,
    copies: int = 1, now_s: float = 0.0, key: Hashable = None,
) -> None:  # fmt: skip
    order.put(
        item, uses=uses, cost_ms=cost_ms, bytes_=bytes_, at_home=at_home, copies=copies, now_s=now_s, key=key
    )  # fmt: skip


def evict(order: EvictionOrder, now_s: float = 0.0) -> int | None:
    """As a host in need of room does it."""
    item = order.first()
    if item is not None:
        order.evicted(item, now_s)
    return item


# ---------------------------------------------------------------------------------------------------------- worth


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"cost_ms": 5.0}, {"cost_ms": 50.0}),
        ({"uses": 2}, {"uses": 20}),
        ({"bytes_": 8 * MIB}, {"bytes_": MIB}),
        ({"copies": 4}, {"copies": 1}),
        ({"at_home": False, "uses": 8}, {"at_home": True, "uses": 2}),
        ({"at_home": True, "uses": 2}, {"at_home": False, "uses": 60}),  # a home nobody asks, a copy all ask
    ],
)
def test_who_is_cheaper_to_lose_goes_first(less: dict[str, float], more: dict[str, float]) -> None:
    for items in ((1, 2), (2, 1)):  # whatever the order they came in
        order = EvictionOrder()
        put(order, items[0], **less)  # type: ignore[arg-type]  # a test's shorthand
        put(order, items[1], **more)  # type: ignore[arg-type]
        assert [evict(order), evict(order), evict(order)] == [*items, None]


def test_requests_beyond_the_bound_count_no_more() -> None:
    order = EvictionOrder(EvictionLimits(uses_counted_max=8))
    put(order, 1, uses=1_000_000)
    put(order, 2, uses=8)
    assert order.first() == 1


def test_who_was_busy_once_is_outlived() -> None:
    order = EvictionOrder()
    put(order, 1, uses=1_000)
    turnovers = 0
    while 1 in order:
        turnovers += 1
        put(order, 1 + turnovers, uses=2)
        evict(order)
    assert 20 <= turnovers <= 25  # it was worth 65 against 3


def test_in_use_or_gone_is_out() -> None:
    order = EvictionOrder()
    put(order, 1)
    put(order, 2, uses=9)
    order.discard(1)
    order.discard(1)
    assert (order.first(), len(order), 1 in order, 2 in order) == (2, 1, False, True)
    with pytest.raises(KeyError):
        order.evicted(1, 0.0)


# ------------------------------------------------------------------------------------------------------ probation


def test_a_scanner_does_not_push_out_the_working_set() -> None:
    order = EvictionOrder()
    for item in range(100):
        put(order, item, uses=3, key=f"asked {item}")
    for item in range(1_000, 51_000):
        put(order, item, uses=1, at_home=item % 2 == 0, key=f"scanned {item}")
        if len(order) > 112:
            order.evicted(order.first() or 0, 0.0)
    assert sum(item in order for item in range(100)) == 100


def test_the_second_request_ends_probation() -> None:
    order = EvictionOrder()
    put(order, 1, uses=1)
    put(order, 2, uses=1)
    order.discard(1)
    put(order, 1, uses=2)
    assert [evict(order), evict(order)] == [2, 1]
    put(order, 3, uses=1)
    put(order, 3, uses=2)  # and without having been taken out
    put(order, 4, uses=1)
    assert [evict(order), evict(order)] == [4, 3]


def test_who_comes_back_soon_is_recognised() -> None:
    order = EvictionOrder()
    put(order, 1, uses=1, key="v")
    assert evict(order) == 1
    put(order, 2, uses=1, key="v")
    put(order, 3, uses=1, cost_ms=1_000.0, key="another")
    assert order.first() == 3


def test_ghosts_are_bounded_and_the_oldest_goes() -> None:
    order = EvictionOrder(EvictionLimits(ghosts_min=4))
    for item in range(10):
        put(order, item, uses=1, key=f"v{item}")
        evict(order)
    assert "4 ghosts" in repr(order)
    put(order, 11, uses=1, key="v5")  # forgotten
    put(order, 12, uses=1, key="v6")
    assert "1 in the working set, 1 on probation" in repr(order)


def test_without_a_key_there_are_no_ghosts() -> None:
    order = EvictionOrder()
    put(order, 1, uses=1)
    evict(order)
    put(order, 1, uses=1)
    assert "1 on probation, 0 ghosts" in repr(order)


def test_within_their_share_those_on_probation_stay() -> None:
    order = EvictionOrder(EvictionLimits(probation_share=0.3))
    for item in range(9):
        put(order, item, uses=5, now_s=float(item))
    put(order, 9, uses=1)
    assert evict(order) == 0
    assert evict(order) == 1


# ------------------------------------------------------------------------------------------------------ a favour


def test_a_newcomer_takes_the_place_of_who_is_worth_less() -> None:
    order = EvictionOrder()
    assert order.first_for(uses=0, cost_ms=10.0, bytes_=MIB, at_home=True) is None  # nobody is idle
    put(order, 1, uses=1, cost_ms=10.0)
    assert order.first_for(uses=0, cost_ms=10.0, bytes_=MIB, at_home=False) is None
    assert order.first_for(uses=0, cost_ms=100.0, bytes_=MIB, at_home=False) == 1
    assert order.first_for(uses=0, cost_ms=10.0, bytes_=MIB, at_home=True) == 1


def test_a_home_never_goes_for_a_copy() -> None:
    order = EvictionOrder()
    put(order, 1, uses=1, cost_ms=0.1, bytes_=100 * MIB, at_home=True)
    assert order.first_for(uses=0, cost_ms=1e6, bytes_=MIB, at_home=False) is None
    assert order.first_for(uses=0, cost_ms=10.0, bytes_=MIB, at_home=True) == 1


def test_the_working_set_goes_for_a_newcomer_when_it_is_old() -> None:
    order = EvictionOrder()
    put(order, 1, uses=9)
    assert order.first_for(uses=0, cost_ms=30.0, bytes_=MIB, at_home=False) is None
    for item in range(2, 5):  # three turnovers, each of worth 30
        put(order, item, uses=2)
        evict(order)
    assert order.first() == 1
    assert order.first_for(uses=0, cost_ms=30.0, bytes_=MIB, at_home=False) == 1


# ------------------------------------------------------------------------------------------------------ residence


def test_nothing_was_ever_evicted() -> None:
    order = EvictionOrder()
    put(order, 1)
    assert order.residence_s(1e9) == math.inf


def test_residence_is_the_age_of_the_evicted_and_grows_while_nothing_goes() -> None:
    order = EvictionOrder()
    put(order, 1, now_s=100.0)
    evict(order, 160.0)
    assert order.residence_s(160.0) == 60.0
    assert order.residence_s(1_060.0) == 960.0


def test_residence_follows_the_evictions() -> None:
    order = EvictionOrder()
    now_s = 0.0
    for age_s in (600.0, 30.0):
        for _ in range(30):
            put(order, 1, now_s=now_s)
            evict(order, now_s + age_s)
            now_s += 0.1
        assert order.residence_s(now_s) == pytest.approx(age_s, rel=0.1)


def test_a_copy_would_have_gone_earlier_than_a_home() -> None:
    order = EvictionOrder(EvictionLimits(home_weight=10.0))
    put(order, 1, at_home=True)
    evict(order, 600.0)
    assert order.residence_s(600.0) == 60.0


def test_a_crowd_on_probation_does_not_shorten_the_residence_of_others() -> None:
    order = EvictionOrder()
    put(order, 1, uses=1)
    evict(order, 2.0)
    assert order.residence_s(2.0) == 2.0  # all there is to know
    put(order, 2, now_s=2.0)
    evict(order, 502.0)
    put(order, 3, uses=1, now_s=502.0)
    evict(order, 503.0)
    assert order.residence_s(503.0) == 501.0


# -------------------------------------------------------------------------------------------------- against a model


@dataclass(frozen=True)
class Idle:
    """An isolate as the model knows it."""

    probation: bool
    score: float
    bytes: int
    since_s: float
    at_home: bool
    key: str


class Model:
    """The same order, looking at everybody each time."""

    def __init__(self, limits: EvictionLimits) -> None:
        self.limits = limits
        self.idle: dict[int, Idle] = {}
        self.inflation = {True: 0.0, False: 0.0}
        self.ghosts: list[str] = []

    def put(
        self, item: int, uses: int, cost_ms: float, bytes_: int, at_home: bool, copies: int, now_s: float, key: str
    ) -> None:
        probation = uses <= self.limits.probation_uses_max and key not in self.ghosts
        worth = cost_ms * (1 + min(uses, self.limits.uses_counted_max)) / copies * MIB / bytes_
        score = self.inflation[probation] + worth * (self.limits.home_weight if at_home else 1)
        self.idle[item] = Idle(probation, score, bytes_, now_s, at_home, key)

    def first(self) -> int | None:
        crowd = [i for i, idle in self.idle.items() if idle.probation]
        rest = [i for i in self.idle if i not in crowd]
        crowd_bytes, all_bytes = (sum(self.idle[i].bytes for i in part) for part in (crowd, self.idle))
        losing = crowd if crowd and (crowd_bytes > self.limits.probation_share * all_bytes or not rest) else rest
        return min(losing, key=lambda i: (self.idle[i].score, i), default=None)

    def evicted(self, item: int) -> None:
        idle = self.idle.pop(item)
        self.inflation[idle.probation] = max(self.inflation[idle.probation], idle.score)
        if idle.probation:
            self.ghosts = [*(g for g in self.ghosts if g != idle.key), idle.key]
            self.ghosts = self.ghosts[-min(max(self.limits.ghosts_min, len(self.idle)), self.limits.ghosts_max) :]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "discard", "evict", "evict any"]),
        st.integers(0, 12),  # item; its key is one of fewer
        st.integers(0, 5),  # uses
        st.sampled_from([1.0, 10.0, 300.0]),
        st.sampled_from([MIB // 8, MIB, 9 * MIB]),
        st.booleans(),
        st.integers(1, 3),
    ),
    max_size=120,
)


@settings(deadline=None)
@given(STEPS, st.sampled_from([0.0, 0.1, 0.5]))
def test_the_order_is_that_of_the_model(steps: list[tuple[str, int, int, float, int, bool, int]], share: float) -> None:
    limits = replace(LIMITS, probation_share=share, ghosts_min=3, uses_counted_max=4)
    order, model = EvictionOrder(limits), Model(limits)
    for now_s, (what, item, uses, cost_ms, bytes_, at_home, copies) in enumerate(steps):
        key = f"v{item % 7}"
        if what == "put":
            put(
                order, item, uses=uses, cost_ms=cost_ms, bytes_=bytes_, at_home=at_home, copies=copies,
                now_s=float(now_s), key=key,
            )  # fmt: skip
            model.put(item, uses, cost_ms, bytes_, at_home, copies, float(now_s), key)
        elif what == "discard":
            order.discard(item)
            model.idle.pop(item, None)
        else:
            going = item if what == "evict any" else order.first()
            if going is not None and going in order:
                order.evicted(going, float(now_s))
                model.evicted(going)
        assert order.first() == model.first()
        assert len(order) == len(model.idle)
        assert order.residence_s(float(now_s)) >= 0.0
