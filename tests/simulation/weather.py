"""What goes wrong in a run, by its seed: a timetable of faults.

A tenth of the seeds has none, and nothing may fail there. The others have a few kinds each and not all: a fault that
hides behind another one is not found.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

KINDS = (
    "lossy", "slow", "starve", "partition", "kill host", "kill machine", "kill shard", "stale", "deploys", "ring",
    "refusing",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that begins at a moment of the run, in seconds from its start."""

    at_s: float
    kind: str
    machine: int = 0
    other: int = 0
    for_s: float = 0.0
    strength: float = 0.0

    def __str__(self) -> str:
        what = f"{self.kind} at {self.machine} ({self.other})"
        return f"{self.at_s:8.3f} s  {what}, {self.for_s:.2f} s, {self.strength:.3f}"


def timetable(chance: Random, machines: int, length_s: float) -> list[Fault]:
    """The faults of one run, by time."""
    if chance.random() < 0.1:
        return []
    faults: list[Fault] = []
    for kind in chance.sample(KINDS, chance.choice((1, 1, 2, 2, 3, 4))):
        for _ in range(_TIMES[kind](chance)):
            at_s = length_s * (0.02 + 0.9 * chance.random())
            machine = chance.randrange(machines)
            other = (machine + 1 + chance.randrange(machines - 1)) % machines
            for_s = chance.choice((0.05, 0.3, 1.0, 3.0, 8.0)) * (0.5 + chance.random())
            faults.append(Fault(at_s, kind, machine, other, for_s, chance.random()))
    return sorted(faults, key=lambda fault: (fault.at_s, fault.kind))


_TIMES: dict[str, Callable[[Random], int]] = {
    "lossy": lambda chance: chance.randint(1, 2),
    "slow": lambda chance: chance.randint(1, 2),
    "starve": lambda chance: chance.randint(1, 6),
    "partition": lambda chance: chance.randint(1, 3),
    "kill host": lambda chance: chance.randint(1, 3),
    "kill machine": lambda chance: 1,
    "kill shard": lambda chance: 1,
    "stale": lambda chance: chance.randint(1, 2),
    "deploys": lambda chance: chance.randint(2, 6),
    "ring": lambda chance: chance.randint(1, 4),
    "refusing": lambda chance: chance.randint(1, 4),
}
