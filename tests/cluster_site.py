"""A real cluster under test: Ray, three servers, TLS, the example workers, and a real OTLP receiver."""

from dataclasses import dataclass

from tracing_receiver import OtlpReceiver

from benchmarks.local_cluster import LocalCluster


@dataclass(frozen=True)
class Site:
    """The cluster under test and what hears its traces."""

    cluster: LocalCluster
    receiver: OtlpReceiver

    @property
    def homes(self) -> dict[str, str]:
        """Worker -> its home, by server 1's view."""
        return self.cluster.client.statistics()["server-1/server"]["homes"]

    def away_from(self, home: str) -> str:
        """A server that is not ``home``."""
        return next(server for server in sorted(self.cluster.ports) if server != home)
