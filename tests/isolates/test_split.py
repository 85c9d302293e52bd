"""One engine for all tenants: the same code for each, and for none a byte of another's data."""

import math
import os
import queue
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from wasmtime import Module, wat2wasm
from wasmtime.component import Component

from isolates import component_binary as binary
from isolates import linkers
from isolates.acceptance import Rejected
from isolates.artifact import ArtifactStore, Compiled, Mapped, digest_of
from isolates.compiler import compile_and_start
from isolates.component_binary import Root
from isolates.engine import Sandbox
from isolates.isolate import Isolate, StartFailed
from isolates.limits import IsolateLimits, Verdict
from isolates.linkers import LINKERS_MAX, Linkers
from isolates.split import PARTS_MAX, SHARED_CODE_BYTES_MIN, split
from isolates.wasm_binary import CoreModule, NotUnderstood
from tests.isolates.conftest import ROOT, Start
from tests.scripted_conversation import ScriptedConversation

#: Enough code to be worth sharing, and nothing to compile.
MUCH_CODE = "nop " * (SHARED_CODE_BYTES_MIN + 1024)

#: An engine with a tenant's data in it: it answers with a status of 200 and a byte of its data, which it changes.
#: Its start function has seen the data and the size of the memory already.
ENGINE = """
(component
  {imports}
  (import "wasi:http/types@0.2.3" (instance $types
    (export "incoming-request" (type $request (sub resource)))
    (export "response-outparam" (type $outparam (sub resource)))
    (export "fields" (type $fields (sub resource)))
    (export "outgoing-response" (type $response (sub resource)))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[constructor]outgoing-response" (func (param "headers" (own $fields)) (result (own $response))))
    (export "[method]outgoing-response.set-status-code" (func (param "self" (borrow $response))
      (param "status-code" u16) (result (result))))
    (export "[static]response-outparam.set" (func (param "param" (own $outparam))
      (param "response" (result (own $response)))))))
  (import "wasi:random/random@0.2.0" (instance $random
    (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $outparam))
  (core func $drop (canon resource.drop $request))
  (core func $fields (canon lower (func $types "[constructor]fields")))
  (core func $response (canon lower (func $types "[constructor]outgoing-response")))
  (core func $status (canon lower (func $types "[method]outgoing-response.set-status-code")))
  (core func $set (canon lower (func $types "[static]response-outparam.set")))
  (core module $engine
    (import "host" "drop" (func $drop (param i32)))
    (import "host" "fields" (func $fields (result i32)))
    (import "host" "response" (func $response (param i32) (result i32)))
    (import "host" "status" (func $status (param i32 i32) (result i32)))
    (import "host" "set" (func $set (param i32 i32 i32)))
    (type $getter (func (result i32)))
    (memory (export "memory") {memory})
    (table (export "table") 4 8 funcref)
    (elem (i32.const 2) func $unused $value)
    (global $seen (export "seen") (mut i32) (i32.const 0))
    (global (export "fixed") i64 (i64.const -5))
    (data (i32.const 64) "{data}")
    (data (i32.const 60000) "{pages}")
    {items}
    (func $start
      (if (i32.ne (memory.size) (i32.load8_u (i32.const 60000))) (then unreachable))
      (global.set $seen (i32.load8_u (i32.const 64)))
      {started})
    (start $start)
    (func $unused {code})
    (func $value (result i32) (i32.load8_u (i32.const 64)))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "handle") (param $request i32) (param $outparam i32)
      (local $response i32)
      (call $drop (local.get $request))
      (if (i32.lt_u (call_indirect (type $getter) (i32.const 3)) (global.get $seen)) (then unreachable))
      (local.set $response (call $response (call $fields)))
      (drop (call $status (local.get $response)
        (i32.add (i32.const 200) (call_indirect (type $getter) (i32.const 3)))))
      (i32.store8 (i32.const 64) (i32.add (i32.const 1) (call $value)))
      (call $set (local.get $outparam) (i32.const 0) (local.get $response))))
  (core instance $host (export "drop" (func $drop)) (export "fields" (func $fields))
    (export "response" (func $response)) (export "status" (func $status)) (export "set" (func $set)))
  (core instance $engine (instantiate $engine (with "host" (instance $host))))
  (core func $random (canon lower (func $random "get-random-bytes")
    (memory (core memory $engine "memory")) (realloc (core func $engine "realloc"))))
  {more}
  (func $handle (param "request" (own $request)) (param "response-out" (own $outparam))
    (canon lift (core func $engine "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.3" (instance $handler)))
"""


def engine(number: int, *, pages: int = 1, most: str = "", **parts: str) -> bytes:
    """The component of a tenant whose data is ``number``."""
    defaults = {"imports": "", "items": "", "started": "", "more": "", "code": MUCH_CODE}
    data = {"data": f"\\{number:02x}", "pages": f"\\{pages:02x}", "memory": f"{pages} {most}"}
    return bytes(wat2wasm(ENGINE.format(**defaults | data | parts)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("artifacts"))


def compiled(
    component: bytes,
    store: ArtifactStore,
    progress: Callable[[str], None] = lambda phase: None,
    *,
    memories_max: int = 1,
) -> Compiled:
    """Without snapshots: a slow moment of this machine must not look like a slow start-up, which is another program
    afterwards."""
    limits = IsolateLimits(startup_cpu_ms=5_000, memories_max=memories_max)
    result = compile_and_start(component, store, limits, progress, snapshot_cpu_ms_min=math.inf)
    assert isinstance(result, Compiled), result
    return result


def status(isolate: Isolate) -> int:
    conversation = ScriptedConversation()
    finished = isolate.run(conversation)
    assert finished.verdict is Verdict.KEEP, finished
    assert conversation.response is not None
    return conversation.response.status


class TestSplit:
    def test_tenants_share_all_but_their_data(self) -> None:
        one = split(Root.parse(engine(1)))
        other = split(Root.parse(engine(2, pages=7, most="9")))
        assert one.skeleton == other.skeleton
        assert [part.name for part in one.parts] == ["everwarm-part0", "everwarm-part1"]
        (data, code), (other_data, other_code) = one.parts, other.parts
        assert (data.shared, code.shared) == (False, True)
        assert code == other_code
        assert len(code.binary) > SHARED_CODE_BYTES_MIN > len(data.binary)
        assert data.binary != other_data.binary
        assert not CoreModule.parse(code.binary).payload(11), "no data in what is shared"

    def test_pieces_are_compiled_once_and_each_tenant_has_its_data(self, store: ArtifactStore, box: Sandbox) -> None:
        phases: list[str] = []
        first = compiled(engine(10), store)
        second = compiled(engine(20, pages=3), store, phases.append)
        assert [phase.split(",")[0] for phase in phases] == ["compiling 2 of 3", "starting"]
        assert [piece.shared for piece in first.pieces] == [False, False, True]
        assert first.pieces[0] == second.pieces[0]
        assert first.pieces[1].source_digest != second.pieces[1].source_digest
        assert first.pieces[2] == second.pieces[2]
        assert first.imports == ("wasi:http/types@0.2.3", "wasi:random/random@0.2.0")

    def test_what_it_does_is_the_same(self, store: ArtifactStore, box: Sandbox, start: Start) -> None:
        for number, pages in ((30, 1), (40, 5)):
            mapped = store.map(box, compiled(engine(number, pages=pages), store).component_digest)
            assert len(mapped.parts) == 2
            one, other = start(mapped), start(mapped)
            assert [status(one) for _ in range(3)] == [200 + number, 201 + number, 202 + number]
            assert status(other) == 200 + number, "what an isolate wrote is its own"
            assert one.linear_bytes == pages * 65_536
            assert status(start(mapped)) == 200 + number

    @pytest.mark.parametrize("threads", [8, LINKERS_MAX + 4])
    def test_many_tenants_start_at_once_and_each_finds_its_own(
        self, threads: int, store: ArtifactStore, box: Sandbox
    ) -> None:
        numbers = (50, 60, 70, 80, 90)
        tenants = [(n, store.map(box, compiled(engine(n, pages=1 + n // 20), store).component_digest)) for n in numbers]
        plain = store.map(box, compiled(engine(5, code=""), store).component_digest)
        assert plain.parts == ()
        work: queue.SimpleQueue[tuple[int, Mapped]] = queue.SimpleQueue()
        for i in range(250):
            work.put((5, plain) if i % 10 == 9 else tenants[(i * i + i // 7) % len(tenants)])
        wrong: list[object] = []

        def serve() -> None:
            while True:
                try:
                    number, mapped = work.get_nowait()
                    isolate = Isolate.start(
                        box, mapped, IsolateLimits(cpu_ms=60_000, startup_cpu_ms=60_000), os.urandom
                    )
                    assert isinstance(isolate, Isolate), isolate
                    found = [status(isolate), status(isolate)]
                    isolate.close()
                    if found != [200 + number, 201 + number]:
                        wrong.append((number, found))
                except queue.Empty:
                    return
                except BaseException as fault:
                    wrong.append(fault)
                    return

        running = [threading.Thread(target=serve) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        assert wrong == []
        assert box.linkers._built <= LINKERS_MAX
        assert len(box.linkers._idle) == box.linkers._built, "all came back"


class TestWhole:
    """What can not be taken apart runs as it came."""

    def whole(
        self, component: bytes, store: ArtifactStore, box: Sandbox, start: Start, *, memories_max: int = 1
    ) -> Isolate:
        result = compiled(component, store, memories_max=memories_max)
        assert len(result.pieces) == 1
        assert not result.pieces[0].shared
        return start(store.map(box, result.component_digest), memories_max=memories_max)

    @pytest.mark.parametrize(
        ("items", "started"),
        [('(data $later "\\21")', "(memory.init $later (i32.const 64) (i32.const 0) (i32.const 1)) (data.drop $later)"),
         ('(data $later "\\21")', "(data.drop $later) (i32.store8 (i32.const 64) (i32.const 33))"),
         ('(data $later "\\21")', "(memory.init $later (i32.const 64) (i32.const 0) (i32.const 1))")],
    )  # fmt: skip
    def test_code_that_refers_to_data(
        self, items: str, started: str, store: ArtifactStore, box: Sandbox, start: Start
    ) -> None:
        component = engine(1, items=items, started=started)
        assert status(self.whole(component, store, box, start)) == 233

    def test_data_whose_place_is_told_by_an_import(self, store: ArtifactStore, box: Sandbox, start: Start) -> None:
        items = '(global $base i32 (i32.const 64)) (data (global.get $base) "\\21")'
        assert status(self.whole(engine(1, items=items), store, box, start)) == 233

    def test_a_module_that_is_instantiated_twice(self, store: ArtifactStore, box: Sandbox, start: Start) -> None:
        component = engine(7, more='(core instance (instantiate $engine (with "host" (instance $host))))')
        with pytest.raises(NotUnderstood, match="more than once"):
            split(Root.parse(component))
        assert status(self.whole(component, store, box, start, memories_max=2)) == 207

    def test_little_code(self, store: ArtifactStore, box: Sandbox, start: Start) -> None:
        assert status(self.whole(engine(8, code=""), store, box, start)) == 208

    def test_a_module_of_two_memories(self) -> None:
        with pytest.raises(NotUnderstood, match="several memories"):
            split(Root.parse(engine(9, items="(memory 1)")))

    def test_very_many_parts(self) -> None:
        module = bytes(wat2wasm(f"(module (func {MUCH_CODE}))"))
        root = Root()
        root.append(*(binary.core_module(module) for _ in range(PARTS_MAX)))
        whole = root.encode()
        parts = split(Root.parse(whole)).parts
        assert len({part.name for part in parts}) == PARTS_MAX
        assert {part.binary for part in parts} == {module}
        root.append(binary.core_module(module))
        with pytest.raises(NotUnderstood, match="very many modules"):
            split(Root.parse(root.encode()))


def thief(called: str, *, code: str = "") -> bytes:
    """A component that wants a core module of this name, to run with the memory in it. ``code``: it is split itself."""
    imports = f'(import "{called}" (core module $stolen (export "memory" (memory 0))))'
    more = "(core instance (instantiate $stolen))"
    return engine(1, imports=imports, more=more, code=code)


@pytest.fixture(scope="module")
def victims(store: ArtifactStore, box: Sandbox) -> list[Mapped]:
    """Tenants whose parts are bound in linkers, one of them with more parts than a split engine has."""
    for number in (100, 101):
        mapped = store.map(box, compiled(engine(number), store).component_digest)
        isolate = Isolate.start(box, mapped, IsolateLimits(), os.urandom)
        assert isinstance(isolate, Isolate)
        isolate.close()
    return [mapped]


class TestTheft:
    """A name that the host binds for one tenant, asked for by another."""

    @pytest.mark.parametrize("code", ["", MUCH_CODE], ids=["small", "split itself"])
    @pytest.mark.parametrize("called", ["everwarm-part0", "everwarm-part1", "everwarm-part2", "everwarm-data", "other"])
    def test_a_component_that_imports_a_core_module_is_refused(
        self, called: str, code: str, store: ArtifactStore, victims: list[Mapped]
    ) -> None:
        component = thief(called, code=code)
        rejected = compile_and_start(component, store, IsolateLimits())
        assert isinstance(rejected, Rejected)
        assert rejected.code == "unknownImport"
        assert called in rejected.message
        assert not store.has(digest_of(component))

    def test_one_that_hides_it_in_an_interface_is_refused(self, store: ArtifactStore, victims: list[Mapped]) -> None:
        imports = """(import "wasi:io/streams@0.2.0" (instance $hiding
            (export "everwarm-part0" (core module (export "memory" (memory 0))))))
          (alias export $hiding "everwarm-part0" (core module $stolen))"""
        component = engine(1, imports=imports, more="(core instance (instantiate $stolen))", code="")
        assert isinstance(compile_and_start(component, store, IsolateLimits()), Rejected)

    def test_other_kinds_under_the_name_are_refused(self, store: ArtifactStore, victims: list[Mapped]) -> None:
        for kind in ("(func)", "(instance)", "(component)", '(instance (export "memory" (func)))'):
            component = engine(1, imports=f'(import "everwarm-part0" {kind})')
            rejected = compile_and_start(component, store, IsolateLimits())
            assert isinstance(rejected, Rejected), kind
            assert rejected.code in ("unknownImport", "invalid")

    def test_one_that_was_not_refused_would_not_start(
        self, box: Sandbox, tmp_path: Path, victims: list[Mapped]
    ) -> None:
        """The second line: what is bound for a tenant lies in no linker that a component without parts is given."""
        path = tmp_path / "thief"
        path.write_bytes(bytes(Component(box.engine, thief("everwarm-part0")).serialize()))
        failed = Isolate.start(box, Mapped(box, path, path.name), IsolateLimits(), os.urandom)
        assert isinstance(failed, StartFailed)
        assert failed.reason == "module implementation is missing"

    def test_one_with_a_part_of_its_own_would_find_its_own(
        self, box: Sandbox, tmp_path: Path, store: ArtifactStore, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The third: in a linker that had more parts of another tenant, all of those names lead to its own."""
        monkeypatch.setattr(box, "linkers", Linkers(box.engine.ptr(), box.world))
        victim = start(store.map(box, compiled(engine(110), store).component_digest))
        assert status(victim) == 310
        imports = """(import "everwarm-part0" (core module $own (export "memory" (memory 0))))
          (import "everwarm-part1" (core module $other (export "memory" (memory 0))))
          (core instance $found (instantiate $other))"""
        text = ENGINE
        for old, new in (
            ('(memory (export "memory") {memory})', ""), ('(data (i32.const 64) "{data}")', ""),
            ('(data (i32.const 60000) "{pages}")', ""), ('(with "host" (instance $host))',
            '(with "host" (instance $host)) (with "found" (instance $found))'), ('(core module $engine\n',
            '(core module $engine (import "found" "memory" (memory 0)) (export "memory" (memory 0))\n'),
        ):  # fmt: skip
            assert text.count(old) == 1
            text = text.replace(old, new)
        path = tmp_path / "thief"
        component = bytes(wat2wasm(text.format(imports=imports, items="", started="", more="", code="")))
        path.write_bytes(bytes(Component(box.engine, component).serialize()))
        own = '(module (memory (export "memory") 1) (data (i32.const 64) "\\07") (data (i32.const 60000) "\\01"))'
        assert status(start(Mapped(box, path, path.name, [Module(box.engine, own)]))) == 207
        assert status(start(store.map(box, compiled(engine(110), store).component_digest))) == 310
        assert box.linkers._built == 1

    def test_parts_that_were_bound_in_half_are_bound_again(
        self, box: Sandbox, store: ArtifactStore, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(box, "linkers", Linkers(box.engine.ptr(), box.world))
        one, other = (store.map(box, compiled(engine(n), store).component_digest) for n in (120, 130))
        assert status(start(one)) == 320
        with monkeypatch.context() as broken:
            broken.setattr(linkers, "_add_module", lambda *_: 1)
            broken.setattr(linkers, "must", lambda error: (_ for _ in ()).throw(RuntimeError("no room")))
            with pytest.raises(RuntimeError, match="no room"), box.linkers.bound(other.parts, wait_s=0):
                pass
        assert [status(start(mapped)) for mapped in (other, one, other, other)] == [330, 320, 330, 330]
        assert len(box.linkers._idle) == box.linkers._built == 1


TOOLCHAINS = Path(os.environ.get("EVERWARM_TOOLCHAIN_DIR", ROOT / ".everwarm" / "toolchains"))


@pytest.mark.toolchain
@pytest.mark.parametrize(
    ("worker", "source", "own", "differ"),
    # Python's toolchain has the tenant's memory in a module of its own, which stays in the skeleton.
    [("js/hello-js", "worker.js", [0, 1], [1]), ("python/hello-python", "app.py", [0], [0])],
    ids=["js", "python"],
)
def test_two_workers_of_a_toolchain_share_its_engine(
    worker: str, source: str, own: list[int], differ: list[int], box: Sandbox, tmp_path: Path, start: Start
) -> None:
    """Built by their own toolchains, and kept beside them: building and compiling one takes half a minute."""
    from everwarm.build import build
    from everwarm.build.toolchain import JAVASCRIPT, PYTHON, is_installed

    toolchain = JAVASCRIPT if worker.startswith("js") else PYTHON
    if not is_installed(toolchain, TOOLCHAINS):
        pytest.skip(f"{toolchain.title} is not installed; `everwarm build workers/{worker}` installs it")
    second = tmp_path / "second"
    shutil.copytree(ROOT / "workers" / worker, second)
    text = (second / source).read_text()
    (second / source).write_text(text.replace("hello", "goodbye"))
    store = ArtifactStore(TOOLCHAINS / "artifacts")
    results, mapped = [], []
    for folder in (ROOT / "workers" / worker, second):
        built = build(folder, cache_dir=TOOLCHAINS / "cache", toolchain_dir=TOOLCHAINS, progress=print)
        # Always anew, as it is rewritten today; only the pieces that are there already need no compiling.
        results.append(compiled(built.component.read_bytes(), store))
        mapped.append(store.map(box, built.sha256))
    one, other = results
    assert len(one.pieces) == len(other.pieces) == len(own) + 1
    assert [i for i, piece in enumerate(one.pieces) if piece != other.pieces[i]] == differ
    assert [i for i, piece in enumerate(one.pieces) if not piece.shared] == own
    assert one.own_bytes < one.artifact_bytes / 2
    for said, which in (("hello", 0), ("goodbye", 1)) * 3:
        isolate = start(mapped[which], startup_cpu_ms=5_000, cpu_ms=5_000)
        conversation = ScriptedConversation("/")
        assert isolate.run(conversation).verdict is Verdict.KEEP
        assert f'"{said}"'.encode() in conversation.body
