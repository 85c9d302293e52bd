"""What travels between the roles: a request, its answer, a refusal, and how it all ended. Pure.

Every hop of a request (ingress to host, server to home, driver to server) speaks in these values; ``wire.py`` puts
them into bytes. One function, ``status_of``, says what an HTTP client gets for an ending, and only the edge calls it:
between workers the ending itself travels.
"""

from dataclasses import dataclass
from enum import StrEnum

from msgspec import Struct, field
from msgspec.structs import replace

from actors.stage_report import Stage
from actors.worker import CORDON_DEFAULT, REUSE_DEFAULT, Reuse
from isolates.conversation import RequestHead
from isolates.outcome import Outcome

__all__ = ["Answered", "Chunk", "Ended", "Load", "Outcome", "Refused", "Request", "RequestHead", "Served", "StartType"]

#: The first bytes of a body that ride with the head, and the size of every later chunk. Calls over about 100 KB
#: leave Ray's inline path; 64 KiB stay below it with the head and the context.
WINDOW_BYTES_MAX = 64 * 1024


class StartType(StrEnum):
    """How the isolate that served a request had been started."""

    WARM = "warm"  # it had served before
    COLD = "cold"  # started for this request
    PREWARM = "prewarm"  # started ahead of this request, by its TLS server name
    PRELOAD = "preload"  # started ahead of any request, at deploy


class ColdCause(StrEnum):
    """Why there was no warm isolate."""

    FIRST_EVER = "first-ever"
    EVICTED = "evicted"
    REFUSED = "refused"
    DEPLOY = "deploy"
    MEMBERSHIP = "membership"
    CONDEMNED = "condemned"
    SIBLING = "sibling"
    HOST_RESTART = "host-restart"


class RefusalReason(StrEnum):
    """Why a home handed a request back. Business, never an error."""

    BUSY = "busy"
    QUEUE = "queue"
    MEMORY = "memory"
    DRAINING = "draining"
    NOT_HERE = "not-here"  # the code is not in place on this machine
    AWAY = "away"  # the machine's host cannot be reached


class Capability(Struct, frozen=True):
    """A reference to something its owner lends: who owns it, and the owner's key for it."""

    owner: str
    key: int


class ReportTraces(Struct, frozen=True):
    """Of a stage that a tail worker hears of: what it is in its tree, and who wants to know how it ended.

    ``to``: the flow of the tree (``tail_desk``); None until somebody keeps one. An owner without a name is nobody:
    below a tail worker nothing is told to anybody.
    """

    stage: Stage
    to: Capability | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether somebody wants to hear of this stage."""
        return self.to is not None and bool(self.to.owner)


class Request(Struct, frozen=True):
    """One request on its way to a guest. ``limits`` are the version's, as plain numbers (see ``actors.worker``).

    ``body_first`` are the first bytes, at most ``WINDOW_BYTES_MAX``; the rest, if not ``body_complete``, is pulled.
    ``traceparent`` names the span under which the next role makes its own.
    """

    request_id: str
    worker: str
    head: RequestHead
    traceparent: str
    version: str = ""
    component_digest: str = ""
    plan: str = "free"
    limits: dict[str, int | None] = field(default_factory=dict)
    body_first: bytes = b""
    body_complete: bool = True
    ring_epoch: int = 0
    cold_cause: str = ColdCause.FIRST_EVER.value
    #: Of a request that is offered to its home: what the home reads the rest of the body from, and gives back.
    fallback: Capability | None = None
    reuse: Reuse = REUSE_DEFAULT
    #: Whether this machine is the worker's home, so that losing its isolate here is losing it for the whole cluster.
    at_home: bool = False
    #: How often this worker is asked for at the server that offers it, as a home sees it: a refused request of one that
    #: is asked often makes one cold start there, and no more.
    rate_per_s: float = 0.0
    #: The sockets of hosts that were lost with it: they are not tried again, and a request that crashes its hosts must
    #: not go through them all.
    lost_with: tuple[str, ...] = ()
    #: Of a request that one worker makes to another: what goes along with it (``context_wire``). Its ``limits`` are
    #: then bounds that its version's own are lowered to.
    context: bytes = b""
    #: Of such a request: the call as its caller's Server knows it, which is asked for more of the tree's budget, and
    #: told what was spent of it.
    call: Capability | None = None
    #: The server that the tree's request came to from outside: where the spans of all its stages are gathered.
    edge: str = ""
    #: Of a request that tail workers hear of.
    report_traces: ReportTraces | None = None
    #: Whether its version has variables or secrets: who starts an isolate asks its Server for them (``variables``).
    has_variables: bool = False
    #: Its version's: only host processes of that cordon run it (``cordons``).
    cordon: str = CORDON_DEFAULT

    def under(self, lease: "Lease") -> "Request":
        """The request for the version that ``lease`` is for."""
        return replace(
            self,
            version=lease.version,
            component_digest=lease.component_digest,
            plan=lease.plan,
            limits=lease.limits,
            reuse=lease.reuse,
            at_home=lease.at_home,
            has_variables=lease.has_variables,
            cordon=lease.cordon,
        )


class Served(Struct, frozen=True):
    """The head of an answer and how it came about: what ``server-timing`` and the trace say."""

    status: int
    headers: tuple[tuple[str, bytes], ...]
    server: str
    start_type: str
    queue_ms: float
    cpu_ms: float
    home: str = ""
    hop: bool = False
    refused: str = ""
    lease: "Lease | None" = None


class Lease(Struct, frozen=True):
    """Leave to send requests of a worker straight to a host's socket, until the Server takes it back."""

    worker: str
    version: str
    component_digest: str
    plan: str
    limits: dict[str, int | None]
    socket: str
    home: str
    reuse: Reuse = REUSE_DEFAULT
    #: Whether the machine of the lease is the home.
    at_home: bool = False
    #: How many notices the Server had given when it gave the lease: whoever has heard more by then may have missed the
    #: one that takes it back.
    issued: int = 0
    has_variables: bool = False
    cordon: str = CORDON_DEFAULT


class Load(Struct, frozen=True):
    """How busy a host is: what admission looks at. ``queue_ms`` is how long the request that last left the queue
    had waited."""

    running: int = 0
    queued: int = 0
    queue_ms: float = 0.0
    isolates: int = 0
    memory_bytes: int = 0
    #: How long an isolate that nobody asks lives there before it is evicted, as of the last evictions; 0 while nothing
    #: has to go.
    residence_s: float = 0.0
    #: The share of the machine's cores that guests used lately: 1 is all of them.
    cpu_load: float = 0.0
    #: One more step and it refuses: whoever sends there does well to warm an isolate of its own.
    nearly_full: bool = False
    #: What of the machine's memory its isolates may hold now; 0 when it did not say.
    memory_bytes_max: int = 0


class HeatReport(Struct, frozen=True):
    """What a host says of itself once in a while: who was asked for since the last report, wherever the requests came
    from, and how busy it is. Most requests reach it over a lease, and nobody else sees them."""

    socket: str
    load: Load
    #: By worker: requests that ended, and CPU seconds of their guests.
    workers: dict[str, tuple[int, float]] = field(default_factory=dict)
    #: What its isolates may hold together.
    memory_bytes_max: int = 0


class Ended(Struct, frozen=True):
    """How a stage ended, after everything: the last thing said of a request. ``spans`` are reports (tracing.wire), one
    of each role on the way; whoever relays adds its own and does not look inside."""

    outcome: Outcome
    reason: str = ""
    cpu_ms: float = 0.0
    wall_ms: float = 0.0
    #: Where and on what it ran, for an answer that has no head; empty when no guest was reached.
    server: str = ""
    start_type: str = ""
    queue_ms: float = 0.0
    home: str = ""
    hop: bool = False
    spans: tuple[bytes, ...] = ()
    load: Load = field(default_factory=Load)
    #: What starting an isolate of the version took on this host, and what the isolate holds; 0 until measured.
    start_cost_ms: float = 0.0
    isolate_bytes: int = 0
    #: What its guest fetched, and whether it asked its machine's Server for any of that: then nobody but the Server
    #: knows what others did for it.
    subrequests: int = 0
    called: bool = False


class Refused(Struct, frozen=True):
    """The home's other answer: nothing was done. It gives back the very capability it was lent."""

    reason: RefusalReason
    fallback: Capability
    load: Load = field(default_factory=Load)


class Answered(Struct, frozen=True):
    """The home's answer: the guest ran. ``served`` is None when it ended without a head. ``first`` is what there is of
    the body; unless it says how all ended, the rest is read from ``rest``."""

    served: Served | None
    first: "Chunk"
    rest: Capability | None


class Chunk(Struct, frozen=True):
    """A piece of a body that is read from a capability. ``end``: nothing follows; ``lost``: it broke off."""

    data: bytes = b""
    end: bool = False
    lost: bool = False
    ended: Ended | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """What an HTTP client gets for an ending: status, code and text of the error body."""

    status: int
    code: str
    text: str
    retry_after_s: int | None = None


#: Endings that become an error page. ``ok`` is the worker's own answer, whatever its status; a response that broke
#: off is reset, never ended cleanly, and so has no page.
_FAILURES: dict[Outcome, Failure] = {
    Outcome.EXCEPTION: Failure(500, "exception", "The worker failed."),
    Outcome.EXCEEDED_CPU: Failure(503, "exceededCpu", "The worker used more CPU time than it may."),
    Outcome.EXCEEDED_MEMORY: Failure(503, "exceededMemory", "The worker used more memory than it may."),
    Outcome.EXCEEDED_WALL_TIME: Failure(504, "exceededWallTime", "The worker took longer than it may."),
    Outcome.LOAD_SHED: Failure(503, "loadShed", "There are too many requests for now.", retry_after_s=1),
    Outcome.SCRIPT_NOT_FOUND: Failure(404, "scriptNotFound", "There is no worker at this address."),
    Outcome.CANCELED: Failure(499, "canceled", "The client went away."),
    Outcome.HOME_LOST: Failure(502, "homeLost", "The machine that ran the worker went away."),
    Outcome.RESPONSE_STREAM_DISCONNECTED: Failure(502, "responseStreamDisconnected", "The worker's answer broke off."),
    Outcome.HUNG: Failure(500, "hung", "The worker did not answer."),
    Outcome.KILL_SWITCH: Failure(503, "killSwitch", "The worker is switched off."),
    Outcome.INTERNAL_ERROR: Failure(500, "internalError", "The platform failed."),
}


def status_of(outcome: Outcome) -> Failure:
    """What an HTTP client gets for a request that ended with ``outcome`` before a response head was sent.

    ``ValueError`` for ``ok``: that one is the worker's own answer.
    """
    if outcome is Outcome.OK:
        raise ValueError("ok is answered by the worker")
    return _FAILURES[outcome]
