from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.routes import RouteLimits, Routes, local_host, normal_host, normal_pattern


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("hello.example.com", "hello.example.com"),
        ("HELLO.Example.COM", "hello.example.com"),
        ("hello.example.com.", "hello.example.com"),
        ("hello.example.com:8443", "hello.example.com"),
        ("hello.example.com.:443", "hello.example.com"),
        ("hello.example.com:", "hello.example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a_b.example", "a_b.example"),
        ("localhost", "localhost"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[2001:DB8:0:0::1]:8443", "2001:db8::1"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
    ],
)
def test_one_spelling(text: str, host: str) -> None:
    assert normal_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "a.b..",
        "-a.example",
        "a-.example",
        "a b",
        "a\n",
        "a/b",
        "../etc",
        "a@b",
        "a%00",
        "a:b",
        "a:80:80",
        "a:999999",
        "*.example.com",
        "bücher.example",
        "\N{KELVIN SIGN}ing.example",
        "a" * 64 + ".example",
        "a." * 127 + "abc",
        "a" * 10_000,
        "[::1",
        "[::1]x",
        "[::1%eth0]",
        "[]",
        "[a]",
        "::1",
    ],
)
def test_junk(text: str) -> None:
    assert normal_host(text) is None


@given(st.text(max_size=40) | st.from_regex(r"[a-zA-Z0-9._\[\]:*-]{0,40}", fullmatch=True))
def test_a_normal_host_is_safe_and_stays_itself(text: str) -> None:
    host = normal_host(text)
    if host is not None:
        assert host.isascii()
        assert not set(host) & set("/\\ \r\n\0*[]@%")
        assert ".." not in host
        if ":" not in host:
            assert normal_host(host) == host
            assert normal_host(host.upper() + ".:443") == host


@pytest.mark.parametrize("text", ["*", "*.", "*.*.a", "a.*", "*a.example", "*.a:80", "*.[::1]", "*.a b"])
def test_patterns_that_are_none(text: str) -> None:
    assert normal_pattern(text) is None
    with pytest.raises(ValueError, match="pattern"):
        Routes().with_route(text, "hello")


def test_exact_then_wildcard_of_one_label() -> None:
    routes = Routes({"hello.example.com": "hello", "*.example.com": "rest", "EXAMPLE.com.": "apex"})
    assert routes.find("Hello.example.com:443") == "hello"
    assert routes.find("other.example.com") == "rest"
    assert routes.find("example.com") == "apex"
    assert routes.find("a.b.example.com") is None
    assert routes.find("example.org") is None
    assert routes.find("com") is None
    assert routes.find("\0junk") is None
    assert routes.pattern_of("other.example.com") == "*.example.com"
    assert routes.pattern_of("hello.example.com") == "hello.example.com"
    assert routes.pattern_of("*.example.com") is None


def test_tables_do_not_change() -> None:
    empty = Routes()
    one = empty.with_route(local_host("hello"), "hello")
    two = one.with_routes({"a.example": "hello", "b.example": "other"})
    assert (len(empty), len(one), len(two)) == (0, 1, 3)
    assert empty.find("hello.localhost") is None
    assert one.find("hello.localhost:8443") == "hello" == one.find(local_host("hello"))
    assert two.without("A.example.").find("a.example") is None
    assert two.without("nowhere.example") is two
    assert two.without("*junk") is two
    left = two.without_worker("hello")
    assert dict(left.workers) == {"b.example": "other"}
    assert len(two) == 3
    with pytest.raises(TypeError):
        two.workers["c.example"] = "eve"  # type: ignore[index]


def test_a_host_is_not_taken_over() -> None:
    routes = Routes({"a.example": "alice"})
    with pytest.raises(ValueError, match="another worker") as refused:
        routes.with_route("A.example", "eve")
    assert "alice" not in str(refused.value)
    assert routes.with_route("a.example", "alice").find("a.example") == "alice"
    assert routes.without("a.example").with_route("a.example", "eve").find("a.example") == "eve"


def test_the_table_is_bounded() -> None:
    routes = Routes({"a.example": "a", "b.example": "b"}, RouteLimits(routes_max=2))
    with pytest.raises(ValueError, match="3 are more than 2"):
        routes.with_route("c.example", "c")
    with pytest.raises(ValueError, match="more than"):
        Routes({"a": "a", "b": "b"}, RouteLimits(routes_max=1))


def test_the_longest_path_has_the_request() -> None:
    routes = Routes(
        {
            "shop.example.com/*": "shop",
            "shop.example.com/api/*": "api",
            "shop.example.com/api/v2/users/*": "users",
            "*.example.com/api/*": "others",
            "*.example.com": "rest",
            "paths.example.com/only/*": "only",
        }
    )
    assert len(routes) == 6

    def found(url: str) -> str | None:
        host, slash, path = url.partition("/")
        return routes.find(host, slash + path)

    assert [found(f"shop.example.com/{path}") for path in ("", "index.html", "apis", "ap", "API/x")] == ["shop"] * 5
    assert [found(f"shop.example.com/{path}") for path in ("api", "api/", "api?x", "api/v2", "api/v2/user")] == [
        "api"
    ] * 5
    assert [found(f"Shop.Example.com:443/api/v2/users{rest}") for rest in ("", "/", "/1", "?a/b", "/1/2/3/4/5")] == [
        "users"
    ] * 5
    assert found("shop.example.com/x/api/v2") == "shop"
    assert [found("a.example.com/"), found("a.example.com/api/x")] == ["rest", "others"]
    # What no pattern of the name itself has is asked of the wildcard.
    assert [found(f"paths.example.com/{path}") for path in ("only/1", "", "api")] == ["only", "rest", "others"]
    assert [found("example.com/"), found("a.b.example.com/api")] == [None, None]


@pytest.mark.parametrize(
    "path", ["//api", "/./api", "/x/../api", "/%61pi", "/api%2Fv2", "/apI", "*", "", "api", "?/api"]
)
def test_paths_are_compared_as_they_are_written(path: str) -> None:
    routes = Routes({"shop.example.com": "shop", "shop.example.com/api/*": "api"})
    assert routes.find("shop.example.com", path) == "shop"


def test_a_long_path_costs_no_more_than_the_longest_of_the_patterns() -> None:
    routes = Routes({"shop.example.com/a/b/*": "shop"})
    assert routes.find("shop.example.com", "/a/b" + "/c" * 8_000) == "shop"
    assert routes.find("shop.example.com", "/" * 16_000) is None


def test_paths_that_are_given_up_are_forgotten() -> None:
    routes = Routes({"a.example": "one"}).with_routes({"a.example/x/*": "two", "a.example/x/y/*": "two", "b.c": "two"})
    assert [routes.find("a.example", path) for path in ("/", "/x/1", "/x/y/1")] == ["one", "two", "two"]
    assert routes.pattern_of("a.example") == "a.example"
    shorter = routes.without("a.example/x/y/*")
    assert [shorter.find("a.example", path) for path in ("/", "/x/1", "/x/y/1")] == ["one", "two", "two"]
    left = routes.without_worker("two")
    assert dict(left.workers) == {"a.example": "one"}
    assert [left.find("a.example", path) for path in ("/", "/x/1", "/x/y/1")] == ["one", "one", "one"]
    only = routes.without_worker("one")
    assert [only.find("a.example", path) for path in ("/", "/x/1")] == [None, "two"]
    assert only.pattern_of("a.example") == "a.example", "it has a certificate all the same"
    again = left.with_routes({"a.example/x/*": "three"})
    assert again.find("a.example", "/x/y") == "three"


def test_whoever_comes_later_may_take_over() -> None:
    routes = Routes({"a.example": "one", "a.example/x/*": "one"})
    with pytest.raises(ValueError, match="another worker"):
        routes.with_routes({"a.example/x/*": "two"})
    taken = routes.with_routes({"a.example/x/*": "two"}, take_over=True)
    assert [taken.find("a.example", path) for path in ("/", "/x")] == ["one", "two"]


@pytest.mark.parametrize("text", ["a.example/x", "a.example/", "/x/*", "a b/*", "*/x/*"])
def test_what_is_no_pattern_with_a_path(text: str) -> None:
    assert normal_pattern(text) is None


def test_two_hundred_thousand_routes() -> None:
    many = Routes({f"host-{number}.example": f"w{number}" for number in range(199_999)})
    many = many.with_route(local_host("hello"), "hello")
    assert (len(many), many.find("host-7.example"), many.find("hello.localhost")) == (200_000, "w7", "hello")
    with pytest.raises(ValueError, match="more than"):
        many.with_route(local_host("one-more"), "one-more")
