"""How a request travels, line by line: each scenario's transcript is a file that reads without this one.

    transcripts/refused_upload.txt        what is said, in order
    async def refused_upload(...)         how it is brought about; its docstring is the transcript's title

``pytest tests/scenarios --write-transcripts`` writes the files anew. What it wrote is to be read before it is kept.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from complete_servers import NO_COPIES, Compiled, CompleteServers, request, upload, wait_until
from transcript import KIB, MIB, Transcript

from actors.residency import ResidencyLimits
from actors.routing import RoutingLimits
from actors.view import encode_plain

HERE = Path(__file__).resolve().parent / "transcripts"
Scenario = Callable[[CompleteServers, Transcript], Awaitable[None]]
SCENARIOS: dict[str, tuple[Scenario, dict[str, Any]]] = {}


def scenario(**made_with: Any) -> Callable[[Scenario], Scenario]:
    """A scenario on servers that are made with these arguments; two of them, and without copies, unless they say so."""

    def named(played: Scenario) -> Scenario:
        SCENARIOS[played.__name__] = (played, {"routing_limits": NO_COPIES, **made_with})
        return played

    return named


async def evicted(cluster: CompleteServers, told: Transcript, number: int, worker: str) -> None:
    """Let the isolates of a worker go on one machine, and wait until its Server knows."""
    machine, version = cluster[number], cluster.version_of(worker)
    machine.host.desk.drop_version(version)

    async def known() -> bool:
        return not machine.server._warmth.is_warm(version) and version not in machine.server._client.refusals

    await wait_until(known, f"{machine.name} knows that {worker} is cold")
    told.say(f"{machine.name}: its isolate of the worker is evicted")


async def warm(cluster: CompleteServers, number: int, worker: str) -> None:
    """Wait until a machine's Server knows of an isolate of its own."""
    machine, version = cluster[number], cluster.version_of(worker)

    async def known() -> bool:
        return machine.server._warmth.is_warm(version)

    await wait_until(known, f"{machine.name} knows that {worker} is warm")


# ------------------------------------------------------------------------------------------------- here, or at home


@scenario()
async def home_is_here(cluster: CompleteServers, told: Transcript) -> None:
    """4.1  The machine that got the request is the worker's home: no hop."""
    worker = await cluster.deploy_at(1, "hello")
    await told.ask(request(worker))
    await told.ask(request(worker))


@scenario()
async def sent_home_without_asking(cluster: CompleteServers, told: Transcript) -> None:
    """4.3  Nobody is asked first: the offer is the request, and the verdict is the answer.

    4.6  The fallback costs nothing while it is not used: server-1 starts no isolate.
    """
    worker = await cluster.deploy_at(2, "hello")
    await told.ask(request(worker))
    await told.ask(request(worker))
    told.say(f"server-1: has {cluster[1].isolates() or 'no'} isolates")


@scenario()
async def upload_that_is_accepted(cluster: CompleteServers, told: Transcript) -> None:
    """4.3  The first 64 KiB ride with the head; the home reads the rest over the capability it was lent."""
    worker = await cluster.deploy_at(2, "echo")
    fields, rest = upload(bytes(256 * KIB))
    await told.ask(request(worker, "/?digest", "POST", **fields), rest, 256 * KIB)


@scenario()
async def answer_that_is_long(cluster: CompleteServers, told: Transcript) -> None:
    """4.3  An answer that is not whole yet is lent to the client's server, which reads on."""
    worker = await cluster.deploy_at(2, "stream")
    await told.ask(request(worker, "/?chunks=3&interval_ms=30"))


# ---------------------------------------------------------------------------------------------------------- refusals


@scenario()
async def refused_upload(cluster: CompleteServers, told: Transcript) -> None:
    """4.4, 4.7  A home that is full hands an upload back: it saw the window, and the guest sees every byte once.

    What runs on server-2 after this is what ran before: nothing.
    """
    worker = await cluster.deploy_at(2, "echo")
    await cluster[2].configure(in_flight_max=0)
    data = hashlib.sha256(b"seed").digest() * (MIB // 32)
    fields, rest = upload(data)
    got = await told.ask(request(worker, "/?digest", "POST", **fields), rest, MIB)
    assert got.body == f"sha256={hashlib.sha256(data).hexdigest()} bytes={MIB}\n".encode()
    told.say("client: the digest of all 1 MiB is right")
    sent = (await cluster[1].sharded())["sent_bytes"]
    assert 64 * KIB <= sent <= 64 * KIB + 4 * KIB
    told.say("server-1: has sent a head and 64 KiB to server-2")
    host = cluster[2].host.statistics()
    assert (host["isolates"], host["starts"], host["outcomes"]) == (0, {}, {})
    told.say("server-2: has started, run and counted nothing but the refusal")


@scenario()
async def refusal_sticks(cluster: CompleteServers, told: Transcript) -> None:
    """4.5  After one refusal server-1 serves the worker itself, until its isolate is evicted."""
    worker = await cluster.deploy_at(2, "hello")
    await cluster[2].configure(in_flight_max=0)
    await told.ask(request(worker))
    await cluster[2].configure(in_flight_max=128)
    told.say("server-2: has room again")
    for _ in range(2):
        await told.ask(request(worker))
    await evicted(cluster, told, 1, worker)
    await told.ask(request(worker))


@scenario()
async def fallback_that_is_warm(cluster: CompleteServers, told: Transcript) -> None:
    """4.6  What is lent is a promise; that there is a warm isolate behind it by now is no harm, and it is used warm.

    Server-1 has one and has not heard of it yet when the refusal comes.
    """
    worker = await cluster.deploy_at(2, "hello")
    await cluster[2].configure(in_flight_max=0)
    await told.ask(request(worker))
    await warm(cluster, 1, worker)
    version = cluster.version_of(worker)
    cluster[1].server._warmth._warm.clear()
    cluster[1].server._client.refusals.forget(version)
    told.say("server-1: forgets that it is warm, and that it was refused")
    await told.ask(request(worker))


@scenario()
async def home_that_drains(cluster: CompleteServers, told: Transcript) -> None:
    """4.5  A home that is leaving says nothing of its room: its refusal does not stick."""
    worker = await cluster.deploy_at(2, "hello")
    await cluster[2].configure(draining=True)
    await told.ask(request(worker))
    await cluster[2].configure(draining=False)
    told.say("server-2: stays after all")
    await evicted(cluster, told, 1, worker)
    await told.ask(request(worker))


@scenario(routing_limits=RoutingLimits(popular_per_s=2.5 / 600, idle_chance_max=1e-300))
async def warned_before_it_refuses(cluster: CompleteServers, told: Transcript) -> None:
    """The hint on every reply: server-1 starts a copy of its own while it goes on sending home, and nobody waits.

    The copy takes what the home would have refused soon.
    """
    worker = await cluster.deploy_at(2, "hello")
    await cluster[2].configure(nearly_full_at=0.0)
    told.say("server-2: says with each reply that it is nearly full")
    for _ in range(4):
        await told.ask(request(worker))
    await warm(cluster, 1, worker)
    told.say("server-1: its copy is warm")
    await told.ask(request(worker))


@scenario(residency_limits=ResidencyLimits(isolates_max=1))
async def both_are_full(cluster: CompleteServers, told: Transcript) -> None:
    """4.10  The home refuses, and server-1 has its hands full too: the client is told to come again."""
    busy = await cluster.deploy_at(1, "stream")
    worker = await cluster.deploy_at(2, "hello")
    await cluster[2].configure(in_flight_max=0)
    long = request(busy, "/?chunks=10000&interval_ms=5")
    told.asks(long)
    answer = await cluster[1].begin(long)
    assert await answer.served() is not None
    told.say("server-1: has room for one isolate, and that one is busy")
    await told.ask(request(worker))
    answer.cancel()


# ------------------------------------------------------------------------------------------------------ a lost home


@scenario()
async def home_that_is_not_there(cluster: CompleteServers, told: Transcript) -> None:
    """4.9  The offer was certainly not delivered: it is like a refusal, and is not remembered."""
    worker = await cluster.deploy_at(2, "hello")
    found = told.lose("server-2/shard", "serve", delivered=False)
    await told.ask(request(worker, method="POST"))
    found()
    told.say("server-2: is back")
    await evicted(cluster, told, 1, worker)
    await told.ask(request(worker, method="POST"))


@scenario()
async def home_lost_with_a_get(cluster: CompleteServers, told: Transcript) -> None:
    """4.9  The guest may have run. Doing a GET twice is doing it once: it runs again."""
    worker = await cluster.deploy_at(2, "hello")
    told.lose("server-2/shard", "serve", delivered=None)
    await told.ask(request(worker))


@scenario()
async def home_lost_with_a_post(cluster: CompleteServers, told: Transcript) -> None:
    """4.9  The guest may have run, and a POST is never done twice."""
    worker = await cluster.deploy_at(2, "hello")
    told.lose("server-2/shard", "serve", delivered=None)
    await told.ask(request(worker, method="POST"))
    told.say(f"server-1: has {cluster[1].isolates() or 'no'} isolates")


@scenario()
async def home_lost_while_it_reads(cluster: CompleteServers, told: Transcript) -> None:
    """4.9  A PUT may be done twice, but the bytes that the home has read are gone with it."""
    worker = await cluster.deploy_at(2, "echo")
    told.lose("server-2/shard", "serve", delivered=None, after=True)
    fields, rest = upload(bytes(128 * KIB))
    await told.ask(request(worker, "/?digest", "PUT", **fields), rest, 128 * KIB)


@scenario()
async def home_lost_in_its_answer(cluster: CompleteServers, told: Transcript) -> None:
    """4.9  The answer had begun: it is reset. A client never takes half an answer for a whole one."""
    worker = await cluster.deploy_at(2, "stream")
    told.lose("server-2/shard", "read_response", delivered=None)
    await told.ask(request(worker, "/?chunks=3&interval_ms=30"))


@scenario()
async def client_that_leaves(cluster: CompleteServers, told: Transcript) -> None:
    """The client's leaving travels to the guest, over the hop."""
    worker = await cluster.deploy_at(2, "stream")
    asked = request(worker, "/?chunks=10000&interval_ms=5")
    told.asks(asked)
    answer = await cluster[1].begin(asked)
    assert await answer.served() is not None
    assert await answer.read() is not None
    told.say("client: goes away")
    answer.cancel()
    await cluster.settled()
    told.say("server-2: runs nothing any more")


# ------------------------------------------------------------------------------------------------------- stale rings


@scenario(servers=3)
async def stale_ring(cluster: CompleteServers, told: Transcript) -> None:
    """4.8  Server-2 is asked as home and believes that it is not: it serves, and never sends on."""
    worker = await cluster.deploy_at(2, "hello")
    newer = {"epoch": 1 << 60, "servers": {"server-3": 1}, "secret": b"x" * 32}
    await cluster[2].server.calls["apply_ring"](encode_plain(newer))
    told.say("server-2: hears of a ring in which server-3 is home to everything")
    await told.ask(request(worker))


@scenario(servers=3)
async def stale_ring_and_a_full_home(cluster: CompleteServers, told: Transcript) -> None:
    """4.8  The same, and it refuses: the request is back where it came from, after one hop there."""
    worker = await cluster.deploy_at(2, "hello")
    newer = {"epoch": 1 << 60, "servers": {"server-3": 1}, "secret": b"x" * 32}
    await cluster[2].server.calls["apply_ring"](encode_plain(newer))
    told.say("server-2: hears of a ring in which server-3 is home to everything")
    await cluster[2].configure(in_flight_max=0)
    await told.ask(request(worker))


# ------------------------------------------------------------------------------------------------------------- tests


def _title(played: Scenario) -> str:
    lines = (played.__doc__ or "").strip().splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines)


@pytest.mark.parametrize("name", SCENARIOS)
def test_transcript(name: str, zig: Compiled, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    played, made_with = SCENARIOS[name]

    async def play() -> str:
        async with asyncio.timeout(30) as limit, CompleteServers(tmp_path, seed=zig.directory, **made_with) as cluster:
            cluster.limit = limit
            told = Transcript(cluster)
            await played(cluster, told)
            text = told.text(_title(played))
            cluster.jump(60)  # a home that lives, and whose answer was lost, ends it when nobody reads
        return text

    text = asyncio.run(play())
    file = HERE / f"{name}.txt"
    if request.config.getoption("--write-transcripts", default=False):
        file.write_text(text, encoding="utf-8")
        pytest.skip("written, and not compared: read it before it is kept")
    assert text == file.read_text(encoding="utf-8")


def test_every_transcript_is_played() -> None:
    assert {path.stem for path in HERE.glob("*.txt")} == set(SCENARIOS)
