"""Joining, leaving and being lost, on complete servers in one process: who is asked to start what, and who is cold."""

import asyncio
import itertools
from collections import Counter
from typing import Any

import pytest
from complete_servers import CompleteServers, Play, Scenario, component, request, wait_until

from actors.handover import HandedOver, HandoverLimits, hand_over
from actors.membership import MembershipLimits
from actors.peer import PeerLost
from actors.ring import Ring, worker_key
from actors.view import decode_plain, encode_plain
from actors.worker import Limits, Plan, Version

SECRET = b"0123456789abcdef"
TWO = ["server-1", "server-2"]
THREE = [*TWO, "server-3"]
MOVES = 4  # from each of the two, to server 3 or nowhere
OF_EACH_MOVE = 3


@pytest.fixture
def play_on_two_of_three(play: Play) -> Play:
    """Play a scenario on a cluster of three, of which the third has left again."""

    def run(scenario: Scenario) -> None:
        async def without_the_third(cluster: CompleteServers) -> None:
            await cluster.control.leave(encode_plain({"server": "server-3"}))
            await scenario(cluster)

        play(without_the_third, servers=3)

    return run


async def deploy_and_warm(cluster: CompleteServers) -> list[str]:
    """Workers that have been asked at their homes: as many of each that server 3 takes over or leaves alone."""
    two, three = (Ring(0, dict.fromkeys(names, 1), cluster.control._catalog.cluster_secret()) for names in (TWO, THREE))
    names: list[str] = []
    taken: Counter[tuple[str | None, str | None]] = Counter()
    for i in itertools.count():
        move = two.home_of(worker_key("default", f"w-{i}")), three.home_of(worker_key("default", f"w-{i}"))
        if taken[move] < OF_EACH_MOVE:
            taken[move] += 1
            names.append(f"w-{i}")
        if len(names) == MOVES * OF_EACH_MOVE:
            break
    for name in names:
        job = await cluster.deploy(name, component("hello"), cpu_ms=10_000)
        assert job["error"] is None, job
        assert await ask(cluster, name) in ("cold", "preload")
    return names


async def ask(cluster: CompleteServers, worker: str) -> str:
    """One request through server 1, and how its isolate was started."""
    got = await cluster[1].ask(request(worker))
    assert got.served is not None, got.ended
    return got.served.start_type


async def join(cluster: CompleteServers) -> None:
    late = cluster[3]
    answer = decode_plain(await cluster.control.join(encode_plain({"server": late.name, "weight": 1})))
    assert answer["state"] == "member"
    await late.server.sync()


async def members(cluster: CompleteServers) -> dict[str, Any]:
    plain: dict[str, Any] = decode_plain(await cluster.control.members())
    return plain


def homes(cluster: CompleteServers, workers: list[str]) -> dict[str, str | None]:
    return {worker: cluster[1].server._view.home_of(worker) for worker in workers}


def membership_colds(cluster: CompleteServers) -> int:
    counts = [machine.host.statistics()["cold_starts"] for machine in cluster.machines]
    return sum(count.get("membership", 0) for count in counts if isinstance(count, dict))


def test_what_a_newcomer_takes_over_is_warm_before_it_is_home(play_on_two_of_three: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        workers = await deploy_and_warm(cluster)
        before = homes(cluster, workers)
        await join(cluster)
        moved = [worker for worker, home in homes(cluster, workers).items() if home == "server-3"]
        assert moved
        assert {w for w in workers if before[w] != homes(cluster, workers)[w]} == set(moved)
        assert cluster[3].isolates() == len(moved)
        assert (await members(cluster))["handed_over"] == {
            "moved": len(moved), "warm": len(moved), "failed": 0, "late": 0
        }  # fmt: skip
        for worker in workers:
            assert await ask(cluster, worker) != "cold"
        assert membership_colds(cluster) == 0

    play_on_two_of_three(scenario)


def test_what_a_leaver_gives_up_is_warm_before_it_goes(play_on_two_of_three: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        await join(cluster)
        workers = await deploy_and_warm(cluster)
        before = homes(cluster, workers)
        answer = decode_plain(await cluster.control.leave(encode_plain({"server": "server-3"})))
        assert answer["state"] == "gone"
        assert (await cluster[3].shard_statistics())["draining"]
        after = homes(cluster, workers)
        assert {w for w in workers if before[w] != after[w]} == {w for w in workers if before[w] == "server-3"}
        for worker in workers:
            assert await ask(cluster, worker) != "cold"
        assert membership_colds(cluster) == 0

    play_on_two_of_three(scenario)


def test_a_drain_waits_for_what_runs(play_on_two_of_three: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        await join(cluster)
        worker = await cluster.deploy_at(3, "stream")
        answer = await cluster[1].begin(request(worker, "/?chunks=40&interval_ms=10"))
        assert await answer.served() is not None
        leaving = asyncio.create_task(cluster.control.leave(encode_plain({"server": "server-3"})))

        async def draining() -> bool:
            return bool((await cluster[3].shard_statistics())["draining"])

        await wait_until(draining, "draining")
        assert not leaving.done()
        lines = b""
        while (data := await answer.read()) is not None:
            lines += data
        assert answer.whole
        assert lines.count(b"\n") == 40
        assert (await answer.ended()).outcome.value == "ok"
        await leaving

    play_on_two_of_three(scenario)


def test_a_newcomer_that_cannot_be_warmed_becomes_home_all_the_same(play_on_two_of_three: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        workers = await deploy_and_warm(cluster)
        before = homes(cluster, workers)
        lost = cluster.lose("server-3/server", "warm_up", delivered=None)
        await join(cluster)
        assert lost.lost == 1
        after = homes(cluster, workers)
        # Where server 1 was the home before, it has a warm isolate still, and its own requests go on using it.
        moved = [worker for worker in workers if (before[worker], after[worker]) == ("server-2", "server-3")]
        assert moved
        assert {await ask(cluster, worker) for worker in moved} == {"cold"}
        assert membership_colds(cluster) == len(moved)  # and the counters say why
        for worker in workers:
            assert await ask(cluster, worker) == "warm"

    play_on_two_of_three(scenario)


def test_a_server_that_cannot_be_reached_is_out_of_the_ring(play_on_two_of_three: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        gone = {role: cluster.peers.known.pop(f"server-2/{role}") for role in ("server", "shard")}
        await cluster.deploy("hello", component("hello"))

        async def alone() -> bool:
            return (
                cluster[1].server._view.home_of("hello") == "server-1" and len((await members(cluster))["servers"]) == 1
            )

        await wait_until(alone, "server 2 is lost")
        (lost,) = [m for m in (await members(cluster))["members"] if m["state"] == "lost"]
        assert (lost["server"], lost["why"]) == ("server-2", "lacks code")
        for role, peer in gone.items():
            cluster.peers.known[f"server-2/{role}"] = peer
        beat = {"server": "server-2", "weight": 1, "hosts": 1, "epoch": 0}
        await cluster.control.calls["heartbeat"](encode_plain(beat))

        async def back() -> bool:
            return len((await members(cluster))["servers"]) == 2

        await wait_until(back, "server 2 is back")

    play_on_two_of_three(scenario)


def test_one_broken_call_is_not_a_loss(play_on_two_of_three: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        lost = cluster.lose("server-2/server", "apply_change", delivered=None)
        epoch = (await members(cluster))["epoch"]
        await cluster.deploy("hello", component("hello"))
        assert lost.lost
        await cluster.settled()
        assert (await members(cluster))["epoch"] == epoch

    play_on_two_of_three(scenario)


def test_a_beat_finds_out_what_was_missed(play_on_two_of_three: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        here = cluster.peers.known["server-2/server"]
        cluster.lose("server-2/server", "apply_ring", delivered=False)
        await join(cluster)
        cluster.peers.known["server-2/server"] = here
        second = cluster[2].server
        epoch = (await members(cluster))["epoch"]
        assert second._view.epoch < epoch
        beats = second.heartbeat(1)
        await beats.beat()

        async def caught_up() -> bool:
            return second._view.epoch == epoch

        await wait_until(caught_up, "the ring was told again")
        cluster.lose("server-2/server", "apply_change", delivered=False)
        await cluster.deploy("hello", component("hello"))
        assert "hello" not in second._view.workers
        await beats.beat()
        await beats.beat()  # one may have been overtaken by the news; two are a gap
        assert "hello" in second._view.workers

    play_on_two_of_three(scenario)


def test_a_cordon_without_hosts_is_refused_before_anything_is_done(play_on_two_of_three: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        def order(cordon: str) -> bytes:
            plain = {"name": "hello", "plan": "paid", "limits": {}, "component": component("hello"), "author": "a test"}
            return encode_plain({**plain, "cordon": cordon})

        cluster.no_hosts = "cordon: nobody starts host processes"
        for cordon, said in (("partners", cluster.no_hosts), ("No/such", "cordon: must match"), ("@a", "alone")):
            begun = decode_plain(await cluster.control.deploy(order(cordon)))
            job: dict[str, Any] = {}

            async def done(begun: dict[str, Any] = begun, job: dict[str, Any] = job) -> bool:
                job |= decode_plain(await cluster.control.deploy_progress(encode_plain(begun)))
                return bool(job["done"])

            await wait_until(done, "refused")
            assert said in job["error"]["message"]
        assert cluster[1].server._view.workers == {}

    play_on_two_of_three(scenario)


# ----------------------------------------------------------------------------------------- the ControlPlane's end alone


def a_version(i: int) -> Version:
    return Version(f"w-{i}", f"{i:016x}", "ab" * 32, Limits.for_plan(Plan.PAID), Plan.PAID, 1_000, "ada")


class Said:
    """Servers that answer from a script, and what they were told."""

    def __init__(self, hottest: dict[str, list[list[object]]], silent: tuple[str, ...] = ()) -> None:
        self.hottest = hottest
        self.silent = silent
        self.warmed: dict[str, list[str]] = {}

    async def call(self, server: str, method: str, payload: bytes) -> bytes:
        if f"{server} {method}" in self.silent:
            await asyncio.Event().wait()
        if server not in self.hottest and method == "hottest":
            raise PeerLost(server, delivered=False)
        if method == "hottest":
            return encode_plain(self.hottest[server])
        versions = [plain["version_id"] for plain in decode_plain(payload)["versions"]]
        self.warmed[server] = versions
        return encode_plain({"warm": len(versions), "failed": 0, "late": 0})

    def play(self, within_s: float = 1.0, limits: HandoverLimits = HandoverLimits()) -> HandedOver:  # noqa: B008
        known = {version.version_id: version for version in map(a_version, range(20))}
        return asyncio.run(
            hand_over(
                self.call, known.get, before=["a", "b"], after={"a": 1, "b": 1, "c": 1, "d": 1}, secret=SECRET,
                within_s=within_s, limits=limits,
            )
        )  # fmt: skip


def v(i: int) -> str:
    return f"{i:016x}"


def test_the_hottest_of_all_old_homes_come_first() -> None:
    said = Said({"a": [[v(1), "c", 5.0], [v(2), "c", 1.0]], "b": [[v(3), "c", 3.0], [v(4), "d", 0.0]]})
    assert said.play() == HandedOver(moved=4, warm=4)
    assert said.warmed == {"c": [v(1), v(3), v(2)], "d": [v(4)]}


def test_a_new_home_is_asked_for_so_many_and_not_more() -> None:
    said = Said({"a": [[v(i), "c", float(-i)] for i in range(9)], "b": []})
    said.play(limits=HandoverLimits(gained_max=3))
    assert said.warmed == {"c": [v(0), v(1), v(2)]}


def test_a_version_that_nobody_knows_any_more_is_left_out() -> None:
    said = Said({"a": [["f" * 16, "c", 1.0], [v(1), "c", 0.5]], "b": []})
    assert said.play() == HandedOver(moved=2, warm=1)


def test_who_is_away_or_hangs_holds_nobody_up() -> None:
    said = Said({"a": [[v(1), "c", 1.0], [v(2), "d", 1.0]]}, silent=("c warm_up",))
    assert said.play(within_s=0.2) == HandedOver(moved=2, warm=1)
    said = Said({"a": [], "b": []}, silent=("a hottest", "b hottest"))
    assert said.play(within_s=0.2) == HandedOver()


def test_the_bounds_fit_each_other() -> None:
    limits, times = HandoverLimits(), MembershipLimits()
    assert limits.start_s_max < times.warm_s_max
    assert 2 * limits.asking_s_max < times.warm_s_max


def test_whom_nobody_will_start_is_not_looked_up() -> None:
    """Three hundred old homes name half a thousand each, and the catalog is asked on the ControlPlane's one thread."""
    said = Said({"a": [[v(i), "c", float(-i)] for i in range(9)], "b": []})
    looked_up: list[str] = []

    def version(version_id: str) -> Version:
        looked_up.append(version_id)
        return a_version(int(version_id, 16))

    done = asyncio.run(
        hand_over(
            said.call, version, before=["a", "b"], after={"a": 1, "b": 1, "c": 1}, secret=SECRET, within_s=1.0,
            limits=HandoverLimits(gained_max=3),
        )
    )  # fmt: skip
    assert done == HandedOver(moved=9, warm=3)
    assert looked_up == [v(0), v(1), v(2)]
