"""Which addresses, ports and headers go out."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.egress_policy import (
    DENIED,
    HEAD_BYTES_MAX,
    LOOP,
    LOOP_HEADER,
    LOOPS_MAX,
    NOT_FOUND,
    PATH_BYTES_MAX,
    PROHIBITED,
    EgressPolicy,
    Target,
    content_length,
    end_to_end,
    is_public,
    loops_left,
    outgoing_headers,
    parse_rule,
    parse_target,
    request_refusal,
    shorter,
)

DEFAULT = EgressPolicy()
V4 = st.integers(0, 2**32 - 1).map(IPv4Address)
V6 = st.integers(0, 2**128 - 1).map(IPv6Address)
NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]([a-z0-9-]{0,8}[a-z0-9])?){0,3}", fullmatch=True)
TOKENS = st.from_regex(r"[a-zA-Z0-9!#$%&'*+.^_`|~-]{1,20}", fullmatch=True)
HEADERS = st.lists(
    st.tuples(
        st.one_of(TOKENS, st.sampled_from(["Connection", "TE", "everwarm-loop", "Everwarm-x", "traceparent", "Host"])),
        st.binary(max_size=20),
    ),
    max_size=8,
).map(tuple)


def target(host: str, port: int = 443, scheme: str = "https") -> Target:
    return Target(scheme, host, port)


# -------------------------------------------------------------------------------------------------------- addresses

CLOSED = """
    0.0.0.0 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 127.9.9.9 169.254.169.254 172.16.0.1 172.31.255.255
    192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1 240.0.0.1
    255.255.255.255 168.63.129.16
    :: ::1 ::127.0.0.1 fe80::1 fe80::1%eth0 fec0::1 fc00::1 fd00:ec2::254 fd20:ce::254 ff02::1 100::1 2001::1 2001:2::1
    2001:db8::1 3fff::1 5f00::1 4000::1
    ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::10.0.0.1 64:ff9b::7f00:1 64:ff9b:1::1
    2002:7f00:1::1 2002:a00:1:: 2002:a9fe:a9fe::1 2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:127.0.0.1
""".split()
OPEN = """
    1.1.1.1 8.8.8.8 100.63.255.255 100.128.0.1 172.15.255.255 172.32.0.1 192.0.1.1 198.17.255.255 198.20.0.1
    223.255.255.255 2606:4700:4700::1111 2a00:1450:4001::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1
    2606:4700::200:5efe:8.8.8.8
""".split()


@pytest.mark.parametrize("text", CLOSED)
def test_addresses_that_are_closed(text: str) -> None:
    assert not is_public(ip_address(text))
    assert DEFAULT.permitted(target("a.example"), [text]) == ()


@pytest.mark.parametrize("text", OPEN)
def test_addresses_that_are_open(text: str) -> None:
    assert is_public(ip_address(text))
    assert len(DEFAULT.permitted(target("a.example"), [text])) == 1


@given(st.one_of(V4, V6))
def test_nothing_is_public_that_python_knows_as_special(address: IPv4Address | IPv6Address) -> None:
    if is_public(address):
        special = (address.is_loopback, address.is_link_local, address.is_multicast, address.is_unspecified)
        assert not any(special)
        inside = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        assert not (inside or address).is_private


@given(V4)
def test_a_carried_address_is_never_more_public_than_itself(inside: IPv4Address) -> None:
    bits = int(inside)
    for carrier in (
        IPv6Address(0xFFFF << 32 | bits),
        IPv6Address(0x64FF9B << 96 | bits),
        IPv6Address(0x2002 << 112 | bits << 80 | 1),
        IPv6Address(0x26064700 << 96 | 0x5EFE << 32 | bits),
    ):
        assert is_public(carrier) == is_public(inside)


@given(st.lists(st.one_of(V4, V6).map(str), max_size=6))
def test_only_permitted_addresses_are_left_in_their_order(addresses: list[str]) -> None:
    permitted = DEFAULT.permitted(target("a.example"), addresses)
    assert all(is_public(ip_address(address)) for address in permitted)
    assert len(set(permitted)) == len(permitted)
    assert all(not DEFAULT.permitted(target("a.example", 25), [address]) for address in addresses)


def test_a_mapped_address_is_connected_to_as_what_it_is() -> None:
    assert DEFAULT.permitted(target("a"), ["::ffff:8.8.8.8", "8.8.8.8", "nonsense"]) == ("8.8.8.8",)


# ------------------------------------------------------------------------------------------------- names and ports


@pytest.mark.parametrize(
    ("authority", "found"),
    [
        ("Example.COM", ("example.com", 443)),
        ("example.com.", ("example.com", 443)),
        ("example.com:8443", ("example.com", 8443)),
        ("a_b.example", ("a_b.example", 443)),
        ("1.2.3.4:80", ("1.2.3.4", 80)),
        ("[2606:4700::0:1]:80", ("2606:4700::1", 80)),
        ("[::ffff:1.2.3.4]", ("::ffff:102:304", 443)),
    ],
)
def test_targets(authority: str, found: tuple[str, int]) -> None:
    parsed = parse_target("https", authority)
    assert isinstance(parsed, Target)
    assert (parsed.host, parsed.port) == found


@pytest.mark.parametrize(
    "authority",
    ["", ":80", "user@host", "host:", "host:0", "host:65536", "ho st", "host/path", "münchen.example", "[::1", "::1",
     "[fe80::1%25eth0]", "a..b", "-a.example", "x" * 64 + ".example", "a." * 127 + "aa", "host:80:80", "[1.2.3.4]"],
)  # fmt: skip
def test_what_is_no_target(authority: str) -> None:
    assert parse_target("https", authority) == ("HTTP-request-URI-invalid", None)


@pytest.mark.parametrize("scheme", ["", "ftp", "ws", "HTTPS", "file"])
def test_other_schemes(scheme: str) -> None:
    assert parse_target(scheme, "example.com") == ("HTTP-request-URI-invalid", None)


@given(st.text(max_size=30))
def test_whatever_is_asked_for_is_parsed_or_refused(text: str) -> None:
    parsed = parse_target("http", text)
    if isinstance(parsed, Target):
        assert parse_target("http", parsed.authority) == parsed


@pytest.mark.parametrize("port", [1, 22, 25, 79, 81, 8080, 8443, 65_535])
def test_other_ports_are_denied(port: int) -> None:
    assert DEFAULT.refusal(target("example.com", port), None) == DENIED


@pytest.mark.parametrize(
    "host", ["localhost", "a.localhost", "x.binding.internal", "metadata.google.internal", "a.local"]
)
def test_names_that_mean_something_else_out_there(host: str) -> None:
    assert DEFAULT.refusal(target(host), None) == NOT_FOUND


@pytest.mark.parametrize(
    ("allow", "host", "port", "passes"),
    [
        (None, "example.com", 443, True),
        ((), "example.com", 443, False),
        (("example.com",), "example.com", 443, True),
        (("example.com",), "example.com", 80, True),
        (("Example.com.",), "example.com", 443, True),
        (("example.com",), "www.example.com", 443, False),
        (("example.com",), "badexample.com", 443, False),
        (("*.example.com",), "www.example.com", 443, True),
        (("*.example.com",), "a.b.example.com", 443, True),
        (("*.example.com",), "example.com", 443, False),
        (("*.example.com",), "badexample.com", 443, False),
        (("example.com:443",), "example.com", 443, True),
        (("example.com:443",), "example.com", 80, False),
        (("1.1.1.1",), "1.1.1.1", 443, True),
        (("1.1.1.0/24",), "1.1.1.77", 443, True),
        (("nonsense here", "example.com"), "example.com", 443, True),
        (("*",), "example.com", 443, False),
    ],
)
def test_allow_lists(allow: tuple[str, ...] | None, host: str, port: int, passes: bool) -> None:
    assert DEFAULT.refusal(target(host, port), allow) == (None if passes else DENIED)


@given(st.one_of(V4, V6), st.integers(1, 65_535), NAMES)
def test_an_allow_list_opens_nothing(address: IPv4Address | IPv6Address, port: int, host: str) -> None:
    asked = target(host, port)
    if DEFAULT.refusal(asked, None) is not None:
        assert DEFAULT.refusal(asked, (f"{host}:{port}", host)) is not None
    number = target(str(address), port)
    if DEFAULT.refusal(number, (str(address),)) is None:
        assert DEFAULT.permitted(number, [str(address)]) == (
            () if not is_public(address) else DEFAULT.permitted(number, [str(address)])
        )


def test_what_the_operator_adds() -> None:
    policy = EgressPolicy(
        added=(parse_rule("127.0.0.1:9000"), parse_rule("db.corp.internal:5432"), parse_rule("10.0.0.0/8:80"))
    )
    assert policy.refusal(target("127.0.0.1", 9000), None) is None
    assert policy.permitted(target("127.0.0.1", 9000), ["127.0.0.1"]) == ("127.0.0.1",)
    assert policy.permitted(target("any.example", 9000), ["127.0.0.1", "127.0.0.2"]) == ("127.0.0.1",)
    assert policy.refusal(target("127.0.0.1", 9001), None) == DENIED
    assert policy.refusal(target("db.corp.internal", 5432), None) is None
    assert policy.permitted(target("db.corp.internal", 5432), ["192.168.0.1"]) == ("192.168.0.1",)
    assert policy.permitted(target("other.example", 5432), ["192.168.0.1"]) == ()
    assert policy.permitted(target("in.example", 80), ["10.9.9.9", "11.9.9.9", "192.168.0.1"]) == (
        "10.9.9.9",
        "11.9.9.9",
    )
    assert policy.refusal(target("localhost", 9000), None) == NOT_FOUND
    assert policy.refusal(target("127.0.0.1", 9000), ("example.com",)) == DENIED


def test_the_clusters_own_addresses_are_closed_whatever_was_added() -> None:
    policy = EgressPolicy(added=(parse_rule("127.0.0.1"),), own=(parse_rule("127.0.0.1:8443"), parse_rule("5.6.7.8")))
    assert policy.refusal(target("127.0.0.1", 8443), None) == PROHIBITED
    assert policy.refusal(target("127.0.0.1", 8444), None) is None
    assert policy.permitted(target("front.example", 8443), ["127.0.0.1", "::ffff:127.0.0.1"]) == ()
    assert policy.permitted(target("front.example"), ["5.6.7.8", "5.6.7.9"]) == ("5.6.7.9",)


@pytest.mark.parametrize(
    "text", ["", "*", "a b", "host:", "host:x", "host:0", "host:70000", "[::1", "[::1]80", "*.:80", "http://a"]
)
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=":"):
        parse_rule(text)


def test_rules_in_brackets() -> None:
    rule = parse_rule("[fd00::/8]:80")
    assert rule.covers_address(ip_address("fd01::1"), 80)
    assert not rule.covers_address(ip_address("fd01::1"), 81)


# ---------------------------------------------------------------------------------------------------------- headers


@given(HEADERS, st.integers(1, 40))
def test_no_internal_and_no_hop_by_hop_header_goes_out(headers: tuple[tuple[str, bytes], ...], left: int) -> None:
    out = outgoing_headers(headers, traceparent="00-1-2-01", loops_left=left)
    names = [name for name, _ in out]
    assert names.count(LOOP_HEADER) == 1
    assert not {"connection", "te", "host", "transfer-encoding", "upgrade"} & set(names)
    assert [name for name in names if name.startswith("everwarm-")] == [LOOP_HEADER]
    assert loops_left(out) == min(left, LOOPS_MAX) - 1  # type: ignore[arg-type]
    assert "traceparent" in names or any(name.lower() == "connection" for name, _ in headers)


def test_headers_that_connection_names_are_of_one_hop() -> None:
    headers = (("connection", b"close, X-Mine"), ("x-mine", b"1"), ("x-other", b"2"), ("keep-alive", b"3"))
    assert end_to_end(headers) == (("x-other", b"2"),)


def test_a_circle_ends() -> None:
    headers: tuple[tuple[str, bytes], ...] = ()
    rounds = 0
    while True:
        out = outgoing_headers(headers, loops_left=loops_left(headers))
        if out == LOOP:
            break
        headers, rounds = out, rounds + 1  # type: ignore[assignment]
    assert rounds == LOOPS_MAX


@pytest.mark.parametrize(
    ("values", "left"),
    [
        ([], LOOPS_MAX),
        ([b"3"], 3),
        ([b"0"], 0),
        ([b"-1"], 0),
        ([b"x"], 0),
        ([b""], 0),
        ([b"99999"], 0),
        ([b"999"], LOOPS_MAX),
        ([b"3", b"9"], 0),
    ],
)
def test_the_loop_counter_of_a_request(values: list[bytes], left: int) -> None:
    assert loops_left(tuple((LOOP_HEADER, value) for value in values)) == left


def test_a_guests_own_traceparent_wins() -> None:
    out = outgoing_headers((("traceparent", b"mine"),), traceparent="ours")
    assert ("traceparent", b"mine") in out
    assert ("traceparent", b"ours") not in out


@pytest.mark.parametrize(
    ("method", "path", "headers", "case"),
    [
        ("GET", "/", (), None),
        ("OPTIONS", "*", (), None),
        ("PROPFIND", "/a?b=%20", (("x", b"y"),), None),
        ("CONNECT", "/", (), "HTTP-request-method-invalid"),
        ("G T", "/", (), "HTTP-request-method-invalid"),
        ("", "/", (), "HTTP-request-method-invalid"),
        ("GET", "", (), "HTTP-request-URI-invalid"),
        ("GET", "a", (), "HTTP-request-URI-invalid"),
        ("GET", "*", (), "HTTP-request-URI-invalid"),
        ("GET", "/a b", (), "HTTP-request-URI-invalid"),
        ("GET", "/\r\nx: y", (), "HTTP-request-URI-invalid"),
        ("GET", "//evil.example/", (), None),
        ("GET", "/" + "x" * PATH_BYTES_MAX, (), "HTTP-request-URI-too-long"),
        ("GET", "/", (("x y", b""),), "HTTP-request-header-size"),
        ("GET", "/", (("x", b"a\r\nb: c"),), "HTTP-request-header-size"),
        ("GET", "/", (("x", b"\0"),), "HTTP-request-header-size"),
        ("GET", "/", (("x", bytes(b"y" * HEAD_BYTES_MAX)),), "HTTP-request-header-section-size"),
    ],
)  # fmt: skip
def test_requests_that_could_not_be_sent(
    method: str, path: str, headers: tuple[tuple[str, bytes], ...], case: str | None
) -> None:
    refused = request_refusal(method, path, headers)
    assert (refused and refused[0]) == case


@pytest.mark.parametrize(
    ("values", "length"),
    [
        ([], None),
        ([b"0"], 0),
        ([b"12"], 12),
        ([b"12", b" 12"], 12),
        ([b"1", b"2"], "wrong"),
        ([b"-1"], "wrong"),
        ([b"1" * 30], "wrong"),
    ],
)
def test_the_length_that_is_promised(values: list[bytes], length: int | str | None) -> None:
    found = content_length(tuple(("content-length", value) for value in values))
    assert ("wrong" if isinstance(found, tuple) else found) == length


@given(st.one_of(st.none(), st.floats(allow_nan=True)), st.floats(0.1, 1e6))
def test_no_timeout_is_longer_than_ours(asked_s: float | None, most_s: float) -> None:
    assert 0 <= shorter(asked_s, most_s) <= most_s
