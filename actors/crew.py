"""Threads that are kept for short jobs: a thread that waits is woken by one call, and the last one to rest goes first.

Not ``concurrent.futures``: that one queues what finds no thread, and a job here must run now or not at all.
"""

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger("everwarm.crew")

#: How long a thread rests before it ends. Calls between workers come in bursts, and a thread costs 100 us.
_REST_S = 10.0


class Crew:
    """At most so many threads."""

    def __init__(self, threads_max: int) -> None:
        self._threads_max = threads_max
        self._lock = threading.Lock()
        self._resting: list[_Member] = []
        self._members = 0
        self._stopping = False

    def run(self, job: Callable[[], None]) -> bool:
        """Run ``job`` on a thread; False when all have something to do."""
        with self._lock:
            if self._stopping:
                return False
            if self._resting:
                member = self._resting.pop()
                is_new = False
            elif self._members < self._threads_max:
                member, is_new = _Member(), True
                self._members += 1
            else:
                return False
        member.job = job
        if is_new:
            threading.Thread(target=self._work, args=(member,), name="inner", daemon=True).start()
        else:
            member.woken.release()
        return True

    def stop(self) -> None:
        """Those that rest end; the others when their job is done."""
        with self._lock:
            self._stopping = True
            resting, self._resting = self._resting, []
        for member in resting:
            member.woken.release()

    def _work(self, member: "_Member") -> None:
        while True:
            job, member.job = member.job, None
            if job is not None:
                try:
                    job()
                except Exception:
                    # It has said what it could to whoever waits; the rest is the operator's to read.
                    _log.exception("a call within the host failed")
            del job  # and all that it holds
            with self._lock:
                if self._stopping:
                    self._members -= 1
                    return
                self._resting.append(member)
            if member.woken.acquire(timeout=_REST_S):
                continue
            with self._lock:
                if member in self._resting:
                    self._resting.remove(member)
                    self._members -= 1
                    return
            member.woken.acquire()  # somebody chose it a moment ago


class _Member:
    """One thread: what it waits for, and what it is to do then."""

    __slots__ = ("job", "woken")

    def __init__(self) -> None:
        self.job: Callable[[], None] | None = None
        self.woken = threading.Lock()
        self.woken.acquire()
