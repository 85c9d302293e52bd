"""Which components can be deployed, and what their authors are told about those that cannot.

Everything that can be known before a guest runs is checked here: the file's kind and size, what it imports, what it
exports. That it compiles and starts is for ``compiler`` to find out.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from wasmtime.component import Component, ComponentInstanceType, ExportIndex, FuncType

from isolates.engine import Sandbox
from isolates.wasm_binary import COMPONENT_PREAMBLE, CORE_PREAMBLE

HANDLER = "wasi:http/incoming-handler"


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a component cannot be deployed. ``code`` for programs, the rest for people."""

    code: str
    message: str
    advice: str

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()


def rejected_by_header(data: bytes, bytes_max: int) -> Rejected | None:
    """What can be told of a file without compiling it: size, and whether it is a component at all."""
    if len(data) > bytes_max:
        return Rejected(
            "tooLarge",
            f"The component has {len(data):,} bytes; the limit is {bytes_max:,}.",
            "Strip debug information (wasm-tools strip -a) or leave dependencies out.",
        )
    if data.startswith(CORE_PREAMBLE):
        return Rejected(
            "coreModule",
            "This is a core WebAssembly module, not a component.",
            "Wrap it: wasm-tools component embed WIT module.wasm | wasm-tools component new (with an adapter for WASI"
            " preview 1), or let your toolchain target wasm32-wasip2.",
        )
    if not data.startswith(COMPONENT_PREAMBLE):
        return Rejected(
            "notAComponent",
            "This is not a WebAssembly component" + (": the file is empty." if not data else "."),
            "Deploy the .wasm file that your toolchain builds, or build a worker's folder with: everwarm build DIR",
        )
    return None


def rejected_by_type(box: Sandbox, component: Component, parts: Collection[str] = ()) -> Rejected | None:
    """Whether the component exports what we call and imports only what we have.

    ``parts``: names of core modules that it imports because it was taken apart.
    """
    kind = component.type
    exports, imports = kind.exports(box.engine), kind.imports(box.engine)
    names = {*exports, *imports}
    third = sorted(n for n in names if n.startswith("wasi:") and n.partition("@")[2].startswith("0.3"))
    if third:
        return Rejected(
            "wasi03",
            f"This component is built for WASI 0.3 ({third[0]}), which is not supported: the wasmtime bindings cannot"
            " host its streams and futures.",
            "Build it for WASI 0.2: world wasi:http/proxy@0.2.x.",
        )
    unknown = []
    for name, item in imports.items():
        if name in parts:
            continue
        known = box.knows(name)
        if known is None or not isinstance(item.ty, ComponentInstanceType):
            unknown.append(name)
            continue
        unknown += [f"{name}#{inner}" for inner, it in item.ty.exports(box.engine).items()
                    if inner not in known and type(it.ty).__name__ in ("FuncType", "ResourceType")]  # fmt: skip
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        return Rejected(
            "unknownImport",
            f"The component imports {', '.join(unknown[:3])}{more}, which this host does not have.",
            "Workers may import wasi:http, wasi:io, wasi:clocks, wasi:random, wasi:cli, wasi:filesystem and"
            " wasi:sockets of WASI 0.2, wasi:config, and wasi:keyvalue@0.2.0-draft;"
            " compose other imports away (wac plug) or leave them out.",
        )
    handler = handler_export(exports)
    if handler is None or not _has_handle(box, exports[handler]):
        shown = ", ".join(sorted(exports)[:5]) or "nothing"
        return Rejected(
            "missingExport",
            f"The component does not export {HANDLER}@0.2.x; it exports {shown}.",
            "Build it for the world wasi:http/proxy@0.2.x, or export that interface.",
        )
    return None


def handler_export(exports: "dict[str, Any]") -> str | None:
    """The name under which a component exports the incoming handler of WASI 0.2, or None."""
    return next((n for n in exports if n == f"{HANDLER}@0.2" or n.startswith(f"{HANDLER}@0.2.")), None)


def _has_handle(box: Sandbox, export: Any) -> bool:
    """Whether the exported thing is an interface with the function that we call."""
    if not isinstance(export.ty, ComponentInstanceType):
        return False
    handle = export.ty.exports(box.engine).get("handle")
    return handle is not None and isinstance(handle.ty, FuncType)


def handle_index(box: Sandbox, component: Component) -> ExportIndex:
    """Where the component exports ``handle``: looked up once, used by every isolate."""
    name = handler_export(component.type.exports(box.engine))
    outer = component.get_export_index(name) if name else None
    index = component.get_export_index("handle", outer) if outer else None
    if index is None:
        raise LookupError(f"no {HANDLER} in a component that was accepted")
    return index
