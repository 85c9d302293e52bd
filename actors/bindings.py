"""What a version is bound to, and the host names that this makes resolvable.

A worker reaches nobody by knowing a name. What it may call stands in its own manifest, and is part of the version:

| host name | who answers |
|---|---|
| `NAME.binding.internal` | the worker of the service binding NAME |
| `USER.NAME.dispatch.internal` | the worker USER of the namespace of the dispatch binding NAME |
| `USER.dispatch.internal` | the same, of a version with exactly one dispatch binding |

With two dispatch bindings the short form is nobody's. If the first one had it, changing their order in a file would
silently send users of one namespace to another.

`resolve` is the whole of it: what is not in the bindings it is given does not resolve, whatever it looks like. A name
below `binding.internal` or `dispatch.internal` that does not resolve is *internal* all the same: it must end there and
never be looked up outside, where somebody could answer to it.

Host names of bindings are compared as host names are: case does not matter, one dot at the end is the root's, and a
port must be one that HTTP has anyway. Names in Unicode are none; only ASCII is lowered, because other characters that
lower to ASCII ones (the Kelvin sign) must not spell a binding.

Secrets are here by name only. Their values are in no version, no manifest and no log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Final

from actors.plain import checked_fields, checked_list
from actors.worker_names import is_worker_name, label_of, user_worker

BINDING_SUFFIX: Final = ".binding.internal"
DISPATCH_SUFFIX: Final = ".dispatch.internal"

VARIABLE: Final = r"[A-Za-z_][A-Za-z0-9_]{0,127}"
"""What a variable or a secret may be called: what an environment, JavaScript and Python can all name."""
PARAMETER: Final = r"[a-z][a-z0-9_-]{0,62}"
"""What a parameter of an outbound worker may be called: it becomes part of a header's name, which has no case."""


@dataclass(frozen=True, slots=True)
class BindingLimits:
    """How much one version may be bound to. A version travels whole to every server and stays in its memory."""

    services_max: int = 64  # twice the invocations of a request tree: more cannot be called in one request
    dispatch_max: int = 8  # one namespace for all customers is the rule; a few for stages of a rollout
    kv_max: int = 32  # stores are for many keys, not for one each
    vars_max: int = 128  # the platform's published number, as the next one
    var_bytes_max: int = 5 * 1024  # of one value, as UTF-8
    vars_bytes_max: int = 64 * 1024  # of all names and values: 1,000 such workers are 64 MB on each server
    secrets_max: int = 128  # as many as variables: the two are alternatives
    parameters_max: int = 16  # each is a header of every dispatched call
    tails_max: int = 4  # each is one more invocation for every request


LIMITS: Final = BindingLimits()

_HOST_CHARS_MAX: Final = 253  # RFC 1035, without the root's dot
_TAIL_CHARS: Final = 64  # what is looked at of an authority that may be junk: a suffix, dots and a port
_PORTS: Final = frozenset({"80", "443"})
_VARIABLE: Final = re.compile(VARIABLE)
_PARAMETER: Final = re.compile(PARAMETER)


@dataclass(frozen=True, slots=True)
class ServiceBinding:
    """`http://NAME.binding.internal/` is answered by `worker`, which is in no namespace."""

    name: str
    worker: str

    def __post_init__(self) -> None:
        label_of("services.name", self.name)
        label_of("services.worker", self.worker)


@dataclass(frozen=True, slots=True)
class DispatchBinding:
    """`http://USER.NAME.dispatch.internal/` is answered by the worker USER of `namespace`."""

    name: str
    namespace: str

    def __post_init__(self) -> None:
        label_of("dispatch.name", self.name)
        label_of("dispatch.namespace", self.namespace)


@dataclass(frozen=True, slots=True)
class KvBinding:
    """The key-value store that is opened as `name`. It has no host name."""

    name: str
    store: str

    def __post_init__(self) -> None:
        label_of("kv.name", self.name)
        label_of("kv.store", self.store)


@dataclass(frozen=True, slots=True)
class Outbound:
    """The worker that every outgoing request of a dispatched user's worker goes to, whichever dispatch binding the
    user was called by. `parameters`: the names of what the dispatcher may pass to it with a call."""

    worker: str
    parameters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        label_of("outbound.worker", self.worker)
        _check_texts("outbound.parameters", self.parameters, LIMITS.parameters_max, _PARAMETER)


@dataclass(frozen=True, slots=True)
class Tail:
    """The workers that hear of every request after it ended, with all that was called for it."""

    workers: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_tuple("tail.workers", self.workers, LIMITS.tails_max)
        for worker in self.workers:
            label_of("tail.workers", worker)
        _check_differ("tail.workers", self.workers)


@dataclass(frozen=True, slots=True)
class Bindings:
    """All that one version is bound to.

    `vars` are (name, text) pairs, sorted by name; `secrets` are names. The names of service, dispatch and key-value
    bindings, variables and secrets differ: a guest finds all of them in one place. Raises ValueError naming the field
    that is malformed or over `BindingLimits`.
    """

    services: tuple[ServiceBinding, ...] = ()
    dispatch: tuple[DispatchBinding, ...] = ()
    kv: tuple[KvBinding, ...] = ()
    vars: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    outbound: Outbound | None = None
    tail: Tail | None = None

    def __post_init__(self) -> None:
        _check_tuple("services", self.services, LIMITS.services_max)
        _check_tuple("dispatch", self.dispatch, LIMITS.dispatch_max)
        _check_tuple("kv", self.kv, LIMITS.kv_max)
        _check_vars(self.vars)
        _check_texts("secrets", self.secrets, LIMITS.secrets_max, _VARIABLE)
        if self.outbound is not None and not self.dispatch:
            raise ValueError("outbound: is for what a dispatch binding calls, and there is none")
        repeated = first_repeated(name for _, name in self.names())
        if repeated is not None:
            raise ValueError(f"{repeated}: two of this version's bindings, variables and secrets have this name")

    def names(self) -> Iterator[tuple[str, str]]:
        """(kind, name) of everything that a guest finds by name."""
        for kind in ("services", "dispatch", "kv"):
            for binding in getattr(self, kind):
                yield kind, binding.name
        for name, _ in self.vars:
            yield "vars", name
        for name in self.secrets:
            yield "secrets", name

    @property
    def has_variables(self) -> bool:
        """Whether a guest may find anything in its environment."""
        return bool(self.vars or self.secrets)

    def workers(self) -> tuple[str, ...]:
        """Every worker that is named here, each once: those of services, the outbound one, those of the tail."""
        named = [binding.worker for binding in self.services]
        named += [self.outbound.worker] if self.outbound is not None else []
        named += self.tail.workers if self.tail is not None else ()
        return tuple(dict.fromkeys(named))

    def store_of(self, name: str) -> str | None:
        """The key-value store that a guest opens as `name`, or None."""
        return next((binding.store for binding in self.kv if binding.name == name), None)

    def to_plain(self) -> dict[str, object]:
        return {
            "services": [{"name": binding.name, "worker": binding.worker} for binding in self.services],
            "dispatch": [{"name": binding.name, "namespace": binding.namespace} for binding in self.dispatch],
            "kv": [{"name": binding.name, "store": binding.store} for binding in self.kv],
            "vars": dict(self.vars),
            "secrets": list(self.secrets),
            "outbound": None
            if self.outbound is None
            else {"worker": self.outbound.worker, "parameters": list(self.outbound.parameters)},
            "tail": None if self.tail is None else {"workers": list(self.tail.workers)},
        }

    @classmethod
    def from_plain(cls, plain: object) -> Bindings:
        """Reads what `to_plain` wrote. Raises ValueError naming the field that is wrong."""
        values = checked_fields(plain, "bindings", _NAMES)
        variables = values["vars"]
        if not isinstance(variables, dict) or len(variables) > LIMITS.vars_max:
            raise ValueError(f"vars: must be a dict of at most {LIMITS.vars_max}")
        if not all(isinstance(name, str) for name in variables):
            raise ValueError("vars: must have strings as names")
        outbound, tail = values["outbound"], values["tail"]
        return cls(
            services=tuple(
                ServiceBinding(**_labels(item, "services", ("name", "worker")))
                for item in checked_list(values["services"], "services", LIMITS.services_max)
            ),
            dispatch=tuple(
                DispatchBinding(**_labels(item, "dispatch", ("name", "namespace")))
                for item in checked_list(values["dispatch"], "dispatch", LIMITS.dispatch_max)
            ),
            kv=tuple(
                KvBinding(**_labels(item, "kv", ("name", "store")))
                for item in checked_list(values["kv"], "kv", LIMITS.kv_max)
            ),
            vars=tuple(sorted(variables.items())),
            secrets=_texts(values["secrets"], "secrets", LIMITS.secrets_max),
            outbound=None if outbound is None else _outbound(outbound),
            tail=None
            if tail is None
            else Tail(_texts(checked_fields(tail, "tail", ("workers",))["workers"], "tail.workers", LIMITS.tails_max)),
        )


_NAMES: Final = tuple(field.name for field in fields(Bindings))


@dataclass(frozen=True, slots=True)
class ServiceTarget:
    """A call through a service binding."""

    binding: str
    worker: str


@dataclass(frozen=True, slots=True)
class UserTarget:
    """A call through a dispatch binding. Whether there is such a user is for whoever calls to find out."""

    binding: str
    namespace: str
    user: str

    @property
    def worker(self) -> str:
        """The user's worker, as the catalog knows it."""
        return user_worker(self.namespace, self.user)


Target = ServiceTarget | UserTarget


@dataclass(frozen=True, slots=True)
class NotBound:
    """A name that is nobody's here. `internal`: it must not be looked up anywhere else either. `reason` is for the log
    of the worker that asked: it names nothing that is not its own."""

    internal: bool
    reason: str


def resolve(bindings: Bindings, authority: str) -> Target | NotBound:
    """Who answers when a version with these bindings asks for `authority` (a host name, with a port or not)."""
    host, colon, port = authority.lower().partition(":")
    dotted = "." + host.removesuffix(".")  # of the bare suffixes, nothing is left
    if not authority.isascii() or len(dotted) > _HOST_CHARS_MAX + 1:
        return NotBound(is_internal(authority), "it is no host name")
    if not dotted.endswith((BINDING_SUFFIX, DISPATCH_SUFFIX)):
        return NotBound(is_internal(authority), "it is no name of a binding")
    if colon and port not in _PORTS:
        return NotBound(True, "a binding has no port of its own")
    if dotted.endswith(BINDING_SUFFIX):
        return _service(bindings, dotted[1 : -len(BINDING_SUFFIX)])
    return _user(bindings, dotted[1 : -len(DISPATCH_SUFFIX)])


def is_internal(authority: str) -> bool:
    """Whether this is below, or is, one of the two names that bindings are under; also when it is malformed there."""
    host = re.sub(r"[.\s]*(:[^:]*)?\Z", "", authority[-_TAIL_CHARS:]).lower()
    return f".{host}".endswith((BINDING_SUFFIX, DISPATCH_SUFFIX))


def _service(bindings: Bindings, name: str) -> Target | NotBound:
    for binding in bindings.services:
        if binding.name == name:
            return ServiceTarget(name, binding.worker)
    return NotBound(True, "the worker's manifest has no [[bindings.service]] of this name")


def _user(bindings: Bindings, labels: str) -> Target | NotBound:
    user, dot, name = labels.partition(".")
    if not is_worker_name(user):
        return NotBound(True, "it names no user's worker")
    if not bindings.dispatch:
        return NotBound(True, "the worker's manifest has no [[bindings.dispatch]]")
    if not dot:
        if len(bindings.dispatch) > 1:
            return NotBound(True, f"with several dispatch bindings, write {user}.NAME{DISPATCH_SUFFIX}")
        (only,) = bindings.dispatch
        return UserTarget(only.name, only.namespace, user)
    for binding in bindings.dispatch:
        if binding.name == name:
            return UserTarget(name, binding.namespace, user)
    return NotBound(True, "the worker's manifest has no [[bindings.dispatch]] of this name")


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that was there before, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _outbound(plain: object) -> Outbound:
    values = checked_fields(plain, "outbound", ("worker", "parameters"))
    parameters = _texts(values["parameters"], "outbound.parameters", LIMITS.parameters_max)
    return Outbound(label_of("outbound.worker", values["worker"]), parameters)


def _labels(plain: object, what: str, names: tuple[str, ...]) -> dict[str, str]:
    values = checked_fields(plain, what, names)
    return {name: label_of(f"{what}.{name}", values[name]) for name in names}


def _texts(plain: object, what: str, most: int) -> tuple[str, ...]:
    listed = checked_list(plain, what, most)
    found = tuple(item for item in listed if isinstance(item, str))
    if len(found) != len(listed):
        raise ValueError(f"{what}: must be strings")
    return found


def _check_tuple(what: str, value: object, most: int) -> None:
    if not isinstance(value, tuple) or len(value) > most:
        raise ValueError(f"{what}: must be a tuple of at most {most}")


def _check_texts(what: str, value: tuple[str, ...], most: int, pattern: re.Pattern[str]) -> None:
    _check_tuple(what, value, most)
    for text in value:
        if not isinstance(text, str) or pattern.fullmatch(text) is None:
            raise ValueError(f"{what}: must match {pattern.pattern}")
    _check_differ(what, value)


def _check_differ(what: str, value: tuple[str, ...]) -> None:
    if len(set(value)) != len(value):
        raise ValueError(f"{what}: must differ from each other")


def _check_vars(variables: tuple[tuple[str, str], ...]) -> None:
    _check_tuple("vars", variables, LIMITS.vars_max)
    total = 0
    for name, text in variables:
        if not isinstance(name, str) or _VARIABLE.fullmatch(name) is None:
            raise ValueError(f"vars: must be named like {VARIABLE}")
        if not isinstance(text, str) or "\0" in text:
            raise ValueError(f"vars.{name}: must be a string without NUL")
        size = text_bytes(text)
        if size > LIMITS.var_bytes_max:
            raise ValueError(f"vars.{name}: {size} bytes are more than {LIMITS.var_bytes_max}")
        total += len(name) + size
    if total > LIMITS.vars_bytes_max:
        raise ValueError(f"vars: {total} bytes of names and values are more than {LIMITS.vars_bytes_max}")
    if list(variables) != sorted(variables):
        raise ValueError("vars: must be sorted by name")


def text_bytes(text: str) -> int:
    """The size of a text as UTF-8; a lone surrogate, which has no UTF-8, counts as what would replace it."""
    return len(text.encode("utf-8", "replace"))


NOTHING_BOUND: Final = Bindings()
"""What a version has whose manifest says nothing."""
