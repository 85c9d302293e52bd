"""A driver on the cluster's head, for those who look on from outside.

    python head_driver.py deploy COMPONENT NAME...    all of these workers of one component
    python head_driver.py watch                       a line of JSON whenever somebody moves, until stdin ends

``watch`` says when (monotonic, which all machines of one kernel share), which servers are in the ring, in which state
each is, and with each epoch where workers are at home; at last what was cold and why, and what was handed over.
"""

import asyncio
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import everwarm
from everwarm.client import Client

_DEPLOYS_AT_ONCE = 8
_LOOK_EVERY_S = 0.05


async def deploy(component: bytes, workers: list[str]) -> None:
    """Deploy them, several at once."""
    at_once = asyncio.Semaphore(_DEPLOYS_AT_ONCE)
    async with everwarm.connect_async() as cluster:

        async def one(worker: str) -> None:
            async with at_once:
                # Plenty of CPU time: more processes than cores wait for each other.
                await cluster.deploy(worker, component, plan="paid", limits={"cpu_ms": 10_000})

        await asyncio.gather(*(one(worker) for worker in workers))


def homes(client: Client, epoch: int) -> dict[str, str]:
    """Where workers are at home, as a server sees it that has heard of this epoch; nothing when none has yet."""
    servers = (c for role, c in client.statistics().items() if role.endswith("/server"))
    return next((c["homes"] for c in servers if c.get("ring_epoch") == epoch), {})


def cold_causes(client: Client) -> dict[str, int]:
    """The cold starts of all hosts that can be reached, by cause."""
    causes: dict[str, int] = {}
    for role, counted in client.statistics().items():
        if "/host" in role:
            for cause, n in counted.get("cold_starts", {}).items():
                causes[cause] = causes.get(cause, 0) + n
    return causes


def watch(client: Client) -> None:
    """Until stdin ends."""
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    said: Any = None
    told_epoch = -1
    while not over.wait(_LOOK_EVERY_S):
        told = client.members()
        states = {member["server"]: member["state"] for member in told["members"]}
        now = told["epoch"], sorted(told["servers"]), states
        if now != said:
            said = now
            print(json.dumps({"at_s": time.monotonic(), "ring": now[1], "states": states}), flush=True)
        if told_epoch != told["epoch"]:
            client.refresh()
            found = homes(client, told["epoch"])
            if found:
                told_epoch = told["epoch"]
                print(json.dumps({"at_s": time.monotonic(), "ring": now[1], "homes": found}), flush=True)
    client.refresh()
    ended = {"cold_causes": cold_causes(client), "handed_over": client.members()["handed_over"]}
    print(json.dumps({"at_s": time.monotonic(), **ended}), flush=True)


def main(arguments: list[str]) -> None:
    """The command line."""
    if arguments[0] == "deploy":
        asyncio.run(deploy(Path(arguments[1]).read_bytes(), arguments[2:]))
        return
    with everwarm.connect() as client:
        watch(client)


if __name__ == "__main__":
    main(sys.argv[1:])
