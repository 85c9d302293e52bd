"""How much CPU time full garbage collections took on a thread: what no guest is charged for.

Python collects on whichever thread allocates next, often that of a guest in the middle of a request. A full collection
looks at every object of the process, which takes a host some 10 to 20 ms: more than the whole CPU limit of a small
worker, and none of its doing. The younger generations are small and are left in the bill.
"""

import gc
import threading
import time

_FULL = 2


class _Thread(threading.local):
    """What one thread knows."""

    began_ns = 0
    spent_ns = 0


_thread = _Thread()


def _on_collection(phase: str, info: dict[str, int]) -> None:
    if info["generation"] < _FULL:
        return
    if phase == "start":
        _thread.began_ns = time.thread_time_ns()
    else:
        _thread.spent_ns += time.thread_time_ns() - _thread.began_ns


gc.callbacks.append(_on_collection)


def guest_time_ns() -> int:
    """This thread's CPU time in nanoseconds without its full collections. Differences of it are a guest's time."""
    return time.thread_time_ns() - _thread.spent_ns
