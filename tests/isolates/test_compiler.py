"""From a component to something that can be mapped, or a reason."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from wasmtime import wat2wasm
from wasmtime.component import Component

from isolates.acceptance import Rejected
from isolates.artifact import ArtifactStore, Compiled, Piece, decode_compiled, digest_of
from isolates.compiler import compile_and_start, prepared
from isolates.engine import Sandbox
from isolates.limits import MIB, IsolateLimits
from isolates.rehearsal import marked
from isolates.wasm_binary import COMPONENT_PREAMBLE
from tests.isolates.conftest import ROOT
from tests.isolates.guest_text import handler

HELLO = ROOT / "workers" / "zig" / "hello" / "worker.wasm"


class TestCompile:
    def outcome(self, tmp_path: Path, component: bytes, startup_cpu_ms: float = 5_000) -> Compiled | Rejected:
        limits = IsolateLimits(startup_cpu_ms=startup_cpu_ms, memory_bytes_max=32 * MIB)
        return compile_and_start(component, ArtifactStore(tmp_path), limits)

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
        for data in (broken, COMPONENT_PREAMBLE + b"\x01\x02\x03"):
            rejected = self.outcome(tmp_path, data)
            assert isinstance(rejected, Rejected)
            assert rejected.code == "invalid"
            assert "out of bounds" in rejected.message or "unexpected" in rejected.message
            assert "\n" not in str(rejected)

    def in_a_process(self, source: Path, folder: Path) -> list[dict[str, Any]]:
        limits = ["5000", str(24 * MIB), str(32 * MIB)]
        command = [sys.executable, "-m", "isolates.compiler", str(source), str(folder), *limits]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_in_a_process_of_its_own(self, tmp_path: Path, box: Sandbox) -> None:
        """As the deploy does it: what comes out can be mapped here."""
        *progress, last = self.in_a_process(HELLO, tmp_path)
        assert [line["progress"].split(",")[0] for line in progress] == ["compiling 1 of 1", "starting"]
        store, digest = ArtifactStore(tmp_path), digest_of(HELLO.read_bytes())
        compiled = decode_compiled(json.dumps(last["compiled"]).encode())
        assert compiled == store.compiled(digest)
        assert compiled.component_digest == digest
        assert compiled.artifact_bytes == store.piece_path(compiled.pieces[0].source_digest).stat().st_size
        assert "wasi:http/types@0.2.10" in compiled.imports
        assert compiled.startup_cpu_ms > 0
        assert store.map(box, digest).digest == digest

    def test_what_was_compiled_before_is_not_compiled_again(self, tmp_path: Path) -> None:
        self.in_a_process(HELLO, tmp_path)
        progress, _ = self.in_a_process(HELLO, tmp_path)
        assert progress == {"progress": "starting"}

    def test_a_damaged_piece_is_compiled_again(self, tmp_path: Path) -> None:
        self.in_a_process(HELLO, tmp_path)
        (piece,) = ArtifactStore(tmp_path).directory.glob("*.cwasm")
        whole = piece.read_bytes()
        piece.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        progress, *_ = self.in_a_process(HELLO, tmp_path)
        assert progress["progress"].startswith("compiling 1 of 1")

    def test_a_refusal_in_a_process_of_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "source").write_bytes(bytes(wat2wasm("(component)")))
        *_, last = self.in_a_process(tmp_path / "source", tmp_path)
        assert last["rejected"]["code"] == "missingExport"


class TestWhatIsLeft:
    """Of all that is compiled on the way, the store keeps what the result names."""

    #: Start-up that is worth a snapshot, and asks nobody.
    SLOW = """(func $start (local $i i32) (local.set $i (i32.const 30000000))
      (loop $more (local.set $i (i32.sub (local.get $i) (i32.const 1)))
        (i32.store (i32.const 0) (local.get $i)) (br_if $more (local.get $i))))
      (start $start)"""

    def component(self, items: str = "") -> bytes:
        return bytes(wat2wasm(handler(core_items=items)))

    def left(self, store: ArtifactStore) -> set[str]:
        return {file.name for file in store.directory.iterdir()}

    def named(self, compiled: Compiled) -> set[str]:
        pieces = {piece.source_digest + suffix for piece in compiled.pieces for suffix in (".cwasm", ".sha256")}
        return {*pieces, compiled.component_digest + ".json"}

    def made(self, component: bytes, store: ArtifactStore) -> Compiled:
        made = compile_and_start(component, store, IsolateLimits(startup_cpu_ms=5_000))
        assert isinstance(made, Compiled), made
        return made

    def test_of_a_snapshot_only_the_component_with_its_start_up_done(self, tmp_path: Path) -> None:
        store = ArtifactStore(tmp_path)
        made = self.made(self.component(self.SLOW), store)
        assert made.snapshot_saves_ms > 0
        assert self.left(store) == self.named(made)

    @pytest.mark.parametrize("body", ["", "unreachable"])
    def test_of_a_rehearsal_that_nobody_answers_only_what_runs_as_it_came(self, body: str, tmp_path: Path) -> None:
        store = ArtifactStore(tmp_path)
        made = self.made(marked(bytes(wat2wasm(handler(body=body)))), store)
        assert self.left(store) == self.named(made)

    def test_of_what_is_refused_nothing(self, tmp_path: Path) -> None:
        store = ArtifactStore(tmp_path)
        refused = compile_and_start(
            self.component("(func $s unreachable) (start $s)"), store, IsolateLimits(startup_cpu_ms=20)
        )
        assert isinstance(refused, Rejected)
        assert self.left(store) == set()

    def test_what_was_there_before_stays(self, tmp_path: Path, box: Sandbox) -> None:
        """Somebody else may have it, though this component does not in the end."""
        store = ArtifactStore(tmp_path)
        shape, _ = prepared(self.component(self.SLOW))
        assert shape is not None
        artifact = bytes(Component(box.engine, shape.skeleton).serialize())
        before = Piece(digest_of(shape.skeleton), digest_of(artifact), len(artifact), shared=False)
        store.install_piece(before, artifact)
        made = self.made(self.component(self.SLOW), store)
        assert before not in made.pieces
        assert store.missing([before]) == []

    def test_what_was_there_and_was_damaged_is_mended_and_stays(self, tmp_path: Path, box: Sandbox) -> None:
        store = ArtifactStore(tmp_path)
        shape, _ = prepared(self.component(self.SLOW))
        assert shape is not None
        artifact = bytes(Component(box.engine, shape.skeleton).serialize())
        before = Piece(digest_of(shape.skeleton), digest_of(artifact), len(artifact), shared=False)
        store.install_piece(before, artifact)
        store.piece_path(before.source_digest).write_bytes(artifact[:-1])
        self.made(self.component(self.SLOW), store)
        assert store.missing([before]) == []
