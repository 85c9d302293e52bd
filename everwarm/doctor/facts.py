"""What the doctor found out, as values. Nothing here is judged, and nothing here is a secret."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Token:
    """A node's token of Ray. ``digest`` is there to be compared and is shown to nobody."""

    path: str
    mode: int | None = None  # permissions; None without a file
    digest: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system that the product or Ray writes to."""

    holds: str
    path: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Clock:
    """How far a node's clock is ahead of the head's, give or take."""

    ahead_s: float
    error_s: float


@dataclass(frozen=True, slots=True)
class Node:
    """One machine. ``versions`` has an empty text for what is not installed."""

    address: str
    hostname: str
    asked_by: str  # "here", "ray" or "ssh"
    versions: Mapping[str, str]
    token: Token
    environment: Mapping[str, str]  # those of Ray's settings that have to be equal, and how it authenticates
    disks: tuple[Disk, ...]
    clock: Clock


@dataclass(frozen=True, slots=True)
class Ssh:
    """Whether the head got into a worker. ``refused`` is what ssh said when it did not."""

    address: str
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Port:
    """A port that has to be open, tried from a node. ``failure`` is empty when it was."""

    of: str
    address: str
    port: int
    tried_from: str
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Actor:
    """A named actor that is alive."""

    name: str
    namespace: str


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """All that was found out."""

    head: str  # the address of the machine that the doctor was called on
    #: What Ray's launcher is to start, beside the head; None where `ray up` has not been.
    expected: tuple[str, ...] | None
    ssh: tuple[Ssh, ...]
    ray_address: str
    ray_failure: str  # why Ray could not be asked; empty when it could
    ray_nodes: tuple[str, ...]  # addresses of those that Ray has alive
    silent: Mapping[str, str]  # nodes that Ray has alive and that could not be looked at: address -> why
    nodes: tuple[Node, ...]
    ports: tuple[Port, ...]
    actors: tuple[Actor, ...]
    #: The servers of the cluster that runs, and where each listens; None when none runs.
    servers: Mapping[str, str] | None
    on_nodes: bool  # whether each node is to have a server
    launcher_said: tuple[str, ...] = ()  # the latest that its log on the head says of what failed
