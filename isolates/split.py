"""One engine for all tenants: a component taken apart into what every tenant of a toolchain shares and what is its own.

The machine code of all JavaScript (or Python) workers of one toolchain version is byte-identical; only the memory that
their build left behind differs. Compiled whole, each of them costs 10-20 s, 34 MB of disk, and its own copy of the same
code in every page cache. Taken apart, what is left per tenant is data:

* the **skeleton**: the component with its large core modules turned into imports;
* **shared modules**: code without a tenant's data. They are compiled once per engine version and cluster;
* the tenant's **data module**: one core module that owns the memory and its initial contents. It stays a module with
  plain data segments, so that wasmtime maps it copy-on-write from the artifact's file.

Python's toolchain already keeps the memory in a module of its own. JavaScript's has code and data in one: there the
memory is taken out (``_code_and_data``), and the code imports a memory of any size: another heap makes no other engine.

A component that can not be taken apart runs whole. Nothing here decides what is valid: the parts are compiled, linked
and started by wasmtime before a deploy is accepted, and an engine module is found by the digest of its own bytes, so a
tenant shares only what it would have brought itself.
"""

from dataclasses import dataclass

from isolates import component_binary as binary
from isolates.component_binary import Item, Root
from isolates.wasm_binary import (
    CODE,
    CORE_PREAMBLE,
    DATA,
    DATA_COUNT,
    EXPORT,
    IMPORT,
    MEMORY,
    CoreModule,
    NotUnderstood,
    Reader,
    leb,
    name,
    section,
    vector,
)

#: Code is worth sharing from this size on: engines have 6 to 9 MB, which take 10-20 s to compile; below, it is a second
#: or two. A module that is imported is linked by name at each start: with all of a Python worker's modules imported,
#: and not only its largest, a start takes 5 ms instead of 2, and mapping 9 instead of 4.
SHARED_CODE_BYTES_MIN = 1 << 20
#: Parts of one component. Toolchains of today make one or two.
PARTS_MAX = 16

#: What the skeleton calls its imported modules, with a number behind it.
PART_NAME = "everwarm-part"
_DATA_IMPORT = "everwarm-data"
#: The least that a memory can have: what the code module asks for, and what the data module is declared to give.
_ANY_MEMORY = b"\x00\x00"
_MEMORY_SORT = b"\x02"


@dataclass(frozen=True, slots=True)
class Part:
    """A core module that the skeleton imports as ``name``. ``shared``: there is no data of a tenant in it."""

    name: str
    binary: bytes
    shared: bool


@dataclass(frozen=True, slots=True)
class Split:
    """A component in parts. ``skeleton`` is a component; ``parts`` may be empty."""

    skeleton: bytes
    parts: tuple[Part, ...]


def split(root: Root) -> Split:
    """Take the component apart. Changes ``root``. ``NotUnderstood`` when it can not be."""
    parts: list[Part] = []

    def part(binary_: bytes, *, shared: bool) -> str:
        parts.append(Part(f"{PART_NAME}{len(parts)}", binary_, shared))
        if len(parts) > PARTS_MAX:
            raise NotUnderstood("a component of very many modules")
        return parts[-1].name

    for module in list(root.of("module")):
        whole = module.parts[0]
        assert isinstance(whole, bytes)
        if len(whole) < SHARED_CODE_BYTES_MIN:
            continue
        code = CoreModule.parse(whole)
        if len(code.payload(CODE)) < SHARED_CODE_BYTES_MIN:
            continue
        separated = _code_and_data(code)
        if separated is not None:
            code, data = separated
            _give_memory(root, module, part(data, shared=False))
        type_item = binary.core_module_type(code.module_type())
        imported = binary.import_core_module(part(code.encode(), shared=not code.payload(DATA)), type_item)
        root.insert_before(module, type_item, imported)
        root.substitute({module: imported})
    return Split(root.encode(), tuple(parts))


def _give_memory(root: Root, module: Item, data_import: str) -> None:
    """Let the one instance of ``module`` get its memory from an instance of the data module."""
    users = [item for item in root.of("instantiate") if item.facts[1] is module]
    if len(users) != 1:
        raise NotUnderstood("a module with data that is instantiated more than once")
    user = users[0]
    kind = binary.core_module_type(b"\x50" + vector([b"\x03" + name("memory") + _MEMORY_SORT + _ANY_MEMORY]))
    imported = binary.import_core_module(data_import, kind)
    root.insert_before(module, kind, imported)
    data = binary.instantiate(imported, {})
    root.insert_before(user, data)
    count = user.parts[2]
    assert isinstance(count, bytes)
    user.parts = [*user.parts[:2], leb(Reader(count).number() + 1), *user.parts[3:], name(_DATA_IMPORT) + b"\x12", data]


def _code_and_data(module: CoreModule) -> tuple[CoreModule, bytes] | None:
    """A module with much code and a tenant's data as two: code that imports its memory, and the memory with the data.

    None when it is not such a module. Data segments go as a whole: code that still refers to one (``memory.init``) does
    not compile afterwards, and the component runs whole.
    """
    if not module.has_memory or not module.payload(DATA) or len(module.payload(CODE)) < SHARED_CODE_BYTES_MIN:
        return None
    if Reader(module.payload(MEMORY)).number() != 1:
        raise NotUnderstood("a module of several memories")
    imports = Reader(module.payload(IMPORT) or b"\0")
    count = imports.number()
    memory_import = name(_DATA_IMPORT) + name("memory") + _MEMORY_SORT + _ANY_MEMORY
    changed = {
        IMPORT: leb(count + 1) + imports.data[imports.at :] + memory_import,
        MEMORY: None,
        DATA: None,
        DATA_COUNT: None,
    }
    code = module.replaced(changed)
    if not module.payload(IMPORT):
        raise NotUnderstood("an engine that imports nothing")
    data = CORE_PREAMBLE + b"".join(
        (
            section(MEMORY, module.payload(MEMORY)),
            section(EXPORT, vector([name("memory") + _MEMORY_SORT + leb(0)])),
            section(DATA, module.payload(DATA)),
        )
    )
    return code, data
