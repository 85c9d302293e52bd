"""The compile process: from a component to pieces that can be mapped.

Compiling takes seconds and hundreds of megabytes, and its input is hostile, so it has a process of its own, with a time
limit that its caller keeps. The first start of the guest happens there too, under the startup limit. A component is
compiled in the shape that ``prepared`` gives it; where that does not work out, it is compiled as it came.

Where start-up takes long and asks nothing of the host, it is run here for the last time (``snapshot``).

Pieces that the store has already are not compiled again: that is what makes the second deploy of a toolchain fast.
What was compiled only to look at it (the instrumented form, shapes that did not start) goes when the result is known.
One process at a time compiles into a store.

    python -m isolates.compiler COMPONENT STORE STARTUP_CPU_MS MEMORY_SOFT_BYTES MEMORY_BYTES

prints one JSON object a line: ``{"progress": "..."}`` any number of times, then ``{"compiled": {...}}`` or
``{"rejected": {...}}``, or ``{"disk": errno}`` when the store's disk did not take it.
"""

import json
import secrets
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from wasmtime import Module, WasmtimeError
from wasmtime.component import Component

from isolates import bulk_bytes, dead_exports, immortal, memory_probe
from isolates.acceptance import Rejected, rejected_by_type
from isolates.artifact import ArtifactStore, Compiled, Mapped, Piece, digest_of, encode_compiled
from isolates.component_binary import Root
from isolates.component_value import GuestTrap, integer, latin1
from isolates.disk import disk_trouble
from isolates.engine import Sandbox, cause_of, sandbox
from isolates.isolate import Isolate, StartFailed
from isolates.limits import IsolateLimits
from isolates.outcome import Outcome
from isolates.rehearsal import LISTING_MARK, REHEARSALS, Rehearsal, is_marked
from isolates.single_shot import is_single_shot
from isolates.snapshot import Snapshot, State
from isolates.split import Split, split
from isolates.wasm_binary import NotUnderstood

Progress = Callable[[str], None]

#: Start-up that takes less than this is not worth another program.
SNAPSHOT_CPU_MS_MIN = 5.0
#: What one rehearsed request may take: an engine's first requests, on a machine that compiles beside it.
_REHEARSAL_CPU_MS = 2_000.0
#: What says that a component is at fault, whatever its shape: compiling it in another one would not help.
_FINAL = frozenset({"wasi03", "unknownImport", "missingExport"})
#: What the exports of a snapshot pass.
_U32, _U64, _LATIN1 = integer("u32"), integer("u64"), latin1()


def prepared(component: bytes) -> tuple[Split | None, bool]:
    """The component as it is compiled: bytes in bulk, memory measurable, engine and data apart. None: as it came.

    And whether it is known to answer one request only.
    """
    single_shot = False
    try:
        root = Root.parse(component)
        single_shot = is_single_shot(root)
        _rewrite(root)
        dead_exports.strip(root)
        return split(root), single_shot
    except _NOT_OURS:
        # Not an error of the component: it is made in a way that this host does not take apart.
        return None, single_shot


def rewritten(component: bytes) -> Split | None:
    """The component with bytes in bulk and its memory measurable, in one piece. None: as it came."""
    try:
        root = Root.parse(component)
        _rewrite(root)
        return Split(root.encode(), ())
    except _NOT_OURS:
        return None


def _rewrite(root: Root) -> None:
    bulk_bytes.rewrite(root)
    memory_probe.add(root)


#: What taking apart a component that is made in another way, or is none, can raise.
_NOT_OURS = (NotUnderstood, LookupError, ValueError, RecursionError)


def compile_and_start(
    component: bytes,
    store: ArtifactStore,
    limits: IsolateLimits,
    progress: Progress = lambda phase: None,
    *,
    snapshot_cpu_ms_min: float = SNAPSHOT_CPU_MS_MIN,
) -> Compiled | Rejected:
    """Compile ``component`` into ``store``, check it, and start it once under the limits' startup CPU."""
    job = _Job(sandbox(), component, store, limits, progress, snapshot_cpu_ms_min)
    named: tuple[Piece, ...] = ()
    try:
        result = job.result()
        if isinstance(result, Compiled):
            store.install(result)
            named = result.pieces
        return result
    finally:
        job.remove_all_but(named)


class _Job:
    """One component on its way."""

    def __init__(
        self,
        box: Sandbox,
        component: bytes,
        store: ArtifactStore,
        limits: IsolateLimits,
        progress: Progress,
        snapshot_cpu_ms_min: float,
    ) -> None:
        self._box = box
        self._component = component
        self._store = store
        self._limits = limits
        self._progress = progress
        self._snapshot_cpu_ms_min = snapshot_cpu_ms_min
        self._single_shot = False
        #: What the worker's glue lists of its interpreter's objects; nothing where it was not asked, or told nonsense.
        self._objects = b""
        #: Source digests of the pieces that the store did not have before.
        self._new: set[str] = set()

    def result(self) -> Compiled | Rejected:
        """The component as it is after a rehearsal, if its build vouches for one; else as it came."""
        return (self._rehearsed() if is_marked(self._component) else None) or self._as_it_came()

    def remove_all_but(self, pieces: Collection[Piece]) -> None:
        """Remove what this job put into the store, except ``pieces``."""
        for source_digest in self._new.difference(piece.source_digest for piece in pieces):
            self._store.remove_piece(source_digest)

    def _shapes(self) -> Iterator[Split]:
        """The shapes that the component may run in, the best first. The next is made when one did not work out."""
        shape, self._single_shot = prepared(self._component)
        if shape is not None:
            yield shape
        whole = rewritten(self._component) if shape is None or shape.parts else None
        if whole is not None:
            yield whole
        yield Split(self._component, ())

    def _as_it_came(self) -> Compiled | Rejected:
        """The component in the best shape that it runs in, without its start-up where that can be."""
        result: Compiled | Rejected | None = None
        for shape in self._shapes():
            result = self._compile(shape)
            if isinstance(result, Compiled) or result.code in _FINAL:
                break
        assert result is not None
        if isinstance(result, Rejected):
            return result
        if result.startup_cpu_ms >= self._snapshot_cpu_ms_min:
            self._progress("keeping what start-up leaves")
            result = self._from_snapshot(result)
        return replace(result, single_shot=self._single_shot)

    def _from_snapshot(self, started: Compiled) -> Compiled:
        """The component compiled once more with its start-up done, if that can be had; else what there is."""
        shape = self._after(lambda isolate: True, vouched=False)
        result = self._compile(shape) if shape is not None else None
        if not isinstance(result, Compiled) or result.startup_cpu_ms >= started.startup_cpu_ms:
            return started
        return replace(result, snapshot_saves_ms=started.startup_cpu_ms - result.startup_cpu_ms)

    def _rehearsed(self) -> Compiled | None:
        """The component as it is after a few requests that its own glue answers. None: it has to run as it came."""
        if is_marked(self._component, LISTING_MARK):
            shape = self._after(self._rehearse_and_list, vouched=True)
            # Tried out as it is stored: what its glue says of its memory may be wrong.
            tried = self._compile(shape, self._rehearse) if shape is not None else None
            if isinstance(tried, Compiled):
                return tried
            self._objects = b""
        shape = self._after(self._rehearse, vouched=True)
        result = self._compile(shape) if shape is not None else None
        return result if isinstance(result, Compiled) else None

    def _rehearse(self, isolate: Isolate) -> bool:
        """Whether all rehearsed requests were answered."""
        self._progress("rehearsing")
        for path, body in REHEARSALS:
            rehearsal = Rehearsal(path, body)
            finished = isolate.run(rehearsal)
            if finished.outcome is not Outcome.OK or not rehearsal.finished or finished.logs:
                return False
        return True

    def _rehearse_and_list(self, isolate: Isolate) -> bool:
        """Rehearse, and have the glue list its interpreter's objects. Whether all of that was answered."""
        if not self._rehearse(isolate):
            return False
        listing = Rehearsal(immortal.PATH, b"")
        finished = isolate.run(listing)
        self._objects = bytes(listing.body)
        return finished.outcome is Outcome.OK and listing.finished and len(self._objects) > 0

    def _kept(self, state: State) -> State:
        """The state of a snapshot as isolates get it."""
        if not self._objects:
            return state
        memories = [memory and immortal.with_immortals(memory, self._objects) for memory in state.memories]
        if any(memory is None and before is not None for memory, before in zip(memories, state.memories, strict=True)):
            raise NotUnderstood("a list of objects that is none of this memory")
        return State(memories, state.globals)

    def _after(self, life: Callable[[Isolate], bool], *, vouched: bool) -> Split | None:
        """The component as it is after a start and ``life``, prepared; None where that can not be had.

        Of a component that nobody vouches for, that is when its start-up asked the host for something: another start
        might be told something else.
        """
        try:
            snapshot = Snapshot(self._component, vouched=vouched)
            instrumented, _ = prepared(snapshot.instrumented())
            if instrumented is None:
                return None
            _, mapped = self._mapped(instrumented)
            limits = replace(self._limits, cpu_ms=_REHEARSAL_CPU_MS)
            isolate = Isolate.start(self._box, mapped, limits, secrets.token_bytes)
            if isinstance(isolate, StartFailed):
                return None
            try:
                if (not vouched and isolate.guest.host_calls) or not life(isolate) or isolate.guest.resources:
                    return None
                return prepared(snapshot.applied(self._kept(snapshot.read(Shown(isolate)))))[0]
            finally:
                isolate.close()
        except (*_NOT_OURS, WasmtimeError, GuestTrap, _Unacceptable):
            return None

    def _compile(self, shape: Split, life: Callable[[Isolate], bool] = lambda isolate: True) -> Compiled | Rejected:
        """Compile and start the component in one shape, and see that it survives ``life``."""
        try:
            pieces, mapped = self._mapped(shape)
        except WasmtimeError as broken:
            cause = cause_of(str(broken)).removesuffix(".")
            return Rejected("invalid", f"The component does not compile: {cause}.", "Check it: wasm-tools validate.")
        except _Unacceptable as unacceptable:
            return unacceptable.rejected
        self._progress("starting")
        limits = replace(self._limits, cpu_ms=_REHEARSAL_CPU_MS)
        started = Isolate.start(self._box, mapped, limits, secrets.token_bytes)
        if isinstance(started, StartFailed):
            return Rejected("startFailed", f"The component does not start: {started.reason}", started.advice)
        try:
            survived = life(started)
        finally:
            started.close()
        if not survived:
            return Rejected("startFailed", "The component does not answer after its rehearsal.", "")
        imports = set(mapped.component.type.imports(self._box.engine)) - {part.name for part in shape.parts}
        return Compiled(
            digest_of(self._component), len(self._component), tuple(pieces), tuple(sorted(imports)),
            started.start_cpu_ms, started.start_wall_ms, prepared=mapped.prepared,
        )  # fmt: skip

    def _mapped(self, shape: Split) -> tuple[list[Piece], Mapped]:
        """The pieces of a shape, compiled unless the store has them, and mapped. Checked before it can be started."""
        binaries = [(shape.skeleton, False), *((part.binary, part.shared) for part in shape.parts)]
        pieces: list[Piece] = []
        for i, (binary, shared) in enumerate(binaries):
            piece = self._store.kept(digest_of(binary), shared=shared)
            if piece is None:
                self._progress(f"compiling {i + 1} of {len(binaries)}, {len(binary):,} bytes")
                artifact = bytes((Module if i else Component)(self._box.engine, binary).serialize())
                piece = Piece(digest_of(binary), digest_of(artifact), len(artifact), shared)
                if self._store.install_piece(piece, artifact):
                    self._new.add(piece.source_digest)
            pieces.append(piece)
        skeleton, *modules = (self._store.piece_path(piece.source_digest) for piece in pieces)
        checked = Component.deserialize_file(self._box.engine, str(skeleton))
        rejected = rejected_by_type(self._box, checked, {part.name for part in shape.parts})
        if rejected is not None:
            raise _Unacceptable(rejected)
        deserialized = [Module.deserialize_file(self._box.engine, str(path)) for path in modules]
        is_prepared = shape.skeleton != self._component
        return pieces, Mapped(self._box, skeleton, digest_of(self._component), deserialized, prepared=is_prepared)


class _Unacceptable(Exception):
    """A component that may not be started, whatever its shape."""

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(str(rejected))
        self.rejected = rejected


class Shown:
    """The state of an instrumented isolate, for ``Snapshot.read``."""

    def __init__(self, isolate: Isolate) -> None:
        self._isolate = isolate

    def __call__(self, export: str) -> int:
        value: int = self._isolate.ask(export, [], _U64)
        return value

    def piece(self, export: str, at: int, size: int) -> bytes:
        data: bytes = self._isolate.ask(export, [(_U32, at), (_U32, size)], _LATIN1)
        return data


def main(arguments: list[str]) -> int:
    """The compile process."""
    source, directory, startup_cpu_ms, soft_bytes, memory_bytes = arguments
    limits = IsolateLimits(
        startup_cpu_ms=float(startup_cpu_ms), memory_soft_bytes=int(soft_bytes), memory_bytes_max=int(memory_bytes)
    )

    def say(plain: object) -> None:
        print(json.dumps(plain), flush=True)

    try:
        result = compile_and_start(
            Path(source).read_bytes(),
            ArtifactStore(Path(directory)),
            limits,
            lambda phase: say({"progress": phase}),
        )
    except OSError as failed:
        if not disk_trouble(failed):
            raise
        say({"disk": failed.errno})
        return 1
    if isinstance(result, Compiled):
        say({"compiled": json.loads(encode_compiled(result))})
    else:
        say({"rejected": asdict(result)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
