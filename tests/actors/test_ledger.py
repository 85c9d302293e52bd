"""A tree never uses more than it has, whatever its shape, its order and its losses."""

import random
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.budget import NOTHING, Ask, Budget, Exceeded, Resource, Spent
from actors.ledger import WAITING_MAX, Ledger, Turn
from actors.worker import Limits, Plan

FREE = Budget.of(Limits.for_plan(Plan.FREE))
PAID = Budget.of(Limits.for_plan(Plan.PAID))
ANY = Ask()
COUNTED = ("cpu_us", "subrequests", "invocations", "connections")


def begun(granted: Budget, cpu_us: int = 10_000) -> Ledger:
    ledger = Ledger.begin(granted, cpu_us)
    assert isinstance(ledger, Ledger)
    return ledger


def lent(ledger: Ledger, ask: Ask = ANY) -> tuple[int, Budget]:
    call = ledger.lend(ask)
    assert not isinstance(call, Exceeded), call
    return call


def balanced(ledger: Ledger) -> bool:
    own = Budget(ledger.own_cpu_us, 0, 0, 0, ledger.places)
    for name in COUNTED:
        parts = [ledger.left, own, ledger.spent, *ledger.out.values()]
        if getattr(ledger.granted, name) != sum(getattr(part, name) for part in parts):
            return False
    return True


def test_a_worker_that_calls_itself_ends_at_the_sixteenth() -> None:
    chain, asked = [begun(PAID)], 0
    while not isinstance(call := chain[-1].lend(Ask(10_000)), Exceeded) or ask_upwards(chain, call.what):
        # The share is a guess; whoever has run out asks its caller, and that one its own.
        if isinstance(call, Exceeded):
            asked += 1
        else:
            chain.append(begun(call[1]))
    assert len(chain) == 16
    assert call == Exceeded(Resource.DEPTH)
    assert call.code == ("loop-detected", None)
    assert "itself" in call.text
    assert asked < 16, "less than a round trip a call"


def ask_upwards(chain: list[Ledger], what: Resource) -> bool:
    """What a stage does that has run out: its caller's caller and so on, until someone has; and down again."""
    for above in range(len(chain) - 2, -1, -1):
        extra = chain[above].more(max(chain[above].out), what, Ask(10_000))
        if isinstance(extra, Budget):
            for stage in chain[above + 1 :]:
                stage.granted_more(extra)
                if stage is not chain[-1]:
                    passed_on = stage.more(max(stage.out), what, Ask(10_000))
                    assert isinstance(passed_on, Budget)
                    extra = passed_on
            assert all(balanced(ledger) for ledger in chain)
            return True
    return False


def test_one_call_after_the_other_can_use_up_everything() -> None:
    root = begun(PAID)
    calls = 0
    while not isinstance(call := root.lend(Ask(1_000)), Exceeded):
        calls += 1
        root.settle(call[0], begun(call[1]).close(1_000))
    assert call == Exceeded(Resource.INVOCATIONS)
    assert calls == 31
    assert root.close(5_000) == Spent(36_000, 31, 32, 0)


def test_twenty_calls_at_once_each_get_something_of_thirty_one() -> None:
    root = begun(PAID)
    shares = [lent(root, Ask(10_000))[1] for _ in range(20)]
    assert min(share.invocations for share in shares) == 1
    assert shares[0].invocations == 3, "a user's worker calls its outbound worker without asking for more"
    assert all(share.cpu_us >= 10_000 for share in shares)
    assert balanced(root)


def test_refused_gives_all_back_lost_nothing_and_answered_the_rest() -> None:
    root = begun(FREE)
    before = root.left
    call, share = lent(root)
    root.refuse(call)
    assert root.left == before
    call, _ = lent(root)
    root.settle(call, NOTHING)
    assert root.left == replace(before, subrequests=before.subrequests - 1)
    call, share = lent(root)
    without = root.left
    root.settle(call, None)
    assert (root.left, root.out) == (without, {})
    call, share = lent(root)
    without = root.left
    root.settle(call, Spent(cpu_us=1, invocations=1))
    assert root.left == without.plus(share.without(Spent(cpu_us=1, invocations=1)))
    assert balanced(root)


def test_a_call_is_settled_once() -> None:
    root = begun(FREE)
    call, _ = lent(root)
    root.settle(call, NOTHING)
    with pytest.raises(KeyError):
        root.settle(call, NOTHING)
    with pytest.raises(KeyError):
        root.more(call, Resource.SUBREQUESTS, ANY)


def test_asking_for_more_does_not_raise_what_the_caller_allows() -> None:
    root, ask = begun(PAID), Ask(subrequests_max=130)
    call, share = lent(root, ask)
    extra = root.more(call, Resource.SUBREQUESTS, ask)
    assert isinstance(extra, Budget)
    assert (share.subrequests, extra.subrequests) == (124, 6)
    assert root.more(call, Resource.SUBREQUESTS, ask) == Exceeded(Resource.SUBREQUESTS)


def test_nobody_can_have_spent_more_than_was_lent() -> None:
    root = begun(FREE)
    call, share = lent(root)
    root.settle(call, Spent(1 << 40, 1 << 40, 1 << 40, 1 << 40))
    assert root.spent == Spent(invocations=1, subrequests=1).plus(share.whole())
    assert balanced(root)


def test_calls_that_nobody_waited_for_are_lost_with_their_caller() -> None:
    root = begun(FREE)
    _, share = lent(root)
    spent = root.close(7)
    assert spent == Spent(7, 1, 1, 0).plus(share.whole())
    assert balanced(root)


def test_a_guest_that_ran_over_its_limit_before_it_was_stopped() -> None:
    root = begun(FREE, cpu_us=5_000)
    assert root.close(5_900).cpu_us == 5_900
    alone = begun(Budget(5_000, 0, 1, 1, 0), cpu_us=50_000)
    assert (alone.own_cpu_us, alone.close(5_900).cpu_us) == (5_000, 5_000)


def test_subrequests_are_counted_before_they_are_sent() -> None:
    root = begun(replace(FREE, subrequests=2))
    assert (root.subrequest(), root.subrequest()) == (None, None)
    assert root.subrequest() == Exceeded(Resource.SUBREQUESTS)
    assert root.lend(Ask()) == Exceeded(Resource.SUBREQUESTS), "a call is a subrequest"
    assert root.close(0) == Spent(0, 2, 1, 0)


@pytest.mark.parametrize(
    ("granted", "what"),
    [
        (replace(FREE, depth=0), Resource.DEPTH),
        (replace(FREE, invocations=0), Resource.INVOCATIONS),
        (replace(FREE, cpu_us=0), Resource.CPU),
    ],
)
def test_a_stage_that_can_not_begin(granted: Budget, what: Resource) -> None:
    assert Ledger.begin(granted, 10_000) == Exceeded(what)


# ------------------------------------------------------------------------------------------------------- connections


def test_the_seventh_waits_for_the_one_that_ends_first() -> None:
    root = begun(FREE)
    assert [root.connect(who) for who in range(8)] == [Turn.GO] * 6 + [Turn.WAIT] * 2
    assert root.disconnect(3) == [6]
    assert root.disconnect(3) == [], "safe to call again"
    assert root.disconnect(7) == [], "it does not want to wait any more"
    assert root.disconnect(0) == []
    assert (root.connected, root.waiting) == (5, 0)
    assert balanced(root)


def test_places_that_a_call_took_along_come_back_to_those_who_wait() -> None:
    root = begun(FREE)
    call, share = lent(root)
    assert share.connections == 3
    assert [root.connect(who) for who in "abcd"] == [Turn.GO] * 3 + [Turn.WAIT]
    assert root.settle(call, begun(share).close(0)) == ["d"]
    assert balanced(root)


def test_a_stage_without_any_place_has_one_connection_all_the_same() -> None:
    """And the first place that comes is for that one, so that a tree is back within its six as soon as can be."""
    root = begun(replace(FREE, connections=1))
    mine, share = lent(root)
    other, none = lent(root)
    assert (share.connections, none.connections) == (1, 0)
    late = begun(none)
    assert [late.connect(who) for who in "xy"] == [Turn.GO, Turn.WAIT]
    assert (late.connected, late.places) == (1, 0)
    assert root.more(other, Resource.CONNECTIONS, ANY) == Exceeded(Resource.CONNECTIONS)
    root.settle(mine, begun(share).close(0))
    extra = root.more(other, Resource.CONNECTIONS, ANY)
    assert isinstance(extra, Budget)
    assert late.granted_more(extra) == []
    assert (late.connected, late.places) == (1, 1)
    assert late.disconnect("x") == ["y"]
    assert (late.connected, late.places) == (1, 1)
    assert balanced(root)
    assert balanced(late)
    root.settle(other, late.close(0))
    assert root.left.connections == 1


def test_one_after_the_other_goes_where_there_is_no_place_at_all() -> None:
    stage = begun(replace(FREE, connections=0))
    assert [stage.connect(who) for who in "abc"] == [Turn.GO, Turn.WAIT, Turn.WAIT]
    assert (stage.disconnect("a"), stage.disconnect("b"), stage.disconnect("c")) == (["b"], ["c"], [])
    assert (stage.left.connections, stage.close(0).connections) == (0, 0)
    assert balanced(stage)


def test_only_so_many_wait() -> None:
    root = begun(replace(FREE, connections=0))
    assert [root.connect(who) for who in range(WAITING_MAX + 1)] == [Turn.GO] + [Turn.WAIT] * WAITING_MAX
    assert root.connect("one more") == Exceeded(Resource.CONNECTIONS)
    root.close(0)
    assert root.waiting == 0


@settings(max_examples=60)
@given(
    st.integers(0, 6),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)), max_size=31),
    st.randoms(use_true_random=False),
)
def test_no_tree_waits_for_itself(places: int, stages: list[tuple[int, int]], chance: random.Random) -> None:
    """The worst guests that there are: each opens more connections than it needs, and holds what it got until all that
    it called has answered. A stage answers when those have and it has had one connection. All do, in any order."""
    running = [(begun(replace(PAID, connections=places)), -1, 0)]
    for number, (caller, _) in enumerate(stages):
        above = caller % len(running)
        call = running[above][0].lend(ANY)
        if isinstance(call, Exceeded):
            continue
        stage = Ledger.begin(call[1], 0)
        assert isinstance(stage, Ledger)
        for who in range(stages[number][1]):
            running[above][0].connect((number, who))
        running.append((stage, above, call[0]))
    ended: set[int] = set()
    while len(ended) < len(running):
        ready = [
            i
            for i, (stage, _, _) in enumerate(running)
            if i not in ended and not stage.out and (stage.connected or stage.connect("its one") is Turn.GO)
        ]
        assert ready, "all wait"
        taken = sum(stage.places for i, (stage, _, _) in enumerate(running) if i not in ended)
        beyond = sum(stage.connected - stage.places for i, (stage, _, _) in enumerate(running) if i not in ended)
        assert taken <= places
        assert beyond <= len(running) - len(ended)
        which = chance.choice(ready)
        stage, above, key = running[which]
        spent = stage.close(0)
        ended.add(which)
        if above >= 0:
            running[above][0].settle(key, spent)
    assert running[0][0].left.connections == places, "all places have come back"


def test_the_places_of_a_lost_machine_do_not_come_back() -> None:
    root = begun(FREE)
    call, _ = lent(root)
    root.settle(call, None)
    assert [root.connect(who) for who in range(4)] == [Turn.GO] * 3 + [Turn.WAIT]


# ---------------------------------------------------------------------------------------------------- whole trees


class Tree:
    """Stages of one tree wherever they are. A lost one goes on running and using: nobody can take that back."""

    def __init__(self, granted: Budget) -> None:
        self.granted = granted
        self.running: list[tuple[Ledger, Ledger | None, int]] = [(begun(granted), None, 0)]
        self.used = dict.fromkeys(COUNTED, 0) | {"invocations": 1}
        self.names = 0

    def step(self, what: str, which: int, amount: int) -> None:
        if not self.running:
            return
        place = which % len(self.running)
        ledger, caller, call = self.running[place]
        if what == "call":
            lending = ledger.lend(Ask(amount))
            if not isinstance(lending, Exceeded):
                self.used["subrequests"] += 1
                child = Ledger.begin(lending[1], amount)
                if isinstance(child, Exceeded):
                    ledger.refuse(lending[0])
                    self.used["subrequests"] -= 1
                else:
                    self.used["invocations"] += 1
                    self.running.append((child, ledger, lending[0]))
        elif what == "fetch":
            self.used["subrequests"] += ledger.subrequest() is None
        elif what == "connect":
            self.names += 1
            ledger.connect(self.names)
        elif what == "disconnect":
            for who in sorted(ledger._open, key=str)[:1]:
                ledger.disconnect(who)
        elif what == "more" and caller is not None and call in caller.out:
            extra = caller.more(call, list(Resource)[amount % 5], Ask(amount))
            if isinstance(extra, Budget):
                ledger.granted_more(extra)
        elif what == "end" and place:
            del self.running[place]
            used_us = min(amount, ledger.own_cpu_us)
            self.used["cpu_us"] += used_us
            spent = ledger.close(used_us)
            if caller is not None and call in caller.out:
                caller.settle(call, spent)
        elif what == "lose" and caller is not None and call in caller.out:
            caller.settle(call, None)

    def check(self) -> None:
        assert all(balanced(ledger) for ledger, _, _ in self.running)
        for name in ("subrequests", "invocations", "cpu_us"):
            assert self.used[name] <= getattr(self.granted, name), name
        ledgers = [ledger for ledger, _, _ in self.running]
        assert sum(ledger.places for ledger in ledgers) <= self.granted.connections
        assert all(0 <= ledger.connected - ledger.places <= 1 for ledger in ledgers)
        assert not any(ledger.waiting for ledger in ledgers if not ledger.connected)


STEPS = st.tuples(
    st.sampled_from("call call call fetch connect connect disconnect more end end lose".split()),
    st.integers(0, 60),
    st.integers(0, 60_000),
)


@settings(max_examples=60)
@given(st.sampled_from([FREE, PAID, replace(FREE, invocations=7, subrequests=9, cpu_us=50_000)]), st.lists(STEPS))
def test_a_tree_never_uses_more_than_it_has(granted: Budget, steps: list[tuple[str, int, int]]) -> None:
    tree = Tree(granted)
    for step in steps:
        tree.step(*step)
        tree.check()
    # The last ones end first, and the root hears of everything that it did not give up for lost.
    while len(tree.running) > 1:
        tree.step("end", len(tree.running) - 1, 1)
        tree.check()
    ((root, _, _),) = tree.running
    spent = root.close(0)
    for field in fields(Spent):
        assert tree.used[field.name] <= getattr(spent, field.name) <= getattr(granted, field.name)


def test_books_that_go_elsewhere_stay_one_budget() -> None:
    """A host hands over a chain's books in the middle of it, and what came back since, with the next fetch."""
    root = begun(PAID, 50_000)
    first, share = lent(root)
    callee = begun(share, 20_000)
    inner, inner_share = lent(root)  # another callee, that goes on here

    there: list[Ledger] = []
    came: int | None = None

    def hand_over() -> None:
        nonlocal came
        left, below = root.hand_over(), callee.hand_over()
        root.handed_over(first, below)
        if not there:
            there.extend([Ledger.taken_over(left), Ledger.taken_over(below)])
            came = there[0].came_with(below)
        else:
            there[0].granted_more(left)
            there[1].granted_more(below)
            assert there[0].came_with(below, came) == came
        for ledger in (root, callee, *there):
            assert balanced(ledger)
        assert not root.left.invocations
        assert not root.left.cpu_us

    hand_over()
    root.settle(inner, Spent(1_000, 2, 1))
    assert balanced(root)
    assert root.left.invocations == inner_share.invocations - 1
    before = there[0].left
    hand_over()
    assert there[0].left.invocations == before.invocations + inner_share.invocations - 1

    far, _ = lent(there[1])  # by way of the Server
    there[1].settle(far, Spent(500, 3, 1))
    assert came is not None
    there[0].settle(came, there[1].close(0))
    root.settle(first, callee.close(4_000))
    for ledger in (root, *there):
        assert balanced(ledger)
    spent = root.close(30_000).plus(there[0].close(0))
    assert spent == Spent(cpu_us=35_500, subrequests=8, invocations=4)
    assert isinstance(there[0].left, Budget)
    assert there[0].left.plus(root.left).invocations == PAID.invocations - 4
    assert there[0].left.plus(root.left).cpu_us == PAID.cpu_us - 35_500
    assert there[0].left.plus(root.left).subrequests == PAID.subrequests - 8
