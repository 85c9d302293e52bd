"""How long does compiled code take to be usable on every server, and what does one slow machine cost the others?

    python -m benchmarks.distribution [--json] [--rounds N]

Starts three servers of its own. A component of 10 MB, which does not compress, is deployed under a new name, while a
client of each server asks for it until it is answered:

* ``stored_to_usable_everywhere_s``   from the moment when the deploy has compiled and kept it, to the first answer
  through the last of the three servers;
* ``distributing_s``                  of that, until all three have acknowledged that the code is in place;
* ``others_stored_to_usable_s``       the same through two servers, while the third one's process is stopped (SIGSTOP),
  from shortly before that moment on and for 3 s;
* ``slow_is_reported``                whether the deploy's answer named the third one;
* ``slow_usable_after_s``             from the moment when it goes on, to the first answer through it.

The slowest of the rounds; all three servers are on this machine. A round in which the process was stopped too late is
repeated: how long compiling takes is not known beforehand, and who is stopped for 5 s counts as lost.
"""

import argparse
import asyncio
import os
import secrets
import signal
import sys
from dataclasses import dataclass

from benchmarks.local_cluster import WORKERS, local_cluster, print_result
from everwarm.answers import Deployment
from everwarm.async_client import AsyncClient
from everwarm.client import connect_async
from isolates.wasm_binary import COMPONENT_PREAMBLE, CORE_PREAMBLE, leb, section, sections

#: Under the paid plan's limit of 10,000,000, compressed, with the worker itself.
_DATA_BYTES = 9_900_000
#: How long the slow server is stopped. Below the 5 s of silence after which a server is lost.
_STOPPED_S = 3.0
#: How often a client asks.
_ASK_EVERY_S = 0.01
_USABLE_S_MAX = 60.0
#: Rounds that may be repeated before this machine is too busy to measure anything.
_REPEATED_MAX = 10
_CORE_MODULE, _DATA_COUNT, _DATA = 1, 12, 11
_AFTER_STORING = ("distributing", "warming", "switching")
#: What a deploy says when compiling is over.
_COMPILED = ("starting", "storing", "distributing")


def large_component() -> bytes:
    """The smallest example with 10 MB of random data in it, another one each time."""
    component = (WORKERS / "zig" / "hello" / "worker.wasm").read_bytes()
    parts = list(sections(component, COMPONENT_PREAMBLE))
    largest = max((payload for number, payload in parts if number == _CORE_MODULE), key=len)
    return COMPONENT_PREAMBLE + b"".join(
        section(number, _with_data(payload) if payload is largest else payload) for number, payload in parts
    )


def _with_data(module: bytes) -> bytes:
    """The core module with one more segment of data, which nothing asks for."""
    passive = b"\x01" + leb(_DATA_BYTES) + secrets.token_bytes(_DATA_BYTES)
    made, seen = [], False
    for number, payload in sections(module, CORE_PREAMBLE):
        if number == _DATA:
            count, rest = payload[0], payload[1:]
            assert count < 0x7F, "more segments than a byte counts"
            made.append(section(number, bytes([count + 1]) + rest + passive))
            seen = True
        else:
            made.append(section(number, bytes([payload[0] + 1]) if number == _DATA_COUNT else payload))
    assert seen, "a module without data"
    return CORE_PREAMBLE + b"".join(made)


@dataclass(frozen=True, slots=True)
class Round:
    """One deploy, in seconds of the loop's clock."""

    deployment: Deployment
    stored_s: float
    usable_s: dict[str, float]  # by server
    stopped_s: float = 0.0  # when its slow server was stopped

    def took_s(self, *servers: str) -> float:
        """From stored until usable through all of these."""
        return max(self.usable_s[server] for server in servers) - self.stored_s


async def usable(client: AsyncClient, worker: str, server: str) -> float:
    """When a worker is first answered through a server."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_USABLE_S_MAX):
        while (await client.fetch(worker, server=server)).status != 200:  # noqa: ASYNC110 - it is on other machines
            await asyncio.sleep(_ASK_EVERY_S)
    return loop.time()


async def deploy(client: AsyncClient, worker: str, pid: int = 0) -> Round:
    """Deploy a new component, with the process ``pid`` stopped for a while as soon as it is compiled."""
    loop = asyncio.get_running_loop()
    asking = {server: asyncio.create_task(usable(client, worker, server)) for server in client.servers}
    phase_began_s: dict[str, float] = {}
    stopped_s = 0.0

    def hear(phase: str, in_phase_s: float) -> None:
        nonlocal stopped_s
        phase_began_s.setdefault(phase, loop.time() - in_phase_s)
        if pid and not stopped_s and phase in _COMPILED:
            stopped_s = loop.time()
            os.kill(pid, signal.SIGSTOP)
            loop.call_later(_STOPPED_S, os.kill, pid, signal.SIGCONT)

    done = await client.deploy(worker, large_component(), plan="paid", progress=hear)
    # Counted back from the end, for a deploy that was over before it was asked in this phase.
    ended_s = loop.time() - sum(seconds for phase, seconds in done.phases if phase in _AFTER_STORING)
    stored_s = phase_began_s.get("distributing", ended_s)
    return Round(done, stored_s, {server: await task for server, task in asking.items()}, stopped_s)


async def measure(rounds: int) -> dict[str, float | int | str]:
    client = connect_async()
    first, second, third = client.servers
    well, slow = [], []
    pid = int((await client.statistics())[f"{third}/server"]["pid"])
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        well.append(await deploy(client, f"well-{number}"))
    for number in range(rounds + _REPEATED_MAX):
        one = await deploy(client, f"slow-{number}", pid)
        if one.stopped_s < one.stored_s:
            slow.append(one)
        else:
            print("stopped too late; once more", file=sys.stderr)
        if len(slow) == rounds:
            break
    else:
        raise RuntimeError("this machine is too busy to stop a process in time")
    distributing = [dict(one.deployment.phases)["distributing"] for one in well]
    client.close()
    return {
        "component_bytes": well[0].deployment.component_bytes,
        "artifact_bytes": well[0].deployment.artifact_bytes,
        "stored_to_usable_everywhere_s": round(max(one.took_s(first, second, third) for one in well), 3),
        "distributing_s": round(max(distributing), 3),
        "others_stored_to_usable_s": round(max(one.took_s(first, second) for one in slow), 3),
        "slow_is_reported": int(all(one.deployment.late == [third] for one in slow)),
        "slow_usable_after_s": round(max(one.usable_s[third] - one.stopped_s - _STOPPED_S for one in slow), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast code reaches all servers.")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--rounds", type=int, default=3, help="deploys of each kind")
    options = parser.parse_args()
    with local_cluster("--servers", "3"):
        print_result(asyncio.run(measure(options.rounds)), as_json=options.json)


if __name__ == "__main__":
    main()
