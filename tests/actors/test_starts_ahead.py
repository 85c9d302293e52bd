"""The threads that start isolates ahead: what one start does wrong is not the next one's end."""

import threading

from actors.decision import Start
from actors.exchange import ColdCause, StartType
from actors.starts_ahead import Recipe, StartsAhead


def test_a_start_that_breaks_is_not_the_last() -> None:
    done = threading.Event()

    def start(decision: Start, recipe: Recipe) -> None:
        if decision.isolate < 3:
            raise RuntimeError("a bug")
        done.set()

    ahead = StartsAhead(start, threads=2, prewarms_max=8)
    ahead.begin()
    for isolate in (1, 2, 3):
        ahead.put(Start(None, isolate, "v", StartType.PREWARM, ColdCause.FIRST_EVER), Recipe("v", "d", {}))
    assert done.wait(10)
    ahead.stop()
