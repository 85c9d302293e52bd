"""Handles of resources: ``own<T>`` and ``borrow<T>`` <-> what a guest's table holds. See ``component_value``."""

import ctypes
import struct
from typing import Any

from isolates.component_value import (
    KIND,
    MEMORY,
    PAIR_AT,
    Guest,
    GuestTrap,
    ValueType,
    declare,
    host_delete,
    host_new,
    read_word,
)

_P, _U32 = ctypes.c_void_p, ctypes.c_uint32
_host_type = declare("wasmtime_component_resource_host_type", _U32, _P)
_host_rep = declare("wasmtime_component_resource_host_rep", _U32, _P)
_host_to_any = declare("wasmtime_component_resource_host_to_any", _P, _P, _P, _P)
_any_to_host = declare("wasmtime_component_resource_any_to_host", _P, _P, _P, _P)
_error_delete = declare("wasmtime_error_delete", None, _P)

_RESOURCE = KIND["resource"]
_read_pair = struct.Struct("=II").unpack_from
_write_pair = struct.Struct("=II").pack_into


def resource(type_id: int, *, owned: bool) -> ValueType:
    """A handle to what the guest's table holds; an owned one leaves the table."""

    def lift(guest: Guest, context: int, a: int, b: int, c: int) -> Any:
        # Asking for the host side also gives a borrow back; without it the call ends with "borrow handles still
        # remain", even when the value is not looked at.
        place = guest.scratch.place
        error = _any_to_host(context, a, place)
        if error:
            _error_delete(error)
            raise GuestTrap("a resource of another type was passed")
        host = read_word(MEMORY, place)[0]
        rep, found = _read_pair(MEMORY, host + PAIR_AT) if PAIR_AT >= 0 else (_host_rep(host), _host_type(host))
        host_delete(host)
        if found != type_id:
            raise GuestTrap("a resource of another type was passed")
        return guest.take(rep) if owned else guest.borrowed(rep)

    def lower(guest: Guest, context: int, address: int, value: Any) -> None:
        lower_own(guest, context, address, guest.lend(value), type_id)

    return ValueType(_RESOURCE, lift, lower, flat=True)


def lower_own(guest: Guest, context: int, address: int, rep: int, type_id: int) -> None:
    """Write an ``own`` handle for table entry ``rep`` of resource type ``type_id`` to the value at ``address``."""
    if PAIR_AT >= 0:
        host = guest.scratch.host
        _write_pair(MEMORY, host + PAIR_AT, rep, type_id)
        error = _host_to_any(context, host, address + 8)
    else:
        host = host_new(True, rep, type_id)
        error = _host_to_any(context, host, address + 8)
        host_delete(host)
    if error:
        _error_delete(error)
        raise GuestTrap("no more resource handles in this store")
    MEMORY[address] = _RESOURCE
