"""Where a guest's outgoing request may go, and with which headers. Pure.

A request is looked at three times, and each look can only refuse:

1. *The name and port it asks for* (``refusal``), before anything is looked up: the worker's own allow-list, the ports,
   the names that are nobody's to ask for.
2. *The addresses that the name has* (``permitted``): only public ones, unless the operator added this very
   destination. A name is looked up once and the address that was judged is the one that is connected to, so a name
   that answers differently the next time (DNS rebinding) gains nothing.
3. *Its headers* (``outgoing_headers``): what is said between two neighbours, or between our own roles, stays here.

An allow-list belongs to a tenant, so it narrows and never widens: naming a private address or port 25 in it does not
open them. Only the operator's additions do. What belongs to the cluster itself is refused even when it was added.

Which addresses are public is a table of its own and not ``ipaddress.is_global``, whose answers change between Python's
patch releases. It follows IANA's special-purpose registries; of IPv6 only 2000::/3 is in use at all. An address that
carries another one inside (mapped, NAT64, 6to4, ISATAP) is as public as the least public of the two.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from isolates.egress import ErrorCode

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Headers = tuple[tuple[str, bytes], ...]

#: What breaks a circle of workers that ask each other: it goes down by one on every way out, and nobody outside can
#: set it, since the edge takes internal headers off clients' requests.
LOOP_HEADER: Final = "everwarm-loop"
INTERNAL_PREFIX: Final = "everwarm-"
#: The depth of a request tree (semantics, section 1): a chain longer than this is a circle.
LOOPS_MAX: Final = 16
PORTS: Final = {"http": 80, "https": 443}
#: As for clients' requests (semantics, section 1).
PATH_BYTES_MAX: Final = 16 * 1024
HEAD_BYTES_MAX: Final = 128 * 1024
#: A header costs its neighbours more than its bytes; HPACK counts 32 for each, and so does everyone who limits them.
HEADER_OVERHEAD_BYTES: Final = 32
#: What a worker's allow-list may have, so that judging a request stays short.
ALLOW_MAX: Final = 256

DENIED: Final[ErrorCode] = ("HTTP-request-denied", None)
PROHIBITED: Final[ErrorCode] = ("destination-IP-prohibited", None)
NOT_FOUND: Final[ErrorCode] = ("destination-not-found", None)
URI_INVALID: Final[ErrorCode] = ("HTTP-request-URI-invalid", None)
LOOP: Final[ErrorCode] = ("loop-detected", None)

#: IANA's IPv4 special-purpose registry without its few public entries, and one provider's metadata service that has
#: an address like any other. All other metadata services are link-local, shared or unique-local.
_V4_CLOSED: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24"
        " 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"
        " 168.63.129.16/32"
    ).split()
)
_V6_OPEN: Final = IPv6Network("2000::/3")
_V6_CLOSED: Final = tuple(IPv6Network(text) for text in "2001::/23 2001:db8::/32 3fff::/20".split())
_V4_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_6TO4: Final = IPv6Network("2002::/16")

_HOST: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_METHOD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_PATH: Final = re.compile(r"/[\x21-\x7e]*|\*")
_VALUE: Final = re.compile(rb"[\x20-\x7e\x80-\xff\t]*")
_HOST_CHARS_MAX: Final = 253

#: Headers about one connection, not about the message (RFC 9110, 7.6.1), and those that the sender of this one writes
#: itself. ``expect`` as well: bodies are sent without being asked for, so there is nothing to wait for.
_HOP_BY_HOP: Final = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade"
    " http2-settings host expect".split()
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request wants to go. ``host`` is lower case, without a last dot; an IPv6 address without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def address(self) -> Address | None:
        """The address that is asked for by number, or None for a name."""
        return _address(self.host)

    @property
    def authority(self) -> str:
        """As it stands in a ``host`` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A destination: a name (``suffix`` for all that end with it) or a network, with one port or any."""

    host: str = ""
    suffix: str = ""
    network: Network | None = None
    port: int | None = None

    def covers_name(self, host: str, port: int) -> bool:
        """Whether it is about this name, or this address as a number, and this port."""
        if self.port not in (None, port):
            return False
        if self.network is not None:
            address = _address(host)
            return address is not None and self._covers(address)
        return host == self.host if self.host else host.endswith(self.suffix)

    def covers_address(self, address: Address, port: int) -> bool:
        """Whether it is a network with this address, and this port."""
        return self.port in (None, port) and self._covers(address)

    def _covers(self, address: Address) -> bool:
        return self.network is not None and _plain(address) in self.network


def parse_rule(text: str) -> Rule:
    """``HOST``, ``*.SUFFIX``, an address or a network, each with ``:PORT`` behind it or not; IPv6 in brackets.

    Raises ValueError, whose text says what is wrong, for anything else.
    """
    host, port = text.strip().lower(), None
    if host.startswith("["):
        inside, bracket, behind = host[1:].partition("]")
        if not bracket or (behind and not behind.startswith(":")):
            raise ValueError(f"{text!r}: an IPv6 address is written [ADDRESS] or [ADDRESS]:PORT")
        host, digits = inside, behind[1:] if behind else None
    else:
        host, colon, after = host.partition(":")
        digits = after if colon else None
    if digits is not None:
        if not digits.isascii() or not digits.isdigit() or not 1 <= int(digits) <= 65_535:
            raise ValueError(f"{text!r}: a port is a number from 1 to 65535")
        port = int(digits)
    try:
        return Rule(network=ip_network(host), port=port)
    except ValueError:
        pass
    host = host.removesuffix(".")
    if host.startswith("*."):
        if _is_host(host[2:]):
            return Rule(suffix=host[1:], port=port)
    elif _is_host(host):
        return Rule(host=host, port=port)
    raise ValueError(f"{text!r}: neither a host name, nor *.NAME, nor an address, nor a network")


def parse_target(scheme: str, authority: str) -> Target | ErrorCode:
    """What a guest asks for, or why it is nothing that could be asked for."""
    found = _AUTHORITY.fullmatch(authority)
    if found is None or scheme not in PORTS:
        return URI_INVALID
    host = found[1].lower()
    port = int(found[2]) if found[2] else PORTS[scheme]
    if host.startswith("["):
        address = _address(host[1:-1])
        if not isinstance(address, IPv6Address):
            return URI_INVALID
        host = str(address)
    else:
        host = host.removesuffix(".")
        if not _is_host(host):
            return URI_INVALID
    return Target(scheme, host, port) if 1 <= port <= 65_535 else URI_INVALID


def is_public(address: Address) -> bool:
    """Whether it is an address of the public internet, and so is every address that it carries inside."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _V4_CLOSED)
    if address.scope_id is not None:
        return False
    inside = _carried(address)
    if inside is not None and not is_public(inside):
        return False
    if address in _V4_MAPPED or address in _NAT64:
        return True
    return address in _V6_OPEN and not any(address in network for network in _V6_CLOSED)


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What the operator says. The same for all workers of a machine, and as long as its Server lives."""

    #: Destinations beyond the public ones, on these ports: for development, and for services of one's own.
    added: tuple[Rule, ...] = ()
    #: The cluster's own addresses: never a destination, also when they were added.
    own: tuple[Rule, ...] = ()
    ports: frozenset[int] = frozenset(PORTS.values())

    def refusal(self, target: Target, allow: Sequence[str] | None) -> ErrorCode | None:
        """Why this name and port may not be asked for, or None. ``allow`` is the worker's list; None is no list."""
        if allow is not None and not _allows(allow, target):
            return DENIED
        if any(rule.covers_name(target.host, target.port) for rule in self.own):
            return PROHIBITED
        if any(rule.covers_name(target.host, target.port) for rule in self.added):
            return None
        if target.port not in self.ports and not self._adds_port(target.port):
            return DENIED
        if target.host.endswith((".internal", ".localhost", ".local")) or target.host == "localhost":
            # Bindings, metadata services and this machine: names that mean something else, or nothing, out there.
            return NOT_FOUND
        return None

    def permitted(self, target: Target, addresses: Iterable[str]) -> tuple[str, ...]:
        """Those of a name's addresses that may be connected to, in their order, each once, normally spelled."""
        named = any(rule.covers_name(target.host, target.port) for rule in self.added)
        found: dict[str, None] = {}
        for text in addresses:
            address = _address(text)
            if address is None or any(rule.covers_address(address, target.port) for rule in self.own):
                continue
            added = named or any(rule.covers_address(address, target.port) for rule in self.added)
            if added or (target.port in self.ports and is_public(address)):
                found[str(_plain(address))] = None
        return tuple(found)

    def adds(self, target: Target, address: str) -> bool:
        """Whether the operator added this very destination: then it may also be this machine."""
        parsed = _address(address)
        return any(
            rule.covers_name(target.host, target.port)
            or (parsed is not None and rule.covers_address(parsed, target.port))
            for rule in self.added
        )

    def _adds_port(self, port: int) -> bool:
        """Whether some network was added on this port: then it is the addresses that decide."""
        return any(rule.network is not None and rule.port in (None, port) for rule in self.added)


def request_refusal(method: str, path: str, headers: Headers) -> ErrorCode | None:
    """Why this is not an HTTP request that could be sent, or None. CONNECT would make a tunnel of it."""
    if _METHOD.fullmatch(method) is None or method == "CONNECT":
        return ("HTTP-request-method-invalid", None)
    if len(path) > PATH_BYTES_MAX:
        return ("HTTP-request-URI-too-long", None)
    if _PATH.fullmatch(path) is None or (path == "*" and method != "OPTIONS"):
        return URI_INVALID
    size = 0
    for name, value in headers:
        size += len(name) + len(value) + HEADER_OVERHEAD_BYTES
        if _TOKEN.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            return ("HTTP-request-header-size", (name[:64], None))
    return ("HTTP-request-header-section-size", size) if size > HEAD_BYTES_MAX else None


def outgoing_headers(headers: Headers, *, traceparent: str = "", loops_left: int = LOOPS_MAX) -> Headers | ErrorCode:
    """A guest's headers as they go out, or ``loop-detected``.

    The traceparent is ours unless the guest has one of its own: then it does its own tracing, and knows better.
    """
    if loops_left <= 0:
        return LOOP
    kept = end_to_end(headers)
    if traceparent and all(name != "traceparent" for name, _ in kept):
        kept = (*kept, ("traceparent", traceparent.encode("ascii", "replace")))
    return (*kept, (LOOP_HEADER, b"%d" % (min(loops_left, LOOPS_MAX) - 1)))


def end_to_end(headers: Headers) -> Headers:
    """Headers without those of one hop and without our own, in their order; for both directions."""
    named = {
        part.strip().lower()
        for name, value in headers
        if name.lower() == "connection"
        for part in value.decode("latin-1").split(",")
    }
    dropped = _HOP_BY_HOP | named
    return tuple(
        (name, value)
        for name, value in ((name.lower(), value) for name, value in headers)
        if name not in dropped and not name.startswith(INTERNAL_PREFIX)
    )


def loops_left(headers: Headers) -> int:
    """How often a request may still go out, by the headers it came in with. What is no number counts as none left."""
    found = [value for name, value in headers if name.lower() == LOOP_HEADER]
    if not found:
        return LOOPS_MAX
    if len(found) > 1 or not found[0].isdigit() or len(found[0]) > 4:
        return 0
    return min(int(found[0]), LOOPS_MAX)


def content_length(headers: Headers) -> int | ErrorCode | None:
    """The length that a request's headers promise for its body, None without one, or why that is nonsense."""
    found = {value.strip() for name, value in headers if name.lower() == "content-length"}
    if not found:
        return None
    (value, *others) = found
    if others or not value.isdigit() or len(value) > 18:
        return ("HTTP-request-header-size", ("content-length", None))
    return int(value)


def shorter(asked_s: float | None, most_s: float) -> float:
    """A guest's timeout under ours: the smaller; nothing and nonsense mean ours."""
    return most_s if asked_s is None or not asked_s >= 0 else min(asked_s, most_s)


def _allows(allow: Sequence[str], target: Target) -> bool:
    for text in allow[:ALLOW_MAX]:
        try:
            rule = parse_rule(text)
        except ValueError:
            continue  # an entry that says nothing allows nothing
        if rule.covers_name(target.host, target.port):
            return True
    return False


def _is_host(text: str) -> bool:
    return len(text) <= _HOST_CHARS_MAX and _HOST.fullmatch(text) is not None


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _plain(address: Address) -> Address:
    """The address that the kernel will connect to: of a mapped one the one inside."""
    inside = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if inside is None else inside


def _carried(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address inside, for the forms that some network on the way might unpack."""
    bits = int(address)
    if address in _V4_MAPPED or address in _NAT64 or bits >> 32 & 0xFDFFFFFF == 0x5EFE:
        return IPv4Address(bits & 0xFFFFFFFF)
    return IPv4Address(bits >> 80 & 0xFFFFFFFF) if address in _6TO4 else None
