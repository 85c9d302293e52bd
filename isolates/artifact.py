"""Compiled components, as files that are mapped.

A compiled component is a few *pieces*, each the compiled code of one binary: the component's skeleton, and the core
modules that were taken out of it (``split``). A piece is named by the digest of what it was compiled from, so the
engine that a thousand JavaScript workers share is one file, mapped once. The *manifest* of a component (``Compiled``)
names its pieces with the digests that they must have; it is written last and removed first, so a component is here
when its manifest is.

A piece is native code and is trusted when it is mapped. So its directory belongs to the host alone (0700), lies under
the engine's fingerprint, a piece is checked against the digest that the deploy announced when it is installed and again
when the machine joins (``sound``), and a component from outside is never accepted in compiled form. Checking 30 MB at
each start would cost more than the start, so at mapping time only owner, mode and size are looked at.
"""

import hashlib
import os
import re
import stat
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec
from wasmtime import Module
from wasmtime.component import Component

from isolates.acceptance import handle_index
from isolates.brevity import Brevity
from isolates.engine import Sandbox, fingerprint
from isolates.linkers import BoundPart
from isolates.memory_probe import MEMORY_PAGES
from isolates.split import PART_NAME

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")

#: Beside a piece: the digest that it must have.
_DIGEST_SUFFIX = ".sha256"

#: Mapped components kept open per process. A mapping costs address space and a few kernel structures, no memory of its
#: own; 4,096 of them, three mappings each, stay below the kernel's limit of 65,530 mappings with room for isolates.
MAPPED_MAX = 4_096
#: Pieces remembered as checked, some 200 bytes each.
CHECKED_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Piece:
    """One file of compiled code. ``shared``: no tenant's data is in it, so other components may have it too."""

    source_digest: str
    artifact_digest: str
    artifact_bytes: int
    shared: bool


@dataclass(frozen=True, slots=True)
class Compiled:
    """A component that compiled, was checked, and started once. ``pieces``: itself, then the modules it imports."""

    component_digest: str
    component_bytes: int
    pieces: tuple[Piece, ...]
    imports: tuple[str, ...]
    startup_cpu_ms: float
    startup_wall_ms: float
    #: It was taken apart and rewritten for this host (``compiler.prepared``), so the added exports are this host's own.
    prepared: bool = False
    #: It answers one request and no more, so it gets a fresh isolate for each.
    single_shot: bool = False
    #: CPU that a start does not take any more because start-up was done at deploy; 0 without a snapshot.
    snapshot_saves_ms: float = 0.0

    @property
    def artifact_bytes(self) -> int:
        """Bytes of compiled code, shared pieces included."""
        return sum(piece.artifact_bytes for piece in self.pieces)

    @property
    def own_bytes(self) -> int:
        """Bytes of compiled code that this component alone has."""
        return sum(piece.artifact_bytes for piece in self.pieces if not piece.shared)


def digest_of(data: bytes) -> str:
    """SHA-256 of ``data``, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def encode_compiled(compiled: Compiled) -> bytes:
    """The manifest as JSON."""
    return msgspec.json.encode(compiled)


def decode_compiled(data: bytes) -> Compiled:
    """The manifest in ``data``. ``ValueError`` when it is none."""
    return msgspec.json.decode(data, type=Compiled)


def _written_s(file: Path) -> float:
    """When a file was written, as Unix time; never for one that has just gone."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


class Mapped:
    """A mapped component: compiled code that isolates can be started from."""

    __slots__ = ("_modules", "brevity", "component", "digest", "handler", "memory_pages", "parts", "prepared")

    def __init__(
        self, box: Sandbox, path: Path, digest: str, modules: Iterable[Module] = (), *, prepared: bool = False
    ) -> None:
        self.digest = digest
        self.prepared = prepared
        self.brevity = Brevity()
        self.component = Component.deserialize_file(box.engine, str(path))
        self._modules = tuple(modules)
        #: The modules for the skeleton's imports. The same object each time: linkers know a version by it.
        self.parts: tuple[BoundPart, ...] = tuple(
            (f"{PART_NAME}{i}".encode(), module.ptr()) for i, module in enumerate(self._modules)
        )
        self.handler = handle_index(box, self.component)
        self.memory_pages = self.component.get_export_index(MEMORY_PAGES) if prepared else None


class ArtifactStore:
    """The compiled components of one machine, or of a cluster's ControlPlane, by the digest of the component."""

    def __init__(self, directory: Path, *, mapped_max: int = MAPPED_MAX) -> None:
        self.directory = directory / fingerprint()
        self._mapped_max = mapped_max
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._mapped: OrderedDict[str, Mapped] = OrderedDict()
        #: Files whose bytes were read and found right, as the file system knew them then: not read again until changed.
        self._checked: dict[str, tuple[str, int, int, int]] = {}
        self._modules: WeakValueDictionary[str, Module] = WeakValueDictionary()
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------------------------------ files

    def path(self, component_digest: str) -> Path:
        """Where the manifest of a component is, whether it is there or not."""
        return self._file(component_digest, ".json")

    def piece_path(self, source_digest: str) -> Path:
        """Where a piece is, whether it is there or not."""
        return self._file(source_digest, ".cwasm")

    def _file(self, digest: str, suffix: str) -> Path:
        if not _DIGEST.match(digest):
            raise ValueError("a digest is 64 hex digits")
        return self.directory / f"{digest}{suffix}"

    def has(self, component_digest: str) -> bool:
        """Whether the component is here, with all its pieces."""
        return self.path(component_digest).exists()

    def compiled(self, component_digest: str) -> Compiled | None:
        """The manifest of a component, if it is here. One that can not be read is none."""
        try:
            return decode_compiled(self.path(component_digest).read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def missing(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Those of ``pieces`` that are not here as they should be."""
        return [piece for piece in pieces if not self._is(piece)]

    def _is(self, piece: Piece) -> bool:
        """Whether the piece's file has its digest. A file of another one goes: nothing may map it."""
        path = self.piece_path(piece.source_digest)
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                state = (piece.artifact_digest, found.st_ino, found.st_size, found.st_mtime_ns)
                if self._checked.get(piece.source_digest) == state:
                    return True
                if hashlib.file_digest(file, "sha256").hexdigest() == piece.artifact_digest:
                    if len(self._checked) >= CHECKED_MAX:
                        self._checked.clear()
                    self._checked[piece.source_digest] = state
                    return True
        except FileNotFoundError:
            return False
        path.unlink(missing_ok=True)
        return False

    def sound(self, component_digest: str) -> bool:
        """Whether the component is here and every byte of it is what it should be. Reads all of it.

        One that is not sound is taken out, to be compiled or fetched again.
        """
        compiled = self.compiled(component_digest)
        if compiled is not None and not self.missing(compiled.pieces):
            return True
        self.path(component_digest).unlink(missing_ok=True)
        return False

    def kept(self, source_digest: str, *, shared: bool) -> Piece | None:
        """The piece that was compiled from this before, if it is here and sound."""
        try:
            artifact_digest = self._file(source_digest, _DIGEST_SUFFIX).read_text()
            artifact_bytes = self.piece_path(source_digest).stat().st_size
        except FileNotFoundError:
            return None
        piece = Piece(source_digest, artifact_digest, artifact_bytes, shared)
        return piece if self._is(piece) else None

    def install_piece(self, piece: Piece, artifact: bytes) -> bool:
        """Put a piece into place, whole or not at all. ``ValueError`` when it is not what it should be.

        Whether it is new: where one of this source was before, sound or not, a manifest may name it.
        """
        if digest_of(artifact) != piece.artifact_digest:
            raise ValueError("the artifact does not have the digest that was announced")
        digest_file = self._file(piece.source_digest, _DIGEST_SUFFIX)
        is_new = not digest_file.exists()
        self._write(self.piece_path(piece.source_digest), artifact)
        self._write(digest_file, piece.artifact_digest.encode())
        return is_new

    def remove_piece(self, source_digest: str) -> None:
        """Remove a piece that no manifest names. Whoever has it mapped keeps it."""
        self.piece_path(source_digest).unlink(missing_ok=True)
        self._file(source_digest, _DIGEST_SUFFIX).unlink(missing_ok=True)

    def install(self, compiled: Compiled) -> None:
        """Make a component usable whose pieces are all here. ``ValueError`` when one is missing."""
        for piece in compiled.pieces:
            if not self._plausible(piece):
                raise ValueError("a piece of the component is missing")
        self._write(self.path(compiled.component_digest), encode_compiled(compiled))

    def _write(self, target: Path, data: bytes) -> None:
        handle, temporary = tempfile.mkstemp(dir=self.directory, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def collect(self, keep: Collection[str], *, before_s: float = float("inf")) -> int:
        """Remove every component that is not in ``keep``, and the pieces that nobody has any more. Bytes freed.

        What was written at ``before_s`` (Unix time) or later stays: a deploy that goes on puts its pieces in place
        before anybody can name them. What is mapped stays usable: the kernel keeps a file's pages until the last
        mapping of it goes.
        """
        pieces: set[str] = set()
        for manifest in sorted(self.directory.glob("*.json")):
            if manifest.stem not in keep and _written_s(manifest) < before_s:
                manifest.unlink(missing_ok=True)
                continue
            compiled = self.compiled(manifest.stem)
            pieces.update(piece.source_digest for piece in (compiled.pieces if compiled else ()))
        freed_bytes = 0
        for file in sorted(self.directory.glob("*.cwasm")):
            if file.stem not in pieces and _written_s(file) < before_s:
                freed_bytes += file.stat().st_size
                self.remove_piece(file.stem)
        return freed_bytes

    # ---------------------------------------------------------------------------------------------------- mapping

    def map(self, box: Sandbox, component_digest: str) -> Mapped:
        """The component, mapped. ``FileNotFoundError`` when this machine does not have it."""
        with self._lock:
            mapped = self._mapped.get(component_digest)
            if mapped is None:
                mapped = self._mapped[component_digest] = self._map(box, component_digest)
                if len(self._mapped) > self._mapped_max:
                    self._mapped.popitem(last=False)
            else:
                self._mapped.move_to_end(component_digest)
            return mapped

    def forget(self, component_digest: str) -> Mapped | None:
        """Keep a component's mapping no longer: it goes with the last reference to it, which may be the result."""
        with self._lock:
            return self._mapped.pop(component_digest, None)

    def _map(self, box: Sandbox, component_digest: str) -> Mapped:
        compiled = self.compiled(component_digest)
        if compiled is None or not all(self._plausible(piece) for piece in compiled.pieces):
            raise FileNotFoundError(component_digest)
        skeleton, *modules = compiled.pieces
        path, parts = self.piece_path(skeleton.source_digest), [self._module(box, module) for module in modules]
        return Mapped(box, path, component_digest, parts, prepared=compiled.prepared)

    def _module(self, box: Sandbox, piece: Piece) -> Module:
        module = self._modules.get(piece.source_digest)
        if module is None:
            path = self.piece_path(piece.source_digest)
            module = self._modules[piece.source_digest] = Module.deserialize_file(box.engine, str(path))
        return module

    def _plausible(self, piece: Piece) -> bool:
        """Whether the piece's file is here, is ours alone to write, and has its size."""
        try:
            found = self.piece_path(piece.source_digest).stat()
        except FileNotFoundError:
            return False
        ours = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return ours and found.st_size == piece.artifact_bytes
