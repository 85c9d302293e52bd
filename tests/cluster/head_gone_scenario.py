"""The head's machine is gone: what clients of the others get, what still works, and what comes back with it.

Run as ``nodes_scenario.py`` is, in namespaces of its own, with Ray's settings in the environment. Prints facts as JSON.
"""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from nodes_scenario import PORT, ROOT, Machines, fetched, listening, play, seconds_until

import everwarm
from everwarm.home import Home

WORKERS = 12
CLIENT = ROOT / "tests" / "cluster" / "hosts" / "https_client.py"
#: How long clients go on asking: Ray ends its nodes after some 15 s.
ASKED_S = 25
GONE_AFTER_S = 5.0
RATE = 20


class Asking:
    """Clients of two machines' edges, asking by the clock."""

    def __init__(self, machines: Machines, homes: dict[str, str]) -> None:
        edges = [f"{worker}@127.0.0.{i}" for worker in homes for i in (2, 3)]
        command = [
            sys.executable, str(CLIENT), "load", str(Home(machines.home(2)).ca_certificate), str(PORT), str(ASKED_S),
            str(RATE), *edges,
        ]  # fmt: skip
        self.began_s = time.monotonic()
        self._client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def wait_for_s(self, since_began_s: float) -> None:
        time.sleep(max(0.0, self.began_s + since_began_s - time.monotonic()))  # the load goes by the clock

    def seen(self) -> list[dict[str, Any]]:
        told, _ = self._client.communicate(timeout=120)
        seen: list[dict[str, Any]] = json.loads(told)
        return seen


def end_of_edges(began_s: float, facts: dict[str, object]) -> None:
    """Note when nobody listened any more at the machines' addresses."""
    ended_s = seconds_until(lambda: not listening(PORT), ASKED_S)
    facts["edges_ended_after_s"] = None if ended_s is None else round(time.monotonic() - began_s, 1)


def scenario(machines: Machines) -> dict[str, object]:
    facts: dict[str, object] = {}
    for i in (1, 2, 3):
        machines.start(i)
    up = ("up", "--ray-address", "auto", "--detach", "--json", "--port", str(PORT))
    facts["up"] = machines.run(1, *up)
    component = (ROOT / "workers" / "zig" / "hello" / "worker.wasm").read_bytes()
    names = ["hello", *(f"hello-{i}" for i in range(1, WORKERS))]
    with everwarm.connect(Home(machines.home(1))) as client:
        for worker in names:
            client.deploy(worker, component)
        homes = dict(next(iter(client.statistics().values()))["homes"])
    facts["homes"] = homes
    asking = Asking(machines, homes)
    asking.wait_for_s(GONE_AFTER_S)
    owner = Home(machines.home(1)).running()
    assert owner is not None
    facts["gone_s"] = round(time.monotonic() - asking.began_s, 2)
    with suppress(ProcessLookupError):
        os.kill(owner.pid, 9)
    machines.kill(1)
    began_s = time.monotonic()
    watching = threading.Thread(target=end_of_edges, args=(began_s, facts))
    watching.start()
    deployed = machines.run(2, "deploy", str(ROOT / "workers" / "zig" / "echo" / "worker.wasm"), "--name", "echo")
    facts["deploy"] = {**deployed, "took_s": round(time.monotonic() - began_s, 1)}
    facts["seen"] = asking.seen()
    watching.join()
    for i in (2, 3):
        machines.kill(i)  # their Ray ended by itself; this is for what it may have left
    machines.anew()
    for i in (1, 2, 3):
        machines.start(i)
    began_s = time.monotonic()
    facts["up_again"] = machines.run(1, *up)
    facts["answers_again_after_s"] = seconds_until(
        lambda: all(fetched(machines, i).startswith("hello") for i in (1, 2, 3)), 120.0
    )
    facts["down"] = machines.run(1, "down")
    return facts


if __name__ == "__main__":
    play(scenario)
