"""A home that is lost with a request, before it has begun, after, and in the middle of its answer."""

import pytest
from complete_servers import CompleteServers, Play, request, upload

from isolates.outcome import Outcome


def test_an_unreachable_home_is_not_remembered(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        there = cluster.peers.known.pop("server-2/shard")
        for _ in range(2):
            got = await cluster[1].ask(request(worker, method="POST"))
            assert got.served is not None
            assert (got.served.server, got.served.hop) == ("server-1", False)
            await cluster.make_cold(1, worker)
        cluster.peers.known["server-2/shard"] = there
        got = await cluster[1].ask(request(worker))
        assert got.served is not None
        assert got.served.server == "server-2"
        assert (await cluster[1].sharded())["lost"] == 2

    play(scenario)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("method", "outcome"),
    [("GET", Outcome.OK), ("PUT", Outcome.OK), ("POST", Outcome.HOME_LOST), ("PATCH", Outcome.HOME_LOST)],
)
def test_a_home_lost_after_delivery(play: Play, method: str, outcome: Outcome, after: bool) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        cluster.lose("server-2/shard", "serve", delivered=None, after=after)
        got = await cluster[1].ask(request(worker, method=method, body_first=b"all of it"))
        assert got.ended.outcome is outcome
        if outcome is Outcome.OK:
            assert got.served is not None
            assert got.served.server == "server-1"
        else:
            assert (got.served, got.body, cluster[1].isolates()) == (None, b"", 0)
        cluster.jump(60)  # a home that lives and whose answer was lost ends it, since nobody reads

    play(scenario)


def test_a_home_lost_while_it_reads_an_upload_is_not_repeated(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "echo")
        cluster.lose("server-2/shard", "serve", delivered=None, after=True)
        fields, rest = upload(bytes(200_000))
        got = await cluster[1].ask(request(worker, "/?digest", "PUT", **fields), rest)
        assert got.ended.outcome is Outcome.HOME_LOST
        assert cluster[1].isolates() == 0
        cluster.jump(60)

    play(scenario)


def test_a_home_lost_in_the_middle_of_its_answer(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "stream")
        cluster.lose("server-2/shard", "read_response", delivered=None)
        answer = await cluster[1].begin(request(worker, "/?chunks=3&interval_ms=50"))
        assert await answer.served() is not None
        while await answer.read() is not None:
            pass
        assert not answer.whole  # a client must never see a clean end here
        assert (await answer.ended()).outcome is Outcome.HOME_LOST
        cluster.jump(60)  # who believes its home lost cannot tell it; the home sees that nobody reads

    play(scenario)
