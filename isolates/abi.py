"""Calls between guests and this host: callbacks for the imports of components, and calls of their exports.

The stock converters of the bindings read the function type again on every call, convert ``list<u8>`` byte by byte,
share unlocked globals between threads, and let a ``BaseException`` out of a host function, which reads as an
undefined return value on the C side and ends the process. This file and ``component_value`` replace them for host
functions, which are plain functions of plain values.

**Nothing is believed.** A component names the types of its imports itself, and the C API lets it: a host function is
called with whatever the component declared. So the number and the kinds of the arguments are compared with the
declaration at each call; a guest with another signature is trapped.

**Armour.** Whatever a host function raises, ``BaseException`` included, becomes a trap of that guest and is kept in
``guest.fault``; nothing passes through C. Destructors likewise.
"""

import ctypes
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from isolates.component_value import (
    MEMORY,
    VALUE_BYTES,
    Guest,
    GuestTrap,
    Lower,
    ValueType,
    declare,
    read_value,
)

_P, _U32, _SIZE = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_size_t
_val_delete = declare("wasmtime_component_val_delete", None, _P)
_error_new = declare("wasmtime_error_new", _P, ctypes.c_char_p)
_error_delete = declare("wasmtime_error_delete", None, _P)
_func_call = declare("wasmtime_component_func_call", _P, _P, _P, _P, _SIZE, _P, _SIZE)

#: Which guest a store's context belongs to. Entered when a store is made and removed before it is deleted (afterwards
#: the address may already be another store's), so it is bounded by the isolates alive in this process.
GUESTS: dict[int, Guest] = {}

HostFunction = Callable[..., Any]
Callback = Callable[[int, int, int, int, int, int, int], int]


@dataclass(frozen=True, slots=True)
class Signature:
    """A function type: its parameters, and how its result is lowered, if it has one."""

    parameters: list[ValueType]
    lower: Lower | None


#: One call of a host function. Written out per function type, because a loop over converters and the building of an
#: argument list take as long as the conversions.
_CALLED = """
def called(data, context, kind, arguments, count, results, result_count):
    try:
        guest = GUESTS[context]
        guest.host_calls += 1
        if count != {count} or result_count != {result_count}:
            raise GuestTrap(another_signature)
        {read}
        value = function(guest{lifted})
        {lowered}
        return 0
    except BaseException as fault:
        return trap(context, fault, failure)
"""


def callback(function: HostFunction, signature: Signature, name: str) -> Callback:
    """``function`` as the C API calls it. ``name`` is for the owner of a worker whose call fails."""
    parameters = signature.parameters
    words = ", ".join(f"k{i}, a{i}, b{i}, c{i}" for i in range(len(parameters)))
    other_kinds = " or ".join(f"k{i} != {parameter.kind}" for i, parameter in enumerate(parameters))
    read = f"""{words} = read(MEMORY, arguments)
        if {other_kinds}:
            raise GuestTrap(another_signature)"""
    text = _CALLED.format(
        count=len(parameters),
        result_count=0 if signature.lower is None else 1,
        read=read if parameters else "",
        lifted="".join(f", {_lifted(parameter, i)}" for i, parameter in enumerate(parameters)),
        lowered="pass" if signature.lower is None else "lower(guest, context, results, value)",
    )
    scope: dict[str, Any] = {
        "GUESTS": GUESTS, "GuestTrap": GuestTrap, "MEMORY": MEMORY, "trap": trap, "function": function,
        "read": struct.Struct("=" + "B7xQQQ" * len(parameters)).unpack_from, "lower": signature.lower,
        "failure": f"{name} ended the worker".encode(),
        "another_signature": f"{name} was imported with another signature",
    } | {f"lift{i}": parameter.lift for i, parameter in enumerate(parameters)}  # fmt: skip
    exec(compile(text, f"<{name}>", "exec"), scope)
    called: Callback = scope["called"]
    return called


def _lifted(parameter: ValueType, i: int) -> str:
    """The code that gives the Python value of parameter ``i``."""
    if not parameter.expression:
        return f"lift{i}(guest, context, a{i}, b{i}, c{i})"
    return re.sub(r"\b([abc])\b", rf"\g<1>{i}", parameter.expression)


def trap(context: int, fault: BaseException, message: bytes) -> int:
    """Keep the fault for whoever runs the guest and give the C side an error, which ends the guest's call."""
    try:
        guest = GUESTS.get(context)
        if guest is not None and guest.fault is None:
            guest.fault = fault
    finally:
        # The returned error is what makes the guest stop; nothing may get in its way, not even a second fault.
        return int(_error_new(message))  # noqa: B012


def destructor(data: int, context: int, rep: int) -> int:
    """The destructor of every resource type: the guest dropped its handle, so the table entry goes."""
    try:
        GUESTS[context].dropped(rep)
        return 0
    except BaseException as fault:
        return trap(context, fault, b"a resource destructor failed in the host")


CALLBACK = ctypes.CFUNCTYPE(_SIZE, _P, _P, _P, _P, _SIZE, _P, _SIZE)
DESTRUCTOR = ctypes.CFUNCTYPE(_SIZE, _P, _P, _U32)


def call_held(function: object, context: int, parameters: int, count: int) -> int | None:
    """Call a guest's function without results while this thread keeps the GIL. The error, or None."""
    error: int | None = _func_call(function, context, parameters, count, None, 0)
    return error


def call_for_number(function: int, context: int, result: int) -> int | None:
    """Call a guest's ``func() -> u32`` of a few instructions, with the GIL held. None when it traps.

    ``result``: the address of a value's room. This is after each request, where ``call``, which makes room and asks
    for types, would take three times as long.
    """
    error = _func_call(function, context, None, 0, result, 1)
    if error:
        _error_delete(error)
        return None
    return int(read_value(MEMORY, result)[1]) & 0xFFFF_FFFF


def call(function: object, context: int, parameters: list[tuple[ValueType, Any]], result: ValueType) -> Any:
    """Call a guest's function of scalars that returns a scalar or ``latin1``. ``GuestTrap`` when it traps."""
    guest = GUESTS[context]
    values = ctypes.create_string_buffer(VALUE_BYTES * (len(parameters) + 1))
    at = ctypes.addressof(values)
    for i, (kind, value) in enumerate(parameters):
        kind.lower(guest, context, at + VALUE_BYTES * i, value)
    place = at + VALUE_BYTES * len(parameters)
    error = _func_call(function, context, at, len(parameters), place, 1)
    if error:
        _error_delete(error)
        raise GuestTrap("the call trapped")
    _, a, b, c = read_value(MEMORY, place)
    returned = result.lift(guest, context, a, b, c)
    _val_delete(place)
    return returned


def delete_value(address: int) -> None:
    """Free what a value that we own holds."""
    _val_delete(address)
