"""One wasmtime engine per process: its configuration, its fingerprint, its clock tick, and the linker of our world.

The engine interrupts guests by *epochs*: compiled code compares a counter at loop heads and function entries, and
calls back when it passed. A thread increments the counter every millisecond while a guest runs; the callback
(``Guest.tick``) is where CPU time is read and where held-back output leaves. Epochs do not interrupt host functions:
every wait in a host function has its own time limit.

Calls into wasmtime that run guest code go through a handle that releases the GIL, so guests run in parallel.
"""

import ctypes
import hashlib
import platform
import re
import threading
import time
from importlib.metadata import version
from types import TracebackType

from wasmtime import Config, Engine, _ffi

from isolates import abi
from isolates.wasi import world

_C = ctypes.CDLL(str(_ffi.filename))
_P, _U64, _I64, _SIZE = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64, ctypes.c_size_t

TICK = ctypes.CFUNCTYPE(_SIZE, _P, _P, _P, _P)
NO_FINALIZER = ctypes.CFUNCTYPE(None, _P)(0)

#: How often a guest is looked at. 1 ms holds a 50 ms CPU limit to 50-51.4 ms with six threads on two cores.
TICK_S = 0.001

#: Everything that changes compiled code. Part of the fingerprint, so a change makes new artifacts.
_SETTINGS = {"opt_level": "speed", "epochs": True, "threads": False, "stack_bytes": 512 * 1024}


def _prototype(name: str, result: object, *arguments: object) -> "ctypes._NamedFuncPointer":
    function = getattr(_C, name)
    function.restype, function.argtypes = result, arguments
    return function  # type: ignore[no-any-return]


engine_increment_epoch = _prototype("wasmtime_engine_increment_epoch", None, _P)
store_new = _prototype("wasmtime_store_new", _P, _P, _P, ctypes.CFUNCTYPE(None, _P))
store_context = _prototype("wasmtime_store_context", _P, _P)
store_delete = _prototype("wasmtime_store_delete", None, _P)
store_limiter = _prototype("wasmtime_store_limiter", None, _P, _I64, _I64, _I64, _I64, _I64)
store_epoch_callback = _prototype(
    "wasmtime_store_epoch_deadline_callback", None, _P, TICK, _P, ctypes.CFUNCTYPE(None, _P)
)
context_set_epoch_deadline = _prototype("wasmtime_context_set_epoch_deadline", None, _P, _U64)
linker_new = _prototype("wasmtime_component_linker_new", _P, _P)
linker_root = _prototype("wasmtime_component_linker_root", _P, _P)
linker_instantiate = _prototype("wasmtime_component_linker_instantiate", _P, _P, _P, _P, _P)
_linker_add_instance = _prototype("wasmtime_component_linker_instance_add_instance", _P, _P, ctypes.c_char_p, _SIZE, _P)
_linker_add_func = _prototype(
    "wasmtime_component_linker_instance_add_func", _P, _P, ctypes.c_char_p, _SIZE, abi.CALLBACK, _P,
    ctypes.CFUNCTYPE(None, _P),
)  # fmt: skip
_linker_add_resource = _prototype(
    "wasmtime_component_linker_instance_add_resource", _P, _P, ctypes.c_char_p, _SIZE, _P, abi.DESTRUCTOR, _P,
    ctypes.CFUNCTYPE(None, _P),
)  # fmt: skip
_linker_instance_delete = _prototype("wasmtime_component_linker_instance_delete", None, _P)
_resource_type_new = _prototype("wasmtime_component_resource_type_new_host", _P, ctypes.c_uint32)
_resource_type_delete = _prototype("wasmtime_component_resource_type_delete", None, _P)
instance_get_func = _prototype("wasmtime_component_instance_get_func", ctypes.c_bool, _P, _P, _P, _P)
func_call = _prototype("wasmtime_component_func_call", _P, _P, _P, _P, _SIZE, _P, _SIZE)
_error_message = _prototype("wasmtime_error_message", None, _P, _P)
_error_delete = _prototype("wasmtime_error_delete", None, _P)
_byte_vec_delete = _prototype("wasm_byte_vec_delete", None, _P)


class Instance(ctypes.Structure):
    """``wasmtime_component_instance_t``."""

    _fields_ = [("store_id", ctypes.c_uint64), ("private", ctypes.c_uint32)]


class Function(ctypes.Structure):
    """``wasmtime_component_func_t``: opaque, read and passed on."""

    _fields_ = [
        ("store_id", ctypes.c_uint64),
        ("private1", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("private2", ctypes.c_uint32),
        ("pad2", ctypes.c_uint32),
        ("private3", ctypes.c_void_p),
    ]


def consume_error(error: int) -> str:
    """The message of a C API error, which is freed."""
    vector = (ctypes.c_size_t * 2)()
    _error_message(error, vector)
    text = ctypes.string_at(vector[1], vector[0]).decode("utf-8", "replace")
    _byte_vec_delete(vector)
    _error_delete(error)
    return text


_FRAME = re.compile(r"\d+:\s+0x")
_NUMBERED = re.compile(r"\d+: ")


def cause_of(message: str) -> str:
    """The innermost cause in a wasmtime error, for the worker's owner: one line, 300 characters at most.

    An error is a first line, frames, ``Caused by:`` with one cause a line, and possibly the host's own stack: the last
    cause is what happened. Frames and everything of the host stay out.
    """
    text = message.partition("Stack backtrace:")[0]
    first, _, causes = text.partition("Caused by:")
    lines = [line.strip() for line in (causes or first).splitlines()]
    lines = [_NUMBERED.sub("", line, count=1) for line in lines if line and not _FRAME.match(line)]
    if not lines:
        return "it trapped"
    return (lines[-1] if causes else lines[0])[:300]


def _must(error: int | None) -> None:
    if error:
        raise RuntimeError(consume_error(error))


def fingerprint() -> str:
    """Names what compiled code depends on: wasmtime's version, our settings, the CPU. 16 hex digits."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as cpu:
            flags = sorted(next(line for line in cpu if line.startswith(("flags", "Features"))).split())
    except (OSError, StopIteration):
        flags = []
    parts = (version("wasmtime"), platform.machine(), " ".join(flags), repr(sorted(_SETTINGS.items())))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class Ticker:
    """Increments the engine's epoch every millisecond while guests run. Use as ``with ticker:`` on the guest's thread.

    Who enters takes no lock: a lock between guests and ticker makes each request wait for the ticker to get the GIL.
    Adding to and discarding from a set are atomic under the GIL, and the ticker looks again before it goes to sleep.
    """

    #: Ticks without a guest before the thread sleeps: requests come in bursts, and waking it costs as much as a tick.
    _IDLE_TICKS_MAX = 100

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.ptr()
        self._guests: set[int] = set()  # by thread: bounded by the threads of this process
        self._awake = threading.Event()
        threading.Thread(target=self._tick, name="epoch-ticker", daemon=True).start()

    def __enter__(self) -> None:
        self._guests.add(threading.get_ident())
        if not self._awake.is_set():
            self._awake.set()

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guests.discard(threading.get_ident())

    def _tick(self) -> None:
        idle_ticks = 0
        while True:
            time.sleep(TICK_S)
            engine_increment_epoch(self._engine)
            idle_ticks = 0 if self._guests else idle_ticks + 1
            if idle_ticks > self._IDLE_TICKS_MAX:
                self._awake.clear()
                if not self._guests:
                    self._awake.wait()
                idle_ticks = 0


class Sandbox:
    """The engine of this process, its ticker, and the linker that knows our whole world.

    Built once and kept for the life of the process: building a linker takes milliseconds, and the C side keeps
    pointers to the callbacks in ``_kept``.
    """

    def __init__(self) -> None:
        config = Config()
        config.wasm_component_model = True
        config.epoch_interruption = True
        config.wasm_threads = False
        config.cranelift_opt_level = "speed"
        config.max_wasm_stack = 512 * 1024
        self.engine = Engine(config)
        self.ticker = Ticker(self.engine)
        self.world = world()
        self._kept: list[object] = []
        self.linker = self._build_linker()

    def _build_linker(self) -> int:
        linker: int = linker_new(self.engine.ptr())
        root = linker_root(linker)
        destructor = abi.DESTRUCTOR(abi.destructor)
        self._kept.append(destructor)
        for interface in self.world.interfaces.values():
            instance = ctypes.c_void_p()
            name = interface.name.encode()
            _must(_linker_add_instance(root, name, len(name), ctypes.byref(instance)))
            for resource, type_id in interface.resources.items():
                raw, kind = resource.encode(), _resource_type_new(type_id)
                _must(_linker_add_resource(instance, raw, len(raw), kind, destructor, None, NO_FINALIZER))
                _resource_type_delete(kind)
            for function, callback in interface.callbacks.items():
                raw, native = function.encode(), abi.CALLBACK(callback)
                self._kept.append(native)
                _must(_linker_add_func(instance, raw, len(raw), native, None, NO_FINALIZER))
            _linker_instance_delete(instance)
        _linker_instance_delete(root)
        return linker

    def knows(self, interface: str) -> set[str] | None:
        """The names we define in ``interface`` (``wasi:io/poll@0.2.4``: any 0.2.x), or None if it is unknown."""
        base, _, wanted = interface.partition("@")
        if not (wanted == "0.2" or wanted.startswith("0.2.")):
            return None
        found = self.world.interfaces.get(f"{base}@0.2.12")
        return None if found is None else {*found.callbacks, *found.resources}


_sandbox: Sandbox | None = None
_sandbox_lock = threading.Lock()


def sandbox() -> Sandbox:
    """This process's sandbox, made at the first call.

    wasmtime turns traps into errors in signal handlers that it installs here. Whoever installs others later (Ray does,
    when a process joins it) turns the next trap into the end of the process: join first.

    The one global of this floor: the C side keeps pointers into it and an engine can not be unloaded, so a second one
    in a process would only cost memory.
    """
    global _sandbox
    with _sandbox_lock:
        if _sandbox is None:
            _sandbox = Sandbox()
        return _sandbox
