"""Workers that come as a component already, and the check that every build's result is one."""

from everwarm.build.project import Input, Project, entry_file
from everwarm.build.tool import BuildError

# The preamble of the binary format: magic, then version and layer. A component is layer 1, a core module layer 0.
_MAGIC = b"\0asm"
_COMPONENT_LAYER = b"\x01\x00"
_PREAMBLE_BYTES = 8


def inputs(project: Project) -> list[Input]:
    return [(project.manifest.entry, entry_file(project).read_bytes())]


def compile_component(project: Project) -> bytes:
    return entry_file(project).read_bytes()


def require_component(data: bytes, worker: str) -> None:
    """Raises BuildError unless `data` begins like a component. What it imports and exports is checked at deploy."""
    if len(data) < _PREAMBLE_BYTES or data[:4] != _MAGIC:
        raise BuildError(f"{worker}: the result is not WebAssembly")
    if data[6:8] != _COMPONENT_LAYER:
        raise BuildError(f"{worker}: the result is a core module; a worker is a component (`wasm-tools component new`)")
