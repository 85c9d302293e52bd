"""What modules see of the world around them while a simulation runs: so that it is the same on every machine, and fast.

Each is a block that puts everything back at its end. None of them changes what a role decides.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

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
