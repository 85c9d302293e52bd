"""A cluster of its own for a benchmark: a state directory in /tmp, free ports, nothing left behind."""

import json
import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from everwarm.client import Client, connect
from everwarm.home import Home


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """A cluster that runs: its ports by server, its authority, and a client."""

    ports: dict[str, int]
    home: Home
    client: Client

    def tls(self) -> ssl.SSLContext:
        """A context that trusts this cluster's authority and nobody else."""
        return ssl.create_default_context(cafile=str(self.home.ca_certificate))


@contextmanager
def local_cluster(*options: str) -> Iterator[LocalCluster]:
    """``everwarm up --detach OPTIONS`` on free ports, and ``everwarm down`` at the end."""
    with tempfile.TemporaryDirectory(prefix="everwarm-bench-") as directory:
        os.environ["EVERWARM_HOME"] = directory
        everwarm = [sys.executable, "-m", "everwarm.cli"]
        subprocess.run([*everwarm, "up", "--detach", "--json", "--port", "0", *options], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        try:
            home = Home.open()
            with connect(home) as client:
                yield LocalCluster(client.running.servers, home, client)
        finally:
            subprocess.run([*everwarm, "down"], check=True, stdout=subprocess.DEVNULL)


def print_result(figures: dict[str, float | int | str], *, as_json: bool) -> None:
    """A table for people, or one JSON line."""
    if as_json:
        print(json.dumps(figures))
        return
    width = max(len(name) for name in figures)
    for name, value in figures.items():
        print(f"{name:<{width}}  {value}")


WORKERS = Path(__file__).resolve().parent.parent / "workers"
