"""The engine's clock: timers of the kernel's that increment its epoch, without Python.

A Python thread that ticks every millisecond needs the GIL each time, and the GIL may be with a guest's thread that the
kernel has just put aside for another one: with eight computing guests on two cores, ticks came 10 ms late, and guests
got that much more than their limit. A POSIX timer that notifies by thread (SIGEV_THREAD) runs the C function that
increments the epoch on a thread which the C library starts for it. It costs some 30 us an expiration, so timers are
armed only while there is somebody to look at.

Two kinds of looking:

* **Ticker**, one a process, for guests that run with the GIL released: 1 ms as long as there are any.
* **Watchdog**, one a thread, for guests that run with the GIL held. Most requests are short: a few tens of microseconds
  of guest code between host functions. Giving the GIL up for each piece costs more than the pieces when several threads
  want it: every host call waits for whoever took it. So a version whose requests have been short lately keeps it
  (``brevity``). What could go wrong is a guest that does not come back: no Python thread could stop it then. The
  watchdog is armed when a guest is entered and disarmed when it comes back, which for a short request is before it
  ever fires; then it costs two system calls. Once it has fired, the guest's tick (``Guest.tick``) gives the GIL to
  others every few milliseconds.

A tick is a thread of the C library's that wants a core which a guest has, and an ordinary thread waits for it until the
guest's slice is over, some 3 ms. So the C library's thread, and with it those that it starts, gets a real-time priority
where this process may give one (root, CAP_SYS_NICE, RLIMIT_RTPRIO): with eight computing guests on two cores, what one
gets beyond its limit falls from 3.9-4.3 ms to 1.1-1.5 at the 99th percentile. All that runs so is the increment.

``timer_create(2)``. ``wasmtime_engine_increment_epoch`` may be called from any thread and from signal handlers (its
documentation). Watchdogs are deleted when the interpreter ends; the engine is never freed.
"""

import atexit
import ctypes
import logging
import os
import threading
import time
from types import TracebackType

_log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)
# These return at once; a handle that keeps the GIL spares a hand-over in the hottest place there is.
_libc_quick = ctypes.PyDLL(None)

#: Guest code runs this long before it is looked at for the first time: long enough that a short request is over.
FIRST_S = 0.002
#: The engine's usual tick.
NEXT_S = 0.001
#: A watchdog's further looks: as often as Python itself changes threads. At a real-time priority it must not be more
#: often: a hundred requests that all last longer than expected then take half a core at most, not three.
_AGAIN_S = 0.005
#: The lowest of the real-time priorities: before every ordinary thread, behind whatever else somebody set up so.
_PRIORITY = 1

_CLOCK_MONOTONIC = 1
_SIGEV_THREAD = 2


class _Event(ctypes.Structure):
    """``struct sigevent``: 64 bytes."""

    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_char * 32),
    ]


class _Times(ctypes.Structure):
    """``struct itimerspec``: the interval, then the time to the first expiration; seconds and nanoseconds each."""

    _fields_ = [("seconds_nanoseconds", ctypes.c_long * 4)]


def _times(first_s: float, next_s: float) -> _Times:
    return _Times((ctypes.c_long * 4)(0, int(next_s * 1e9), 0, int(first_s * 1e9)))


_ARMED, _TICKING, _DISARMED = _times(FIRST_S, _AGAIN_S), _times(NEXT_S, NEXT_S), _times(0, 0)
_ARMED_AT, _TICKING_AT, _DISARMED_AT = (ctypes.addressof(times) for times in (_ARMED, _TICKING, _DISARMED))
_settime = _libc_quick.timer_settime
_settime.restype = ctypes.c_int
_settime.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def _timer(function: int, argument: int) -> int:
    """A timer that calls ``function(argument)``. ``OSError`` when the kernel has no more."""
    event = _Event(argument, 0, _SIGEV_THREAD, function, None)
    timer = ctypes.c_void_p()
    if _libc.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)) != 0:
        raise OSError(ctypes.get_errno(), "timer_create")
    # None is a timer too: the kernel numbers them from 0.
    return timer.value or 0


def _first_timer(function: int, argument: int) -> int:
    """The process's first timer; the thread which the C library makes for it, and for all later ones, goes first."""
    before = set(os.listdir("/proc/self/task"))
    timer = _timer(function, argument)
    for thread in set(os.listdir("/proc/self/task")) - before:
        try:
            os.sched_setscheduler(int(thread), os.SCHED_RR, os.sched_param(_PRIORITY))
        except (PermissionError, ProcessLookupError):
            _log.info("the clock has no real-time priority; limits on CPU time are some milliseconds less exact")
    return timer


class Ticker:
    """The process's tick. Use as ``with ticker:`` on a guest's thread.

    Who enters takes no lock. Adding to and discarding from a set are atomic under the GIL; who enters looks whether the
    timer runs after it is in the set, and who stops the timer looks into the set once more after that.
    """

    #: How long the timer goes on without a guest: requests come in bursts, and arming costs as much as a tick.
    _IDLE_S = 0.1

    def __init__(self, function: int, argument: int) -> None:
        self._timer = _first_timer(function, argument)
        self._guests: set[int] = set()  # by thread: bounded by the threads of this process
        self._awake = threading.Event()
        threading.Thread(target=self._rest, name="ticker-rest", daemon=True).start()

    def __enter__(self) -> None:
        self._guests.add(threading.get_ident())
        if not self._awake.is_set():
            self._start()

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guests.discard(threading.get_ident())

    def _start(self) -> None:
        self._awake.set()
        _settime(self._timer, 0, _TICKING_AT, None)

    def _rest(self) -> None:
        """Stop the timer when nobody has needed it for a while."""
        while True:
            self._awake.wait()
            time.sleep(self._IDLE_S)
            if not self._guests:
                self._awake.clear()
                _settime(self._timer, 0, _DISARMED_AT, None)
                if self._guests:
                    self._start()


class Watchdog:
    """One thread's timer. Use as ``with watchdog:`` around guest code; ``pause`` and ``resume`` around its waits."""

    def __init__(self, function: int, argument: int) -> None:
        self._timer: int | None = _timer(function, argument)
        self._running = False

    def __enter__(self) -> None:
        self._running = True
        _settime(self._timer, 0, _ARMED_AT, None)

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = False
        _settime(self._timer, 0, _DISARMED_AT, None)

    def pause(self) -> None:
        """The guest waits in a host function: nothing is to be looked at, and a firing timer costs a thread."""
        if self._running:
            _settime(self._timer, 0, _DISARMED_AT, None)

    def resume(self) -> None:
        """The guest goes on."""
        if self._running:
            _settime(self._timer, 0, _ARMED_AT, None)

    def close(self) -> None:
        """Delete the timer."""
        timer, self._timer = self._timer, None
        if timer is not None:
            _libc.timer_delete(ctypes.c_void_p(timer))


class Watchdogs:
    """The timers of this process's threads, made at their first use; bounded by the threads that run guests."""

    def __init__(self, function: int, argument: int) -> None:
        self._made = (function, argument)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: set[Watchdog] = set()
        atexit.register(self.close)

    def of_this_thread(self) -> Watchdog | None:
        """This thread's timer. None when the kernel has no more: such a thread's guests run without the GIL."""
        holder: _Holder | None = getattr(self._local, "holder", None)
        if holder is None:
            try:
                watchdog = Watchdog(*self._made)
            except OSError:
                return None
            with self._lock:
                self._all.add(watchdog)
            holder = self._local.holder = _Holder(self, watchdog)
        return holder.watchdog

    def drop(self, watchdog: Watchdog) -> None:
        """Its thread has ended."""
        with self._lock:
            self._all.discard(watchdog)
        watchdog.close()

    def close(self) -> None:
        """Delete all timers."""
        with self._lock:
            left, self._all = self._all, set()
        for watchdog in left:
            watchdog.close()


class _Holder:
    """Ends a thread's timer with the thread: thread-local values are dropped then."""

    __slots__ = ("_owner", "watchdog")

    def __init__(self, owner: Watchdogs, watchdog: Watchdog) -> None:
        self._owner = owner
        self.watchdog = watchdog

    def __del__(self) -> None:
        self._owner.drop(self.watchdog)
