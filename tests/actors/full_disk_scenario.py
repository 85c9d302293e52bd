"""Complete servers on file systems that are really full. A program: it runs in a mount namespace of its own, where it
puts small file systems in the place of two directories, and nothing of them is left when it ends.

    unshare --mount python full_disk_scenario.py DIRECTORY

Prints what it saw as one JSON object; ``test_full_disk.py`` says what that has to be.
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from complete_servers import CompleteServers, Machine, component, request, wait_until

from actors.catalog import Catalog, CatalogError
from actors.exchange import status_of
from actors.stores import ORDER, TOLD, StoreOrder
from actors.view import decode_plain, encode_plain
from isolates.artifact import ArtifactStore
from isolates.stores import StoreAsked

#: A component of Zig takes 70 KB here, and the ControlPlane's databases 300.
_DISK = "size=2m,mode=700"


class Disk:
    """A small file system, and what fills it."""

    def __init__(self, at: Path) -> None:
        at.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", _DISK, "full-disk-test", str(at)], check=True)
        self._filler = at / "filler"

    def fill(self) -> None:
        """Until nothing more goes in, down to single bytes."""
        with self._filler.open("ab", buffering=0) as filler:
            for size in (65_536, 4_096, 1):
                try:
                    while True:
                        filler.write(bytes(size))
                except OSError:
                    continue

    def make_room(self, room_bytes: int | None = None) -> None:
        """So much, or all of it."""
        if room_bytes is None:
            self._filler.unlink()
        else:
            os.truncate(self._filler, self._filler.stat().st_size - room_bytes)


class Scenario:
    """What happens, and what was seen of it."""

    def __init__(self, cluster: CompleteServers, of_server_2: Disk, of_head: Disk) -> None:
        self.cluster = cluster
        self.of_server_2 = of_server_2
        self.of_head = of_head
        self.saw: dict[str, Any] = {}
        self._numbers = itertools.count(1)

    def name_at(self, home: str) -> str:
        """A name whose home is that server while both are in the ring."""
        view = self.cluster[1].server._view
        return next(name for i in self._numbers if view.home_of(name := f"worker-{i}") == home)

    async def ask(self, machine: Machine, worker: str, times: int = 1) -> list[tuple[int, str]]:
        """Statuses, and the servers that answered."""
        got = [await machine.ask(request(worker)) for _ in range(times)]
        return [
            (g.served.status, g.served.server) if g.served else (status_of(g.ended.outcome).status, "") for g in got
        ]

    async def member(self, server: str) -> dict[str, Any]:
        told = decode_plain(await self.cluster.control.members())
        found: dict[str, Any] = next(member for member in told["members"] if member["server"] == server)
        return {**found, "home": server in told["servers"]}

    async def beat(self, server: str) -> None:
        epoch = self.cluster[1].server._view.epoch
        beat = {"server": server, "weight": 1, "hosts": 1, "epoch": epoch}
        await self.cluster.control.calls["heartbeat"](encode_plain(beat))

    async def is_home(self, server: str) -> None:
        async def home() -> bool:
            await self.beat(server)
            rings = [machine.server._view.ring for machine in self.cluster.machines]
            return all(ring is not None and server in ring.servers for ring in rings)

        await wait_until(home, f"{server} is home again")

    async def of_a_server(self) -> None:
        """The disk of server 2 is full: two deploys, requests at it, and room again."""
        old, new = self.name_at("server-2"), self.name_at("server-2")
        first = await self.cluster.deploy(old, component("hello"))
        self.saw["before"] = (first["error"], await self.ask(self.cluster[2], old))
        self.of_server_2.fill()
        job = await self.cluster.deploy(new, component("echo"))
        self.saw["deployed_while_full"] = (job["error"], job["result"] and job["result"]["why_late"])
        again = await self.cluster.deploy(old, component("silent"))
        back = await self.cluster.deploy(old, component("snapshot"))
        self.saw["deployed_anew_while_full"] = (again["error"], back["error"], back["result"]["late"])
        await self.beat("server-2")
        member = await self.member("server-2")
        self.saw["member_while_full"] = (member["state"], member["home"], member["why"])
        self.saw["asked_while_full"] = {
            "server-1": await self.ask(self.cluster[1], new, 5) + await self.ask(self.cluster[1], old, 5),
            "server-2": await self.ask(self.cluster[2], new, 5) + await self.ask(self.cluster[2], old, 5),
        }
        self.of_server_2.make_room()
        await self.is_home("server-2")
        self.saw["asked_with_room"] = await self.ask(self.cluster[2], new) + await self.ask(self.cluster[2], old)
        self.saw["member_with_room"] = (await self.member("server-2"))["why"]

    async def of_the_head(self) -> None:
        """The ControlPlane's disk is full: deploys, secrets and stores; and room again."""
        serves = self.name_at("server-1")
        await self.cluster.deploy(serves, component("hello"))
        self.of_head.fill()
        new = await self.cluster.deploy(self.name_at("server-1"), component("stream"))
        known = [await self.cluster.deploy(serves, component("hello")) for _ in range(40)]
        refused = [job["error"] for job in known if job["error"]]
        self.saw["deploy_on_full_head"] = new["error"]
        # There is room for the component, and none for what the compile process makes of it.
        self.of_head.make_room(len(component("stream")) + 16_384)
        new = await self.cluster.deploy(self.name_at("server-1"), component("stream"))
        self.saw["deploy_on_nearly_full_head"] = (new["error"], new["phases"][-1][0].partition(",")[0])
        self.of_head.fill()
        self.saw["deploy_of_known_code_on_full_head"] = refused[-1] if refused else None
        self.saw["served_by_full_head"] = await self.ask(self.cluster[1], serves, 3)
        calls = self.cluster.control.calls
        put = {"worker": serves, "name": "KEY", "value": "x" * 4_000, "author": "a test"}
        self.saw["secret_on_full_head"] = decode_plain(await calls["put_secret"](encode_plain(put)))
        self.saw["stores_on_full_head"] = [await self.store("set") for _ in range(40)][-1]
        self.saw["read_of_full_store"] = await self.store("get")
        try:
            Catalog.open(self.cluster.directory / "control" / "catalog.sqlite").close()
            self.saw["catalog_opened_on_full_head"] = ""
        except CatalogError as refusal:
            self.saw["catalog_opened_on_full_head"] = str(refusal)
        self.of_head.make_room()
        job = await self.cluster.deploy(serves, component("stream"))
        self.saw["deploy_with_room"] = job["error"]
        self.saw["secret_with_room"] = decode_plain(await calls["put_secret"](encode_plain(put)))
        self.saw["store_with_room"] = await self.store("set")

    async def store(self, op: str) -> Any:
        number = next(self._numbers)
        asked = StoreAsked(op=op, keys=("a-key",)) if op == "get" else StoreAsked(
            op=op, keys=(f"key-{number}",), values=(os.urandom(60_000),)
        )  # fmt: skip
        told = TOLD.decode(await self.cluster.control.calls["store"](ORDER.encode(StoreOrder("a-store", asked))))
        return told.error

    async def of_a_file(self) -> None:
        """Bytes of a piece on server 2's disk turn: by the same digest it is fetched anew."""
        store = ArtifactStore(self.cluster[2].code)
        worker = self.name_at("server-2")
        job = await self.cluster.deploy(worker, component("tail"))
        digest = job["result"]["component_digest"]
        compiled = store.compiled(digest)
        assert compiled is not None
        piece = store.piece_path(compiled.pieces[0].source_digest)
        whole = piece.read_bytes()

        def flip() -> None:
            at = len(whole) // 2
            piece.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])

        flip()
        again = await self.cluster.deploy(worker, component("tail"))
        self.saw["flipped_then_deployed"] = (again["error"], again["result"]["late"], piece.read_bytes() == whole)
        flip()
        await self.cluster.control.join(encode_plain({"server": "server-2", "weight": 1}))

        self.saw["asked_while_mended"] = await self.ask(self.cluster[2], worker)

        async def mended() -> bool:
            return store.has(digest) and piece.read_bytes() == whole  # the manifest comes last

        await wait_until(mended, "the piece is fetched anew")
        self.saw["flipped_then_joined"] = (store.sound(digest), await self.ask(self.cluster[2], worker))


async def main(directory: Path, of_server_2: Disk, of_head: Disk) -> None:
    async with asyncio.timeout(100), CompleteServers(directory, 2) as cluster:
        scenario = Scenario(cluster, of_server_2, of_head)
        await scenario.of_a_server()
        await scenario.of_the_head()
        await scenario.of_a_file()
    print(json.dumps(scenario.saw))


if __name__ == "__main__":
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    here = Path(sys.argv[1])
    asyncio.run(main(here, Disk(here / "server-2" / "code"), Disk(here / "control")))
