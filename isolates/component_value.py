"""Component values <-> Python values: one pair of converters per type, compiled when a type is declared.

A value of the C API is 32 bytes: a kind byte at 0, and from 8 on a payload of three words, here called a, b and c. What
they mean depends on the kind: a number (a); the size and address of text or of elements (a, b); a case's name and the
address of its payload (a, b, c); the address of a box (a); a resource (a).

**Reading and writing.** ``MEMORY`` is this process's whole address space as one buffer, so a value is read or written
by one call of ``struct`` at its address, and text and elements by one slice. Values are addresses (int) throughout:
an object for each pointer is what makes the stock converters slow.

**Python side.** ``list<u8>`` is ``bytes``; so is ``latin1``, a WIT string that carries bytes; other lists are lists;
tuples and records are tuples in field order; an option is ``None`` or the value; a result is ``Ok`` or ``Err``; a
variant is ``(case, payload)``; an enum is ``str``; ``own<T>`` and ``borrow<T>`` are the Python object itself, which
lives in the guest's resource table (an ``own`` parameter leaves the table).

**Nothing is believed.** A component names the types of its imports itself. Reading a u64 as the address of a list would
hand a guest the memory of this process, so the kind of every value inside a value is compared before it is read, as the
caller compares the kind of the value itself.

**Ownership** (observed with the C API of wasmtime 50): arguments belong to wasmtime and are freed after the callback;
results are taken over by wasmtime, so everything in them is allocated with its own allocators. The kind of a result is
written when all that it holds is there: a lowering that fails half way leaves the harmless ``bool`` that wasmtime put
there.
"""

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from wasmtime import _ffi

T = TypeVar("T")

#: Every address of this process. 2^56 is beyond what any kernel hands out; the buffer itself holds nothing.
MEMORY = memoryview((ctypes.c_ubyte * (1 << 56)).from_address(0)).cast("B")

# A handle of our own, so that these prototypes do not disturb those of the bindings. PyDLL keeps the GIL: these
# calls take well under a microsecond and must not invite another thread in.
_C = ctypes.PyDLL(str(_ffi.filename))
_P, _U32, _SIZE = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_size_t


def declare(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the C API that is called with the GIL held."""
    function = getattr(_C, name)
    function.restype, function.argtypes = result, arguments
    return function


_byte_vec_new = declare("wasm_byte_vec_new", None, _P, _SIZE, ctypes.c_char_p)
vallist_new_uninit = declare("wasmtime_component_vallist_new_uninit", None, _P, _SIZE)
host_new = declare("wasmtime_component_resource_host_new", _P, ctypes.c_bool, _U32, _U32)
host_delete = declare("wasmtime_component_resource_host_delete", None, _P)

VALUE_BYTES = 32
KIND = {
    "bool": 0, "s8": 1, "u8": 2, "s16": 3, "u16": 4, "s32": 5, "u32": 6, "s64": 7, "u64": 8, "string": 12, "list": 13,
    "record": 14, "tuple": 15, "variant": 16, "enum": 17, "option": 18, "result": 19, "resource": 21,
}  # fmt: skip
#: How ``struct`` spells an integer, and how what the payload's first word holds is read: the bytes beyond the integer
#: are whatever was there before.
INTEGERS = {
    "bool": ("?", "a & 0xFF != 0"), "u8": ("B", "a & 0xFF"), "u16": ("H", "a & 0xFFFF"), "u32": ("I", "a & 0xFFFFFFFF"),
    "u64": ("Q", "a"), "s8": ("b", "((a & 0xFF) ^ 0x80) - 0x80"), "s16": ("h", "((a & 0xFFFF) ^ 0x8000) - 0x8000"),
    "s32": ("i", "((a & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000"), "s64": ("q", "(a ^ 1 << 63) - (1 << 63)"),
}  # fmt: skip

#: kind, a, b, c of the value at an address.
read_value = struct.Struct("=B7xQQQ").unpack_from
read_word = struct.Struct("=Q").unpack_from


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
    scratch: "Scratch"

    def lend(self, thing: Any) -> int: ...
    def borrowed(self, rep: int) -> Any: ...
    def take(self, rep: int) -> Any: ...
    def dropped(self, rep: int) -> None: ...


def _found_pair() -> tuple[bytes, int]:
    """How a host resource looks in memory: 16 bytes of one, and where its number and type stand, side by side.

    -1 when they do not: then the C API is asked, in three calls more. Found out rather than assumed, for it is nothing
    that the C API promises.
    """
    number, kind = 0x5EED_C0DE, 0x0DD0_BA11
    host = host_new(True, number, kind)
    looks = MEMORY[host : host + 16].tobytes()
    host_delete(host)
    at = looks.find(struct.pack("=II", number, kind))
    return looks, at if 0 <= at <= 8 else -1


_HOST_RESOURCE, PAIR_AT = _found_pair()


class Scratch:
    """64 bytes of a guest's own, which one thread uses at a time: places for C functions to write to and read from.

    ``place``: a word. ``host``: 16 bytes that look like a host resource. ``value``: a value on its way into a box.
    """

    __slots__ = ("_block", "host", "place", "value")

    def __init__(self) -> None:
        self._block = ctypes.create_string_buffer(_HOST_RESOURCE, 64)
        self.host = ctypes.addressof(self._block)
        self.place = self.host + 16
        self.value = self.host + 32


Lift = Callable[[Guest, int, int, int, int], Any]
Lower = Callable[[Guest, int, int, Any], None]


@dataclass(frozen=True, slots=True)
class ValueType:
    """The converters of one type. ``lift(guest, context, a, b, c)``: the caller has compared ``kind``.

    ``lower(guest, context, address, value)`` writes a whole value. ``expression``: ``lift`` written in place, in terms
    of a, b, c and ``MEMORY``. ``flat``: lowering it makes no box, so that it may be made in the guest's scratch.
    """

    kind: int
    lift: Lift
    lower: Lower
    expression: str = ""
    flat: bool = False


# ---------------------------------------------------------------------------------------------- scalars and text


def integer(name: str) -> ValueType:
    """A bool or an integer."""
    code, expression = INTEGERS[name]
    kind = KIND[name]
    write = struct.Struct(f"=B7x{code}").pack_into
    lift: Lift = eval(f"lambda guest, context, a, b, c: {expression}")

    def lower(guest: Guest, context: int, address: int, value: Any) -> None:
        write(MEMORY, address, kind, value)

    return ValueType(kind, lift, lower, expression, flat=True)


def put_text(address: int, raw: bytes) -> None:
    _byte_vec_new(address, len(raw), raw)


def string(kind: int) -> ValueType:
    """Text of this kind: a string, or the case of an enum."""

    def lift(guest: Guest, context: int, a: int, b: int, c: int) -> str:
        return str(MEMORY[b : b + a], "utf-8")

    def lower(guest: Guest, context: int, address: int, value: str) -> None:
        raw = value.encode()
        _byte_vec_new(address + 8, len(raw), raw)
        MEMORY[address] = kind

    return ValueType(kind, lift, lower, 'str(MEMORY[b : b + a], "utf-8")', flat=True)


_LIST = KIND["list"]


def bytes_of(a: int, b: int) -> bytes:
    return MEMORY[b + 8 : b + VALUE_BYTES * a : VALUE_BYTES].tobytes() if a else b""


def byte_list() -> ValueType:
    """``list<u8>``: each byte is a 32-byte value in the C API, so bytes are moved with strided copies.

    The kinds of the elements are not looked at: all elements have 32 bytes, whatever they are.
    """

    def lift(guest: Guest, context: int, a: int, b: int, c: int) -> bytes:
        return bytes_of(a, b)

    def lower(guest: Guest, context: int, address: int, value: bytes) -> None:
        size = len(value)
        vallist_new_uninit(address + 8, size)
        if size:
            data = read_word(MEMORY, address + 16)[0]
            end = data + VALUE_BYTES * size
            MEMORY[data:end:VALUE_BYTES] = b"\x02" * size
            MEMORY[data + 8 : end : VALUE_BYTES] = value
        MEMORY[address] = _LIST

    return ValueType(_LIST, lift, lower)


def latin1() -> ValueType:
    """Bytes that pass as text: each is the character of its number, and ASCII is itself. See ``bulk_bytes``."""
    kind = KIND["string"]

    def lift(guest: Guest, context: int, a: int, b: int, c: int) -> bytes:
        raw = MEMORY[b : b + a].tobytes()
        if raw.isascii():
            return raw
        try:
            return raw.decode().encode("latin-1")
        except UnicodeEncodeError:
            # Only who imports the added functions with a string of its own can get here.
            raise GuestTrap("text was passed where bytes belong") from None

    def lower(guest: Guest, context: int, address: int, value: bytes) -> None:
        put_text(address + 8, value if value.isascii() else value.decode("latin-1").encode())
        MEMORY[address] = kind

    return ValueType(kind, lift, lower, flat=True)
