"""The counters of one machine's roles as metric families. Pure.

Roles count for themselves, and tell by ``statistics``. Here stands, a row each, which of these numbers are metrics,
what they are called, and which labels they have. What is not in this table is for ``everwarm status --json``.

A label's values come from closed lists (endings, causes, reasons), but out of a host's process, which runs tenants'
code: what is no number is left out, and ``tracing.metrics`` bounds how many series there can be. No label is a worker.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from actors.exchange import ColdCause, Outcome, RefusalReason
from tracing.metrics import Family, Kind, Point, distribution_of, is_number

#: What a role says of itself; None when it is away.
Told = Mapping[str, Any] | None
_NAME_CHARS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """What one process has used. ``cpu_s``: of all its threads, since it began; ``began_ns``: unix time."""

    cpu_s: float
    resident_bytes: int
    began_ns: int


@dataclass(frozen=True, slots=True)
class _Row:
    """``path`` leads into what ``role`` tells: to a number, or with ``label`` to numbers by name. Roles of hosts are
    ``host``, ``host-2``, ...; their series say which. ``known``: names that have a series before they were counted,
    since a rate is seen only between two numbers of one."""

    name: str
    kind: Kind
    unit: str
    about: str
    role: str
    path: str
    label: str = ""
    scale: float = 1.0
    known: tuple[str, ...] = ()


_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
_ROWS: Final = (
    # The edge: clients and what they got.
    _Row("everwarm.requests", _C, "{request}", "Clients' requests that ended at this edge, by ending.",
         "ingress", "outcomes", "outcome", known=tuple(Outcome)),
    _Row("everwarm.requests.received", _C, "{request}", "Clients' requests that this edge took in.",
         "ingress", "requests"),
    _Row("everwarm.edge.prewarms", _C, "{prewarm}", "Prewarms that handshakes caused.", "ingress", "prewarms"),
    _Row("everwarm.edge.leases", _G, "{lease}", "Workers whose requests go straight to a host.", "ingress", "leases"),
    _Row("everwarm.edge.spans.dropped", _C, "{span}", "Spans for which the edge had no room.",
         "ingress", "spans_dropped"),
    # Guests: whoever asked for them, clients or other workers, here or elsewhere.
    _Row("everwarm.invocations", _C, "{invocation}", "Invocations of guests that ended on this machine, by ending.",
         "host", "outcomes", "outcome", known=tuple(Outcome)),
    _Row("everwarm.queue.time", _H, "s", "How long invocations waited for an isolate.", "host", "queue_s"),
    _Row("everwarm.guest.cpu.time", _C, "s", "CPU time of guest code, starts excepted.", "host", "cpu_ms", scale=1e-3),
    _Row("everwarm.invocations.running", _G, "{invocation}", "Guests that run now.", "host", "running"),
    _Row("everwarm.invocations.queued", _G, "{invocation}", "Invocations that wait for an isolate.", "host", "queued"),
    _Row("everwarm.host.connections", _G, "{connection}", "Connections to a host; each is a thread.",
         "host", "connections"),
    # The pool of isolates.
    _Row("everwarm.isolates", _G, "{isolate}", "Isolates, by state.", "host", "states", "state"),
    _Row("everwarm.isolates.limit", _G, "{isolate}", "Isolates that a host may hold.", "host", "isolates_max"),
    _Row("everwarm.isolates.memory", _G, "By", "Memory of a host's isolates.", "host", "memory_bytes"),
    _Row("everwarm.isolates.memory.limit", _G, "By", "Memory that a host's isolates may have.",
         "host", "memory_bytes_max"),
    _Row("everwarm.isolate.starts", _C, "{start}", "Isolates that were started, by why.", "host", "starts", "type"),
    _Row("everwarm.cold.starts", _C, "{start}", "Requests that waited for a start, by why no isolate was there.",
         "host", "cold_starts", "cause", known=tuple(ColdCause)),
    _Row("everwarm.isolate.starts.wasted", _C, "{start}", "Isolates started ahead that went unused, by why.",
         "host", "wasted", "type"),
    _Row("everwarm.evictions", _C, "{isolate}", "Isolates that made room for others.", "host", "evictions"),
    _Row("everwarm.isolates.expired", _C, "{isolate}", "Isolates that nobody used for too long.", "host", "expired"),
    _Row("everwarm.isolates.used.up", _C, "{isolate}", "Isolates that served as many requests as they may.",
         "host", "used_up"),
    # Sharding: this machine as a home, and as one that sends home.
    _Row("everwarm.refusals", _C, "{request}", "Others' requests that this home handed back, by reason.",
         "shard", "refusals", "reason", known=tuple(RefusalReason)),
    _Row("everwarm.admissions", _C, "{request}", "Others' requests that this home took.", "shard", "admitted"),
    _Row("everwarm.admissions.running", _G, "{request}", "Of them, those in work.", "shard", "in_flight"),
    _Row("everwarm.offers", _C, "{request}", "Requests that were offered to their homes.", "server", "sharded.offered"),
    _Row("everwarm.offers.refused", _C, "{request}", "Of them, those that came back.", "server", "sharded.refused"),
    _Row("everwarm.offers.lost", _C, "{request}", "Of them, those whose home was lost.", "server", "sharded.lost"),
    _Row("everwarm.routes", _C, "{request}", "Requests that the Server decided on, by the reason where they ran.",
         "server", "routes", "reason"),
    # Calls of guests.
    _Row("everwarm.nested.calls", _C, "{call}", "Calls of workers to workers that the Server carried out.",
         "server", "nested.calls"),
    _Row("everwarm.nested.inner.calls", _C, "{call}", "Calls of workers to workers that did not leave their host.",
         "host", "inner_calls.calls"),
    _Row("everwarm.nested.refusals", _C, "{call}", "Calls of workers that were not made.", "server", "nested.refused"),
    _Row("everwarm.egress.requests", _C, "{request}", "Requests of guests that reached the way out.",
         "server", "egress.requests"),
    _Row("everwarm.egress.failures", _C, "{request}", "Of them, those that failed, by the guest's error.",
         "server", "egress.failures", "error"),
    _Row("everwarm.egress.sent", _C, "By", "Bytes of bodies that guests sent out.", "server", "egress.sent_bytes"),
    _Row("everwarm.egress.received", _C, "By", "Bytes of bodies that guests got.", "server", "egress.received_bytes"),
    _Row(
        "everwarm.tails.told", _C, "{tree}", "Request trees that a tail worker was told of.", "server", "tails.told"
    ),
    _Row("everwarm.tails.failed", _C, "{tree}", "Of those that were to be told, those that a tail worker did not take.",
         "server", "tails.failed"),
    # The cluster, as this machine sees it.
    _Row("everwarm.workers", _G, "{worker}", "Workers that are deployed.", "server", "workers"),
    _Row("everwarm.warm.versions", _G, "{version}", "Versions with an isolate here.", "server", "warm_versions"),
    _Row("everwarm.ring.epoch", _G, "{epoch}", "The ring's epoch.", "server", "ring_epoch"),
    _Row("everwarm.hosts", _G, "{host}", "Host processes that are there.", "server", "hosts"),
    _Row("everwarm.hosts.lost", _C, "{host}", "Host processes that died.", "server", "hosts_lost"),
    _Row("everwarm.lent", _G, "{capability}", "Capabilities that are lent out.", "server", "lent_out"),
    # Traces.
    _Row("everwarm.traces.kept", _C, "{trace}", "Traces that were kept.", "server", "traces.kept"),
    _Row("everwarm.traces.sampled.out", _C, "{trace}", "Traces that came whole and were not kept.",
         "server", "traces.sampled_out"),
    _Row("everwarm.spans.exported", _C, "{span}", "Spans that a backend took.", "server", "traces.export.exported"),
    _Row("everwarm.spans.failed", _C, "{span}", "Spans that a backend did not take.", "server", "traces.export.failed"),
    _Row("everwarm.spans.dropped", _C, "{span}", "Spans for which there was no room.",
         "server", "traces.export.dropped"),
)  # fmt: skip


def families(server: str, roles: Mapping[str, Told], usage: Mapping[int, ProcessUsage]) -> list[Family]:
    """The metrics of ``server``. ``roles``: what each told, by its name; ``usage``: of their processes, by pid."""
    began_ns = {role: _began_ns(told, usage) for role, told in roles.items()}
    info = Family("everwarm.server.info", _G, "{server}", "Which server this is.", (Point({"server": server}, 1),))
    found = [info, *_of_processes(roles, usage)]
    for row in _ROWS:
        points = [
            point
            for role, told in roles.items()
            if told is not None and _is(role, row.role)
            for point in _points(row, role, told, began_ns[role])
        ]
        if points:
            found.append(Family(row.name, row.kind, row.unit, row.about, tuple(points)))
    return found


def _points(row: _Row, role: str, told: Mapping[str, Any], began_ns: int) -> Iterator[Point]:
    value: object = told
    for step in row.path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    labels = {"host": role} if row.role == "host" else {}
    if row.kind is Kind.HISTOGRAM:
        distribution = distribution_of(value)
        if distribution is not None:
            yield Point(labels, distribution, began_ns)
    elif not row.label:
        if is_number(value):
            yield Point(labels, _scaled(value, row.scale), began_ns)
    elif isinstance(value, Mapping):
        for name, number in (dict.fromkeys(row.known, 0) | dict(value)).items():
            if isinstance(name, str) and is_number(number):
                yield Point({**labels, row.label: str(name)[:_NAME_CHARS_MAX]}, _scaled(number, row.scale), began_ns)


def _of_processes(roles: Mapping[str, Told], usage: Mapping[int, ProcessUsage]) -> list[Family]:
    """Which roles answer, and what their processes use. Roles of one process are counted once."""
    up = tuple(Point({"role": role}, int(told is not None)) for role, told in roles.items())
    of_role = {role: usage[pid] for role, told in roles.items() if (pid := pid_of(told)) in usage}
    cpu = tuple(Point({"role": role}, used.cpu_s, used.began_ns) for role, used in of_role.items())
    memory = tuple(Point({"role": role}, used.resident_bytes) for role, used in of_role.items())
    found = [Family("everwarm.role.up", _G, "{role}", "1 when a role answers, 0 when it does not.", up)]
    if of_role:
        found += [
            Family("everwarm.process.cpu.time", _C, "s", "CPU time of a role's process.", cpu),
            Family("everwarm.process.memory", _G, "By", "Memory of a role's process that is resident.", memory),
        ]
    return found


def pid_of(told: Told) -> int:
    """The process of a role; 0 when it does not say."""
    pid = None if told is None else told.get("pid")
    return pid if isinstance(pid, int) else 0


def _began_ns(told: Told, usage: Mapping[int, ProcessUsage]) -> int:
    used = usage.get(pid_of(told))
    return 0 if used is None else used.began_ns


def _is(role: str, row_role: str) -> bool:
    return role == row_role or role.startswith(f"{row_role}-")


def _scaled(value: Any, scale: float) -> float:
    return value if scale == 1.0 else float(value) * scale
