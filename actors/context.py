"""What goes along with a call from one worker to another: who stands behind it, and what they have set. Pure.

A dispatcher calls a user's worker, that one fetches, the fetch goes to an outbound worker; each of them runs at a home
of its own. Nothing that holds for such a stage may depend on the machine where it happens to run, so all of it travels
with the call, as data:

    layers     one for each stage above, outermost first: what its owner set for everything below
    the rest   what belongs to the whole tree: budget, trace, who collects reports, time left

      Context of the user's worker                     of the outbound worker that its fetch goes to
      ┌──────────────────────────────────┐             ┌──────────────────────────────────┐
      │ dispatcher: caps, tails,         │             │ dispatcher: tails                │ without caps and outbound:
      │   outbound + parameters          │  ─ fetch ─► │ may read: parameters             │ the guard is the
      └──────────────────────────────────┘             └──────────────────────────────────┘ dispatcher's own worker

**Layers only pile up.** A stage that calls pushes one layer, its own, at the inner end. There is no way to change or
take off what is further out, so what a parent set, a child can neither raise nor drop. What a stage is under is the
``View`` of all layers, and views merge associatively (``View.over``):

* caps: the smallest of each; trust: none as soon as one says so.
* tails: all of them. The tail of a layer hears the stage that pushed it, and everything under that layer.
* outbound workers: all of them, too. A request to the world goes to the innermost one, what that one asks of the world
  to the next, and what the outermost asks goes out. A child's own outbound worker therefore runs *inside* the one
  that its dispatcher set: it may add a guard and can not remove one. Had the outer one replaced it, a platform
  inside a platform could not guard its own users; had the inner one, they could leave.

**An outbound worker runs at the layer that set it**, not below its caller: inner layers are taken off for it, and of
its own layer the caps and the outbound worker. It is its dispatcher's code: the 5 ms that are meant for a user's
worker are not meant for the guard, and that user's tail hears nothing of it. It gets its parameters with the call, and
nobody else ever does.

**Guests see none of it.** ``guest_parameters`` is all that a guest may read.

Caps are about *one request*. Memory and start-up belong to an isolate, which serves requests of many callers, so no
caller can lower them.

**Time.** Machines do not share a clock, so a deadline travels as the milliseconds that are left when it is sent
(``leaving``), and begins to run again on arrival (``deadline_s``). What the way takes is not counted, some
milliseconds a hop, and it does not add up: the caller keeps its own deadline and cancels the call at it. The number
is for the case that nobody is left who could cancel.

A context that is not whole does not exist: constructors check everything and raise ValueError, which names the field.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import lru_cache
from typing import Final

from actors.bindings import LIMITS
from actors.budget import Ask, Budget
from actors.exchange import Capability
from actors.stage_report import Stage
from actors.worker import Limits, Plan
from actors.worker_names import is_worker, is_worker_name
from tracing.trace import is_span_id, parse_traceparent

#: Each stage pushes one layer, and a chain has 16 stages (semantics, section 1).
LAYERS_MAX: Final = 16
#: Each is one more invocation for every request; a manifest may name as many (``bindings``).
TAILS_MAX: Final = LIMITS.tails_max
#: A tenant's id, a plan, a region, a token for the origin: parameters are a few words for one worker, not a document.
#: A manifest may name as many (``bindings``).
PARAMETERS_MAX: Final = LIMITS.parameters_max
PARAMETERS_BYTES_MAX: Final = 4 * 1024
LEFT_MS_MAX: Final = 1 << 40  # 34 years: it only keeps the number small
_KEY_MAX: Final = 1 << 62  # of a capability
_OWNER_CHARS_MAX: Final = 128  # of a capability: "server-1/server"

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_VERSION: Final = re.compile(r"([0-9a-f]{16})?")

#: Names with values, sorted by name, each name once: so that equal ones are the same bytes.
Pairs = tuple[tuple[str, str], ...]


class Trust(StrEnum):
    """How far what is below a layer is trusted. A dispatcher's users are not, unless it says so."""

    TRUSTED = "trusted"
    UNTRUSTED = "untrusted"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose worker a stage is; a worker of a namespace has that in its name."""

    worker: str
    version: str = ""
    plan: Plan = Plan.FREE

    def __post_init__(self) -> None:
        if not is_worker(self.worker):
            raise ValueError("worker: is no worker's name")
        if _VERSION.fullmatch(self.version) is None:
            raise ValueError("version: must be 16 hex digits, or nothing")


@dataclass(frozen=True, slots=True)
class Caps:
    """What a layer allows each request below it: upper bounds, by the names of ``Limits``; None sets none.

    ``subrequests_max`` is at the same time what the whole subtree may use.
    """

    cpu_ms: int | None = None
    wall_ms: int | None = None
    wait_until_ms: int | None = None
    subrequests_max: int | None = None
    request_body_bytes_max: int | None = None
    log_bytes_max: int | None = None

    def __post_init__(self) -> None:
        for name in _CAPS:
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 0 <= value <= LEFT_MS_MAX):
                raise ValueError(f"{name}: must be a whole number, zero or more")

    def lowered_by(self, other: "Caps") -> "Caps":
        """The smaller of each."""
        if other == NO_CAPS:
            return self
        return Caps(*(_smaller(getattr(self, name), getattr(other, name)) for name in _CAPS))

    def applied_to(self, limits: Limits) -> Limits:
        """A version's limits under these: none is ever raised."""
        if self == NO_CAPS:
            return limits
        lowered = {name: _smaller(getattr(self, name), getattr(limits, name)) for name in _CAPS}
        return replace(limits, **lowered)  # type: ignore[arg-type]  # only wall_ms can be None, and only when both are


_CAPS: Final = tuple(cap.name for cap in fields(Caps))
NO_CAPS: Final = Caps()


@dataclass(frozen=True, slots=True)
class Outbound:
    """The worker to which all requests to the world go from below a layer, and what that worker may read."""

    worker: str
    parameters: Pairs = ()

    def __post_init__(self) -> None:
        if not is_worker_name(self.worker):
            raise ValueError("outbound: is no worker's name")
        _check_parameters(self.parameters)


@dataclass(frozen=True, slots=True)
class Layer:
    """What one stage set for all that is below it. ``stage`` is its id, that of its ``request`` span."""

    stage: str
    owner: Owner
    caps: Caps = field(default=Caps())
    trust: Trust = Trust.TRUSTED
    tails: tuple[str, ...] = ()
    outbound: Outbound | None = None

    def __post_init__(self) -> None:
        if not is_span_id(self.stage):
            raise ValueError("stage: must be 16 hex digits")
        if len(self.tails) > TAILS_MAX or len(set(self.tails)) != len(self.tails):
            raise ValueError(f"tails: must be at most {TAILS_MAX}, and each once")
        if not all(is_worker_name(tail) for tail in self.tails):
            raise ValueError("tails: must be workers' names")

    def without_guard(self) -> "Layer":
        """As it holds for the outbound worker that it sets: see the head of this file."""
        return replace(self, caps=Caps(), outbound=None)


@dataclass(frozen=True, slots=True)
class View:
    """Layers merged. ``tails`` and ``outbounds`` are from the outermost in, with the stage that set each."""

    caps: Caps = field(default=Caps())
    trust: Trust = Trust.TRUSTED
    tails: tuple[tuple[str, str], ...] = ()
    outbounds: tuple[tuple[str, Outbound], ...] = ()

    @classmethod
    def of(cls, layer: Layer) -> "View":
        """One layer alone."""
        return cls(
            layer.caps,
            layer.trust,
            tuple((layer.stage, tail) for tail in layer.tails),
            () if layer.outbound is None else ((layer.stage, layer.outbound),),
        )

    def over(self, inner: "View") -> "View":
        """Both, this one outside. Associative, with ``View()`` as neutral element."""
        return View(
            self.caps.lowered_by(inner.caps),
            Trust.UNTRUSTED if Trust.UNTRUSTED in (self.trust, inner.trust) else Trust.TRUSTED,
            self.tails + inner.tails,
            self.outbounds + inner.outbounds,
        )


@dataclass(frozen=True, slots=True)
class Context:
    """What one stage runs under. ``stage`` is its own id, ``caller`` the stage that called it (empty for the root), and
    ``chosen_by`` the one that named its worker: the caller, or for an outbound worker whoever set it.

    ``left_ms`` is the time until the deadline, as of when it was sent; None: there is none. ``report_traces``: where
    stages tell how they ended (``flow``).
    """

    stage: str
    budget: Budget
    layers: tuple[Layer, ...] = ()
    caller: str = ""
    chosen_by: str = ""
    parameters: Pairs = ()
    traceparent: str = ""
    report_traces: Capability | None = None
    left_ms: int | None = None

    def __post_init__(self) -> None:
        if not is_span_id(self.stage):
            raise ValueError("stage: must be 16 hex digits")
        for name in ("caller", "chosen_by"):
            if getattr(self, name) and not is_span_id(getattr(self, name)):
                raise ValueError(f"{name}: must be 16 hex digits, or nothing")
        if len(self.layers) > LAYERS_MAX:
            raise ValueError(f"layers: must be at most {LAYERS_MAX}")
        if len({layer.stage for layer in self.layers}) != len(self.layers):
            raise ValueError("layers: one for each stage")
        _check_parameters(self.parameters)
        if self.traceparent and parse_traceparent(self.traceparent) is None:
            raise ValueError("traceparent: is none")
        lent = self.report_traces
        if lent is not None and (len(lent.owner) > _OWNER_CHARS_MAX or not 0 <= lent.key <= _KEY_MAX):
            raise ValueError("capability: an owner or a key that is too long")
        if self.left_ms is not None:
            _check_number("left_ms", self.left_ms, LEFT_MS_MAX)

    # --------------------------------------------------------------------------------------------- what holds here

    @property
    def caps(self) -> Caps:
        """Those of all layers, merged: ``view.caps``, which is all that most calls need of the view."""
        merged = NO_CAPS
        for layer in self.layers:
            merged = merged.lowered_by(layer.caps)
        return merged

    @property
    def view(self) -> View:
        """All layers, merged."""
        merged = View()
        for layer in self.layers:
            merged = merged.over(View.of(layer))
        return merged

    def limits_of(self, own: Limits) -> Limits:
        """What a version with limits ``own`` may use here: never more than its own, its callers' and the tree's."""
        return _within(self.caps.applied_to(own), self.budget)

    def ask_for(self, own: Limits) -> Ask:
        """What a callee with limits ``own`` could use of a share. Called on the callee's context."""
        return _ask(self.caps, own)

    def ask_for_callee(self, layer: Layer, own: Limits) -> Ask:
        """The same, before there is such a context: for a callee of this stage, under its ``layer``."""
        return _ask(self.caps.lowered_by(layer.caps), own)

    def as_stage(self, worker: str) -> Stage:
        """What its tree's tail workers may know of the stage that runs ``worker`` under this."""
        under = tuple(layer.stage for layer in self.layers)
        return Stage(self.stage, self.caller, worker, under=under, chosen_by=self.chosen_by)

    # ------------------------------------------------------------------------------------------------------- calls

    def call(self, layer: Layer, stage: str, budget: Budget) -> "Context":
        """The context of a callee: this stage's own layer on top, and its share of the budget.

        ``layer.stage`` must be this stage. ValueError for one layer too many, which the budget's depth prevents.
        """
        if layer.stage != self.stage:
            raise ValueError("layer: a stage pushes its own")
        # Not ``replace``, which looks all fields up.
        return Context(
            stage,
            budget,
            (*self.layers, layer),
            self.stage,
            self.stage,
            (),
            self.traceparent,
            self.report_traces,
            self.left_ms,
        )

    def outbound(self) -> "tuple[str, Context] | None":
        """Of a callee's context that stands for a request to the world: the worker to which it goes, with the context
        of that one. None: it goes out."""
        for place in range(len(self.layers) - 1, -1, -1):
            setting = self.layers[place].outbound
            if setting is not None:
                layers = (*self.layers[:place], self.layers[place].without_guard())
                chosen_by = self.layers[place].stage
                guard = replace(self, layers=layers, chosen_by=chosen_by, parameters=setting.parameters)
                return setting.worker, guard
        return None

    # -------------------------------------------------------------------------------------------------------- time

    def deadline_s(self, arrived_s: float) -> float | None:
        """When it has to be over, on the clock of ``arrived_s``: the moment at which the context arrived here."""
        return None if self.left_ms is None else arrived_s + self.left_ms / 1_000

    def leaving(self, now_s: float, deadline_s: float | None) -> "Context":
        """As it is sent at ``now_s`` by a stage with that deadline. There is never more time than before."""
        if deadline_s is None:
            return self
        left_ms = max(0, min(int((deadline_s - now_s) * 1_000), LEFT_MS_MAX))
        return replace(self, left_ms=_smaller(self.left_ms, left_ms))


# Subrequests and places for connections are not in it: a share of them is a guess, and each fetch of a stage that has a
# share is asked of its books (``ledger``), which have more given.
@lru_cache(maxsize=4_096)  # a tree's shape decides how much each stage has of what, and most trees have one of few
def _within(limits: Limits, budget: Budget) -> Limits:
    return replace(
        limits,
        cpu_ms=budget.own_cpu_us(limits.cpu_ms * 1_000) // 1_000,
        invocations_max=min(limits.invocations_max, budget.invocations),
        depth_max=min(limits.depth_max, budget.depth),
    )


def _ask(caps: Caps, own: Limits) -> Ask:
    limits = caps.applied_to(own)
    cpu_us = limits.cpu_ms * 1_000
    return Ask(cpu_us) if caps.subrequests_max is None else Ask(cpu_us, caps.subrequests_max)


def guest_parameters(context: Context) -> Pairs:
    """All that the guest of a stage may read of its context: the parameters for it, if it is an outbound worker."""
    return context.parameters


def pairs(items: Iterable[tuple[str, str]]) -> Pairs:
    """Names with values in the order in which contexts have them; of a name that comes twice the last value."""
    return tuple(sorted(dict(items).items()))


def _smaller(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _check_number(name: str, value: object, most: int) -> None:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name}: must be a whole number from 0 to {most}")


def _check_parameters(parameters: Pairs) -> None:
    if len(parameters) > PARAMETERS_MAX:
        raise ValueError(f"parameters: must be at most {PARAMETERS_MAX}")
    _check_pairs("parameters", parameters)
    # A text that is no UTF-8 raises UnicodeEncodeError, which is a ValueError.
    if sum(len(name) + len(value.encode()) for name, value in parameters) > PARAMETERS_BYTES_MAX:
        raise ValueError(f"parameters: must be at most {PARAMETERS_BYTES_MAX} bytes")


def _check_sorted(what: str, found: Pairs) -> None:
    names = [name for name, _ in found]
    if names != sorted(set(names)):
        raise ValueError(f"{what}: must be sorted by name, each name once")


def _check_pairs(what: str, found: Pairs) -> None:
    _check_sorted(what, found)
    if not all(_NAME.fullmatch(name) for name, _ in found):
        raise ValueError(f"{what}: a name must match {_NAME.pattern}")
