"""Exports of a component's core modules that nothing in the component asks for: they go.

Toolchains link a component's modules by name and leave all names in: Python's engine exports 1,857 things, and a tenth
of them is used. Each name is read when the component is mapped, once more where a part's type is declared
(``split``), and compared at each start. Nobody outside can reach a core module's exports, so what no alias and no other
module's import names can go without anybody noticing.
"""

from isolates.component_binary import Item, Root
from isolates.wasm_binary import CORE_PREAMBLE, EXPORT, CoreModule, Reader, leb, name

#: What this project adds to look into an instance stays, used or not: an engine's code must not differ by it.
_OURS = b"everwarm-"


def strip(root: Root) -> None:
    """Take the dead exports out of the modules of ``root``."""
    modules = {item: CoreModule.parse(_binary(item)) for item in root.of("module")}
    instances = {item: item.facts[1] for item in root.of("instantiate") if item.facts[1] in modules}
    used: dict[object, set[bytes]] = {module: set() for module in modules}
    known = set(modules)
    for item in root.items:
        if item.facts and item.facts[0] == "alias":
            module = instances.get(item.facts[1])  # type: ignore[call-overload]
            if module is not None:
                used[module].add(str(item.facts[2]).encode())
            continue
        for namespace, part in zip(["", *item.parts], item.parts, strict=False):
            if isinstance(part, bytes):
                continue
            if item not in instances:
                known.discard(part)  # a module that is exported, or given to a component: its exports are seen there
            if part not in instances:
                continue
            importer = modules.get(item.facts[1]) if item in instances else None  # type: ignore[call-overload]
            if importer is None or not isinstance(namespace, bytes):
                known.discard(instances[part])
            else:
                used[instances[part]] |= importer.fields_imported_from(Reader(namespace).name())
    for item in known:
        module = modules[item]
        kept = _kept(module.payload(EXPORT), used[item])
        if kept is not None:
            item.parts = [module.replaced({EXPORT: kept}).encode()]


def _binary(item: Item) -> bytes:
    encoded = item.parts[0]
    return encoded if isinstance(encoded, bytes) else CORE_PREAMBLE


def _kept(exports: bytes, used: set[bytes]) -> bytes | None:
    """The payload of an export section with what is used, and what is ours. None when that is all of it."""
    reader = Reader(exports or b"\0")
    kept, count = [], reader.count()
    for _ in range(count):
        called, start = reader.name(), reader.at
        reader.byte()
        reader.number()
        if called in used or called.startswith(_OURS):
            kept.append(name(called) + reader.data[start : reader.at])
    return leb(len(kept)) + b"".join(kept) if len(kept) < count else None
