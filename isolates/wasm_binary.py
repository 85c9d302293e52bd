"""The WebAssembly binary format, as far as a component has to be taken apart: numbers, sections, a core module's type.

Nothing here validates. What comes out of a rewriting is compiled by wasmtime, which does; input that is not understood
is ``NotUnderstood``, and whoever asked leaves the component as it is.

Source: WebAssembly core specification 2.0, chapter 5, and the component model's Binary.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass

CORE_PREAMBLE = b"\0asm\x01\x00\x00\x00"
COMPONENT_PREAMBLE = b"\0asm\x0d\x00\x01\x00"

# Section ids of a core module.
CUSTOM, TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT = range(8)
START, CODE, DATA, DATA_COUNT, TAG = 8, 10, 11, 12, 13

_PAGE_FLAG_64 = 0x04

#: What engines take of anything in one module (types, functions, exports, ...): keeps a hostile binary from becoming
#: some hundred times its size in here before wasmtime has looked at it.
ITEMS_MAX = 1_000_000


class NotUnderstood(Exception):
    """A binary that uses something this reader does not know. Says what."""


def leb(value: int) -> bytes:
    """An unsigned LEB128 number."""
    out = bytearray()
    while True:
        low, value = value & 0x7F, value >> 7
        if not value:
            out.append(low)
            return bytes(out)
        out.append(low | 0x80)


def name(text: str | bytes) -> bytes:
    """A name: its length and its bytes."""
    raw = text.encode() if isinstance(text, str) else text
    return leb(len(raw)) + raw


def section(number: int, payload: bytes) -> bytes:
    """A section of a module or a component."""
    return bytes([number]) + leb(len(payload)) + payload


def vector(items: list[bytes]) -> bytes:
    """A vector of encoded items."""
    return leb(len(items)) + b"".join(items)


class Reader:
    """A position in some bytes. Reading past the end is ``NotUnderstood``."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    @property
    def done(self) -> bool:
        """Whether all has been read."""
        return self.at >= len(self.data)

    def byte(self) -> int:
        """One byte."""
        if self.done:
            raise NotUnderstood("the binary ends too early")
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        """An unsigned LEB128 number, or the raw bits of a signed one."""
        value = shift = 0
        while True:
            low = self.byte()
            value |= (low & 0x7F) << shift
            shift += 7
            if low < 0x80:
                return value
            if shift > 70:
                raise NotUnderstood("a number does not end")

    def count(self) -> int:
        """How many items follow. Each takes a byte at least, so a vector can not claim more than there are."""
        count = self.number()
        if count > min(ITEMS_MAX, len(self.data) - self.at):
            raise NotUnderstood("a vector of more items than there can be")
        return count

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if self.at + size > len(self.data):
            raise NotUnderstood("the binary ends too early")
        self.at += size
        return self.data[self.at - size : self.at]

    def name(self) -> bytes:
        """A name's bytes."""
        return self.take(self.number())


def sections(data: bytes, preamble: bytes) -> Iterator[tuple[int, bytes]]:
    """The sections of a module or a component: (id, payload)."""
    if not data.startswith(preamble):
        raise NotUnderstood("not the kind of binary it should be")
    reader = Reader(data, len(preamble))
    while not reader.done:
        number = reader.byte()
        yield number, reader.take(reader.number())


# ------------------------------------------------------------------------------------------------ core modules


def _value_type(reader: Reader) -> bytes:
    kind = reader.byte()
    if not 0x6F <= kind <= 0x7F:
        raise NotUnderstood("a value type of a newer WebAssembly")
    return bytes([kind])


def _limits(reader: Reader) -> bytes:
    flags = reader.byte()
    if flags & _PAGE_FLAG_64 or flags > 3:
        raise NotUnderstood("64-bit or custom-page limits")
    return bytes([flags]) + leb(reader.number()) + (leb(reader.number()) if flags & 1 else b"")


def _table(reader: Reader) -> bytes:
    return _value_type(reader) + _limits(reader)


def _global(reader: Reader) -> bytes:
    return _value_type(reader) + bytes([reader.byte()])


def _skip_constant(reader: Reader) -> None:
    while (code := reader.byte()) != 0x0B:
        if code in (0x41, 0x42, 0x23, 0xD2, 0xD0):  # i32.const, i64.const, global.get, ref.func, ref.null
            reader.number()
        elif code in (0x43, 0x44):  # f32.const, f64.const
            reader.take(4 if code == 0x43 else 8)
        elif code not in (0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E):  # integer arithmetic of extended constants
            raise NotUnderstood("a constant expression of a newer WebAssembly")


@dataclass(frozen=True, slots=True)
class CoreModule:
    """A core module as its sections, in order, without the custom ones (names and tools' notes)."""

    sections: tuple[tuple[int, bytes], ...]

    @classmethod
    def parse(cls, data: bytes) -> "CoreModule":
        """The module in ``data``."""
        return cls(tuple((n, payload) for n, payload in sections(data, CORE_PREAMBLE) if n != CUSTOM))

    def encode(self) -> bytes:
        """The module as a binary."""
        return CORE_PREAMBLE + b"".join(section(number, payload) for number, payload in self.sections)

    def payload(self, number: int) -> bytes:
        """A section's payload; empty when there is none."""
        return next((payload for n, payload in self.sections if n == number), b"")

    def replaced(self, changes: dict[int, bytes | None]) -> "CoreModule":
        """With other payloads for some sections that it has; None takes one out."""
        kept = ((n, changes.get(n, payload)) for n, payload in self.sections)
        return CoreModule(tuple((n, payload) for n, payload in kept if payload is not None))

    @property
    def has_memory(self) -> bool:
        """Whether it defines a memory of its own."""
        return self.payload(MEMORY)[:1] not in (b"", b"\0")

    def imported(self, wanted: int) -> int:
        """How many imports it has of a sort (0 functions, 1 tables, 2 memories, 3 globals)."""
        return sum(sort == wanted for sort, _, _, _ in self._imports())

    def globals(self) -> list[tuple[bytes, bytes]]:
        """The globals that it defines: (encoded type, encoded initial value)."""
        reader = Reader(self.payload(GLOBAL))
        found = []
        for _ in range(0 if reader.done else reader.count()):
            kind, start = _global(reader), reader.at
            _skip_constant(reader)
            found.append((kind, reader.data[start : reader.at]))
        return found

    def export_names(self) -> set[bytes]:
        """What it exports, by name."""
        reader = Reader(self.payload(EXPORT))
        names = set()
        for _ in range(0 if reader.done else reader.count()):
            names.add(reader.name())
            reader.byte()
            reader.number()
        return names

    def fields_imported_from(self, namespace: bytes) -> set[bytes]:
        """What it imports from ``namespace``, by name."""
        return {field for _, module, field, _ in self._imports() if module == namespace}

    def module_type(self) -> bytes:
        """Its type, as a component declares the type of a module that it imports."""
        types = self._types()
        declarations = [b"\x01" + kind for kind in types]
        spaces: dict[int, list[bytes]] = {0: [], 1: [], 2: [], 3: [], 4: []}
        for sort, module, field, kind in self._imports():
            spaces[sort].append(kind)
            declarations.append(b"\x00" + name(module) + name(field) + bytes([sort]) + kind)
        self._own(spaces)
        reader = Reader(self.payload(EXPORT))
        for _ in range(0 if reader.done else reader.count()):
            field, sort, index = reader.name(), reader.byte(), reader.number()
            declarations.append(b"\x03" + name(field) + bytes([sort]) + spaces[sort][index])
        return b"\x50" + vector(declarations)

    def _types(self) -> list[bytes]:
        reader = Reader(self.payload(TYPE))
        found = []
        for _ in range(0 if reader.done else reader.count()):
            start = reader.at
            if reader.byte() != 0x60:
                raise NotUnderstood("a type that is not a function's")
            for _ in range(2):
                for _ in range(reader.count()):
                    _value_type(reader)
            found.append(reader.data[start : reader.at])
        return found

    def _imports(self) -> Iterator[tuple[int, bytes, bytes, bytes]]:
        """What it imports: (sort, module, field, encoded type)."""
        reader = Reader(self.payload(IMPORT))
        for _ in range(0 if reader.done else reader.count()):
            module, field, sort = reader.name(), reader.name(), reader.byte()
            yield sort, module, field, self._import_type(reader, sort)

    @staticmethod
    def _import_type(reader: Reader, sort: int) -> bytes:
        if sort == 0:
            return leb(reader.number())
        if sort == 1:
            return _table(reader)
        if sort == 2:
            return _limits(reader)
        if sort == 3:
            return _global(reader)
        raise NotUnderstood("an import of a newer WebAssembly")

    def _own(self, spaces: dict[int, list[bytes]]) -> None:
        """What the module defines itself, behind what it imports."""
        reader = Reader(self.payload(FUNCTION))
        spaces[0] += [leb(reader.number()) for _ in range(0 if reader.done else reader.count())]
        reader = Reader(self.payload(TABLE))
        for _ in range(0 if reader.done else reader.count()):
            spaces[1].append(_table(reader))
        reader = Reader(self.payload(MEMORY))
        spaces[2] += [_limits(reader) for _ in range(0 if reader.done else reader.count())]
        spaces[3] += [kind for kind, _ in self.globals()]
