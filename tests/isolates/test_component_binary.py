"""A component's root taken apart and put together: nothing changes but the numbers, and garbage is told as such."""

import contextlib
import random
import tracemalloc
from typing import Any

import pytest
from wasmtime import Store, WasmtimeError, wat2wasm
from wasmtime.component import Component, Linker, ResourceHost, ResourceType

from isolates import component_binary as binary
from isolates.compiler import prepared
from isolates.component_binary import Item, Root
from isolates.engine import Sandbox
from isolates.wasm_binary import COMPONENT_PREAMBLE, CUSTOM, NotUnderstood, leb, name, section, sections
from tests.isolates.conftest import ROOT

#: The example workers that are in the repository. What a toolchain made beside them has megabytes.
WORKERS = sorted(path for path in ROOT.glob("workers/*/*/worker.wasm") if path.stat().st_size < 100_000)

#: Every kind of definition that this project understands, each referred to by another: numbers that are off by one
#: compile to something else or to nothing.
EVERYTHING = """
(component
  (import "host" (instance $host
    (type $pair (record (field "a" u32) (field "b" string)))
    (export "pair" (type $p (eq $pair)))
    (export "thing" (type $thing (sub resource)))
    (export "make" (func (param "n" u32) (result (own $thing))))
    (export "shout" (func (param "text" string) (result string)))
    (export "sum" (func (param "p" $p) (result u32)))))
  (import "plain" (func $plain (param "n" u32) (result u32)))
  (alias export $host "thing" (type $thing))
  (alias export $host "shout" (func $shout))
  (alias export $host "make" (func $make))
  (type $text (func (param "text" string) (result string)))
  (type $number (func (param "n" u32) (result u32)))
  (core module $libc
    (memory (export "memory") 1)
    (table (export "table") 2 funcref)
    (global $top (export "top") (mut i32) (i32.const 1024))
    (global $freed (mut i32) (i32.const 0))
    (func (export "free") (param i32) (global.set $freed (i32.add (global.get $freed) (i32.const 1))))
    (func (export "freed") (result i32) (global.get $freed))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (if (local.get 0) (then (return (local.get 0))))
      (global.get $top) (global.set $top (i32.add (global.get $top) (i32.add (local.get 3) (i32.const 8))))))
  (core instance $libc (instantiate $libc))
  (alias core export $libc "memory" (core memory $memory))
  (alias core export $libc "table" (core table $table))
  (alias core export $libc "top" (core global $top))
  (alias core export $libc "realloc" (core func $realloc))
  (core func $shout (canon lower (func $shout) string-encoding=utf16 (memory $memory) (realloc $realloc)))
  (core func $plain (canon lower (func $plain)))
  (core func $make (canon lower (func $make)))
  (core func $drop (canon resource.drop $thing))
  (core module $main
    (type $unary (func (param i32) (result i32)))
    (import "libc" "memory" (memory 1))
    (import "libc" "table" (table 1 funcref))
    (import "libc" "top" (global $top (mut i32)))
    (import "host" "shout" (func $shout (param i32 i32 i32)))
    (import "host" "plain" (func $plain (param i32) (result i32)))
    (import "host" "make" (func $make (param i32) (result i32)))
    (import "host" "drop" (func $drop (param i32)))
    (elem (i32.const 1) func $plain)
    (func (export "greet") (param i32 i32) (result i32)
      (call $drop (call $make (i32.const 7)))
      (call $shout (local.get 0) (local.get 1) (i32.const 16))
      (i32.const 16))
    (func (export "twice") (param i32) (result i32)
      (call_indirect (type $unary) (call $plain (local.get 0)) (i32.const 1)))
    (func (export "top") (param i32) (result i32)
      (i32.add (local.get 0) (i32.ge_u (global.get $top) (i32.const 1024)))))
  (core instance $given (export "shout" (func $shout)) (export "plain" (func $plain)) (export "make" (func $make))
    (export "drop" (func $drop)))
  (core instance $shared (export "memory" (memory $memory)) (export "table" (table $table))
    (export "top" (global $top)))
  (core instance $main (instantiate $main (with "libc" (instance $shared)) (with "host" (instance $given))))
  (func $greet (type $text) (canon lift (core func $main "greet") string-encoding=utf16 (memory $memory)
    (realloc $realloc) (post-return (core func $libc "free"))))
  (func $twice (type $number) (canon lift (core func $main "twice")))
  (func $freed (result u32) (canon lift (core func $libc "freed")))
  (component $inner
    (import "f" (func $f (param "n" u32) (result u32)))
    (core func $f (canon lower (func $f)))
    (core module $m (import "" "f" (func $f (param i32) (result i32)))
      (func (export "g") (param i32) (result i32) (i32.add (i32.const 1) (call $f (local.get 0)))))
    (core instance $m (instantiate $m (with "" (instance (export "f" (func $f))))))
    (func (export "g") (param "n" u32) (result u32) (canon lift (core func $m "g"))))
  (instance $first (instantiate $inner (with "f" (func $plain))))
  (alias export $first "g" (func $g))
  (instance $second (instantiate $inner (with "f" (func $g))))
  (func $top (type $number) (canon lift (core func $main "top")))
  (instance $both (export "greet" (func $greet)) (export "g" (func $second "g")) (export "freed" (func $freed)))
  (export "both" (instance $both))
  (export $again "twice" (func $twice))
  (export "once-more" (func $again) (func (type $number)))
  (export "top" (func $top)))
"""


@pytest.fixture(scope="module")
def everything() -> bytes:
    return bytes(wat2wasm(EVERYTHING))


@pytest.fixture(scope="module")
def linker(box: Sandbox) -> Linker:
    made: Linker = Linker(box.engine)
    thing = ResourceType.host(1)
    with made.root() as root:
        root.add_func("plain", lambda store, n: 10 * n)
        with root.add_instance("host") as host:
            host.add_resource("thing", thing, lambda store, rep: None)
            host.add_func("make", lambda store, n: _own(store, n))
            host.add_func("shout", lambda store, text: text.upper())
            host.add_func("sum", lambda store, p: p.a)
    return made


def _own(store: Any, number: int) -> Any:
    return ResourceHost.own(number, 1).to_any(store)


def runs(box: Sandbox, linker: Linker, component: bytes) -> None:
    """The component does what ``EVERYTHING`` says."""
    store = Store(box.engine)
    store.set_epoch_deadline(1 << 40)
    instance = linker.instantiate(store, Component(box.engine, component))

    def call(*path: str, given: tuple[Any, ...]) -> Any:
        index = None
        for part in path:
            index = instance.get_export_index(store, part, index)
        assert index is not None
        function = instance.get_func(store, index)
        assert function is not None
        result = function(store, *given)
        function.post_return(store)
        return result

    assert call("both", "greet", given=("straße €",)) == "STRASSE €"
    assert call("both", "freed", given=()) == 1
    assert call("both", "g", given=(5,)) == 52
    assert call("twice", given=(3,)) == call("once-more", given=(3,)) == 300
    assert call("top", given=(1,)) == 2


class TestRoundTrip:
    @pytest.mark.parametrize("worker", WORKERS, ids=lambda path: path.parent.name)
    def test_a_worker(self, worker: Any, box: Sandbox) -> None:
        data = worker.read_bytes()
        bare = b"".join(section(n, payload) for n, payload in sections(data, COMPONENT_PREAMBLE) if n != CUSTOM)
        encoded = Root.parse(data).encode()
        assert len(encoded) == len(COMPONENT_PREAMBLE) + len(bare)
        assert Root.parse(encoded).encode() == encoded
        before, after = Component(box.engine, data).type, Component(box.engine, encoded).type
        assert list(after.imports(box.engine)) == list(before.imports(box.engine))
        assert list(after.exports(box.engine)) == list(before.exports(box.engine))

    def test_everything(self, everything: bytes, box: Sandbox, linker: Linker) -> None:
        runs(box, linker, everything)
        root = Root.parse(everything)
        assert root.encode() == Root.parse(root.encode()).encode()
        runs(box, linker, root.encode())
        spaces = {item.defines for item in root.items}
        assert spaces == {*binary._SPACES.values(), *binary._CORE_SPACES.values()} - {"value", "core tag", "core type"}


def one_of_each() -> list[Item]:
    """Definitions of all spaces that may be added."""
    text = """(module (memory (export "m") 1) (table (export "t") 1 funcref) (global (export "g") i32 (i32.const 1))
      (func (export "f") unreachable))"""
    module = binary.core_module(bytes(wat2wasm(text)))
    instance = binary.instantiate(module, {})
    spaces = {"core memory": "m", "core table": "t", "core global": "g", "core func": "f"}
    aliases = {called: binary.alias(space, instance, called) for space, called in spaces.items()}
    return [
        binary.core_module_type(b"\x50\x00"), module, instance, *aliases.values(), binary.inline(aliases),
        Item(binary.INSTANCE, [b"\1\0"], "instance"),
    ]  # fmt: skip


class TestInserting:
    def test_at_any_place_renumbers_all_that_follows(self, everything: bytes, box: Sandbox, linker: Linker) -> None:
        size = len(Root.parse(everything).items)
        assert size > 40
        for place in range(size):
            root = Root.parse(everything)
            root.insert_before(root.items[place], *one_of_each())
            runs(box, linker, root.encode())

    def test_at_all_places_and_behind(self, everything: bytes, box: Sandbox, linker: Linker) -> None:
        """So many that numbers get another length."""
        root = Root.parse(everything)
        for place in list(root.items):
            root.insert_before(place, *one_of_each(), *one_of_each(), *one_of_each())
        root.append(*one_of_each())
        assert root.count("core func") > 128
        runs(box, linker, root.encode())

    def test_a_function_of_its_own_kind(self, everything: bytes, box: Sandbox, linker: Linker) -> None:
        """Lifts and lowers made here: a function goes down, comes up, and is exported under another name."""
        root = Root.parse(everything)
        plain = next(item for item in root.of("import") if item.facts[1] == "plain")
        lowered = binary.lower(plain, [])
        kind = Item(binary.TYPE, [b"\x40\x01\x01n\x79\x00\x79"], "type")
        lifted = binary.lift(lowered, root.count("type"))
        root.append(lowered, kind, lifted, binary.export("tenfold", lifted))
        runs(box, linker, root.encode())
        store = Store(box.engine)
        store.set_epoch_deadline(1 << 40)
        instance = linker.instantiate(store, Component(box.engine, root.encode()))
        assert instance.get_func(store, "tenfold")(store, 4) == 40  # type: ignore[misc]


class TestSubstituting:
    def test_all_that_refers_to_it_refers_to_the_other(self, everything: bytes, box: Sandbox, linker: Linker) -> None:
        root = Root.parse(everything)
        realloc = next(i for i in root.of("alias") if i.facts[2] == "realloc")
        libc = next(i for i in root.of("instantiate"))
        again = binary.alias("core func", libc, "realloc")
        root.insert_before(realloc, again)
        root.substitute({realloc: again})
        assert realloc not in root.items
        assert all(realloc is not used for item in root.items for _, used in item.options)
        runs(box, linker, root.encode())

    def test_what_is_known_of_the_others_follows(self, everything: bytes) -> None:
        root = Root.parse(everything)
        module = next(root.of("module"))
        other = binary.core_module(module.parts[0])  # type: ignore[arg-type]
        root.insert_before(module, other)
        root.substitute({module: other})
        assert next(root.of("instantiate")).facts == ("instantiate", other)

    def test_thousands_at_once(self) -> None:
        """Linear in what there is: each of many calls of one function is replaced in one pass."""
        lowers = "(core func (canon lower (func $f)))" * 5_000
        root = Root.parse(bytes(wat2wasm(f'(component (import "f" (func $f)) {lowers})')))
        changes = {item: binary.lower(item.facts[1], []) for item in root.of("lower")}  # type: ignore[arg-type]
        root.items[1:1] = [*root.items[1:2], *changes.values()]
        root.substitute(changes)
        assert root.count("core func") == 5_000


class TestGarbage:
    def told(self, data: bytes) -> None:
        """Only these come out: whoever asks leaves the component as it is."""
        with contextlib.suppress(NotUnderstood, LookupError, ValueError, RecursionError):
            Root.parse(data).encode()
        prepared(data)

    def test_cut_off_at_every_byte(self, everything: bytes) -> None:
        for size in range(len(everything)):
            try:
                Root.parse(everything[:size]).encode()
            except (NotUnderstood, LookupError):
                continue
            boundary = COMPONENT_PREAMBLE + b"".join(
                section(n, payload) for n, payload in sections(everything[:size], COMPONENT_PREAMBLE)
            )
            assert boundary == everything[:size], "only whole sections are a component"

    def test_a_worker_cut_off(self) -> None:
        data = WORKERS[-1].read_bytes()
        for size in range(0, len(data), 397):
            self.told(data[:size])

    @pytest.mark.parametrize("seed", range(5))
    def test_flipped_bits(self, seed: int, everything: bytes) -> None:
        seeded = random.Random(seed)
        worker = next(w for w in WORKERS if w.parent.name == "echo").read_bytes()
        types = worker.index(b"wasi:http/types")
        for original in (everything, worker):
            for _ in range(40):
                damaged = bytearray(original)
                for _ in range(seeded.randrange(1, 6)):
                    at = seeded.randrange(8, len(damaged))
                    # The root's own sections are a small part of a worker: half of the damage is done there.
                    at = at if original is everything or seeded.random() < 0.5 else types + at % 2_000
                    damaged[at] = seeded.choice((damaged[at] ^ (1 << seeded.randrange(8)), seeded.randrange(256)))
                self.told(bytes(damaged))

    @pytest.mark.parametrize("seed", range(4))
    def test_sections_out_of_order_repeated_and_left_out(self, seed: int, everything: bytes) -> None:
        seeded = random.Random(seed)
        pieces = [section(n, payload) for n, payload in sections(everything, COMPONENT_PREAMBLE)]
        for _ in range(40):
            self.told(COMPONENT_PREAMBLE + b"".join(seeded.choices(pieces, k=seeded.randrange(2 * len(pieces)))))

    @pytest.mark.parametrize("kind", [b"\x42\x01\x01", b"\x41\x01\x01", b"\x41\x01\x01\x42\x01\x01"])
    def test_types_in_types_in_types(self, kind: bytes) -> None:
        for depth in (10, 100, 100_000):
            data = COMPONENT_PREAMBLE + section(binary.TYPE, b"\x01" + kind * depth + b"\x7f")
            if depth == 10:
                assert Root.parse(data).encode() == data
            self.told(data)

    @pytest.mark.parametrize("number", range(12))
    def test_a_claim_of_very_many_items_costs_nothing(self, number: int) -> None:
        tracemalloc.start()
        try:
            for count in (2**32 - 1, 2**32, 2**69):
                for rest in (b"", b"\x00", b"\x01", bytes(100), b"\x42" + leb(count), b"\x40" + leb(count)):
                    self.told(COMPONENT_PREAMBLE + section(number, leb(count) + rest))
                    self.told(COMPONENT_PREAMBLE + section(number, b"\x01" + rest + leb(count) + bytes(100)))
                self.told(COMPONENT_PREAMBLE + bytes([number]) + leb(count) + bytes(100))
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 1 << 20

    def test_very_many_items_that_are_there(self) -> None:
        most = 1_000

        def types(count: int) -> bytes:
            return COMPONENT_PREAMBLE + section(binary.TYPE, leb(count) + b"\x7f" * count)

        assert Root.parse(types(most), items_max=most).count("type") == most
        arguments = section(binary.CORE_INSTANCE, b"\1\1" + leb(most) + b"\0\0\0" * most)
        modules = section(binary.CORE_MODULE, b"") * (most + 1)
        for data in (types(most + 1), COMPONENT_PREAMBLE + modules, COMPONENT_PREAMBLE + arguments):
            with pytest.raises(NotUnderstood, match="very many"):
                Root.parse(data, items_max=most)

    @pytest.mark.parametrize(
        "text",
        ["(component (core type (module)))", "(component (type (resource (rep i32))))",
         "(component (component (type (func)) (component (alias outer 1 0 (type $t)))))",
         '(component (import "a" (func (param "f" (future u8)))))'],
    )  # fmt: skip
    def test_what_is_newer_or_refers_outwards(self, text: str) -> None:
        try:
            data = bytes(wat2wasm(text))
        except WasmtimeError:
            pytest.skip("this text format does not have it")
        self.told(data)

    @pytest.mark.parametrize(
        "payload",
        [name("a"), b"\x02" + name("a") + b"\x01\x00", b"\xff" + name("a") + b"\x01\x00"],
        ids=["cut off", "with a version suffix", "unknown"],
    )
    def test_a_name_of_another_kind(self, payload: bytes) -> None:
        for number in (binary.IMPORT, binary.EXPORT):
            with pytest.raises(NotUnderstood):
                Root.parse(COMPONENT_PREAMBLE + section(number, b"\x01" + payload))
