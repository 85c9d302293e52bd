"""Guests that are given values and give them back, of every type that there is, and a host function that raises.

For each type T a guest is given a ``list<T>`` and gives it back: what the host lowered went through the guest's memory,
by wasmtime's canonical ABI, and is lifted again.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from isolates.artifact import Mapped
from isolates.component_value import Err, Ok
from isolates.engine import Sandbox
from isolates.isolate import Finished, Isolate
from isolates.limits import IsolateLimits
from isolates.wasi import world
from isolates.wit import Interface, World
from tests.isolates.guest_text import DROP_BOTH, IN_LIBC, handler
from tests.scripted_conversation import ScriptedConversation

Load = Callable[[str], Mapped]


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
