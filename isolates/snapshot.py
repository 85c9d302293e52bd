"""Start-up done once: a component whose instances begin where its start-up ended.

Some toolchains run a worker's top level when they build it and ship the memory that it leaves (componentize-js,
componentize-py). For the others every cold start runs it again, up to 400 ms. Here it is run once, at deploy, and what
it left behind becomes the component's initial contents: the memories' bytes as data segments, the mutable globals'
values as their initial values, and no start functions any more.

**When that is the same program.** An instance's state is its memories, globals, tables, and what it holds of the host.

* Start-up that called the host even once is not touched: it may have read a clock, random numbers, or taken a handle.
  What called nobody is a pure function of the component, and its result does not depend on when or where it ran.
* Code that could change tables or drop segments (``core_code``) is not touched: those can not be read back.
* Everything is instantiated once and at the root; one module, one instance.

**How it is read.** A copy of the component gets exports (``instrumented``): a function for each mutable global, and one
that gives a piece of a memory as text (see ``bulk_bytes`` for why text). That piece's address and length must lie in
the same memory, so it is grown by a page for them after its size was asked.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from wasmtime import wat2wasm

from isolates import component_binary as binary
from isolates.component_binary import LATIN1, MEMORY, Item, Root
from isolates.core_code import hides_no_state
from isolates.wasm_binary import (
    CODE,
    COMPONENT_PREAMBLE,
    DATA,
    DATA_COUNT,
    EXPORT,
    GLOBAL,
    START,
    CoreModule,
    NotUnderstood,
    Reader,
    leb,
    name,
    sections,
    vector,
)
from isolates.wasm_binary import MEMORY as MEMORY_SECTION

#: Globals of all modules together; position-independent code has hundreds, and has its own snapshot.
GLOBALS_MAX = 64
#: Code that is read instruction by instruction, a few seconds' worth.
CODE_BYTES_MAX = 4 << 20
#: A data segment ends where this much of nothing follows.
_GAP_BYTES = 4_096
#: Bytes asked for at once.
PIECE_BYTES = 1 << 20

_WAT_TYPES = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64"}
#: A number's raw bits as an i64.
_BITS = {
    "i32": "(i64.extend_i32_u {})", "i64": "{}", "f32": "(i64.extend_i32_u (i32.reinterpret_f32 {}))",
    "f64": "(i64.reinterpret_f64 {})",
}  # fmt: skip
_U32, _U64, _STRING = b"\x79", b"\x77", b"\x73"


@dataclass(eq=False, slots=True)
class _Module:
    """A core module of the component, and its one instance."""

    item: Item
    instance: Item
    core: CoreModule
    #: Its own mutable globals: their number among its own, and their type.
    globals: list[tuple[int, int]] = field(default_factory=list)
    #: The number of its first own global and memory in their index spaces.
    globals_imported: int = 0


@dataclass(slots=True)
class State:
    """What start-up left: for each module its memory (None: it has none) and the raw bits of its mutable globals."""

    memories: list[bytes | None]
    globals: list[list[int]]


class Show(Protocol):
    """Calls the exports of an instance that ``instrumented`` added."""

    def __call__(self, export: str) -> int:
        """What a ``func() -> u64`` returns."""

    def piece(self, export: str, at: int, size: int) -> bytes:
        """What a ``func(at: u32, size: u32) -> string`` returns, as bytes."""


def _pieces(show: Show, number: int, size: int) -> Iterator[bytes]:
    for at in range(0, size, PIECE_BYTES):
        yield show.piece(f"everwarm-memory{number}", at, min(PIECE_BYTES, size - at))


class Snapshot:
    """One component's state, to be taken and put back. ``NotUnderstood`` when the component is not of that kind.

    ``vouched``: whoever built it says that its code changes neither tables nor segments (``rehearsal``). Such a
    component keeps the exports that were added to its modules, so that an engine's code stays what was compiled before.
    """

    def __init__(self, component: bytes, *, vouched: bool = False, code_bytes_max: int = CODE_BYTES_MAX) -> None:
        self._component = component
        self._vouched = vouched
        self._modules = _modules(Root.parse(component))
        if not vouched:
            _check(self._modules, code_bytes_max)
        if not any(m.core.has_memory for m in self._modules):
            raise NotUnderstood("no memory of its own")

    # ------------------------------------------------------------------------------------------------- reading

    def instrumented(self) -> bytes:
        """The component with exports that show its state: ``everwarm-global...`` and ``everwarm-memory...``."""
        root = Root.parse(self._component)
        for number, module in enumerate(_modules(root)):
            if module.globals or module.core.has_memory:
                module.item.parts = [_with_exports(module).encode()]
                _show(root, number, module)
        return root.encode()

    def read(self, show: "Show") -> State:
        """The state that an instance of ``instrumented`` is in, asked through ``show``."""
        values = [
            [show(f"everwarm-global{n}x{i}") for i, _ in enumerate(m.globals)] for n, m in enumerate(self._modules)
        ]
        # All sizes first: the first piece adds a page.
        sizes = [show(f"everwarm-pages{n}") << 16 if m.core.has_memory else None for n, m in enumerate(self._modules)]
        memories = [None if size is None else b"".join(_pieces(show, n, size)) for n, size in enumerate(sizes)]
        return State(memories, values)

    # ------------------------------------------------------------------------------------------------- writing

    def applied(self, state: State) -> bytes:
        """The component with ``state`` as the initial state of its instances."""
        root = Root.parse(self._component)
        for module, memory, values in zip(_modules(root), state.memories, state.globals, strict=True):
            # All that was put into a memory is in the state of the module that owns it: it is not put there again.
            changes: dict[int, bytes | None] = {START: None, DATA: None, DATA_COUNT: None}
            if module.globals:
                changes[GLOBAL] = _globals_section(module, values)
            core = _with_exports(module) if self._vouched else module.core
            core = core.replaced(changes)
            if memory is not None:
                core = _with_memory(core, memory)
            module.item.parts = [core.encode()]
        return root.encode()


def _modules(root: Root) -> list[_Module]:
    """The component's core modules. ``NotUnderstood`` when its state is more than theirs."""
    for item in root.items:
        nested = item.parts[0]
        if item.section == binary.COMPONENT and isinstance(nested, bytes) and _has_instances(nested):
            raise NotUnderstood("a component in the component")
    found: list[_Module] = []
    for item in root.of("module"):
        encoded = item.parts[0]
        assert isinstance(encoded, bytes)
        core = CoreModule.parse(encoded)
        users = [i for i in root.of("instantiate") if i.facts[1] is item]
        if len(users) != 1:
            raise NotUnderstood("a module without one instance")
        module = _Module(item, users[0], core)
        module.globals_imported = core.imported(3)
        module.globals = [(i, kind[0]) for i, (kind, _) in enumerate(core.globals()) if kind[1]]
        if any(kind not in _WAT_TYPES for _, kind in module.globals):
            raise NotUnderstood("a global that is not a number")
        found.append(module)
    return found


def _check(modules: list[_Module], code_bytes_max: int) -> None:
    """``NotUnderstood`` when running the modules' code could change what can not be read."""
    code_bytes = sum(len(m.core.payload(CODE)) for m in modules)
    if sum(len(m.globals) for m in modules) > GLOBALS_MAX or code_bytes > code_bytes_max:
        raise NotUnderstood("too much code or too many globals")
    if not all(hides_no_state(m.core) for m in modules):
        raise NotUnderstood("code that changes tables or segments")


def _has_instances(component: bytes) -> bool:
    numbers = {number for number, _ in sections(component, COMPONENT_PREAMBLE)}
    return bool(numbers & {binary.CORE_MODULE, binary.CORE_INSTANCE, binary.COMPONENT})


# ---------------------------------------------------------------------------------------------------- exports


def _with_exports(module: _Module) -> CoreModule:
    """The module with its mutable globals and its memory exported."""
    core = module.core
    exports = {f"everwarm-global{i}": (3, module.globals_imported + i) for i, _ in module.globals}
    if core.has_memory:
        exports["everwarm-memory"] = (2, 0)
    if not exports:
        return core
    payload = core.payload(EXPORT) or b"\0"
    reader = Reader(payload)
    count = reader.number()
    added = b"".join(name(called) + bytes([sort]) + leb(index) for called, (sort, index) in exports.items())
    changed = leb(count + len(exports)) + payload[reader.at :] + added
    if not core.payload(EXPORT):
        raise NotUnderstood("a module with state that exports nothing")
    return core.replaced({EXPORT: changed})


def _show(root: Root, number: int, module: _Module) -> None:
    """Add a probe of the module's globals and memory, and lift its functions."""
    text = ""
    parts: dict[str, Item] = {}
    added: list[Item] = []
    for place, (own, kind) in enumerate(module.globals):
        text += f'(import "guest" "g{place}" (global $g{place} (mut {_WAT_TYPES[kind]})))'
        parts[f"g{place}"] = binary.alias("core global", module.instance, f"everwarm-global{own}")
        added.append(parts[f"g{place}"])
    functions = "".join(
        f'(func (export "g{place}") (result i64) {_shown(place, kind)})'
        for place, (_, kind) in enumerate(module.globals)
    )
    memory = None
    if module.core.has_memory:
        memory = parts["memory"] = binary.alias("core memory", module.instance, "everwarm-memory")
        added.append(memory)
        text += '(import "guest" "memory" (memory 0))'
        functions += _PIECE
    probe = binary.core_module(bytes(wat2wasm(f"(module {text} {functions})")))
    guest = binary.inline(parts)
    instance = binary.instantiate(probe, {"guest": guest})
    root.append(*added, guest, probe, instance)
    for place in range(len(module.globals)):
        _lift(root, instance, f"g{place}", f"everwarm-global{number}x{place}", b"\x40\x00\x00" + _U64, [])
    if memory is not None:
        _lift(root, instance, "pages", f"everwarm-pages{number}", b"\x40\x00\x00" + _U64, [])
        piece = b"\x40\x02" + name("at") + _U32 + name("size") + _U32 + b"\x00" + _STRING
        _lift(root, instance, "piece", f"everwarm-memory{number}", piece, [(LATIN1, None), (MEMORY, memory)])


def _shown(place: int, kind: int) -> str:
    return _BITS[_WAT_TYPES[kind]].format(f"(global.get $g{place})")


#: The memory's pages; and a piece of it, as text: its address and length are written to a page of their own.
_PIECE = """
  (global $answer (mut i32) (i32.const 0))
  (func (export "pages") (result i64) (i64.extend_i32_u (memory.size)))
  (func (export "piece") (param $at i32) (param $size i32) (result i32)
    (if (i32.eqz (global.get $answer))
      (then (global.set $answer (i32.shl (memory.grow (i32.const 1)) (i32.const 16)))))
    (i32.store (global.get $answer) (local.get $at))
    (i32.store offset=4 (global.get $answer) (local.get $size))
    (global.get $answer))
"""


def _lift(
    root: Root, instance: Item, core_name: str, called: str, kind: bytes, options: list[tuple[int, Item | None]]
) -> None:
    function = binary.alias("core func", instance, core_name)
    lifted = binary.lift(function, root.count("type"), options)
    root.append(function, Item(binary.TYPE, [kind], "type"), lifted, binary.export(called, lifted))


# ------------------------------------------------------------------------------------------------------ state


def _globals_section(module: _Module, values: list[int]) -> bytes:
    """The module's globals with ``values`` for its mutable ones."""
    initial = dict(zip((own for own, _ in module.globals), values, strict=True))
    items = []
    for own, (encoded_type, constant) in enumerate(module.core.globals()):
        # A value that has not changed stays as it was written: the same engine stays the same bytes.
        if own in initial and (changed := _constant(encoded_type[0], initial[own])) != constant:
            constant = changed
        items.append(encoded_type + constant)
    return vector(items)


def _constant(kind: int, bits: int) -> bytes:
    if kind == 0x7F:
        return b"\x41" + _signed(bits & 0xFFFF_FFFF, 32) + b"\x0b"
    if kind == 0x7E:
        return b"\x42" + _signed(bits, 64) + b"\x0b"
    if kind == 0x7D:
        return b"\x43" + (bits & 0xFFFF_FFFF).to_bytes(4, "little") + b"\x0b"
    return b"\x44" + bits.to_bytes(8, "little") + b"\x0b"


def _signed(bits: int, width: int) -> bytes:
    """A signed LEB128 number from its raw bits."""
    value = bits - (1 << width) if bits >> (width - 1) else bits
    out = bytearray()
    while True:
        low = value & 0x7F
        value >>= 7
        if (value == 0 and not low & 0x40) or (value == -1 and low & 0x40):
            out.append(low)
            return bytes(out)
        out.append(low | 0x80)


def _with_memory(core: CoreModule, memory: bytes) -> CoreModule:
    """The module with ``memory`` as its initial memory."""
    reader = Reader(core.payload(MEMORY_SECTION))
    if reader.number() != 1:
        raise NotUnderstood("a module of several memories")
    flags, _ = reader.byte(), reader.number()
    limits = leb(1) + bytes([flags]) + leb(len(memory) >> 16) + reader.data[reader.at :]
    segments = [b"\0\x41" + _signed(at, 32) + b"\x0b" + leb(len(data)) + data for at, data in _segments(memory)]
    changed = core.replaced({MEMORY_SECTION: limits})
    return CoreModule((*changed.sections, (DATA, vector(segments))))


def _segments(memory: bytes) -> Iterator[tuple[int, bytes]]:
    """The parts of a memory that are not nothing: (address, bytes)."""
    nothing = bytes(_GAP_BYTES)
    begin: int | None = None
    for at in range(0, len(memory), _GAP_BYTES):
        empty = memory[at : at + _GAP_BYTES] == nothing
        if begin is None and not empty:
            begin = at
        elif begin is not None and empty:
            yield begin, memory[begin:at]
            begin = None
    if begin is not None:
        yield begin, memory[begin:]
