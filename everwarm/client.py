"""The driver's side: connect to a running cluster, deploy, fetch, look.

``AsyncClient`` does the work; ``Client`` is the same for programs without an event loop. Both are had from
``everwarm.connect()``.

    with everwarm.connect() as cluster:
        answer = cluster.fetch("hello", "/")
        print(answer.status, answer.text, answer.server, answer.start_type)
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from actors.bindings import NOTHING_BOUND, Bindings
from actors.live_tail import LiveFilter
from everwarm.answers import Deployment, NotRunning, Response
from everwarm.async_client import EVERYTHING, AsyncClient
from everwarm.home import Home, Running
from everwarm.live_reader import LiveNews, LiveReader
from tracing.trace import Span

T = TypeVar("T")


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
        cordon: str = "",
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
    except ConnectionError as away:
        raise NotRunning(
            f"{away}. What is deployed is served by the other machines for as long as Ray lets them"
            " (docs/cluster.md). Bring the head back."
        ) from away
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
