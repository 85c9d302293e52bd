"""A real cluster under test: Ray, three servers, TLS, the example workers, and a real OTLP receiver."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracing_receiver import OtlpReceiver

from actors.cordons import host_roles
from actors.worker import CORDON_DEFAULT
from benchmarks.local_cluster import LocalCluster

ROOT = Path(__file__).resolve().parent.parent
#: Of each cordon on a server.
HOSTS = 2


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

    def hosts(self, server: str) -> dict[str, dict[str, Any]]:
        """The counters of a server's hosts that can be reached, by address. Those of the default cordon: tests before
        may have used others."""
        roles, counters = host_roles(CORDON_DEFAULT, HOSTS), self.cluster.client.statistics()
        addresses = [f"{server}/{role}" for role in roles]
        return {a: counters[a] for a in addresses if "error" not in counters.get(a, {"error": "away"})}

    def in_hosts(self, server: str, counter: str) -> int:
        """What its hosts have of it, in all."""
        return sum(counted[counter] for counted in self.hosts(server).values())


class Shell:
    """A user with a state directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "EVERWARM_HOME": str(home)}

    def run(self, *arguments: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "everwarm.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=ROOT,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "everwarm.cli", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def json(self, *arguments: str) -> Any:
        """What a command prints with ``--json``."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def until(what: str, true: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait for what happens in other processes, which tell nobody: so this looks every 20 ms. AssertionError."""
    until_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until_s, what
        threading.Event().wait(0.02)


def processes_of(home: Path) -> list[str]:
    """Processes that mention this state directory in their environment: every one of its cluster does."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                environment = (entry / "environ").read_bytes()
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
            except OSError:
                continue
            if line and str(home).encode() in environment and b"EVERWARM_HOME" in environment:
                found.append(line)
    return found


def until_gone(home: Path) -> None:
    """Wait until no process of a cluster is left."""
    until(f"processes of {home} are gone", lambda: not processes_of(home), within_s=20.0)
