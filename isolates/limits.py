"""What an isolate may use, and what becomes of it afterwards. Pure.

The numbers come from the worker's plan (``actors.worker.Limits``) and are lowered, never raised, on the way here.
"""

from dataclasses import dataclass, replace
from enum import Enum

from isolates.outcome import Outcome

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class IsolateLimits:
    """The limits of one isolate and of one request in it (semantics, section 1)."""

    cpu_ms: float = 50.0
    startup_cpu_ms: float = 400.0
    wall_ms: float = 30_000.0
    #: How long a guest may go on after its response is whole.
    wait_until_ms: float = 30_000.0
    #: Over it the isolate is condemned: what it answered counts, and the next request gets another one.
    memory_soft_bytes: int = 128 * MIB
    #: Growth beyond is refused inside the guest's call.
    memory_bytes_max: int = 160 * MIB
    #: The C API lowers into one, and components of all toolchains have one. Each reserves 4 GiB of address space.
    memories_max: int = 1
    log_bytes_max: int = 256 * 1024
    #: Live resources of one guest. A proxy-world request holds about a dozen; 1,024 leaves room for a wide fan-out of
    #: pollables and still bounds the host's table to some hundred kilobytes.
    resources_max: int = 1_024
    #: Headers of one ``fields``, as many as the ingress accepts in a request head.
    headers_max: int = 256
    header_bytes_max: int = 128 * 1024
    #: Outgoing requests of one request, and how many of them may be open at once: the next one waits.
    subrequests_max: int = 50
    connections_max: int = 6


def unmeasured(limits: IsolateLimits) -> IsolateLimits:
    """The limits of a guest whose memory can not be measured: it is never given more than its soft limit.

    That is a component which could not be rewritten (``memory_probe``), so nobody could see that it is over. Looking
    into the kernel's table after each request would cost milliseconds in a process of thousands of isolates, and the
    table does not say whose a memory is. What it loses is the room for a request that takes more than the next may.
    """
    if limits.memory_soft_bytes >= limits.memory_bytes_max:
        return limits
    return replace(limits, memory_bytes_max=limits.memory_soft_bytes)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one request used. ``cpu_ms`` is thread CPU time while guest code ran, waiting excluded."""

    cpu_ms: float = 0.0
    wall_ms: float = 0.0
    host_calls: int = 0
    request_body_bytes: int = 0
    response_body_bytes: int = 0


class Verdict(Enum):
    """What becomes of an isolate after it left guest code."""

    KEEP = "keep"
    CONDEMN = "condemn"  # finishes what it runs, takes nothing new
    KILL = "kill"  # its frames were not unwound: its state is torn and must never be seen again


#: Endings in which the guest came back through its own door, so that its state is whole.
_RETURNED = frozenset({Outcome.OK, Outcome.EXCEPTION, Outcome.HUNG, Outcome.RESPONSE_STREAM_DISCONNECTED})


def verdict_after(outcome: Outcome, *, returned: bool, over_soft: bool = False) -> Verdict:
    """What becomes of the isolate whose request ended with ``outcome``; ``over_soft``: with more than its soft memory.

    ``returned``: guest code came back by itself. A component that trapped cannot be entered again, so anything else
    is a kill. A guest that returned without an answer is whole, but single-shot engines behave like that on their
    second request, so it is not trusted with a third.
    """
    if not returned:
        return Verdict.KILL
    if outcome is Outcome.HUNG or over_soft:
        return Verdict.CONDEMN
    if outcome in _RETURNED:
        return Verdict.KEEP
    return Verdict.CONDEMN
