"""Components and their compiled artifacts.

A component is compiled once, at deploy, in a process of its own: compiling takes seconds and hundreds of megabytes, the
input is hostile, and the first start of the guest happens there too, under the startup limit. What comes out is a
content-addressed ``.cwasm`` file under the engine's fingerprint. Starting an isolate maps that file: the kernel shares
its pages between all isolates of a version and all hosts of a machine.

An artifact is native code and is trusted when it is mapped. So its directory belongs to the host alone (0700), its
name is the digest of the component, its own digest is checked when it is installed, and a component from outside is
never accepted in compiled form.

    python -m isolates.artifact COMPONENT OUT     compile, check, start once; prints one JSON object
"""

import hashlib
import json
import os
import re
import secrets
import sys
import tempfile
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wasmtime import WasmtimeError
from wasmtime.component import Component, ComponentInstanceType, ExportIndex, FuncType

from isolates.engine import Sandbox, cause_of, fingerprint

_CORE_MODULE = b"\0asm\x01\x00\x00\x00"
_COMPONENT = b"\0asm\x0d\x00\x01\x00"
HANDLER = "wasi:http/incoming-handler"
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")

#: Mapped artifacts kept open per process. A mapping costs address space and a few kernel structures, no memory of its
#: own; 4,096 of them stay far below the kernel's limit of 65,530 mappings.
MAPPED_MAX = 4_096


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a component cannot be deployed. ``code`` for programs, the rest for people."""

    code: str
    message: str
    advice: str

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()


@dataclass(frozen=True, slots=True)
class Compiled:
    """A component that compiled, was checked, and started once."""

    component_digest: str
    component_bytes: int
    artifact_digest: str
    artifact_bytes: int
    imports: tuple[str, ...]
    startup_cpu_ms: float
    startup_wall_ms: float


def digest_of(data: bytes) -> str:
    """SHA-256 of ``data``, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def rejected_by_header(data: bytes, bytes_max: int) -> Rejected | None:
    """What can be told of a file without compiling it: size, and whether it is a component at all."""
    if len(data) > bytes_max:
        return Rejected(
            "tooLarge",
            f"The component has {len(data):,} bytes; the limit is {bytes_max:,}.",
            "Strip debug information (wasm-tools strip -a) or leave dependencies out.",
        )
    if data.startswith(_CORE_MODULE):
        return Rejected(
            "coreModule",
            "This is a core WebAssembly module, not a component.",
            "Wrap it: wasm-tools component embed WIT module.wasm | wasm-tools component new (with an adapter for WASI"
            " preview 1), or let your toolchain target wasm32-wasip2.",
        )
    if not data.startswith(_COMPONENT):
        return Rejected(
            "notAComponent",
            "This is not a WebAssembly component" + (": the file is empty." if not data else "."),
            "Deploy the .wasm file that your toolchain builds, or build a worker's folder with: everwarm build DIR",
        )
    return None


def rejected_by_type(box: Sandbox, component: Component) -> Rejected | None:
    """Whether the component exports what we call and imports only what we have."""
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
            " wasi:sockets of WASI 0.2; compose other imports away (wac plug) or leave them out.",
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


class Mapped:
    """A mapped artifact: compiled code that isolates can be started from."""

    __slots__ = ("component", "digest", "handler")

    def __init__(self, box: Sandbox, path: Path, digest: str) -> None:
        self.digest = digest
        self.component = Component.deserialize_file(box.engine, str(path))
        self.handler = handle_index(box, self.component)


def handle_index(box: Sandbox, component: Component) -> ExportIndex:
    """Where the component exports ``handle``: looked up once, used by every isolate."""
    name = handler_export(component.type.exports(box.engine))
    outer = component.get_export_index(name) if name else None
    index = component.get_export_index("handle", outer) if outer else None
    if index is None:
        raise LookupError(f"no {HANDLER} in a component that was accepted")
    return index


class ArtifactStore:
    """The compiled artifacts of one machine, by the digest of their component."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / fingerprint()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._mapped: OrderedDict[str, Mapped] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, component_digest: str) -> Path:
        """Where the artifact of a component is, whether it is there or not."""
        if not _DIGEST.match(component_digest):
            raise ValueError("a component digest is 64 hex digits")
        return self.directory / f"{component_digest}.cwasm"

    def has(self, component_digest: str) -> bool:
        """Whether the artifact is here."""
        return self.path(component_digest).exists()

    def install(self, component_digest: str, artifact: bytes, artifact_digest: str) -> None:
        """Put an artifact into place, whole or not at all. ``ValueError`` when it is not what it should be."""
        if digest_of(artifact) != artifact_digest:
            raise ValueError("the artifact does not have the digest that was announced")
        target = self.path(component_digest)
        handle, temporary = tempfile.mkstemp(dir=self.directory, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(artifact)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def map(self, box: Sandbox, component_digest: str) -> Mapped:
        """The artifact, mapped. ``FileNotFoundError`` when this machine does not have it."""
        with self._lock:
            mapped = self._mapped.get(component_digest)
            if mapped is None:
                path = self.path(component_digest)
                if not path.exists():
                    raise FileNotFoundError(component_digest)
                mapped = self._mapped[component_digest] = Mapped(box, path, component_digest)
                if len(self._mapped) > MAPPED_MAX:
                    self._mapped.popitem(last=False)
            else:
                self._mapped.move_to_end(component_digest)
            return mapped


def compile_and_start(source: Path, target: Path, *, startup_cpu_ms: float, memory_bytes: int) -> Compiled | Rejected:
    """Compile the component in ``source`` to ``target``, check it, and start it once under the startup limit."""
    from isolates.engine import sandbox
    from isolates.isolate import Isolate, StartFailed
    from isolates.limits import IsolateLimits

    box, data = sandbox(), source.read_bytes()
    try:
        component = Component(box.engine, data)
    except WasmtimeError as broken:
        cause = cause_of(str(broken)).removesuffix(".")
        return Rejected("invalid", f"The component does not compile: {cause}.", "Check it: wasm-tools validate.")
    rejected = rejected_by_type(box, component)
    if rejected is not None:
        return rejected
    artifact = bytes(component.serialize())
    target.write_bytes(artifact)
    mapped = Mapped(box, target, digest_of(data))
    limits = IsolateLimits(startup_cpu_ms=startup_cpu_ms, memory_bytes_max=memory_bytes)
    started = Isolate.start(box, mapped, limits, secrets.token_bytes)
    if isinstance(started, StartFailed):
        return Rejected("startFailed", f"The component does not start: {started.reason}", started.advice)
    started.close()
    imports = tuple(sorted(component.type.imports(box.engine)))
    return Compiled(
        digest_of(data), len(data), digest_of(artifact), len(artifact), imports, started.start_cpu_ms,
        started.start_wall_ms,
    )  # fmt: skip


def main(arguments: list[str]) -> int:
    """The compile process: one JSON object on stdout, ``{"compiled": {...}}`` or ``{"rejected": {...}}``."""
    source, target, startup_cpu_ms, memory_bytes = arguments
    result = compile_and_start(
        Path(source), Path(target), startup_cpu_ms=float(startup_cpu_ms), memory_bytes=int(memory_bytes)
    )
    kind = "compiled" if isinstance(result, Compiled) else "rejected"
    print(json.dumps({kind: asdict(result)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
