"""One isolate: an instance of a version, started once, serving one request at a time.

Life: ``Isolate.start`` instantiates the component under the startup CPU limit; ``run`` gives it one request on the
calling thread; ``close`` deletes its store. Between two requests nothing of the first may reach the second except
what the guest itself kept in its memory.

How a run ends is told by three observers, in this order: the guest's own ``ended`` (a host function or the tick
stopped it), the error that came back through wasmtime (a trap), and what the guest did with its outparam. A trap
that follows a refused memory growth is ``exceededMemory``: see ``memory_map``.
"""

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wasmtime.component import ExportIndex

from isolates import abi, memory_map
from isolates.artifact import Mapped
from isolates.component_resource import lower_own
from isolates.component_value import VALUE_BYTES, Err, GuestTrap, Ok, ValueType
from isolates.conversation import Conversation, ConversationLost
from isolates.egress import Egress
from isolates.engine import Sandbox, cause_of
from isolates.garbage import guest_time_ns
from isolates.guest import Guest, LogLine
from isolates.limits import MIB, IsolateLimits, Usage, Verdict, unmeasured, verdict_after
from isolates.linkers import instantiate
from isolates.native import (
    NO_FINALIZER,
    TICK,
    Function,
    Instance,
    consume_error,
    context_set_epoch_deadline,
    func_call,
    instance_get_func,
    store_context,
    store_delete,
    store_epoch_callback,
    store_limiter,
    store_new,
)
from isolates.outcome import Outcome
from isolates.stores import NoStores, Stores
from isolates.wasi.http.incoming import IncomingRequest
from isolates.wasi.http.response import Outparam
from isolates.watchdog import Watchdog

_log = logging.getLogger(__name__)

#: What an instance may consist of. Engines with adapters have about twenty core instances and two tables.
_INSTANCES_MAX, _TABLES_MAX, _TABLE_ELEMENTS_MAX = 128, 32, 200_000
#: A trap counts as running out of memory when less than this was left: the largest step in which allocators of stock
#: toolchains grow a memory beyond their request is 64 KiB pages times a few; engines' garbage collectors take 1 MiB
#: chunks and more.
_MEMORY_LEFT_BYTES = 4 * MIB
_PAGE_BYTES = 64 * 1024
#: What the smallest isolate dirties beside what its memory grows by: its stack page, its allocator's first pages.
_PRIVATE_BYTES_MIN = 64 * 1024
#: Ticks that never pass: the probe is one instruction, and a tick in it would be of a request that is over.
_NO_DEADLINE = 1 << 62


#: Held while a store is deleted, so that while one of them is looked for (``memory_map``) no other one goes.
_closing = threading.Lock()


@dataclass(frozen=True, slots=True)
class StartFailed:
    """Why no isolate came to be. ``reason`` may be shown to the worker's owner."""

    outcome: Outcome
    reason: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """One request, after the guest left it."""

    outcome: Outcome
    verdict: Verdict
    usage: Usage
    reason: str
    logs: tuple[LogLine, ...]
    answered: bool
    subrequests: int  # that it made


@TICK  # type: ignore[untyped-decorator]
def _on_tick(context: int, data: int, delta: int, kind: int) -> int:
    """The engine's epoch passed while a guest ran: go on for one more tick, or stop it."""
    try:
        ctypes.c_uint64.from_address(delta).value = 1
        guest = abi.GUESTS[context]
        assert isinstance(guest, RunningGuest)
        guest.tick()
        return 0
    except BaseException as fault:
        return abi.trap(context, fault, b"stopped by the host")


def _call_released(function: object, context: int, parameters: int, count: int) -> int | None:
    """Call a guest's function without results, other threads running meanwhile. The error, or None."""
    error: int | None = func_call(function, context, parameters, count, None, 0)
    return error


class RunningGuest(Guest):
    """A guest with its CPU clock."""

    cpu_began_ns = 0
    cpu_limit_ns = 0

    watchdog: Watchdog | None = None

    def wait(self, timeout_s: float, **until: Any) -> None:
        """Wait as every guest does, unwatched."""
        watchdog = self.watchdog
        if watchdog is None:
            super().wait(timeout_s, **until)
            return
        watchdog.pause()
        try:
            super().wait(timeout_s, **until)
        finally:
            watchdog.resume()

    def begin_cpu(self, limit_ms: float) -> None:
        """From now on, on this thread, at most ``limit_ms`` of CPU time."""
        self.cpu_began_ns = guest_time_ns()
        self.cpu_limit_ns = int(limit_ms * 1e6)

    @property
    def cpu_ms(self) -> float:
        """CPU time used on this thread since ``begin_cpu``, full garbage collections excepted."""
        return (guest_time_ns() - self.cpu_began_ns) / 1e6

    def tick(self) -> None:
        """Called every few milliseconds of running guest code: limits, the client, and held-back output."""
        if self.watchdog is not None:
            # It runs with the GIL held and is longer than was expected of it: let the others have a turn.
            time.sleep(0)
        if guest_time_ns() - self.cpu_began_ns > self.cpu_limit_ns:
            self.end(Outcome.EXCEEDED_CPU)
        if time.monotonic() > self.deadline_s:
            self.end(Outcome.EXCEEDED_WALL_TIME)
        conversation = self.conversation
        if conversation is None:
            return
        try:
            conversation.flush()
            if not conversation.listening():
                self.end(Outcome.CANCELED)
        except ConversationLost:
            self.end(Outcome.CANCELED)


class Isolate:
    """One instance. Used by one thread at a time; may move between threads in between."""

    def __init__(self, box: Sandbox, mapped: Mapped, limits: IsolateLimits, entropy: Callable[[int], bytes]) -> None:
        if mapped.memory_pages is None:
            limits = unmeasured(limits)
        self._box = box
        self._mapped = mapped
        self.limits = limits
        self.guest = RunningGuest(limits, entropy)
        self.requests = 0
        self.start_cpu_ms = 0.0
        self.start_wall_ms = 0.0
        self._request_type = box.world.scope.resource_ids["incoming-request"]
        self._outparam_type = box.world.scope.resource_ids["response-outparam"]
        self._store: int | None = store_new(box.engine.ptr(), None, NO_FINALIZER)
        self._context: int = store_context(self._store)
        self._instance = Instance()
        self._function = Function()
        self._parameters = ctypes.create_string_buffer(2 * VALUE_BYTES)
        self._parameters_at = ctypes.addressof(self._parameters)
        self._pages: Function | None = None
        self._pages_at = 0
        #: The guest's linear memory, and how much of it its start took: that much is mapped, and mostly shared.
        self.linear_bytes = 0
        self._started_bytes = 0
        abi.GUESTS[self._context] = self.guest
        store_limiter(
            self._store, limits.memory_bytes_max, _TABLE_ELEMENTS_MAX, _INSTANCES_MAX, _TABLES_MAX, limits.memories_max
        )
        store_epoch_callback(self._store, _on_tick, None, NO_FINALIZER)
        context_set_epoch_deadline(self._context, 1)

    @classmethod
    def start(
        cls,
        box: Sandbox,
        mapped: Mapped,
        limits: IsolateLimits,
        entropy: Callable[[int], bytes],
        variables: tuple[tuple[str, str], ...] = (),
        stores: Stores | None = None,
    ) -> "Isolate | StartFailed":
        """Instantiate ``mapped`` under the startup limits. The caller's thread does the work.

        ``variables`` are (name, text) pairs, the guest's environment from its first instruction on. What is compiled
        or rehearsed has none: its pieces are shared by versions whose variables differ. ``stores``: of its requests.
        """
        isolate = cls(box, mapped, limits, entropy)
        isolate.guest.variables = variables
        isolate.guest.stores = stores or NoStores()
        failed: StartFailed | None = None
        started = False
        try:
            failed = isolate._instantiate()
            started = failed is None
        finally:
            if not started:
                isolate.close()
        return failed or isolate

    def _instantiate(self) -> StartFailed | None:
        guest = self.guest
        # Start-up waits for nobody: wall time is a multiple of its CPU limit, for a machine with other work to do.
        wall_ms = 10 * self.limits.startup_cpu_ms + 1_000
        with self._box.linkers.bound(self._mapped.parts, wait_s=wall_ms / 1e3) as linker:
            if linker is None:
                return StartFailed(Outcome.LOAD_SHED, "too many others were starting.", "Try again.")
            guest.begin(None, wall_ms=wall_ms)
            guest.begin_cpu(self.limits.startup_cpu_ms)
            began = time.perf_counter()
            with self._box.ticker:
                error = instantiate(linker, self._context, self._mapped.component.ptr(), self._instance)
            self.start_cpu_ms = guest.cpu_ms
            self.start_wall_ms = (time.perf_counter() - began) * 1e3
        if error:
            return self._why_not_started(cause_of(consume_error(error)))
        handler = self._found(self._mapped.handler)
        if handler is None:
            return StartFailed(Outcome.INTERNAL_ERROR, "its handler is not a function.")
        self._function = handler
        if self._mapped.memory_pages is not None:
            self._pages = self._found(self._mapped.memory_pages)
            self._pages_at = ctypes.addressof(self._pages) if self._pages is not None else 0
            self._measure()
            self._started_bytes = self.linear_bytes
        return None

    def _found(self, index: ExportIndex) -> Function | None:
        """The exported function behind an index. None when it is none."""
        function = Function()
        is_function = instance_get_func(
            ctypes.byref(self._instance), self._context, index.ptr(), ctypes.byref(function)
        )
        return function if is_function else None

    def ask(self, export: str, parameters: list[tuple[ValueType, Any]], result: ValueType) -> Any:
        """Call a function of scalars that the component exports. ``GuestTrap`` when there is none, or when it traps."""
        index = self._mapped.component.get_export_index(export)
        function = None if index is None else self._found(index)
        if function is None:
            raise GuestTrap("no such export")
        context_set_epoch_deadline(self._context, _NO_DEADLINE)
        return abi.call(ctypes.byref(function), self._context, parameters, result)

    def _measure(self) -> None:
        """Ask the guest's instance how large its memory is. Only between requests, and never after a trap."""
        if self._pages_at:
            context_set_epoch_deadline(self._context, _NO_DEADLINE)
            pages = abi.call_for_number(self._pages_at, self._context, self.guest.scratch.value)
            self.linear_bytes = (pages or 0) * _PAGE_BYTES

    @property
    def memory_bytes(self) -> int:
        """What this isolate takes of its process alone, as far as it is known: what its memory grew by, and a floor."""
        return _PRIVATE_BYTES_MIN + self.linear_bytes - self._started_bytes

    def _why_not_started(self, cause: str) -> StartFailed:
        guest, limits = self.guest, self.limits
        memory = StartFailed(
            Outcome.EXCEEDED_MEMORY,
            f"it needs more than its {limits.memory_bytes_max // MIB} MiB of memory, or more than one.",
            "Ask for a larger memory limit in everwarm.toml.",
        )
        if guest.ended is Outcome.EXCEEDED_CPU:
            return StartFailed(
                guest.ended,
                f"it used more than its {limits.startup_cpu_ms:g} ms of startup CPU.",
                "Do less at module level, or snapshot it at build time.",
            )
        if guest.ended is Outcome.EXCEEDED_WALL_TIME:
            return StartFailed(guest.ended, "it waited too long before its first request.", "Do not wait at start-up.")
        if guest.ended is not None:
            return StartFailed(guest.ended, "it ended itself before its first request.", "Its log may say more.")
        fault = self._fault_of_host()
        if fault is not None:
            return StartFailed(Outcome.INTERNAL_ERROR, fault)
        if guest.fault is not None:
            return StartFailed(Outcome.EXCEPTION, f"{guest.fault}.")
        # Refused by the store's limits before any code ran: those messages begin with what was too much.
        if cause.startswith("memory minimum size") or "memory count too high" in cause:
            return memory
        if self._ran_out_of_memory():
            return memory
        return StartFailed(Outcome.EXCEPTION, cause, "Its log may say more.")

    def run(
        self, conversation: Conversation, *, egress: Egress | None = None, limits: IsolateLimits | None = None
    ) -> Finished:
        """Serve one request on the calling thread. Never raises for what the guest does.

        ``egress`` is the request's way out; without one every outgoing request is denied. ``limits`` are the request's,
        which may be lower than those of the one that the isolate was started for, or higher; memory is the isolate's.
        """
        assert self._store is not None, "a closed isolate was asked to run"
        guest = self.guest
        self.requests += 1
        guest.limits = allowed = self.limits if limits is None else limits
        guest.begin(conversation, wall_ms=allowed.wall_ms, egress=egress)
        guest.begin_cpu(allowed.cpu_ms)
        began = time.perf_counter()
        error, message = None, ""
        try:
            watchdog = self._box.watchdogs.of_this_thread() if self._mapped.brevity.is_short else None
            if watchdog is not None:
                guest.watchdog = watchdog
                with watchdog:
                    error = self._call(conversation, abi.call_held)
            else:
                with self._box.ticker:
                    error = self._call(conversation, _call_released)
        except GuestTrap as refused:
            # Its table is full of what it kept of earlier requests: there is no room for another one.
            message, guest.fault = str(refused), refused
        finally:
            cpu_ms, wall_ms = guest.cpu_ms, (time.perf_counter() - began) * 1e3
            guest.watchdog = None
            guest.leave()
        # What it takes to read an error is this host's time, not the guest's.
        message = consume_error(error) if error else message
        self._mapped.brevity.ended(cpu_ms, guest.host_calls)
        outcome, reason = self._outcome(message)
        if not message:
            self._measure()
        return Finished(
            outcome,
            verdict_after(outcome, returned=not message, over_soft=self.linear_bytes > self.limits.memory_soft_bytes),
            Usage(cpu_ms=cpu_ms, wall_ms=wall_ms, host_calls=guest.host_calls),
            reason,
            tuple(guest.logs),
            answered=isinstance(guest.response, Ok),
            subrequests=guest.subrequests,
        )

    def _call(self, conversation: Conversation, call: Callable[[object, int, int, int], int | None]) -> int | None:
        guest = self.guest
        address = self._parameters_at
        lower_own(guest, self._context, address, guest.lend(IncomingRequest(conversation.head)), self._request_type)
        outparam = address + VALUE_BYTES
        lower_own(guest, self._context, outparam, guest.lend(Outparam()), self._outparam_type)
        context_set_epoch_deadline(self._context, 1)
        error = call(ctypes.byref(self._function), self._context, address, 2)
        abi.delete_value(address)
        abi.delete_value(outparam)
        return error

    def _outcome(self, message: str) -> tuple[Outcome, str]:
        """How the request ended, and a reason for the worker's owner."""
        guest = self.guest
        if message:
            if guest.ended is not None:
                return guest.ended, guest.ended.value
            if isinstance(guest.fault, ConversationLost):
                return Outcome.CANCELED, Outcome.CANCELED.value
            fault = self._fault_of_host()
            if fault is not None:
                return Outcome.INTERNAL_ERROR, fault
            if guest.fault is not None:
                return Outcome.EXCEPTION, str(guest.fault)[:300]
            if self._ran_out_of_memory():
                return Outcome.EXCEEDED_MEMORY, f"more than {self.limits.memory_bytes_max // MIB} MiB of memory"
            return Outcome.EXCEPTION, cause_of(message)
        response = guest.response
        if response is None:
            return Outcome.HUNG, "the worker returned without a response"
        if isinstance(response, Err):
            return Outcome.EXCEPTION, f"the worker answered with the error {response.value[0]}"
        body = response.value.body
        if body is not None and not body.finished:
            return Outcome.RESPONSE_STREAM_DISCONNECTED, "the response body was dropped before its end"
        return Outcome.OK, ""

    def _fault_of_host(self) -> str | None:
        """What to say when a host function failed by itself, or None. The fault is the operator's to read, in the log:
        its text may name what a tenant must not see."""
        fault = self.guest.fault
        if fault is None or isinstance(fault, GuestTrap):
            return None
        _log.error("a host function failed", exc_info=fault)
        return f"the host failed ({type(fault).__name__})"

    def _ran_out_of_memory(self) -> bool:
        """Whether this isolate's memory is full, told by the mapping that goes when its store goes.

        The isolate is torn anyway, so it is closed here. A process that has less writable memory than one full isolate
        is spared the scan.
        """
        limit_bytes = self.limits.memory_bytes_max
        full_bytes = max(limit_bytes - _MEMORY_LEFT_BYTES, limit_bytes // 2)
        if memory_map.writable_bytes() < full_bytes:
            return False
        with _closing:
            return memory_map.goes_with(self._delete_store, full_bytes)

    def close(self) -> None:
        """Delete the store and all it holds. Safe to call twice."""
        with _closing:
            self._delete_store()

    def _delete_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            # Before the store goes: deleting lets other threads run, and the next store may get this address.
            # No destructor runs then; what the guest still held goes with its table.
            abi.GUESTS.pop(self._context, None)
            store_delete(store)
