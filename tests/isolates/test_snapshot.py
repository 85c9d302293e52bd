"""Start-up done once: what starts from a snapshot is what would have started, or there is no snapshot.

Each guest of these tests exports functions that look at its state from inside, and is asked the same before and after.
"""

import random
import secrets
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wasmtime.component import Component

from isolates import snapshot
from isolates.artifact import Mapped, digest_of
from isolates.compiler import Shown
from isolates.component_binary import Root
from isolates.component_value import GuestTrap, integer
from isolates.engine import Sandbox
from isolates.isolate import Isolate
from isolates.snapshot import Snapshot
from isolates.wasm_binary import DATA, START, CoreModule, NotUnderstood
from tests.isolates.snapshot_guest import DIGEST, LIMITS, STARTS, component

Load = Callable[[bytes], Isolate]


@pytest.fixture
def load(box: Sandbox, tmp_path: Path) -> Iterator[Load]:
    """Starts components as they came."""
    started: list[Isolate] = []

    def isolate(encoded: bytes) -> Isolate:
        path = tmp_path / digest_of(encoded)
        path.write_bytes(bytes(Component(box.engine, encoded).serialize()))
        made = Isolate.start(box, Mapped(box, path, path.name), LIMITS, secrets.token_bytes)
        assert isinstance(made, Isolate), made
        started.append(made)
        return made

    yield isolate
    for made in started:
        made.close()


def taken(load: Load, encoded: bytes) -> bytes:
    """The component with its start-up done. ``NotUnderstood`` when that can not be had."""
    made = Snapshot(encoded)
    isolate = load(made.instrumented())
    assert isolate.guest.host_calls == 0
    return made.applied(made.read(Shown(isolate)))


def same(load: Load, encoded: bytes, *asked: str) -> list[int]:
    """What it answers, before and after: each is asked one after another, so that they may change what they see."""
    done = taken(load, encoded)
    for module in Root.parse(done).of("module"):
        binary = module.parts[0]
        assert isinstance(binary, bytes)
        assert not CoreModule.parse(binary).payload(START), "start-up would run again"
    answers = [[isolate.ask(name, [], integer("u64")) for name in asked] for isolate in (load(encoded), load(done))]
    assert answers[0] == answers[1]
    assert load(taken(load, done)).ask(asked[0], [], integer("u64")) == answers[0][0], "a snapshot of a snapshot"
    return answers[0]


class TestState:
    def test_a_memory(self, load: Load) -> None:
        items = """(memory 3) (data (i32.const 70000) "of the file") (data (i32.const 196600) "the end")
            (func $start
              (i32.store (i32.const 0) (i32.const 0x01020304)) (i64.store (i32.const 100000) (i64.const -2))
              (i32.store8 (i32.const 70001) (i32.const 0x21)) (i32.store8 (i32.const 196607) (i32.const 0xff))
              (memory.fill (i32.const 4095) (i32.const 7) (i32.const 2)))
            (start $start)"""
        exports = DIGEST + '(func (export "seen") (result i64) (i64.load (i32.const 70000)))'
        _, pages, seen = same(load, component(items, exports), "digest", "pages", "seen")
        assert (pages, seen.to_bytes(8, "little")) == (3, b"o! the f")

    def test_a_memory_that_start_up_grew(self, load: Load) -> None:
        """With what was written there, and with as much room to grow as before."""
        items = """(memory 1 5)
            (func $start
              (if (i32.ne (memory.grow (i32.const 2)) (i32.const 1)) (then unreachable))
              (i32.store (i32.const 196604) (i32.const 77)))
            (start $start)"""
        exports = (
            DIGEST
            + """
            (func (export "last") (result i64) (i64.load32_u (i32.const 196604)))
            (func (export "grow") (result i64) (i64.extend_i32_s (memory.grow (i32.const 1))))"""
        )
        names = ("digest", "pages", "last", "grow", "grow", "grow", "digest")
        _, *rest, _ = same(load, component(items, exports), *names)
        assert rest == [3, 77, 3, 4, 2**64 - 1]

    def test_a_memory_of_nothing(self, load: Load) -> None:
        items = """(memory 2) (data (i32.const 8) "gone")
            (func $start (i32.store (i32.const 8) (i32.const 0))) (start $start)"""
        encoded = component(items)
        same(load, encoded, "digest", "pages")
        (module,) = Root.parse(taken(load, encoded)).of("module")
        assert isinstance(module.parts[0], bytes)
        assert CoreModule.parse(module.parts[0]).payload(DATA) == b"\0"

    @pytest.mark.parametrize(
        ("kind", "bits"),
        [*(("i32", bits) for bits in (0, 1, 63, 64, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 64, 2**32 - 65)),
         *(("i64", bits) for bits in (0, 64, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 65)),
         *(("f32", struct.unpack("<I", struct.pack("<f", x))[0]) for x in (0.0, -0.0, 1.5, float("inf"), 1e-45)),
         *(("f32", bits) for bits in (0x7FC00000, 0xFFC00001, 0x7FA00001, 0x7F800001)),
         *(("f64", struct.unpack("<Q", struct.pack("<d", x))[0]) for x in (0.0, -0.0, -1e300, float("-inf"), 5e-324)),
         *(("f64", bits) for bits in (0x7FF8000000000000, 0xFFF8000000000123, 0x7FF0000000000001))],
    )  # fmt: skip
    def test_a_global_has_the_same_bits(self, kind: str, bits: int, load: Load) -> None:
        signed = bits - (1 << 32 if kind in ("i32", "f32") else 1 << 64) * (bits >> (31 if kind[1:] == "32" else 63))
        whole = {"i32": "i32", "f32": "i32", "i64": "i64", "f64": "i64"}[kind]
        value = f"({whole}.const {signed})"
        shown = f"({whole}.reinterpret_{kind} (global.get $g))" if kind[0] == "f" else "(global.get $g)"
        items = f"""(memory 1) (global $fixed {kind} ({kind}.const 3)) (global $g (mut {kind}) ({kind}.const 1))
            (func $start (global.set $g {f"({kind}.reinterpret_{whole} {value})" if kind[0] == "f" else value}))
            (start $start)"""
        exports = DIGEST + f'(func (export "bits") (result i64) {_wide(shown, whole)})'
        assert same(load, component(items, exports), "bits", "digest")[0] == bits

    def test_many_globals_keep_their_places(self, load: Load) -> None:
        kinds = ["i32", "i64", "f32", "f64"] * 15
        dice = random.Random(1)
        values = [dice.randrange(-(2**31), 2**31) for _ in kinds]
        # Every other one can not be changed; some are exported already.
        exported = [f'(export "x{i}")' if i % 3 == 0 else "" for i in range(len(kinds))]
        globals_ = "".join(
            f"(global $g{i} {exported[i]} {f'(mut {kind})' if i % 2 else kind} ({kind}.const {i}))"
            for i, kind in enumerate(kinds)
        )
        start = "".join(f"(global.set $g{i} ({kinds[i]}.const {values[i]}))" for i in range(1, len(kinds), 2))
        exports = DIGEST + "".join(
            f'(func (export "g{i}") (result i64) {_number(f"(global.get $g{i})", kind)})'
            for i, kind in enumerate(kinds)
        )
        items = f"(memory 1) {globals_} (func $start {start}) (start $start)"
        found = same(load, component(items, exports), *(f"g{i}" for i in range(len(kinds))))
        assert len(set(found)) > len(kinds) // 2

    def test_tables_are_as_they_were(self, load: Load) -> None:
        items = """(memory 1) (table 6 funcref) (type $number (func (result i64)))
            (elem (i32.const 1) func $one $two $one) (elem declare func $two)
            (func $one (type $number) (i64.const 11))
            (func $two (type $number) (i64.load (i32.const 64)))
            (func $start (i64.store (i32.const 64) (call_indirect (type $number) (i32.const 1)))
              (i64.store (i32.const 72) (i64.extend_i32_u (table.size 0))))
            (start $start)"""
        exports = (
            DIGEST
            + "".join(
                f'(func (export "call{i}") (result i64) (call_indirect (type $number) (i32.const {i})))'
                for i in (1, 2, 3)
            )
            + '(func (export "null") (result i64) (i64.extend_i32_u (ref.is_null (table.get 0 (i32.const 5)))))'
        )
        assert same(load, component(items, exports), "digest", "call1", "call2", "call3", "null")[1:] == [
            11, 11, 11, 1,
        ]  # fmt: skip

    def test_several_modules(self, load: Load) -> None:
        """One has the memory, another one a global that a third one imports; each has a start function of its own."""
        before = """
            (core module $libc (memory (export "memory") 1 9) (global $top (export "top") (mut i32) (i32.const 16))
              (data (i32.const 256) "libc's")
              (func $start (global.set $top (i32.const 32)) (i32.store (i32.const 256) (i32.const 1))) (start $start))
            (core instance $libc (instantiate $libc))
            (core module $middle (import "libc" "memory" (memory 1)) (import "libc" "top" (global $top (mut i32)))
              (global $count (export "count") (mut i64) (i64.const -7)) (global $own (mut f32) (f32.const 0.5))
              (func (export "count-up") (result i64)
                (global.set $count (i64.add (global.get $count) (i64.const 1))) (global.get $count))
              (func $start (global.set $own (f32.const -2.5))
                (i32.store offset=512 (global.get $top) (i32.const 0x7777))
                (global.set $top (i32.add (global.get $top) (i32.const 8)))
                (drop (memory.grow (i32.const 1)))) (start $start))
            (core instance $middle (instantiate $middle (with "libc" (instance $libc))))"""
        imports = """(import "libc" "memory" (memory 1)) (import "libc" "top" (global $top (mut i32)))
            (import "middle" "count" (global $count (mut i64))) (import "middle" "count-up" (func $up (result i64)))"""
        items = """(func $start (drop (call $up)) (drop (call $up))
            (i64.store (i32.const 65536) (global.get $count))) (start $start)"""
        exports = (
            DIGEST
            + """
            (func (export "top") (result i64) (i64.extend_i32_u (global.get $top)))
            (func (export "up") (result i64) (call $up))"""
        )
        arguments = '(with "libc" (instance $libc)) (with "middle" (instance $middle))'
        encoded = component(items, exports, before=before, imports=imports, arguments=arguments)
        assert same(load, encoded, "digest", "pages", "top", "up", "up", "digest")[1:5] == [
            2, 40, 2**64 - 4, 2**64 - 3,
        ]  # fmt: skip

    def test_data_for_another_modules_memory_is_not_put_there_again(self, load: Load) -> None:
        before = """(core module $libc (memory (export "memory") 1)) (core instance $libc (instantiate $libc))"""
        items = """(data (i32.const 64) "as it came")
            (func $start (i32.store (i32.const 64) (i32.const 0x41414141))) (start $start)"""
        exports = DIGEST + '(func (export "seen") (result i64) (i64.load (i32.const 64)))'
        encoded = component(
            items, exports, before=before, imports='(import "libc" "memory" (memory 1))',
            arguments='(with "libc" (instance $libc))',
        )  # fmt: skip
        assert same(load, encoded, "digest", "seen")[1].to_bytes(8, "little") == b"AAAAt ca"


def _wide(shown: str, whole: str) -> str:
    return f"(i64.extend_i32_u {shown})" if whole == "i32" else shown


def _number(shown: str, kind: str) -> str:
    """A number's bits as an i64."""
    if kind[0] == "f":
        shown, kind = f"(i{kind[1:]}.reinterpret_{kind} {shown})", f"i{kind[1:]}"
    return _wide(shown, kind)


# ------------------------------------------------------------------------------------------------------ by chance


class Chance:
    """A start-up made by dice: it computes with its globals, writes and copies memory, grows it, loops and calls."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._kinds = [self._dice.choice(["i32", "i64", "f32", "f64"]) for _ in range(self._dice.randint(1, 12))]
        self._loops = 0

    def component(self) -> bytes:
        dice = self._dice
        helpers = [self._steps(3, 1) for _ in range(3)]
        start, step = self._steps(12, 0), self._steps(4, 0)
        globals_ = "".join(
            f"(global $g{i} (mut {k}) ({k}.const {dice.randrange(-9, 99)}))" for i, k in self._numbered()
        )
        data = "".join(
            f'(data (i32.const {dice.randrange(60_000)}) "{"".join(dice.choices("abcdefgh", k=40))}")'
            for _ in range(dice.randrange(4))
        )
        items = f"""(memory {dice.randint(1, 3)} {dice.choice(["", "250"])}) {data} {globals_}
            {" ".join(f"(global $n{i} (mut i32) (i32.const 0))" for i in range(self._loops))}
            (type $any (func)) (table 3 funcref) (elem (i32.const 0) func $h0 $h1 $h2)
            {" ".join(f"(func $h{i} (type $any) {text})" for i, text in enumerate(helpers))}
            (func $step {step}) (func $start {start}) (start $start)"""
        exports = DIGEST + '(func (export "step") (result i64) (call $step) (i64.const 0))'
        exports += "".join(
            f'(func (export "g{i}") (result i64) {_number(f"(global.get $g{i})", kind)})'
            for i, kind in self._numbered()
        )
        return component(items, exports)

    def asked(self) -> list[str]:
        state = ["digest", "pages", *(f"g{i}" for i, _ in self._numbered())]
        return [*state, "step", *state, "step", "step", *state]

    def _numbered(self) -> list[tuple[int, str]]:
        return list(enumerate(self._kinds))

    def _steps(self, count: int, depth: int) -> str:
        return "\n".join(self._step(depth) for _ in range(count))

    def _value(self, kind: str) -> str:
        dice = self._dice
        same_kind = [i for i, k in self._numbered() if k == kind]
        if same_kind and dice.random() < 0.7:
            operators = {"i": ["add", "sub", "mul", "xor", "rotl"], "f": ["add", "sub", "mul", "min", "copysign"]}
            # A NaN that arithmetic makes may have any sign: it is made the same before it is kept.
            operator, other = dice.choice(operators[kind[0]]), dice.choice(same_kind)
            made = f"({kind}.{operator} (global.get $g{other}) {self._constant(kind)})"
            return made if kind[0] == "i" else f"({kind}.abs {made})"
        return self._constant(kind)

    def _constant(self, kind: str) -> str:
        dice = self._dice
        if kind[0] == "f":
            return f"({kind}.const {dice.choice(['0', '-0', 'inf', '-inf', '1.5', '-2.25e10', '1e-40', 'nan'])})"
        return f"({kind}.const {dice.choice([0, 1, -1, dice.randrange(-(2**31), 2**31), 2**31 - 1])})"

    def _at(self, size: int) -> str:
        return f"(i32.const {self._dice.randrange(65_536 - size)})"

    def _step(self, depth: int) -> str:
        dice = self._dice
        i, kind = dice.choice(self._numbered())
        how = dice.randrange(8 if depth < 2 else 5)
        if how == 0:
            return f"(global.set $g{i} {self._value(kind)})"
        if how == 1:
            return f"({kind}.store {self._at(8)} {self._value(kind)})"
        if how == 2:
            return (
                f"(memory.fill {self._at(5_000)} (i32.const {dice.randrange(256)}) (i32.const {dice.randrange(5_000)}))"
            )
        if how == 3:
            return f"(memory.copy {self._at(5_000)} {self._at(5_000)} (i32.const {dice.randrange(5_000)}))"
        if how == 4 and depth == 0:  # not in a loop: one that fills its memory has no snapshot
            return f"(i32.store {self._at(4)} (memory.grow (i32.const {dice.choice([0, 1, 1, 2, 7])})))"
        if how == 5 and depth == 0:
            return dice.choice(
                [f"(call $h{dice.randrange(3)})", f"(call_indirect (type $any) (i32.const {dice.randrange(3)}))"]
            )
        if how >= 6 and depth < 2 and dice.random() < 0.5:
            return f"(if (i32.and (i32.load {self._at(4)}) (i32.const 1)) (then {self._steps(2, depth + 1)}))"
        if depth == 2:
            return f"(global.set $g{i} {self._value(kind)})"
        number, self._loops = self._loops, self._loops + 1
        return f"""(global.set $n{number} (i32.const {dice.randint(1, 200)}))
            (loop $l{number} {self._steps(2, depth + 1)}
              (global.set $n{number} (i32.sub (global.get $n{number}) (i32.const 1)))
              (br_if $l{number} (i32.gt_s (global.get $n{number}) (i32.const 0))))"""


@pytest.mark.parametrize("seed", range(40))
def test_start_ups_made_by_chance(seed: int, load: Load) -> None:
    chance = Chance(seed)
    encoded = chance.component()
    same(load, encoded, *chance.asked())


# -------------------------------------------------------------------------------------------------------- refused


class TestRefused:
    @pytest.mark.parametrize(
        ("code", "items"),
        [("(table.set 0 (i32.const 0) (ref.null func))", ""),
         ("(drop (table.grow 0 (ref.null func) (i32.const 1)))", ""),
         ("(table.fill 0 (i32.const 0) (ref.null func) (i32.const 1))", ""),
         ("(table.copy 0 0 (i32.const 0) (i32.const 1) (i32.const 1))", ""),
         ("(table.init 0 $e (i32.const 0) (i32.const 0) (i32.const 0))", "(elem $e func $start)"),
         ("(elem.drop $e)", "(elem $e func $start)"),
         ("(memory.init $d (i32.const 0) (i32.const 0) (i32.const 1))", '(data $d "x")'),
         ("(data.drop $d)", '(data $d "x")')],
    )  # fmt: skip
    def test_code_that_could_change_what_is_not_seen(self, code: str, items: str, load: Load) -> None:
        """Wherever it stands, and whether it runs or not."""
        main = f"(memory 1) (table 2 funcref) {items} {STARTS}"
        used = f"(func $user (if (i32.const 0) (then {code})))"
        load(component(main + used))
        with pytest.raises(NotUnderstood, match="changes tables or segments"):
            Snapshot(component(main + used))
        before = f"""(core module $other (memory (export "m") 1) (table 2 funcref)
            {items.replace("$start", "$user")} {used}) (core instance $other (instantiate $other))"""
        with pytest.raises(NotUnderstood, match="changes tables or segments"):
            Snapshot(component(STARTS, before=before, imports='(import "o" "m" (memory 1))',
                               arguments='(with "o" (instance $other))'))  # fmt: skip

    @pytest.mark.parametrize("count", [64, 65])
    def test_too_many_globals(self, count: int) -> None:
        globals_ = "(global (mut i32) (i32.const 1)) (global i32 (i32.const 2))" * count
        encoded = component(f"(memory 1) {globals_} {STARTS}")
        if count <= snapshot.GLOBALS_MAX:
            Snapshot(encoded)
        else:
            with pytest.raises(NotUnderstood, match="too many globals"):
                Snapshot(encoded)

    def test_too_much_code(self) -> None:
        small, large = (component(f"(memory 1) {STARTS} (func $f {'nop ' * count})") for count in (10, 2_000))
        Snapshot(small, code_bytes_max=1_000)
        with pytest.raises(NotUnderstood, match="too much code"):
            Snapshot(large, code_bytes_max=1_000)

    @pytest.mark.parametrize(
        ("items", "more", "why"),
        [("(memory 1) (global (mut funcref) (ref.null func))", {}, "not a number"),
         ("(memory 1) (global (mut externref) (ref.null extern))", {}, "not a number"),
         ("(memory 1)", {"before": "(core module $never)"}, "without one instance"),
         ("(memory 1)", {"before": "(core module $twice) (core instance (instantiate $twice))"
                         "(core instance (instantiate $twice))"}, "without one instance"),
         ("(memory 1)", {"after": "(component $inner (core module))"}, "a component in the component"),
         ("(memory 1)", {"after": "(component $inner (component (core module)))"}, "a component in the component"),
         ("(memory 1)", {"before": "(type $own (resource (rep i32)))"}, "newer component model")],
    )  # fmt: skip
    def test_state_of_another_kind(self, items: str, more: dict[str, str], why: str) -> None:
        with pytest.raises(NotUnderstood, match=why):
            Snapshot(component(f"{items} {STARTS}", **more))

    def test_no_memory(self) -> None:
        with pytest.raises(NotUnderstood, match="no memory of its own"):
            Snapshot(component("(func $start) (start $start)", '(func (export "nothing") (result i64) (i64.const 0))'))

    def test_a_component_of_types_only_is_no_state(self, load: Load) -> None:
        inner = '(component $inner (type (record (field "a" u32))) (export "b" (type 0)))'
        assert same(load, component(f"(memory 1) {STARTS}", after=inner), "digest", "pages")[1] == 1

    def test_state_that_nobody_could_see(self) -> None:
        before = """(core module $closed (global $g (mut i32) (i32.const 0)) (func $s (global.set $g (i32.const 1)))
            (start $s)) (core instance (instantiate $closed))"""
        with pytest.raises(NotUnderstood, match="exports nothing"):
            Snapshot(component(f"(memory 1) {STARTS}", before=before)).instrumented()

    def test_a_memory_without_room_to_show_it(self, load: Load) -> None:
        with pytest.raises(GuestTrap):
            taken(load, component(f"(memory 2 2) {STARTS}"))
