"""Component values <-> Python values, compiled once per function type.

The stock converters of the bindings read the function type again on every call, convert ``list<u8>`` byte by byte,
share unlocked globals between threads, and let a ``BaseException`` out of a host function, which reads as an
undefined return value on the C side and ends the process. This file replaces them for host functions.

**Declared, not discovered.** A host function is declared with the text of its WIT signature::

    @streams.func("[method]input-stream.read: func(self: borrow<input-stream>, len: u64)"
                  " -> result<list<u8>, stream-error>")
    def read(guest, stream, length): ...

From the text, one ``lift`` per parameter and one ``lower`` for the result are compiled when the module is imported:
closures over addresses, no reflection left at run time. A value of the C API is 32 bytes: a kind byte at 0, the
payload at 8.

**Python side.** ``list<u8>`` is ``bytes``; so is ``latin1``, a WIT string that carries bytes; other lists are lists;
tuples and records are tuples in field order; an option is ``None`` or the value; a result is ``Ok`` or ``Err``; a
variant is ``(case, payload)``; an enum is ``str``; ``own<T>`` and ``borrow<T>`` are the Python object itself, which
lives in the guest's resource table (an ``own`` parameter leaves the table). So host functions are plain functions of
plain values.

**Nothing is believed.** A component names the types of its imports itself, and the C API lets it: a host function is
called with whatever the component declared. Reading a u64 as the address of a list would hand a guest the memory of
this process. So the number and the kinds of the arguments are compared with the declaration at each call, and the kind
of every value inside a value before it is read; a guest with another signature is trapped.

**Armour.** Whatever a host function raises, ``BaseException`` included, becomes a trap of that guest and is kept in
``guest.fault``; nothing passes through C. Destructors likewise.

**Ownership** (observed with the C API of wasmtime 50): arguments belong to wasmtime and are freed after the callback;
results are taken over by wasmtime, so everything in them is allocated with its own allocators. The kind byte of a
result is written last: a lowering that fails half way leaves the harmless ``bool`` that wasmtime put there.
"""

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from wasmtime import _ffi

T = TypeVar("T")

# Values are addresses (int) throughout: building ctypes pointer objects is what makes the stock path slow.
# A handle of our own, so that these prototypes do not disturb those of the bindings. PyDLL keeps the GIL: these
# calls take well under a microsecond and must not invite another thread in.
_C = ctypes.PyDLL(str(_ffi.filename))


def _declare(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_C, name)
    function.restype, function.argtypes = result, arguments
    return function


_P, _U32, _SIZE = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_size_t
_byte_vec_new = _declare("wasm_byte_vec_new", None, _P, _SIZE, ctypes.c_char_p)
_val_new = _declare("wasmtime_component_val_new", _P, _P)
_val_delete = _declare("wasmtime_component_val_delete", None, _P)
_vallist_new_uninit = _declare("wasmtime_component_vallist_new_uninit", None, _P, _SIZE)
_valtuple_new_uninit = _declare("wasmtime_component_valtuple_new_uninit", None, _P, _SIZE)
_valrecord_new_uninit = _declare("wasmtime_component_valrecord_new_uninit", None, _P, _SIZE)
_host_new = _declare("wasmtime_component_resource_host_new", _P, ctypes.c_bool, _U32, _U32)
_host_type = _declare("wasmtime_component_resource_host_type", _U32, _P)
_host_rep = _declare("wasmtime_component_resource_host_rep", _U32, _P)
_host_delete = _declare("wasmtime_component_resource_host_delete", None, _P)
_host_to_any = _declare("wasmtime_component_resource_host_to_any", _P, _P, _P, _P)
_any_to_host = _declare("wasmtime_component_resource_any_to_host", _P, _P, _P, _P)
_error_new = _declare("wasmtime_error_new", _P, ctypes.c_char_p)
_error_delete = _declare("wasmtime_error_delete", None, _P)

_func_call = _declare("wasmtime_component_func_call", _P, _P, _P, _P, _SIZE, _P, _SIZE)

VALUE_BYTES = 32
_RECORD_ENTRY_BYTES = 48
_KIND = {
    "bool": 0, "s8": 1, "u8": 2, "s16": 3, "u16": 4, "s32": 5, "u32": 6, "s64": 7, "u64": 8, "string": 12, "list": 13,
    "record": 14, "tuple": 15, "variant": 16, "enum": 17, "option": 18, "result": 19, "resource": 21,
}  # fmt: skip
_INTEGER: dict[str, Any] = {
    "bool": ctypes.c_bool, "s8": ctypes.c_int8, "u8": ctypes.c_uint8, "s16": ctypes.c_int16, "u16": ctypes.c_uint16,
    "s32": ctypes.c_int32, "u32": ctypes.c_uint32, "s64": ctypes.c_int64, "u64": ctypes.c_uint64,
}  # fmt: skip

_Value = ctypes.c_uint64 * (VALUE_BYTES // 8)
_byte_at = ctypes.c_uint8.from_address
_u32_at = ctypes.c_uint32.from_address
_word_at = ctypes.c_uint64.from_address


class Ok(Generic[T]):
    """The good case of a ``result``."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


class Err(Generic[T]):
    """The bad case of a ``result``: an answer to the guest, not a fault of the host."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


DONE: Ok[None] = Ok(None)


class GuestTrap(Exception):
    """Raised by host functions to end the guest's call at once; the guest cannot catch it."""


class Guest(Protocol):
    """What the binding layer needs of a guest: its resource table, and a place for the fault that ended it."""

    fault: BaseException | None
    host_calls: int

    def lend(self, thing: Any) -> int: ...
    def borrowed(self, rep: int) -> Any: ...
    def take(self, rep: int) -> Any: ...
    def dropped(self, rep: int) -> None: ...


#: Which guest a store's context belongs to. Entered when a store is made and removed before it is deleted (afterwards
#: the address may already be another store's), so it is bounded by the isolates alive in this process.
GUESTS: dict[int, Guest] = {}

Lift = Callable[[Guest, int, int], Any]
Lower = Callable[[Guest, int, int, Any], None]


@dataclass(frozen=True, slots=True)
class _Type:
    """``lift`` may rely on the value at its address having ``kind``: the caller has looked."""

    kind: int
    lift: Lift
    lower: Lower


def _inner(kind: _Type) -> Lift:
    """The lift of a value inside another one: it looks at the kind first. Address 0 is a payload that is not there."""
    expected, lift = kind.kind, kind.lift

    def checked(guest: Guest, context: int, address: int) -> Any:
        if not address or _byte_at(address).value != expected:
            raise GuestTrap("a value of another type was passed")
        return lift(guest, context, address)

    return checked


# ---------------------------------------------------------------------------------------------- scalars and text


def _integer(name: str) -> _Type:
    at: Callable[[int], Any] = _INTEGER[name].from_address
    kind = _KIND[name]

    def lift(guest: Guest, context: int, address: int) -> Any:
        return at(address + 8).value

    def lower(guest: Guest, context: int, address: int, value: Any) -> None:
        at(address + 8).value = value
        _byte_at(address).value = kind

    return _Type(kind, lift, lower)


def _text(address: int) -> str:
    return ctypes.string_at(_word_at(address + 8).value, _word_at(address).value).decode()


def _put_text(address: int, raw: bytes) -> None:
    _byte_vec_new(address, len(raw), raw)


def _string(kind: int) -> _Type:
    def lift(guest: Guest, context: int, address: int) -> str:
        return _text(address + 8)

    def lower(guest: Guest, context: int, address: int, value: str) -> None:
        _put_text(address + 8, value.encode())
        _byte_at(address).value = kind

    return _Type(kind, lift, lower)


# -------------------------------------------------------------------------------------------------- compounds


def _bytes() -> _Type:
    """``list<u8>``: each byte is a 32-byte value in the C API, so bytes are moved with strided copies.

    The kinds of the elements are not looked at: all elements have 32 bytes, whatever they are.
    """

    def lift(guest: Guest, context: int, address: int) -> bytes:
        size = _word_at(address + 8).value
        return ctypes.string_at(_word_at(address + 16).value, size * VALUE_BYTES)[8::VALUE_BYTES] if size else b""

    def lower(guest: Guest, context: int, address: int, value: bytes) -> None:
        size = len(value)
        _vallist_new_uninit(address + 8, size)
        if size:
            block = bytearray(size * VALUE_BYTES)
            block[0::VALUE_BYTES] = b"\x02" * size
            block[8::VALUE_BYTES] = value
            ctypes.memmove(_word_at(address + 16).value, bytes(block), size * VALUE_BYTES)
        _byte_at(address).value = _KIND["list"]

    return _Type(_KIND["list"], lift, lower)


def _latin1() -> _Type:
    """Bytes that pass as text: each is the character of its number, and ASCII is itself. See ``bulk_bytes``."""

    def lift(guest: Guest, context: int, address: int) -> bytes:
        raw = ctypes.string_at(_word_at(address + 16).value, _word_at(address + 8).value)
        if raw.isascii():
            return raw
        try:
            return raw.decode().encode("latin-1")
        except UnicodeEncodeError:
            # Only who imports the added functions with a string of its own can get here.
            raise GuestTrap("text was passed where bytes belong") from None

    def lower(guest: Guest, context: int, address: int, value: bytes) -> None:
        _put_text(address + 8, value if value.isascii() else value.decode("latin-1").encode())
        _byte_at(address).value = _KIND["string"]

    return _Type(_KIND["string"], lift, lower)


def _list(element: _Type) -> _Type:
    lift_element = _inner(element)

    def lift(guest: Guest, context: int, address: int) -> list[Any]:
        size, data = _word_at(address + 8).value, _word_at(address + 16).value
        return [lift_element(guest, context, data + VALUE_BYTES * i) for i in range(size)]

    def lower(guest: Guest, context: int, address: int, value: list[Any]) -> None:
        _vallist_new_uninit(address + 8, len(value))
        data = _word_at(address + 16).value
        for i, item in enumerate(value):
            element.lower(guest, context, data + VALUE_BYTES * i, item)
        _byte_at(address).value = _KIND["list"]

    return _Type(_KIND["list"], lift, lower)


def _tuple(elements: list[_Type]) -> _Type:
    lifts = [_inner(element) for element in elements]

    def lift(guest: Guest, context: int, address: int) -> tuple[Any, ...]:
        if _word_at(address + 8).value != len(lifts):
            raise GuestTrap("a tuple of another size was passed")
        data = _word_at(address + 16).value
        return tuple(e(guest, context, data + VALUE_BYTES * i) for i, e in enumerate(lifts))

    def lower(guest: Guest, context: int, address: int, value: tuple[Any, ...]) -> None:
        _valtuple_new_uninit(address + 8, len(elements))
        data = _word_at(address + 16).value
        for i, (element, item) in enumerate(zip(elements, value, strict=True)):
            element.lower(guest, context, data + VALUE_BYTES * i, item)
        _byte_at(address).value = _KIND["tuple"]

    return _Type(_KIND["tuple"], lift, lower)


def _record(fields: list[tuple[bytes, _Type]]) -> _Type:
    lifts = [_inner(kind) for _, kind in fields]

    def lift(guest: Guest, context: int, address: int) -> tuple[Any, ...]:
        if _word_at(address + 8).value != len(lifts):
            raise GuestTrap("a record of another size was passed")
        data = _word_at(address + 16).value
        return tuple(e(guest, context, data + _RECORD_ENTRY_BYTES * i + 16) for i, e in enumerate(lifts))

    def lower(guest: Guest, context: int, address: int, value: tuple[Any, ...]) -> None:
        _valrecord_new_uninit(address + 8, len(fields))
        data = _word_at(address + 16).value
        for i, ((name, kind), item) in enumerate(zip(fields, value, strict=True)):
            _put_text(data + _RECORD_ENTRY_BYTES * i, name)
            kind.lower(guest, context, data + _RECORD_ENTRY_BYTES * i + 16, item)
        _byte_at(address).value = _KIND["record"]

    return _Type(_KIND["record"], lift, lower)


def _boxed(kind: _Type, guest: Guest, context: int, value: Any) -> int:
    """The value moved to wasmtime's heap; the address of its box."""
    scratch = _Value()
    address = ctypes.addressof(scratch)
    kind.lower(guest, context, address, value)
    box: int = _val_new(address)
    return box


def _variant(cases: dict[str, _Type | None]) -> _Type:
    raw = {name: name.encode() for name in cases}
    lifts = {name: None if kind is None else _inner(kind) for name, kind in cases.items()}

    def lift(guest: Guest, context: int, address: int) -> tuple[str, Any]:
        case = _text(address + 8)
        if case not in lifts:
            raise GuestTrap(f"a variant has no case {case[:40]!r}")
        payload = lifts[case]
        return case, None if payload is None else payload(guest, context, _word_at(address + 24).value)

    def lower(guest: Guest, context: int, address: int, value: tuple[str, Any]) -> None:
        case, payload = value
        kind = cases[case]
        box = 0 if kind is None else _boxed(kind, guest, context, payload)
        _put_text(address + 8, raw[case])
        _word_at(address + 24).value = box
        _byte_at(address).value = _KIND["variant"]

    return _Type(_KIND["variant"], lift, lower)


def _option(inner: _Type) -> _Type:
    lift_inner = _inner(inner)

    def lift(guest: Guest, context: int, address: int) -> Any:
        box = _word_at(address + 8).value
        return lift_inner(guest, context, box) if box else None

    def lower(guest: Guest, context: int, address: int, value: Any) -> None:
        _word_at(address + 8).value = 0 if value is None else _boxed(inner, guest, context, value)
        _byte_at(address).value = _KIND["option"]

    return _Type(_KIND["option"], lift, lower)


def _result(ok: _Type | None, err: _Type | None) -> _Type:
    lift_ok, lift_err = (None if kind is None else _inner(kind) for kind in (ok, err))

    def lift(guest: Guest, context: int, address: int) -> Ok[Any] | Err[Any]:
        good = _byte_at(address + 8).value
        payload = lift_ok if good else lift_err
        value = None if payload is None else payload(guest, context, _word_at(address + 16).value)
        return Ok(value) if good else Err(value)

    def lower(guest: Guest, context: int, address: int, value: Ok[Any] | Err[Any]) -> None:
        good = value.__class__ is Ok
        kind = ok if good else err
        box = 0 if kind is None else _boxed(kind, guest, context, value.value)
        _byte_at(address + 8).value = good
        _word_at(address + 16).value = box
        _byte_at(address).value = _KIND["result"]

    return _Type(_KIND["result"], lift, lower)


# -------------------------------------------------------------------------------------------------- resources


def _resource(type_id: int, *, owned: bool) -> _Type:
    def lift(guest: Guest, context: int, address: int) -> Any:
        # Asking for the host side also gives a borrow back; without it the call ends with "borrow handles still
        # remain", even when the value is not looked at.
        # A resource takes 8 of the value's 24 bytes of payload; the last 8 are room for the answer.
        place = address + 24
        error = _any_to_host(context, _word_at(address + 8).value, place)
        if error:
            _error_delete(error)
            raise GuestTrap("a resource of another type was passed")
        host = _word_at(place).value
        rep, same_type = _host_rep(host), _host_type(host) == type_id
        _host_delete(host)
        if not same_type:
            raise GuestTrap("a resource of another type was passed")
        return guest.take(rep) if owned else guest.borrowed(rep)

    def lower(guest: Guest, context: int, address: int, value: Any) -> None:
        lower_own(guest, context, address, guest.lend(value), type_id)

    return _Type(_KIND["resource"], lift, lower)


def lower_own(guest: Guest, context: int, address: int, rep: int, type_id: int) -> None:
    """Write an ``own`` handle for table entry ``rep`` of resource type ``type_id`` to the value at ``address``."""
    host = _host_new(True, rep, type_id)
    error = _host_to_any(context, host, address + 8)
    _host_delete(host)
    if error:
        _error_delete(error)
        raise GuestTrap("no more resource handles in this store")
    _byte_at(address).value = _KIND["resource"]


# ------------------------------------------------------------------------------------------- WIT text -> types

_TOKEN = re.compile(r"[%]?[A-Za-z_][A-Za-z0-9-]*|[<>,]")


class _Scope:
    """The named types that signatures may mention, and the parser of type expressions."""

    def __init__(self) -> None:
        self.named: dict[str, _Type] = {}
        self.resource_ids: dict[str, int] = {}

    def parse(self, text: str) -> _Type:
        """The type that ``text`` names. ``ValueError`` when it names none."""
        tokens = _TOKEN.findall(text)
        try:
            parsed, rest = self._type(tokens)
        except LookupError as missing:
            raise ValueError(f"cannot read the type {text!r}") from missing
        if parsed is None or rest:
            raise ValueError(f"cannot read the type {text!r}")
        return parsed

    def _type(self, tokens: list[str]) -> tuple[_Type | None, list[str]]:
        if not tokens:
            raise ValueError("a type is missing")
        head, rest = tokens[0], tokens[1:]
        if rest and rest[0] == "<":
            names, arguments, rest = self._arguments(head, rest[1:])
            return self._generic(head, names, arguments), rest
        if head == "_":
            return None, rest
        if head in _INTEGER:
            return _integer(head), rest
        if head == "string":
            return _string(_KIND["string"]), rest
        if head == "latin1":
            return _latin1(), rest
        if head == "result":
            return _result(None, None), rest
        if head in self.resource_ids:
            return _resource(self.resource_ids[head], owned=True), rest
        if head not in self.named:
            raise ValueError(f"the type {head!r} is not declared")
        return self.named[head], rest

    def _arguments(self, head: str, tokens: list[str]) -> tuple[list[str], list[_Type | None], list[str]]:
        names: list[str] = []
        arguments: list[_Type | None] = []
        while True:
            names.append(tokens[0])
            if head in ("own", "borrow"):
                tokens = tokens[1:]
            else:
                argument, tokens = self._type(tokens)
                arguments.append(argument)
            separator, tokens = tokens[0], tokens[1:]
            if separator == ">":
                return names, arguments, tokens

    def _generic(self, head: str, names: list[str], arguments: list[_Type | None]) -> _Type:
        if head in ("own", "borrow"):
            return _resource(self.resource_ids[names[0]], owned=head == "own")
        if head == "result":
            return _result(arguments[0], arguments[1] if len(arguments) > 1 else None)
        present = [a for a in arguments if a is not None]
        if head == "list":
            return _bytes() if names == ["u8"] else _list(present[0])
        if head == "option":
            return _option(present[0])
        if head == "tuple":
            return _tuple(present)
        raise ValueError(f"unknown generic type {head!r}")


@dataclass
class Signature:
    """A compiled function type."""

    lifts: list[Lift]
    lower: Lower | None
    kinds: bytes


HostFunction = Callable[..., Any]
Callback = Callable[[int, int, int, int, int, int, int], int]


@dataclass
class Interface:
    """One WASI interface: its name with a version, its resources, and its functions as callbacks for the linker.

    The version is any of the 0.2 line: the linker matches versions by semantic compatibility, so one definition serves
    imports of 0.2.0 to 0.2.12.
    """

    name: str
    world: "World"
    resources: dict[str, int] = field(default_factory=dict)
    functions: dict[str, HostFunction] = field(default_factory=dict)
    callbacks: dict[str, Callback] = field(default_factory=dict)

    def resource(self, name: str) -> None:
        """Declare a resource type that this interface defines."""
        self.resources[name] = self.world.new_resource(name)

    def use_resource(self, name: str, original: str) -> None:
        """Declare ``name`` as another name of a resource that another interface (or this one) defined.

        The same type id under both names, or instantiation fails with "mismatched resource types".
        """
        self.resources[name] = self.world.scope.resource_ids[name] = self.world.scope.resource_ids[original]

    def variant(self, name: str, cases: dict[str, str | None]) -> None:
        """Declare a variant: case -> type text, or None for a case without a payload."""
        scope = self.world.scope
        scope.named[name] = _variant({c: None if t is None else scope.parse(t) for c, t in cases.items()})

    def record(self, name: str, fields: dict[str, str]) -> None:
        """Declare a record; its Python value is a tuple in this order of fields."""
        scope = self.world.scope
        scope.named[name] = _record([(f.encode(), scope.parse(t)) for f, t in fields.items()])

    def enum(self, name: str) -> None:
        """Declare an enum; its Python value is the case's name."""
        self.world.scope.named[name] = _string(_KIND["enum"])

    def alias(self, name: str, text: str) -> None:
        """Declare another name for a type."""
        self.world.scope.named[name] = self.world.scope.parse(text)

    def func(self, declaration: str) -> Callable[[HostFunction], HostFunction]:
        """Define the function whose WIT text is ``NAME: func(PARAMS) [-> RESULT]``; the guest comes first."""
        name, _, text = declaration.partition(": func(")

        def define(function: HostFunction) -> HostFunction:
            self.functions[name] = function
            self.callbacks[name] = _callback(function, self.world.signature(text), f"{self.name}#{name}")
            return function

        return define


class World:
    """All interfaces a guest can import, with the types they share."""

    def __init__(self) -> None:
        self.scope = _Scope()
        self.interfaces: dict[str, Interface] = {}
        self._last_type_id = 0

    def interface(self, name: str) -> Interface:
        """A new interface, ``namespace:package/name@0.2.x``."""
        made = self.interfaces[name] = Interface(name, self)
        return made

    def new_resource(self, name: str) -> int:
        self._last_type_id += 1
        self.scope.resource_ids[name] = self._last_type_id
        return self._last_type_id

    def signature(self, text: str) -> Signature:
        """Compile ``PARAMS) [-> RESULT]``."""
        parameters, _, result = text.rpartition(")")
        types = [self.scope.parse(p.split(":", 1)[1]) for p in _split_parameters(parameters)]
        result = result.removeprefix(" -> ").strip()
        lower = self.scope.parse(result).lower if result else None
        return Signature([t.lift for t in types], lower, bytes(t.kind for t in types))


def _split_parameters(text: str) -> list[str]:
    """``a: list<x>, b: y`` -> [``a: list<x>``, ``b: y``]: commas inside angle brackets do not count."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [p for p in [*parts, text[start:]] if p.strip()]


#: One call of a host function. Written out per function type, because a loop over converters and the building of an
#: argument list take as long as the conversions.
_CALLED = """
def called(data, context, kind, arguments, count, results, result_count):
    try:
        guest = GUESTS[context]
        guest.host_calls += 1
        if count != {count} or result_count != {result_count}{other_kinds}:
            raise GuestTrap(another_signature)
        value = function(guest{lifted})
        {lowered}
        return 0
    except BaseException as fault:
        return trap(context, fault, failure)
"""


def _callback(function: HostFunction, signature: Signature, name: str) -> Callback:
    places = range(len(signature.kinds))
    text = _CALLED.format(
        count=len(signature.kinds),
        result_count=0 if signature.lower is None else 1,
        other_kinds="".join(
            f" or byte_at(arguments + {VALUE_BYTES * i}).value != {signature.kinds[i]}" for i in places
        ),
        lifted="".join(f", lift{i}(guest, context, arguments + {VALUE_BYTES * i})" for i in places),
        lowered="pass" if signature.lower is None else "lower(guest, context, results, value)",
    )
    scope: dict[str, Any] = {
        "GUESTS": GUESTS, "GuestTrap": GuestTrap, "byte_at": _byte_at, "trap": trap, "function": function,
        "lower": signature.lower, "failure": f"{name} ended the worker".encode(),
        "another_signature": f"{name} was imported with another signature",
    } | {f"lift{i}": lift for i, lift in enumerate(signature.lifts)}  # fmt: skip
    exec(compile(text, f"<{name}>", "exec"), scope)
    called: Callback = scope["called"]
    return called


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


def call_for_u32(function: int, context: int) -> int | None:
    """Call a guest's ``func() -> u32`` of a few instructions, with the GIL held. None when it traps."""
    result = _Value()
    error = _func_call(function, context, None, 0, result, 1)
    if error:
        _error_delete(error)
        return None
    value: int = _u32_at(ctypes.addressof(result) + 8).value
    return value


def call(function: object, context: int, parameters: list[tuple[str, Any]], result: str) -> Any:
    """Call a guest's function of scalars that returns a scalar or ``latin1``. ``GuestTrap`` when it traps."""
    scope, guest = _Scope(), GUESTS[context]
    values = (_Value * (len(parameters) + 1))()
    at = ctypes.addressof(values)
    for i, (kind, value) in enumerate(parameters):
        scope.parse(kind).lower(guest, context, at + VALUE_BYTES * i, value)
    place = at + VALUE_BYTES * len(parameters)
    error = _func_call(function, context, at, len(parameters), place, 1)
    if error:
        _error_delete(error)
        raise GuestTrap("the call trapped")
    returned = scope.parse(result).lift(guest, context, place)
    _val_delete(place)
    return returned


def delete_value(address: int) -> None:
    """Free what a value that we own holds."""
    _val_delete(address)
