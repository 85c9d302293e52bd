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
    one = empty.with_worker("hello")
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


def test_a_hundred_thousand_routes() -> None:
    many = Routes({f"host-{number}.example": f"w{number}" for number in range(99_999)}).with_worker("hello")
    assert (len(many), many.find("host-7.example"), many.find("hello.localhost")) == (100_000, "w7", "hello")
    with pytest.raises(ValueError, match="more than"):
        many.with_worker("one-more")
