"""The type of an instance that a component imports: what it exports, and room for a few functions more.

Type numbers inside it are local to it, so functions can be added at its end without touching anything else.
"""

from dataclasses import dataclass

from isolates.component_binary import Item, skip_declaration
from isolates.wasm_binary import NotUnderstood, Reader, leb, name


@dataclass(frozen=True, slots=True)
class FunctionType:
    """A function's type: its parameters as (name, raw type), and its result's raw type (empty: none)."""

    parameters: tuple[tuple[bytes, bytes], ...]
    result: bytes


class InstanceType:
    """The instance type that a type item holds. ``NotUnderstood`` when it holds another kind."""

    def __init__(self, item: Item) -> None:
        self._item = item
        encoded = item.parts[0]
        assert isinstance(encoded, bytes)
        reader = Reader(encoded)
        if reader.byte() != 0x42:
            raise NotUnderstood("not the type of an instance")
        self._count = reader.count()
        self._declarations = encoded[reader.at :]
        #: Local types, empty where they have no definition of their own here (aliases, resources).
        self._types: list[bytes] = []
        self._functions: dict[str, int] = {}
        self._added: list[bytes] = []
        for _ in range(self._count):
            start = reader.at
            kind, called, extern = skip_declaration(reader)
            piece = encoded[start : reader.at]
            if kind == 1:
                self._types.append(piece[1:])
            elif (kind == 2 and piece[1] == 3) or (kind == 4 and extern == 3):
                self._types.append(b"")
            elif kind == 4 and extern == 1:
                self._functions[called.decode()] = _last_number(piece)
        self._next = len(self._types)

    def definition(self, raw: bytes) -> bytes:
        """What the raw type number ``raw`` is defined as here."""
        return self._types[Reader(raw).number()]

    def function(self, called: str) -> FunctionType:
        """The type of an exported function."""
        kind = self._types[self._functions[called]]
        reader = Reader(kind)
        if reader.byte() != 0x40:
            raise NotUnderstood("a function of another kind")
        parameters = []
        for _ in range(reader.count()):
            parameter, start = reader.name(), reader.at
            reader.number()
            parameters.append((parameter, kind[start : reader.at]))
        has_result = reader.byte() == 0
        return FunctionType(tuple(parameters), kind[reader.at :] if has_result else b"")

    def declare(self, kind: bytes) -> bytes:
        """Add a type; its raw number."""
        self._added.append(b"\x01" + kind)
        self._next += 1
        return _index(self._next - 1)

    def offer(self, called: str, parameters: list[tuple[str, bytes]], result: bytes) -> None:
        """Add an exported function. ``result`` is a raw type, or empty for none."""
        coded = b"".join(name(parameter) + kind for parameter, kind in parameters)
        kind = self.declare(b"\x40" + leb(len(parameters)) + coded + (b"\x00" + result if result else b"\x01\x00"))
        self._added.append(b"\x04\x00" + name(called) + b"\x01" + kind)

    def store(self) -> None:
        """Write what was added back to the item."""
        added = b"".join(self._added)
        self._item.parts = [b"\x42" + leb(self._count + len(self._added)) + self._declarations + added]


def _last_number(piece: bytes) -> int:
    """The number of an exported function's type: what follows its name and the byte that says function."""
    reader = Reader(piece, 2)
    reader.name()
    reader.byte()
    return reader.number()


def _index(number: int) -> bytes:
    """A type's number where a value type may stand: signed, so its seventh bit is a sign."""
    out = bytearray()
    while number >= 0x40:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
