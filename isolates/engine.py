"""One wasmtime engine per process: its configuration, its fingerprint, its clock tick, and the linkers of our world.

The engine interrupts guests by *epochs*: compiled code compares a counter at loop heads and function entries, and
calls back when it passed. A timer increments the counter every millisecond while a guest runs (``watchdog``); the
callback (``Guest.tick``) is where CPU time is read and where held-back output leaves. Epochs do not interrupt host
functions: every wait in a host function has its own time limit.
"""

import ctypes
import hashlib
import os
import platform
import re
import sysconfig
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import cast

from wasmtime import Config, Engine

from isolates.cpu import SETTING, Target, target_of
from isolates.linkers import Linkers
from isolates.native import config_concurrency_support, engine_increment_epoch
from isolates.wasi import world
from isolates.watchdog import Ticker, Watchdogs
from isolates.wit import World

#: Everything that changes compiled code. Part of the fingerprint, so a change makes new artifacts.
#: ``shape`` is what ``compiler.prepared`` makes of a component: pieces of another shape may lack what this host calls.
_SETTINGS = {
    "shape": 2,
    "opt_level": "speed",
    "epochs": True,
    "threads": False,
    "concurrency": False,
    "stack_bytes": 512 * 1024,
}


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


@cache
def target() -> Target:
    """What is compiled for here. ``ValueError`` when the operator's setting is none (``cpu.SETTING``)."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as cpu:
            has = set(next(line for line in cpu if line.startswith(("flags", "Features"))).split())
    except (OSError, StopIteration):
        has = set()
    musl = str(sysconfig.get_config_var("HOST_GNU_TYPE")).endswith("musl")
    return target_of(platform.machine(), has, musl=musl, level=os.environ.get(SETTING, ""))


@cache
def engine_text() -> str:
    """What compiled code depends on, for people and to be compared: wasmtime's version, the CPU, our settings."""
    settings = hashlib.sha256(repr(sorted(_SETTINGS.items())).encode()).hexdigest()[:8]
    return f"wasmtime {version('wasmtime')} for {target().name} (settings {settings})"


@cache
def fingerprint() -> str:
    """The same as a name for files. 16 hex digits."""
    return hashlib.sha256(engine_text().encode()).hexdigest()[:16]


class Sandbox:
    """The engine of this process, its ticker, and the linker that knows our whole world.

    Built once and kept for the life of the process.
    """

    def __init__(self, make_world: Callable[[], World] = world) -> None:
        config = Config()
        config.wasm_component_model = True
        config.epoch_interruption = True
        config.wasm_threads = False
        config.cranelift_opt_level = "speed"
        config.max_wasm_stack = 512 * 1024
        # Tasks of WASI 0.3, which the bindings can not host. With their book-keeping wasmtime 50 ends every guest that
        # passes two borrowed handles in one call, as a poll of two pollables does.
        config_concurrency_support(config.ptr(), False)
        if target().triple:
            config.target = target().triple
        for flag in target().flags:
            config.cranelift_flag_enable(flag)
        self.engine = Engine(config)
        self.world = make_world()
        # Timers may still touch the engine while the interpreter ends, so it is never freed.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.engine))
        increment = cast(int, ctypes.cast(engine_increment_epoch, ctypes.c_void_p).value)
        engine = cast(int, ctypes.cast(self.engine.ptr(), ctypes.c_void_p).value)
        self.ticker = Ticker(increment, engine)
        self.watchdogs = Watchdogs(increment, engine)
        self.linkers = Linkers(self.engine.ptr(), self.world)

    def knows(self, interface: str) -> set[str] | None:
        """The names we define in ``interface`` (``wasi:io/poll@0.2.4``: any 0.2.x), or None if it is unknown.

        A package that has only drafts (``wasi:config``) is known by their full names.
        """
        base, _, wanted = interface.partition("@")
        if not (wanted == "0.2" or wanted.startswith("0.2.")):
            return None
        found = self.world.interfaces.get(interface) or self.world.interfaces.get(f"{base}@0.2.12")
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
