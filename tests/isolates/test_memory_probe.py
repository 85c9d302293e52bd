"""How much memory a guest has: asked of the guest's instance by a function that is the host's own."""

from pathlib import Path

import pytest
from wasmtime import wat2wasm
from wasmtime.component import Component

from isolates import memory_probe
from isolates.artifact import ArtifactStore, Compiled, Mapped, digest_of
from isolates.compiler import compile_and_start
from isolates.component_binary import Root
from isolates.engine import Sandbox
from isolates.isolate import Isolate, StartFailed
from isolates.limits import MIB, IsolateLimits, Verdict
from isolates.outcome import Outcome
from isolates.wasm_binary import NotUnderstood
from tests.isolates.conftest import Guests, Start, TextGuest
from tests.isolates.guest_text import DROP_BOTH, IN_LIBC, handler
from tests.scripted_conversation import ScriptedConversation

AMPLE = {"cpu_ms": 60_000.0}
#: Something whose answer lies in memory: only then is it known which memory is the guest's.
WITH_MEMORY = {
    "imports": """(import "wasi:random/random@0.2.0" (instance $random
        (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))""",
    "lowered": f'(core func $random (canon lower (func $random "get-random-bytes") {IN_LIBC}))',
    "functions": "random (param i64 i32)",
}


def pages_after(isolate: Isolate, path: str = "/") -> tuple[Outcome, Verdict, int]:
    finished = isolate.run(ScriptedConversation(path))
    return finished.outcome, finished.verdict, isolate.linear_bytes // 65_536


class TestAdd:
    def probed(self, box: Sandbox, folder: Path, component: bytes) -> Mapped:
        root = Root.parse(component)
        assert memory_probe.add(root)
        path = folder / "probed"
        path.write_bytes(bytes(Component(box.engine, root.encode()).serialize()))
        return Mapped(box, path, digest_of(component), prepared=True)

    def test_it_follows_each_growth(self, box: Sandbox, tmp_path: Path, start: Start) -> None:
        grow = f"{DROP_BOTH} (drop (memory.grow (i32.const 3)))"
        mapped = self.probed(box, tmp_path, bytes(wat2wasm(handler(body=grow, pages="2", **WITH_MEMORY))))
        isolate, other = start(mapped), start(mapped)
        assert isolate.linear_bytes == 2 * 65_536
        floor_bytes = isolate.memory_bytes
        for grown in (5, 8, 11):
            assert pages_after(isolate) == (Outcome.HUNG, Verdict.CONDEMN, grown)
            assert isolate.memory_bytes == floor_bytes + (grown - 2) * 65_536
        assert other.linear_bytes == 2 * 65_536

    def test_what_start_up_took_is_counted_as_started(self, box: Sandbox, tmp_path: Path, start: Start) -> None:
        items = "(func $s (drop (memory.grow (i32.const 9)))) (start $s)"
        mapped = self.probed(box, tmp_path, bytes(wat2wasm(handler(core_items=items, **WITH_MEMORY))))
        isolate = start(mapped)
        assert isolate.linear_bytes == 10 * 65_536
        assert isolate.memory_bytes == 65_536

    def test_after_a_trap_nobody_asks(self, box: Sandbox, tmp_path: Path, start: Start) -> None:
        trap = "(drop (memory.grow (i32.const 1))) unreachable"
        isolate = start(self.probed(box, tmp_path, bytes(wat2wasm(handler(body=trap, **WITH_MEMORY)))))
        assert pages_after(isolate) == (Outcome.EXCEPTION, Verdict.KILL, 1)

    def test_a_component_whose_memory_is_not_known_stays_as_it_is(self) -> None:
        root = Root.parse(bytes(wat2wasm(handler())))
        before = root.encode()
        assert not memory_probe.add(root)
        assert root.encode() == before

    def test_it_is_a_function_of_the_hosts_own(self, box: Sandbox) -> None:
        """It reads one number: it has no way to call the guest, or to be seen by it."""
        root = Root.parse(bytes(wat2wasm(handler(**WITH_MEMORY))))
        known = set(root.items)
        memory_probe.add(root)
        added = [item for item in root.items if item not in known]
        assert root.items[-len(added) :] == added
        used = {part for item in added for part in item.parts if not isinstance(part, bytes)} - set(added)
        assert [item.defines for item in used] == ["core memory"]


SOFT = {"memory_soft_bytes": 12 * MIB, "memory_bytes_max": 32 * MIB, **AMPLE}


class TestSoftLimit:
    def test_a_guest_beyond_it_answers_and_is_condemned(self, guests: Guests, start: Start) -> None:
        isolate = start(guests("hoard"), **SOFT)
        assert isolate.run(ScriptedConversation("/?mib=4")).verdict is Verdict.KEEP
        assert 4 * MIB < isolate.linear_bytes < 12 * MIB
        conversation = ScriptedConversation("/?mib=16")
        finished = isolate.run(conversation)
        assert (finished.outcome, finished.verdict) == (Outcome.OK, Verdict.CONDEMN)
        assert conversation.finished
        assert 16 * MIB < isolate.linear_bytes <= 32 * MIB

    def test_beyond_the_hard_one_it_is_killed(self, guests: Guests, start: Start) -> None:
        isolate = start(guests("hoard"), **SOFT)
        finished = isolate.run(ScriptedConversation("/?mib=64"))
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEEDED_MEMORY, Verdict.KILL)

    def test_a_rewritten_worker_is_measured_from_its_start(self, guests: Guests, start: Start) -> None:
        isolate = start(guests("hello"))
        first = isolate.linear_bytes
        assert 0 < first < 20 * MIB
        assert isolate.run(ScriptedConversation()).verdict is Verdict.KEEP
        assert isolate.linear_bytes == first


EIGHT = {"memory_soft_bytes": 8 * MIB, "memory_bytes_max": 16 * MIB, **AMPLE}


class TestUnmeasured:
    """A guest that could not be given the probe: its soft limit is where its memory ends."""

    #: Grows by a MiB, and traps when that is refused.
    GROWS = "(if (i32.lt_s (memory.grow (i32.const 16)) (i32.const 0)) (then unreachable))"

    def test_it_never_has_more_than_its_soft_limit(self, text_guest: TextGuest, start: Start) -> None:
        mapped = text_guest(body=f"(loop $more {self.GROWS} (br $more))")
        assert mapped.memory_pages is None
        finished = start(mapped, **EIGHT).run(ScriptedConversation())
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEEDED_MEMORY, Verdict.KILL)
        assert finished.reason == "more than 8 MiB of memory"

    def test_it_may_go_on_where_it_is_refused(self, text_guest: TextGuest, start: Start) -> None:
        """As a guest may that is refused what is beyond its hard limit. 1 page and 7 MiB: another one is too much."""
        ends = "(if (i32.ne (memory.size) (i32.const 113)) (then unreachable))"
        loop = "(loop $more (br_if $more (i32.ge_s (memory.grow (i32.const 16)) (i32.const 0))))"
        isolate = start(text_guest(body=f"{DROP_BOTH} {loop} {ends}"), **EIGHT)
        finished = isolate.run(ScriptedConversation())
        assert finished.outcome is Outcome.HUNG, finished

    def test_a_start_beyond_it_fails(self, box: Sandbox, text_guest: TextGuest) -> None:
        failed = Isolate.start(box, text_guest(pages="200"), IsolateLimits(memory_soft_bytes=8 * MIB), bytes)
        assert isinstance(failed, StartFailed)
        assert failed.reason == "it needs more than its 8 MiB of memory, or more than one."

    def test_one_that_is_measured_may_have_more_for_a_request(self, guests: Guests, start: Start) -> None:
        isolate = start(guests("hoard"), **EIGHT)
        finished = isolate.run(ScriptedConversation("/?mib=10"))
        assert (finished.outcome, finished.verdict) == (Outcome.OK, Verdict.CONDEMN)


class TestANameOfTheHosts:
    """A component that exports the probe's name itself. Its function would run without limits and with the GIL held."""

    def component(self, function: str, *, memory: bool) -> bytes:
        text = handler(core_items=f'(func (export "pages") (result i32) {function})', **(WITH_MEMORY if memory else {}))
        export = f'(func $p (result u32) (canon lift (core func $main "pages"))) (export "{memory_probe.MEMORY_PAGES}"'
        return bytes(wat2wasm(f"{text[: text.rindex(')')]} {export} (func $p)))"))

    @pytest.mark.parametrize("memory", [False, True])
    def test_it_is_never_called(self, memory: bool, box: Sandbox, tmp_path: Path, start: Start) -> None:
        component = self.component("unreachable", memory=memory)
        with pytest.raises(NotUnderstood, match="name of the probe"):
            memory_probe.add(Root.parse(component))
        store = ArtifactStore(tmp_path)
        result = compile_and_start(component, store, IsolateLimits())
        assert isinstance(result, Compiled)
        isolate = start(store.map(box, result.component_digest))
        # A trap in it, like an endless loop, would be the end of this isolate, whose handler returns each time.
        assert [pages_after(isolate)[0] for _ in range(3)] == [Outcome.HUNG] * 3
        assert isolate.linear_bytes == 0
