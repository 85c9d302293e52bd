"""How much memory an isolate's guest has, asked of the guest's own instance.

The C API can neither list a component's memories nor read their sizes. A component that is prepared for this host gets
one more export: a function of one instruction, ``memory.size``, on the memory that its imports are lowered with.
"""

from wasmtime import wat2wasm

from isolates import component_binary as binary
from isolates.component_binary import EXPORT, MEMORY, Item, Root
from isolates.wasm_binary import NotUnderstood

#: The added export: ``func() -> u32``, pages of 64 KiB.
MEMORY_PAGES = "everwarm-memory-pages"
_PROBE = '(module (import "guest" "memory" (memory 0)) (func (export "pages") (result i32) memory.size))'
_FUNC_TO_U32 = b"\x40\x00\x00\x79"


def add(root: Root) -> bool:
    """Add the export. Changes ``root``; False when no memory of the component is known.

    ``NotUnderstood`` when the component has an export of this name: a guest's function behind it would be called
    without limits, and with this process waiting.
    """
    name = MEMORY_PAGES.encode()
    if any(name in part for i in root.items if i.section == EXPORT for part in i.parts if isinstance(part, bytes)):
        raise NotUnderstood("an export with the name of the probe")
    memory = next((used for item in root.of("lower") for kind, used in item.options if kind == MEMORY and used), None)
    if memory is None:
        return False
    guest = binary.inline({"memory": memory})
    module = binary.core_module(bytes(wat2wasm(_PROBE)))
    instance = binary.instantiate(module, {"guest": guest})
    pages = binary.alias("core func", instance, "pages")
    kind = Item(binary.TYPE, [_FUNC_TO_U32], "type")
    lifted = binary.lift(pages, root.count("type"))
    root.append(guest, module, instance, pages, kind, lifted, binary.export(MEMORY_PAGES, lifted))
    return True
