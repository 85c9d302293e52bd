"""What a driver asks a Server for directly: in one call, in pieces, and not to the end."""

import pytest
from complete_servers import CompleteServers, Play, request

from actors.capability import ExportsFull
from actors.view import decode_plain
from actors.wire import CHUNK, REQUEST, SERVED
from isolates.outcome import Outcome


def test_a_drivers_request_in_one_call_and_in_pieces(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        for home in (1, 2):
            worker = await cluster.deploy_at(home, "echo")
            data = bytes(50_000)
            asked = request(worker, method="POST", body_first=data)
            plain = decode_plain(await cluster[1].server.calls["submit"](REQUEST.encode(asked)))
            assert SERVED.decode(plain["served"]).server == f"server-{home}"
            chunk = CHUNK.decode(plain["chunk"])
            body = chunk.data
            while chunk.ended is None:
                chunk = CHUNK.decode(await cluster[1].server.calls["read_submitted"](plain["rest"]))
                body += chunk.data
            assert (body, chunk.ended.outcome, chunk.end) == (data, Outcome.OK, True)

    play(scenario)


@pytest.mark.parametrize("home", [1, 2])
def test_a_driver_that_does_not_want_the_rest(play: Play, home: int) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(home, "stream")
        asked = request(worker, "/?chunks=10000&interval_ms=5")
        plain = decode_plain(await cluster[1].server.calls["submit"](REQUEST.encode(asked)))
        assert plain["rest"] is not None
        await cluster[1].server.calls["cancel_submitted"](plain["rest"])
        late = CHUNK.decode(await cluster[1].server.calls["read_submitted"](plain["rest"]))
        assert late.lost

    play(scenario)


@pytest.mark.parametrize("home", [1, 2])
def test_a_drivers_answer_that_cannot_be_lent_is_ended(play: Play, home: int) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(home, "stream")
        cluster[1].server._submissions._out.OUT_MAX = 0
        with pytest.raises(ExportsFull):
            await cluster[1].server.calls["submit"](REQUEST.encode(request(worker, "/?chunks=10000&interval_ms=5")))

    play(scenario)
