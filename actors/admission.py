"""Whether a machine takes a request that another machine sends it because it is the worker's home. Pure.

A refusal is cheap here and dear for nobody: the sender has its own lazy isolate as the answer. So a home refuses
early, before its queue costs more than a cold start elsewhere would.

**Pressure** is one number: 0 with nothing to do, 1 when nobody is taken any more. It is the larger of two shares:

* the *standing* queue delay, of ``queue_ms_max``. What stands is the least that anybody waited in a short while, as in
  CoDel (K. Nichols and V. Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012): a burst that drains leaves
  somebody who did not wait, a queue that stays does not. That delay and not the machine's load is what to look at is
  also what WeChat found (H. Zhou et al., "Overload Control for Scaling WeChat Microservices", SoCC 2018), with 20 ms
  as the point where overload begins;
* requests of others in work, of ``in_flight_max``: the bound on the threads that they take from this machine's own.

Who goes first, as the pressure rises, is a matter of what a refusal costs. A *hot* worker lives on where it was
refused: one cold start for thousands of requests. A request of the *tail* is a cold start each time. Among equals the
free plan goes before the paid one:

    pressure     0      0.4          0.5         0.625        0.75          1
                 all    all, and     no hot,     no hot,      no tail,      nobody
                        the hint     free        paid         free

The hint, ``nearly_full``, rides on every reply. Whoever is asked for often enough has an isolate of its own by the time
it would have been refused.

**Memory.** A host evicts down to a budget of its own. What it has above it is in use, and about to be let go or not to
be had: then no isolate is started for others, while a version that lives here is still served.
"""

from dataclasses import dataclass
from enum import Enum

from actors.exchange import Load, RefusalReason, Request
from actors.residency import ResidencyLimits


def _critical(budget_bytes: int) -> int:
    """The memory of a host whose budget no longer holds: an eighth over, which two measurements' starts may reach."""
    return budget_bytes + budget_bytes // 8


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """When a home says no. An operator may change them while it runs."""

    #: Requests of others in work here. Guests wait for I/O most of the time, so this is far above the cores; it
    #: bounds the threads that others can take from this machine's own requests.
    in_flight_max: int = 128
    #: The standing delay at which nobody is taken. Half of it, where hot workers go, is about a small worker's cold
    #: start: from there on, waiting here costs more than starting there.
    queue_ms_max: float = 40.0
    #: Of one host: its own budget and a margin (see ``within``).
    memory_bytes_max: int = _critical(ResidencyLimits().memory_bytes_max)
    #: The pressure from which on replies carry ``nearly_full``: below the first refusal, or the hint would come too
    #: late, and far enough above an ordinary day's that idle copies are not started for nothing.
    nearly_full_at: float = 0.4
    #: The share of the cores at which the same is said: guests that compute wait for the cores and not in line.
    cpu_load_nearly_full: float = 0.9
    #: A worker is hot where it is expected so many times in the time that an unused isolate lives: with 3, its isolate
    #: is still there for 95 % of the next requests (1 - e^-3).
    uses_in_residence_hot: float = 3.0
    #: The longest residence that is believed, and what is assumed while nothing was ever evicted: in ten minutes
    #: everything else has changed too.
    residence_s_max: float = 600.0

    @classmethod
    def within(cls, host_memory_bytes_max: int, in_flight_max: int = 128) -> "AdmissionLimits":
        """The limits of a machine whose hosts have ``host_memory_bytes_max`` each."""
        return cls(in_flight_max=in_flight_max, memory_bytes_max=_critical(host_memory_bytes_max))


class Admission(Enum):
    """The answer to a request from another machine."""

    ADMIT = "admit"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, and for a refusal its reason."""

    admission: Admission
    reason: RefusalReason | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """What counts of a request: whose it is, and what refusing it would cost.

    ``hot``: its worker would live on where it was refused. ``resident``: an isolate of its version was here a moment
    ago. ``code_here``: the version can be started here.
    """

    hot: bool = False
    paid: bool = True
    resident: bool = False
    code_here: bool = True


_ADMIT = Verdict(Admission.ADMIT)
#: The pressure at which each kind is refused, by (hot, paid): evenly from half of it to all.
_REFUSED_AT = {(True, False): 0.5, (True, True): 0.625, (False, False): 0.75, (False, True): 1.0}


def offer_of(request: Request, load: Load, limits: AdmissionLimits, *, resident: bool, code_here: bool) -> Offer:
    """What counts of ``request``. An isolate lives at its sender as long as it would here, for all one knows."""
    residence_s = min(load.residence_s or limits.residence_s_max, limits.residence_s_max)
    hot = request.rate_per_s * residence_s >= limits.uses_in_residence_hot
    return Offer(hot, request.plan == "paid", resident, code_here)


def decide(load: Load, in_flight: int, limits: AdmissionLimits, offer: Offer, *, draining: bool) -> Verdict:
    """Admit or refuse one more request.

    ``load`` is the host's, with the standing delay as its ``queue_ms`` (``HostLoads``); ``in_flight`` is how many of
    others' requests are in work here now.
    """
    if draining:
        return Verdict(Admission.REFUSE, RefusalReason.DRAINING)
    if not offer.code_here:
        return Verdict(Admission.REFUSE, RefusalReason.NOT_HERE)
    refused_at = _REFUSED_AT[offer.hot, offer.paid]
    if _crowd(in_flight, limits) >= refused_at:
        return Verdict(Admission.REFUSE, RefusalReason.BUSY)
    if _delay(load, limits) > refused_at:
        return Verdict(Admission.REFUSE, RefusalReason.QUEUE)
    if _is_short_of_memory(load, limits) and not offer.resident:
        return Verdict(Admission.REFUSE, RefusalReason.MEMORY)
    return _ADMIT


def nearly_full(load: Load, in_flight: int, limits: AdmissionLimits) -> bool:
    """Whether a step more leads to refusals: the hint that rides on every reply."""
    return (
        load.nearly_full  # the host's own word: it has nothing left that it could let go
        or max(_crowd(in_flight, limits), _delay(load, limits)) >= limits.nearly_full_at
        or load.cpu_load >= limits.cpu_load_nearly_full
        or _is_short_of_memory(load, limits)
    )


def _is_short_of_memory(load: Load, limits: AdmissionLimits) -> bool:
    """Whether a host holds more than its budget: the configured one, or its part of it as it says itself."""
    budget_bytes = limits.memory_bytes_max
    if load.memory_bytes_max:
        budget_bytes = min(budget_bytes, _critical(load.memory_bytes_max))
    return load.memory_bytes > budget_bytes


def _crowd(in_flight: int, limits: AdmissionLimits) -> float:
    """The share of its places that are taken; 1 when there are none."""
    return in_flight / limits.in_flight_max if limits.in_flight_max > 0 else 1.0


def _delay(load: Load, limits: AdmissionLimits) -> float:
    """The share of the delay that is too much. A past delay says nothing once the queue is empty."""
    return load.queue_ms / limits.queue_ms_max if load.queued else 0.0
