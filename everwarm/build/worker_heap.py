"""All objects of a worker's interpreter, listed for the platform: see `isolates.immortal`.

This file becomes part of a Python worker. It runs once, when the worker is deployed, in the last rehearsed request:
what it leaves behind would be in every instance's memory, so it holds a bit for each possible address and no more.
"""

import gc
import struct
import sys
from collections.abc import Iterator
from types import CodeType
from typing import Any

PATH = "/objects"

# Objects begin at multiples of 4 and have at least 8 bytes, so no two begin in the same eight bytes.
_BYTES_PER_BIT = 8
_CHUNK_BYTES = 32_768


def listed() -> Iterator[bytes]:
    """The list, in pieces: the count of an immortal object, then the address of each object and that of its type."""
    yield struct.pack("<I", sys.getrefcount(None))
    # What this request made is not listed: it goes with the request. All else was frozen after the one before.
    made_now = gc.get_objects()
    gc.unfreeze()
    tracked = gc.get_objects()
    seen = bytearray(max(map(id, tracked)) // (8 * _BYTES_PER_BIT) + 8_192)
    for thing in (*made_now, made_now, tracked, seen):
        _first_time(thing, seen)
    del made_now, thing
    piece = bytearray()
    for thing in tracked:
        rest = [thing]
        while rest:
            one = rest.pop()
            if not _first_time(one, seen):
                continue
            piece += struct.pack("<II", id(one), id(type(one)))
            # The collector knows nothing of what can be in no cycle: it is reached through what it knows.
            rest += [part for part in _parts(one) if not gc.is_tracked(part)]
        if len(piece) >= _CHUNK_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


def _first_time(thing: Any, seen: bytearray) -> bool:
    place = id(thing) // _BYTES_PER_BIT
    at, bit = place >> 3, 1 << (place & 7)
    if at >= len(seen) or seen[at] & bit:
        return False
    seen[at] |= bit
    return True


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, CodeType):
        return [
            thing.co_consts, thing.co_names, thing.co_name, thing.co_qualname, thing.co_filename, thing.co_linetable,
            thing.co_exceptiontable, *thing.co_varnames, *thing.co_freevars, *thing.co_cellvars,
        ]  # fmt: skip
    return gc.get_referents(thing)
