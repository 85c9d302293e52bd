from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.bindings import Bindings, Outbound, ServiceBinding
from actors.bindings import DispatchBinding as Dispatch
from actors.worker import Deployment, Limits, Plan, Reuse, Share, Version, is_route, make_version_id, normal_route
from actors.worker_names import (
    cordon_for,
    cordon_name,
    is_worker,
    is_worker_name,
    namespace_of,
    user_worker,
    worker_name,
)

FREE = Limits.for_plan(Plan.FREE)
PAID = Limits.for_plan(Plan.PAID)
DIGEST = "5e" * 32
OLD, NEW = "a" * 16, "b" * 16


def a_version() -> Version:
    return Version(
        worker="hello",
        version_id=make_version_id("hello", DIGEST, 7),
        component_digest=DIGEST,
        limits=FREE,
        plan=Plan.FREE,
        created_at_ms=1_700_000_000_000,
        author="ada@example.com",
    )


@pytest.mark.parametrize("name", ["a", "hello", "h2-o", "a" * 63, "a-"])
def test_worker_names(name: str) -> None:
    assert is_worker_name(name)
    assert worker_name(name) == name


@pytest.mark.parametrize("name", ["", "2a", "-a", "Hello", "a" * 64, "a.b", "a_b", "a\n", "é", "a//b", "a b", "a/b/c"])
def test_names_that_are_none(name: str) -> None:
    assert not is_worker_name(name)
    assert not is_worker(name)
    with pytest.raises(ValueError, match="worker"):
        worker_name(name)
    with pytest.raises(ValueError, match="worker"):
        user_worker("customers", name)
    with pytest.raises(ValueError, match=r"namespace|worker"):
        user_worker(name, "" if name == "" else "ada")


def test_a_users_worker_is_named_by_its_namespace_too() -> None:
    ada = user_worker("customers", "ada")
    assert (ada, namespace_of(ada), namespace_of("ada")) == ("customers/ada", "customers", "")
    assert is_worker(ada)
    assert not is_worker_name(ada)  # so it is nothing that a host name could be
    assert worker_name(ada) == ada
    assert user_worker("", "ada") == "ada"
    version = replace(a_version(), worker=ada)
    assert (version.namespace, version.trusted) == ("customers", False)
    assert (a_version().namespace, a_version().trusted) == ("", True)
    assert Version.from_plain(json.loads(json.dumps(version.to_plain()))) == version
    assert Deployment.whole(ada, OLD).worker == ada


def test_the_plans_published_numbers() -> None:
    assert (FREE.cpu_ms, PAID.cpu_ms) == (10, 50)
    assert (FREE.wall_ms, PAID.wall_ms) == (30_000, None)
    assert (FREE.request_body_bytes_max, PAID.request_body_bytes_max) == (100_000_000, 500_000_000)
    assert (FREE.subrequests_max, PAID.subrequests_max) == (50, 1_000)
    assert FREE.memory_soft_bytes == 134_217_728 < FREE.memory_hard_bytes
    assert Limits.ceiling_for_plan(Plan.PAID).cpu_ms == 300_000


def test_a_manifest_asks_within_its_plan() -> None:
    asked = Limits.from_manifest(Plan.PAID, {"cpu_ms": 300_000, "memory_soft_bytes": 1024})
    assert (asked.cpu_ms, asked.memory_soft_bytes, asked.memory_hard_bytes) == (300_000, 1024, 1280)
    assert Limits.from_manifest(Plan.FREE, {}) == FREE
    four_gib = Limits.from_manifest(Plan.PAID, {"memory_soft_bytes": 4 * 1024**3})
    assert four_gib.memory_hard_bytes == 4 * 1024**3


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"cpu_ms": 11}, "cpu_ms"),
        ({"cpu_ms": "5"}, "cpu_ms"),
        ({"cpu_ms": True}, "cpu_ms"),
        ({"depth_max": -1}, "depth_max"),
        ({"wall_ms": None}, "wall_ms"),
        ({"cpu": 5}, "cpu"),
        ({"memory_hard_bytes": 1}, "memory_hard_bytes"),
        ({"memory_soft_bytes": 1024**4}, "memory_soft_bytes"),
    ],
)
def test_a_manifest_that_asks_too_much_is_refused_by_name(asked: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        Limits.from_manifest(Plan.FREE, asked)


def any_limits() -> st.SearchStrategy[Limits]:
    def build(values: list[int], wall_ms: int | None) -> Limits:
        named = dict(zip((field.name for field in fields(Limits)), values, strict=True))
        named["memory_hard_bytes"] += named["memory_soft_bytes"]
        return replace(Limits(**named), wall_ms=wall_ms)

    count = len(fields(Limits))
    numbers = st.lists(st.integers(0, 10**9), min_size=count, max_size=count)
    return st.builds(build, numbers, st.none() | st.integers(0, 10**9))


@given(any_limits(), any_limits())
def test_a_child_never_raises_a_limit(parent: Limits, child: Limits) -> None:
    merged = parent.lowered_by(child)
    assert merged == child.lowered_by(parent)
    assert merged.lowered_by(parent) == merged
    for field in fields(Limits):
        bounds = [value for side in (parent, child) if (value := getattr(side, field.name)) is not None]
        assert getattr(merged, field.name) == (min(bounds) if bounds else None)


@given(any_limits())
def test_limits_survive_json(limits: Limits) -> None:
    assert Limits.from_plain(json.loads(json.dumps(limits.to_plain()))) == limits


def test_version_and_deployment_survive_json() -> None:
    version = a_version()
    assert Version.from_plain(json.loads(json.dumps(version.to_plain()))) == version
    deployment = Deployment("hello", (Share(OLD, 90), Share(NEW, 10)), routes=("shop.example.com", "*.example.org"))
    assert Deployment.from_plain(json.loads(json.dumps(deployment.to_plain()))) == deployment


def test_a_version_of_schema_2_had_no_cordon() -> None:
    plain: dict[str, object] = {**a_version().to_plain(), "schema": 2}
    with pytest.raises(ValueError, match="'cordon': unknown in a version of schema 2"):
        Version.from_plain(plain)
    del plain["cordon"], plain["bindings"]
    assert Version.from_plain(plain) == a_version()
    assert a_version().cordon == "default"


def test_before_schema_4_there_were_no_bindings_and_no_routes() -> None:
    plain: dict[str, object] = {**a_version().to_plain(), "schema": 3}
    with pytest.raises(ValueError, match="'bindings': unknown in a version of schema 3"):
        Version.from_plain(plain)
    del plain["bindings"]
    assert Version.from_plain(plain) == a_version()
    assert a_version().bindings == Bindings()
    deployment: dict[str, object] = {**Deployment.whole("hello", OLD).to_plain(), "schema": 3}
    with pytest.raises(ValueError, match="'routes': unknown in a deployment of schema 3"):
        Deployment.from_plain(deployment)
    del deployment["routes"]
    assert Deployment.from_plain(deployment) == Deployment.whole("hello", OLD)


def test_bindings_survive_json_in_their_version() -> None:
    bound = Bindings(
        services=(ServiceBinding("auth", "auth-worker"),),
        dispatch=(Dispatch("customers", "production"),),
        vars=(("A", "1"), ("B", "zwei\n")),
        secrets=("TOKEN",),
        outbound=Outbound("guard", ("customer",)),
    )
    version = replace(a_version(), bindings=bound)
    assert Version.from_plain(json.loads(json.dumps(version.to_plain()))) == version


@pytest.mark.parametrize(
    "route",
    [
        *("shop.example.com", "*.example.com", "a.b", "xn--nxasmq6b.example", "_x.a-b.c"),
        *("a.b/x/*", "*.a.b/x/Y_z/..x/.w-~/*", "a.b/" + "s/" * 8 + "*", "a.b/v1.internal/*"),
    ],
)
def test_routes(route: str) -> None:
    assert is_route(route)
    assert Deployment.whole("hello", OLD, (route,)).routes == (route,)


@pytest.mark.parametrize(
    "route",
    [
        *(
            "",
            "localhost",
            "com",
            "*.com.",
            "*",
            "a.*.b",
            "**.a.b",
            "A.example.com",
            "a.example.com:80",
            "a..b",
            "a.b/x",
        ),
        *("x.localhost", "*.localhost", "auth.binding.internal", "*.dispatch.internal", "10.0.0.1", "[::1]", "a.b\n"),
        *("a.b/", "a.b/*", "a.b/x", "a.b/x/", "a.b//*", "a.b/x*", "a.b/*/x/*", "a.b/./*", "a.b/../*", "a.b/%61/*"),
        *("a.b/x?y/*", "a.b/" + "s/" * 9 + "*", "a.internal/x/*", "x.localhost/x/*", "10.0.0.1/x/*", "/x/*", "com/x/*"),
        *("é.example", "-a.b", "a" * 64 + ".b", ".".join(["a" * 60] * 5)),
    ],
)
def test_what_is_no_route(route: str) -> None:
    assert not is_route(route)
    with pytest.raises(ValueError, match=r"^routes:"):
        Deployment.whole("hello", OLD, (route,))


def test_all_of_a_host_is_the_host_alone() -> None:
    assert [normal_route(text) for text in ("a.b/*", "a.b", "a.b/x/*")] == ["a.b", "a.b", "a.b/x/*"]


def test_a_user_of_a_namespace_has_no_route() -> None:
    with pytest.raises(ValueError, match=r"^routes: a user's worker of a namespace has none"):
        Deployment.whole("production/shop", OLD, ("a.example",))


def test_a_route_stands_once_and_routes_are_bounded() -> None:
    for routes in (("a.example", "a.example"), tuple(f"h{i}.example" for i in range(65)), ["a.example"]):
        with pytest.raises(ValueError, match=r"^routes:"):
            Deployment.whole("hello", OLD, routes)  # type: ignore[arg-type]


def test_before_schema_5_users_of_a_namespace_were_in_the_default_cordon() -> None:
    for schema, worker, cordon, read in (
        (4, "production/alice", "default", "@production"),
        (4, "production/alice", "partners", "partners"),
        (4, "hello", "default", "default"),
        (5, "production/alice", "default", "default"),
    ):
        version = replace(a_version(), worker=worker, cordon=cordon)
        assert Version.from_plain({**version.to_plain(), "schema": schema}).cordon == read


@pytest.mark.parametrize("cordon", ["", "Partners", "a/b", "9lives", "x" * 64, "@", "@Partners", "@a@b", "@production"])
def test_a_cordon_is_named_like_a_worker(cordon: str) -> None:
    with pytest.raises(ValueError, match=r"^cordon:"):
        replace(a_version(), cordon=cordon)
    with pytest.raises(ValueError, match=r"^cordon:"):
        cordon_for("hello", cordon)
    assert cordon_for("production/alice", "@production") == "@production"
    assert cordon_name("partners") == replace(a_version(), cordon="partners").cordon


def test_a_version_of_schema_1_had_no_reuse() -> None:
    plain: dict[str, object] = {**a_version().to_plain(), "schema": 1}
    del plain["cordon"], plain["bindings"]
    with pytest.raises(ValueError, match="reuse"):
        Version.from_plain(plain)
    del plain["reuse"]
    plain["limits"] = {**FREE.to_plain(), "schema": 1}
    old = Version.from_plain(plain)
    assert old == a_version()
    assert (old.reuse.requests_max, old.reuse.idle_s, old.reuse.reason) == (None, None, "")


def test_reuse_survives_json_in_its_version() -> None:
    for reuse in (Reuse(max_requests=1, idle_s=60), Reuse(single_shot=True)):
        version = replace(a_version(), reuse=reuse)
        assert Version.from_plain(json.loads(json.dumps(version.to_plain()))) == version


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"max_requests": 0}, "reuse.max_requests"),
        ({"max_requests": True}, "reuse.max_requests"),
        ({"max_requests": "1"}, "reuse.max_requests"),
        ({"idle_s": 86_401}, "reuse.idle_s"),
        ({"idle_s": 1.5}, "reuse.idle_s"),
        ({"single_shot": True}, "reuse.single_shot"),
        ({"max_request": 1}, "reuse.max_request"),
    ],
)
def test_a_wrong_wish_for_reuse_is_refused_by_name(asked: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        Reuse.from_manifest(asked)


def test_why_isolates_are_let_go_early() -> None:
    asked = Reuse.from_manifest({"max_requests": 3, "idle_s": 60})
    assert (asked.requests_max, asked.idle_s, asked.reason) == (3, 60, "manifest")
    found_out = replace(asked, single_shot=True)
    assert (found_out.requests_max, found_out.reason) == (1, "single-shot")


@pytest.mark.parametrize("kind", [Limits, Version, Deployment])
@pytest.mark.parametrize("schema", [0, 6, "1", None, True, 1.0])
def test_an_unknown_schema_is_refused(kind: type[Limits | Version | Deployment], schema: object) -> None:
    with pytest.raises(ValueError, match=r"^schema:"):
        kind.from_plain({"schema": schema})
    with pytest.raises(ValueError, match="must be a dict"):
        kind.from_plain([1])


@pytest.mark.parametrize("field", [field.name for field in fields(Version)])
def test_every_field_of_a_version_is_checked(field: str) -> None:
    plain = a_version().to_plain()
    for wrong in (None, 1.5, ["x"], {"x": 1}, "\N{SNOWMAN}" * 300):
        with pytest.raises(ValueError, match=field):
            Version.from_plain({**plain, field: wrong})
    del plain[field]
    with pytest.raises(ValueError, match=f"^{field}: missing"):
        Version.from_plain(plain)


def test_every_field_of_limits_is_checked() -> None:
    for field in fields(Limits):
        for wrong in ("1", 1.5, True, -1):
            with pytest.raises(ValueError, match=f"^{field.name}:"):
                Limits.from_plain({**FREE.to_plain(), field.name: wrong})
    with pytest.raises(ValueError, match="unknown"):
        Limits.from_plain({**FREE.to_plain(), "cpu": 1})


@pytest.mark.parametrize(
    "shares",
    [
        [],
        "ab",
        [{"version_id": OLD, "percent": 99}],
        [{"version_id": OLD, "percent": 50}, {"version_id": OLD, "percent": 50}],
        [{"version_id": OLD, "percent": 34}, {"version_id": NEW, "percent": 33}, {"version_id": "c" * 16}],
        [{"version_id": OLD, "percent": 100}, {"version_id": NEW, "percent": 0}],
        [{"version_id": OLD, "percent": 100.0}],
        [{"version_id": "../../etc", "percent": 100}],
        [{"percent": 100}],
        [7],
    ],
)
def test_shares_that_do_not_add_up(shares: object) -> None:
    with pytest.raises(ValueError, match=r"shares|percent|version_id"):
        Deployment.from_plain({"schema": 1, "worker": "hello", "shares": shares})


def test_the_same_bytes_twice_are_two_versions() -> None:
    ids = {
        make_version_id("a", DIGEST, 1),
        make_version_id("a", DIGEST, 2),
        make_version_id("b", DIGEST, 1),
        make_version_id("a", "00" * 32, 1),
    }
    assert len(ids) == 4
    assert make_version_id("a", DIGEST, 1) in ids


def test_choice_follows_the_percentages_and_sticks_as_the_new_version_grows() -> None:
    visitors = [b"visitor %d" % number for number in range(4_000)]
    on_new: set[bytes] = set()
    for percent in (10, 50, 99):
        deployment = Deployment("hello", (Share(OLD, 100 - percent), Share(NEW, percent)))
        now_on_new = {visitor for visitor in visitors if deployment.choose(visitor) == NEW}
        assert abs(len(now_on_new) / len(visitors) - percent / 100) < 0.03
        assert on_new <= now_on_new
        on_new = now_on_new
    assert Deployment.whole("hello", NEW).choose(b"anybody") == NEW


def test_the_early_tenth_differs_between_workers() -> None:
    shares = (Share(OLD, 90), Share(NEW, 10))
    visitors = [b"visitor %d" % number for number in range(4_000)]
    early = [{v for v in visitors if Deployment(worker, shares).choose(v) == NEW} for worker in ("hello", "other")]
    assert len(early[0] & early[1]) < len(early[0]) / 4
