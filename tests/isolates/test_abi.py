"""Values across the border in both directions, and faults that must not cross it.

For each type T a guest is given a ``list<T>`` and gives it back: what the host lowered went through the guest's memory,
by wasmtime's canonical ABI, and is lifted again.
"""

import asyncio
import gc
import math
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isolates import abi, component_resource
from isolates.artifact import Mapped
from isolates.component_value import Err, Ok
from isolates.engine import Sandbox
from isolates.isolate import Finished, Isolate
from isolates.limits import IsolateLimits, Verdict
from isolates.outcome import Outcome
from isolates.wasi import world
from isolates.wit import Interface, World
from tests.isolates.guest_text import DROP_BOTH, IN_LIBC, compiled_text, handler
from tests.scripted_conversation import ScriptedConversation


class Thing:
    """A resource that counts its ends."""

    def __init__(self) -> None:
        self.drops = 0

    def on_drop(self) -> None:
        self.drops += 1


@dataclass
class Case:
    """A type: as component text, as WIT text, and values of it."""

    wat: str
    wit: str
    values: list[Any]
    types: str = ""  # component text of the named types
    declare: Callable[[Interface], None] = lambda interface: None
    give: Any = None
    took: Any = None
    body: str = ""  # core instructions after the list was given back
    lowered: str = ""
    functions: str = ""
    take: str = ""  # the type that is taken, when it is not the one that is given
    wit_take: str = ""


@dataclass
class Faults:
    """What the host function of a guest raises, by guest."""

    by_guest: dict[Any, BaseException] = field(default_factory=dict)


def _named(name: str, wat: str) -> str:
    return f'(type ${name}-shape {wat}) (export "{name}" (type ${name} (eq ${name}-shape)))'


TEXTS = ["", "a", "Grüße, 世界 🌍", "\0", "x" * 5_000]
CASES = {
    "u8": Case("u8", "u8", [b"", b"\x00", b"\xff", bytes(range(256)), bytes(65_536), b"z" * 65_535]),
    "bool": Case("bool", "bool", [[], [True, False, True]]),
    "u16": Case("u16", "u16", [[0, 65_535]]),
    "u32": Case("u32", "u32", [[0, 1, 2**32 - 1]]),
    "u64": Case("u64", "u64", [[0, 2**64 - 1]]),
    "s8": Case("s8", "s8", [[-128, -1, 0, 127]]),
    "s16": Case("s16", "s16", [[-(2**15), 2**15 - 1]]),
    "s32": Case("s32", "s32", [[-(2**31), 2**31 - 1]]),
    "s64": Case("s64", "s64", [[-(2**63), 2**63 - 1]]),
    "string": Case("string", "string", [[], TEXTS]),
    "bytes": Case("(list u8)", "list<u8>", [[], [b""], [b"a", b"", bytes(3_000)]]),
    "nested-list": Case("(list u32)", "list<u32>", [[[], [1], [2, 3]]]),
    "tuple": Case("(tuple string (list u8) u8)", "tuple<string, list<u8>, u8>", [[("ä", b"\0\1", 7), ("", b"", 0)]]),
    "record": Case(
        "$point", "point", [[(1, "one"), (2**64 - 1, "")]],
        _named("point", '(record (field "x" u64) (field "name" string))'),
        lambda i: i.record("point", {"x": "u64", "name": "string"}),
    ),
    "variant": Case(
        "$shape", "shape", [[("dot", None), ("text", "é"), ("pair", (1, b"2")), ("dot", None)]],
        _named("shape", '(variant (case "dot") (case "text" string) (case "pair" (tuple u32 (list u8))))'),
        lambda i: i.variant("shape", {"dot": None, "text": "string", "pair": "tuple<u32, list<u8>>"}),
    ),
    "enum": Case(
        "$color", "color", [["red", "green", "red"]],
        _named("color", '(enum "red" "green")'), lambda i: i.enum("color"),
    ),
    "option": Case("(option string)", "option<string>", [[None, "", "some"]]),
    "option-option": Case("(option (option u8))", "option<option<u8>>", [[None, 3]]),
    "option-result": Case(
        "(option (result (option u32) (error string)))", "option<result<option<u32>, string>>",
        [[None, Ok(None), Ok(0), Err(""), Err("no")]],
    ),
    "result": Case("(result)", "result", [[Ok(None), Err(None)]]),
    "result-ok": Case("(result (list u8))", "result<list<u8>>", [[Ok(b"x"), Ok(b""), Err(None)]]),
    "result-err": Case("(result (error u16))", "result<_, u16>", [[Ok(None), Err(9)]]),
    "fields": Case(
        "(tuple string (list u8))", "tuple<string, list<u8>>",
        [[], [("a", b"")], [("content-type", b"text/plain"), ("", b"\xff" * 300), ("é", bytes(range(256)))]],
    ),
    "own": Case(
        "(own $thing)", "own<thing>", [[]], '(export "thing" (type $thing (sub resource)))',
        lambda i: i.resource("thing"),
    ),
    "borrow": Case(
        "(own $loan)", "own<loan>", [[]], '(export "loan" (type $loan (sub resource)))', lambda i: i.resource("loan"),
        take="(borrow $loan)", wit_take="borrow<loan>",
        lowered='(alias export $values "loan" (type $dropped)) (core func $drop (canon resource.drop $dropped))',
        functions="drop (param i32)", body="(call $drop (i32.load (i32.load (i32.const 16))))",
    ),
    "kept": Case(
        "(own $keepsake)", "own<keepsake>", [[]], '(export "keepsake" (type $keepsake (sub resource)))',
        lambda i: i.resource("keepsake"), body="",
    ),
}  # fmt: skip


class ValuesSandbox(Sandbox):
    """The sandbox with one more interface for each case, and one whose function raises."""

    def __init__(self) -> None:
        self.faults = Faults()
        super().__init__(self._world)

    def _world(self) -> World:
        made = world()
        for name, case in CASES.items():
            _define_case(made, name, case)
        faults = made.interface("test:abi/faults@0.2.12")
        faults.resource("grenade")

        @faults.func("fail: func() -> u32")
        def fail(guest: Any) -> int:
            raise self.faults.by_guest[guest]

        @faults.func("arm: func() -> own<grenade>")
        def arm(guest: Any) -> Any:
            return Grenade(self.faults.by_guest[guest])

        return made


class Grenade:
    def __init__(self, fault: BaseException) -> None:
        self.fault = fault

    def on_drop(self) -> None:
        raise self.fault


def _define_case(world: World, name: str, case: Case) -> None:
    interface = world.interface(f"test:abi/{name}@0.2.12")
    case.declare(interface)

    @interface.func(f"give: func() -> list<{case.wit}>")
    def give(guest: Any) -> Any:
        return case.give

    @interface.func(f"take: func(values: list<{case.wit_take or case.wit}>)")
    def take(guest: Any, values: Any) -> None:
        case.took = values


def case_text(name: str) -> str:
    case = CASES[name]
    taken = "" if name == "kept" else "(call $take (i32.load (i32.const 16)) (i32.load (i32.const 20)))"
    return handler(
        imports=f"""(import "test:abi/{name}@0.2.0" (instance $values {case.types}
            (export "give" (func (result (list {case.wat}))))
            (export "take" (func (param "values" (list {case.take or case.wat}))))))""",
        lowered=f"""(core func $give (canon lower (func $values "give") {IN_LIBC}))
            (core func $take (canon lower (func $values "take") {IN_LIBC})) {case.lowered}""",
        functions=f"give (param i32)\ntake (param i32 i32)\n{case.functions}",
        body=f"{DROP_BOTH} (call $give (i32.const 16)) {taken} {case.body}",
        pages="64",
    )


FAULTS_IMPORT = """(import "test:abi/faults@0.2.0" (instance $faults
    (export "grenade" (type $grenade (sub resource)))
    (export "fail" (func (result u32)))
    (export "arm" (func (result (own $grenade))))))"""
FAULTS_LOWERED = """(core func $fail (canon lower (func $faults "fail")))
    (core func $arm (canon lower (func $faults "arm")))
    (alias export $faults "grenade" (type $dropped)) (core func $drop (canon resource.drop $dropped))"""
FAULTS_FUNCTIONS = "fail (result i32)\narm (result i32)\ndrop (param i32)"


@pytest.fixture(scope="module")
def values_box() -> ValuesSandbox:
    return ValuesSandbox()


Load = Callable[[str], Mapped]


@pytest.fixture(scope="module")
def load(values_box: ValuesSandbox, tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder = tmp_path_factory.mktemp("values")
    made: dict[str, Mapped] = {}

    def mapped(text: str) -> Mapped:
        if text not in made:
            path = folder / f"{len(made)}.cwasm"
            path.write_bytes(compiled_text(values_box, text))
            made[text] = Mapped(values_box, path, "0" * 64)
        return made[text]

    return mapped


def started(box: Sandbox, mapped: Mapped, **limits: float) -> Isolate:
    isolate = Isolate.start(box, mapped, IsolateLimits(cpu_ms=60_000, **limits), secrets.token_bytes)  # type: ignore[arg-type]
    assert isinstance(isolate, Isolate), isolate
    return isolate


def served(isolate: Isolate) -> Finished:
    return isolate.run(ScriptedConversation())


def plain(value: Any) -> Any:
    """Values with ``Ok`` and ``Err`` in them, comparable."""
    if isinstance(value, Ok | Err):
        return type(value).__name__, plain(value.value)
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value)
    return value


class TestValues:
    @pytest.mark.parametrize("name", [n for n in CASES if n not in ("own", "borrow", "kept")])
    def test_there_and_back(self, name: str, values_box: ValuesSandbox, load: Load) -> None:
        case = CASES[name]
        isolate = started(values_box, load(case_text(name)))
        for value in case.values:
            case.give, case.took = value, None
            finished = served(isolate)
            assert finished.outcome is Outcome.HUNG, (finished, isolate.guest.fault)
            assert plain(case.took) == plain(value)
            assert isolate.guest.resources == 0
        isolate.close()

    def test_any_text_and_any_bytes(self, values_box: ValuesSandbox, load: Load) -> None:
        case = CASES["tuple"]
        isolate = started(values_box, load(case_text("tuple")))

        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.lists(st.tuples(st.text(), st.binary(), st.integers(0, 255)), max_size=20))
        def there_and_back(value: list[tuple[str, bytes, int]]) -> None:
            case.give = value
            assert served(isolate).outcome is Outcome.HUNG
            assert case.took == value

        there_and_back()
        isolate.close()

    def test_any_variant_and_result(self, values_box: ValuesSandbox, load: Load) -> None:
        case, results = CASES["variant"], CASES["option-result"]
        isolate = started(values_box, load(case_text("variant")))
        other = started(values_box, load(case_text("option-result")))
        dot, u32 = st.just(("dot", None)), st.integers(0, 2**32 - 1)
        shapes = dot | st.tuples(st.just("text"), st.text()) | st.tuples(st.just("pair"), st.tuples(u32, st.binary()))
        answers = st.none() | st.builds(Ok, st.none() | u32) | st.builds(Err, st.text())

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.lists(shapes, max_size=9), st.lists(answers, max_size=9))
        def there_and_back(some: list[Any], more: list[Any]) -> None:
            case.give, results.give = some, more
            assert served(isolate).outcome is served(other).outcome is Outcome.HUNG
            assert case.took == some
            assert plain(results.took) == plain(more)

        there_and_back()
        isolate.close()
        other.close()

    @pytest.mark.parametrize(
        ("name", "value"), [("u16", ["x"]), ("string", [7]), ("string", ["\ud800"]), ("variant", [("square", None)])]
    )
    def test_a_value_that_cannot_be_lowered_ends_the_guest_only(
        self, name: str, value: Any, values_box: ValuesSandbox, load: Load
    ) -> None:
        CASES[name].give = value
        isolate = started(values_box, load(case_text(name)))
        finished = served(isolate)
        assert (finished.outcome, finished.verdict) == (Outcome.INTERNAL_ERROR, Verdict.KILL)
        isolate.close()


class TestResources:
    def test_an_owned_resource_comes_back_as_itself_and_leaves_the_table(
        self, values_box: ValuesSandbox, load: Load
    ) -> None:
        case, things = CASES["own"], [Thing(), Thing()]
        isolate = started(values_box, load(case_text("own")))
        case.give = things
        assert served(isolate).outcome is Outcome.HUNG
        assert case.took == things
        assert isolate.guest.resources == 0
        assert [t.drops for t in things] == [0, 0], "giving away is not dropping"
        isolate.close()

    def test_a_borrowed_resource_stays_until_it_is_dropped_once(self, values_box: ValuesSandbox, load: Load) -> None:
        case, thing = CASES["borrow"], Thing()
        isolate = started(values_box, load(case_text("borrow")))
        case.give = [thing]
        for drops in (1, 2, 3):
            assert served(isolate).outcome is Outcome.HUNG
            assert case.took == [thing]
            assert thing.drops == drops
            assert isolate.guest.resources == 0
        isolate.close()

    def test_a_library_that_keeps_resources_otherwise_is_asked_in_calls_of_its_own(
        self, values_box: ValuesSandbox, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(component_resource, "PAIR_AT", -1)
        isolate = started(values_box, load(case_text("own")))
        case = CASES["own"]
        case.give = [Thing(), Thing()]
        assert served(isolate).outcome is Outcome.HUNG
        assert case.took == case.give
        isolate.close()

    def test_the_table_has_a_cap_and_a_full_table_is_an_ending_not_an_exception(
        self, values_box: ValuesSandbox, load: Load
    ) -> None:
        isolate = started(values_box, load(case_text("kept")), resources_max=12)
        CASES["kept"].give = [Thing() for _ in range(5)]
        assert [served(isolate).outcome for _ in range(2)] == [Outcome.HUNG, Outcome.HUNG]
        finished = served(isolate)  # 10 are kept, 12 with the request; 5 more do not fit
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEPTION, Verdict.KILL)
        assert finished.reason == "more than 12 live resources"
        isolate.close()
        CASES["kept"].give = [Thing() for _ in range(8)]
        full = started(values_box, load(case_text("kept")), resources_max=9)
        assert served(full).outcome is Outcome.HUNG
        finished = served(full)  # 8 are kept: there is not even room for a request and its outparam
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEPTION, Verdict.KILL)
        full.close()

    def test_a_closed_isolate_leaves_no_guest_and_no_thing_behind(self, values_box: ValuesSandbox, load: Load) -> None:
        before = dict(abi.GUESTS)
        isolate = started(values_box, load(case_text("kept")))
        CASES["kept"].give = things = [Thing()]
        served(isolate)
        assert isolate.guest.resources == 1
        isolate.close()
        isolate.close()
        assert before == abi.GUESTS
        assert things[0].drops == 0, "a store that is deleted runs no destructor"


WRONG_IMPORTS = {
    "no result": ("wasi:random/random", "get-random-u64", "(func)", "", "(call $wrong)"),
    "no parameter": ("wasi:random/random", "get-random-bytes", "(func (result (list u8)))", "(param i32)",
                     "(call $wrong (i32.const 16))"),
    "one parameter more": ("wasi:clocks/monotonic-clock", "now", '(func (param "x" u64) (result u64))',
                           "(param i64) (result i64)", "(drop (call $wrong (i64.const 1)))"),
    "an address as a list": ("wasi:io/poll", "poll", '(func (param "in" u64) (result (list u32)))',
                             "(param i64 i32)", "(call $wrong (i64.const 64) (i32.const 16))"),
    "numbers as handles": ("wasi:io/poll", "poll", '(func (param "in" (list u64)) (result (list u32)))',
                           "(param i32 i32 i32)", "(call $wrong (i32.const 64) (i32.const 1) (i32.const 16))"),
    "a result without its payload": (
        "test:abi/result-ok", "take", '(func (param "values" (list (result))))', "(param i32 i32)",
        "(call $wrong (i32.const 64) (i32.const 1))"),
    "a text in an option of a number": (
        "test:abi/option-option", "take", '(func (param "values" (list (option string))))', "(param i32 i32)",
        "(i32.store (i32.const 64) (i32.const 1)) (call $wrong (i32.const 64) (i32.const 1))"),
    "a shorter tuple": (
        "test:abi/tuple", "take", '(func (param "values" (list (tuple string))))', "(param i32 i32)",
        "(call $wrong (i32.const 64) (i32.const 1))"),
    "numbers as fields": (
        "test:abi/fields", "take", '(func (param "values" (list u64)))', "(param i32 i32)",
        "(call $wrong (i32.const 64) (i32.const 1))"),
    "fields without values": (
        "test:abi/fields", "take", '(func (param "values" (list (tuple string))))', "(param i32 i32)",
        "(call $wrong (i32.const 64) (i32.const 1))"),
    "fields with numbers": (
        "test:abi/fields", "take", '(func (param "values" (list (tuple string u64))))', "(param i32 i32)",
        "(call $wrong (i32.const 64) (i32.const 1))"),
    "another result": ("wasi:random/random", "get-random-u64", "(func (result string))", "(param i32)",
                       "(call $wrong (i32.const 16))"),
}  # fmt: skip


class TestForeignSignatures:
    """A component declares the types of its imports itself: every one of these would read wild memory if believed."""

    @pytest.mark.parametrize("name", WRONG_IMPORTS)
    def test_the_guest_is_trapped_and_the_process_lives(self, name: str, values_box: ValuesSandbox, load: Load) -> None:
        interface, function, kind, core, call = WRONG_IMPORTS[name]
        text = handler(
            imports=f'(import "{interface}@0.2.0" (instance $it (export "{function}" {kind})))',
            lowered=f'(core func $wrong (canon lower (func $it "{function}") {IN_LIBC}))',
            functions=f"wrong {core}",
            body=f"{DROP_BOTH} {call}",
        )
        isolate = started(values_box, load(text))
        finished = served(isolate)
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEPTION, Verdict.KILL), finished
        isolate.close()

    def test_a_resource_of_another_type_is_not_taken_for_the_right_one(
        self, values_box: ValuesSandbox, load: Load
    ) -> None:
        text = handler(
            http_exports="""(export "fields" (type $fields (sub resource)))
                (export "[constructor]fields" (func (result (own $fields))))""",
            imports="""(alias export $types "fields" (type $fields))
                (import "wasi:io/poll@0.2.0" (instance $poll (alias outer 1 $fields (type $not-a-pollable))
                    (export "poll" (func (param "in" (list (borrow $not-a-pollable))) (result (list u32))))))""",
            lowered=f"""(core func $new (canon lower (func $types "[constructor]fields")))
                (core func $poll (canon lower (func $poll "poll") {IN_LIBC}))""",
            functions="new (result i32)\npoll (param i32 i32 i32)",
            body=f"{DROP_BOTH} (i32.store (i32.const 64) (call $new))"
            " (call $poll (i32.const 64) (i32.const 1) (i32.const 16))",
        )
        isolate = started(values_box, load(text))
        finished = served(isolate)
        assert (finished.outcome, finished.reason) == (Outcome.EXCEPTION, "a resource of another type was passed")
        isolate.close()


FAULT_TYPES = [Exception, KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit, MemoryError]


class TestArmour:
    def faulty(self, load: Load, body: str) -> Mapped:
        parts = {"imports": FAULTS_IMPORT, "lowered": FAULTS_LOWERED, "functions": FAULTS_FUNCTIONS}
        return load(handler(**parts, body=f"{DROP_BOTH} {body}"))

    @pytest.mark.parametrize("kind", FAULT_TYPES)
    @pytest.mark.parametrize("body", ["(drop (call $fail))", "(call $drop (call $arm))"])
    def test_a_fault_of_the_host_ends_the_guest_only(
        self, kind: type[BaseException], body: str, values_box: ValuesSandbox, load: Load
    ) -> None:
        isolate = started(values_box, self.faulty(load, body))
        fault = values_box.faults.by_guest[isolate.guest] = kind("at /home/somebody/secret.py")
        finished = served(isolate)
        assert isolate.guest.fault is fault
        assert (finished.outcome, finished.verdict) == (Outcome.INTERNAL_ERROR, Verdict.KILL)
        assert finished.reason == f"the host failed ({kind.__name__})", "nothing of the host's is shown"
        isolate.close()

    def test_two_threads_keep_their_faults_apart(self, values_box: ValuesSandbox, load: Load) -> None:
        mapped, wrong = self.faulty(load, "(drop (call $fail))"), []
        together = threading.Barrier(2)

        def fail(kind: type[BaseException]) -> None:
            together.wait()
            for number in range(200):
                isolate = started(values_box, mapped)
                fault = values_box.faults.by_guest[isolate.guest] = kind(number)
                finished = served(isolate)
                if isolate.guest.fault is not fault or finished.reason != f"the host failed ({kind.__name__})":
                    wrong.append((kind, number, isolate.guest.fault, finished))
                del values_box.faults.by_guest[isolate.guest]
                isolate.close()

        threads = [threading.Thread(target=fail, args=(kind,)) for kind in (KeyError, SystemExit)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def rss_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


class TestLeaks:
    @pytest.mark.parametrize(
        ("name", "value", "calls", "bound_mib"),
        [("u8", bytes(65_536), 150, 32), ("string", ["x" * 1_000] * 20, 1_000, 5),
         ("variant", [("pair", (1, b"x" * 99))] * 20, 400, 5), ("own", "things", 2_000, 5)],
    )  # fmt: skip
    def test_calls_do_not_grow_the_process(
        self, name: str, value: Any, calls: int, bound_mib: int, values_box: ValuesSandbox, load: Load
    ) -> None:
        """A leak of what one of these values consists of would be 6 MiB and more (300 for the bytes)."""
        case, isolate = CASES[name], started(values_box, load(case_text(name)))
        things = value == "things"

        def call(times: int) -> None:
            for _ in range(times):
                case.give = [Thing() for _ in range(100)] if things else value
                assert served(isolate).outcome is Outcome.HUNG

        call(math.ceil(calls / 10))
        gc.collect()
        before = rss_bytes()
        call(calls)
        gc.collect()
        assert rss_bytes() - before < bound_mib << 20
        isolate.close()


class TestTypeText:
    def scope(self) -> World:
        world = World()
        interface = world.interface("test:scope/it@0.2.12")
        interface.resource("thing")
        interface.enum("color")
        return world

    @pytest.mark.parametrize(
        ("text", "kind"),
        [("u8", 2), ("string", 12), ("list<u8>", 13), ("list<list<u8>>", 13), ("tuple<u8, string>", 15), ("color", 17),
         ("option<own<thing>>", 18), ("result", 19), ("result<_, color>", 19), ("borrow<thing>", 21), ("thing", 21)],
    )  # fmt: skip
    def test_reads(self, text: str, kind: int) -> None:
        assert self.scope().scope.parse(text).kind == kind

    @pytest.mark.parametrize(
        "text", ["", "_", "u9", "list<", "list<u8", "u8 u8", "own<nothing>", "stream<u8>", "tuple<u8,>", "list<u8>>"]
    )
    def test_refuses(self, text: str) -> None:
        with pytest.raises(ValueError, match="type"):
            self.scope().scope.parse(text)

    def test_signatures(self) -> None:
        signature = self.scope().signature("self: borrow<thing>, a: list<tuple<u8, string>>, b: u64) -> result<u8>")
        assert [parameter.kind for parameter in signature.parameters] == [21, 13, 8]
        assert signature.lower is not None
        assert self.scope().signature(")").parameters == []
        assert self.scope().signature(")").lower is None
