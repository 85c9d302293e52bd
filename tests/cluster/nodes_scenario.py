"""Three Ray nodes with addresses of their own, and what becomes of a cluster on them: facts, as JSON on stdout.

Run by ``test_nodes.py`` inside namespaces of its own, where 127.0.0.0/8 is all there is, with Ray's settings in the
environment, and a directory to work in. The nodes share a disk, so each gets a state directory of its own.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

import everwarm
from everwarm.answers import EverwarmError
from everwarm.client import Client
from everwarm.home import Home

ROOT = Path(everwarm.__file__).parent.parent
HOSTS = Path(__file__).with_name("hosts")
PORT = 8443
#: Workers that are asked while nodes come and go, each about once in a second.
MANY, RATE = 32, 30


def name(i: int) -> str:
    return f"node-127-0-0-{i}"


class Machines:
    """Ray's nodes, and the state directories that they have."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._cluster = Cluster()
        self._nodes: dict[int, object] = {}

    def home(self, i: int) -> Path:
        return self.scratch / f"home-{i}"

    def start(self, i: int) -> None:
        self.home(i).mkdir(mode=0o700, exist_ok=True)
        self._nodes[i] = self._cluster.add_node(
            node_ip_address=f"127.0.0.{i}", num_cpus=2, object_store_memory=200 << 20, include_dashboard=False,
            wait=False, env_vars={"EVERWARM_HOME": str(self.home(i))},
        )  # fmt: skip

    def anew(self) -> None:
        """Another Ray, when no node of this one is left."""
        self._cluster = Cluster()

    def kill(self, i: int) -> None:
        self._cluster.remove_node(self._nodes.pop(i), allow_graceful=False)

    def run(self, i: int, *arguments: str) -> dict[str, object]:
        """A command as somebody types it on a node, without anything of Ray in the environment."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH_MODE")}
        done = subprocess.run(
            [sys.executable, "-m", "everwarm.cli", *arguments],
            env={**environment, "EVERWARM_HOME": str(self.home(i))}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        return {"code": done.returncode, "out": done.stdout, "err": done.stderr}

    def end(self) -> None:
        self._cluster.shutdown()


def fetched(machines: Machines, i: int) -> str:
    """What a client of one node's edge gets that trusts the authority as this node knows it."""
    certificate = Home(machines.home(i)).ca_certificate
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "3", "--noproxy", "*", "--cacert", str(certificate), "--resolve",
         f"hello.localhost:{PORT}:127.0.0.{i}", f"https://hello.localhost:{PORT}/"],
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout or done.stderr


def seconds_until(true: Callable[[], bool], within_s: float = 60.0) -> float | None:
    """How long it took, and None when it did not come true."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < within_s:
        with suppress(EverwarmError):
            if true():
                return round(time.monotonic() - began_s, 1)
        time.sleep(0.1)  # what is waited for is in other processes
    return None


def listening(port: int) -> list[str]:
    """The addresses at which somebody listens on a port."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        address, _, hexadecimal = fields[1].partition(":")
        if fields[3] == "0A" and port == int(hexadecimal, 16):
            found.add(".".join(str(part) for part in reversed(bytes.fromhex(address))))
    return sorted(found)


def secrets_in(directory: Path) -> list[str]:
    """Files with a private key in them."""
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*")
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
    )  # fmt: skip


def scenario(machines: Machines) -> dict[str, object]:
    facts: dict[str, object] = {}
    for i in (1, 2, 3):
        machines.start(i)
    facts["before"] = machines.run(2, "status", "--json")
    facts["up"] = machines.run(1, "up", "--ray-address", "auto", "--detach", "--json", "--port", str(PORT))
    facts["deploy"] = machines.run(2, "deploy", str(ROOT / "workers" / "zig" / "hello" / "worker.wasm"), "--json")
    facts["fetched"] = [fetched(machines, i) for i in (1, 2, 3)]
    facts["status"] = {i: machines.run(i, "status", "--json") for i in (1, 3)}
    facts["listening"] = listening(PORT)
    facts["secrets"] = {i: secrets_in(machines.home(i)) for i in (1, 2, 3)}
    with everwarm.connect(Home(machines.home(1))) as client:
        facts.update(coming_and_going(machines, client))
    owner = Home(machines.home(1)).running()
    assert owner is not None
    os.kill(owner.pid, signal.SIGKILL)
    facts["fetched_without_owner"] = [fetched(machines, i) for i in (1, 3)]
    facts["up_again"] = machines.run(1, "up", "--ray-address", "auto", "--detach", "--json", "--port", str(PORT))
    with everwarm.connect(Home(machines.home(1))) as client:
        facts["all_again_after_s"] = seconds_until(lambda: (client.refresh(), len(client.servers) == 4)[1], 150.0)
    facts["fetched_again"] = [fetched(machines, i) for i in (1, 2, 3)]
    facts["processes"] = roles()
    facts["down"] = machines.run(1, "down")
    facts["after"] = [listening(PORT), machines.run(3, "status", "--json"), roles()]
    return facts


class Load:
    """Clients that ask many workers by the edges of all nodes, while nodes come and go (``hosts/steady_client.py``)."""

    def __init__(self, machines: Machines) -> None:
        workers = [f"m-{number}" for number in range(MANY)]
        component = ROOT / "workers" / "zig" / "hello" / "worker.wasm"
        deploy = [sys.executable, str(HOSTS / "head_driver.py"), "deploy", str(component), *workers]
        environment = {**os.environ, "EVERWARM_HOME": str(machines.home(1))}
        subprocess.run(deploy, env=environment, check=True, timeout=120, stdout=sys.stderr)
        certificate = str(Home(machines.home(1)).ca_certificate)
        client = [sys.executable, str(HOSTS / "steady_client.py"), certificate, str(PORT), str(RATE), *workers]
        self._client = subprocess.Popen(client, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._said: list[dict[str, object]] = []

    def use(self, *nodes: int) -> None:
        """These have edges, from now on; over when all workers were asked twice since."""
        assert self._client.stdin is not None
        self._client.stdin.write(json.dumps([f"127.0.0.{i}" for i in nodes]) + "\n")
        self._client.stdin.flush()
        for _ in range(3):
            self._hear()

    def end(self) -> object:
        """All that was seen."""
        assert self._client.stdin is not None
        self._client.stdin.close()
        while "seen" not in (said := self._hear()):
            pass
        self._client.wait(30)
        return said["seen"]

    def _hear(self) -> dict[str, object]:
        assert self._client.stdout is not None
        said: dict[str, object] = json.loads(self._client.stdout.readline())
        return said


def homes(client: Client) -> dict[str, str]:
    """Where workers are at home."""
    found: dict[str, str] = client.statistics()[f"{name(1)}/server"]["homes"]
    return found


def coming_and_going(machines: Machines, client: Client) -> dict[str, object]:
    def in_ring(i: int) -> bool:
        return name(i) in client.members()["servers"]

    def known(i: int) -> bool:
        client.refresh()
        return name(i) in client.servers

    facts: dict[str, object] = {}
    load = Load(machines)
    load.use(1, 2, 3)
    facts["homes_of_three"] = homes(client)
    machines.start(4)
    facts["joined_after_s"] = seconds_until(lambda: in_ring(4))
    facts["joined_serves_after_s"] = seconds_until(lambda: fetched(machines, 4).startswith("hello") and known(4))
    facts["homes_of_four"] = homes(client)
    load.use(1, 2, 3, 4)
    facts["removed"] = machines.run(4, "servers", "remove", "--json")
    facts["homes_of_those_left"] = homes(client)
    load.use(1, 2, 3)
    facts["load"] = load.end()
    facts["called_back"] = machines.run(2, "servers", "add", "--json")
    facts["removed_wrong"] = machines.run(2, "servers", "remove", name(9))
    facts["down_on_a_node"] = machines.run(2, "down")
    machines.kill(3)
    facts["dead_out_after_s"] = seconds_until(lambda: not in_ring(3))
    facts["dead_forgotten_after_s"] = seconds_until(lambda: not known(3))
    facts["fetched_meanwhile"] = [fetched(machines, i) for i in (1, 2, 4)]
    machines.start(3)
    facts["back_after_s"] = seconds_until(lambda: in_ring(3) and known(3))
    # This driver knows it as lost, and looks for it once a second.
    seconds_until(lambda: client.fetch("hello", server=name(3)).status == 200)
    facts["fetched_back"] = client.fetch("hello", server=name(3)).text
    return facts


def roles() -> int:
    """How many processes there are that run a role."""
    found = 0
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            found += entry.name.isdigit() and b"RoleProcess" in (entry / "cmdline").read_bytes()
    return found


def play(scenario: Callable[[Machines], dict[str, Any]]) -> None:
    """Play it in the directory that the command line names, and print its facts."""
    machines = Machines(Path(sys.argv[1]))
    try:
        facts = scenario(machines)
    finally:
        machines.end()
    print(json.dumps(facts))


if __name__ == "__main__":
    play(scenario)
