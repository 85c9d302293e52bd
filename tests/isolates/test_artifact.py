"""The store of compiled components: pieces that are shared, manifests that name them, and nothing half there."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from wasmtime import WasmtimeError

from isolates.artifact import ArtifactStore, Compiled, Piece, digest_of
from isolates.engine import Sandbox, fingerprint
from tests.isolates.guest_text import compiled_text, handler


@pytest.fixture(scope="module")
def small(box: Sandbox) -> bytes:
    """A small artifact that can be mapped."""
    return compiled_text(box, handler())


def piece_of(data: bytes, number: int, *, shared: bool = False) -> Piece:
    return Piece(digest_of(f"source {number}".encode()), digest_of(data), len(data), shared)


def component(number: int, *pieces: Piece) -> Compiled:
    return Compiled(digest_of(str(number).encode()), 1, pieces, (), 1.0, 1.0)


def install(store: ArtifactStore, data: bytes, number: int) -> str:
    """A component of one piece; its digest."""
    piece = piece_of(data, number)
    store.install_piece(piece, data)
    made = component(number, piece)
    store.install(made)
    return made.component_digest


class TestStore:
    def test_installed_is_there_under_the_engines_fingerprint(self, small: bytes, tmp_path: Path, box: Sandbox) -> None:
        store = ArtifactStore(tmp_path)
        assert not store.has(digest_of(b"1"))
        digest = install(store, small, 1)
        assert store.has(digest)
        assert store.directory == tmp_path / fingerprint()
        piece = store.piece_path(piece_of(small, 1).source_digest)
        assert piece.read_bytes() == small
        assert store.directory.stat().st_mode & 0o777 == 0o700
        assert piece.stat().st_mode & 0o777 == 0o600
        assert store.map(box, digest) is store.map(box, digest)
        assert store.compiled(digest) == component(1, piece_of(small, 1))

    def test_another_digest_is_refused_and_leaves_nothing(self, small: bytes, tmp_path: Path) -> None:
        store = ArtifactStore(tmp_path)
        with pytest.raises(ValueError, match="digest"):
            store.install_piece(replace(piece_of(small, 1), artifact_digest=digest_of(b"other")), small)
        assert list(store.directory.iterdir()) == []

    def test_a_component_without_all_its_pieces_is_refused(self, small: bytes, tmp_path: Path) -> None:
        store = ArtifactStore(tmp_path)
        here, away = piece_of(small, 1), piece_of(small, 2)
        store.install_piece(here, small)
        assert store.missing([here, away]) == [away]
        with pytest.raises(ValueError, match="missing"):
            store.install(component(1, here, away))
        assert not store.has(component(1).component_digest)

    def test_an_install_that_fails_leaves_nothing(
        self, small: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_room(source: object, target: object) -> None:
            raise OSError("no room")

        store = ArtifactStore(tmp_path)
        monkeypatch.setattr(os, "replace", no_room)
        with pytest.raises(OSError, match="no room"):
            install(store, small, 1)
        assert list(store.directory.iterdir()) == []

    @pytest.mark.parametrize("digest", ["", "../" * 20, "A" * 64, "0" * 63, "0" * 64 + "\n", "0" * 64 + "/.."])
    def test_a_digest_is_no_path(self, digest: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="64 hex digits"):
            ArtifactStore(tmp_path).path(digest)
        with pytest.raises(ValueError, match="64 hex digits"):
            ArtifactStore(tmp_path).piece_path(digest)


class TestSoundness:
    @pytest.mark.parametrize("damage", ["changed", "shorter", "gone"])
    def test_a_damaged_component_is_told_and_taken_out(
        self, damage: str, small: bytes, tmp_path: Path, box: Sandbox
    ) -> None:
        store = ArtifactStore(tmp_path)
        digest = install(store, small, 1)
        assert store.sound(digest)
        path = store.piece_path(piece_of(small, 1).source_digest)
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(small[:-1] + (b"" if damage == "shorter" else bytes([small[-1] ^ 1])))
        assert not store.sound(digest)
        assert not store.has(digest)
        assert not path.exists()
        with pytest.raises(FileNotFoundError):
            store.map(box, digest)
        assert install(store, small, 1) == digest
        assert store.sound(digest)

    def test_what_is_not_here_cannot_be_mapped(self, tmp_path: Path, box: Sandbox) -> None:
        with pytest.raises(FileNotFoundError):
            ArtifactStore(tmp_path).map(box, "0" * 64)

    @pytest.mark.parametrize("fault", ["another size", "others may write"])
    def test_a_piece_that_is_not_as_installed_is_never_mapped(
        self, fault: str, small: bytes, tmp_path: Path, box: Sandbox
    ) -> None:
        store = ArtifactStore(tmp_path)
        digest = install(store, small, 1)
        path = store.piece_path(piece_of(small, 1).source_digest)
        if fault == "another size":
            path.write_bytes(small + b"\0")
        else:
            path.chmod(0o622)
        with pytest.raises(FileNotFoundError):
            store.map(box, digest)

    def test_a_file_of_another_engine_is_refused_and_not_remembered(
        self, small: bytes, tmp_path: Path, box: Sandbox
    ) -> None:
        store = ArtifactStore(tmp_path)
        digest = install(store, b"not an artifact", 1)
        with pytest.raises(WasmtimeError):
            store.map(box, digest)
        assert install(store, small, 1) == digest
        assert store.map(box, digest).digest == digest

    def test_a_manifest_that_cannot_be_read_is_none(self, small: bytes, tmp_path: Path) -> None:
        store = ArtifactStore(tmp_path)
        digest = install(store, small, 1)
        store.path(digest).write_text("{")
        assert store.compiled(digest) is None
        assert not store.sound(digest)


class TestCollect:
    def test_what_nobody_names_goes_and_shared_pieces_stay_as_long_as_one_does(
        self, small: bytes, tmp_path: Path
    ) -> None:
        store = ArtifactStore(tmp_path)
        engine, one, two = (piece_of(small, n, shared=not n) for n in range(3))
        for piece in (engine, one, two):
            store.install_piece(piece, small)
        first, second = component(1, one, engine), component(2, two, engine)
        store.install(first)
        store.install(second)
        assert store.collect(set(), before_s=0.0) == 0, "what was written since then stays"
        assert store.collect({first.component_digest}) == len(small)
        assert store.sound(first.component_digest)
        assert not store.has(second.component_digest)
        assert store.missing([two]) == [two]
        assert store.collect(set()) == 2 * len(small)
        assert list(store.directory.iterdir()) == []


class TestMapping:
    def test_the_least_recently_used_mapping_goes_first(self, small: bytes, tmp_path: Path, box: Sandbox) -> None:
        store = ArtifactStore(tmp_path, mapped_max=2)
        a, b, c = (install(store, small, n) for n in range(3))
        first_a, first_b = store.map(box, a), store.map(box, b)
        assert store.map(box, a) is first_a
        store.map(box, c)  # b goes
        assert store.map(box, a) is first_a
        assert store.map(box, b) is not first_b
