"""ClusterConfig: what every process of a cluster is told when it begins, and what follows from that alone."""

import os
from dataclasses import dataclass, field
from ipaddress import ip_address

from actors.admission import AdmissionLimits
from actors.cordons import host_roles
from actors.egress_policy import EgressPolicy, parse_rule
from actors.membership import weight
from actors.residency import ResidencyLimits
from actors.worker import CORDON_DEFAULT

#: Servers on one machine, at a time. Their HTTPS ports follow each other.
SERVERS_MAX = 16


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """What a process of the cluster is told. Nothing listens beyond ``address``, which is loopback unless configured,
    and ``line_address``, which is loopback while all servers are on one machine."""

    #: The state directory. Empty: the one that ``Home.open`` finds on the machine where the process runs.
    home: str
    servers: int = 3  # on this machine
    address: str = "127.0.0.1"
    port: int = 8443  # of the first server; the others follow
    otlp_url: str = ""
    otlp_headers: dict[str, str] = field(default_factory=dict)
    #: Whether requests leave traces.
    traces: bool = True
    #: Whether that endpoint is told metrics, too; a viewer of traces does not take them.
    otlp_metrics: bool = True
    #: Where each server's metrics are read, or not at all. The port is the first server's, as ``port``; with 0, or with
    #: a ``port`` of 0, each has a free one, and ``everwarm status`` tells which.
    metrics: bool = True
    metrics_address: str = ""  # loopback, unless it is named here
    metrics_port: int = 0
    certificates: str = ""
    #: Of one host's isolates, while there is one cordon; several share what its hosts have together.
    memory_bytes_max: int = 2 << 30
    in_flight_max: int = AdmissionLimits().in_flight_max
    isolates_max: int = ResidencyLimits().isolates_max  # of one host
    #: Processes of isolates of each server, of each cordon; a crash of one leaves the others.
    hosts: int = 1
    #: What guests may reach beyond public addresses on ports 80 and 443, as ``egress_policy.parse_rule`` reads it.
    egress_allow: tuple[str, ...] = ()
    #: Whether a deploy starts an isolate at the worker's home before it switches.
    preload: bool = True
    #: Where servers call each other directly (``actors.call_line``).
    line_address: str = "127.0.0.1"
    #: Where a Ray is that others started, and that has a server on each of its nodes. Empty: all are on this machine.
    ray_address: str = ""
    #: With it, the addresses of all machines that were there when this server started.
    edges: tuple[str, ...] = ()
    #: Whether a process that dies or hangs is replaced. Without it nothing is, as when its whole machine is gone.
    restarts: bool = True
    #: Whether a request may be sent to its worker's home. Without it every request runs on the machine that got it.
    sharding: bool = True

    @property
    def metrics_listen(self) -> str:
        """Where metrics are read: the address of the edge if that is loopback, so that those do not meet either."""
        return self.metrics_address or (self.address if _is_loopback(self.address) else "127.0.0.1")

    @property
    def weight(self) -> int:
        """Each server's part of the ring: by the memory of its isolates, and its part of the cores."""
        cores = max(1, (os.cpu_count() or 1) // self.servers)
        return weight(self.isolates_bytes_max, cores)

    @property
    def isolates_bytes_max(self) -> int:
        """What all isolates of a server may hold."""
        return self.hosts * self.memory_bytes_max

    def host_names(self, cordon: str = CORDON_DEFAULT) -> list[str]:
        """The roles of a server's hosts of a cordon: ``host``, ``host-2``, ..."""
        return host_roles(cordon, self.hosts)

    def egress_policy(self, metrics_address: str) -> EgressPolicy:
        """What guests may reach. Never the cluster's own edge: a request would come back as a client's. Nor its
        metrics, which are read at ``metrics_address``, or nowhere."""
        own: list[str] = []
        if self.port:
            # On one machine also those of servers that are added later: who runs by then would not hear of them.
            ports = [self.port] if self.edges else range(self.port, self.port + SERVERS_MAX)
            addresses = [f"[{a}]" if ":" in a else a for a in {self.address, *self.edges}]
            own = [f"{address}:{port}" for address in addresses for port in ports]
        if metrics_address:
            host, _, port = metrics_address.rpartition(":")
            last = int(port) + (SERVERS_MAX if self.metrics_port else 1)
            own += [f"{at}:{p}" for at in dict.fromkeys((host, "127.0.0.1", "[::1]")) for p in range(int(port), last)]
        return EgressPolicy(
            added=tuple(parse_rule(text) for text in self.egress_allow), own=tuple(parse_rule(text) for text in own)
        )


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False  # a name
