"""Fill a worker's home until it refuses, and see that nobody notices.

Start a cluster with the example workers first (``./dev serve``), then::

    python examples/provoke_refusal.py

The home is allowed four requests of other servers at a time, and four slow ones (``stream``) take those places. The
next request to the same home is refused there; the server it came through runs it itself, with its own isolate, and
does not ask again as long as that isolate lives. When the slow ones are over, the home has room again.
"""

import asyncio
import sys

import everwarm

PLACES = 4


async def main() -> int:
    async with everwarm.connect_async() as cluster:
        homes = {w: h for c in (await cluster.statistics()).values() for w, h in c.get("homes", {}).items()}
        if "stream" not in homes or "echo" not in homes:
            print("The example workers are not deployed: start the cluster with ./dev serve")
            return 1
        home = homes["stream"]
        through = next(server for server in cluster.servers if server != home)
        # A worker that has the same home as the slow one, so that it meets the same full house.
        fast = next((w for w in ("hello", "echo", "slow-start", "silent") if homes.get(w) == home), "stream")
        path = "/?chunks=1" if fast == "stream" else "/"
        print(f"slow requests go to stream at home {home}, fast ones to {fast}; all come through {through}")

        await cluster.configure_admission(home, in_flight_max=PLACES)
        try:
            before = await cluster.fetch(fast, path, server=through)
            print(f"before:  {_told(before)}")
            slow = [
                asyncio.create_task(cluster.fetch("stream", "/?chunks=4&interval_ms=500", server=through))
                for _ in range(PLACES)
            ]
            await _until_full(cluster, home)
            for i in range(3):
                print(f"full:    {_told(await cluster.fetch(fast, f'{path}', server=through))}  ({i + 1})")
            for answer in await asyncio.gather(*slow):
                print(f"slow:    {_told(answer)}")
        finally:
            await cluster.configure_admission(home, in_flight_max=128)
        counted = (await cluster.statistics())[f"{through}/server"]
        print(f"{through}: {counted['sharded']}, sticky refusals: {counted['sticky_refusals']}")
    return 0


async def _until_full(cluster: everwarm.AsyncClient, home: str) -> None:
    """Wait until the slow requests are in work at home, wherever they are by then."""
    for _ in range(200):
        if (await cluster.statistics())[f"{home}/shard"]["in_flight"] >= PLACES:
            return
        await asyncio.sleep(0.01)
    raise everwarm.EverwarmError(f"{home} did not fill up")


def _told(answer: everwarm.Response) -> str:
    return (
        f"{answer.status} {answer.outcome}, ran on {answer.server} ({answer.start_type}), home {answer.home},"
        f" {'hop' if answer.hop else 'no hop'}{', refused: ' + answer.refused if answer.refused else ''}"
    )


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except everwarm.EverwarmError as wrong:
        sys.exit(f"{wrong}")
