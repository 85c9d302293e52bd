"""What a parent set, a child can neither see, raise nor drop; and half a context is none."""

from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.budget import Budget
from actors.context import (
    LAYERS_MAX,
    PARAMETERS_BYTES_MAX,
    Caps,
    Context,
    Layer,
    Outbound,
    Owner,
    Trust,
    View,
    guest_parameters,
)
from actors.context_wire import CONTEXT_BYTES_MAX, CONTEXT_VERSION, TooLarge, decode_context, encode_context
from actors.exchange import Capability
from actors.wire import Undecodable
from actors.worker import Limits, Plan

PAID = Limits.for_plan(Plan.PAID)
BUDGET = Budget.of(PAID)
ROOT = Context(f"{1:016x}", BUDGET)

# Few words for everything, so that they meet, and examples that are made in a moment.
LABELS = st.sampled_from("a b guard tail x-1".split())
WORKERS = st.sampled_from("a b users/a users/b".split())
VERSIONS = st.sampled_from(["", "0123456789abcdef"])
TEXTS = st.sampled_from(["", "x", "ünïcode", "a longer text, with \n in it"])
PAIRS = st.sampled_from([(), (("a", "1"),), (("a", "2"), ("b", "")), (("B", "x"), ("a", "ü"), ("c", "3"))])
CAPS = st.builds(
    Caps, st.none() | st.integers(0, 99), st.none() | st.integers(0, 99), subrequests_max=st.integers(0, 9)
)
OUTBOUNDS = st.builds(Outbound, LABELS, PAIRS)
OWNERS = st.builds(Owner, WORKERS, VERSIONS, st.sampled_from(Plan))
STAGES = st.integers(1, 1 << 40).map("{:016x}".format)
TAILS = st.sampled_from([(), ("tail",), ("tail", "spy")])
LAYERS = st.builds(
    Layer, STAGES, OWNERS, CAPS | st.just(Caps()), st.sampled_from(Trust), TAILS, st.none() | OUTBOUNDS
)  # fmt: skip
VIEWS = LAYERS.map(View.of) | st.builds(View)
CAPABILITIES = st.none() | st.builds(Capability, TEXTS, st.integers(0, 1 << 53))
BUDGETS = st.sampled_from([BUDGET, Budget(1, 2, 3, 4, 5), Budget(1 << 33, 0, 0, 0, 0)])
CONTEXTS = st.builds(
    Context, STAGES, BUDGETS, st.lists(LAYERS, max_size=2, unique_by=lambda layer: layer.stage).map(tuple),
    st.just("") | STAGES, st.just("") | STAGES, PAIRS, st.sampled_from(["", f"00-{'a' * 32}-{'b' * 16}-01"]),
    CAPABILITIES, st.none() | st.integers(0, 1 << 30),
)  # fmt: skip


#: A context has many parts, and what is wrong with one shows in a few examples.
few = settings(max_examples=30)


def called(context: Context, layer: Layer, number: int) -> Context:
    """What a stage's callee gets when the stage pushes ``layer``."""
    return context.call(replace(layer, stage=context.stage), f"{(1 << 50) + number:016x}", context.budget)


def layer(worker: str = "parent", **set_by_it: Any) -> Layer:
    return Layer(ROOT.stage, Owner(worker), **set_by_it)


def encoded(context: Context) -> bytes:
    data = encode_context(context)
    assert isinstance(data, bytes)
    return data


# ------------------------------------------------------------------------------------------- parents and children


@few
@given(VIEWS, VIEWS, VIEWS)
def test_merging_is_associative_and_nothing_is_neutral(a: View, b: View, c: View) -> None:
    assert a.over(b).over(c) == a.over(b.over(c))
    assert View().over(a) == a == a.over(View())


@few
@given(CONTEXTS, st.lists(LAYERS, max_size=3))
def test_a_child_can_neither_raise_nor_drop_what_its_parents_set(context: Context, layers: list[Layer]) -> None:
    parents, child = context.view, context
    for number, pushed in enumerate(layers):
        child = called(child, pushed, number)
    view = child.view
    assert child.layers[: len(context.layers)] == context.layers
    for cap in fields(Caps):
        mine, theirs = getattr(parents.caps, cap.name), getattr(view.caps, cap.name)
        assert mine is None or (theirs is not None and theirs <= mine)
    assert parents.trust is Trust.TRUSTED or view.trust is Trust.UNTRUSTED
    assert view.tails[: len(parents.tails)] == parents.tails
    assert view.outbounds[: len(parents.outbounds)] == parents.outbounds
    kept = [name for name in Context.__dataclass_fields__ if name in "report_traces left_ms traceparent"]
    assert [getattr(child, name) for name in kept] == [getattr(context, name) for name in kept]


@few
@given(CONTEXTS, LAYERS)
def test_a_child_sees_nothing_of_it(context: Context, pushed: Layer) -> None:
    assert guest_parameters(called(context, pushed, 0)) == ()


@few
@given(CONTEXTS, st.sampled_from(Plan), CAPS)
def test_limits_only_go_down(context: Context, plan: Plan, caps: Caps) -> None:
    own = Limits.ceiling_for_plan(plan)
    under = called(context, layer(caps=caps), 0).limits_of(own)
    assert under.lowered_by(own) == under
    assert (under.memory_soft_bytes, under.startup_cpu_ms) == (own.memory_soft_bytes, own.startup_cpu_ms)
    for cap in fields(Caps):
        allowed = getattr(caps, cap.name)
        assert allowed is None or getattr(under, cap.name) <= allowed


def test_a_dispatcher_lowers_its_users_limits() -> None:
    users = called(ROOT, layer(caps=Caps(cpu_ms=5, subrequests_max=3), trust=Trust.UNTRUSTED), 0)
    limits = users.limits_of(PAID)
    assert (limits.cpu_ms, limits.subrequests_max, limits.invocations_max) == (5, 3, 32)
    ask = users.ask_for(PAID)
    assert (ask.cpu_us, ask.subrequests_max) == (5_000, 3)
    nested = called(users, layer("user", caps=Caps(cpu_ms=50), trust=Trust.TRUSTED), 1)
    assert (nested.limits_of(PAID).cpu_ms, nested.view.trust) == (5, Trust.UNTRUSTED)


def test_what_is_left_of_the_tree_is_a_limit_too() -> None:
    context = replace(ROOT, budget=Budget(7_999, 3, 2, 1, 0))
    limits = context.limits_of(PAID)
    numbers = limits.cpu_ms, limits.invocations_max, limits.depth_max
    assert numbers == (4, 2, 1), "half of the CPU time is for whom it calls"
    assert (limits.subrequests_max, limits.connections_max) == (1_000, 6), "a share of these is a guess"
    alone = replace(ROOT, budget=Budget(7_999, 3, 1, 1, 0))
    assert alone.limits_of(PAID).cpu_ms == 7, "and all of it is its own when it can call nobody"


def test_a_stage_pushes_its_own_layer() -> None:
    with pytest.raises(ValueError, match="its own"):
        ROOT.call(replace(layer(), stage="f" * 16), f"{2:016x}", BUDGET)


# ------------------------------------------------------------------------------------------------ outbound workers


def test_a_users_fetch_goes_to_the_guard_of_its_dispatcher() -> None:
    dispatching = layer(
        "shop", outbound=Outbound("guard", (("customer", "alice"),)), caps=Caps(cpu_ms=5), tails=("tail",)
    )
    user = called(ROOT, dispatching, 1)
    assert guest_parameters(user) == (), "a user's worker does not see what its guard is told"
    fetch = called(user, layer("users/alice", tails=("spy",)), 2)
    way = fetch.outbound()
    assert way is not None
    worker, guard = way
    assert (worker, guest_parameters(guard)) == ("guard", (("customer", "alice"),))
    assert guard.limits_of(PAID).cpu_ms == 50, "the cap is the user's, not the guard's"
    assert guard.view.tails == ((ROOT.stage, "tail"),), "and the user's tail hears nothing of it"
    assert (guard.caller, guard.chosen_by, guard.stage) == (user.stage, ROOT.stage, fetch.stage)
    assert called(guard, layer("guard"), 3).outbound() is None, "what the guard asks for goes out"


def test_a_childs_own_guard_runs_inside_the_one_that_its_dispatcher_set() -> None:
    context = ROOT
    for number, name in enumerate(("outer", "inner")):
        context = called(context, layer(f"dispatches-{name}", outbound=Outbound(name)), number)
    passed = []
    for number in range(2, 9):
        way = called(context, layer("anybody"), number).outbound()
        if way is None:
            break
        worker, context = way
        passed.append(worker)
    assert passed == ["inner", "outer"]


@few
@given(CONTEXTS, st.lists(LAYERS, max_size=3))
def test_there_is_no_way_around_a_guard(context: Context, layers: list[Layer]) -> None:
    for number, pushed in enumerate(layers):
        context = called(context, pushed, number)
    set_by = context.view.outbounds
    passed: list[tuple[str, Outbound]] = []
    while (way := context.outbound()) is not None:
        worker, guard = way
        passed.append((guard.chosen_by, Outbound(worker, guest_parameters(guard))))
        assert guard.layers[:-1] == context.layers[: len(guard.layers) - 1]
        assert len(guard.layers) <= len(context.layers)
        assert guard.budget == context.budget
        assert guard.report_traces == context.report_traces
        context = guard
    assert passed == list(reversed(set_by))


# ------------------------------------------------------------------------------------------------------------ time


@few
@given(CONTEXTS, st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e3))
def test_a_deadline_never_moves_away(context: Context, here_s: float, there_s: float, later_s: float) -> None:
    deadline_s = context.deadline_s(here_s)
    sent = context.leaving(here_s + later_s, deadline_s)
    if context.left_ms is None:
        assert (deadline_s, sent.left_ms) == (None, None)
    else:
        assert sent.left_ms is not None
        assert 0 <= sent.left_ms <= context.left_ms
        arrived = sent.deadline_s(there_s)
        assert arrived is not None
        assert arrived - there_s <= max(0.0, context.left_ms / 1e3 - later_s) + 1e-3


def test_time_that_is_over_is_no_time() -> None:
    assert replace(ROOT, left_ms=100).leaving(50.2, 50.1).left_ms == 0
    assert ROOT.leaving(50.0, 50.25).left_ms == 250
    assert replace(ROOT, left_ms=100).leaving(50.0, 99.0).left_ms == 100, "nobody has more time than its caller"


# ----------------------------------------------------------------------------------------------------------- bytes


@few
@given(CONTEXTS)
def test_round_trip(context: Context) -> None:
    assert decode_context(encoded(context)) == context
    assert decode_context(memoryview(encoded(context))) == context


@few
@given(CONTEXTS, st.data())
def test_cut_or_longer_bytes_are_no_context(context: Context, data: st.DataObject) -> None:
    whole = encoded(context)
    with pytest.raises(Undecodable):
        decode_context(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(Undecodable):
        decode_context(whole + b"\0")


@few
@given(CONTEXTS, st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=3))
def test_spoilt_bytes_are_another_whole_context_or_none(context: Context, spoilt: list[tuple[int, int]]) -> None:
    data = bytearray(encoded(context))
    for place, bits in spoilt:
        data[place % len(data)] ^= bits
    with suppress(Undecodable):
        assert encoded(decode_context(bytes(data))) == data


@few
@given(st.binary(max_size=300))
def test_junk_is_no_context(junk: bytes) -> None:
    with pytest.raises(Undecodable):
        decode_context(junk)


def plain(context: Context = ROOT) -> Any:
    return msgspec.msgpack.decode(encoded(context))


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it[1].update(admin=True),
        lambda it: it[1]["budget"].update(free=1),
        lambda it: it[1]["layers"][0].update(x=None),
        lambda it: it[1]["layers"][0]["caps"].update(cpu_seconds=1),
        lambda it: it[1].pop("caller"),
        lambda it: it[1]["layers"][0].pop("outbound"),
        lambda it: it[1].update(left_ms=0.0),
        lambda it: it[1].update(left_ms=-1),
        lambda it: it[1]["budget"].update(depth=1 << 50),
        lambda it: it[1].update(left_ms="1"),
        lambda it: it[1].update(layers=it[1]["layers"] * 2),
        lambda it: it[1].update(parameters=[["b", ""], ["a", ""]]),
        lambda it: it[1].update(parameters=[["a", "1"], ["a", "2"]]),
        lambda it: it[1].update(parameters=[["a b", ""]]),
        lambda it: it[1]["layers"][0].update(trust="admin"),
        lambda it: it[1]["layers"][0].update(tails=["../etc"]),
        lambda it: it[1].update(traceparent="01"),
        lambda it: it.append("more"),
        lambda it: it.__setitem__(0, CONTEXT_VERSION + 1),
        lambda it: it.__setitem__(0, True),
        lambda it: it.clear(),
    ],
)
def test_what_is_not_understood_is_refused(change: Any) -> None:
    context = called(ROOT, layer(outbound=Outbound("guard")), 0)
    changed = plain(context)
    assert decode_context(msgspec.msgpack.encode(changed)) == context
    change(changed)
    with pytest.raises(Undecodable):
        decode_context(msgspec.msgpack.encode(changed))


def test_a_field_that_is_there_twice_is_refused() -> None:
    # Of two, some readers take the first and some the last: who checks would see another one than who uses it.
    data = bytearray(encoded(ROOT))
    place = data.index(b"\xa6caller\xa0")
    names = data[1 + 1]  # behind the array's head and the version: a map with so many fields
    assert names & 0xF0 == 0x80
    data[2] = names + 1
    data[place:place] = b"\xa6caller\xb0" + b"f" * 16
    with pytest.raises(Undecodable, match="doubled"):
        decode_context(bytes(data))


def test_another_version_is_named() -> None:
    with pytest.raises(Undecodable, match="version 7"):
        decode_context(msgspec.msgpack.encode([7, "whatever that version has"]))


def test_too_deep_is_refused() -> None:
    with pytest.raises(Undecodable):
        decode_context(b"\x91" * CONTEXT_BYTES_MAX)
    with pytest.raises(Undecodable):
        decode_context(b"\x92\x02\x81\xa6layers" + b"\x91" * 10_000)


def test_too_many_layers_are_refused() -> None:
    context = ROOT
    for number in range(LAYERS_MAX):
        context = called(context, layer(), number)
    assert isinstance(encode_context(context), bytes), "as deep as a tree may be, it fits"
    with pytest.raises(ValueError, match="layers"):
        called(context, layer(), LAYERS_MAX)


def test_too_large_is_refused_where_it_is_made_and_where_it_arrives() -> None:
    large = Outbound("guard", (("token", "x" * (PARAMETERS_BYTES_MAX - 5)),))
    context = ROOT
    for number in range(4):
        assert isinstance(encode_context(context), bytes)
        context = called(context, layer(outbound=large), number)
    refused = encode_context(context)
    assert isinstance(refused, TooLarge)
    assert refused.size_bytes > CONTEXT_BYTES_MAX
    with pytest.raises(Undecodable, match="bytes"):
        decode_context(b"\0" * (CONTEXT_BYTES_MAX + 1))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"stage": ""}, "stage"),
        ({"caller": "me"}, "caller"),
        ({"left_ms": True}, "left_ms"),
        ({"report_traces": Capability("x" * 200, 1)}, "capability"),
        ({"parameters": (("a", "x" * PARAMETERS_BYTES_MAX),)}, "parameters"),
        ({"parameters": (("a", "\ud800"),)}, "surrogates"),
    ],
)
def test_a_wrong_context_can_not_be_made(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(ROOT, **wrong)
