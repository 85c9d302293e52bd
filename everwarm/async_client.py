"""The driver's side for programs with an event loop: ``everwarm.connect_async()``. See ``client``."""

import asyncio
import getpass
import itertools
import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from actors.bindings import NOTHING_BOUND, Bindings
from actors.dispatch import IDEMPOTENT
from actors.exchange import WINDOW_BYTES_MAX, Request, RequestHead
from actors.live_tail import LiveFilter
from actors.peer import Peer, PeerFailed, PeerLost, RayPeers
from actors.view import decode_plain, encode_plain
from actors.wire import CHUNK, REQUEST, SERVED
from everwarm.answers import DeployFailed, Deployment, EverwarmError, Response, response_of
from everwarm.home import Running
from everwarm.live_reader import LiveReader, NotWatched
from tracing.trace import Span
from tracing.wire import Malformed, decode_spans

#: Answers are held whole by ``fetch``; larger ones go over HTTPS.
FETCH_BYTES_MAX = 64 << 20
EVERYTHING = LiveFilter()


class AsyncClient:
    """A connection to a cluster, for programs with an event loop."""

    def __init__(
        self,
        running: Running,
        introduce: Callable[[str], Awaitable[Any]],
        leave: Callable[[], None],
        look: Callable[[], Running | None],
    ) -> None:
        """``introduce``: the handle of a role, by address. ``look``: what the cluster says of itself now."""
        self.running = running
        self._leave = leave
        self._look = look
        self._round_robin = itertools.cycle(sorted(running.servers))
        self._peers = RayPeers(introduce)

    @property
    def servers(self) -> list[str]:
        """The cluster's servers."""
        return sorted(self.running.servers)

    def refresh(self) -> None:
        """See which servers were added or removed since."""
        running = self._look()
        if running is not None and running.servers != self.running.servers:
            self.running = running
            self._round_robin = itertools.cycle(sorted(running.servers))

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster, which runs on."""
        self._leave()

    # ---------------------------------------------------------------------------------------------------- deploys

    async def deploy(
        self,
        name: str,
        component: bytes | Path,
        *,
        plan: str = "free",
        limits: Mapping[str, int] | None = None,
        reuse: Mapping[str, int] | None = None,
        cordon: str = "",
        bindings: Bindings = NOTHING_BOUND,
        routes: Sequence[str] = (),
        namespace: str = "",
        progress: Callable[[str, float], None] | None = None,
    ) -> Deployment:
        """Deploy ``component`` as worker ``name``. ``progress`` hears the phase and the seconds in it.

        ``cordon`` names the group of workers of one trust that it belongs to; groups never share a host process.
        Without one it is in the cordon ``default``, and a namespace's user in that of the namespace's users.
        ``bindings`` is what it may call and open; workers in them may be deployed later (``Deployment.missing``).
        ``routes`` are host names that lead to it beside its own. With a ``namespace`` it is the worker of the user
        ``name`` in that dispatch namespace, ``NAMESPACE/NAME``: it has no host name, and is called by a dispatcher.

        ``reuse`` may have ``max_requests`` and ``idle_s``: after how many requests, and after how many seconds without
        any, an isolate is let go. ``DeployFailed`` says what is wrong with the component or its limits; then nothing
        was changed.
        """
        data = component if isinstance(component, bytes) else await asyncio.to_thread(component.read_bytes)
        order = {
            "name": f"{namespace}/{name}" if namespace else name,
            "plan": plan,
            "limits": dict(limits or {}),
            "reuse": dict(reuse or {}),
            "cordon": cordon,
            "bindings": bindings.to_plain(),
            "routes": list(routes),
            "component": data,
            "author": _author(),
        }
        accepted = decode_plain(await self._control("deploy", encode_plain(order)))
        if "error" in accepted:
            raise DeployFailed(accepted["error"]["code"], accepted["error"]["message"], "")
        while True:
            state = decode_plain(await self._control("deploy_progress", encode_plain({"job": accepted["job"]})))
            if state.get("error"):
                error = state["error"]
                raise DeployFailed(error["code"], error["message"], error.get("advice", ""))
            if state["done"]:
                phases = [(phase, seconds) for phase, seconds in state["phases"] if seconds >= 0.001]
                return Deployment(**state["result"], phases=phases)
            if progress is not None:
                progress(state["phase"], state["in_phase_s"])
            await asyncio.sleep(0.02 if state["in_phase_s"] < 0.5 else 0.2)

    async def remove(self, name: str) -> bool:
        """End a worker's deployment. False when it was not deployed."""
        order = encode_plain({"name": name, "author": _author()})
        return bool(decode_plain(await self._control("remove", order))["removed"])

    async def workers(self) -> list[dict[str, Any]]:
        """What is deployed, by name."""
        found: list[dict[str, Any]] = []
        while True:
            after = found[-1]["deployment"]["worker"] if found else ""
            page = decode_plain(await self._control("list", encode_plain({"after": after})))
            found += page["workers"]
            if not page["more"]:
                return found

    async def describe(self, name: str) -> dict[str, Any] | None:
        """What is deployed of one worker: ``deployed`` as in ``workers``, ``missing``, the workers that it is bound to
        and that are not deployed, and ``unset_secrets``. None when it is not deployed itself."""
        found: dict[str, Any] = decode_plain(await self._control("describe", encode_plain({"name": name})))
        return None if found["deployed"] is None else found

    async def put_secret(self, worker: str, name: str, value: str) -> list[str]:
        """Set a secret of ``worker``: text of at most 5 KiB. What is deployed of it and names the secret is deployed
        once more, as new versions of the same code, whose ids this returns. ``EverwarmError`` says what is wrong."""
        order = {"worker": worker, "name": name, "value": value, "author": _author()}
        done = decode_plain(await self._control("put_secret", encode_plain(order)))
        if "error" in done:
            raise EverwarmError(done["error"])
        return list(done["versions"])

    async def delete_secret(self, worker: str, name: str) -> bool:
        """Forget a secret, and begin anew without it. False when there was none."""
        order = {"worker": worker, "name": name, "author": _author()}
        return bool(decode_plain(await self._control("delete_secret", encode_plain(order)))["deleted"])

    async def secrets(self, worker: str) -> dict[str, Any]:
        """``secrets``: the names that have a value, each with ``at_ms`` and ``author``. ``unset``: those that what is
        deployed names, and that have none."""
        found: dict[str, Any] = decode_plain(await self._control("list_secrets", encode_plain({"worker": worker})))
        return found

    async def history(self, name: str) -> list[dict[str, Any]]:
        """The latest uploads and deploys of a worker, newest first."""
        changes: list[dict[str, Any]] = decode_plain(await self._control("history", encode_plain({"name": name})))
        return changes

    # --------------------------------------------------------------------------------------------------- requests

    async def fetch(
        self,
        worker: str,
        path: str = "/",
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        server: str | None = None,
    ) -> Response:
        """Send a request to ``worker`` through ``server`` (or the next one in turn) and read its answer whole.

        With no ``server`` named, one that leaves or is lost is passed over for another, unless it may have begun a
        request that must not run twice.

        The answer of a request that ended badly is the platform's page for that ending, as over HTTP. A body must
        fit the window of 64 KiB here; larger ones go over HTTPS. ``EverwarmError`` when the server is away, and for a
        user's worker of a namespace: only its dispatcher calls it.
        """
        if "/" in worker:
            raise EverwarmError(f"{worker} is in a dispatch namespace, and is called through its dispatcher only")
        if len(body) > WINDOW_BYTES_MAX:
            raise EverwarmError(f"fetch takes bodies up to {WINDOW_BYTES_MAX:,} bytes; send larger ones over HTTPS")
        head = RequestHead(
            method.upper(),
            "https",
            f"{worker}.localhost",
            path,
            tuple((name.lower(), value.encode()) for name, value in (headers or {}).items()),
        )
        request = Request(secrets.token_hex(8), worker, head, "", body_first=body)
        peer, reply = await self._submit(request, [server] if server else self._in_turn())
        served = None if reply["served"] is None else SERVED.decode(reply["served"])
        chunk = CHUNK.decode(reply["chunk"])
        pieces = [chunk.data]
        size = len(chunk.data)
        while chunk.ended is None:
            chunk = CHUNK.decode(await _calling(peer, "read_submitted", reply["rest"]))
            pieces.append(chunk.data)
            size += len(chunk.data)
            if size > FETCH_BYTES_MAX:
                await _calling(peer, "cancel_submitted", reply["rest"])
                raise EverwarmError(f"the answer is larger than {FETCH_BYTES_MAX:,} bytes")
        return response_of(request, served, chunk, b"".join(pieces), reply["trace_id"])

    def _in_turn(self) -> list[str]:
        """All servers, the next one in turn first."""
        first = next(self._round_robin)
        return [first, *(server for server in self.servers if server != first)]

    async def _submit(self, request: Request, servers: Sequence[str]) -> tuple[Peer, dict[str, Any]]:
        """Send a request through the first of ``servers`` that takes it: the server, and what it replied."""
        why = ""
        for server in servers:
            try:
                peer = await self._server(server)
                reply: dict[str, Any] = decode_plain(await peer.call("submit", REQUEST.encode(request)))
            except PeerFailed as failed:
                raise EverwarmError(str(failed)) from failed
            except PeerLost as lost:
                if lost.delivered is not False and request.head.method not in IDEMPOTENT:
                    raise EverwarmError(str(lost)) from lost
                why = str(lost)
                continue
            if "leaves" not in reply:
                return peer, reply
            why = f"{server} leaves the cluster"
        raise EverwarmError(why)

    # ------------------------------------------------------------------------------------------------------ looks

    async def statistics(self) -> dict[str, dict[str, Any]]:
        """The counters of all roles, by address (``server-1/host``, and ``server-1/host-2`` if it has a second)."""
        addresses = [f"{s}/{role}" for s in self.servers for role in ("server", "shard", "host", "ingress")]

        async def one(address: str) -> tuple[str, dict[str, Any]]:
            try:
                return address, decode_plain(await (await self._peers.get(address)).call("statistics"))
            except (PeerLost, PeerFailed) as away:
                return address, {"error": str(away)}

        counters = dict(await asyncio.gather(*(one(address) for address in addresses)))
        more = [f"{s}/{role}" for s in self.servers for role in counters[f"{s}/server"].get("host_roles", ())]
        more = [address for address in more if address not in counters]
        return counters | dict(await asyncio.gather(*(one(address) for address in more)))

    async def process_id(self, address: str) -> int:
        """The number of a role's process, on its machine. ``EverwarmError`` while it has none."""
        try:
            peer = await self._peers.get(address)
        except PeerLost as away:
            raise EverwarmError(str(away)) from away
        return int(await _calling(peer, "process_id", b""))

    async def members(self) -> dict[str, Any]:
        """Who is in the cluster: ``epoch``, ``servers`` (homes with weights), ``members`` (each with its state)."""
        plain: dict[str, Any] = decode_plain(await self._control("members", b""))
        return plain

    async def configure_admission(self, server: str, **changes: int | float | bool) -> None:
        """Change how a server admits other machines' requests: ``in_flight_max``, ``queue_ms_max``, ``draining``."""
        peer = await self._peers.get(f"{server}/shard")
        await _calling(peer, "configure", encode_plain(changes))

    async def configure_traces(self, *, on: bool) -> None:
        """Whether clients' requests leave traces from now on, on all servers. Drivers' requests always do."""
        order = encode_plain({"traces": on})
        edges = [await self._peers.get(f"{server}/ingress") for server in self.servers]
        await asyncio.gather(*(_calling(edge, "configure", order) for edge in edges))

    async def order(self, order: Mapping[str, str]) -> str:
        """Ask the process that owns the cluster, from any machine: ``{"do": "add"}``, or ``{"do": "remove", "server":
        NAME}``; the servers that it was about. ``EverwarmError`` says why it was not done."""
        answer = json.loads(await self._control("order", json.dumps(dict(order)).encode()))
        if "error" in answer:
            raise EverwarmError(answer["error"])
        return str(answer["done"]["server"])

    async def export_traces_to(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        """Send the traces of all servers to another OTLP/HTTP endpoint from now on; with an empty url to the
        one that they were started with."""
        order = encode_plain({"url": url, "headers": dict(headers or {})})
        await asyncio.gather(*(self._call_server(server, "export_to", order) for server in self.servers))

    async def traces(self, limit: int = 20) -> list[dict[str, Any]]:
        """Summaries of the latest traces of all servers that can be reached, newest first."""
        pages = await self._of_servers("traces", {"limit": limit})
        found = [summary for page in pages for summary in decode_plain(page)]
        found.sort(key=lambda summary: summary["start_ns"], reverse=True)
        return found[:limit]

    async def trace(self, trace_id: str) -> list[Span]:
        """The spans of a trace, by the beginning of its id; empty when nobody who can be reached knows it."""
        reports = await self._of_servers("trace", {"trace_id": trace_id})
        spans: list[Span] = []
        for report in reports:
            decoded = decode_spans(report)
            if not isinstance(decoded, Malformed):
                spans += decoded
        return spans

    async def wait_for_trace(self, trace_id: str, timeout_s: float = 5.0) -> list[Span]:
        """As ``trace``, but waits until it is there: spans are reported after the answer."""
        until_s = time.monotonic() + timeout_s
        while True:
            spans = await self.trace(trace_id)
            if spans or time.monotonic() > until_s:
                return spans
            await asyncio.sleep(0.05)

    async def tail(self, worker: str, wanted: LiveFilter = EVERYTHING) -> LiveReader:
        """Watch what a worker does on all servers from now on: an async iterator of ``LiveEvent``, and of what was
        missed. Whoever opened it closes it. ``EverwarmError`` when too many watch already."""

        def servers() -> list[str]:
            self.refresh()
            return self.servers

        reader = LiveReader(worker, wanted, servers=servers, peer=lambda server: self._peers.get(f"{server}/server"))
        try:
            await reader.open()
        except NotWatched as refused:
            raise EverwarmError(str(refused)) from refused
        return reader

    async def _of_servers(self, method: str, order: dict[str, Any]) -> list[bytes]:
        """What the servers say that can be reached. ``EverwarmError`` when none can."""

        async def one(server: str) -> bytes | None:
            try:
                return await (await self._server(server)).call(method, encode_plain(order))
            except PeerLost:
                return None
            except PeerFailed as failed:
                raise EverwarmError(str(failed)) from failed

        there = [said for said in await asyncio.gather(*map(one, self.servers)) if said is not None]
        if not there:
            raise EverwarmError("no server can be reached")
        return there

    async def _call_server(self, server: str, method: str, payload: bytes) -> bytes:
        return await _calling(await self._server(server), method, payload)

    async def _server(self, name: str) -> Peer:
        if name not in self.running.servers:
            self.refresh()
        if name not in self.running.servers:
            raise EverwarmError(f"There is no server {name}; there are {', '.join(self.servers)}.")
        return await self._peers.get(f"{name}/server")

    async def _control(self, method: str, payload: bytes) -> bytes:
        return await _calling(await self._peers.get("control"), method, payload)


async def _calling(peer: Peer, method: str, payload: bytes) -> bytes:
    try:
        return await peer.call(method, payload)
    except (PeerLost, PeerFailed) as failed:
        raise EverwarmError(str(failed)) from failed


def _author() -> str:
    """Who deploys, for the history."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
