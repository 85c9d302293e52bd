"""What modules see of the world around them while a simulation runs: so that it is the same on every machine, and fast.

Each is a block that puts everything back at its end. None of them changes what a role decides.
"""

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import repeat
from operator import attrgetter, call
from types import MemberDescriptorType
from typing import Any

from uhashring import HashRing

import actors.ring
import actors.trace_desk
from isolates.artifact import ArtifactStore

_RINGS: dict[tuple[tuple[tuple[str, int], ...], int], HashRing] = {}


def _shared_ring(nodes: dict[str, int], *, hash_fn: object, vnodes: int) -> HashRing:
    """A ring's points are never changed and cost milliseconds: those of the same members are made once a process."""
    key = (tuple(nodes.items()), vnodes)
    made = _RINGS.get(key)
    if made is None:
        made = _RINGS[key] = HashRing(nodes, hash_fn=hash_fn, vnodes=vnodes)
    return made


@contextmanager
def rings_shared() -> Iterator[None]:
    setattr(actors.ring, "HashRing", _shared_ring)  # noqa: B010  # a name that the module imports and does not export
    try:
        yield
    finally:
        setattr(actors.ring, "HashRing", HashRing)  # noqa: B010


@contextmanager
def code_looked_for_once() -> Iterator[None]:
    """The code on the machines' disks stays as it is: whether a component is there is asked of the kernel once."""
    has = ArtifactStore.has
    found: dict[tuple[ArtifactStore, str], bool] = {}

    def remembered(store: ArtifactStore, component_digest: str) -> bool:
        key = (store, component_digest)
        if key not in found:
            found[key] = has(store, component_digest)
        return found[key]

    setattr(ArtifactStore, "has", remembered)  # noqa: B010  # a method is no attribute that one sets, for mypy
    try:
        yield
    finally:
        setattr(ArtifactStore, "has", has)  # noqa: B010


_COPIERS: dict[type, Callable[..., Any] | None] = {}


def _copier(kind: type) -> Callable[..., Any] | None:
    """What does ``dataclasses.replace`` for one class, slot by slot and without its ``__init__``; None where that
    would be something else."""
    slots = [kind.__dict__.get(field.name) for field in fields(kind)]
    if hasattr(kind, "__post_init__") or not all(isinstance(slot, MemberDescriptorType) for slot in slots):
        return None
    setters = [slot.__set__ for slot in slots if slot is not None]
    getter = attrgetter(*(field.name for field in fields(kind)), "__class__")
    new, change = object.__new__, object.__setattr__

    def copied(value: Any, changes: dict[str, Any]) -> Any:
        made: Any = new(kind)
        deque(map(call, setters, repeat(made), getter(value)), maxlen=0)
        for name, changed in changes.items():
            change(made, name, changed)
        return made

    return copied


def _replace(value: Any, /, **changes: Any) -> Any:
    kind = value.__class__
    if kind not in _COPIERS:
        _COPIERS[kind] = _copier(kind)
    copied = _COPIERS[kind]
    return replace(value, **changes) if copied is None else copied(value, changes)


@contextmanager
def records_copied_quickly() -> Iterator[None]:
    """A request is copied with a change some five times on its way, and ``dataclasses.replace`` looks at each of its
    twenty fields in Python."""
    using = [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "actors" and getattr(module, "replace", None) is replace
    ]
    for module in using:
        module.replace = _replace  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in using:
            module.replace = replace  # type: ignore[attr-defined]


@contextmanager
def traces_now_and_then() -> Iterator[None]:
    """No trace is kept here, so nobody has to look ten times a second whether one is complete."""
    before = actors.trace_desk._TICK_S
    actors.trace_desk._TICK_S = 5.0
    try:
        yield
    finally:
        actors.trace_desk._TICK_S = before


@contextmanager
def four_cores() -> Iterator[None]:
    """What roles see of the machine that this runs on, so that a seed is the same run on every machine."""
    before = os.cpu_count
    os.cpu_count = lambda: 4
    try:
        yield
    finally:
        os.cpu_count = before


@contextmanager
def quiet_roles() -> Iterator[list[str]]:
    """Errors with a traceback in the roles' logs are faults; the rest of the logs is not kept."""
    faults: list[str] = []

    class Faults(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1] is not None:
                faults.append(f"{record.name}: {record.getMessage()}: {record.exc_info[1]!r}")

    log = logging.getLogger("everwarm")
    handler, level, propagate = Faults(), log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.ERROR)
    log.propagate = False
    try:
        yield faults
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
