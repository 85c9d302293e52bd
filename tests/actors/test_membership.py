"""Who is a member and when the ring changes: stories, the table, and what holds whatever happens in whatever order."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.membership import (
    CORES_PER_WEIGHT,
    MEMORY_BYTES_PER_WEIGHT,
    TRANSITIONS,
    WEIGHT_MAX,
    Decision,
    Drain,
    Event,
    Forget,
    Install,
    Membership,
    MembershipLimits,
    Publish,
    State,
    TooManyServers,
    Warm,
    weight,
)
from actors.ring import Ring, worker_key

GIB = 1 << 30
LIMITS = MembershipLimits()


def warm_of(decisions: list[Decision]) -> Warm:
    return next(decision for decision in decisions if isinstance(decision, Warm))


def rings(decisions: list[Decision]) -> list[dict[str, int]]:
    return [dict(decision.servers) for decision in decisions if isinstance(decision, Publish)]


def members(*names: str, now_s: float = 0.0) -> Membership:
    """A cluster of these, each of weight 1."""
    membership = Membership(100)
    decisions: list[Decision] = []
    for name in names:
        membership.join(name, 1, now_s)
        decisions += membership.placed(name, now_s)
    for _ in range(2):  # the first alone, the others together
        for warm in [d for d in decisions if isinstance(d, Warm)]:
            decisions = membership.warmed(warm.change, now_s)
    assert membership.ring == dict.fromkeys(names, 1)
    return membership


# ------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("memory_gib", "cores", "expected"),
    [(1, 1, 1), (8, 2, 1), (15, 64, 1), (16, 4, 2), (24, 2, 1), (64, 16, 8), (256, 8, 4), (1024, 128, WEIGHT_MAX)],
)
def test_weight_is_what_runs_out_first(memory_gib: int, cores: int, expected: int) -> None:
    assert weight(memory_gib * GIB, cores) == expected


@given(st.integers(0, 1 << 45), st.integers(0, 4096))
def test_a_weight_is_whole_bounded_and_never_falls_with_more(memory_bytes: int, cores: int) -> None:
    here = weight(memory_bytes, cores)
    assert type(here) is int
    assert 1 <= here <= WEIGHT_MAX
    assert weight(memory_bytes + MEMORY_BYTES_PER_WEIGHT, cores + CORES_PER_WEIGHT) >= here


def test_three_hundred_of_the_heaviest_fit_a_ring() -> None:
    Ring(1, {f"s{i}": WEIGHT_MAX for i in range(300)}, b"s" * 32)


def test_a_new_control_plane_adopts_a_ring_once() -> None:
    membership = Membership(100)
    decided = membership.adopt({"a": 1, "b": 2}, 5.0)
    assert decided == [Publish(101, {"a": 1, "b": 2}), Install("a"), Install("b")]
    assert membership.state("b") is State.MEMBER
    assert membership.adopt({"c": 1}, 6.0) == []  # somebody is known
    assert rings(membership.heartbeat("a", 1, 6.0)) == []
    published = []
    for beats in range(1, 12):
        now_s = 5.0 + beats * LIMITS.tick_every_s
        membership.heartbeat("a", 1, now_s)
        published += rings(membership.tick(now_s))
    assert published == [{"a": 1}]  # who does not speak up is lost as ever


def test_a_ring_that_is_too_large_is_not_adopted() -> None:
    limits = MembershipLimits(servers_max=2)
    assert Membership(100, limits).adopt(dict.fromkeys("abc", 1), 0.0) == []


# ------------------------------------------------------------------------------------------------------- stories


def test_a_server_joins() -> None:
    membership = Membership(100)
    assert membership.join("a", 2, 0.0) == [Install("a")]
    assert membership.serving == []
    (warm,) = membership.placed("a", 1.0)
    assert isinstance(warm, Warm)
    assert (warm.before, warm.after, warm.coming, warm.going) == ({}, {"a": 2}, {"a"}, frozenset())
    assert membership.ring == {}
    assert membership.warmed(warm.change, 2.0) == [Publish(101, {"a": 2})]
    assert (membership.state("a"), membership.serving) == (State.MEMBER, ["a"])


def test_servers_that_start_together_take_two_steps() -> None:
    membership = Membership(0)
    for name in "abcde":
        membership.join(name, 1, 0.0)
    first = warm_of([d for name in "abcde" for d in membership.placed(name, 0.0)])
    assert first.after == {"a": 1}
    publish, second = membership.warmed(first.change, 0.0)
    assert publish == Publish(1, {"a": 1})
    assert isinstance(second, Warm)
    assert (second.before, set(second.after)) == ({"a": 1}, set("abcde"))
    assert membership.warmed(second.change, 0.0) == [Publish(2, dict.fromkeys("abcde", 1))]


def test_a_server_leaves() -> None:
    membership = members("a", "b", "c")
    (warm,) = membership.leave("b", 1.0)
    assert isinstance(warm, Warm)
    assert (set(warm.before), set(warm.after), warm.going) == ({"a", "b", "c"}, {"a", "c"}, {"b"})
    assert membership.state("b") is State.LEAVING
    assert "b" in membership.ring  # it goes on being home until the others are warm
    publish, drain = membership.warmed(warm.change, 2.0)
    assert isinstance(publish, Publish)
    assert (dict(publish.servers), drain) == ({"a": 1, "c": 1}, Drain("b", LIMITS.drain_s_max))
    assert membership.serving == ["a", "b", "c"]  # its own clients are still answered
    assert membership.drained("b", 3.0) == []
    assert (membership.state("b"), membership.serving) == (State.GONE, ["a", "c"])


def test_who_left_goes_on_beating_and_does_not_come_back_by_that() -> None:
    membership = members("a", "b")
    membership.warmed(warm_of(membership.leave("b", 1.0)).change, 1.0)
    membership.drained("b", 1.0)
    for second in range(2, 6):
        membership.heartbeat("a", 1, float(second))
        assert membership.heartbeat("b", 1, float(second)) == []
    assert membership.state("b") is State.GONE
    for second in range(6, 5 + int(LIMITS.gone_kept_s)):
        membership.heartbeat("a", 1, float(second))
        assert membership.tick(float(second)) == []
    membership.heartbeat("a", 1, 5 + LIMITS.gone_kept_s)
    assert membership.tick(5 + LIMITS.gone_kept_s) == [Forget("b")]
    assert membership.heartbeat("b", 1, 30.0) == [Install("b")]  # nobody remembers it: a newcomer


def test_a_server_that_died_is_out_at_once() -> None:
    membership = members("a", "b", "c")
    (publish,) = membership.died("b", 1.0)
    assert isinstance(publish, Publish)
    assert set(publish.servers) == {"a", "c"}
    (lost,) = [m for m in membership.members if m.state is State.LOST]
    assert (lost.name, lost.why) == ("b", "died")


def test_the_silent_are_out_within_the_stated_time() -> None:
    membership = members("a", "b")
    now_s = 0.0
    while membership.ring == {"a": 1, "b": 1}:
        now_s += LIMITS.tick_every_s
        membership.heartbeat("a", 1, now_s)
        membership.tick(now_s)
    assert membership.ring == {"a": 1}
    assert now_s <= LIMITS.silent_s + LIMITS.tick_every_s


def test_a_lost_server_that_speaks_again_joins_anew() -> None:
    membership = members("a", "b")
    membership.died("b", 1.0)
    assert membership.heartbeat("b", 1, 2.0) == [Install("b")]
    assert membership.ring == {"a": 1}
    (warm,) = membership.placed("b", 3.0)
    assert isinstance(warm, Warm)
    assert rings(membership.warmed(warm.change, 4.0)) == [{"a": 1, "b": 1}]


def test_nobody_is_silent_while_nobody_listens() -> None:
    """The ControlPlane did not run for a minute: it missed the heartbeats, and they were sent."""
    membership = members("a", "b")
    membership.tick(0.5)
    assert membership.tick(60.5) == []
    assert membership.tick(61.0) == []
    membership.heartbeat("a", 1, 61.2)
    later = [d for half in range(20) for d in membership.tick(61.5 + half / 2) if isinstance(d, Publish)]
    assert dict(later[0].servers) == {"a": 1}  # and who does not speak now is lost all the same


def test_a_server_without_hosts_is_home_to_nothing() -> None:
    membership = members("a", "b")
    assert rings(membership.heartbeat("b", 1, 1.0, able=False)) == [{"a": 1}]
    assert membership.heartbeat("b", 1, 2.0, able=False) == []
    assert membership.heartbeat("b", 1, 3.0) == [Install("b")]


def test_a_server_that_did_not_get_the_code_is_home_to_nothing_until_it_joined_anew() -> None:
    membership = members("a", "b")
    assert rings(membership.unfit("b", 1.0, "lacks code")) == [{"a": 1}]
    (lost,) = [member for member in membership.members if member.name == "b"]
    assert (lost.state, lost.why) == (State.LOST, "lacks code")
    assert membership.unfit("b", 1.5, "lacks code") == []
    assert membership.unfit("nobody", 1.5, "lacks code") == []
    assert membership.heartbeat("b", 1, 2.0) == [Install("b")]
    assert warm_of(membership.placed("b", 3.0)).coming == {"b"}


def test_a_loss_during_a_change_does_not_wait_for_it() -> None:
    membership = members("a", "b", "c")
    membership.join("d", 1, 1.0)
    warm = warm_of(membership.placed("d", 1.0))
    assert rings(membership.died("c", 2.0)) == [{"a": 1, "b": 1}]
    assert rings(membership.warmed(warm.change, 3.0)) == [{"a": 1, "b": 1, "d": 1}]


def test_a_newcomer_that_dies_while_it_is_warmed_changes_nothing() -> None:
    membership = members("a")
    membership.join("b", 1, 1.0)
    warm = warm_of(membership.placed("b", 1.0))
    assert membership.died("b", 2.0) == []
    assert membership.warmed(warm.change, 3.0) == []
    assert membership.ring == {"a": 1}


def test_a_newcomer_that_came_back_is_warmed_again() -> None:
    """Its isolates died with it, so the change that was under way is not about it any more."""
    membership = members("a")
    membership.join("b", 1, 1.0)
    membership.join("c", 1, 1.0)
    first = warm_of(membership.placed("b", 1.0))
    membership.died("b", 2.0)
    membership.join("b", 1, 2.0)
    second = warm_of(membership.placed("b", 2.0))
    assert first.change != second.change
    assert membership.warmed(first.change, 3.0) == []
    assert rings(membership.warmed(second.change, 3.0)) == [{"a": 1, "b": 1}]


def test_a_change_that_is_never_warm_is_over_by_its_deadline() -> None:
    membership = members("a")
    membership.join("b", 1, 0.0)
    warm = warm_of(membership.placed("b", 0.0))
    decisions: list[Decision] = []
    until_s = LIMITS.warm_s_max + LIMITS.settle_s_max
    now_s = 0.0
    while now_s < until_s:
        assert rings(decisions) == []
        now_s += LIMITS.tick_every_s
        for name in "ab":
            membership.heartbeat(name, 1, now_s)
        decisions = membership.tick(now_s)
    assert rings(decisions) == [{"a": 1, "b": 1}]
    assert membership.warmed(warm.change, now_s) == []  # too late


def test_a_server_that_does_not_finish_is_gone_by_its_deadline() -> None:
    membership = members("a", "b")
    membership.warmed(warm_of(membership.leave("b", 0.0)).change, 0.0)
    now_s = 0.0
    while membership.state("b") is State.DRAINING:
        now_s += LIMITS.tick_every_s
        for name in "ab":
            membership.heartbeat(name, 1, now_s)
        membership.tick(now_s)
    assert (membership.state("b"), now_s) == (State.GONE, LIMITS.drain_s_max)


def test_the_last_server_may_leave() -> None:
    membership = members("a")
    warm = warm_of(membership.leave("a", 1.0))
    assert rings(membership.warmed(warm.change, 1.0)) == [{}]


def test_a_full_cluster_takes_nobody_before_somebody_is_gone() -> None:
    membership = Membership(0, MembershipLimits(servers_max=2))
    membership.join("a", 1, 0.0)
    membership.join("b", 1, 0.0)
    with pytest.raises(TooManyServers, match="2 servers"):
        membership.join("c", 1, 0.0)
    membership.died("a", 1.0)
    assert membership.join("c", 1, 1.0) == [Install("c")]
    assert membership.state("a") is State.UNKNOWN


# ------------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("state", State)
def test_every_pair_is_in_the_table_but_a_settled_server_waited_for_it(state: State) -> None:
    missing = set(Event) - set(TRANSITIONS[state])
    assert missing == (set() if state in (State.WARMING, State.LEAVING) else {Event.SETTLED})


def test_only_a_change_that_is_over_makes_homes_and_ends_them_in_peace() -> None:
    homes = {State.MEMBER, State.LEAVING}
    for before, row in TRANSITIONS.items():
        for event, after in row.items():
            if after in homes and before not in homes:
                assert event is Event.SETTLED
            if before in homes and after not in homes:
                assert event in (Event.SETTLED, Event.LOSE)


def test_a_life_whose_clock_was_set_back_goes_on_from_the_last_ones_epoch() -> None:
    membership = members("a")
    assert membership.known(membership.epoch) == []
    assert membership.known(5_000) == [Publish(5_001, {"a": 1})]
    assert membership.died("a", 9.0)[0] == Publish(5_002, {})


# -------------------------------------------------------------------------------------- whatever happens, in any order

NAMES = ["s1", "s2", "s3", "s4", "s5"]
WORKERS = [worker_key("default", f"worker-{i}") for i in range(60)]
SECRET = b"0123456789abcdef"


@dataclass
class World:
    """Performs decisions when it is told to, and checks each."""

    membership: Membership = field(default_factory=lambda: Membership(7))
    now_s: float = 0.0
    heard_s: dict[str, float] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    warms: list[Warm] = field(default_factory=list)
    begun_s: dict[int, float] = field(default_factory=dict)
    over: set[int] = field(default_factory=set)  # changes whose WARM is done, or whose time is
    rings: list[tuple[int, dict[str, int]]] = field(default_factory=lambda: [(7, {})])

    def hear(self, server: str) -> None:
        self.heard_s[server] = self.now_s
        self.dead.discard(server)

    def take(self, decisions: list[Decision]) -> None:
        for change, since_s in self.begun_s.items():
            if self.now_s >= since_s + LIMITS.warm_s_max + LIMITS.settle_s_max:
                self.over.add(change)
        for decision in decisions:
            if isinstance(decision, Warm):
                self.warms.append(decision)
                self.begun_s[decision.change] = self.now_s
            elif isinstance(decision, Publish):
                self.published(decision)

    def published(self, publish: Publish) -> None:
        epoch, old = self.rings[-1]
        new = dict(publish.servers)
        assert publish.epoch > epoch
        assert not set(new) & self.dead
        for server in set(new) - set(old):
            ready = {s for warm in self.warms if warm.change in self.over for s in warm.coming}
            assert server in ready, "a home before its workers were warm there"
        for server in set(old) - set(new) - self.dead:
            left = {s for warm in self.warms if warm.change in self.over for s in warm.going}
            silent = self.now_s - self.heard_s[server] >= LIMITS.silent_s
            assert server in left or silent, "no home any more, and nobody knows why"
        before, after = Ring(epoch, old, SECRET), Ring(publish.epoch, new, SECRET)
        came, went = set(new) - set(old), set(old) - set(new)
        for key in WORKERS:
            was, is_now = before.home_of(key), after.home_of(key)
            assert was == is_now or was in went or is_now in came or was is None or is_now is None
        self.rings.append((publish.epoch, new))


STEPS = st.one_of(
    st.tuples(st.sampled_from(["join", "beat", "beat", "placed", "placed", "leave", "died", "drained"]),
              st.sampled_from(NAMES)),
    st.tuples(st.sampled_from(["warmed", "all beat", "wait"]), st.floats(0.1, 50.0)),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_whatever_happens(steps: list[tuple[str, str | float]]) -> None:
    world = World()
    membership = world.membership
    for what, about in steps:
        if isinstance(about, float):
            if what == "warmed" and world.warms:
                change = world.warms[-1].change
                world.over.add(change)
                world.take(membership.warmed(change, world.now_s))
            elif what == "all beat":
                for name in NAMES:
                    if membership.state(name) not in (State.UNKNOWN, State.LOST, State.GONE):
                        world.hear(name)
                        world.take(membership.heartbeat(name, 1, world.now_s))
            else:
                until_s = world.now_s + about
                while world.now_s < until_s:
                    world.now_s += LIMITS.tick_every_s
                    world.take(membership.tick(world.now_s))
                    alive = [m for m in membership.members if m.name in membership.ring]
                    assert all(world.now_s - world.heard_s[m.name] < LIMITS.silent_s for m in alive)
        elif what == "join":
            world.hear(about)
            world.take(membership.join(about, 1, world.now_s))
        elif what == "beat":
            world.hear(about)
            world.take(membership.heartbeat(about, 1, world.now_s))
        elif what == "placed":
            world.take(membership.placed(about, world.now_s))
        elif what == "leave":
            world.take(membership.leave(about, world.now_s))
        elif what == "drained":
            world.take(membership.drained(about, world.now_s))
        else:
            world.dead.add(about)
            world.take(membership.died(about, world.now_s))
        assert membership.ring == world.rings[-1][1]
        assert set(membership.ring) <= set(membership.serving)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.integers(1, 4), min_size=2), st.data())
def test_a_server_that_is_lost_moves_only_its_own_workers(weights: dict[str, int], data: st.DataObject) -> None:
    lost = data.draw(st.sampled_from(sorted(weights)))
    before = Ring(1, weights, SECRET)
    after = Ring(2, {name: w for name, w in weights.items() if name != lost}, SECRET)
    for key in WORKERS:
        if before.home_of(key) == lost:
            assert after.home_of(key) == before.successors(key, 2)[1]
        else:
            assert after.home_of(key) == before.home_of(key)
