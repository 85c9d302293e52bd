"""The compile process: from a component to pieces that can be mapped.

Compiling takes seconds and hundreds of megabytes, and its input is hostile, so it has a process of its own, with a time
limit that its caller keeps. The first start of the guest happens there too, under the startup limit. A component is
compiled in the shape that ``prepared`` gives it; where that does not work out, it is compiled as it came.

Where start-up takes long and asks nothing of the host, it is run here for the last time (``snapshot``).

Pieces that the store has already are not compiled again: that is what makes the second deploy of a toolchain fast.

    python -m isolates.compiler COMPONENT STORE STARTUP_CPU_MS MEMORY_BYTES

prints one JSON object a line: ``{"progress": "..."}`` any number of times, then ``{"compiled": {...}}`` or
``{"rejected": {...}}``.
"""

import json
import secrets
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from wasmtime import Module, WasmtimeError
from wasmtime.component import Component

from isolates import bulk_bytes, memory_probe
from isolates.abi import GuestTrap
from isolates.acceptance import Rejected, rejected_by_type
from isolates.artifact import ArtifactStore, Compiled, Mapped, Piece, digest_of, encode_compiled
from isolates.component_binary import Root
from isolates.engine import Sandbox, cause_of, sandbox
from isolates.isolate import Isolate, StartFailed
from isolates.limits import IsolateLimits
from isolates.single_shot import is_single_shot
from isolates.snapshot import Snapshot
from isolates.split import Split, split
from isolates.wasm_binary import NotUnderstood

Progress = Callable[[str], None]

#: Start-up that takes less than this is not worth another program.
SNAPSHOT_CPU_MS_MIN = 2.0
#: What says that a component is at fault, whatever its shape: compiling it in another one would not help.
_FINAL = frozenset({"wasi03", "unknownImport", "missingExport"})


def prepared(component: bytes) -> tuple[Split | None, bool]:
    """The component as it is compiled: bytes in bulk, memory measurable, engine and data apart. None: as it came.

    And whether it is known to answer one request only.
    """
    single_shot = False
    try:
        root = Root.parse(component)
        single_shot = is_single_shot(root)
        bulk_bytes.rewrite(root)
        memory_probe.add(root)
        return split(root), single_shot
    except (NotUnderstood, LookupError, ValueError, RecursionError):
        # Not an error of the component: it is made in a way that this host does not take apart.
        return None, single_shot


def compile_and_start(
    component: bytes, store: ArtifactStore, limits: IsolateLimits, progress: Progress = lambda phase: None
) -> Compiled | Rejected:
    """Compile ``component`` into ``store``, check it, and start it once under the limits' startup CPU."""
    box = sandbox()
    shape, single_shot = prepared(component)
    result: Compiled | Rejected | None = None
    for tried in [*([shape] if shape is not None else []), Split(component, ())]:
        result = _compile(box, component, tried, store, limits, progress)
        if isinstance(result, Compiled) or result.code in _FINAL:
            break
    assert result is not None
    if isinstance(result, Rejected):
        return result
    if result.startup_cpu_ms >= SNAPSHOT_CPU_MS_MIN:
        progress("keeping what start-up leaves")
        result = _from_snapshot(box, component, result, store, limits, progress)
    result = replace(result, single_shot=single_shot)
    store.install(result)
    return result


def _from_snapshot(
    box: Sandbox, component: bytes, started: Compiled, store: ArtifactStore, limits: IsolateLimits, progress: Progress
) -> Compiled:
    """The component compiled once more with its start-up done, if that can be had; else what there is."""
    done = with_snapshot(box, component, limits)
    shape, _ = prepared(done) if done is not None else (None, False)
    if shape is None:
        return started
    result = _compile(box, component, shape, store, limits, progress)
    if isinstance(result, Rejected) or result.startup_cpu_ms >= started.startup_cpu_ms:
        return started
    return replace(result, snapshot_saves_ms=started.startup_cpu_ms - result.startup_cpu_ms)


def with_snapshot(box: Sandbox, component: bytes, limits: IsolateLimits) -> bytes | None:
    """The component with its start-up done, where that is the same program and worth it. None: leave it as it is."""
    try:
        snapshot = Snapshot(component)
        instrumented = snapshot.instrumented()
        with tempfile.NamedTemporaryFile(suffix=".cwasm") as file:
            file.write(Component(box.engine, instrumented).serialize())
            file.flush()
            isolate = Isolate.start(
                box, Mapped(box, Path(file.name), digest_of(component)), limits, secrets.token_bytes
            )
        if isinstance(isolate, StartFailed):
            return None
        try:
            if isolate.guest.host_calls or isolate.guest.resources:
                return None  # it asked the host for something: another start might be told something else
            return snapshot.applied(snapshot.read(_Shown(isolate)))
        finally:
            isolate.close()
    except (NotUnderstood, LookupError, ValueError, RecursionError, WasmtimeError, GuestTrap):
        return None


class _Shown:
    """The state of an instrumented isolate, for ``Snapshot.read``."""

    def __init__(self, isolate: Isolate) -> None:
        self._isolate = isolate

    def __call__(self, export: str) -> int:
        value: int = self._isolate.ask(export, [], "u64")
        return value

    def piece(self, export: str, at: int, size: int) -> bytes:
        data: bytes = self._isolate.ask(export, [("u32", at), ("u32", size)], "latin1")
        return data


def _compile(
    box: Sandbox, component: bytes, shape: Split, store: ArtifactStore, limits: IsolateLimits, progress: Progress
) -> Compiled | Rejected:
    binaries = [(shape.skeleton, False), *((part.binary, part.shared) for part in shape.parts)]
    pieces: list[Piece] = []
    try:
        for i, (binary, shared) in enumerate(binaries):
            kind = Module if i else Component
            piece = store.kept(digest_of(binary), shared=shared)
            if piece is None:
                progress(f"compiling {i + 1} of {len(binaries)}, {len(binary):,} bytes")
                artifact = bytes(kind(box.engine, binary).serialize())
                piece = Piece(digest_of(binary), digest_of(artifact), len(artifact), shared)
                store.install_piece(piece, artifact)
            pieces.append(piece)
    except WasmtimeError as broken:
        cause = cause_of(str(broken)).removesuffix(".")
        return Rejected("invalid", f"The component does not compile: {cause}.", "Check it: wasm-tools validate.")
    skeleton, *modules = (store.piece_path(piece.source_digest) for piece in pieces)
    parts = {part.name for part in shape.parts}
    checked = Component.deserialize_file(box.engine, str(skeleton))
    rejected = rejected_by_type(box, checked, parts)
    if rejected is not None:
        return rejected
    progress("starting")
    deserialized = [Module.deserialize_file(box.engine, str(path)) for path in modules]
    is_prepared = shape.skeleton != component
    mapped = Mapped(box, skeleton, digest_of(component), deserialized, prepared=is_prepared)
    started = Isolate.start(box, mapped, limits, secrets.token_bytes)
    if isinstance(started, StartFailed):
        return Rejected("startFailed", f"The component does not start: {started.reason}", started.advice)
    started.close()
    imports = tuple(sorted(set(checked.type.imports(box.engine)) - parts))
    return Compiled(
        digest_of(component), len(component), tuple(pieces), imports, started.start_cpu_ms, started.start_wall_ms,
        prepared=is_prepared,
    )  # fmt: skip


def main(arguments: list[str]) -> int:
    """The compile process."""
    source, directory, startup_cpu_ms, memory_bytes = arguments

    def say(plain: object) -> None:
        print(json.dumps(plain), flush=True)

    result = compile_and_start(
        Path(source).read_bytes(),
        ArtifactStore(Path(directory)),
        IsolateLimits(startup_cpu_ms=float(startup_cpu_ms), memory_bytes_max=int(memory_bytes)),
        lambda phase: say({"progress": phase}),
    )
    if isinstance(result, Compiled):
        say({"compiled": json.loads(encode_compiled(result))})
    else:
        say({"rejected": asdict(result)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
