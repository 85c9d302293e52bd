"""Where a request runs: on this machine or at the worker's home. Pure.

The reasons to stay are ordered by what they cost: being the home costs nothing, a warm isolate here costs nothing, a
home that refused once would refuse again. Everything else goes home, where one warm isolate serves the whole cluster.
"""

from dataclasses import dataclass
from enum import Enum


class Place(Enum):
    """Where a request is sent."""

    HERE = "here"
    HOME = "home"


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known when a request must be sent somewhere."""

    here: str
    home: str | None
    warm_here: bool
    refused_before: bool


@dataclass(frozen=True, slots=True)
class Route:
    """The decision and its reason, which the ``route`` span shows."""

    place: Place
    reason: str


def decide(situation: Situation) -> Route:
    """Here or home."""
    if situation.home is None:
        return Route(Place.HERE, "no ring")
    if situation.home == situation.here:
        return Route(Place.HERE, "home")
    if situation.warm_here:
        return Route(Place.HERE, "warm here")
    if situation.refused_before:
        return Route(Place.HERE, "refused before")
    return Route(Place.HOME, "sharded")
