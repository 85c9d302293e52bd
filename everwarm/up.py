"""Bringing a cluster up, keeping it, and taking it down without a trace.

The process that runs ``up`` starts a Ray of its own and owns it: when it ends, by Ctrl-C, SIGTERM or ``everwarm down``,
every process of the cluster ends with it. On a Ray that others started, on several machines, it ends what is ours and
leaves Ray alone; when it is killed there, the cluster serves on, and nobody follows what becomes of its machines until
``up`` is run again. In the background it is the same process, detached, with its output in ``up.log``.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from actors.process_stat import ProcessStat
from everwarm.home import Home, Running, is_alive

if TYPE_CHECKING:
    from everwarm.cluster import Cluster
    from everwarm.cluster_config import ClusterConfig
    from everwarm.node_keeper import NodeKeeper
    from everwarm.one_machine import OneMachine

_DOWN_S = 30.0
_DETACH_S = 90.0
#: Until the first servers of several machines are members, or have failed: starting takes a minute at most, joining
#: two and a half.
_DETACH_NODES_S = 240.0


class UpFailed(Exception):
    """The cluster did not come up, or could not be taken down; the message is one clear line."""


def check_ports(address: str, port: int, servers: int, option: str = "--port") -> None:
    """``UpFailed`` when one of the ports is taken, before anything is started."""
    if port == 0:
        return
    for wanted in range(port, port + servers):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, wanted))
            except OSError as taken:
                raise UpFailed(
                    f"Port {wanted} on {address} cannot be used ({taken.strerror}). Choose another with {option}."
                ) from taken


def run(
    home: Home,
    config: "ClusterConfig",
    *,
    progress: Callable[[str], None],
    on_ready: Callable[[Running], None],
) -> None:
    """Start a cluster and keep it until SIGINT or SIGTERM. ``UpFailed`` says why it did not come up.

    With ``config.ray_address`` it is on the nodes of the Ray there, else on this machine, on a Ray of its own.
    """
    running = home.running()
    if running is not None and running.pid != os.getpid():
        raise UpFailed(f"A cluster already runs from this state directory (pid {running.pid}). See: everwarm status")
    _end_killed(home)
    if config.ray_address:
        _run_on_nodes(home, config, progress, on_ready)
        return
    check_ports(config.address, config.port, config.servers)
    if config.metrics:
        check_ports(config.metrics_listen, config.metrics_port, config.servers, "--metrics-port")
    os.environ.update(home.ray_environment())
    stop = _StopSignals()
    progress("starting Ray")
    # Imported here: Ray reads its environment when it is imported, and half a second is too long for `--help`.
    from everwarm.cluster import Cluster, Place
    from everwarm.one_machine import OneMachine
    from everwarm.ray_driver import leave_ray, start_ray

    start_ray()
    stop.listen()
    processes = _descendants(os.getpid())
    cluster = Cluster(Place(config, 0))
    try:
        asyncio.run(_serve(home, config, cluster, OneMachine(cluster, config), stop, progress, on_ready))
    finally:
        home.clear_running()
        processes |= _descendants(os.getpid())
        with contextlib.suppress(Exception):
            leave_ray()
        _end_leftovers(processes)


def _run_on_nodes(
    home: Home, config: "ClusterConfig", progress: Callable[[str], None], on_ready: Callable[[Running], None]
) -> None:
    os.environ.update(home.joined_environment())
    stop = _StopSignals()
    progress(f"joining the Ray at {config.ray_address}")
    from everwarm.cluster import Cluster, Place
    from everwarm.node_keeper import NodeKeeper
    from everwarm.nodes import Node
    from everwarm.ray_driver import end_detached, join_ray, leave_ray, own_node, ray_address, ray_nodes

    try:
        join_ray(config.ray_address)
    except (ConnectionError, ValueError, RuntimeError) as away:
        raise UpFailed(f"There is no way to the Ray at {config.ray_address}: {away}") from away
    stop.listen()
    config = replace(config, ray_address=ray_address())
    cluster = Cluster(Place(config, 0, own_node()))

    async def look() -> list[Node]:
        return await asyncio.to_thread(ray_nodes)

    keeper = NodeKeeper(cluster, config, own_node=own_node(), look=look, progress=progress)
    try:
        asyncio.run(_serve(home, config, cluster, keeper, stop, progress, on_ready))
    finally:
        home.clear_running()
        if cluster.is_ours:
            with contextlib.suppress(Exception):
                end_detached()  # whatever was still being started, or did not stop in its time
        with contextlib.suppress(Exception):
            leave_ray()


async def _serve(
    home: Home,
    config: "ClusterConfig",
    cluster: "Cluster",
    servers: "OneMachine | NodeKeeper",
    stop: "_StopSignals",
    progress: Callable[[str], None],
    on_ready: Callable[[Running], None],
) -> None:
    from everwarm.cluster import StartFailed
    from everwarm.owner import Owner
    from everwarm.ray_driver import ray_address
    from everwarm.supervisor import Supervisor

    stop.attach(asyncio.get_running_loop())
    starting = asyncio.create_task(servers.start(progress))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            return
        try:
            starting.result()
        except StartFailed as failed:
            raise UpFailed(str(failed)) from failed
        began_s = time.time()

        def say_running() -> Running:
            """Who there is now, for all who connect, and for who has to end what is left of it."""
            running = Running(
                os.getpid(), ray_address(), dict(cluster.ports), cluster.addresses, began_s, config.otlp_url,
                tuple(sorted(_descendants(os.getpid()))), on_nodes=bool(config.ray_address),
            )  # fmt: skip
            home.set_running(running)
            cluster.say(running.encode())
            return running

        supervisor = Supervisor(cluster, on_changed=say_running, progress=progress)
        owner = Owner(home, servers, say_running, cluster, supervisor.report)
        await owner.start()
        running = say_running()
        servers.on_changed = say_running
        if config.restarts:
            supervisor.start()
        # Deploying and printing take their time; signals are heard meanwhile.
        ready = asyncio.create_task(asyncio.to_thread(on_ready, running))
        await stopping
        ready.cancel()
        progress("stopping")
        await owner.stop()
        await supervisor.stop()
    finally:
        stopping.cancel()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(servers.stop(), 15.0)


class _StopSignals:
    """SIGINT and SIGTERM, from before the event loop is there until after it is gone. A second one is not faster:
    ending takes a few seconds, and what is left behind takes longer to find."""

    def __init__(self) -> None:
        self._asked = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None
        self.listen()

    def listen(self) -> None:
        """Hear them; again when a library has put handlers of its own in place, as Ray's does when it connects."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self._asked = True
        if self._loop is not None and self._event is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._event.set)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on a signal also wakes this loop."""
        self._loop, self._event = loop, asyncio.Event()
        if self._asked:
            self._event.set()

    async def wait(self) -> None:
        """Until somebody asks to stop."""
        assert self._event is not None
        await self._event.wait()


def detach(home: Home, arguments: list[str], *, on_nodes: bool) -> Running:
    """Start ``everwarm up ARGUMENTS`` in the background and wait until it is ready; ``UpFailed`` if it never is.

    ``on_nodes``: on machines whose disks may have to be given all code first.
    """
    ready_s_max = _DETACH_NODES_S if on_nodes else _DETACH_S
    running = home.running()
    if running is not None:
        raise UpFailed(f"A cluster already runs from this state directory (pid {running.pid}). See: everwarm status")
    with home.log.open("ab") as log:
        began_at = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "everwarm.cli", "up", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "EVERWARM_HOME": str(home.directory)},
        )
    until_s = time.monotonic() + ready_s_max
    while time.monotonic() < until_s:
        if process.poll() is not None:
            with home.log.open("rb") as log:
                log.seek(began_at)
                lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            raise UpFailed(lines[-1] if lines else f"it ended with status {process.returncode}")
        found = home.running()
        if found is not None and found.pid == process.pid:
            return found
        time.sleep(0.1)
    process.terminate()
    # Its own end takes a few seconds, and whoever asks next must not meet it on its way.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_DOWN_S)
    raise UpFailed(f"It was not ready after {ready_s_max:g} s; see {home.log}")


def down(home: Home) -> bool:
    """End the cluster that runs from here and wait until all its processes are gone. False when none runs."""
    running = home.running()
    if running is None:
        return _end_killed(home)
    processes = _descendants(running.pid)
    os.kill(running.pid, signal.SIGTERM)
    until_s = time.monotonic() + _DOWN_S
    while is_alive(running.pid) and time.monotonic() < until_s:
        time.sleep(0.05)
    if is_alive(running.pid):
        os.kill(running.pid, signal.SIGKILL)
    _end_leftovers(processes)
    home.clear_running()
    return True


def _end_killed(home: Home) -> bool:
    """End what is left of a cluster whose own process was killed. Whether something was."""
    killed = home.last_running()
    left = {process for process in killed.processes if _is(process)} if killed is not None else set()
    # Stopped first: whoever sees its processes go would start others in their place, and nobody would know of these.
    for pid, _ in list(left):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    for pid, _ in list(left):
        left |= _descendants(pid)
    if killed is not None and not killed.on_nodes:
        left |= _orphans_of(home)
    _end_leftovers(left, asked_first=False)
    detached = _end_detached(home, killed.ray_address) if killed is not None and killed.on_nodes else 0
    home.clear_running()
    return bool(left or detached)


def _end_detached(home: Home, address: str) -> int:
    """End what runs of ours on a Ray that others started; how many processes that were. None when it is gone itself."""
    os.environ.update(home.joined_environment())
    from everwarm.ray_driver import end_detached, join_ray, leave_ray

    try:
        ours = join_ray(address)
    except (ConnectionError, RuntimeError):
        return 0
    try:
        return end_detached()
    finally:
        if ours:
            leave_ray()


def _descendants(pid: int) -> set[tuple[int, str]]:
    """The processes below ``pid``, each with its start time, since numbers are used again."""
    children: dict[int, list[int]] = {}
    starts: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            stat = ProcessStat.of(int(entry.name))
            if stat is not None:
                children.setdefault(stat.parent, []).append(int(entry.name))
                starts[int(entry.name)] = stat.start
    found: set[tuple[int, str]] = set()
    todo = [pid]
    while todo:
        for child in children.get(todo.pop(), ()):
            found.add((child, starts[child]))
            todo.append(child)
    return found


def _orphans_of(home: Home) -> set[tuple[int, str]]:
    """Ray's workers of this state directory whose Ray is gone: one that was just beginning when it died waits for it
    for a minute."""
    found: set[tuple[int, str]] = set()
    mark = f"EVERWARM_HOME={home.directory}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                is_worker = b"ray/_private/workers/default_worker.py" in (entry / "cmdline").read_bytes()
                if is_worker and mark in (entry / "environ").read_bytes().split(b"\0"):
                    stat = ProcessStat.of(int(entry.name))
                    if stat is not None and b"raylet" not in Path(f"/proc/{stat.parent}/cmdline").read_bytes():
                        found.add((int(entry.name), stat.start))
    return found


def _end_leftovers(processes: set[tuple[int, str]], *, asked_first: bool = True) -> None:
    """End those of ``processes`` that still run: asked first, then made to."""
    for number, wait_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0))[not asked_first :]:
        until_s = time.monotonic() + wait_s
        left = {p for p in processes if _is(p)}
        for pid, _ in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while left and time.monotonic() < until_s:
            time.sleep(0.05)
            left = {p for p in left if _is(p)}
        if not left:
            return


def _is(process: tuple[int, str]) -> bool:
    pid, start = process
    stat = ProcessStat.of(pid)
    return stat is not None and stat.start == start and stat.is_alive
