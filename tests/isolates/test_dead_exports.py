"""Exports that nobody asks for go, all others stay, and the component does what it did."""

import math
import os
from pathlib import Path

import pytest
from wasmtime import wat2wasm
from wasmtime.component import Component

from isolates import component_binary as binary
from isolates.artifact import ArtifactStore, Compiled
from isolates.compiler import compile_and_start, prepared
from isolates.component_binary import Item, Root
from isolates.dead_exports import strip
from isolates.engine import Sandbox
from isolates.limits import IsolateLimits
from isolates.outcome import Outcome
from isolates.split import SHARED_CODE_BYTES_MIN
from isolates.wasm_binary import COMPONENT_PREAMBLE, CoreModule, sections
from tests.isolates.answering_guest import answering
from tests.isolates.conftest import ROOT, Start
from tests.scripted_conversation import ScriptedConversation

#: The example workers that are in the repository. What a toolchain made beside them has megabytes.
WORKERS = sorted(path for path in ROOT.glob("workers/*/*/worker.wasm") if path.stat().st_size < 100_000)

LIBRARY = """
  (core module $library
    (memory (export "memory") 1)
    (table (export "table") 1 funcref)
    (global (export "top") i32 (i32.const 1))
    (func (export "one") (result i32) (i32.const 1))
    (func (export "two") (result i32) (i32.const 2))
    (func (export "everwarm-look") (result i32) (i32.const 3))
    (func (export "look-everwarm-") (result i32) (i32.const 4)))
  (core instance $library (instantiate $library))
"""
ALL = {"memory", "table", "top", "one", "two", "everwarm-look", "look-everwarm-"}


def component(text: str) -> bytes:
    return bytes(wat2wasm(f"(component {text})"))


def exports(root: Root) -> list[set[str]]:
    """What each core module exports."""
    return exports_of(root.encode())


def exports_of(encoded: bytes) -> list[set[str]]:
    modules = [payload for n, payload in sections(encoded, COMPONENT_PREAMBLE) if n == binary.CORE_MODULE]
    return [{name.decode() for name in CoreModule.parse(module).export_names()} for module in modules]


def stripped(box: Sandbox, encoded: bytes) -> Root:
    """Without dead exports; valid, and once is enough."""
    root = Root.parse(encoded)
    strip(root)
    once = root.encode()
    Component(box.engine, once)
    again = Root.parse(once)
    strip(again)
    assert again.encode() == once
    return root


class TestWhatStays:
    def test_what_nobody_asks_for_goes(self, box: Sandbox) -> None:
        assert exports(stripped(box, component(LIBRARY))) == [{"everwarm-look"}]

    def test_a_module_without_an_instance(self, box: Sandbox) -> None:
        text = LIBRARY.replace("(core instance $library (instantiate $library))", "")
        assert exports(stripped(box, component(text))) == [{"everwarm-look"}]

    @pytest.mark.parametrize(
        ("sort", "called"), [("memory", "memory"), ("table", "table"), ("global", "top"), ("func", "one")]
    )
    def test_what_has_an_alias(self, sort: str, called: str, box: Sandbox) -> None:
        text = f'{LIBRARY} (alias core export $library "{called}" (core {sort} $it))'
        assert exports(stripped(box, component(text))) == [{called, "everwarm-look"}]

    def test_what_another_module_imports(self, box: Sandbox) -> None:
        user = """
          (core module $user
            (import "library" "memory" (memory 1)) (import "library" "one" (func (result i32)))
            (import "other" "two" (func (result i32))) (func (export "unused")))
          (core instance $other (export "two" (func $library "look-everwarm-")))
          (core instance $user (instantiate $user
            (with "library" (instance $library)) (with "other" (instance $other))))
        """
        kept = {"memory", "one", "look-everwarm-", "everwarm-look"}
        assert exports(stripped(box, component(LIBRARY + user))) == [kept, set()]

    def test_one_instance_under_two_names(self, box: Sandbox) -> None:
        user = """
          (core module $user (import "a" "one" (func (result i32))) (import "b" "two" (func (result i32))))
          (core instance $user (instantiate $user (with "a" (instance $library)) (with "b" (instance $library))))
        """
        assert exports(stripped(box, component(LIBRARY + user))) == [{"one", "two", "everwarm-look"}, set()]

    def test_what_any_of_a_modules_instances_is_asked_for(self, box: Sandbox) -> None:
        more = """
          (core instance $again (instantiate $library))
          (alias core export $library "one" (core func)) (alias core export $again "two" (core func))
        """
        assert exports(stripped(box, component(LIBRARY + more))) == [{"one", "two", "everwarm-look"}]

    def test_what_canonical_functions_use(self, box: Sandbox) -> None:
        text = """
          (import "f" (func $f (param "text" string) (result string)))
          (core module $library
            (memory (export "memory") 1) (memory (export "other") 1)
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8))
            (func (export "free") (param i32)) (func (export "unused"))
            (func (export "g") (param i32 i32) (result i32) (i32.const 8)))
          (core instance $library (instantiate $library))
          (core func (canon lower (func $f) (memory (core memory $library "memory"))
            (realloc (core func $library "realloc"))))
          (func (export "g") (param "text" string) (result string) (canon lift (core func $library "g")
            (memory (core memory $library "memory")) (realloc (core func $library "realloc"))
            (post-return (core func $library "free"))))
        """
        assert exports(stripped(box, component(text))) == [{"memory", "realloc", "free", "g"}]

    def test_a_name_that_is_not_ascii(self, box: Sandbox) -> None:
        text = """
          (core module $library (func (export "größe")) (func (export "weite")))
          (core instance $library (instantiate $library))
          (alias core export $library "größe" (core func))
        """
        assert exports(stripped(box, component(text))) == [{"größe"}]

    def test_modules_that_export_nothing_or_are_empty(self, box: Sandbox) -> None:
        text = "(core module $a (func)) (core module $b) (core instance (instantiate $a))"
        assert exports(stripped(box, component(text))) == [set(), set()]
        root = Root.parse(component(text))
        before = [item.parts[0] for item in root.of("module")]
        strip(root)
        assert [item.parts[0] for item in root.of("module")] == before, "what has nothing to lose is not touched"


class TestUsedAsAWhole:
    """Who is not known to name what it wants may want anything."""

    def test_an_instance_that_is_given_to_a_module_of_somebody_elses(self) -> None:
        root = Root.parse(component(LIBRARY))
        kind = binary.core_module_type(b"\x50\x00")
        imported = binary.import_core_module("theirs", kind)
        root.append(kind, imported, binary.instantiate(imported, {"library": next(root.of("instantiate"))}))
        strip(root)
        assert exports(root) == [ALL]

    def test_an_instance_in_an_instance_and_one_that_is_exported(self) -> None:
        """No tool makes these today."""
        for exported in (False, True):
            root = Root.parse(component(LIBRARY))
            instance = next(root.of("instantiate"))
            export = Item(binary.EXPORT, [b"\0\x01a\x00\x12", instance, b"\0"], "core instance")
            root.append(export if exported else binary.inline({"library": instance}))
            strip(root)
            assert exports(root) == [ALL]

    def test_a_module_that_is_given_to_a_component(self, box: Sandbox) -> None:
        text = """
          (component $inner
            (import "m" (core module $m (export "two" (func (result i32)))))
            (core instance $m (instantiate $m))
            (func (export "two") (result u32) (canon lift (core func $m "two"))))
          (instance (instantiate $inner (with "m" (core module $library))))
          (alias core export $library "one" (core func))
        """
        assert exports(stripped(box, component(LIBRARY + text))) == [ALL]

    def test_a_module_that_is_exported(self, box: Sandbox) -> None:
        for text in ('(export "m" (core module $library))', '(instance (export "m" (core module $library)))'):
            assert exports(stripped(box, component(LIBRARY + text))) == [ALL]


@pytest.mark.parametrize("worker", WORKERS, ids=lambda path: path.parent.name)
def test_a_worker_stays_a_component(worker: Path, box: Sandbox) -> None:
    data = worker.read_bytes()
    before, after = exports_of(data), exports(stripped(box, data))
    assert all(left <= all_ for left, all_ in zip(after, before, strict=True))


#: Enough code to be worth sharing, and nothing to compile.
MUCH_CODE = "nop " * (SHARED_CODE_BYTES_MIN + 1024)


class TestAtDeploy:
    @pytest.fixture
    def store(self, tmp_path: Path) -> ArtifactStore:
        return ArtifactStore(tmp_path)

    def guest(self, code: str, *, items: str = "", first: str = "") -> bytes:
        """It answers with what is at 1,024 and counts there; its module exports three things that nobody asks for."""
        return answering(
            f"""{first} (i32.store8 (i32.const 1024) (i32.add (i32.load8_u (i32.const 1024)) (i32.const 1)))
            (call $answer (i32.const 1024) (i32.const 6))""",
            items=f"""(data (i32.const 1024) "0hello")
              (func (export "unused") {code}) (global (export "unused-too") i32 (i32.const 1))
              (table (export "unused-three") 1 funcref) {items}""",
        )

    def answers(self, component: bytes, store: ArtifactStore, box: Sandbox, start: Start) -> tuple[int, list[bytes]]:
        """The number of pieces that it became, and its first answers."""
        limits = IsolateLimits(startup_cpu_ms=5_000)
        compiled = compile_and_start(component, store, limits, snapshot_cpu_ms_min=math.inf)
        assert isinstance(compiled, Compiled), compiled
        isolate = start(store.map(box, compiled.component_digest))
        found = []
        for _ in range(3):
            conversation = ScriptedConversation(f"/{os.urandom(2).hex()}")
            assert isolate.run(conversation).outcome is Outcome.OK
            found.append(conversation.body)
        return len(compiled.pieces), found

    def names(self, component: bytes) -> set[str]:
        """What the modules of the component export as it is compiled."""
        shape, _ = prepared(component)
        assert shape is not None
        parts = [CoreModule.parse(part.binary).export_names() for part in shape.parts]
        return {name.decode() for part in parts for name in part}.union(*exports_of(shape.skeleton))

    @pytest.mark.parametrize(("code", "pieces"), [("", 1), (MUCH_CODE, 2)], ids=["whole", "in parts"])
    def test_it_starts_and_answers(
        self, code: str, pieces: int, store: ArtifactStore, box: Sandbox, start: Start
    ) -> None:
        guest = self.guest(code)
        assert self.answers(guest, store, box, start) == (pieces, [b"1hello", b"2hello", b"3hello"])
        names = self.names(guest)
        assert {"handle", "memory", "realloc"} <= names
        assert not [name for name in names if name.startswith("unused")]

    def test_a_function_that_only_its_export_declares(self, store: ArtifactStore, box: Sandbox, start: Start) -> None:
        """Code may take a reference to it because of its export alone: without it the module is none, and it runs as it
        came, in one piece."""
        items, first = '(func $only (export "only"))', "(drop (ref.func $only))"
        guest = self.guest(MUCH_CODE, items=items, first=first)
        assert "only" not in self.names(guest)
        assert self.answers(guest, store, box, start) == (1, [b"1hello", b"2hello", b"3hello"])
