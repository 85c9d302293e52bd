"""What the cluster says of itself, on its head: a line of JSON for each change, until stdin's end.

    python watch.py        with the packages of the head itself

Four times a second each of these is asked, by itself, so that one that hangs hides nothing of the others: the
ControlPlane for its members, Ray for its nodes, the owner for the roles' processes. A line has ``pid`` when it is about
a process.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from ray.exceptions import RayError

from everwarm.answers import EverwarmError
from everwarm.async_client import AsyncClient
from everwarm.client import connect_async
from everwarm.home import Home
from everwarm.owner import OrderFailed, ask_roles
from everwarm.ray_driver import ray_nodes

_EVERY_S = 0.25
_ANSWER_S_MAX = 2.0

#: State and process by whom it is about.
States = Mapping[str, tuple[str, int | None]]


class Watch:
    """Says what changed."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._home = Home.open()

    async def run(self) -> None:
        """For ever."""
        await asyncio.gather(
            self._follow("ring", self._members),
            self._follow("ray", self._nodes),
            self._follow("owner", self._roles),
        )

    async def _follow(self, by: str, ask: Callable[[], Awaitable[States]]) -> None:
        known: dict[str, tuple[str, int | None]] = {}
        while True:
            now: States | None = None
            # Whoever was asked may be away; the others say why.
            with suppress(EverwarmError, OrderFailed, RayError, RuntimeError, TimeoutError):
                now = await asyncio.wait_for(ask(), _ANSWER_S_MAX)
            if now is not None:
                gone = "gone" if by == "ray" else "forgotten"
                states = {**dict.fromkeys(known.keys() - now.keys(), (gone, None)), **now}
                for of, (state, pid) in states.items():
                    if known.get(of) != (state, pid):
                        print(json.dumps({"at_s": time.monotonic(), "by": by, "of": of, "state": state, "pid": pid}))
                sys.stdout.flush()
                known = dict(states)
            await asyncio.sleep(_EVERY_S)

    async def _members(self) -> States:
        return {m["server"]: (m["state"], None) for m in (await self._client.members())["members"]}

    async def _nodes(self) -> States:
        return {node.address: ("alive", None) for node in await asyncio.to_thread(ray_nodes)}

    async def _roles(self) -> States:
        roles = await asyncio.to_thread(ask_roles, self._home)
        return {of: (str(role["state"]), role["pid"]) for of, role in roles.items() if "pid" in role}


async def main() -> None:
    """Until stdin's end."""
    watching = asyncio.create_task(Watch(connect_async()).run())
    over = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait({watching, over}, return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()


if __name__ == "__main__":
    asyncio.run(main())
