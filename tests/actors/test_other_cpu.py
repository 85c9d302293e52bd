"""A machine whose CPU is another one: it is told apart by name, alone, and the others go on.

The other machine is a real CodeKeeper in a process that is told to compile for another level; the rest is complete
servers in this process.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from complete_servers import Compiled, CompleteServers, component, request, wait_until

from actors.peer import Peer
from actors.view import decode_plain, encode_plain
from isolates.cpu import SETTING
from isolates.outcome import Outcome

_ASK = (
    "import asyncio, sys; from pathlib import Path; from actors.code_keeper import CodeKeeper;"
    "sys.stdout.buffer.write(asyncio.run(CodeKeeper(Path(sys.argv[1])).engine(b'')))"
)


class OtherCpu:
    """A server as it is but for its code, which another process keeps."""

    def __init__(self, inner: Peer, directory: Path) -> None:
        self._inner = inner
        self._directory = directory

    async def call(self, method: str, payload: bytes = b"") -> bytes:
        return await asyncio.to_thread(self._engine) if method == "engine" else await self._inner.call(method, payload)

    def _engine(self) -> bytes:
        asked = [sys.executable, "-c", _ASK, str(self._directory)]
        return subprocess.run(asked, env={**os.environ, SETTING: "x86-64"}, capture_output=True, check=True).stdout


def test_a_machine_with_another_cpu_is_named_and_the_others_serve(zig: Compiled, tmp_path: Path) -> None:
    async def scenario() -> None:
        made = CompleteServers(tmp_path / "cluster", 2, zig.directory)
        own = made.peers.known["server-2/server"]
        made.peers.known["server-2/server"] = OtherCpu(own, tmp_path / "other")
        async with asyncio.timeout(30), made as cluster:
            told = decode_plain(await cluster.control.members())
            (apart,) = [member for member in told["members"] if member["server"] == "server-2"]
            assert apart["state"] == "lost"
            assert "for x86-64 (settings" in apart["why"]
            assert "code here is compiled by wasmtime" in apart["why"]
            assert "for x86-64-v2 (settings" in apart["why"]
            job = await cluster.deploy("hello", component("hello"))
            assert job["error"] is None
            assert job["result"]["late"] == ["server-2"]
            assert job["result"]["why_late"] == {"server-2": apart["why"]}
            got = await cluster[1].ask(request("hello"))
            assert (got.ended.outcome, got.body[:5]) == (Outcome.OK, b"hello")
            # The operator gives it the cluster's level, and it is one of them with its next beat.
            cluster.peers.known["server-2/server"] = own
            beat = {"server": "server-2", "weight": 1, "hosts": 1, "epoch": 0}

            async def member() -> bool:
                await cluster.control.calls["heartbeat"](encode_plain(beat))
                return "server-2" in decode_plain(await cluster.control.members())["servers"]

            await wait_until(member, "server 2 is a member")
            job = await cluster.deploy("hello", component("echo"))
            assert job["result"]["late"] == []

    asyncio.run(scenario())
