"""Whether a machine takes a request that another machine sends it because it is the worker's home. Pure.

A refusal is cheap here and dear for nobody: the sender has its own lazy isolate as the answer. So a home refuses
early, before its queue costs more than a cold start elsewhere would.
"""

from dataclasses import dataclass
from enum import Enum

from actors.exchange import Load, RefusalReason


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """When a home says no. An operator may change them while it runs."""

    #: Requests of others in work here. Guests wait for I/O most of the time, so this is far above the cores; it
    #: bounds the threads that others can take from this machine's own requests.
    in_flight_max: int = 128
    #: How long the last request waited for an isolate. A small worker's cold start costs about this much.
    queue_ms_max: float = 20.0
    memory_bytes_max: int = 4 << 30


class Admission(Enum):
    """The answer to a request from another machine."""

    ADMIT = "admit"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, and for a refusal its reason."""

    admission: Admission
    reason: RefusalReason | None = None


_ADMIT = Verdict(Admission.ADMIT)


def decide(load: Load, in_flight: int, limits: AdmissionLimits, *, code_here: bool, draining: bool) -> Verdict:
    """Admit or refuse one more request.

    ``load`` is the host's, as of its last report; ``in_flight`` is how many of others' requests are in work here now.
    """
    if draining:
        return Verdict(Admission.REFUSE, RefusalReason.DRAINING)
    if not code_here:
        return Verdict(Admission.REFUSE, RefusalReason.NOT_HERE)
    if in_flight >= limits.in_flight_max:
        return Verdict(Admission.REFUSE, RefusalReason.BUSY)
    # A past queue delay says nothing once the queue is empty.
    if load.queued and load.queue_ms > limits.queue_ms_max:
        return Verdict(Admission.REFUSE, RefusalReason.QUEUE)
    if load.memory_bytes > limits.memory_bytes_max:
        return Verdict(Admission.REFUSE, RefusalReason.MEMORY)
    return _ADMIT
