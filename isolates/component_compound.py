"""Compounds of component values: lists, tuples, records, variants, options, results. See ``component_value``."""

import ctypes
import struct
from collections.abc import Callable
from typing import Any

from isolates.component_value import (
    KIND,
    MEMORY,
    VALUE_BYTES,
    Err,
    Guest,
    GuestTrap,
    Ok,
    ValueType,
    byte_list,
    bytes_of,
    declare,
    put_text,
    read_value,
    read_word,
    string,
    vallist_new_uninit,
)

_P, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_val_new = declare("wasmtime_component_val_new", _P, _P)
_valtuple_new_uninit = declare("wasmtime_component_valtuple_new_uninit", None, _P, _SIZE)
_valrecord_new_uninit = declare("wasmtime_component_valrecord_new_uninit", None, _P, _SIZE)

_RECORD_ENTRY_BYTES = 48
_LIST = KIND["list"]
_Value = ctypes.c_uint64 * (VALUE_BYTES // 8)
_values = struct.Struct("=B7xQQQ").iter_unpack
_write_box = struct.Struct("=B7xQ").pack_into
_write_result = struct.Struct("=B7xB7xQ").pack_into


def _inner(kind: ValueType) -> Callable[[Guest, int, int], Any]:
    """The lift of a value in a box: it looks at the kind first. Address 0 is a payload that is not there."""
    expected, lift = kind.kind, kind.lift

    def checked(guest: Guest, context: int, address: int) -> Any:
        if address:
            found, a, b, c = read_value(MEMORY, address)
            if found == expected:
                return lift(guest, context, a, b, c)
        raise GuestTrap("a value of another type was passed")

    return checked


def list_of(element: ValueType) -> ValueType:
    """A list of anything but bytes."""
    expected, lift_element, lower_element = element.kind, element.lift, element.lower

    def lift(guest: Guest, context: int, a: int, b: int, c: int) -> list[Any]:
        lifted = []
        for kind, x, y, z in _values(MEMORY[b : b + VALUE_BYTES * a]):
            if kind != expected:
                raise GuestTrap("a value of another type was passed")
            lifted.append(lift_element(guest, context, x, y, z))
        return lifted

    def lower(guest: Guest, context: int, address: int, value: list[Any]) -> None:
        vallist_new_uninit(address + 8, len(value))
        at = read_word(MEMORY, address + 16)[0]
        for item in value:
            lower_element(guest, context, at, item)
            at += VALUE_BYTES
        MEMORY[address] = _LIST

    return ValueType(_LIST, lift, lower)


def tuple_of(elements: list[ValueType]) -> ValueType:
    """A tuple."""
    kind, size = KIND["tuple"], len(elements)
    expected = [(element.kind, element.lift) for element in elements]
    lowers = [element.lower for element in elements]

    def lift(guest: Guest, context: int, a: int, b: int, c: int) -> tuple[Any, ...]:
        if a != size:
            raise GuestTrap("a tuple of another size was passed")
        lifted = []
        for (wanted, lift_element), (found, x, y, z) in zip(
            expected, _values(MEMORY[b : b + VALUE_BYTES * size]), strict=True
        ):
            if found != wanted:
                raise GuestTrap("a value of another type was passed")
            lifted.append(lift_element(guest, context, x, y, z))
        return tuple(lifted)

    def lower(guest: Guest, context: int, address: int, value: tuple[Any, ...]) -> None:
        _valtuple_new_uninit(address + 8, size)
        at = read_word(MEMORY, address + 16)[0]
        for lower_element, item in zip(lowers, value, strict=True):
            lower_element(guest, context, at, item)
            at += VALUE_BYTES
        MEMORY[address] = kind

    return ValueType(kind, lift, lower)


def field_list() -> ValueType:
    """``list<tuple<string, list<u8>>>``: the header fields of every message, in one go."""
    plain = list_of(tuple_of([string(KIND["string"]), byte_list()]))
    text, pair = KIND["string"], KIND["tuple"]
    both = struct.Struct("=B7xQQ8xB7xQQ8x").unpack_from

    def lift(guest: Guest, context: int, a: int, b: int, c: int) -> list[tuple[str, bytes]]:
        lifted = []
        for kind, size, at, _ in _values(MEMORY[b : b + VALUE_BYTES * a]):
            if kind != pair or size != 2:
                raise GuestTrap("a value of another type was passed")
            first, name_bytes, name, second, value_bytes, value = both(MEMORY, at)
            if first != text or second != _LIST:
                raise GuestTrap("a value of another type was passed")
            lifted.append((str(MEMORY[name : name + name_bytes], "utf-8"), bytes_of(value_bytes, value)))
        return lifted

    return ValueType(_LIST, lift, plain.lower)


def record_of(fields: list[tuple[bytes, ValueType]]) -> ValueType:
    """A record; its Python value is a tuple in this order of fields."""
    kind, size = KIND["record"], len(fields)
    entries = struct.Struct("=16xB7xQQQ").iter_unpack

    def lift(guest: Guest, context: int, a: int, b: int, c: int) -> tuple[Any, ...]:
        if a != size:
            raise GuestTrap("a record of another size was passed")
        lifted = []
        for (_, field), (found, x, y, z) in zip(
            fields, entries(MEMORY[b : b + _RECORD_ENTRY_BYTES * size]), strict=True
        ):
            if found != field.kind:
                raise GuestTrap("a value of another type was passed")
            lifted.append(field.lift(guest, context, x, y, z))
        return tuple(lifted)

    def lower(guest: Guest, context: int, address: int, value: tuple[Any, ...]) -> None:
        _valrecord_new_uninit(address + 8, size)
        at = read_word(MEMORY, address + 16)[0]
        for (name, field), item in zip(fields, value, strict=True):
            put_text(at, name)
            field.lower(guest, context, at + 16, item)
            at += _RECORD_ENTRY_BYTES
        MEMORY[address] = kind

    return ValueType(kind, lift, lower)


def _boxing(kind: ValueType) -> Callable[[Guest, int, Any], int]:
    """Makes a value on wasmtime's heap; the address of its box."""
    lower = kind.lower

    def in_scratch(guest: Guest, context: int, value: Any) -> int:
        address = guest.scratch.value
        lower(guest, context, address, value)
        box: int = _val_new(address)
        return box

    def in_a_place_of_its_own(guest: Guest, context: int, value: Any) -> int:
        place = _Value()
        address = ctypes.addressof(place)
        lower(guest, context, address, value)
        box: int = _val_new(address)
        return box

    return in_scratch if kind.flat else in_a_place_of_its_own


def variant_of(cases: dict[str, ValueType | None]) -> ValueType:
    """A variant: case -> type, or None for a case without a payload."""
    kind = KIND["variant"]
    raw = {name: name.encode() for name in cases}
    lifts = {name: None if case is None else _inner(case) for name, case in cases.items()}
    boxings = {name: None if case is None else _boxing(case) for name, case in cases.items()}
    write_payload = struct.Struct("=Q").pack_into

    def lift(guest: Guest, context: int, a: int, b: int, c: int) -> tuple[str, Any]:
        case = str(MEMORY[b : b + a], "utf-8")
        if case not in lifts:
            raise GuestTrap(f"a variant has no case {case[:40]!r}")
        payload = lifts[case]
        return case, None if payload is None else payload(guest, context, c)

    def lower(guest: Guest, context: int, address: int, value: tuple[str, Any]) -> None:
        case, payload = value
        boxing = boxings[case]
        box = 0 if boxing is None else boxing(guest, context, payload)
        put_text(address + 8, raw[case])
        write_payload(MEMORY, address + 24, box)
        MEMORY[address] = kind

    return ValueType(kind, lift, lower)


def option_of(inner: ValueType) -> ValueType:
    """An option."""
    kind, lift_inner, boxing = KIND["option"], _inner(inner), _boxing(inner)

    def lift(guest: Guest, context: int, a: int, b: int, c: int) -> Any:
        return lift_inner(guest, context, a) if a else None

    def lower(guest: Guest, context: int, address: int, value: Any) -> None:
        _write_box(MEMORY, address, kind, 0 if value is None else boxing(guest, context, value))

    return ValueType(kind, lift, lower)


def result_of(ok: ValueType | None, err: ValueType | None) -> ValueType:
    """A result."""
    kind = KIND["result"]
    lift_ok, lift_err = (None if case is None else _inner(case) for case in (ok, err))
    box_ok, box_err = (None if case is None else _boxing(case) for case in (ok, err))

    def lift(guest: Guest, context: int, a: int, b: int, c: int) -> Ok[Any] | Err[Any]:
        if a & 0xFF:
            return Ok(None if lift_ok is None else lift_ok(guest, context, b))
        return Err(None if lift_err is None else lift_err(guest, context, b))

    def lower(guest: Guest, context: int, address: int, value: Ok[Any] | Err[Any]) -> None:
        good = value.__class__ is Ok
        boxing = box_ok if good else box_err
        box = 0 if boxing is None else boxing(guest, context, value.value)
        _write_result(MEMORY, address, kind, good, box)

    return ValueType(kind, lift, lower)
