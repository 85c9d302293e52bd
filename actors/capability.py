"""Capabilities: what one role lends another for the time of one request. Pure.

A capability on the wire is small: who owns it and the owner's key. It stands for a lazy thing: minting one starts
nothing. Whoever holds it can use it through the owner's peer without knowing what is behind it; when it comes back to
its owner, the owner recognises its own and takes the short way.

Each mint has exactly one release, on every path: accepted, refused, cancelled, peer lost. ``Exports`` can list what
is out, and tests check that it is empty when the request is over.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from actors.exchange import Capability

T = TypeVar("T")


class ExportsFull(Exception):
    """More is lent out than the role may lend; the caller sheds the request."""


class Exports(Generic[T]):
    """What one role has lent out, by key."""

    #: One request lends one or two things; a Server has at most ``connections_max`` requests. Beyond that something
    #: is not released, and refusing shows it.
    OUT_MAX = 8_192

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._out: dict[int, T] = {}
        self._last_key = 0

    def mint(self, thing: T) -> Capability:
        """Lend ``thing``: a new capability, never used before in this owner's life."""
        if len(self._out) >= self.OUT_MAX:
            raise ExportsFull(f"{self.owner} has lent out {len(self._out)} things")
        self._last_key += 1
        self._out[self._last_key] = thing
        return Capability(self.owner, self._last_key)

    def resolve(self, key: int) -> T | None:
        """The thing lent under ``key``, or None when it was released (a late caller, business as usual)."""
        return self._out.get(key)

    def owned(self, capability: Capability) -> T | None:
        """The thing behind a capability that came back, if it is one of ours and still out."""
        return self._out.get(capability.key) if capability.owner == self.owner else None

    def release(self, capability: Capability) -> None:
        """Take it back. ``KeyError`` when it was not out: a second release is a broken invariant."""
        del self._out[capability.key]

    @contextmanager
    def lent(self, thing: T) -> Iterator[Capability]:
        """Lend ``thing`` for the length of a block."""
        capability = self.mint(thing)
        try:
            yield capability
        finally:
            self.release(capability)

    def __len__(self) -> int:
        return len(self._out)

    def __repr__(self) -> str:
        return f"Exports({self.owner}, out={sorted(self._out)})"
