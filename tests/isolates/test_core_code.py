"""Reading over code: every instruction of WebAssembly 2.0, relaxed SIMD and tail calls, each to its very end.

Behind each one stands another that is known to say no. A reader that takes an immediate too many or too few does not
see it, or sees it where there is none.
"""

import random
from itertools import product

import pytest
from wasmtime import WasmtimeError, wat2wasm

from isolates.component_binary import Root
from isolates.core_code import hides_no_state
from isolates.wasm_binary import CODE, CORE_PREAMBLE, CoreModule, NotUnderstood, leb, section, vector
from tests.isolates.conftest import ROOT

#: What there is to refer to. Indices of two bytes are among them.
_AROUND = """
    (type $t (func)) (type $n (func (param i32) (result i64))) {types}
    (memory 1) (table $a 2 funcref) (table $b 2 externref)
    (global $g (mut i64) (i64.const 0)) (data $d "x") (elem $e func $first)
    (func $first (type $t))"""
_MANY = "(type (func))" * 200

_I, _F = ("i32", "i64"), ("f32", "f64")
_CONTROL = """
    unreachable; nop; block; end; loop; end; if; else; end; block (result i32); end; block (type 150); end;
    loop (type $n); end; br 0; br_if 0; br 200; br_table 0; br_table 0 1 2 3 300 0; return; call $first; call 0;
    call_indirect (type $t); call_indirect $b (type $n); call_indirect (type 199); return_call $first;
    return_call_indirect (type 150); drop; select; select (result i32); select (result externref);
    local.get 0; local.set 150; local.tee 1000; global.get $g; global.set $g; table.get $a; table.get $b;
    table.size $a; table.size $b; ref.null func; ref.null extern; ref.is_null; ref.func $first;
    memory.size; memory.grow; memory.copy; memory.fill
"""
_NUMBERS = [
    *(f"i32.const {n}" for n in (0, 63, 64, -64, -65, 8191, 8192, 0x26, 0x0B, 2**31 - 1, -(2**31))),
    *(f"i64.const {n}" for n in (0, 63, -65, 2**31, 2**62, 2**63 - 1, -(2**63))),
    *(f"{f}.const {n}" for f in _F for n in ("0", "-0", "nan", "inf", "1e-30", "0x1.26260bp7")),
]
_MEMORY = [
    *(f"{kind}.{how}" for kind in (*_I, *_F) for how in ("load", "store")),
    *(f"{i}.load{bits}_{sign}" for i in _I for bits in (8, 16) for sign in "su"),
    *(f"i64.load32_{sign}" for sign in "su"),
    *(f"{i}.store{bits}" for i in _I for bits in (8, 16)),
    "i64.store32",
]
_NUMERIC = [
    *(f"{i}.{op}" for i in _I for op in (
        "eqz eq ne lt_s lt_u gt_s gt_u le_s le_u ge_s ge_u clz ctz popcnt add sub mul div_s div_u rem_s rem_u and or"
        " xor shl shr_s shr_u rotl rotr extend8_s extend16_s").split()),
    *(f"{f}.{op}" for f in _F for op in (
        "eq ne lt gt le ge abs neg ceil floor trunc nearest sqrt add sub mul div min max copysign").split()),
    *(f"{i}.trunc{sat}_{f}_{s}" for i in _I for f in _F for s in "su" for sat in ("", "_sat")),
    *(f"{f}.convert_{i}_{s}" for f in _F for i in _I for s in "su"),
    "i32.wrap_i64", "i64.extend_i32_s", "i64.extend_i32_u", "i64.extend32_s", "f32.demote_f64", "f64.promote_f32",
    "i32.reinterpret_f32", "i64.reinterpret_f64", "f32.reinterpret_i32", "f64.reinterpret_i64",
]  # fmt: skip
_SHAPES = {"i8x16": 16, "i16x8": 8, "i32x4": 4, "i64x2": 2, "f32x4": 4, "f64x2": 2}
_LANE_OPERATIONS = """
    splat eq ne lt lt_s lt_u gt gt_s gt_u le le_s le_u ge ge_s ge_u abs neg popcnt all_true bitmask shl shr_s shr_u add
    add_sat_s add_sat_u sub sub_sat_s sub_sat_u mul div min min_s min_u max max_s max_u avgr_u sqrt ceil floor trunc
    nearest pmin pmax swizzle relaxed_swizzle q15mulr_sat_s relaxed_q15mulr_s relaxed_madd relaxed_nmadd relaxed_min
    relaxed_max relaxed_laneselect
""".split()
_CONVERSIONS = [
    *(f"{n}.narrow_{w}_{s}" for n, w in (("i8x16", "i16x8"), ("i16x8", "i32x4")) for s in "su"),
    *(f"{w}.{how}_{n}_{s}" for w, n in (("i16x8", "i8x16"), ("i32x4", "i16x8"), ("i64x2", "i32x4"))
      for how in ("extend_low", "extend_high", "extmul_low", "extmul_high") for s in "su"),
    *(f"{w}.extadd_pairwise_{n}_{s}" for w, n in (("i16x8", "i8x16"), ("i32x4", "i16x8")) for s in "su"),
    *(f"i32x4.{relaxed}trunc_{sat}f32x4_{s}" for relaxed, sat in (("", "sat_"), ("relaxed_", "")) for s in "su"),
    *(f"i32x4.{relaxed}trunc_{sat}f64x2_{s}_zero" for relaxed, sat in (("", "sat_"), ("relaxed_", "")) for s in "su"),
    *(f"f32x4.convert_i32x4_{s}" for s in "su"), *(f"f64x2.convert_low_i32x4_{s}" for s in "su"),
    "f32x4.demote_f64x2_zero", "f64x2.promote_low_f32x4", "i32x4.dot_i16x8_s", "i16x8.relaxed_dot_i8x16_i7x16_s",
    "i32x4.relaxed_dot_i8x16_i7x16_add_s",
    *(f"v128.{op}" for op in "not and andnot or xor bitselect any_true".split()),
]  # fmt: skip
_VECTOR_MEMORY = [
    "v128.load", "v128.store", *(f"v128.load{a}_{s}" for a in ("8x8", "16x4", "32x2") for s in "su"),
    *(f"v128.load{bits}_splat" for bits in (8, 16, 32, 64)), "v128.load32_zero", "v128.load64_zero",
]  # fmt: skip
_VECTOR_LANES = [
    *(f"{shape}.extract_lane{s} {lane}" for shape, lanes in _SHAPES.items() for lane in (0, lanes - 1)
      for s in (("_s", "_u") if shape in ("i8x16", "i16x8") else ("",))),
    *(f"{shape}.replace_lane {lane}" for shape, lanes in _SHAPES.items() for lane in (0, lanes - 1)),
    *(f"v128.{how}{bits}_lane{at} {lane}" for how in ("load", "store") for bits in (8, 16, 32, 64)
      for at in ("", " offset=70000") for lane in (0, 128 // bits - 1)),
    "v128.const i32x4 0x0b0b0b0b 0x26262626 -1 0", "v128.const f64x2 nan 1e300",
    "i8x16.shuffle 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 31", "i8x16.shuffle" + " 11" * 16,
]  # fmt: skip
#: Changes a table, and says so in two bytes.
_NO = "table.set $b"
_REFUSED = (
    "table.set $a", "table.set $b", "memory.init $d", "data.drop $d", "table.init $a $e", "elem.drop $e",
    "table.copy $a $a", "table.grow $a", "table.grow $b", "table.fill $b",
)  # fmt: skip


def module(code: str, behind: str = "") -> CoreModule:
    """A module with ``code`` in a function, and ``behind`` in another."""
    text = (
        f"(module {_AROUND.format(types=_MANY)} (func (local i32 i64) (local v128) {code}) (func (local f32) {behind}))"
    )
    return CoreModule.parse(bytes(wat2wasm(text)))


def is_there(instruction: str) -> bool:
    try:
        module(instruction)
    except WasmtimeError:
        return False
    return True


def read_to_its_end(instruction: str) -> None:
    """It says yes to it, and finds what stands behind it, in the same function and in the next."""
    assert hides_no_state(module(instruction, "nop")), instruction
    assert not hides_no_state(module(f"{instruction} {_NO}")), f"{instruction} hides what stands behind it"
    assert not hides_no_state(module(instruction, _NO)), f"{instruction} hides the next function"


class TestKnown:
    def test_control_variables_tables_and_references(self) -> None:
        for instruction in (part.strip() for part in _CONTROL.split(";")):
            if instruction.startswith(("block", "loop", "if")):
                read_to_its_end(f"{instruction} end")
            elif instruction not in ("else", "end"):
                read_to_its_end(instruction)

    @pytest.mark.parametrize("at", ["", " offset=5", " offset=70000", " offset=4294967295", " align=1"])
    def test_memory(self, at: str) -> None:
        for instruction in (*_MEMORY, *_VECTOR_MEMORY):
            read_to_its_end(instruction + at)

    def test_numbers(self) -> None:
        for instruction in (*_NUMBERS, *_NUMERIC):
            read_to_its_end(instruction)
        # Comparisons to conversions, 0x45 to 0xC4, but the saturating eight, which have a prefix.
        assert len(_NUMERIC) - 8 == 0xC5 - 0x45

    def test_vectors(self) -> None:
        lanes = [f"{shape}.{op}" for shape, op in product(_SHAPES, _LANE_OPERATIONS)]
        there = [name for name in (*lanes, *_CONVERSIONS) if is_there(name)]
        assert set(_CONVERSIONS) <= set(there)
        for instruction in (*there, *_VECTOR_LANES):
            read_to_its_end(instruction)
        names = {name.split()[0] for name in (*there, *_VECTOR_LANES, *_VECTOR_MEMORY)}
        assert len(names) == 236 + 20, "those of version 2.0, and the relaxed ones"

    def test_several_memories(self) -> None:
        for access in ("i32.load 1", "i32.store 1 offset=9", "v128.load 1 align=1", "v128.load8_lane 1 offset=300 3"):
            code = "(module (memory 1) (memory 1) (table 1 funcref) (func {} {}))"
            for behind, expected in (("nop", True), ("table.set 0", False)):
                encoded = bytes(wat2wasm(code.format(access, behind)))
                assert hides_no_state(CoreModule.parse(encoded)) is expected, access

    def test_programs_of_all_of_them(self) -> None:
        dice = random.Random(5)
        everything = [*_NUMBERS, *_NUMERIC, *_MEMORY, *_VECTOR_MEMORY, *_VECTOR_LANES, *_CONVERSIONS, "drop", "br 0"]
        for _ in range(60):
            code = " ".join(dice.choices(everything, k=80))
            assert hides_no_state(module(code, code))
            assert not hides_no_state(module(f"{code} {dice.choice(_REFUSED)} {code}", code))
            assert not hides_no_state(module(code, f"{code} {dice.choice(_REFUSED)}"))

    def test_no_code(self) -> None:
        assert hides_no_state(CoreModule.parse(bytes(wat2wasm("(module)"))))
        assert hides_no_state(CoreModule.parse(bytes(wat2wasm("(module (memory 1) (func))"))))

    def test_the_example_workers(self) -> None:
        """Real programs: not one byte of them is misread, or something would be said no to."""
        checked_in = ("alice", "audit", "bob", "dispatcher", "guard")
        platform = [ROOT / "workers" / "platform" / name / "worker.wasm" for name in checked_in]
        for path in [*platform, *sorted(ROOT.glob("workers/zig/*/worker.wasm"))]:
            for item in Root.parse(path.read_bytes()).of("module"):
                assert isinstance(item.parts[0], bytes)
                # Shims that toolchains make fill a table from their segments, without code.
                assert hides_no_state(CoreModule.parse(item.parts[0])), path


class TestRefused:
    @pytest.mark.parametrize("instruction", _REFUSED)
    def test_what_changes_tables_or_segments(self, instruction: str) -> None:
        assert not hides_no_state(module(instruction))
        assert not hides_no_state(module("nop", instruction))
        assert not hides_no_state(module(f"unreachable block if {instruction} end end")), "whether it is reached or not"

    def raw(self, code: bytes) -> CoreModule:
        body = b"\0" + code + b"\x0b"
        return CoreModule.parse(CORE_PREAMBLE + section(CODE, vector([leb(len(body)) + body])))

    def test_unknown_opcodes(self) -> None:
        """All first bytes that version 2.0 and tail calls do not have: exceptions, references, GC, threads, ..."""
        known = {0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x0B, *range(0x0C, 0x14), 0x1A, 0x1B, 0x1C, *range(0x20, 0x26),
                 *range(0x28, 0xC5), 0xD0, 0xD1, 0xD2, 0xFC, 0xFD}  # fmt: skip
        for first in set(range(256)) - known:
            assert not hides_no_state(self.raw(bytes([first]) + bytes(20))), hex(first)

    def test_unknown_opcodes_behind_a_prefix(self) -> None:
        for number in {*range(8, 400)} - {10, 11, 16}:
            assert not hides_no_state(self.raw(b"\xfc" + leb(number) + bytes(20))), number

    @pytest.mark.parametrize(
        "code", [b"\x41", b"\x44\0\0", b"\x0e\x05", b"\xfd\x0c\0", b"\x1c\x09", b"\x41" + b"\xff" * 12]
    )
    def test_code_that_ends_too_early_is_not_understood(self, code: bytes) -> None:
        body = b"\0" + code
        cut = CoreModule.parse(CORE_PREAMBLE + section(CODE, vector([leb(len(body)) + body])))
        with pytest.raises(NotUnderstood):
            hides_no_state(cut)
