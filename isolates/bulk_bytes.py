"""Bodies in bulk: a component's byte streams rewritten to pass as text.

The C API passes ``list<u8>`` as one 32-byte value for each byte, so a mebibyte through a guest costs 80-180 ms of CPU.
A string passes as one block. Under the canonical option ``latin1+utf16`` a string in guest memory is one byte for each
character as long as all are below U+0100: any bytes at all are such a string. So the component's calls of

    input-stream.read, blocking-read         ->  fill (how many bytes are there), then take: string
    output-stream.write, blocking-write-...  ->  the same with the contents as a string

go through two small core modules that this file adds in front of them. The guest's own code is not touched, and it sees
the same calls with the same memory layout: ``list<u8>`` and ``string`` are both a pointer and a length.

What the added code takes care of:

* a string must start at an even address: contents at an odd one are sent as one byte the slow way, then the rest;
* when wasmtime stores such a string, it asks for room for its UTF-8 form and gives back what is too much. Guests
  written for ``list<u8>`` need not be able to shrink, so they are asked once, for the exact number of bytes, and that
  place is given to wasmtime (``slot``);
* in the length of such a string the highest bit says UTF-16. So a length with it, which is beyond any memory, goes the
  plain way and traps there as it does without the rewriting;
* wasmtime looks at the place of the UTF-8 form, up to twice as long, before it writes the bytes. Where that would be
  past the end of the memory, or the place is odd, the bytes are taken the slow way.

Source: component model, CanonicalABI.md, store_string_to_latin1_or_utf16 and load_string.
"""

from wasmtime import wat2wasm

from isolates import component_binary as binary
from isolates.component_binary import LATIN1, MEMORY, REALLOC, Item, Root
from isolates.instance_type import InstanceType
from isolates.wasm_binary import NotUnderstood, Reader

STREAMS = "wasi:io/streams@0.2"
#: What one call of the guest becomes. Short writes go the plain way: 64 bytes are two kilobytes of values.
_READS = {"[method]input-stream.read": "fill", "[method]input-stream.blocking-read": "blocking-fill"}
_WRITES = {
    "[method]output-stream.write": "write",
    "[method]output-stream.blocking-write-and-flush": "blocking-write-and-flush",
}
_U32, _U64, _STRING, _LIST_U8 = b"\x79", b"\x77", b"\x73", b"\x70\x7d"
_PREFIX = {"fill": "[method]input-stream.everwarm-", "write": "[method]output-stream.everwarm-"}

_SLOT = """
(module
  (global $place (mut i32) (i32.const 0))
  (func (export "set") (param i32) (global.set $place (local.get 0)))
  (func (export "realloc") (param i32 i32 i32 i32) (result i32) (global.get $place)))
"""
_READ = """
  (import "host" "{fill}" (func ${fill} (param i32 i64 i32)))
  (func (export "{fill}") (param $self i32) (param $length i64) (param $result i32)
    (call ${fill} (local.get $self) (local.get $length) (local.get $result))
    (if (i32.eqz (i32.load8_u (local.get $result)))
      (then (call $hand-over (local.get $self) (local.get $result)))))
"""
_HAND_OVER = """
  (import "guest" "realloc" (func $realloc (param i32 i32 i32 i32) (result i32)))
  (import "slot" "set" (func $set (param i32)))
  (import "host" "take" (func $take (param i32 i32)))
  (import "host" "take-bytes" (func $take-bytes (param i32 i32)))
  (func $hand-over (param $self i32) (param $result i32)
    (local $size i32) (local $place i32)
    (local.set $size (i32.load offset=4 (local.get $result)))
    (local.set $place
      (call $realloc (i32.const 0) (i32.const 0) (i32.const 1) (local.get $size)))
    (call $set (local.get $place))
    (local.set $result (i32.add (local.get $result) (i32.const 4)))
    (if (i32.or
          (i32.and (local.get $place) (i32.const 1))
          (i64.gt_u
            (i64.add
              (i64.extend_i32_u (local.get $place))
              (i64.shl (i64.extend_i32_u (local.get $size)) (i64.const 1)))
            (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16))))
      (then (call $take-bytes (local.get $self) (local.get $result)))
      (else (call $take (local.get $self) (local.get $result)))))
"""
_WRITE = """
  (import "host" "{write}" (func ${write} (param i32 i32 i32 i32)))
  (import "host" "{write}-bytes" (func ${write}-bytes (param i32 i32 i32 i32)))
  (func (export "{write}") (param $self i32) (param $at i32) (param $size i32) (param $result i32)
    (if (i32.lt_s (local.get $size) (i32.const 64))
      (then
        (call ${write}-bytes (local.get $self) (local.get $at) (local.get $size) (local.get $result))
        (return)))
    (if (i32.and (local.get $at) (i32.const 1))
      (then
        (call ${write}-bytes (local.get $self) (local.get $at) (i32.const 1) (local.get $result))
        (if (i32.load8_u (local.get $result)) (then (return)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (local.set $size (i32.sub (local.get $size) (i32.const 1)))))
    (call ${write} (local.get $self) (local.get $at) (local.get $size) (local.get $result)))
"""


def rewrite(root: Root) -> bool:
    """Let the byte streams of the component pass as text. Changes ``root``; False when there is nothing to change."""
    streams = root.imported_instance(STREAMS)
    calls = root.calls(streams, {*_READS, *_WRITES}) if streams is not None else []
    if streams is None or not calls:
        return False
    _extend(InstanceType(root.type_of(streams)), {called for _, called in calls})
    groups: dict[tuple[Item, Item | None], list[tuple[Item, str]]] = {}
    for lowered, called in calls:
        options = dict(lowered.options)
        memory = options.get(MEMORY)
        if memory is not None and (called in _WRITES or options.get(REALLOC) is not None):
            realloc = options.get(REALLOC) if called in _READS else None
            groups.setdefault((memory, realloc), []).append((lowered, called))
    for (memory, realloc), members in groups.items():
        _Group(root, streams, memory, realloc).replace(members)
    return bool(groups)


class _Group:
    """The calls that share a guest memory (and, for reads, an allocator)."""

    def __init__(self, root: Root, streams: Item, memory: Item, realloc: Item | None) -> None:
        self._root = root
        self._streams = streams
        self._memory = memory
        self._realloc = realloc
        self._added: list[Item] = []

    def replace(self, members: list[tuple[Item, str]]) -> None:
        """Put the added code in front of the members' calls."""
        names = {called: _READS.get(called) or _WRITES[called] for _, called in members}
        host: dict[str, Item] = {}
        arguments = {"guest": self._add(binary.inline(self._guest()))}
        text = '(module (import "guest" "memory" (memory 0))'
        functions = ""
        for called, short in sorted(names.items()):
            if called in _READS:
                host[short] = self._lowered(_PREFIX["fill"] + short, [(MEMORY, self._memory)])
                functions += _READ.format(fill=short)
            else:
                host[short] = self._lowered(_PREFIX["write"] + short, [(LATIN1, None), (MEMORY, self._memory)])
                host[f"{short}-bytes"] = self._lowered(called, [(MEMORY, self._memory)])
                functions += _WRITE.format(write=short)
        if self._realloc is not None:
            slot = arguments["slot"] = self._module(_SLOT, {})
            place: list[tuple[int, Item | None]] = [
                (MEMORY, self._memory), (REALLOC, self._add(binary.alias("core func", slot, "realloc")))
            ]  # fmt: skip
            host["take"] = self._lowered(_PREFIX["fill"] + "take", [(LATIN1, None), *place])
            host["take-bytes"] = self._lowered(_PREFIX["fill"] + "take-bytes", place)
            functions = _HAND_OVER + functions
        arguments["host"] = self._add(binary.inline(host))
        instance = self._module(text + _imports_first(functions) + ")", arguments)
        replaced = {called: self._add(binary.alias("core func", instance, short)) for called, short in names.items()}
        changes = {lowered: replaced[called] for lowered, called in members}
        self._root.insert_before(next(item for item in self._root.items if item in changes), *self._added)
        self._root.substitute(changes)

    def _guest(self) -> dict[str, Item]:
        return {"memory": self._memory} | ({"realloc": self._realloc} if self._realloc is not None else {})

    def _add(self, item: Item) -> Item:
        self._added.append(item)
        return item

    def _module(self, text: str, arguments: dict[str, Item]) -> Item:
        return self._add(binary.instantiate(self._add(binary.core_module(bytes(wat2wasm(text)))), arguments))

    def _lowered(self, called: str, options: list[tuple[int, Item | None]]) -> Item:
        function = self._add(binary.alias("func", self._streams, called))
        return self._add(binary.lower(function, options))


def _imports_first(text: str) -> str:
    """The text's lines of imports before all others, as the format wants it."""
    lines = text.splitlines()
    return "\n".join(sorted(lines, key=lambda line: not line.startswith("  (import")))


def _extend(streams: InstanceType, calls: set[str]) -> None:
    """Add the functions that stand for ``calls`` to the type of the streams."""
    reader = b""
    for called in sorted(calls):
        function = streams.function(called)
        self_type = function.parameters[0][1]
        if called in _WRITES:
            contents = [("self", self_type), ("contents", _STRING)]
            streams.offer(_PREFIX["write"] + _WRITES[called], contents, function.result)
            continue
        reader = self_type
        filled = streams.declare(b"\x6a\x01" + _U32 + b"\x01" + _error_of(streams, function.result))
        streams.offer(_PREFIX["fill"] + _READS[called], [("self", reader), ("len", _U64)], filled)
    if reader:
        streams.offer(_PREFIX["fill"] + "take", [("self", reader)], _STRING)
        streams.offer(_PREFIX["fill"] + "take-bytes", [("self", reader)], streams.declare(_LIST_U8))
    streams.store()


def _error_of(streams: InstanceType, result: bytes) -> bytes:
    """The raw number of ``E`` in ``result<list<u8>, E>``."""
    reader = Reader(streams.definition(result))
    if reader.byte() != 0x6A or not reader.byte():
        raise NotUnderstood("a stream's function with another result")
    reader.number()
    if not reader.byte():
        raise NotUnderstood("a stream's function without an error")
    return reader.data[reader.at :]
