"""Whether a version's requests are short enough to run with the GIL held. Pure.

Giving the GIL up around guest code lets other threads run meanwhile, and costs a hand-over at every host call when they
do: some 50 us with eight busy threads on two cores, against 2 us for the call itself. It pays when guest code runs for
longer than that between two host calls. So the measure is CPU time per host call, averaged over a version's requests.
"""

from dataclasses import dataclass

#: Weight of the newest request in the average: the last ten or so decide.
_WEIGHT = 0.1


@dataclass(slots=True)
class Brevity:
    """What is known of a version in this process. Starts as not short: the first requests give the GIL up."""

    #: Average CPU time per host call in microseconds, host functions included, and per request in milliseconds.
    call_us: float = 1_000.0
    request_ms: float = 1_000.0

    #: Below this a hand-over costs more than the code it would let others run beside.
    CALL_US_MAX = 60.0
    #: And no request holds the others up for long.
    REQUEST_MS_MAX = 3.0

    @property
    def is_short(self) -> bool:
        """Whether the next request should run with the GIL held."""
        return self.call_us < self.CALL_US_MAX and self.request_ms < self.REQUEST_MS_MAX

    def ended(self, cpu_ms: float, host_calls: int) -> None:
        """A request ended. What it waited does not count: waiting gives the GIL up in any case."""
        call_us = cpu_ms * 1_000 / (host_calls + 1)
        self.call_us += _WEIGHT * (min(call_us, 1_000.0) - self.call_us)
        self.request_ms += _WEIGHT * (min(cpu_ms, 1_000.0) - self.request_ms)
