"""A component's text around its programs: what it imports and how, its allocator, its handler."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tests.isolates.fuzz_world import Function, Kind, RecordedWorld, flat

#: Where a guest's heap begins, which its allocator hands out.
HEAP_AT = 0x10000
#: More parameters than this pass in memory.
FLAT_MAX = 16


@dataclass(frozen=True)
class Parts:
    """What a component is made of. ``used``: functions by their name in the core module, as they are declared here."""

    used: dict[str, Function]
    encoding: str
    allocator: str
    #: Core instructions of the start function (none: there is none), of each request, and of a bad allocator.
    start: str
    requests: list[str]
    nested: str
    #: Instructions that put the handler's two parameters away.
    keep: str
    #: Global loop counters, ``$n0`` and so on; data segments.
    loops: int
    data: list[str]


def component_text(world: RecordedWorld, parts: Parts) -> str:
    """The component. Each resource has a core function ``$drop-RESOURCE``."""
    lowered, core_imports, core_exports = [], [], []
    options = '(memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))'
    options += f" string-encoding={parts.encoding}"
    for called, shape in parts.used.items():
        lowered.append(f'(core func ${called} (canon lower (func ${_id(shape.interface)} "{shape.name}") {options}))')
        core_imports.append(f'(import "host" "{called}" (func ${called} {_core_type(shape)}))')
        core_exports.append(f'(export "{called}" (func ${called}))')
    for resource, origin in sorted(world.origins.items()):
        drop = f"drop-{resource}"
        lowered.append(f"(core func ${drop} (canon resource.drop ${_id(origin)}.{resource}))")
        core_imports.append(f'(import "host" "{drop}" (func ${drop} (param i32)))')
        core_exports.append(f'(export "{drop}" (func ${drop}))')
    requests = parts.requests
    dispatch = "".join(
        f"(if (i32.eq (global.get $request) (i32.const {i + 1})) (then (call $request{i})))"
        for i in range(len(requests))
    )
    http = f"${_id('wasi:http/types@0.2.12')}"
    return f"""(component
        {_imports(world, parts.used.values())}
        (core module $libc
          (memory (export "memory") 6)
          (table (export "hook") 1 1 funcref)
          (global $top (mut i32) (i32.const {HEAP_AT}))
          (global $deep (mut i32) (i32.const 0))
          {ALLOCATORS[parts.allocator]})
        (core instance $libc (instantiate $libc))
        {" ".join(lowered)}
        (core module $main
          (import "libc" "memory" (memory 1))
          (import "libc" "hook" (table 1 1 funcref))
          {" ".join(core_imports)}
          (global $request (mut i32) (i32.const 0))
          {" ".join(f"(global $n{i} (mut i32) (i32.const 0))" for i in range(parts.loops))}
          {" ".join(parts.data)}
          (func $nested {parts.nested})
          {"(elem (i32.const 0) $nested)" if parts.nested else ""}
          {f"(func $start {parts.start}) (start $start)" if parts.start else ""}
          {" ".join(f"(func $request{i} {program})" for i, program in enumerate(requests))}
          (func (export "handle") (param i32 i32)
            {parts.keep}
            (global.set $request (i32.add (global.get $request) (i32.const 1)))
            {dispatch}))
        (core instance $main (instantiate $main
          (with "libc" (instance $libc))
          (with "host" (instance {" ".join(core_exports)}))))
        (func $handle
          (param "request" (own {http}.incoming-request)) (param "response-out" (own {http}.response-outparam))
          (canon lift (core func $main "handle")))
        (instance $handler (export "handle" (func $handle)))
        (export "wasi:http/incoming-handler@0.2.3" (instance $handler)))"""


def _core_type(shape: Function) -> str:
    parameters = [core for _, kind in shape.parameters for core in flat(kind)]
    if len(parameters) > FLAT_MAX:
        parameters = ["i32"]
    result = flat(shape.result)
    if len(result) > 1:
        parameters, result = [*parameters, "i32"], []
    return f"(param {' '.join(parameters)})" + (f"(result {result[0]})" if result else "")


def _imports(world: RecordedWorld, used: Iterable[Function]) -> str:
    """The imported interfaces with their types and the functions that are used."""
    wanted: dict[str, list[Function]] = {}
    for function in used:
        wanted.setdefault(function.interface, []).append(function)
    text = []
    declared: dict[str, str] = {}  # what a type is called outside of its interface
    for interface in world.interfaces:
        own = [r for r, origin in world.origins.items() if origin == interface]
        named = [name for name, origin in world.named_origins() if origin == interface]
        functions = wanted.get(interface, [])
        if not (functions or own or named):
            continue
        imported = _ImportedType(world, interface, declared)
        for resource in own:
            imported.resource(resource)
        for name in named:
            imported.named(name)
        for function in functions:
            imported.function(function)
        where = f"${_id(interface)}"
        name, _, version = interface.partition("@")
        asked = version if "-" in version else "0.2.3"  # drafts are no versions of each other
        text.append(f'(import "{name}@{asked}" (instance {where} {" ".join(imported.lines)}))')
        for name in (*own, *named):
            declared[name] = f"{where}.{name}"
            text.append(f'(alias export {where} "{name}" (type {where}.{name}))')
    return "\n".join(text)


class _ImportedType:
    """The type of one imported instance."""

    def __init__(self, world: RecordedWorld, interface: str, declared: dict[str, str]) -> None:
        self._world, self._interface, self._declared = world, interface, declared
        self.lines: list[str] = []
        self._here: set[str] = set()

    def resource(self, name: str) -> None:
        """Declare or mention it."""
        if name in self._here:
            return
        self._here.add(name)
        if self._world.origins.get(name) == self._interface:
            self.lines.append(f'(export "{name}" (type ${name} (sub resource)))')
            return
        original = self._world.resource_of(name)
        if self._world.origins[original] == self._interface:
            self.resource(original)
            self.lines.append(f'(export "{name}" (type ${name} (eq ${original})))')
        else:
            self._mention(name, self._declared[original])

    def _mention(self, name: str, outside: str) -> None:
        self.lines.append(f"(alias outer 1 {outside} (type $outer-{name}))")
        self.lines.append(f'(export "{name}" (type ${name} (eq $outer-{name})))')

    def named(self, name: str) -> None:
        if name in self._here:
            return
        self._here.add(name)
        world = self._world
        if name in self._declared:
            self._mention(name, self._declared[name])
            return
        kind = world.single(name)
        for part in kind.parts:
            self._ready(part)
        if kind.head == "enum":
            wat = "(enum " + " ".join(f'"{case}"' for case in world.enums[name][1]) + ")"
        elif kind.head == "record":
            fields = zip(world.records[name][1], kind.parts, strict=True)
            wat = "(record " + " ".join(f'(field "{field}" {self._wat(part)})' for field, part in fields) + ")"
        else:
            cases = zip(world.variants[name][1], kind.parts, strict=True)
            wat = "(variant " + " ".join(f'(case "{case}" {self._wat(part)})' for case, part in cases) + ")"
        self.lines.append(f'(type $shape-{name} {wat}) (export "{name}" (type ${name} (eq $shape-{name})))')

    def function(self, function: Function) -> None:
        for _, kind in function.parameters:
            self._ready(kind)
        self._ready(function.result)
        parameters = " ".join(f'(param "{name}" {self._wat(kind)})' for name, kind in function.parameters)
        result = "" if function.result is None else f"(result {self._wat(function.result)})"
        self.lines.append(f'(export "{function.name}" (func {parameters} {result}))')

    def _ready(self, kind: Kind | None) -> None:
        """Have every type that it mentions."""
        if kind is None:
            return
        if kind.head in ("own", "borrow", "resource"):
            self.resource(kind.name)
        elif kind.head in ("variant", "record", "enum"):
            self.named(kind.name)
        else:
            for part in kind.parts:
                self._ready(part)

    def _wat(self, kind: Kind | None) -> str:
        if kind is None:
            return ""
        if kind.head in ("own", "borrow"):
            return f"({kind.head} ${kind.name})"
        if kind.head in ("variant", "record", "enum"):
            return f"${kind.name}"
        if kind.head == "result":
            ok, error = kind.parts
            return f"(result {self._wat(ok)} {f'(error {self._wat(error)})' if error else ''})"
        if kind.parts:
            return f"({kind.head} {' '.join(self._wat(part) for part in kind.parts)})"
        return kind.head


def _id(interface: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", interface)


#: The heap is used again from its beginning when it is full; it grows for what is larger.
_GOOD = """
    (func (export "realloc") (param $old i32) (param $old-size i32) (param $align i32) (param $size i32) (result i32)
      (local $start i32)
      (local.set $start (i32.and (i32.add (global.get $top) (i32.const 15)) (i32.const -16)))
      (if (i64.gt_u (i64.add (i64.extend_i32_u (local.get $start)) (i64.extend_i32_u (local.get $size)))
                    (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)))
        (then
          (local.set $start (i32.const 65536))
          (drop (memory.grow (i32.add (i32.const 1) (i32.shr_u (local.get $size) (i32.const 16)))))))
      (global.set $top (i32.add (local.get $start) (local.get $size)))
      (local.get $start))"""
_SIGNATURE = '(func (export "realloc") (param i32 i32 i32 i32) (result i32)'
#: By name; all but the first are bad ones.
ALLOCATORS = {
    "good": _GOOD,
    "nothing": f"{_SIGNATURE} (i32.const 0))",
    "outside": f"{_SIGNATURE} (i32.const -8))",
    "last": f"{_SIGNATURE} (i32.shl (memory.size) (i32.const 16)))",
    "odd": f"{_SIGNATURE} (i32.const 65537))",
    "one-place": f"{_SIGNATURE} (i32.const 65536))",
    "traps": f"{_SIGNATURE} unreachable)",
    "endless": f"{_SIGNATURE} (loop $l (br $l)) (i32.const 65536))",
    "hoards": f"{_SIGNATURE} (i32.shl (memory.grow (i32.const 64)) (i32.const 16)))",
    "nested": f"""(type $hook (func)) {_SIGNATURE}
        (if (i32.lt_s (global.get $deep) (i32.const 3))
          (then
            (global.set $deep (i32.add (global.get $deep) (i32.const 1)))
            (call_indirect (type $hook) (i32.const 0))
            (global.set $deep (i32.sub (global.get $deep) (i32.const 1)))))
        (i32.const 65536))""",
}
