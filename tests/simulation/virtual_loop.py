"""An event loop whose clock is a number: when nothing is ready it jumps to the next timer. Nothing ever sleeps.

asyncio's ready queue is first in, first out, and this loop has no threads, no sockets and no selector. So whoever takes
all his chances from one seeded source gets the same run for the same seed, to the last callback.

``VirtualTime`` is what modules see in the place of ``time`` while a simulation runs.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from heapq import heappop, heappush
from types import ModuleType
from typing import Any, TypeVar

import msgspec

#: Where the clock starts: not at zero, which much code takes for "never".
START_S = 1_000.0


class Stalled(Exception):
    """Somebody waits, and nothing will ever happen: no callback is ready and no timer is set."""


class RunAway(Exception):
    """Callbacks follow callbacks and time does not pass: somebody goes round in a circle."""


class Callback(msgspec.Struct):
    """What asyncio calls a handle: something that will be called, unless it is cancelled before.

    A run makes some 25 of them for each request; a ``Struct`` is made without running any Python.
    """

    work: tuple[Any, ...]  # the function, and what it is given
    context: Context
    when_s: float = 0.0
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        """Of a timer: its moment."""
        return self.when_s


class VirtualLoop(asyncio.BaseEventLoop):
    """An asyncio loop in virtual time. ``faults`` collects what its tasks left behind unseen.

    Its queues are its own, for speed: what has no context of its own runs in the loop's, and timers are compared as
    tuples, in the order in which they were set when their moments are the same. So its methods give ``Callback`` where
    asyncio's give ``Handle``, which nobody here looks into.
    """

    _stopping: bool  # BaseEventLoop's own: ``stop`` was called

    #: Callbacks at one moment. A request makes about a hundred, and a cluster has some hundred at once.
    CALLBACKS_PER_MOMENT_MAX = 1_000_000

    def __init__(self) -> None:
        super().__init__()
        self._now_s = START_S
        self._soon: deque[Callback] = deque()
        self._timers: list[tuple[float, int, Callback]] = []
        self._timers_set = 0
        self._at_this_moment = 0
        self._context = Context()  # of those who bring none
        self.faults: list[str] = []
        self.set_exception_handler(self._note_fault)
        # What asyncio's own does, without a frame.
        self.create_future = partial(asyncio.Future, loop=self)  # type: ignore[method-assign]

    #: asyncio asks for it whenever it makes a future or a task. ``bool()`` is False, and no Python runs.
    get_debug = bool

    def time(self) -> float:
        return self._now_s

    def _note_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.faults.append(f"{context.get('message')}: {context.get('exception')!r}")

    def call_soon(self, *work: Any, context: Context | None = None) -> Any:  # type: ignore[override]  # see the class
        made = Callback(work, self._context if context is None else context)
        self._soon.append(made)
        return made

    call_soon_threadsafe = call_soon  # type: ignore[assignment]  # see the class

    def call_at(self, when: float, *work: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        made = Callback(work, self._context if context is None else context, when)
        self._timers_set += 1
        heappush(self._timers, (when, self._timers_set, made))
        return made

    def call_later(self, delay: float, *work: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        when_s = self._now_s + delay
        made = Callback(work, self._context if context is None else context, when_s)
        self._timers_set += 1
        heappush(self._timers, (when_s, self._timers_set, made))
        return made

    def create_task(self, coro: Any, *, name: object = None, context: Context | None = None) -> "asyncio.Task[Any]":
        # A name that is given costs less than one that asyncio makes up.
        return asyncio.Task(coro, loop=self, name="task" if name is None else str(name), context=context)

    def _run_once(self) -> None:
        """Everything that is ready, and then the next moment; until somebody stops the loop."""
        soon, timers = self._soon, self._timers
        take = soon.popleft
        while True:
            while ready := len(soon):
                self._at_this_moment += ready
                if self._at_this_moment > self.CALLBACKS_PER_MOMENT_MAX:
                    raise RunAway(f"{self._at_this_moment} callbacks at one moment")
                for _ in range(ready):
                    made = take()
                    if made.is_cancelled:
                        continue
                    try:
                        made.context.run(*made.work)
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as fault:
                        self.call_exception_handler({"message": "a callback raised", "exception": fault})
            if self._stopping:
                return
            while timers and timers[0][2].is_cancelled:
                heappop(timers)
            if not timers:
                raise Stalled("nothing is ready, and no timer is set")
            when_s = timers[0][0]
            if when_s > self._now_s:
                self._now_s = when_s
                self._at_this_moment = 0
            while timers and timers[0][0] <= self._now_s:
                soon.append(heappop(timers)[2])

    def _process_events(self, event_list: object) -> None:
        raise AssertionError("there are no events but timers")

    def _write_to_self(self) -> None:
        """Nobody has to be woken."""

    def run_in_executor(  # type: ignore[override]  # see the class
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        """Work for another thread is done at once, on this one: there is no other."""
        done: asyncio.Future[Any] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as fault:
            done.set_exception(fault)
        return done


Result = TypeVar("Result")


def play(scenario: Coroutine[Any, Any, Result]) -> Result:
    """What ``scenario`` comes to in virtual time. No task may fail unseen; tasks that it leaves are cancelled."""
    loop = VirtualLoop()
    try:
        result = loop.run_until_complete(scenario)
        assert not loop.faults
        return result
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()


class VirtualTime(ModuleType):
    """The ``time`` of modules under simulation: their clocks show the loop's."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__("time")
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()

    perf_counter = time = monotonic

    def monotonic_ns(self) -> int:
        return int(self._loop.time() * 1e9)

    perf_counter_ns = time_ns = monotonic_ns


@contextmanager
def virtual_time(loop: VirtualLoop, *packages: str) -> Iterator[None]:
    """Give every module of ``packages`` that looks at the clock the loop's clock, for the length of a block."""
    clock = VirtualTime(loop)
    watching = [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in packages and getattr(module, "time", None) is time
    ]
    for module in watching:
        module.time = clock  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in watching:
            module.time = time  # type: ignore[attr-defined]
