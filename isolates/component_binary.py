"""A component's root as a list of definitions that refer to each other, not to numbers.

In the binary every definition has a number in its index space (core functions, core instances, ...), given by order, so
that one more definition in the middle renumbers all that come after it. Here a definition is an ``Item``: bytes with
references to other items between them. Items can be added, replaced and taken out; ``encode`` numbers them anew.

Types and nested components stay opaque bytes with numbers in them. So no type and no component may be added at the
root; nothing that this project does to a component needs that. What is not understood (a start section, core types,
asynchronous functions) is ``NotUnderstood``, and the component is left as it is.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from isolates.wasm_binary import COMPONENT_PREAMBLE, NotUnderstood, Reader, leb, name, section, sections

CUSTOM, CORE_MODULE, CORE_INSTANCE, CORE_TYPE, COMPONENT, INSTANCE, ALIAS, TYPE, CANON, START, IMPORT, EXPORT = range(
    12
)

#: Index spaces by the byte of their sort.
_CORE_SPACES = {
    0: "core func", 1: "core table", 2: "core memory", 3: "core global", 4: "core tag", 0x10: "core type",
    0x11: "core module", 0x12: "core instance",
}  # fmt: skip
_CORE_SORTS = {space: sort for sort, space in _CORE_SPACES.items()}
_SPACES = {1: "func", 2: "value", 3: "type", 4: "component", 5: "instance"}
_SORTS = {space: sort for sort, space in _SPACES.items()}

#: Definitions, arguments and options of one root, some 400 bytes each. Python's toolchain makes some four thousand.
ROOT_ITEMS_MAX = 200_000

# Canonical options.
LATIN1, MEMORY, REALLOC, POST_RETURN = 2, 3, 4, 5


@dataclass(eq=False, slots=True)
class Item:
    """One definition (or export, or module): its section, its bytes with references, and the space it adds to.

    ``facts`` is what transformations look for: ``("lower", func)``, ``("alias", instance, name)``, ...
    """

    section: int
    parts: list["bytes | Item"]
    defines: str | None = None
    facts: tuple[object, ...] = ()
    #: Options of a canonical function, in order: (option, referenced item or None).
    options: list[tuple[int, "Item | None"]] = field(default_factory=list)


def sort_of(space: str) -> bytes:
    """The sort byte(s) of an index space."""
    return bytes([0, _CORE_SORTS[space]]) if space in _CORE_SORTS else bytes([_SORTS[space]])


class Root:
    """The root of a component."""

    def __init__(self, *, items_max: int = ROOT_ITEMS_MAX) -> None:
        self.items: list[Item] = []
        self._spaces: dict[str, list[Item]] = {}
        self._room = items_max

    # ------------------------------------------------------------------------------------------------- reading

    @classmethod
    def parse(cls, data: bytes, *, items_max: int = ROOT_ITEMS_MAX) -> "Root":
        """The component in ``data``, without its custom sections."""
        root = cls(items_max=items_max)
        for number, payload in sections(data, COMPONENT_PREAMBLE):
            if number == CUSTOM:
                Reader(payload).name().decode()  # dropped, and must be one all the same
                continue
            if number in (CORE_MODULE, COMPONENT):
                root._make_room(1)
                space = "core module" if number == CORE_MODULE else "component"
                root._define(Item(number, [payload], space, ("module",) if number == CORE_MODULE else ()))
            elif number in _READERS:
                reader = Reader(payload)
                for _ in range(root._count(reader)):
                    _READERS[number](root, reader)
                if not reader.done:
                    raise NotUnderstood("a section is longer than its items")
            else:
                raise NotUnderstood("a component with a start function or core types")
        return root

    def _count(self, reader: Reader) -> int:
        count = reader.count()
        self._make_room(count)
        return count

    def _make_room(self, count: int) -> None:
        self._room -= count
        if self._room < 0:
            raise NotUnderstood("a component of very many definitions")

    def _define(self, item: Item) -> Item:
        self.items.append(item)
        if item.defines is not None:
            self._spaces.setdefault(item.defines, []).append(item)
        return item

    def _get(self, space: str, index: int) -> Item:
        try:
            return self._spaces[space][index]
        except LookupError as missing:
            raise NotUnderstood(f"{space} {index} is not defined") from missing

    def _sort(self, reader: Reader) -> str:
        sort = reader.byte()
        space = _CORE_SPACES.get(reader.byte()) if sort == 0 else _SPACES.get(sort)
        if space is None:
            raise NotUnderstood("a sort of a newer component model")
        return space

    def _core_instance(self, reader: Reader) -> None:
        kind = reader.byte()
        parts: list[bytes | Item] = [bytes([kind])]
        facts: tuple[object, ...] = ("inline",)
        if kind == 0:
            module = self._get("core module", reader.number())
            count = self._count(reader)
            parts += [module, leb(count)]
            facts = ("instantiate", module)
            for _ in range(count):
                parts.append(name(reader.name()) + bytes([reader.byte()]))
                parts.append(self._get("core instance", reader.number()))
        else:
            count = self._count(reader)
            parts.append(leb(count))
            for _ in range(count):
                exported, sort = reader.name(), reader.byte()
                parts += [name(exported) + bytes([sort]), self._get(_CORE_SPACES[sort], reader.number())]
        self._define(Item(CORE_INSTANCE, parts, "core instance", facts))

    def _instance(self, reader: Reader) -> None:
        kind = reader.byte()
        parts: list[bytes | Item] = [bytes([kind])]
        if kind == 0:
            parts.append(self._get("component", reader.number()))
        count = self._count(reader)
        parts.append(leb(count))
        for _ in range(count):
            called = name(reader.name()) if kind == 0 else _extern_name(reader)
            space = self._sort(reader)
            parts += [called + sort_of(space), self._get(space, reader.number())]
        self._define(Item(INSTANCE, parts, "instance"))

    def _alias(self, reader: Reader) -> None:
        space, target = self._sort(reader), reader.byte()
        if target > 1:
            raise NotUnderstood("an alias of an outer definition")
        instance = self._get("core instance" if target else "instance", reader.number())
        called = reader.name()
        parts: list[bytes | Item] = [sort_of(space) + bytes([target]), instance, name(called)]
        self._define(Item(ALIAS, parts, space, ("alias", instance, called.decode())))

    def _canon(self, reader: Reader) -> None:
        kind = reader.byte()
        if kind == 0 and reader.byte() == 0:
            function = self._get("core func", reader.number())
            options = self._options(reader)
            item = Item(CANON, [b"\0\0", function], "func", ("lift", function), options)
            item.parts += [b"", leb(reader.number())]  # the options' place, then the type
        elif kind == 1 and reader.byte() == 0:
            function = self._get("func", reader.number())
            item = Item(CANON, [b"\1\0", function, b""], "core func", ("lower", function), self._options(reader))
        elif kind in (2, 3, 4):
            item = Item(CANON, [bytes([kind]) + leb(reader.number())], "core func")
        else:
            raise NotUnderstood("a canonical function of a newer component model")
        self._define(item)

    def _options(self, reader: Reader) -> list[tuple[int, Item | None]]:
        options: list[tuple[int, Item | None]] = []
        for _ in range(self._count(reader)):
            kind = reader.byte()
            if kind > POST_RETURN:
                raise NotUnderstood("a canonical option of a newer component model")
            space = "core memory" if kind == MEMORY else "core func"
            options.append((kind, self._get(space, reader.number()) if kind >= MEMORY else None))
        return options

    def _import(self, reader: Reader) -> None:
        start = reader.at
        called = Reader(_extern_name(reader), 1).name()
        space, type_index = self._extern(reader)
        self._define(Item(IMPORT, [reader.data[start : reader.at]], space, ("import", called.decode(), type_index)))

    def _extern(self, reader: Reader) -> tuple[str, int]:
        """Reads an extern descriptor: the space it adds to, and the number of its type."""
        kind = reader.byte()
        if kind == 0:
            reader.byte()
            return "core module", reader.number()
        if kind == 3:
            return "type", reader.number() if reader.byte() == 0 else -1
        if kind in (1, 4, 5):
            return _SPACES[kind], reader.number()
        raise NotUnderstood("an import of a newer component model")

    def _export(self, reader: Reader) -> None:
        called = _extern_name(reader)
        space = self._sort(reader)
        parts: list[bytes | Item] = [called + sort_of(space), self._get(space, reader.number())]
        start = reader.at
        if reader.byte():
            self._extern(reader)
        self._define(Item(EXPORT, [*parts, reader.data[start : reader.at]], space))

    def _type(self, reader: Reader) -> None:
        start = reader.at
        skip_type(reader)
        self._define(Item(TYPE, [reader.data[start : reader.at]], "type"))

    # ----------------------------------------------------------------------------------------------- changing

    def imported_instance(self, beginning: str) -> Item | None:
        """The first imported instance whose name begins so."""
        found = (i for i in self.of("import") if i.defines == "instance" and str(i.facts[1]).startswith(beginning))
        return next(found, None)

    def type_of(self, imported: Item) -> Item:
        """The item of an import's type."""
        number = imported.facts[2]
        assert isinstance(number, int)
        return self._get("type", number)

    def calls(self, instance: Item, names: Collection[str]) -> list[tuple[Item, str]]:
        """The core functions that call an instance's functions of these names: (lowered function, name)."""
        functions = {i: str(i.facts[2]) for i in self.of("alias") if i.facts[1] is instance and i.defines == "func"}
        found = []
        for lowered in self.of("lower"):
            called = functions.get(lowered.facts[1])  # type: ignore[call-overload]
            if called in names:
                found.append((lowered, str(called)))
        return found

    def of(self, fact: str) -> Iterator[Item]:
        """The items whose first fact is ``fact``, in order."""
        return (item for item in self.items if item.facts and item.facts[0] == fact)

    def count(self, space: str) -> int:
        """How many definitions an index space has."""
        return sum(item.defines == space for item in self.items)

    def insert_before(self, place: Item, *added: Item) -> None:
        """Define ``added`` right before ``place``."""
        at = self.items.index(place)
        self.items[at:at] = added

    def append(self, *added: Item) -> None:
        """Define ``added`` at the end."""
        self.items += added

    def substitute(self, changes: dict[Item, Item]) -> None:
        """Let everything that refers to a key refer to its value, which stands before all of it; the keys go."""
        self.items = [item for item in self.items if item not in changes]
        for item in self.items:
            item.parts = [part if isinstance(part, bytes) else changes.get(part, part) for part in item.parts]
            item.facts = tuple(changes.get(fact, fact) if isinstance(fact, Item) else fact for fact in item.facts)
            item.options = [(kind, used and changes.get(used, used)) for kind, used in item.options]

    # ------------------------------------------------------------------------------------------------ writing

    def encode(self) -> bytes:
        """The component as a binary."""
        numbers: dict[Item, int] = {}
        counts: dict[str, int] = {}
        out = [COMPONENT_PREAMBLE]
        run: list[bytes] = []

        def flush(number: int) -> None:
            if run:
                out.append(section(number, leb(len(run)) + b"".join(run)))
                run.clear()

        previous = -1
        for item in self.items:
            if item.section != previous:
                flush(previous)
                previous = item.section
            body = self._body(item, numbers)
            if item.section in (CORE_MODULE, COMPONENT):
                out.append(section(item.section, body))
            else:
                run.append(body)
            if item.defines is not None:
                numbers[item] = counts.get(item.defines, 0)
                counts[item.defines] = numbers[item] + 1
        flush(previous)
        return b"".join(out)

    @staticmethod
    def _body(item: Item, numbers: dict[Item, int]) -> bytes:
        parts = [part if isinstance(part, bytes) else leb(numbers[part]) for part in item.parts]
        if item.section == CANON and item.facts:
            options = [bytes([kind]) + (b"" if used is None else leb(numbers[used])) for kind, used in item.options]
            parts[2] = leb(len(options)) + b"".join(options)
        return b"".join(parts)


_READERS = {
    CORE_INSTANCE: Root._core_instance, INSTANCE: Root._instance, ALIAS: Root._alias, TYPE: Root._type,
    CANON: Root._canon, IMPORT: Root._import, EXPORT: Root._export,
}  # fmt: skip


# --------------------------------------------------------------------------------------------------- new items


def alias(space: str, instance: Item, called: str) -> Item:
    """A name for what an instance exports."""
    core = instance.defines == "core instance"
    return Item(ALIAS, [sort_of(space) + bytes([core]), instance, name(called)], space, ("alias", instance, called))


def lower(function: Item, options: list[tuple[int, Item | None]]) -> Item:
    """A core function that calls a component's function."""
    return Item(CANON, [b"\1\0", function, b""], "core func", ("lower", function), options)


def lift(function: Item, type_number: int, options: list[tuple[int, Item | None]] | None = None) -> Item:
    """A component's function that calls a core function. Without options its type has no memory in it."""
    return Item(CANON, [b"\0\0", function, b"", leb(type_number)], "func", ("lift", function), options or [])


def inline(exports: dict[str, Item]) -> Item:
    """A core instance of definitions that there are."""
    parts: list[bytes | Item] = [b"\1" + leb(len(exports))]
    for called, item in exports.items():
        assert item.defines is not None
        parts += [name(called) + bytes([_CORE_SORTS[item.defines]]), item]
    return Item(CORE_INSTANCE, parts, "core instance", ("inline",))


def instantiate(module: Item, arguments: dict[str, Item]) -> Item:
    """A core instance of a module."""
    parts: list[bytes | Item] = [b"\0", module, leb(len(arguments))]
    for called, instance in arguments.items():
        parts += [name(called) + b"\x12", instance]
    return Item(CORE_INSTANCE, parts, "core instance", ("instantiate", module))


def core_module(binary: bytes) -> Item:
    """A core module in the component itself."""
    return Item(CORE_MODULE, [binary], "core module", ("module",))


def core_module_type(encoded: bytes) -> Item:
    """The type of a core module."""
    return Item(CORE_TYPE, [encoded], "core type")


def import_core_module(called: str, kind: Item) -> Item:
    """A core module that whoever instantiates the component gives."""
    return Item(IMPORT, [b"\0" + name(called) + b"\x00\x11", kind], "core module", ("import", called, -1))


def export(called: str, function: Item) -> Item:
    """An export of a function."""
    return Item(EXPORT, [b"\0" + name(called) + b"\x01", function, b"\0"], "func")


# ------------------------------------------------------------------------------------------------------ types


def _extern_name(reader: Reader) -> bytes:
    """The name of an import or an export, as it is in the binary: a byte that says which kind of name, and the name."""
    start = reader.at
    if reader.byte() > 1:
        raise NotUnderstood("a name of a newer component model")
    reader.name()
    return reader.data[start : reader.at]


def skip_type(reader: Reader) -> None:
    """Read over one type definition. A resource of the component's own is ``NotUnderstood``: it names a function."""
    kind = reader.byte()
    if kind == 0x40:  # a function
        for _ in range(reader.count()):
            reader.name()
            reader.number()
        results = reader.byte()
        if results == 0:
            reader.number()
        elif results == 1:
            for _ in range(reader.count()):
                reader.name()
                reader.number()
        else:
            raise NotUnderstood("a function type of a newer component model")
    elif kind in (0x41, 0x42):  # a component, an instance
        for _ in range(reader.count()):
            skip_declaration(reader)
    elif kind in _DEFINED:
        _DEFINED[kind](reader)
    elif not 0x73 <= kind <= 0x7F:
        raise NotUnderstood("a type of a newer component model")


def skip_declaration(reader: Reader) -> tuple[int, bytes, int]:
    """Read over one declaration in an instance's or a component's type: (kind, exported name, extern kind)."""
    kind = reader.byte()
    if kind == 1:
        skip_type(reader)
    elif kind == 2:
        if reader.byte() == 0:
            reader.byte()
        if reader.byte() == 2:
            reader.number()
            reader.number()
        else:
            reader.number()
            reader.name()
    elif kind in (3, 4):
        called = Reader(_extern_name(reader), 1).name()
        extern = reader.byte()
        if extern == 3:
            if reader.byte() == 0:
                reader.number()
        elif extern == 0:
            reader.byte()
            reader.number()
        else:
            reader.number()
        return kind, called, extern
    else:
        raise NotUnderstood("a declaration of a newer component model")
    return kind, b"", -1


def _skip_fields(reader: Reader) -> None:
    for _ in range(reader.count()):
        reader.name()
        reader.number()


def _skip_variant(reader: Reader) -> None:
    for _ in range(reader.count()):
        reader.name()
        _skip_optional(reader)
        reader.byte()


def _skip_optional(reader: Reader) -> None:
    if reader.byte():
        reader.number()


def _skip_numbers(reader: Reader) -> None:
    for _ in range(reader.count()):
        reader.number()


def _skip_names(reader: Reader) -> None:
    for _ in range(reader.count()):
        reader.name()


def _skip_result(reader: Reader) -> None:
    _skip_optional(reader)
    _skip_optional(reader)


_DEFINED = {
    0x72: _skip_fields, 0x71: _skip_variant, 0x70: Reader.number, 0x6F: _skip_numbers, 0x6E: _skip_names,
    0x6D: _skip_names, 0x6B: Reader.number, 0x6A: _skip_result, 0x69: Reader.number, 0x68: Reader.number,
}  # fmt: skip
