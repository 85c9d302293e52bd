"""What a stage may call, and what its callee gets: tables, without a cluster."""

import pytest

from actors.bindings import Bindings, DispatchBinding, Outbound, ServiceBinding, Tail
from actors.budget import NOTHING, Budget, Exceeded, Spent
from actors.context import Caps, Context, Trust, guest_parameters
from actors.stage_calls import Aim, Call, Refused, StageCalls, World, stripped
from actors.worker import Limits, Plan, Version
from isolates.conversation import FieldItems
from isolates.egress import OutgoingHead

PAID = Limits.for_plan(Plan.PAID)
STAGE, NEXT, THIRD, FOURTH = (f"{n:016x}" for n in range(1, 5))
DISPATCHER = Bindings(
    services=(ServiceBinding("api", "backend"),),
    dispatch=(DispatchBinding("users", "customers"),),
    outbound=Outbound("guard", ("tenant", "region")),
    tail=Tail(("tail",)),
)


def stage(bindings: Bindings, context: Context | None = None, worker: str = "dispatcher") -> StageCalls:
    version = Version(worker, "0" * 16, "0" * 64, PAID, Plan.PAID, 0, "a test", bindings=bindings)
    begun = StageCalls.begin(version, context or Context(STAGE, Budget.of(PAID)))
    assert isinstance(begun, StageCalls)
    return begun


def head(authority: str, headers: FieldItems = ()) -> OutgoingHead:
    return OutgoingHead("GET", "http", authority, "/", headers)


def made(calls: StageCalls, authority: str, headers: FieldItems = (), callee: str = NEXT) -> Call:
    """A call that is let through."""
    aim = calls.aim(authority)
    assert isinstance(aim, Aim), aim
    call = calls.call(aim, head(authority, headers), callee, PAID)
    assert isinstance(call, Call), call
    return call


def refused(calls: StageCalls, authority: str, headers: FieldItems) -> str:
    """Why a call is not let through."""
    aim = calls.aim(authority)
    assert isinstance(aim, Aim), aim
    call = calls.call(aim, head(authority, headers), NEXT, PAID)
    assert isinstance(call, Refused), call
    assert call.code == ("HTTP-request-denied", None)
    return call.why


@pytest.mark.parametrize(
    ("authority", "worker", "by"),
    [
        ("api.binding.internal", "backend", "api"),
        ("API.Binding.Internal.", "backend", "api"),
        ("ann.dispatch.internal", "customers/ann", "users"),
        ("ann.users.dispatch.internal:80", "customers/ann", "users"),
    ],
)
def test_a_bound_name_is_aimed_at_its_worker(authority: str, worker: str, by: str) -> None:
    aim = stage(DISPATCHER).aim(authority)
    assert isinstance(aim, Aim)
    assert (aim.worker, aim.by) == (worker, by)


@pytest.mark.parametrize("authority", ["other.binding.internal", "binding.internal", "a.b.c.dispatch.internal"])
def test_an_unbound_name_under_internal_ends_here(authority: str) -> None:
    aim = stage(DISPATCHER).aim(authority)
    assert isinstance(aim, Refused)
    assert aim.code == ("destination-not-found", None)


@pytest.mark.parametrize("authority", ["example.com", "api.binding.internal.example.com", "api-binding.internal.com"])
def test_the_rest_is_the_world(authority: str) -> None:
    assert stage(DISPATCHER).aim(authority) == World()


def test_a_dispatched_users_worker_gets_what_its_dispatcher_sets() -> None:
    headers: FieldItems = (
        ("everwarm-limits", b"cpu_ms=5, subrequests_max=2"),
        ("Everwarm-Limits", b"cpu_ms=7"),
        ("everwarm-parameter-tenant", b"acme"),
        ("everwarm-anything", b"forged"),
        ("accept", b"*/*"),
    )
    call = made(stage(DISPATCHER), "ann.dispatch.internal", headers)
    assert call.headers == (("accept", b"*/*"),)
    view = call.context.view
    assert view.caps == Caps(cpu_ms=5, subrequests_max=2)
    assert view.trust is Trust.UNTRUSTED
    assert view.tails == ((STAGE, "tail"),)
    limits = call.context.limits_of(PAID)
    assert (limits.cpu_ms, limits.subrequests_max) == (5, 2)
    assert guest_parameters(call.context) == ()


def test_a_service_is_called_with_nothing_but_its_own_limits() -> None:
    call = made(stage(DISPATCHER), "api.binding.internal", (("everwarm-limits", b"cpu_ms=5"),))
    assert call.headers == ()
    assert call.context.view.caps == Caps()
    assert call.context.outbound() is None
    assert call.context.limits_of(PAID).cpu_ms == PAID.cpu_ms


def test_what_the_user_fetches_goes_to_the_guard_with_its_parameters() -> None:
    user = made(stage(DISPATCHER), "ann.dispatch.internal", (("everwarm-parameter-tenant", b"acme"),))
    calls = stage(Bindings(services=(ServiceBinding("db", "database"),)), user.context, "customers/ann")
    guarded = made(calls, "example.com", (("everwarm-parameter-tenant", b"forged"), ("accept", b"*/*")), THIRD)
    assert guarded.worker == "guard"
    assert guarded.headers == (("accept", b"*/*"), ("everwarm-parameter-tenant", b"acme"))
    assert guarded.context.view.caps == Caps()
    # The guard itself goes out; and a binding of the user's own leads where it says, still under the guard.
    assert stage(Bindings(), guarded.context, "guard").aim("example.com") == World()
    database = made(calls, "db.binding.internal", callee=FOURTH)
    aim = stage(Bindings(), database.context, "database").aim("example.com")
    assert isinstance(aim, Aim)
    assert aim.worker == "guard"


@pytest.mark.parametrize(
    ("bindings", "headers", "why"),
    [
        (DISPATCHER, (("everwarm-limits", b"cpu_ms"),), "whole number"),
        (DISPATCHER, (("everwarm-limits", b"cpu_ms=-1"),), "whole number"),
        (DISPATCHER, (("everwarm-limits", "cpu_ms=²".encode("latin-1")),), "whole number"),
        (DISPATCHER, (("everwarm-limits", b"cpu_ms=" + b"9" * 13),), "whole number"),
        (DISPATCHER, (("everwarm-limits", b"memory=5"),), "one of cpu_ms"),
        (DISPATCHER, (("everwarm-limits", b""),), "one of cpu_ms"),
        (DISPATCHER, (("everwarm-parameter-colour", b"red"),), "colour is no parameter"),
        (DISPATCHER, (("everwarm-parameter-tenant", b"x" * 5_000),), "more than 4096 bytes"),
        (Bindings(dispatch=DISPATCHER.dispatch), (("everwarm-parameter-tenant", b"x"),), "no [outbound]"),
    ],
)
def test_a_setting_that_is_not_understood_fails_the_call(bindings: Bindings, headers: FieldItems, why: str) -> None:
    calls = stage(bindings)
    assert why in refused(calls, "ann.dispatch.internal", headers)
    assert calls.ledger.spent == Spent(invocations=1)


def test_calls_end_when_the_tree_has_no_more() -> None:
    calls = stage(DISPATCHER)
    for _ in range(PAID.invocations_max - 1):
        call = made(calls, "api.binding.internal")
        calls.ledger.settle(call.key, Spent(invocations=1))
    aim = calls.aim("api.binding.internal")
    assert isinstance(aim, Aim)
    last = calls.call(aim, head("api.binding.internal"), NEXT, PAID)
    assert isinstance(last, Refused)
    assert "invocations" in last.why


def test_a_call_that_was_refused_costs_a_subrequest_and_no_more() -> None:
    calls = stage(DISPATCHER)
    before = calls.ledger.left
    calls.ledger.settle(made(calls, "api.binding.internal").key, NOTHING)
    assert calls.ledger.left.invocations == before.invocations
    assert calls.ledger.left.subrequests == before.subrequests - 1


def test_the_world_counts() -> None:
    calls = stage(DISPATCHER)
    for _ in range(PAID.subrequests_max):
        assert calls.out() is None
    assert isinstance(calls.out(), Refused)


def test_a_stage_without_a_share_calls_nobody() -> None:
    version = Version("w", "0" * 16, "0" * 64, PAID, Plan.PAID, 0, "a test")
    assert isinstance(StageCalls.begin(version, Context(STAGE, Budget(0, 0, 0, 0, 0))), Exceeded)


def test_nobody_speaks_in_the_platforms_name() -> None:
    headers: FieldItems = (("Everwarm-Outcome", b"ok"), ("x-everwarm", b"1"), ("everwarm", b"2"))
    assert stripped(headers) == (("x-everwarm", b"1"), ("everwarm", b"2"))
