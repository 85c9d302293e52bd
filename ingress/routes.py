"""Host name and path to worker: exact names, one-label wildcards, and `<worker>.localhost` for whoever tries it out.

`Routes` never changes; a deploy makes a new one and swaps the reference, so a request sees one table or the next and
takes no lock. The table is one dict. `find` is two look-ups, the exact name and then `*.` with its first label taken
off, whatever the table's size. A change copies the dict: about a millisecond and 10 MB for 100,000 routes, once per
deploy, against a persistent tree that would cost every request a walk. `with_routes` takes many at once, so that a
start copies once and not 100,000 times.

A wildcard stands for exactly one label, as in certificates (RFC 6125): what TLS would refuse, HTTP does not serve.

A pattern may have a path, `host/a/b/*`, and then leads there what asks for `/a/b` or anything below. Of a host's
patterns the one with the longest path has the request; when none of an exact name's has it, the wildcard's are asked.
Paths are compared segment by segment as they are written: `/%61` is not `/a`, and nothing is resolved. It is known how
deep a host's patterns go, so a URL of a thousand slashes costs as many look-ups as the longest of them has segments.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

LOCAL_SUFFIX: Final = "localhost"  # RFC 6761: resolvers and browsers send every name below it to loopback


@dataclass(frozen=True, slots=True)
class RouteLimits:
    """Bounds on one table."""

    routes_max: int = 200_000  # a name for each worker, and as many routes; 40 MB of dict and strings
    host_chars_max: int = 253  # RFC 1035, without the root's dot
    host_header_chars_max: int = 300  # a name, a port, and room for a trailing dot; longer is junk unread


_LIMITS: Final = RouteLimits()

# Underscores are no host name by RFC 1123, but DNS serves them and browsers send them.
_HOST: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*")
_PORT: Final = re.compile(r":[0-9]{0,5}")


def normal_host(text: str) -> str | None:
    """A Host header or a TLS server name in the one spelling used as a key, or None when it is no host name.

    Lower case; no port; no trailing dot; an IPv6 literal without brackets in its shortest form. IDNA A-labels
    (`xn--…`) are kept as they are; a name in Unicode is None, since neither HTTP nor TLS carries one.
    """
    if not text or len(text) > _LIMITS.host_header_chars_max:
        return None
    if text[0] == "[":
        literal, bracket, port = text[1:].partition("]")
        if not bracket or (port and not _PORT.fullmatch(port)) or "%" in literal:
            return None
        try:
            return ipaddress.IPv6Address(literal).compressed
        except ValueError:
            return None
    name, colon, port = text.partition(":")
    if colon and not _PORT.fullmatch(colon + port):
        return None
    # Only ASCII is lowered: the Kelvin sign lowers to a plain k, and must not spell somebody's name.
    if not name.isascii():
        return None
    name = name.lower()
    if name.endswith("."):
        name = name[:-1]
    if len(name) > _LIMITS.host_chars_max or _HOST.fullmatch(name) is None:
        return None
    return name


def normal_pattern(text: str) -> str | None:
    """A route's pattern, a host name or `*.` and a host name, in its one spelling; None when it is neither. A path
    behind it stays as it is, without its `/*`."""
    host, slash, path = text.partition("/")
    if slash:
        normal = normal_pattern(host)
        if normal is None or not text.endswith("/*"):
            return None
        return normal + "/" + path.removesuffix("*").removesuffix("/") if path != "*" else normal
    if text.startswith("*."):
        parent = normal_host(text[2:])
        # A port or an address below a wildcard is no pattern.
        return None if parent is None or ":" in text or len(parent) > _LIMITS.host_chars_max - 2 else "*." + parent
    return normal_host(text)


def local_host(worker: str) -> str:
    """The name under which a worker always answers on the machine itself: `<worker>.localhost`."""
    return f"{worker}.{LOCAL_SUFFIX}"


def is_local(host: str) -> bool:
    """Whether a normal host is one a worker could have on the machine itself: one label below ``localhost``."""
    label, dot, parent = host.partition(".")
    return bool(label and dot) and parent == LOCAL_SUFFIX


class Routes:
    """An immutable table of routes. `Routes()` is empty."""

    __slots__ = ("_depths", "_limits", "_workers")

    def __init__(self, workers: Mapping[str, str] = MappingProxyType({}), limits: RouteLimits = _LIMITS) -> None:
        """`workers`: pattern to worker name. Raises ValueError on a pattern that is none, and over `routes_max`."""
        normal: dict[str, str] = {}
        for pattern, worker in workers.items():
            _put(normal, pattern, worker)
        self._workers = _bounded(normal, limits)
        self._depths = _depths(normal)
        self._limits = limits

    def find(self, host: str, path: str = "/") -> str | None:
        """The worker that answers for `host` (as a Host header or a server name has it) and the path of a request, with
        its query or without. None when nobody does.
        """
        for name in _names(host):
            depth = self._depths.get(name)
            if depth is not None:
                segments = path.partition("?")[0].split("/", depth + 1)[1 : depth + 1]
                for length in range(len(segments), 0, -1):
                    worker = self._workers.get("/".join((name, *segments[:length])))
                    if worker is not None:
                        return worker
            worker = self._workers.get(name)
            if worker is not None:
                return worker
        return None

    def pattern_of(self, host: str) -> str | None:
        """The host's part of the pattern that `host` is routed by. A certificate is issued for this, not for the host
        itself: clients can make up any number of hosts below a wildcard, and no pattern.
        """
        return next((name for name in _names(host) if name in self._workers or name in self._depths), None)

    def with_route(self, pattern: str, worker: str) -> Routes:
        """This table and one route more. Raises ValueError when the pattern is none, when it is another worker's, or
        when the table is full. A host is never taken over silently; `without` it first.
        """
        return self.with_routes({pattern: worker})

    def with_routes(self, workers: Mapping[str, str], *, take_over: bool = False) -> Routes:
        """As `with_route`, for many, with one copy of the table. `take_over`: whoever had them has them no more."""
        added = dict(self._workers)
        news: dict[str, str] = {}
        for pattern, worker in workers.items():
            _put(news if take_over else added, pattern, worker)
        added |= news
        return self._like(added, self._depths | _depths(map(_known, workers), self._depths))

    def without(self, pattern: str) -> Routes:
        """This table without one route; the same one when it is not there."""
        name = normal_pattern(pattern)
        if name is None or name not in self._workers:
            return self
        left = dict(self._workers)
        del left[name]
        return self._like(left, _depths(left) if "/" in name else self._depths)

    def without_worker(self, worker: str) -> Routes:
        """This table without any route to `worker`. Reads the whole table, which the copy does anyway."""
        left = {pattern: owner for pattern, owner in self._workers.items() if owner != worker}
        return self._like(left, _depths(left) if self._depths else self._depths)

    @property
    def workers(self) -> Mapping[str, str]:
        """Pattern to worker, read-only."""
        return MappingProxyType(self._workers)

    def __len__(self) -> int:
        return len(self._workers)

    def __repr__(self) -> str:
        return f"<Routes {len(self._workers)} of {self._limits.routes_max}>"

    def _like(self, workers: dict[str, str], depths: dict[str, int]) -> Routes:
        made = Routes.__new__(Routes)
        made._workers = _bounded(workers, self._limits)
        made._depths = depths
        made._limits = self._limits
        return made


def _names(host: str) -> Iterator[str]:
    """What a host may be routed by: its name, then the wildcard above it. Nothing when it is no host."""
    name = normal_host(host)
    if name is None:
        return
    yield name
    _, dot, parent = name.partition(".")
    if dot:
        yield "*." + parent


def _known(pattern: str) -> str:
    """A pattern in its one spelling, of which it is known that it has one."""
    name = normal_pattern(pattern)
    assert name is not None
    return name


def _depths(patterns: Iterable[str], before: Mapping[str, int] = MappingProxyType({})) -> dict[str, int]:
    """By host: how many segments the longest path of its patterns has. Hosts whose patterns have no path are not in it;
    `before`: what is known already."""
    depths: dict[str, int] = {}
    for pattern in patterns:
        if "/" in pattern:
            host, *segments = pattern.split("/")
            depths[host] = max(len(segments), depths.get(host, before.get(host, 0)))
    return depths


def _put(workers: dict[str, str], pattern: str, worker: str) -> None:
    name = normal_pattern(pattern)
    if name is None:
        raise ValueError("pattern: must be a host name, or *. and a host name, and a path ends in /*")
    # The message does not say whose it is: one tenant's names are no other tenant's business.
    if workers.setdefault(name, worker) != worker:
        raise ValueError(f"pattern: {name} is routed to another worker")


def _bounded(workers: dict[str, str], limits: RouteLimits) -> dict[str, str]:
    if len(workers) > limits.routes_max:
        raise ValueError(f"routes: {len(workers)} are more than {limits.routes_max}")
    return workers
