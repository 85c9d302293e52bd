"""NodeKeeper: performs what ``nodes`` decides, and brings it what Ray says of its nodes, twice a second.

Ray is asked and not heard: what it publishes of nodes is not for programs, and asking costs its head one small answer.
Each server's coming or going is a task of its own, so a machine that is slow to start keeps nobody waiting. When its
node goes meanwhile, the task is cancelled.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace

from everwarm.cluster import Cluster, Place, StartFailed
from everwarm.cluster_config import ClusterConfig
from everwarm.nodes import Bring, Decision, Forget, Node, Nodes, SendAway, Stand

_log = logging.getLogger("everwarm.node_keeper")

#: How often Ray is asked for its nodes.
_LOOK_EVERY_S = 0.5


class NodeKeeper:
    """A server on each of Ray's nodes, for as long as this runs."""

    def __init__(
        self,
        cluster: Cluster,
        config: ClusterConfig,
        *,
        own_node: str,
        look: Callable[[], Awaitable[list[Node]]],
        progress: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``config``: as on this machine, which is the node ``own_node``; without an ``address``, each edge listens at
        its node's. ``look`` asks Ray."""
        self._cluster = cluster
        self._config = config
        self._own_node = own_node
        self._look = look
        #: Hears when servers came or went.
        self.on_changed: Callable[[], object] = lambda: None
        self._progress = progress
        self._clock = clock
        self._nodes = Nodes()
        self._tasks: dict[str, asyncio.Task[str]] = {}  # by server: why it failed, or nothing
        self._keeping: asyncio.Task[None] | None = None

    async def start(self, progress: Callable[[str], None]) -> None:
        """Start the ControlPlane and a server on each node that is there; from then on follow Ray's nodes.

        ``StartFailed`` when none of the first servers came.
        """
        progress("starting the control plane")
        await self._cluster.start_control()
        self._act(self._nodes.saw(await self._look(), self._clock()))
        first = list(self._tasks.values())
        self._keeping = asyncio.create_task(self._keep())
        failures = await _failures(first)
        if not self._cluster.ports:
            raise StartFailed(failures[0] if failures else "Ray has no nodes.")

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                nodes = await self._look()
            except Exception as away:  # whatever Ray's head has: the next look finds out whether it is over
                _log.warning("Ray did not say which nodes there are: %s", away)
                continue
            self._act(self._nodes.saw(nodes, self._clock()))

    async def stop(self) -> None:
        """Nothing comes or goes any more, and all roles and their processes end."""
        tasks = [*self._tasks.values(), *([self._keeping] if self._keeping else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._cluster.stop()

    # ---------------------------------------------------------------------------------------- what somebody asks for

    async def add(self, progress: Callable[[str], None]) -> str:
        """Call back the servers that stand aside: their names. ``StartFailed`` when there are none."""
        back = self._nodes.call_back()
        if not back:
            raise StartFailed("Every node has its server. Another one comes with: ray start --address")
        progress(f"starting {', '.join(back)}")
        self._act(self._nodes.saw(await self._look(), self._clock()))
        failures = await _failures([self._tasks[server] for server in back if server in self._tasks])
        if failures:
            raise StartFailed(failures[0])
        return ", ".join(back)

    async def remove(self, server: str, progress: Callable[[str], None]) -> str:
        """Have a server leave, and its node stay without one until it is called back; its name. ``StartFailed``."""
        here = sorted(name for name in self._cluster.places if self._nodes.stand(name) is Stand.HERE)
        if server not in here:
            raise StartFailed(f"There is no server {server}; there are {', '.join(here)}.")
        if len(here) == 1:
            raise StartFailed(f"{server} is the last one. End the cluster with: everwarm down")
        going = self._nodes.dismiss(server)
        assert going is not None, "it is here"
        failures = await _failures([self._begin(server, self._send_away(server, progress))])
        if failures:
            raise StartFailed(failures[0])
        return server

    # ----------------------------------------------------------------------------------------------- what is decided

    def _act(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            _log.info("%s", decision)
            if isinstance(decision, Bring):
                self._begin(decision.server, self._bring(decision))
            elif isinstance(decision, SendAway):
                self._begin(decision.server, self._send_away(decision.server, self._progress))
            else:
                before = self._tasks.get(decision.server)
                if before is not None:
                    before.cancel()  # it comes to nothing any more, and might wait for long
                self._begin(decision.server, self._forget(decision))

    def _begin(self, server: str, work: Coroutine[object, None, str]) -> "asyncio.Task[str]":
        """Start ``work`` on a server, when what is under way there is over."""
        before = self._tasks.get(server)

        async def after() -> str:
            if before is not None:
                await asyncio.wait([before])
            return await work

        def done(task: "asyncio.Task[str]") -> None:
            if self._tasks.get(server) is task:
                del self._tasks[server]
            if not task.cancelled() and task.exception() is not None:
                _log.error("what was to be done with %s failed", server, exc_info=task.exception())

        task = self._tasks[server] = asyncio.create_task(after())
        task.add_done_callback(done)
        return task

    async def _bring(self, bring: Bring) -> str:
        server = bring.server
        self._progress(f"starting {server}")
        try:
            await self._cluster.bring(server, self._place(bring.node))
        except Exception as failed:
            if not isinstance(failed, StartFailed):
                _log.exception("%s did not start", server)
            self._progress(str(failed))
            self._nodes.failed(server, self._clock())
            return str(failed)
        self._nodes.came(server)
        self._progress(f"{server} is a member")
        self.on_changed()
        return ""

    async def _send_away(self, server: str, progress: Callable[[str], None]) -> str:
        try:
            await self._cluster.remove(server, progress)
        except StartFailed as last:
            # The last server of a cluster whose node goes: it ends with its node.
            progress(str(last))
            return str(last)
        self._nodes.left(server)
        self.on_changed()
        return ""

    async def _forget(self, forget: Forget) -> str:
        self._progress(f"the node of {forget.server} is gone")
        await self._cluster.forget(forget.server)
        self.on_changed()
        return ""

    def _place(self, node: Node) -> Place:
        """What a server on a node is told: on other machines the state directory is their own."""
        config = replace(
            self._config,
            home=self._config.home if node.node_id == self._own_node else "",
            address=self._config.address or node.address,
            line_address=node.address,
            edges=tuple({*self._nodes.addresses, node.address}),
        )
        return Place(config, self._config.port, node.node_id)


async def _failures(tasks: Sequence["asyncio.Task[str]"]) -> list[str]:
    """Why those of ``tasks`` failed that did, when all are over. One that was cancelled was about a node that went."""
    if tasks:
        await asyncio.wait(tasks)
    return [task.result() for task in tasks if not task.cancelled() and task.result()]
