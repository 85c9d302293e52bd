"""What a deploy refuses and how it says so, and the store of what it accepted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from wasmtime import WasmtimeError, wat2wasm
from wasmtime.component import Component

from isolates import artifact
from isolates.artifact import (
    ArtifactStore,
    Compiled,
    Rejected,
    compile_and_start,
    digest_of,
    rejected_by_header,
    rejected_by_type,
)
from isolates.engine import Sandbox, fingerprint
from isolates.limits import MIB
from tests.isolates.conftest import ROOT
from tests.isolates.guest_text import compiled_text, handler

HELLO = ROOT / "workers" / "zig" / "hello" / "worker.wasm"
COMPONENT_HEADER = b"\0asm\x0d\x00\x01\x00"


class TestHeader:
    @pytest.mark.parametrize(
        ("data", "code"),
        [(b"", "notAComponent"), (b"junk", "notAComponent"), (b"\0asm", "notAComponent"),
         (b"(component)", "notAComponent"), (b"\0asm\x01\x00\x00\x00rest", "coreModule"),
         (b"\x7fELF" + bytes(60), "notAComponent"), (bytes(101), "tooLarge"), (COMPONENT_HEADER, None)],
    )  # fmt: skip
    def test_told_without_compiling(self, data: bytes, code: str | None) -> None:
        rejected = rejected_by_header(data, 100)
        assert (rejected and rejected.code) == code
        assert rejected is None or (rejected.message and rejected.advice)

    def test_the_message_says_how_large_it_may_be(self) -> None:
        rejected = rejected_by_header(bytes(2_000), 1_000)
        assert rejected is not None
        assert rejected.message == "The component has 2,000 bytes; the limit is 1,000."

    def test_an_artifact_from_outside_is_no_component(self, box: Sandbox) -> None:
        rejected = rejected_by_header(compiled_text(box, "(component)"), 1 << 30)
        assert rejected is not None
        assert rejected.code == "notAComponent"


EMPTY_HANDLER = '(export "wasi:http/incoming-handler@{}" (instance $i))'
TYPES = {
    "nothing exported": ("(component)", "missingExport", "it exports nothing"),
    "another export": (
        '(component (instance $i) (export "a:b/c@1.0.0" (instance $i)))', "missingExport", "a:b/c@1.0.0"),
    "a handler without handle": (
        f'(component (instance $i) {EMPTY_HANDLER.format("0.2.0")})', "missingExport", "incoming-handler"),
    "a handler of 0.20": (
        f'(component (instance $i) {EMPTY_HANDLER.format("0.20.0")})', "missingExport", "incoming-handler@0.20.0"),
    "an unknown interface": (
        handler(imports='(import "acme:db/query@1.2.0" (instance $q (export "run" (func))))'),
        "unknownImport", "acme:db/query@1.2.0"),
    "an unknown function": (
        handler(imports='(import "wasi:random/random@0.2.0" (instance $q (export "get-dice" (func))))'),
        "unknownImport", "wasi:random/random@0.2.0#get-dice"),
    "an unknown resource": (
        handler(imports='(import "wasi:io/poll@0.2.0" (instance $q (export "epoll" (type (sub resource)))))'),
        "unknownImport", "wasi:io/poll@0.2.0#epoll"),
    "a bare function": (handler(imports='(import "run" (func $run))'), "unknownImport", "run"),
    "four unknown": (
        handler(imports="".join(f'(import "a:b/c{i}@1.0.0" (instance))' for i in range(4))),
        "unknownImport", " and 1 more"),
    "WASI 0.3": (
        '(component (import "wasi:http/types@0.3.0" (instance (export "fields" (type (sub resource))))))',
        "wasi03", "wasi:http/types@0.3.0"),
    "WASI 0.1": (
        handler(imports='(import "wasi:random/random@0.1.0" (instance))'), "unknownImport", "wasi:random/random@0.1.0"),
}  # fmt: skip


class TestType:
    @pytest.mark.parametrize("name", TYPES)
    def test_what_cannot_run_here_is_named(self, name: str, box: Sandbox) -> None:
        text, code, named = TYPES[name]
        rejected = rejected_by_type(box, Component(box.engine, bytes(wat2wasm(text))))
        assert rejected is not None
        assert rejected.code == code
        assert named in str(rejected)

    @pytest.mark.parametrize("version", ["0.2", "0.2.0", "0.2.3", "0.2.12", "0.2.13-rc"])
    def test_every_version_of_the_line_is_known(self, version: str, box: Sandbox) -> None:
        assert box.knows(f"wasi:io/poll@{version}") == {"pollable", "poll", "[method]pollable.ready",
                                                         "[method]pollable.block"}  # fmt: skip

    @pytest.mark.parametrize("name", ["wasi:io/poll", "wasi:io/poll@0.20.0", "wasi:io/poll@0.3.0", "wasi:io/pol@0.2.0"])
    def test_others_are_not(self, name: str, box: Sandbox) -> None:
        assert box.knows(name) is None


class TestCompile:
    def outcome(self, tmp_path: Path, component: bytes, startup_cpu_ms: float = 5_000) -> Compiled | Rejected:
        (tmp_path / "source").write_bytes(component)
        return compile_and_start(
            tmp_path / "source", tmp_path / "out", startup_cpu_ms=startup_cpu_ms, memory_bytes=32 * MIB
        )

    @pytest.mark.parametrize(
        ("parts", "said"),
        [({"core_items": "(func $s unreachable) (start $s)"}, "does not start: wasm trap: wasm `unreachable`"),
         ({"core_items": "(memory $second 1)"}, "or more than one"),
         ({"pages": "1000"}, "more than its 32 MiB"),
         ({"core_items": "(func $s (loop $l (br $l))) (start $s)"}, "more than its 20 ms of startup CPU")],
    )  # fmt: skip
    def test_what_does_not_start_is_refused(self, parts: dict[str, str], said: str, tmp_path: Path) -> None:
        rejected = self.outcome(tmp_path, bytes(wat2wasm(handler(**parts))), startup_cpu_ms=20)
        assert isinstance(rejected, Rejected)
        assert rejected.code == "startFailed"
        assert said in str(rejected)
        assert str(tmp_path) not in str(rejected)

    def test_a_broken_component_is_refused_with_the_cause(self, tmp_path: Path) -> None:
        broken = HELLO.read_bytes()[:-100]
        for data in (broken, COMPONENT_HEADER + b"\x01\x02\x03"):
            rejected = self.outcome(tmp_path, data)
            assert isinstance(rejected, Rejected)
            assert rejected.code == "invalid"
            assert "out of bounds" in rejected.message or "unexpected" in rejected.message
            assert "\n" not in str(rejected)

    def test_in_a_process_of_its_own(self, tmp_path: Path, box: Sandbox) -> None:
        """As the deploy does it: the artifact that comes out is installed and mapped here."""
        target = tmp_path / "out"
        command = [sys.executable, "-m", "isolates.artifact", str(HELLO), str(target), "5000", str(32 * MIB)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
        compiled = json.loads(done.stdout)["compiled"]
        assert compiled["component_digest"] == digest_of(HELLO.read_bytes())
        assert compiled["artifact_digest"] == digest_of(target.read_bytes())
        assert compiled["artifact_bytes"] == target.stat().st_size
        assert "wasi:http/types@0.2.10" in compiled["imports"]
        assert compiled["startup_cpu_ms"] > 0
        store = ArtifactStore(tmp_path)
        store.install(compiled["component_digest"], target.read_bytes(), compiled["artifact_digest"])
        assert store.map(box, compiled["component_digest"]).digest == compiled["component_digest"]

    def test_a_refusal_in_a_process_of_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "source").write_bytes(bytes(wat2wasm("(component)")))
        command = [sys.executable, "-m", "isolates.artifact", str(tmp_path / "source"), str(tmp_path / "o"), "400", "9"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(done.stdout)["rejected"]["code"] == "missingExport"


@pytest.fixture(scope="module")
def small(box: Sandbox) -> bytes:
    """A small artifact that can be mapped."""
    return compiled_text(box, handler())


class TestStore:
    def install(self, store: ArtifactStore, data: bytes, number: int) -> str:
        store.install(digest := digest_of(str(number).encode()), data, digest_of(data))
        return digest

    def test_installed_is_there_under_the_engines_fingerprint(self, small: bytes, tmp_path: Path, box: Sandbox) -> None:
        store = ArtifactStore(tmp_path)
        digest = digest_of(b"1")
        assert not store.has(digest)
        assert self.install(store, small, 1) == digest
        assert store.has(digest)
        assert store.path(digest) == tmp_path / fingerprint() / f"{digest}.cwasm"
        assert store.path(digest).read_bytes() == small
        assert store.directory.stat().st_mode & 0o777 == 0o700
        assert store.path(digest).stat().st_mode & 0o777 == 0o600
        assert store.map(box, digest) is store.map(box, digest)

    def test_another_digest_is_refused_and_leaves_nothing(self, small: bytes, tmp_path: Path) -> None:
        store = ArtifactStore(tmp_path)
        with pytest.raises(ValueError, match="digest"):
            store.install(digest_of(b"1"), small, digest_of(b"other"))
        assert list(store.directory.iterdir()) == []

    def test_an_install_that_fails_leaves_nothing(
        self, small: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_room(source: object, target: object) -> None:
            raise OSError("no room")

        store = ArtifactStore(tmp_path)
        monkeypatch.setattr(os, "replace", no_room)
        with pytest.raises(OSError, match="no room"):
            self.install(store, small, 1)
        assert list(store.directory.iterdir()) == []

    @pytest.mark.parametrize("digest", ["", "../" * 20, "A" * 64, "0" * 63, "0" * 64 + "\n", "0" * 64 + "/.."])
    def test_a_digest_is_no_path(self, digest: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="64 hex digits"):
            ArtifactStore(tmp_path).path(digest)

    def test_what_is_not_here_cannot_be_mapped(self, tmp_path: Path, box: Sandbox) -> None:
        with pytest.raises(FileNotFoundError):
            ArtifactStore(tmp_path).map(box, "0" * 64)

    def test_a_file_of_another_engine_is_refused_and_not_remembered(
        self, small: bytes, tmp_path: Path, box: Sandbox
    ) -> None:
        store = ArtifactStore(tmp_path)
        digest = self.install(store, b"not an artifact", 1)
        with pytest.raises(WasmtimeError):
            store.map(box, digest)
        store.install(digest, small, digest_of(small))
        assert store.map(box, digest).digest == digest

    def test_the_least_recently_used_mapping_goes_first(
        self, small: bytes, tmp_path: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(artifact, "MAPPED_MAX", 2)
        store = ArtifactStore(tmp_path)
        a, b, c = (self.install(store, small, n) for n in range(3))
        first_a, first_b = store.map(box, a), store.map(box, b)
        assert store.map(box, a) is first_a
        store.map(box, c)  # b goes
        assert store.map(box, a) is first_a
        assert store.map(box, b) is not first_b
