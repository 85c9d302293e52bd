"""What one tree may use of the world, on complete servers: real guests on several machines, and a real origin."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from complete_servers import Compiled, CompleteServers, request
from request_trees import bound

from isolates.conversation import RequestHead

Play = Callable[[Callable[[CompleteServers, "HeldOrigin"], Awaitable[None]], int], None]


class HeldOrigin:
    """Answers ``hello`` to all, and those that ask for ``/held`` not before ``go`` is set. ``open``: how many wait for
    that, ``most``: how many did at once."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.open = self.most = 0
        self.asked: Counter[str] = Counter()
        self.changed = asyncio.Condition()

    async def __aenter__(self) -> "HeldOrigin":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.at = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)

    async def _note(self, path: str, open_: int) -> None:
        async with self.changed:
            self.open += open_
            self.most = max(self.most, self.open)
            self.asked[path] += open_ >= 0
            self.changed.notify_all()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].decode()
                await self._note(path, int(path == "/held"))
                if path == "/held":
                    await self.go.wait()
                    await self._note("", -1)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever asked is gone
        finally:
            writer.close()


@pytest.fixture
def play(zig: Compiled, tmp_path: Path) -> Play:
    def run(scenario: Callable[[CompleteServers, HeldOrigin], Awaitable[None]], servers: int) -> None:
        async def whole() -> None:
            async with (
                asyncio.timeout(30),
                HeldOrigin() as origin,
                CompleteServers(tmp_path, servers, zig.directory, egress_allow=(origin.at,)) as cluster,
            ):
                await scenario(cluster, origin)

        asyncio.run(whole())

    return run


async def asked(cluster: CompleteServers, worker: str, *urls: str) -> bytes:
    """What a ``fetch`` says that asks for all of these at once."""
    head = RequestHead("GET", "https", f"{worker}.localhost", "/", (("fetch-url", " ".join(urls).encode()),))
    asking = request(worker)
    return (await cluster[1].ask(type(asking)(asking.request_id, worker, head, ""))).body


def test_six_are_open_on_all_machines_together(play: Play) -> None:
    async def scenario(cluster: CompleteServers, origin: HeldOrigin) -> None:
        far, farther = await cluster.deploy_at(2, "fetch"), await cluster.deploy_at(3, "fetch")
        for zig, home in ((far, 2), (farther, 3)):
            assert cluster[1].server._view.home_of(zig) == f"server-{home}"
        root = await cluster.deploy_at(1, "fetch", bound(far=far, farther=farther))
        held = f"?url=http://{origin.at}/held&hold=5"
        urls = [f"http://{name}.binding.internal/{held}" for name in ("far", "farther")]
        asking = asyncio.create_task(asked(cluster, root, *urls))
        await origin.until(lambda: origin.open == 6)
        origin.go.set()
        assert sorted(await asking) == sorted(b"0 200 4\n1 200 4\n")
        assert origin.most == 6
        assert origin.asked["/held"] == 12, "each of the two had its five, and one more"

    play(scenario, 3)


def test_a_callee_does_not_wait_for_places_of_its_caller(play: Play) -> None:
    """The root has all of them, and lets go of none before its callees have answered."""

    async def scenario(cluster: CompleteServers, origin: HeldOrigin) -> None:
        far = await cluster.deploy_at(2, "fetch")
        root = await cluster.deploy_at(1, "fetch", bound(far=far))
        calls = [f"http://far.binding.internal/?url=http://{origin.at}/{i}" for i in "ab"]
        asking = asyncio.create_task(asked(cluster, root, *[f"http://{origin.at}/held"] * 4, *calls))
        await origin.until(lambda: bool(origin.asked["/a"] and origin.asked["/b"]))
        assert origin.open >= 3
        origin.go.set()
        assert (await asking).count(b" 200 5\n") == 6

    play(scenario, 2)


def test_a_callee_may_fetch_as_often_as_its_tree_not_as_its_share(play: Play) -> None:
    async def scenario(cluster: CompleteServers, origin: HeldOrigin) -> None:
        far = await cluster.deploy_at(2, "fetch")
        root = await cluster.deploy_at(1, "fetch", bound(far=far), subrequests_max=40)
        for times, last in ((30, b"30\n"), (60, b"39 HTTP-request-denied\n")):
            origin.asked.clear()
            url = f"http://far.binding.internal/?url=http://{origin.at}/x&times={times}"
            assert await asked(cluster, root, url) == last
            assert origin.asked["/x"] == int(last.split()[0])

    play(scenario, 2)


def test_a_tree_on_one_machine_has_six_as_well(play: Play) -> None:
    async def scenario(cluster: CompleteServers, origin: HeldOrigin) -> None:
        near = await cluster.deploy_at(1, "fetch")
        root = await cluster.deploy_at(1, "fetch", bound(near=near))
        calls = [f"http://near.binding.internal/?url=http://{origin.at}/held&hold=4"] * 2
        asking = asyncio.create_task(asked(cluster, root, *calls))
        await origin.until(lambda: origin.open == 6)
        origin.go.set()
        assert (await asking).count(b" 200 4\n") == 2
        assert origin.most == 6

    play(scenario, 1)
