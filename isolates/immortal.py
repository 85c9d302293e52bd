"""Objects of a CPython snapshot that are counted no more. Pure.

An interpreter writes to every object it touches: it counts its references. So the first request of an isolate copies
hundreds of pages on which nothing changes but counts that go up and down again. Objects that CPython calls immortal
(PEP 683) are exempt: their count has a value that marks them. Which objects live in a snapshot only the interpreter
itself can tell; its glue lists them in a last rehearsed request (``worker_heap`` in a Python worker's build), and the
deploy writes the mark into the snapshot's memory. They would have lived as long as their isolate anyway, or nearly so.

The list is little-endian 32-bit words: the value that marks a count, then pairs: the object's address, its type's. An
object of 32-bit CPython begins with its count and its type. The list is made while the interpreter runs and the
snapshot is taken after it: what was freed in between is known by its second word, which is no longer its type, or by
its first, which is no longer a count but 0 or an address in a free list. Who lies in the list spoils a memory that is
its own.
"""

import struct

#: The path of the request that asks for the list.
PATH = "/objects"
#: Half a million objects: ten times what a web framework with all that it imports has.
LIST_BYTES_MAX = 4 << 20
#: No object of a snapshot has more references to it, and heaps begin above it.
_COUNT_MAX = 1 << 20
_MARK, _HEAD = struct.Struct("<I"), struct.Struct("<II")


def with_immortals(memory: bytes, listed: bytes) -> bytes | None:
    """``memory`` with the marks of all that ``listed`` names. None when the list is not one."""
    if len(listed) % 8 != 4:
        return None
    mark = _MARK.unpack_from(listed)[0]
    if mark < _COUNT_MAX:
        return None
    marked, end = bytearray(memory), len(memory) - _HEAD.size
    for at, kind in _HEAD.iter_unpack(memoryview(listed)[_MARK.size :]):
        if at > end or at % 4:
            return None
        count, found = _HEAD.unpack_from(memory, at)
        if found == kind and 0 < count < _COUNT_MAX:
            _MARK.pack_into(marked, at, mark)
    return bytes(marked)
