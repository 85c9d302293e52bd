"""WIT text -> host functions: types and interfaces, read once when a module is imported.

**Declared, not discovered.** A host function is declared with the text of its WIT signature::

    @streams.func("[method]input-stream.read: func(self: borrow<input-stream>, len: u64)"
                  " -> result<list<u8>, stream-error>")
    def read(guest, stream, length): ...

From the text, the converters of ``component_value`` are put together, and ``abi`` makes a callback of them; no
reflection is left at run time.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from isolates.abi import Callback, HostFunction, Signature, callback
from isolates.component_compound import field_list, list_of, option_of, record_of, result_of, tuple_of, variant_of
from isolates.component_resource import resource
from isolates.component_value import INTEGERS, KIND, ValueType, byte_list, integer, latin1, string

_TOKEN = re.compile(r"[%]?[A-Za-z_][A-Za-z0-9-]*|[<>,]")

#: What header fields pass as.
_FIELDS = "list<tuple<string,list<u8>>>"


class Scope:
    """The named types that signatures may mention, and the parser of type expressions."""

    def __init__(self) -> None:
        self.named: dict[str, ValueType] = {}
        self.resource_ids: dict[str, int] = {}

    def parse(self, text: str) -> ValueType:
        """The type that ``text`` names. ``ValueError`` when it names none."""
        if text.replace(" ", "") == _FIELDS:
            return field_list()
        tokens = _TOKEN.findall(text)
        try:
            parsed, rest = self._type(tokens)
        except LookupError as missing:
            raise ValueError(f"cannot read the type {text!r}") from missing
        if parsed is None or rest:
            raise ValueError(f"cannot read the type {text!r}")
        return parsed

    def _type(self, tokens: list[str]) -> tuple[ValueType | None, list[str]]:
        if not tokens:
            raise ValueError("a type is missing")
        head, rest = tokens[0], tokens[1:]
        if rest and rest[0] == "<":
            names, arguments, rest = self._arguments(head, rest[1:])
            return self._generic(head, names, arguments), rest
        if head == "_":
            return None, rest
        if head in INTEGERS:
            return integer(head), rest
        if head == "string":
            return string(KIND["string"]), rest
        if head == "latin1":
            return latin1(), rest
        if head == "result":
            return result_of(None, None), rest
        if head in self.resource_ids:
            return resource(self.resource_ids[head], owned=True), rest
        if head not in self.named:
            raise ValueError(f"the type {head!r} is not declared")
        return self.named[head], rest

    def _arguments(self, head: str, tokens: list[str]) -> tuple[list[str], list[ValueType | None], list[str]]:
        names: list[str] = []
        arguments: list[ValueType | None] = []
        while True:
            names.append(tokens[0])
            if head in ("own", "borrow"):
                tokens = tokens[1:]
            else:
                argument, tokens = self._type(tokens)
                arguments.append(argument)
            separator, tokens = tokens[0], tokens[1:]
            if separator == ">":
                return names, arguments, tokens

    def _generic(self, head: str, names: list[str], arguments: list[ValueType | None]) -> ValueType:
        if head in ("own", "borrow"):
            return resource(self.resource_ids[names[0]], owned=head == "own")
        if head == "result":
            return result_of(arguments[0], arguments[1] if len(arguments) > 1 else None)
        present = [a for a in arguments if a is not None]
        if head == "list":
            return byte_list() if names == ["u8"] else list_of(present[0])
        if head == "option":
            return option_of(present[0])
        if head == "tuple":
            return tuple_of(present)
        raise ValueError(f"unknown generic type {head!r}")


@dataclass
class Interface:
    """One WASI interface: its name with a version, its resources, and its functions as callbacks for the linker.

    The version is any of the 0.2 line: the linker matches versions by semantic compatibility, so one definition serves
    imports of 0.2.0 to 0.2.12. Drafts (0.2.0-rc.1) are only ever themselves.
    """

    name: str
    world: "World"
    resources: dict[str, int] = field(default_factory=dict)
    functions: dict[str, HostFunction] = field(default_factory=dict)
    callbacks: dict[str, Callback] = field(default_factory=dict)

    def resource(self, name: str) -> None:
        """Declare a resource type that this interface defines."""
        self.resources[name] = self.world.new_resource(name)

    def use_resource(self, name: str, original: str) -> None:
        """Declare ``name`` as another name of a resource that another interface (or this one) defined.

        The same type id under both names, or instantiation fails with "mismatched resource types".
        """
        self.resources[name] = self.world.scope.resource_ids[name] = self.world.scope.resource_ids[original]

    def variant(self, name: str, cases: dict[str, str | None]) -> None:
        """Declare a variant: case -> type text, or None for a case without a payload."""
        scope = self.world.scope
        scope.named[name] = variant_of({c: None if t is None else scope.parse(t) for c, t in cases.items()})

    def record(self, name: str, fields: dict[str, str]) -> None:
        """Declare a record; its Python value is a tuple in this order of fields."""
        scope = self.world.scope
        scope.named[name] = record_of([(f.encode(), scope.parse(t)) for f, t in fields.items()])

    def enum(self, name: str) -> None:
        """Declare an enum; its Python value is the case's name."""
        self.world.scope.named[name] = string(KIND["enum"])

    def alias(self, name: str, text: str) -> None:
        """Declare another name for a type."""
        self.world.scope.named[name] = self.world.scope.parse(text)

    def func(self, declaration: str) -> Callable[[HostFunction], HostFunction]:
        """Define the function whose WIT text is ``NAME: func(PARAMS) [-> RESULT]``; the guest comes first."""
        name, _, text = declaration.partition(": func(")

        def define(function: HostFunction) -> HostFunction:
            self.functions[name] = function
            self.callbacks[name] = callback(function, self.world.signature(text), f"{self.name}#{name}")
            return function

        return define


class World:
    """All interfaces a guest can import, with the types they share."""

    def __init__(self) -> None:
        self.scope = Scope()
        self.interfaces: dict[str, Interface] = {}
        self._last_type_id = 0

    def interface(self, name: str) -> Interface:
        """A new interface, ``namespace:package/name@0.2.x``."""
        made = self.interfaces[name] = Interface(name, self)
        return made

    def new_resource(self, name: str) -> int:
        self._last_type_id += 1
        self.scope.resource_ids[name] = self._last_type_id
        return self._last_type_id

    def signature(self, text: str) -> Signature:
        """Compile ``PARAMS) [-> RESULT]``."""
        parameters, _, result = text.rpartition(")")
        types = [self.scope.parse(p.split(":", 1)[1]) for p in _split_parameters(parameters)]
        result = result.removeprefix(" -> ").strip()
        return Signature(types, self.scope.parse(result).lower if result else None)


def _split_parameters(text: str) -> list[str]:
    """``a: list<x>, b: y`` -> [``a: list<x>``, ``b: y``]: commas inside angle brackets do not count."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [p for p in [*parts, text[start:]] if p.strip()]
