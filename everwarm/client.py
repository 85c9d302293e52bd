"""The driver's side: connect to a running cluster, deploy, fetch, look.

``AsyncClient`` does the work; ``Client`` is the same for programs without an event loop. Both are had from
``everwarm.connect()``.

    with everwarm.connect() as cluster:
        answer = cluster.fetch("hello", "/")
        print(answer.status, answer.text, answer.server, answer.start_type)
"""

import asyncio
import getpass
import itertools
import json
import os
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from actors.bindings import NOTHING_BOUND, Bindings
from actors.exchange import WINDOW_BYTES_MAX, Chunk, Ended, Outcome, Request, RequestHead, Served, status_of
from actors.live_tail import LiveFilter
from actors.peer import Peer, PeerFailed, PeerLost, RayPeers
from actors.view import decode_plain, encode_plain
from actors.wire import CHUNK, REQUEST, SERVED
from everwarm.home import Home, Running
from everwarm.live_reader import LiveNews, LiveReader, NotWatched
from tracing.trace import Span
from tracing.wire import Malformed, decode_spans

T = TypeVar("T")

#: Answers are held whole by ``fetch``; larger ones go over HTTPS.
FETCH_BYTES_MAX = 64 << 20
EVERYTHING = LiveFilter()


class EverwarmError(Exception):
    """Something a caller can act on; the message says what."""


class NotRunning(EverwarmError):
    """There is no cluster to connect to."""


class DeployFailed(EverwarmError):
    """A deploy was refused. ``code`` for programs; the message says why and what to do."""

    def __init__(self, code: str, message: str, advice: str) -> None:
        super().__init__(f"{message} {advice}".strip())
        self.code, self.advice = code, advice
        self.message = message


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. ``outcome`` is how the request ended; unless it is ``ok``, status and body are the platform's."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    outcome: str
    server: str = ""
    home: str = ""
    start_type: str = ""
    hop: bool = False
    refused: str = ""
    queue_ms: float = 0.0
    cpu_ms: float = 0.0
    request_id: str = ""
    trace_id: str = ""

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A worker that was deployed."""

    worker: str
    version: str
    component_digest: str
    component_bytes: int
    artifact_bytes: int
    own_bytes: int  # of it, what no other worker of the same engine has
    startup_cpu_ms: float
    servers: list[str]
    late: list[str]  # servers that did not have the code when it was switched to; they get it
    plan: str
    missing: list[str] = field(default_factory=list)  # workers that it is bound to, and that are not deployed
    unset_secrets: list[str] = field(default_factory=list)  # that it names, and that have no value
    phases: list[tuple[str, float]] = field(default_factory=list)
    why_late: dict[str, str] = field(default_factory=dict)


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
        cordon: str = "default",
        bindings: Bindings = NOTHING_BOUND,
        routes: Sequence[str] = (),
        namespace: str = "",
        progress: Callable[[str, float], None] | None = None,
    ) -> Deployment:
        """Deploy ``component`` as worker ``name``. ``progress`` hears the phase and the seconds in it.

        ``cordon`` names the group of workers of one trust that it belongs to; groups never share a host process.
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
        peer = await self._server(server or next(self._round_robin))
        reply = decode_plain(await _calling(peer, "submit", REQUEST.encode(request)))
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
        return _response(request, served, chunk, b"".join(pieces), reply["trace_id"])

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
        more = [
            f"{s}/host-{i}" for s in self.servers for i in range(2, 1 + counters[f"{s}/server"].get("hosts_all", 0))
        ]
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

    async def _of_server(self, server: str, method: str, order: dict[str, Any]) -> bytes:
        return await self._call_server(server, method, encode_plain(order))

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


class Client:
    """A connection to a cluster, for programs without an event loop. The methods are ``AsyncClient``'s."""

    def __init__(self, inner: AsyncClient) -> None:
        self._inner = inner
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="everwarm-client", daemon=True)
        self._thread.start()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @property
    def running(self) -> Running:
        """What the cluster says of itself."""
        return self._inner.running

    @property
    def servers(self) -> list[str]:
        """The cluster's servers."""
        return self._inner.servers

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster, which runs on."""
        self._wait(_end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._inner.close()

    def deploy(
        self,
        name: str,
        component: bytes | Path,
        *,
        plan: str = "free",
        limits: Mapping[str, int] | None = None,
        reuse: Mapping[str, int] | None = None,
        cordon: str = "default",
        bindings: Bindings = NOTHING_BOUND,
        routes: Sequence[str] = (),
        namespace: str = "",
        progress: Callable[[str, float], None] | None = None,
    ) -> Deployment:
        """See ``AsyncClient.deploy``."""
        return self._wait(
            self._inner.deploy(
                name, component, plan=plan, limits=limits, reuse=reuse, cordon=cordon, bindings=bindings, routes=routes,
                namespace=namespace, progress=progress,
            )
        )  # fmt: skip

    def remove(self, name: str) -> bool:
        """See ``AsyncClient.remove``."""
        return self._wait(self._inner.remove(name))

    def workers(self) -> list[dict[str, Any]]:
        """See ``AsyncClient.workers``."""
        return self._wait(self._inner.workers())

    def describe(self, name: str) -> dict[str, Any] | None:
        """See ``AsyncClient.describe``."""
        return self._wait(self._inner.describe(name))

    def put_secret(self, worker: str, name: str, value: str) -> list[str]:
        """See ``AsyncClient.put_secret``."""
        return self._wait(self._inner.put_secret(worker, name, value))

    def delete_secret(self, worker: str, name: str) -> bool:
        """See ``AsyncClient.delete_secret``."""
        return self._wait(self._inner.delete_secret(worker, name))

    def secrets(self, worker: str) -> dict[str, Any]:
        """See ``AsyncClient.secrets``."""
        return self._wait(self._inner.secrets(worker))

    def history(self, name: str) -> list[dict[str, Any]]:
        """See ``AsyncClient.history``."""
        return self._wait(self._inner.history(name))

    def fetch(
        self,
        worker: str,
        path: str = "/",
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        server: str | None = None,
    ) -> Response:
        """See ``AsyncClient.fetch``."""
        return self._wait(self._inner.fetch(worker, path, method=method, headers=headers, body=body, server=server))

    def statistics(self) -> dict[str, dict[str, Any]]:
        """See ``AsyncClient.statistics``."""
        return self._wait(self._inner.statistics())

    def refresh(self) -> None:
        """See ``AsyncClient.refresh``."""
        self._inner.refresh()

    def process_id(self, address: str) -> int:
        """See ``AsyncClient.process_id``."""
        return self._wait(self._inner.process_id(address))

    def members(self) -> dict[str, Any]:
        """See ``AsyncClient.members``."""
        return self._wait(self._inner.members())

    def configure_admission(self, server: str, **changes: int | float | bool) -> None:
        """See ``AsyncClient.configure_admission``."""
        self._wait(self._inner.configure_admission(server, **changes))

    def configure_traces(self, *, on: bool) -> None:
        """See ``AsyncClient.configure_traces``."""
        self._wait(self._inner.configure_traces(on=on))

    def order(self, order: Mapping[str, str]) -> str:
        """See ``AsyncClient.order``."""
        return self._wait(self._inner.order(order))

    def export_traces_to(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        """See ``AsyncClient.export_traces_to``."""
        self._wait(self._inner.export_traces_to(url, headers))

    def traces(self, limit: int = 20) -> list[dict[str, Any]]:
        """See ``AsyncClient.traces``."""
        return self._wait(self._inner.traces(limit))

    def trace(self, trace_id: str) -> list[Span]:
        """See ``AsyncClient.trace``."""
        return self._wait(self._inner.trace(trace_id))

    def tail(self, worker: str, wanted: LiveFilter = EVERYTHING) -> Generator[LiveNews, None, None]:
        """See ``AsyncClient.tail``. Watching begins with this call, and ends when the iterator is closed."""
        return self._read(self._wait(self._inner.tail(worker, wanted)))

    def _read(self, reader: LiveReader) -> Generator[LiveNews, None, None]:
        try:
            while True:
                yield self._wait(anext(reader))
        finally:
            self._wait(reader.close())

    def wait_for_trace(self, trace_id: str, timeout_s: float = 5.0) -> list[Span]:
        """See ``AsyncClient.wait_for_trace``."""
        return self._wait(self._inner.wait_for_trace(trace_id, timeout_s))


def connect(home: Home | None = None, *, ray_address: str | None = None) -> Client:
    """Connect to a cluster: the one at ``ray_address`` (``auto`` finds the Ray that runs on this machine), or the one
    that runs from the state directory (``EVERWARM_HOME``), or the one that this machine is a node of, or the one at
    ``RAY_ADDRESS``. ``NotRunning`` when there is none."""
    return Client(_connect(home, ray_address))


def connect_async(home: Home | None = None, *, ray_address: str | None = None) -> AsyncClient:
    """As ``connect``, for programs with an event loop."""
    return _connect(home, ray_address)


def _connect(home: Home | None, ray_address: str | None) -> AsyncClient:
    home = home or Home.open()
    running = home.running()
    if ray_address is None and running is not None and not running.on_nodes:
        os.environ.update(home.ray_environment())
        # Imported here: Ray reads its environment when it is imported.
        from everwarm.ray_driver import attach

        attached = attach(running.ray_address)
        return AsyncClient(running, attached.introduce, attached.leave, home.running)
    joined = home.joined()
    known = [running.ray_address if running else "", joined.ray_address if joined else ""]
    address = ray_address or next(filter(None, known), "") or os.environ.get("RAY_ADDRESS", "")
    if not address:
        raise NotRunning("No cluster runs from this state directory. Start one with: everwarm up --detach")
    return _connect_to_nodes(home, address)


def _connect_to_nodes(home: Home, address: str) -> AsyncClient:
    """Connect to the cluster on the Ray at ``address``, which is on several machines; what it says of itself is had
    from its ControlPlane."""
    os.environ.update(home.joined_environment())
    from everwarm.ray_driver import attach

    def look() -> Running | None:
        said = attached.said()
        return Running.decode(said) if said else None

    try:
        attached = attach(address)
    except LookupError as nobody:
        raise NotRunning(
            f"Everwarm does not run on the Ray at {address}. Start it on its head with: everwarm up --ray-address auto"
            " --detach"
        ) from nobody
    running = look()
    if running is None:
        attached.leave()
        raise NotRunning(f"Everwarm is starting on the Ray at {address}. Ask again in a few seconds.")
    return AsyncClient(running, attached.introduce, attached.leave, look)


async def _end_tasks() -> None:
    """End what the loop does on the side: peers that are away are asked every second whether they are back."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=1.0)


async def _calling(peer: Peer, method: str, payload: bytes) -> bytes:
    try:
        return await peer.call(method, payload)
    except (PeerLost, PeerFailed) as failed:
        raise EverwarmError(str(failed)) from failed


def _response(request: Request, served: Served | None, chunk: Chunk, body: bytes, trace_id: str) -> Response:
    ended = chunk.ended or Ended(Outcome.INTERNAL_ERROR)
    if served is None:
        failure = status_of(ended.outcome)
        text = f"{failure.status} {failure.code}: {failure.text}\n"
        return Response(
            failure.status, (("content-type", "text/plain; charset=utf-8"),), text.encode(), ended.outcome.value,
            request_id=request.request_id, trace_id=trace_id,
        )  # fmt: skip
    return Response(
        served.status,
        tuple((name, value.decode("latin-1")) for name, value in served.headers),
        body,
        ended.outcome.value,
        server=served.server,
        home=served.home,
        start_type=served.start_type,
        hop=served.hop,
        refused=served.refused,
        queue_ms=served.queue_ms,
        cpu_ms=ended.cpu_ms,
        request_id=request.request_id,
        trace_id=trace_id,
    )


def _author() -> str:
    """Who deploys, for the history."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
