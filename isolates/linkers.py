"""Linkers: what a component's imports are bound to when it is instantiated.

All components import the same world, so one linker would do, was it not for the parts of split components: a skeleton
imports its core modules by position, and those are other modules for every version. The C API can only bind a name in a
linker for all who use it from then on. So there are a few linkers, each used by one start at a time; a start takes the
one that has its version's parts already, or binds them over those of another, which costs a microsecond a part.

All but the first are built when they are needed, and kept for the life of the process, as are the callbacks, to
which the C side keeps pointers.
"""

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from isolates import abi
from isolates.native import NO_FINALIZER, Instance, must, prototype
from isolates.wit import World

_P, _SIZE, _FINALIZER = ctypes.c_void_p, ctypes.c_size_t, ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_linker_new = prototype("wasmtime_component_linker_new", _P, _P)
_linker_shadowing = prototype("wasmtime_component_linker_allow_shadowing", None, _P, ctypes.c_bool)
_linker_root = prototype("wasmtime_component_linker_root", _P, _P)
_linker_instantiate = prototype("wasmtime_component_linker_instantiate", _P, _P, _P, _P, _P)
_add_instance = prototype("wasmtime_component_linker_instance_add_instance", _P, _P, ctypes.c_char_p, _SIZE, _P)
_add_module = prototype("wasmtime_component_linker_instance_add_module", _P, _P, ctypes.c_char_p, _SIZE, _P)
_add_func = prototype(
    "wasmtime_component_linker_instance_add_func", _P, _P, ctypes.c_char_p, _SIZE, abi.CALLBACK, _P, _FINALIZER
)
_add_resource = prototype(
    "wasmtime_component_linker_instance_add_resource", _P, _P, ctypes.c_char_p, _SIZE, _P, abi.DESTRUCTOR, _P,
    _FINALIZER,
)  # fmt: skip
_instance_delete = prototype("wasmtime_component_linker_instance_delete", None, _P)
_resource_type_new = prototype("wasmtime_component_resource_type_new_host", _P, ctypes.c_uint32)
_resource_type_delete = prototype("wasmtime_component_resource_type_delete", None, _P)

#: Starts of split components that go on at once. Each is a millisecond of CPU, so more than a few for every core only
#: share it; a linker has some 180 definitions.
LINKERS_MAX = 8

#: A core module that a skeleton imports: the name it imports it under, and the pointer to the module.
BoundPart = tuple[bytes, object]


def instantiate(linker: int, context: int, component: object, instance: Instance) -> int | None:
    """Instantiate ``component`` in a store. An error, or None."""
    error: int | None = _linker_instantiate(linker, context, component, ctypes.byref(instance))
    return error


class Linkers:
    """The linkers of one engine: one for components without parts, at most ``linkers_max`` for the others."""

    def __init__(self, engine: object, world: World, *, linkers_max: int = LINKERS_MAX) -> None:
        self._engine = engine
        self._linkers_max = linkers_max
        self._destructor = abi.DESTRUCTOR(abi.destructor)
        self._callbacks = {
            interface.name: {name.encode(): abi.CALLBACK(callback) for name, callback in interface.callbacks.items()}
            for interface in world.interfaces.values()
        }
        self._world = world
        self._plain = self._build()
        self._lock = threading.Condition()
        # The first is built here: the start that finds none pays for it, and a deploy measures the first start.
        self._idle: list[tuple[int, Sequence[BoundPart]]] = [(self._build(), ())]
        self._built = 1
        #: What was ever bound in a linker: a name can be bound to something else, but not be taken back.
        self._names: dict[int, set[bytes]] = {}

    @contextmanager
    def bound(self, parts: Sequence[BoundPart], *, wait_s: float) -> Iterator[int | None]:
        """A linker for one start, with ``parts`` for the modules that the component imports.

        None when all were in use for ``wait_s`` seconds. ``parts`` are compared by identity: a version hands in the
        same object each time.
        """
        if not parts:
            yield self._plain
            return
        taken = self._take(parts, wait_s)
        if taken is None:
            yield None
            return
        linker, bound = taken
        try:
            if bound is not parts:
                bound = ()  # until all are bound it is nobody's: half of one version and half of another
                self._bind(linker, parts)
                bound = parts
            yield linker
        finally:
            with self._lock:
                self._idle.append((linker, bound))
                self._lock.notify()

    def _take(self, parts: Sequence[BoundPart], wait_s: float) -> tuple[int, Sequence[BoundPart]] | None:
        """A linker of one's own: one that has these parts, or the one that has been idle for longest."""
        with self._lock:
            if not self._lock.wait_for(lambda: self._idle or self._built < self._linkers_max, wait_s):
                return None
            if self._idle:
                at = next((i for i, (_, bound) in enumerate(self._idle) if bound is parts), 0)
                return self._idle.pop(at)
            self._built += 1
        return self._build(), ()

    def _bind(self, linker: int, parts: Sequence[BoundPart]) -> None:
        """Bind the parts of one version, and all names of others to a part of this one: no component that was accepted
        asks for those, and if one did, it would find nothing but its own."""
        names = self._names.setdefault(linker, set())
        left = names.difference(name for name, _ in parts)
        names.update(name for name, _ in parts)
        root = _linker_root(linker)
        for name, module in (*parts, *((name, parts[0][1]) for name in left)):
            must(_add_module(root, name, len(name), module))
        _instance_delete(root)

    def _build(self) -> int:
        linker: int = _linker_new(self._engine)
        _linker_shadowing(linker, True)
        root = _linker_root(linker)
        for interface in self._world.interfaces.values():
            instance = ctypes.c_void_p()
            name = interface.name.encode()
            must(_add_instance(root, name, len(name), ctypes.byref(instance)))
            for resource, type_id in interface.resources.items():
                raw, kind = resource.encode(), _resource_type_new(type_id)
                must(_add_resource(instance, raw, len(raw), kind, self._destructor, None, NO_FINALIZER))
                _resource_type_delete(kind)
            for raw, native in self._callbacks[interface.name].items():
                must(_add_func(instance, raw, len(raw), native, None, NO_FINALIZER))
            _instance_delete(instance)
        _instance_delete(root)
        return linker
