"""``fields``: the headers and trailers of every message a guest reads or writes."""

import re
from functools import lru_cache
from typing import Any

from isolates.component_value import DONE, Err, Ok
from isolates.guest import Guest
from isolates.outcome import Outcome
from isolates.wit import Interface

#: Field names that only the HTTP layer below may set (RFC 9110 section 7.6.1, and Host, which is the authority).
FORBIDDEN = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection transfer-encoding upgrade te host"
    " http2-settings".split()
)
#: A token of RFC 9110 section 5.6.2, up to the length of a name that anybody uses, and far beyond it.
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,1024}\Z")
_NAME_CHARS_MAX = 1_024
_VALUE_JUNK = re.compile(rb"[\x00\r\n]")

_INVALID, _FORBIDDEN, _IMMUTABLE = (Err((c, None)) for c in ("invalid-syntax", "forbidden", "immutable"))


def _lower_name(name: str) -> str | Err[Any]:
    """The name in lower case, or why a guest may not set it."""
    return _known_name(name) if len(name) <= _NAME_CHARS_MAX else _INVALID


@lru_cache(maxsize=1_024)  # a service has a few dozen names; with the longest of names this is 2 MiB
def _known_name(name: str) -> str | Err[Any]:
    if not TOKEN.match(name):
        return _INVALID
    lower = name.lower()
    return _FORBIDDEN if lower in FORBIDDEN else lower


class Fields:
    """HTTP fields in order. Names are kept in lower case: the wire below does not tell them apart."""

    __slots__ = ("bytes", "items", "mutable")

    def __init__(self, items: list[tuple[str, bytes]], *, mutable: bool) -> None:
        self.items = items
        self.mutable = mutable
        self.bytes = sum([len(n) + len(v) for n, v in items])

    def problem(self, name: str, values: list[bytes]) -> Err[Any] | None:
        """Why ``values`` may not stand under ``name``, or None."""
        if not self.mutable:
            return _IMMUTABLE
        lower = _lower_name(name)
        if lower is _INVALID or any(_VALUE_JUNK.search(v) for v in values):
            return _INVALID
        return lower if isinstance(lower, Err) else None

    def remove(self, name: str) -> None:
        """Take out every value of ``name``, which is in lower case."""
        self.items[:] = [item for item in self.items if item[0] != name]
        self.bytes = sum([len(n) + len(v) for n, v in self.items])

    def add(self, guest: Guest, name: str, values: list[bytes]) -> None:
        """Add ``values`` under ``name``, which is in lower case."""
        self.take([(name, v) for v in values], guest)

    def take(self, items: list[tuple[str, bytes]], guest: Guest) -> None:
        """Add ``items``. WASI 0.2 has no case for "too many", so a guest that fills the host with fields is ended."""
        bytes_ = self.bytes + sum([len(n) + len(v) for n, v in items])
        if len(self.items) + len(items) > guest.limits.headers_max or bytes_ > guest.limits.header_bytes_max:
            guest.log("stderr", "too many header fields")
            guest.end(Outcome.EXCEPTION)
        self.items.extend(items)
        self.bytes = bytes_

    def content_length(self) -> int | None:
        """The declared length of the body, None when there is none. ``ValueError`` when there is no telling."""
        lengths = {v for n, v in self.items if n == "content-length"}
        if not lengths:
            return None
        length = lengths.pop()
        # 18 digits are an exabyte: more are not a length, and turning them into a number is work.
        if lengths or not length.isdigit() or len(length) > 18:
            raise ValueError("content-length")
        return int(length)


def define(types: Interface) -> None:
    """The resource ``fields``."""

    @types.func("[constructor]fields: func() -> own<fields>")
    def constructor(guest: Guest) -> Fields:
        return Fields([], mutable=True)

    @types.func(
        "[static]fields.from-list: func(entries: list<tuple<string, list<u8>>>) -> result<own<fields>, header-error>"
    )
    def from_list(guest: Guest, entries: list[tuple[str, bytes]]) -> Any:
        items: list[tuple[str, bytes]] = []
        for name, value in entries:
            lower = _lower_name(name)
            if lower is _INVALID or _VALUE_JUNK.search(value):
                return _INVALID
            if isinstance(lower, Err):
                return lower
            items.append((lower, value))
        fields = Fields([], mutable=True)
        fields.take(items, guest)
        return Ok(fields)

    @types.func("[method]fields.get: func(self: borrow<fields>, name: string) -> list<list<u8>>")
    def get(guest: Guest, self: Fields, name: str) -> list[bytes]:
        name = name.lower()
        return [v for n, v in self.items if n == name]

    @types.func("[method]fields.has: func(self: borrow<fields>, name: string) -> bool")
    def has(guest: Guest, self: Fields, name: str) -> bool:
        return any(n == name.lower() for n, _ in self.items)

    @types.func(
        "[method]fields.set: func(self: borrow<fields>, name: string, value: list<list<u8>>) -> result<_, header-error>"
    )
    def set_values(guest: Guest, self: Fields, name: str, values: list[bytes]) -> Any:
        problem = self.problem(name, values)
        if problem is None:
            self.remove(name.lower())
            self.add(guest, name.lower(), values)
        return problem or DONE

    @types.func("[method]fields.delete: func(self: borrow<fields>, name: string) -> result<_, header-error>")
    def delete(guest: Guest, self: Fields, name: str) -> Any:
        problem = self.problem(name, [])
        if problem is None:
            self.remove(name.lower())
        return problem or DONE

    @types.func(
        "[method]fields.append: func(self: borrow<fields>, name: string, value: list<u8>) -> result<_, header-error>"
    )
    def append(guest: Guest, self: Fields, name: str, value: bytes) -> Any:
        problem = self.problem(name, [value])
        if problem is None:
            self.add(guest, name.lower(), [value])
        return problem or DONE

    @types.func("[method]fields.entries: func(self: borrow<fields>) -> list<tuple<string, list<u8>>>")
    def entries(guest: Guest, self: Fields) -> list[tuple[str, bytes]]:
        return self.items

    @types.func("[method]fields.clone: func(self: borrow<fields>) -> own<fields>")
    def clone(guest: Guest, self: Fields) -> Fields:
        return Fields(list(self.items), mutable=True)
