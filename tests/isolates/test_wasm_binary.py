"""Numbers, sections, and the type of a core module, which wasmtime compares with the module itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmtime import Module, Store, WasmtimeError, wat2wasm
from wasmtime.component import Component, Linker

from isolates import component_binary as binary
from isolates.component_binary import Root
from isolates.engine import Sandbox
from isolates.wasm_binary import (
    CORE_PREAMBLE,
    CUSTOM,
    DATA,
    EXPORT,
    ITEMS_MAX,
    CoreModule,
    NotUnderstood,
    Reader,
    leb,
    name,
    section,
    sections,
    vector,
)

#: Everything that a module type can say, and what makes its index spaces: imports before definitions, of each sort.
MODULE = """(module
  (type $unused (func (param i32 i64 f32 f64 v128 funcref externref) (result externref)))
  (import "a" "f" (func $f (param i64) (result i32)))
  (import "a" "g" (global $g i32))
  (import "b" "g" (global $h (mut i64)))
  (import "b" "t" (table $t 3 9 funcref))
  (import "b" "m" (memory $m 2 5))
  (type $own (func (param f32) (result f64 i32)))
  (func $first (param i64) (result i32) (call $f (local.get 0)))
  (func $second (type $own) (f64.const 1) (i32.const 2))
  (table $t1 1 funcref) (table $t2 7 7 externref)
  (global $g1 (mut f32) (f32.const 0.5))
  (global $g2 f64 (f64.const 1e300))
  (global $g3 i32 (i32.add (global.get $g) (i32.const -1000000)))
  (global $g4 i64 (i64.const -9223372036854775808))
  (global $g5 funcref (ref.func $second))
  (global $g6 externref (ref.null extern))
  (global $g7 funcref (ref.null func))
  (export "f" (func $f)) (export "first" (func $first)) (export "second" (func $second))
  (export "g" (global $g)) (export "h" (global $h))
  (export "g1" (global $g1)) (export "g2" (global $g2)) (export "g3" (global $g3)) (export "g4" (global $g4))
  (export "g5" (global $g5)) (export "g6" (global $g6)) (export "g7" (global $g7))
  (export "t" (table $t)) (export "t1" (table $t1)) (export "t2" (table $t2)) (export "m" (memory $m))
  (elem (table $t1) (i32.const 0) func $first) (data (i32.const 0) "data") (start $started) (func $started))"""
#: Instances that satisfy the imports of ``MODULE``.
SATISFIED = """(component
  (import "module" (core module $imported))
  (core module $a (func (export "f") (param i64) (result i32) i32.const 7) (global (export "g") i32 (i32.const 5)))
  (core module $b
    (global (export "g") (mut i64) (i64.const 1)) (table (export "t") 3 9 funcref) (memory (export "m") 2 5))
  (core instance $a (instantiate $a))
  (core instance $b (instantiate $b)))"""


class TestNumbers:
    @given(st.integers(0, 2**64))
    def test_a_number_comes_back(self, value: int) -> None:
        encoded = leb(value)
        reader = Reader(encoded + b"\x80")
        assert reader.number() == value
        assert reader.at == len(encoded) == max(1, -(-value.bit_length() // 7))

    @given(st.integers(0, 2**32 - 1), st.integers(0, 4))
    def test_one_that_is_longer_than_it_need_be(self, value: int, padding: int) -> None:
        *front, last = leb(value)
        padded = bytes(front) + bytes([last | 0x80]) + b"\x80" * padding + b"\0"
        assert Reader(padded).number() == value

    @pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9, b"\xff" * 200])
    def test_one_without_an_end(self, data: bytes) -> None:
        with pytest.raises(NotUnderstood):
            Reader(data).number()

    def test_signed_numbers_keep_their_raw_bits(self) -> None:
        assert Reader(b"\x7f").number() == 0x7F
        assert Reader(b"\xc0\x00").number() == 64


class TestReader:
    def test_its_end(self) -> None:
        reader = Reader(b"\x02ab\x01")
        assert not reader.done
        assert reader.name() == b"ab"
        assert reader.byte() == 1
        assert reader.done
        assert reader.take(0) == b""
        for read in (reader.byte, reader.number, reader.name, reader.count, lambda: reader.take(1)):
            with pytest.raises(NotUnderstood):
                read()
        assert reader.at == 4

    @given(st.binary(max_size=20), st.integers(0, 2**70))
    def test_no_more_is_taken_than_there_is(self, data: bytes, size: int) -> None:
        reader = Reader(data)
        if size <= len(data):
            assert reader.take(size) == data[:size]
        else:
            with pytest.raises(NotUnderstood):
                reader.take(size)

    @pytest.mark.parametrize(("count", "fits"), [(0, True), (3, True), (4, False), (2**32 - 1, False), (2**69, False)])
    def test_a_vector_has_no_more_items_than_bytes(self, count: int, fits: bool) -> None:
        reader = Reader(leb(count) + b"abc")
        if fits:
            assert reader.count() == count
        else:
            with pytest.raises(NotUnderstood, match="more items"):
                reader.count()

    def test_a_vector_of_very_many_items(self) -> None:
        assert Reader(leb(ITEMS_MAX) + bytes(ITEMS_MAX)).count() == ITEMS_MAX
        with pytest.raises(NotUnderstood, match="more items"):
            Reader(leb(ITEMS_MAX + 1) + bytes(ITEMS_MAX + 1)).count()

    @given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=6))
    def test_sections_come_back(self, made: list[tuple[int, bytes]]) -> None:
        data = CORE_PREAMBLE + b"".join(section(number, payload) for number, payload in made)
        assert list(sections(data, CORE_PREAMBLE)) == made
        if made:
            with pytest.raises(NotUnderstood):
                list(sections(data[:-1], CORE_PREAMBLE))

    @pytest.mark.parametrize("data", [b"", CORE_PREAMBLE[:7], b"\0asm\x0d\0\1\0", b"\0asm\x02\0\0\0"])
    def test_another_kind_of_binary(self, data: bytes) -> None:
        with pytest.raises(NotUnderstood, match="kind of binary"):
            CoreModule.parse(data)


class TestModule:
    def test_it_comes_back_without_its_custom_sections(self, box: Sandbox) -> None:
        whole = bytes(wat2wasm(MODULE))
        module = CoreModule.parse(whole)
        assert CUSTOM not in {number for number, _ in module.sections}
        bare = module.encode()
        assert CoreModule.parse(bare) == module
        noted = CORE_PREAMBLE + section(CUSTOM, name("note") + b"?") + bare[len(CORE_PREAMBLE) :] + section(0, b"\0")
        assert CoreModule.parse(noted).encode() == bare
        before, after = Module(box.engine, whole), Module(box.engine, bare)
        assert [export.name for export in after.exports] == [export.name for export in before.exports]
        assert len(after.exports) == 16

    def test_payloads_are_replaced_and_taken_out_but_not_added(self) -> None:
        module = CoreModule.parse(bytes(wat2wasm('(module (memory 1) (data (i32.const 0) "x"))')))
        assert module.has_memory
        assert module.payload(DATA)
        changed = module.replaced({DATA: None, EXPORT: b"\0"})
        assert (changed.payload(DATA), changed.payload(EXPORT)) == (b"", b"")
        assert changed.has_memory
        assert not CoreModule.parse(bytes(wat2wasm('(module (import "a" "m" (memory 1)))'))).has_memory

    def test_what_it_exports(self) -> None:
        text = '(module (func (export "") (export "\\e2\\82\\ac")) (memory (export "m") 1))'
        assert CoreModule.parse(bytes(wat2wasm(text))).export_names() == {b"", "€".encode(), b"m"}
        assert CoreModule.parse(bytes(wat2wasm("(module)"))).export_names() == set()


def with_an_imported_module(module: bytes, *, declared: bytes) -> bytes:
    """A component that imports ``module`` under the type ``declared`` and instantiates it."""
    root = Root.parse(bytes(wat2wasm(SATISFIED.replace('(import "module" (core module $imported))', ""))))
    a, b = (item for item in root.of("instantiate"))
    kind = binary.core_module_type(declared)
    imported = binary.import_core_module("module", kind)
    root.append(kind, imported, binary.instantiate(imported, {"a": a, "b": b}))
    return root.encode()


def instantiated(box: Sandbox, component: bytes, module: bytes) -> None:
    linker: Linker = Linker(box.engine)
    with linker.root() as root:
        root.add_module("module", Module(box.engine, module))
    store = Store(box.engine)
    store.set_epoch_deadline(1 << 40)
    linker.instantiate(store, Component(box.engine, component))


class TestModuleType:
    def test_it_is_the_type_that_wasmtime_finds(self, box: Sandbox) -> None:
        module = bytes(wat2wasm(MODULE))
        declared = CoreModule.parse(module).module_type()
        instantiated(box, with_an_imported_module(module, declared=declared), module)

    @pytest.mark.parametrize(
        ("old", "new"),
        [('(export "second" (func $second))', ""), ('(export "second" (func $second))', '(export "second" (func $f))'),
         ("(global $g2 f64 (f64.const 1e300))", "(global $g2 (mut f64) (f64.const 1e300))"),
         ("(table $t2 7 7 externref)", "(table $t2 7 8 externref)"), ("(memory $m 2 5)", "(memory $m 3 5)"),
         ('(import "b" "g" (global $h (mut i64)))', '(import "b" "h" (global $h (mut i64)))')],
    )  # fmt: skip
    def test_a_module_of_another_type_is_not_taken(self, old: str, new: str, box: Sandbox) -> None:
        """So a component that started with its own parts can not be linked with something of another shape."""
        module = bytes(wat2wasm(MODULE))
        component = with_an_imported_module(module, declared=CoreModule.parse(module).module_type())
        assert MODULE.count(old) == 1
        with pytest.raises(WasmtimeError, match="matching implementation was not found"):
            instantiated(box, component, bytes(wat2wasm(MODULE.replace(old, new))))

    def test_another_declaration_is_not_believed(self, box: Sandbox) -> None:
        """The check above is by wasmtime: what is declared wrongly does not link."""
        other = MODULE.replace("(table $t2 7 7 externref)", "(table $t2 8 8 externref)")
        declared = CoreModule.parse(bytes(wat2wasm(other))).module_type()
        module = bytes(wat2wasm(MODULE))
        with pytest.raises(WasmtimeError, match="matching implementation was not found"):
            instantiated(box, with_an_imported_module(module, declared=declared), module)

    def test_an_empty_module(self) -> None:
        assert CoreModule.parse(CORE_PREAMBLE).module_type() == b"\x50\x00"

    @pytest.mark.parametrize(
        "text",
        ["(module (memory (export \"m\") i64 1))", "(module (import \"a\" \"m\" (memory i64 1)))",
         "(module (memory (export \"m\") 1 (pagesize 1)))", "(module (table (export \"t\") i64 1 funcref))",
         "(module (type (struct (field i32))))", "(module (type (array i8)))",
         "(module (rec (type (func)) (type (func))))", "(module (type $f (func)) (type (func (param (ref null $f)))))",
         "(module (type (sub (func))))", "(module (global (export \"g\") anyref (ref.null any)))",
         "(module (global v128 (v128.const i64x2 0 0)))", "(module (tag (export \"t\")))",
         "(module (import \"a\" \"t\" (tag)))", "(module (type (func (param exnref))))",
         "(module (table (export \"t\") 1 1 (ref func) (ref.func $f)) (func $f))",
         "(module (type $f (func)) (global (export \"g\") (ref null $f) (ref.null $f)))"],
    )  # fmt: skip
    def test_what_is_newer_is_not_understood(self, text: str) -> None:
        with pytest.raises((NotUnderstood, LookupError)):
            CoreModule.parse(bytes(wat2wasm(text))).module_type()

    def test_a_null_of_a_type_with_a_long_number(self) -> None:
        """The type's number is read to its end: what follows would otherwise be taken for instructions."""
        types = "(type (func))" * 200
        text = f'(module {types} (type $f (func (param i64 i64))) (global funcref (ref.null $f)) \
            (global (export "g") i64 (i64.const 1)))'
        assert CoreModule.parse(bytes(wat2wasm(text))).module_type().endswith(b"\x03\x01g\x03\x7e\x00")

    @pytest.mark.parametrize("number", range(1, 8))
    def test_sections_that_claim_more_than_they_have(self, number: int) -> None:
        for claimed in (1, 1_000, 2**32 - 1, 2**60):
            data = CORE_PREAMBLE + section(number, leb(claimed))
            with pytest.raises(NotUnderstood):
                CoreModule.parse(data).module_type()

    def test_an_export_of_what_is_not_there(self) -> None:
        for sort in (0, 1, 2, 3, 4, 5, 255):
            data = CORE_PREAMBLE + section(EXPORT, vector([name("x") + bytes([sort]) + leb(2**40)]))
            with pytest.raises(LookupError):
                CoreModule.parse(data).module_type()

    @given(st.integers(0, 2**64 - 1), st.integers(1, 6))
    def test_a_damaged_module_is_told_by_the_expected_errors(self, seed: int, flips: int) -> None:
        damaged = bytearray(_WHOLE)
        for i in range(flips):
            damaged[(seed >> 8 * i) % len(damaged)] ^= 1 << (seed >> 3 * i) % 8
        try:
            module = CoreModule.parse(bytes(damaged))
            module.export_names()
            module.module_type()
        except (NotUnderstood, LookupError):
            pass


_WHOLE = bytes(wat2wasm(MODULE))
