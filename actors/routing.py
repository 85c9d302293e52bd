"""Where a request runs: on this machine or at the worker's home. Pure.

The reasons to stay are ordered by what they cost: being the home costs nothing, a warm isolate here costs nothing, a
home that refused once would refuse again. Everything else goes home, where one warm isolate serves the whole cluster.

A machine whose host processes are all gone can stay with nothing: its requests are offered to the home, and those of
its own workers to the next in the ring's order.
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
    #: Whether this machine has a host process that could run it.
    hosts_here: bool = True
    #: The server that takes over from the home.
    next_home: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """The decision and its reason, which the ``route`` span shows. ``server``: where, unless it is here."""

    place: Place
    reason: str
    server: str = ""


def decide(situation: Situation) -> Route:
    """Here or home."""
    if not situation.hosts_here:
        other = situation.next_home if situation.home == situation.here else situation.home
        return Route(Place.HERE, "no host") if other is None else Route(Place.HOME, "no host here", other)
    if situation.home is None:
        return Route(Place.HERE, "no ring")
    if situation.home == situation.here:
        return Route(Place.HERE, "home")
    if situation.warm_here:
        return Route(Place.HERE, "warm here")
    if situation.refused_before:
        return Route(Place.HERE, "refused before")
    return Route(Place.HOME, "sharded", situation.home)
