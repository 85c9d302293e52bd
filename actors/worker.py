"""What a worker is, as values: its name, plan, limits, immutable versions, and the deployment that shares out requests.

A *version* never changes after its upload, so isolates, artifacts and leases are keyed by its id alone. A *deployment*
names one or two versions of one worker with percentages, and is the only thing that a deploy or a rollback replaces.
All of them travel between processes and rest on disk as plain data: dicts of strings and integers with a schema
number. Reading is strict. An unknown schema, a field missing, one too many, or a wrong type raises ValueError with the
field's name, because a half-understood limit would be a limit that is not enforced.

The numbers of `Limits` are the platform's published ones (semantics, section 1). Megabytes there are decimal (MB), or
binary where written MiB.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import Final

from actors.bindings import NOTHING_BOUND, Bindings
from actors.plain import checked_fields, checked_list
from actors.worker_names import cordon_for, namespace_of, users_cordon, worker_name

PLAIN_SCHEMA: Final = 5
"""Schema number written into every plain dict here; bumped when a field is added, renamed or changes its meaning.

What is kept from schema 1 on is still read: 2 added a version's `reuse`, 3 its `cordon`, and 4 its `bindings` and a
deployment's `routes`, which are then the default ones. Before 5 a user's worker of a namespace was in the default
cordon; read now, it is in that of its namespace's users.
"""

CORDON_DEFAULT: Final = "default"
"""The group of workers of one trust that a worker without a namespace is in whose deploy names no other."""

_VERSION_ID: Final = re.compile(r"[0-9a-f]{16}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")

_MIB: Final = 1024 * 1024
AUTHOR_CHARS_MAX: Final = 256  # an e-mail address has at most 254
REUSE_REQUESTS_MAX: Final = 1_000_000  # beyond it, nobody could tell the wish from having none
REUSE_IDLE_S_MAX: Final = 86_400  # a day; whoever wants longer says nothing, and is kept until memory is short
ROUTES_MAX: Final = 64  # of one worker; each is an entry of every ingress's table
ROUTE_CHARS_MAX: Final = 253  # as a host name has at most (RFC 1035, without the root's dot); a path counts too
ROUTE_DEPTH_MAX: Final = 8  # segments of a route's path: an ingress looks each up that a host's routes have
_HOST_LABEL: Final = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_SEGMENT: Final = r"(?!\.{1,2}/)[A-Za-z0-9._~-]{1,64}"
ROUTE: Final = (
    r"(?![^/]*\.(?:internal|localhost)(?:/|$))(?![^/]*\.[0-9]+(?:/|$))"
    rf"(?:\*\.)?{_HOST_LABEL}(?:\.{_HOST_LABEL})+(?:(?:/{_SEGMENT}){{0,{ROUTE_DEPTH_MAX}}}/\*)?"
)
"""A host name with a dot in it, in lower case, or `*.` and one; no address, and none of the names that mean something
else here: `.internal` is for bindings, `.localhost` gives each worker its own. Behind it may be a path that ends in
`/*`: that path and what is below it. Without one it is all of the host, as with `/*` alone."""
_ROUTE: Final = re.compile(ROUTE)
_CHOICE_BUCKETS: Final = 10_000  # percentages are whole; 100 buckets each keep the hash's rounding under 0.01 %


class Plan(StrEnum):
    FREE = "free"
    PAID = "paid"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one version may use. Every number is an upper bound; zero means none at all.

    `wall_ms` is None when a request may last as long as its client stays connected; `wall_detached_ms` then applies
    from the moment the client is gone.
    """

    cpu_ms: int  # thread CPU time in guest code, per request
    startup_cpu_ms: int  # the same for an isolate's start; not charged to its first request
    wall_ms: int | None
    wall_detached_ms: int
    wait_until_ms: int  # after the response, shared by everything the request left running
    memory_soft_bytes: int  # over it the isolate is condemned: it finishes what it runs
    memory_hard_bytes: int  # over it the isolate is killed; growth beyond is refused in the guest's call
    component_bytes_max: int  # compressed, as uploaded
    component_raw_bytes_max: int
    subrequests_max: int  # per request tree, as are the next three
    invocations_max: int
    depth_max: int
    connections_max: int  # outbound, open at once; one more waits
    request_head_bytes_max: int
    url_bytes_max: int
    request_body_bytes_max: int
    log_bytes_max: int  # log lines and trace of one request; the rest is cut and marked

    def __post_init__(self) -> None:
        for name in _LIMIT_NAMES:  # ``fields`` would take ten times as long, and calls between workers make limits
            value = getattr(self, name)
            if value is None and name == "wall_ms":
                continue
            if type(value) is not int or value < 0:
                raise ValueError(f"{name}: must be a whole number, zero or more")
        if self.memory_hard_bytes < self.memory_soft_bytes:
            raise ValueError("memory_hard_bytes: must not be below memory_soft_bytes")

    @classmethod
    def for_plan(cls, plan: Plan) -> Limits:
        """The plan's defaults: what a worker has whose manifest says nothing."""
        return _DEFAULTS[plan]

    @classmethod
    def ceiling_for_plan(cls, plan: Plan) -> Limits:
        """The most that a manifest may ask for under `plan`."""
        return _CEILINGS[plan]

    @classmethod
    def from_manifest(cls, plan: Plan, asked: Mapping[str, object]) -> Limits:
        """The plan's defaults with the manifest's own numbers in their place.

        Raises ValueError naming the field when it is unknown, of the wrong type, or above the plan's ceiling: a limit
        that is silently cut would be found out by the tenant's users. A manifest that sets `memory_soft_bytes` and not
        `memory_hard_bytes` gets the usual quarter on top.
        """
        default, ceiling = _DEFAULTS[plan], _CEILINGS[plan]
        values = dict(asked)
        for name, value in asked.items():
            if name not in _LIMIT_NAMES:
                raise ValueError(f"{name}: no such limit")
            if type(value) is not int or value < 0:
                raise ValueError(f"{name}: must be a whole number, zero or more")
            most = getattr(ceiling, name)
            if most is not None and value > most:
                raise ValueError(f"{name}: {value} is more than the {plan.value} plan allows, {most}")
        soft = values.get("memory_soft_bytes")
        if type(soft) is int and "memory_hard_bytes" not in values:
            values["memory_hard_bytes"] = min(_hard_over(soft), ceiling.memory_hard_bytes)
        return replace(default, **values)  # type: ignore[arg-type]  # names and types are checked above

    def lowered_by(self, other: Limits) -> Limits:
        """The smaller of each number: what a child has under a parent. Commutative, and never raises a limit."""
        lowered: dict[str, int | None] = {}
        for name in _LIMIT_NAMES:
            mine, theirs = getattr(self, name), getattr(other, name)
            lowered[name] = theirs if mine is None else mine if theirs is None else min(mine, theirs)
        return Limits(**lowered)  # type: ignore[arg-type]  # only wall_ms can be None, and only when both are

    def to_plain(self) -> dict[str, object]:
        return {"schema": PLAIN_SCHEMA, **asdict(self)}

    @classmethod
    def from_plain(cls, plain: object) -> Limits:
        """Reads what `to_plain` wrote. Raises ValueError naming the field that is wrong."""
        values = checked_fields(plain, "limits", _LIMIT_NAMES, schema=PLAIN_SCHEMA)
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks types


_LIMIT_NAMES: Final = tuple(field.name for field in fields(Limits))


@lru_cache(maxsize=1_024)  # limits come from two plans, few manifests and fewer callers, and each request needs them
def plain_limits(limits: Limits) -> dict[str, int | None]:
    """Limits as plain numbers by name: what a request carries. Not to be changed."""
    return {name: getattr(limits, name) for name in _LIMIT_NAMES}


def _hard_over(soft_bytes: int) -> int:
    """The kill threshold for a soft one: a quarter on top, so that requests in flight in a condemned isolate finish."""
    return soft_bytes + soft_bytes // 4


_FREE: Final = Limits(
    cpu_ms=10,
    startup_cpu_ms=400,
    wall_ms=30_000,
    wall_detached_ms=30_000,
    wait_until_ms=30_000,
    memory_soft_bytes=128 * _MIB,
    memory_hard_bytes=_hard_over(128 * _MIB),
    component_bytes_max=3_000_000,
    component_raw_bytes_max=64 * _MIB,
    subrequests_max=50,
    invocations_max=32,
    depth_max=16,
    connections_max=6,
    request_head_bytes_max=128 * 1024,
    url_bytes_max=16 * 1024,
    request_body_bytes_max=100_000_000,
    log_bytes_max=256 * 1024,
)
_PAID: Final = replace(
    _FREE,
    cpu_ms=50,
    wall_ms=None,
    component_bytes_max=10_000_000,
    subrequests_max=1_000,
    request_body_bytes_max=500_000_000,
)
_DEFAULTS: Final[Mapping[Plan, Limits]] = {Plan.FREE: _FREE, Plan.PAID: _PAID}
_CEILINGS: Final[Mapping[Plan, Limits]] = {
    Plan.FREE: _FREE,
    Plan.PAID: replace(
        _PAID,
        cpu_ms=300_000,
        startup_cpu_ms=1_000,
        subrequests_max=10_000,
        # Bodies are streamed: a large one takes time and connections, and no memory.
        request_body_bytes_max=5_000_000_000,
        # A 32-bit memory ends at 4 GiB, so soft and hard may both be there: growth beyond fails in the guest anyway.
        memory_soft_bytes=4 * 1024 * _MIB,
        memory_hard_bytes=4 * 1024 * _MIB,
    ),
}


@dataclass(frozen=True, slots=True)
class Reuse:
    """How long one isolate of a version serves. None: until it is evicted, condemned or killed.

    `max_requests` (1 to a million) and `idle_s` (seconds, 1 to a day) are the manifest's. `single_shot` is what the
    deploy found out: the code is spent after one request, whatever the manifest says.
    """

    max_requests: int | None = None
    idle_s: int | None = None
    single_shot: bool = False

    def __post_init__(self) -> None:
        for name, most in (("max_requests", REUSE_REQUESTS_MAX), ("idle_s", REUSE_IDLE_S_MAX)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= most):
                raise ValueError(f"reuse.{name}: must be a whole number from 1 to {most}")
        if type(self.single_shot) is not bool:
            raise ValueError("reuse.single_shot: must be true or false")

    @property
    def requests_max(self) -> int | None:
        """Requests after which an isolate is let go."""
        return 1 if self.single_shot else self.max_requests

    @property
    def reason(self) -> str:
        """Why isolates of this version are let go early: `single-shot`, `manifest`, or nothing."""
        return "single-shot" if self.single_shot else "manifest" if self != REUSE_DEFAULT else ""

    @classmethod
    def from_manifest(cls, asked: Mapping[str, object]) -> Reuse:
        """What a manifest may say: `max_requests` and `idle_s`. Raises ValueError naming the field that is wrong."""
        for name in asked:
            if name not in ("max_requests", "idle_s"):
                raise ValueError(f"reuse.{name}: no such key")
        return cls(**asked)  # type: ignore[arg-type]  # __post_init__ checks types

    def to_plain(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: object) -> Reuse:
        """Reads what `to_plain` wrote. Raises ValueError naming the field that is wrong."""
        return cls(**checked_fields(plain, "reuse", _REUSE_NAMES))  # type: ignore[arg-type]  # checked there


REUSE_DEFAULT: Final = Reuse()
"""What a version has whose manifest says nothing."""
_REUSE_NAMES: Final = tuple(field.name for field in fields(Reuse))


def make_version_id(worker: str, component_digest: str, upload_seq: int) -> str:
    """16 hex digits of a hash over all three, so that the same bytes uploaded twice are two versions.

    64 bits: among a million versions of a cluster, the chance that any two meet is 3 in 10^8, and the catalog refuses
    the second.
    """
    return sha256(f"{worker}\n{component_digest}\n{upload_seq}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Version:
    """One upload: code, limits, reuse and bindings that never change. `created_at_ms` is Unix time.

    `worker` is a name, or `NAMESPACE/USER` (`actors.worker_names`).
    """

    worker: str
    version_id: str
    component_digest: str  # sha256 of the uploaded component, lower-case hex
    limits: Limits
    plan: Plan
    created_at_ms: int
    author: str
    reuse: Reuse = REUSE_DEFAULT
    cordon: str = CORDON_DEFAULT  # versions of different cordons never share a host process
    bindings: Bindings = NOTHING_BOUND

    def __post_init__(self) -> None:
        _check_worker(self.worker)
        cordon_for(self.worker, self.cordon)
        _check_text("version_id", self.version_id, _VERSION_ID)
        _check_text("component_digest", self.component_digest, _DIGEST)
        if not isinstance(self.limits, Limits):
            raise ValueError("limits: must be Limits")
        if not isinstance(self.plan, Plan):
            raise ValueError("plan: must be a Plan")
        if type(self.created_at_ms) is not int or self.created_at_ms < 0:
            raise ValueError("created_at_ms: must be a whole number, zero or more")
        if not isinstance(self.author, str) or len(self.author) > AUTHOR_CHARS_MAX:
            raise ValueError(f"author: must be a string of at most {AUTHOR_CHARS_MAX} characters")
        if not isinstance(self.reuse, Reuse):
            raise ValueError("reuse: must be Reuse")
        if not isinstance(self.bindings, Bindings):
            raise ValueError("bindings: must be Bindings")

    @property
    def namespace(self) -> str:
        """The dispatch namespace that its worker is in; "" for none."""
        return namespace_of(self.worker)

    @property
    def trusted(self) -> bool:
        """Whether it is the platform's own. A user's worker in a namespace is not, whatever its manifest says."""
        return not self.namespace

    def to_plain(self) -> dict[str, object]:
        return {
            "schema": PLAIN_SCHEMA,
            "worker": self.worker,
            "version_id": self.version_id,
            "component_digest": self.component_digest,
            "limits": self.limits.to_plain(),
            "plan": self.plan.value,
            "created_at_ms": self.created_at_ms,
            "author": self.author,
            "reuse": self.reuse.to_plain(),
            "cordon": self.cordon,
            "bindings": self.bindings.to_plain(),
        }

    @classmethod
    def from_plain(cls, plain: object) -> Version:
        """Reads what `to_plain` wrote. Raises ValueError naming the field that is wrong."""
        values = checked_fields(plain, "version", _VERSION_NAMES, schema=PLAIN_SCHEMA, since=_VERSION_SINCE)
        values["reuse"] = Reuse.from_plain(values["reuse"])
        values["bindings"] = Bindings.from_plain(values["bindings"])
        values["limits"] = Limits.from_plain(values["limits"])
        if values["plan"] not in _PLANS:
            raise ValueError("plan: must be one of " + ", ".join(_PLANS))
        values["plan"] = Plan(str(values["plan"]))
        schema = int(plain["schema"]) if isinstance(plain, dict) else PLAIN_SCHEMA
        values["cordon"] = read_cordon(schema, values["cordon"], namespace_of(str(values["worker"])))
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks types


def read_cordon(schema: int, cordon: object, namespace: str) -> object:
    """What a version's `cordon`, as it was written in `schema`, means. Whoever makes a version of it checks it."""
    return users_cordon(namespace) if schema < 5 and namespace and cordon == CORDON_DEFAULT else cordon


_VERSION_NAMES: Final = tuple(field.name for field in fields(Version))
_VERSION_SINCE: Final[Mapping[int, Mapping[str, object]]] = {
    2: {"reuse": REUSE_DEFAULT.to_plain()},
    3: {"cordon": CORDON_DEFAULT},
    4: {"bindings": NOTHING_BOUND.to_plain()},
}
_PLANS: Final = tuple(plan.value for plan in Plan)


@dataclass(frozen=True, slots=True)
class Share:
    """A version's part of its worker's requests, in whole percent, 1 to 100."""

    version_id: str
    percent: int

    def __post_init__(self) -> None:
        _check_text("version_id", self.version_id, _VERSION_ID)
        if type(self.percent) is not int or not 1 <= self.percent <= 100:
            raise ValueError("percent: must be a whole number from 1 to 100")


@dataclass(frozen=True, slots=True)
class Deployment:
    """Which versions of a worker answer: one, or two that add up to 100 percent.

    Two at most, because more can not be compared by eye in a dashboard, and a third one means that an earlier rollout
    was never finished.

    `routes` (`ROUTE`, in their one spelling) lead to the worker beside its own name. They are the deployment's and not
    a version's: a request's host and path find the worker, and only then is a version chosen.
    """

    worker: str
    shares: tuple[Share, ...]
    routes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_worker(self.worker)
        if not isinstance(self.routes, tuple) or len(self.routes) > ROUTES_MAX:
            raise ValueError(f"routes: must be a tuple of at most {ROUTES_MAX}")
        for route in self.routes:
            if not isinstance(route, str) or not is_route(route):
                raise ValueError(
                    "routes: must be host names, exact or *. and a name, and none of the platform's own, and may have a"
                    " path that ends in /*"
                )
        if self.routes and namespace_of(self.worker):
            raise ValueError("routes: a user's worker of a namespace has none; its dispatcher calls it")
        if len(set(self.routes)) != len(self.routes):
            raise ValueError("routes: must differ from each other")
        if not isinstance(self.shares, tuple) or not all(isinstance(share, Share) for share in self.shares):
            raise ValueError("shares: must be a tuple of Share")
        if len(self.shares) not in (1, 2):
            raise ValueError("shares: must be one or two")
        if sum(share.percent for share in self.shares) != 100:
            raise ValueError("shares: percentages must add up to 100")
        if len({share.version_id for share in self.shares}) != len(self.shares):
            raise ValueError("shares: the versions must differ")

    @classmethod
    def whole(cls, worker: str, version_id: str, routes: tuple[str, ...] = ()) -> Deployment:
        """All requests to one version."""
        return cls(worker, (Share(version_id, 100),), routes)

    @property
    def version_ids(self) -> tuple[str, ...]:
        return tuple(share.version_id for share in self.shares)

    def choose(self, affinity: bytes) -> str:
        """The version id for whoever `affinity` stands for (a cookie, a client address): the same one every time.

        The hash is keyed by the worker, so one visitor is not in the early tenth of every rollout. As the second
        share grows, whoever is on it stays on it: keep the order old, new for the whole of a rollout.
        """
        if len(self.shares) == 1:
            return self.shares[0].version_id
        digest = blake2b(affinity, digest_size=8, key=self.worker.encode()).digest()
        bucket = int.from_bytes(digest) % _CHOICE_BUCKETS
        first = self.shares[0]
        return first.version_id if bucket < first.percent * (_CHOICE_BUCKETS // 100) else self.shares[1].version_id

    def to_plain(self) -> dict[str, object]:
        shares = [{"version_id": share.version_id, "percent": share.percent} for share in self.shares]
        return {"schema": PLAIN_SCHEMA, "worker": self.worker, "shares": shares, "routes": list(self.routes)}

    @classmethod
    def from_plain(cls, plain: object) -> Deployment:
        """Reads what `to_plain` wrote. Raises ValueError naming the field that is wrong."""
        values = checked_fields(
            plain, "deployment", ("worker", "shares", "routes"), schema=PLAIN_SCHEMA, since={4: {"routes": []}}
        )
        values["routes"] = tuple(checked_list(values["routes"], "routes", ROUTES_MAX))
        listed = values["shares"]
        if not isinstance(listed, list) or len(listed) > 2:
            raise ValueError("shares: must be a list of one or two")
        shares = [checked_fields(share, "shares", ("version_id", "percent")) for share in listed]
        values["shares"] = tuple(Share(**share) for share in shares)  # type: ignore[arg-type]  # checked there
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks types


def _check_text(name: str, value: object, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise ValueError(f"{name}: must match {pattern.pattern}")


def _check_worker(value: object) -> None:
    worker_name(value if isinstance(value, str) else "")


def is_route(text: str) -> bool:
    """Whether a manifest may claim this: it is a route, in its one spelling, and not the platform's own."""
    return len(text) <= ROUTE_CHARS_MAX and _ROUTE.fullmatch(text) is not None and text == normal_route(text)


def normal_route(text: str) -> str:
    """The one spelling of a route: all of a host is the host alone."""
    return text.removesuffix("/*") if text.count("/") == 1 else text
