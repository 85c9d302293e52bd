"""The world a worker may import, as text and as the component model's canonical ABI lays it out.

Which functions there are and what they take is recorded while ``wasi.world`` declares it, so nothing is left out.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any
from unittest import mock

from isolates import wasi
from isolates.abi import HostFunction
from isolates.wit import Interface, World

SCALARS = {
    "bool": 1, "u8": 1, "s8": 1, "u16": 2, "s16": 2, "u32": 4, "s32": 4, "u64": 8, "s64": 8,
}  # fmt: skip
_TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9-]*|[<>,]")
#: The world's enums, which it takes by name and does not list.
_ENUMS = {
    "network-error": ("access-denied", "unknown"),
    "address-family": ("ipv4", "ipv6"),
    "file-error": ("access",),
}


@dataclass(frozen=True, eq=False)
class Kind:
    """A type: a scalar's name, a generic's with its arguments, or ``named`` with its name; None is no payload."""

    head: str
    parts: tuple["Kind | None", ...] = ()
    name: str = ""


@dataclass(frozen=True, eq=False)
class Function:
    """One function of an interface."""

    interface: str
    name: str
    parameters: tuple[tuple[str, Kind], ...]
    result: Kind | None


class _RecordedInterface(Interface):
    """An interface that keeps what it is declared with."""

    recorded: "RecordedWorld"

    def resource(self, name: str) -> None:
        self.recorded.origins.setdefault(name, self.name)
        super().resource(name)

    def use_resource(self, name: str, original: str) -> None:
        self.recorded.original.setdefault(name, self.recorded.original.get(original, original))
        super().use_resource(name, original)

    def variant(self, name: str, cases: dict[str, str | None]) -> None:
        self.recorded.variants[name] = (self.name, cases)
        super().variant(name, cases)

    def record(self, name: str, fields: dict[str, str]) -> None:
        self.recorded.records[name] = (self.name, fields)
        super().record(name, fields)

    def enum(self, name: str) -> None:
        self.recorded.enums[name] = (self.name, _ENUMS[name])
        super().enum(name)

    def alias(self, name: str, text: str) -> None:
        self.recorded.aliases[name] = text
        super().alias(name, text)

    def func(self, declaration: str) -> Callable[[HostFunction], HostFunction]:
        self.recorded.declarations.append((self.name, declaration))
        define, called = super().func(declaration), self.recorded.called
        label = f"{self.name}#{declaration.partition(':')[0]}"

        def counted(function: HostFunction) -> HostFunction:
            def count(*arguments: Any) -> Any:
                called[label] += 1
                return function(*arguments)

            return define(count)

        return counted


class RecordedWorld(World):
    """The world a guest may import, as text."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[str, str] = {}
        #: The one name of each resource, by all of its names.
        self.original: dict[str, str] = {}
        self.variants: dict[str, tuple[str, dict[str, str | None]]] = {}
        self.records: dict[str, tuple[str, dict[str, str]]] = {}
        self.enums: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.aliases: dict[str, str] = {"latin1": "string"}
        self.declarations: list[tuple[str, str]] = []
        #: How often guests got as far as into each function.
        self.called: Counter[str] = Counter()

    def interface(self, name: str) -> Interface:
        made = self.interfaces[name] = _RecordedInterface(name, self)
        made.recorded = self
        return made

    @classmethod
    def made(cls) -> "RecordedWorld":
        """The host's world, which knows what it is."""
        with mock.patch.object(wasi, "World", cls):
            world = wasi.world()
        assert isinstance(world, cls)
        return world

    # ------------------------------------------------------------------------------------------------------ types

    def parse(self, text: str) -> Kind:
        kind, rest = self._parse(_TOKEN.findall(text))
        assert kind is not None
        assert not rest, text
        return kind

    def _parse(self, tokens: list[str]) -> tuple[Kind | None, list[str]]:
        head, rest = tokens[0], tokens[1:]
        if head == "_":
            return None, rest
        if not rest or rest[0] != "<":
            return self.single(head), rest
        parts: list[Kind | None] = []
        while rest[0] != ">":
            part, rest = self._parse(rest[1:])
            parts.append(part)
        if head in ("own", "borrow"):
            assert parts[0] is not None
            return Kind(head, (), parts[0].name), rest[1:]
        return Kind(head, tuple(parts) + (None,) * (head == "result" and len(parts) == 1)), rest[1:]

    def single(self, head: str) -> Kind:
        if head in self.aliases:
            return self.parse(self.aliases[head])
        if head in SCALARS or head == "string":
            return Kind(head)
        if head == "result":
            return Kind("result", (None, None))
        if head in self.variants:
            cases = self.variants[head][1].values()
            return Kind("variant", tuple(None if case is None else self.parse(case) for case in cases), head)
        if head in self.records:
            return Kind("record", tuple(self.parse(text) for text in self.records[head][1].values()), head)
        if head in self.enums:
            return Kind("enum", (None,) * len(self.enums[head][1]), head)
        return Kind("resource", (), head)

    @cached_property
    def functions(self) -> list[Function]:
        """All functions; those of denied packages that nobody can reach take nothing but themselves."""
        found = []
        for interface, declaration in self.declarations:
            name, _, text = declaration.partition(": func(")
            parameters, _, result = text.rpartition(")")
            split = re.split(r",\s*(?=[a-z-]+: )", parameters) if parameters else []
            pairs = tuple((p.partition(": ")[0].strip(), self.parse(p.partition(": ")[2])) for p in split)
            result = result.removeprefix(" -> ").strip()
            found.append(Function(interface, name, pairs, self.parse(result) if result else None))
        for made in self.interfaces.values():
            for name in made.callbacks.keys() - made.functions.keys():
                resource = name.removeprefix("[method]").partition(".")[0]
                found.append(Function(made.name, name, (("self", Kind("borrow", (), resource)),), None))
        return sorted(found, key=lambda function: (function.interface, function.name))

    def named_origins(self) -> list[tuple[str, str]]:
        """Each variant, record and enum, and the interface that declares it."""
        tables: tuple[dict[str, tuple[str, Any]], ...] = (self.variants, self.records, self.enums)
        return [(name, origin) for table in tables for name, (origin, _) in table.items()]

    def resource_of(self, name: str) -> str:
        return self.original.get(name, name)

    @cached_property
    def needs(self) -> dict[Function, frozenset[str]]:
        """The resources that each function can not be called without."""
        found = {}
        for function in self.functions:
            kinds = [kind for _, kind in function.parameters]
            kinds += [part for kind in kinds if kind.head == "list" for part in kind.parts if part is not None]
            found[function] = frozenset(self.resource_of(k.name) for k in kinds if k.head in ("own", "borrow"))
        return found


@cache
def flat(kind: Kind | None) -> list[str]:
    """The core types that a value passes as."""
    if kind is None:
        return []
    if kind.head in ("u64", "s64"):
        return ["i64"]
    if kind.head in ("string", "list"):
        return ["i32", "i32"]
    if kind.head in ("tuple", "record"):
        return [core for part in kind.parts for core in flat(part)]
    if kind.head in ("variant", "option", "result", "enum"):
        joined: list[str] = []
        for case in cases_of(kind):
            for i, core in enumerate(flat(case)):
                if i == len(joined):
                    joined.append(core)
                elif joined[i] != core:
                    joined[i] = "i64"
        return ["i32", *joined]
    return ["i32"]


def cases_of(kind: Kind) -> tuple[Kind | None, ...]:
    return (None, *kind.parts) if kind.head == "option" else kind.parts


@cache
def align(kind: Kind | None) -> int:
    if kind is None:
        return 1
    if kind.head in SCALARS:
        return SCALARS[kind.head]
    if kind.head in ("tuple", "record", "variant", "option", "result", "enum"):
        return max([1, *(align(part) for part in kind.parts)])
    return 4


def rounded(at: int, to: int) -> int:
    return (at + to - 1) // to * to


@cache
def size(kind: Kind | None) -> int:
    """Bytes of a value in memory."""
    if kind is None:
        return 0
    if kind.head in SCALARS:
        return SCALARS[kind.head]
    if kind.head in ("string", "list"):
        return 8
    if kind.head in ("tuple", "record"):
        return rounded(places(kind)[-1][0] + size(places(kind)[-1][1]), align(kind))
    if kind.head in ("variant", "option", "result", "enum"):
        return rounded(payload_at(kind) + max(size(case) for case in cases_of(kind)), align(kind))
    return 4


@cache
def places(kind: Kind) -> list[tuple[int, Kind]]:
    """Offset and type of each part of a tuple or record."""
    at, found = 0, []
    for part in kind.parts:
        assert part is not None
        at = rounded(at, align(part))
        found.append((at, part))
        at += size(part)
    return found


@cache
def payload_at(kind: Kind) -> int:
    return rounded(1, max(align(case) for case in cases_of(kind)))


def handles(
    kind: Kind | None, at: int, when: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[int, tuple[tuple[int, int], ...], str]]:
    """The handles in a value in memory: offset, the (offset, value) of discriminants that must hold, resource."""
    if kind is None:
        return
    if kind.head == "own":
        yield at, when, kind.name
    elif kind.head in ("tuple", "record"):
        for offset, part in places(kind):
            yield from handles(part, at + offset, when)
    elif kind.head in ("variant", "option", "result"):
        for i, case in enumerate(cases_of(kind)):
            yield from handles(case, at + payload_at(kind), (*when, (at, i)))
