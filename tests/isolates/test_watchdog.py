"""Guests that run with the GIL held: they are stopped, and others get their turn."""

import ctypes
import os
import threading
from itertools import pairwise

import pytest

from isolates.artifact import Mapped
from isolates.brevity import Brevity
from isolates.engine import Sandbox
from isolates.outcome import Outcome
from isolates.watchdog import Watchdog
from tests.isolates.conftest import Guests, Start
from tests.scripted_conversation import ScriptedConversation


@pytest.fixture
def held(guests: Guests) -> "Held":
    return Held(guests)


class Held:
    """Workers that are believed to be short whatever they do."""

    def __init__(self, guests: Guests) -> None:
        self._guests = guests

    def __call__(self, name: str) -> Mapped:
        mapped = self._guests(name)
        mapped.brevity = Brevity(call_us=0.0, request_ms=0.0)
        return mapped


def test_an_endless_loop_is_stopped_at_its_cpu_limit(held: Held, start: Start) -> None:
    isolate = start(held("spin"), cpu_ms=20)
    finished = isolate.run(ScriptedConversation())
    assert finished.outcome is Outcome.EXCEEDED_CPU
    assert 20 <= finished.usage.cpu_ms < 40


def test_other_threads_run_beside_an_endless_loop(held: Held, start: Start) -> None:
    isolate = start(held("spin"), cpu_ms=200)
    turns = 0
    finished = threading.Event()

    def count() -> None:
        nonlocal turns
        while not finished.wait(0.001):
            turns += 1

    counting = threading.Thread(target=count)
    counting.start()
    isolate.run(ScriptedConversation())
    finished.set()
    counting.join()
    assert turns > 20


def test_a_guest_that_waits_is_not_watched_meanwhile_and_streams_in_time(held: Held, start: Start) -> None:
    isolate = start(held("stream"), cpu_ms=1_000)
    conversation = ScriptedConversation("/?chunks=4&interval_ms=20")
    finished = isolate.run(conversation)
    assert finished.outcome is Outcome.OK
    assert all(later_s - earlier_s >= 0.02 for (earlier_s, _), (later_s, _) in pairwise(conversation.sent))


def test_a_client_that_leaves_ends_it(held: Held, start: Start) -> None:
    isolate = start(held("spin"), cpu_ms=10_000)
    finished = isolate.run(ScriptedConversation(client_leaves_after_s=0.05))
    assert finished.outcome is Outcome.CANCELED
    assert finished.usage.cpu_ms < 2_000


def test_eight_at_once(held: Held, start: Start) -> None:
    mapped = held("spin")
    isolates = [start(mapped, cpu_ms=30) for _ in range(8)]
    ended: list[Outcome] = []
    threads = [
        threading.Thread(target=lambda i=i: ended.append(i.run(ScriptedConversation()).outcome)) for i in isolates
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [Outcome.EXCEEDED_CPU] * 8


def test_a_threads_timer_ends_with_the_thread(box: Sandbox) -> None:
    before = len(box.watchdogs._all)
    made: list[Watchdog | None] = []
    thread = threading.Thread(target=lambda: made.append(box.watchdogs.of_this_thread()))
    thread.start()
    thread.join()
    (watchdog,) = made
    assert watchdog is not None
    assert watchdog._timer is None
    assert len(box.watchdogs._all) == before


def test_a_timer_calls_its_function_until_it_is_disarmed() -> None:
    fired = threading.Event()
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda value: fired.set())
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    watchdog = Watchdog(address, 0)
    try:
        with watchdog:
            assert fired.wait(5)
            watchdog.pause()
            watchdog.resume()
    finally:
        watchdog.close()
        watchdog.close()


def test_the_clock_goes_before_guests_where_it_may_and_nobody_else_does(box: Sandbox) -> None:
    """Its thread is the C library's: neither Python's nor the one that asked for it."""

    with box.ticker:
        first = {int(thread) for thread in os.listdir("/proc/self/task") if _goes_first(int(thread))}
    ours = {thread.native_id for thread in threading.enumerate()}
    assert not first & ours
    assert bool(first) == _may_go_first()


def _goes_first(thread: int) -> bool:
    """Whether a thread of this process has the clock's priority; one that has just ended has none."""
    try:
        return os.sched_getscheduler(thread) == os.SCHED_RR
    except ProcessLookupError:
        return False


def _may_go_first() -> bool:
    """Whether this process may give a thread of its own a real-time priority."""
    allowed: list[bool] = []

    def attempt() -> None:
        try:
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_RR, os.sched_param(1))
        except PermissionError:
            allowed.append(False)
        else:
            allowed.append(True)

    trying = threading.Thread(target=attempt)
    trying.start()
    trying.join()
    return allowed == [True]
