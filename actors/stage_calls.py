"""What one stage of a request tree may call, and under which context. Pure.

A guest fetches a URL. Its host name decides where that goes, in this order:

    a binding of the worker's own manifest  ─► that worker, or that user's worker        (``bindings``)
    anything else under .internal           ─► refused here: it must never be looked up outside
    the world, below an outbound worker     ─► the innermost outbound worker             (``context.outbound``)
    the world                               ─► out                                       (``egress``)

A call to another worker takes a share of the tree's budget along (``ledger``), and gets a layer of its caller's: who
calls, and for a dispatched user's worker also what the dispatcher set for it. Such settings are headers of the
dispatcher's request, which are taken off here, so no stock guest needs a library to dispatch:

    everwarm-limits: cpu_ms=5, subrequests_max=10      ``context.Caps``; they lower what holds anyway, and raise nothing
    everwarm-parameter-tenant: acme                    for the outbound worker, which gets the same header with each
                                                       request that it guards; its name stands in ``[outbound]``

Every other header that begins with ``everwarm-`` is taken off as well: nobody speaks in the platform's name.
"""

from dataclasses import dataclass, fields
from typing import Final

from actors.bindings import Bindings, NotBound, ServiceTarget, UserTarget, resolve
from actors.budget import Budget, Exceeded, Resource
from actors.context import PARAMETERS_BYTES_MAX, Caps, Context, Layer, Outbound, Owner, Trust, guest_parameters, pairs
from actors.egress_policy import INTERNAL_PREFIX
from actors.ledger import Ledger
from actors.worker import Limits, Version
from isolates.conversation import FieldItems
from isolates.egress import ErrorCode, OutgoingHead

LIMITS_HEADER: Final = "everwarm-limits"
PARAMETER_PREFIX: Final = "everwarm-parameter-"

_CAPS: Final = frozenset(cap.name for cap in fields(Caps))
_NOT_THERE: Final[ErrorCode] = ("destination-not-found", None)
_DENIED: Final[ErrorCode] = ("HTTP-request-denied", None)


@dataclass(frozen=True, slots=True)
class Refused:
    """The fetch fails with ``code``. ``why`` names nothing that is not the caller's own."""

    code: ErrorCode
    why: str
    #: What the stage's share of the tree has too little of, if that is why: its caller may have more.
    exceeded: Resource | None = None


@dataclass(frozen=True, slots=True)
class World:
    """It goes out."""


@dataclass(frozen=True, slots=True)
class Aim:
    """It goes to ``worker``; ``by`` is the name of the binding, empty for an outbound worker."""

    worker: str
    by: str
    target: ServiceTarget | UserTarget | None


@dataclass(frozen=True, slots=True)
class Call:
    """One call that was let through: its key in the ledger, and what its callee gets."""

    key: int
    worker: str
    by: str
    context: Context
    headers: FieldItems
    callee: Limits


class StageCalls:
    """One stage that calls others. Lives as long as the stage may call; used by one event loop."""

    def __init__(self, version: Version, context: Context, ledger: Ledger) -> None:
        """Use ``begin``."""
        self.version = version
        self._bindings: Bindings = version.bindings
        self.context = context
        self.ledger = ledger

    @classmethod
    def begin(cls, version: Version, context: Context) -> "StageCalls | Exceeded":
        """The stage that runs ``version`` under ``context``. ``Exceeded``: its tree has no share left for it."""
        ledger = Ledger.begin(context.budget, context.limits_of(version.limits).cpu_ms * 1_000)
        return ledger if isinstance(ledger, Exceeded) else cls(version, context, ledger)

    def aim(self, authority: str) -> Aim | World | Refused:
        """Where a fetch of ``authority`` goes."""
        target = resolve(self._bindings, authority)
        if not isinstance(target, NotBound):
            return Aim(target.worker, target.binding, target)
        if target.internal:
            return Refused(_NOT_THERE, target.reason)
        guarded = self.context.outbound()
        return World() if guarded is None else Aim(guarded[0], "", None)

    def out(self) -> Refused | None:
        """A fetch goes out into the world: it counts."""
        exceeded = self.ledger.subrequest()
        return None if exceeded is None else Refused(exceeded.code, exceeded.text, exceeded.what)

    def call(self, aim: Aim, head: OutgoingHead, stage: str, callee: Limits) -> Call | Refused:
        """Let a call through. ``stage``: the callee's id, new. ``callee``: the limits of its version by itself."""
        asked = self._layer(aim, head.headers)
        if isinstance(asked, Refused):
            return asked
        lent = self.ledger.lend(self.context.ask_for_callee(asked, callee))
        if isinstance(lent, Exceeded):
            return Refused(lent.code, lent.text, lent.what)
        key, share = lent
        context = self.context.call(asked, stage, share)
        headers = stripped(head.headers)
        if aim.target is None:
            guarded = context.outbound()
            assert guarded is not None, "aimed at an outbound worker that is not set"
            context = guarded[1]
            headers += tuple(
                (PARAMETER_PREFIX + name, text.encode("latin-1")) for name, text in guest_parameters(context)
            )
        return Call(key, aim.worker, aim.by, context, headers, callee)

    def more(self, call: Call, what: Resource) -> Budget | Exceeded:
        """A callee's share has too little of something: what it gets on top, out of what is left here."""
        return self.ledger.more(call.key, what, call.context.ask_for(call.callee))

    def _layer(self, aim: Aim, headers: FieldItems) -> Layer | Refused:
        """What this stage sets for a callee and everything below it."""
        version, bindings = self.version, self._bindings
        owner = Owner(version.worker, version.version_id, version.plan)
        tails = () if bindings.tail is None else bindings.tail.workers
        stage = self.context.stage
        if not isinstance(aim.target, UserTarget):
            return Layer(stage, owner, tails=tails)
        caps, parameters = _caps(headers), _parameters(headers)
        if isinstance(caps, Refused):
            return caps
        if isinstance(parameters, Refused):
            return parameters
        outbound = None
        if bindings.outbound is not None:
            unknown = [name for name in parameters if name not in bindings.outbound.parameters]
            if unknown:
                return Refused(_DENIED, f"{unknown[0]} is no parameter of [outbound] in the worker's manifest")
            outbound = Outbound(bindings.outbound.worker, pairs(parameters.items()))
        elif parameters:
            return Refused(_DENIED, "the worker's manifest has no [outbound] for these parameters")
        return Layer(stage, owner, caps=caps, trust=Trust.UNTRUSTED, tails=tails, outbound=outbound)


def stripped(headers: FieldItems) -> FieldItems:
    """Headers without those that speak in the platform's name."""
    return tuple((name, value) for name, value in headers if not name.lower().startswith(INTERNAL_PREFIX))


def _caps(headers: FieldItems) -> Caps | Refused:
    """What ``everwarm-limits`` says; of a limit that is there twice the smaller one."""
    found: dict[str, int] = {}
    for name, value in headers:
        if name.lower() != LIMITS_HEADER:
            continue
        for item in value.decode("latin-1").split(","):
            cap, _, number = (part.strip() for part in item.partition("="))
            if cap not in _CAPS:
                return Refused(_DENIED, f"{LIMITS_HEADER}: one of {', '.join(sorted(_CAPS))} = a number")
            if not (number.isascii() and number.isdigit()) or len(number) > 12:
                return Refused(_DENIED, f"{LIMITS_HEADER}: {cap} must be a whole number, zero or more")
            found[cap] = min(int(number), found.get(cap, int(number)))
    return Caps(**found)


def _parameters(headers: FieldItems) -> dict[str, str] | Refused:
    found: dict[str, str] = {}
    for name, value in headers:
        if name.lower().startswith(PARAMETER_PREFIX):
            found[name.lower().removeprefix(PARAMETER_PREFIX)] = value.decode("latin-1")
    if sum(len(name) + 2 * len(text) for name, text in found.items()) > PARAMETERS_BYTES_MAX:
        return Refused(_DENIED, f"parameters: more than {PARAMETERS_BYTES_MAX} bytes")
    return found
