from __future__ import annotations

import json
import string
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors.bindings import (
    LIMITS,
    NOTHING_BOUND,
    Bindings,
    DispatchBinding,
    KvBinding,
    NotBound,
    Outbound,
    ServiceBinding,
    ServiceTarget,
    Tail,
    UserTarget,
    is_internal,
    resolve,
)

SHOP = Bindings(
    services=(ServiceBinding("auth", "auth-worker"), ServiceBinding("cart", "cart-v2")),
    dispatch=(DispatchBinding("customers", "production"),),
    kv=(KvBinding("sessions", "shop-sessions"),),
    vars=(("COLOR", "green"), ("EMPTY", "")),
    secrets=("STRIPE_KEY",),
    outbound=Outbound("guard", ("customer", "plan_level")),
    tail=Tail(("logs", "billing")),
)
TWO = replace(SHOP, dispatch=(*SHOP.dispatch, DispatchBinding("staging", "stage")))

AUTH = ServiceTarget("auth", "auth-worker")
ADA = UserTarget("customers", "production", "ada")


@pytest.mark.parametrize(
    ("authority", "target"),
    [
        ("auth.binding.internal", AUTH),
        ("cart.binding.internal", ServiceTarget("cart", "cart-v2")),
        ("AUTH.Binding.INTERNAL", AUTH),
        ("auth.binding.internal.", AUTH),
        ("auth.binding.internal:80", AUTH),
        ("auth.binding.internal.:443", AUTH),
        ("ada.dispatch.internal", ADA),
        ("ADA.dispatch.internal.:80", ADA),
        ("ada.customers.dispatch.internal", ADA),
    ],
)
def test_what_the_manifest_names_resolves(authority: str, target: object) -> None:
    assert resolve(SHOP, authority) == target
    assert is_internal(authority)


def test_a_users_worker_is_the_catalogs() -> None:
    assert ADA.worker == "production/ada"


def test_with_two_dispatch_bindings_only_the_long_form_resolves() -> None:
    refused = resolve(TWO, "ada.dispatch.internal")
    assert refused == NotBound(True, "with several dispatch bindings, write ada.NAME.dispatch.internal")
    assert resolve(TWO, "ada.customers.dispatch.internal") == ADA
    assert resolve(TWO, "ada.staging.dispatch.internal") == UserTarget("staging", "stage", "ada")


INTERNAL = [
    *("x.binding.internal", "customers.binding.internal", "sessions.binding.internal", "auth-worker.binding.internal"),
    *(
        "binding.internal",
        ".binding.internal",
        "..binding.internal",
        "auth..binding.internal",
        "a.auth.binding.internal",
    ),
    *("auth.binding.internal..", "auth.binding.internal:8080", "auth.binding.internal:", "auth.binding.internal:80:80"),
    *("auth.binding.internal:080", "auth.binding.internal: 80", " auth.binding.internal", "auth .binding.internal"),
    *("u@auth.binding.internal", "%61uth.binding.internal", "аuth.binding.internal", "ａuth.binding.internal"),
    *("xn--uth-5cd.binding.internal", "a" * 64 + ".binding.internal", "auth." * 60 + "binding.internal"),
    *("dispatch.internal", ".dispatch.internal", "ada..dispatch.internal", ".customers.dispatch.internal"),
    *("ada.staging.dispatch.internal", "ada.auth.dispatch.internal", "b.ada.customers.dispatch.internal"),
    *("1ada.dispatch.internal", "ada_x.dispatch.internal", "ada/x.dispatch.internal", "a" * 64 + ".dispatch.internal"),
    *("auth.dispatch.internal.binding.internal", "production/ada.dispatch.internal", "auth.binding.internal\n"),
]
OUTSIDE = [
    *("", ".", ":", ":80", "example.com", "auth", "internal", "auth.internal", "binding", "auth-worker.localhost"),
    *(
        "x.binding.internal.example.com",
        "auth.binding.internal.com",
        "auth.binding.internal-x",
        "auth.binding-internal",
    ),
    *("xbinding.internal", "auth.xbinding.internal", "auth.bindings.internal", "authbinding.internal", "[::1]:80"),
    *("auth.binding.internal@example.com", "auth.binding.internal/x.example", "example.com#.auth.binding.internal/"),
]


@pytest.mark.parametrize("authority", INTERNAL)
def test_what_looks_like_a_binding_and_is_none_ends_here(authority: str) -> None:
    refused = resolve(SHOP, authority)
    assert isinstance(refused, NotBound)
    assert refused.internal


@pytest.mark.parametrize("authority", OUTSIDE)
def test_what_is_no_name_of_a_binding_is_left_to_others(authority: str) -> None:
    assert resolve(SHOP, authority) == NotBound(False, resolve(SHOP, authority).reason)  # type: ignore[union-attr]
    assert not is_internal(authority)


def test_the_kelvin_sign_is_no_k() -> None:
    bound = Bindings(services=(ServiceBinding("k", "w"),))
    assert resolve(bound, "K.binding.internal") == ServiceTarget("k", "w")
    assert isinstance(resolve(bound, "\N{KELVIN SIGN}.binding.internal"), NotBound)


LABELS = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
PIECES = st.sampled_from(
    [
        *"auth cart customers staging ada binding dispatch internal example com localhost . .. : :80 :443 @ /".split(),
        *(" ", "\n", "A", "\N{KELVIN SIGN}", "é", "xn--", "%2e", "a" * 63, "a" * 64, ".binding.internal"),
        *(".dispatch.internal", ".internal", ".binding.internal..", ".dispatch.internal\n", ".binding.internal:80"),
    ]
)


@st.composite
def any_bindings(draw: st.DrawFn) -> Bindings:
    names = draw(st.lists(LABELS, unique=True, max_size=6))
    services = tuple(ServiceBinding(name, draw(LABELS)) for name in names[::3])
    dispatch = tuple(DispatchBinding(name, draw(LABELS)) for name in names[1::3])
    return Bindings(services, dispatch, tuple(KvBinding(name, draw(LABELS)) for name in names[2::3]))


@given(any_bindings(), st.text(max_size=300) | st.lists(PIECES, max_size=8).map("".join))
@example(Bindings(dispatch=(DispatchBinding("internal", "n"),)), "binding.internal")
@example(Bindings(dispatch=(DispatchBinding("internal", "n"),)), "dispatch.internal")
def test_nothing_outside_the_manifest_resolves(bound: Bindings, authority: str) -> None:
    found = resolve(bound, authority)
    if isinstance(found, NotBound):
        assert found.internal == is_internal(authority)
        return
    # Whatever resolves is spelled by the manifest, but for case, a dot at the end and a port.
    assert is_internal(authority)
    host = authority.split(":")[0].removesuffix(".").lower()
    if isinstance(found, ServiceTarget):
        assert ServiceBinding(found.binding, found.worker) in bound.services
        assert host == f"{found.binding}.binding.internal"
    else:
        assert DispatchBinding(found.binding, found.namespace) in bound.dispatch
        short = [f"{found.user}.dispatch.internal"] if len(bound.dispatch) == 1 else []
        assert host in [*short, f"{found.user}.{found.binding}.dispatch.internal"]
        assert found.worker == f"{found.namespace}/{found.user}"


@given(any_bindings(), LABELS, st.sampled_from(["", "."]), st.sampled_from(["", ":80", ":443"]), st.booleans())
def test_everything_in_the_manifest_resolves(bound: Bindings, user: str, dot: str, port: str, upper: bool) -> None:
    def asked(host: str) -> object:
        return resolve(bound, (host.upper() if upper else host) + dot + port)

    for service in bound.services:
        assert asked(f"{service.name}.binding.internal") == ServiceTarget(service.name, service.worker)
    for dispatch in bound.dispatch:
        target = UserTarget(dispatch.name, dispatch.namespace, user)
        assert asked(f"{user}.{dispatch.name}.dispatch.internal") == target
        if len(bound.dispatch) == 1:
            assert asked(f"{user}.dispatch.internal") == target


@given(st.text(alphabet=string.printable + "éK", max_size=300))
def test_nothing_at_all_resolves_without_bindings(authority: str) -> None:
    for host in (authority, f"{authority}.binding.internal", f"{authority}.dispatch.internal"):
        assert isinstance(resolve(NOTHING_BOUND, host), NotBound)


def test_a_store_is_found_by_its_name() -> None:
    assert (SHOP.store_of("sessions"), SHOP.store_of("auth"), SHOP.store_of("")) == ("shop-sessions", None, None)


def test_the_workers_that_are_named() -> None:
    assert SHOP.workers() == ("auth-worker", "cart-v2", "guard", "logs", "billing")
    assert Bindings(services=(ServiceBinding("a", "w"), ServiceBinding("b", "w"))).workers() == ("w",)
    assert NOTHING_BOUND.workers() == ()


def test_bindings_survive_json() -> None:
    for bound in (SHOP, TWO, NOTHING_BOUND):
        assert Bindings.from_plain(json.loads(json.dumps(bound.to_plain()))) == bound


@given(any_bindings())
def test_any_bindings_survive_json(bound: Bindings) -> None:
    assert Bindings.from_plain(json.loads(json.dumps(bound.to_plain()))) == bound


PLAIN = SHOP.to_plain()


@pytest.mark.parametrize("field", sorted(PLAIN))
def test_every_field_is_checked(field: str) -> None:
    for wrong in (1, "x", [1], [{}], {"x": 1}, {"a b": "c"}, [{"name": "a"}], True, ["a b"], ["a"] * 1000):
        with pytest.raises(ValueError, match=r"^\w+"):
            Bindings.from_plain({**PLAIN, field: wrong})
    left = {name: value for name, value in PLAIN.items() if name != field}
    with pytest.raises(ValueError, match=f"^{field}: missing"):
        Bindings.from_plain(left)
    with pytest.raises(ValueError, match="'extra': unknown"):
        Bindings.from_plain({**PLAIN, "extra": 1})


def many(count: int) -> list[str]:
    return [f"n{i}" for i in range(count)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("services", [{"name": name, "worker": "w"} for name in many(LIMITS.services_max + 1)]),
        ("dispatch", [{"name": name, "namespace": "n"} for name in many(LIMITS.dispatch_max + 1)]),
        ("kv", [{"name": name, "store": "s"} for name in many(LIMITS.kv_max + 1)]),
        ("vars", dict.fromkeys(many(LIMITS.vars_max + 1), "")),
        ("vars", {"A": "x" * (LIMITS.var_bytes_max + 1)}),
        ("vars", {"A": "é" * (LIMITS.var_bytes_max // 2 + 1)}),
        ("vars", dict.fromkeys(many(14), "x" * LIMITS.var_bytes_max)),
        ("vars", {"A": "a\0b"}),
        ("vars", {"1A": ""}),
        ("secrets", many(LIMITS.secrets_max + 1)),
        ("secrets", ["A", "A"]),
        ("secrets", ["A-B"]),
        ("outbound", {"worker": "w", "parameters": many(LIMITS.parameters_max + 1)}),
        ("outbound", {"worker": "w", "parameters": ["Customer"]}),
        ("outbound", {"worker": "w/x", "parameters": []}),
        ("tail", {"workers": many(LIMITS.tails_max + 1)}),
        ("tail", {"workers": ["a", "a"]}),
    ],
)
def test_everything_has_its_bound(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field}"):
        Bindings.from_plain({**PLAIN, field: value})


def test_the_most_that_is_allowed_is() -> None:
    plain = {**PLAIN, "services": [{"name": name, "worker": "w"} for name in many(LIMITS.services_max)]}
    assert len(Bindings.from_plain(plain).services) == 64
    assert Bindings.from_plain({**PLAIN, "vars": {"A": "x" * LIMITS.var_bytes_max}}).vars


@pytest.mark.parametrize(
    "twice",
    [
        {"services": [{"name": "sessions", "worker": "w"}]},
        {"dispatch": [{"name": "auth", "namespace": "n"}]},
        {"vars": {"auth": ""}},
        {"vars": {"STRIPE_KEY": ""}},
        {"secrets": ["COLOR"]},
    ],
)
def test_a_name_is_one_things(twice: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"two of this version's bindings, variables and secrets have this name"):
        Bindings.from_plain({**PLAIN, **twice})


def test_an_outbound_worker_needs_somebody_to_guard() -> None:
    with pytest.raises(ValueError, match=r"^outbound: is for what a dispatch binding calls"):
        Bindings(outbound=Outbound("guard"))


def test_a_service_is_never_a_users_worker() -> None:
    with pytest.raises(ValueError, match=r"^services.worker:"):
        ServiceBinding("ada", "production/ada")
