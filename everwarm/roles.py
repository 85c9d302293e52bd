"""The table of actors: what every process of a cluster runs, and how it starts. Plain classes; nothing of Ray is here.

A role gets its world as arguments: sockets, peers, clocks, entropy. ``cluster`` gives it a process.
"""

import asyncio
import json
import logging
import os
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from actors.admission import AdmissionLimits
from actors.connection import Frame
from actors.control_plane import ControlPlane
from actors.cordon_keeper import NoHosts
from actors.cordons import cordon_of_role
from actors.crash_reports import CrashReports, Quarantine, take_over
from actors.distribution import Share
from actors.egress import EgressServer
from actors.isolate_host import IsolateHost
from actors.link import Links
from actors.membership import MembershipLimits
from actors.metrics_desk import MetricsDesk
from actors.metrics_endpoint import MetricsEndpoint
from actors.peer import Calls, PeerFailed, PeerLost, Peers
from actors.residency import ResidencyLimits
from actors.server import Server
from actors.server_line import ServerLine
from actors.shard_server import ShardServer
from actors.supervision import SupervisionLimits
from actors.view import decode_plain, encode_plain
from actors.worker import CORDON_DEFAULT
from everwarm.cluster_config import ClusterConfig
from everwarm.home import Home
from everwarm.order_book import OrderRefused
from ingress.authority import Delegate, LocalAuthority
from ingress.ingress import Ingress
from ingress.tls import Authority
from tracing.export import OtlpExporter
from tracing.export_metrics import OtlpMetrics

_log = logging.getLogger("everwarm.roles")

CONTROL = "control"
#: A call that is answered when its role stops: when the process dies, whoever made it knows at once.
STAY = "stay"
#: An order for the owner, at the ControlPlane's process.
ORDER = "order"
#: A call that tells the number of the role's process, on its machine.
PROCESS_ID = "process_id"
#: A cordon's name may be longer than a socket's path. No role without a cordon is as long.
_SOCKET_ROLE_CHARS_MAX = 16
#: How often a Server that starts asks for its view, until there is a ControlPlane; whoever starts it has a limit.
_SYNC_AGAIN_S = 0.1
#: How often an edge on another machine than the authority looks whether its right to issue runs out, in ten days.
_RENEW_EVERY_S = 3_600.0
#: The longest that an edge which goes waits for its clients' requests, as long as a home waits for others'.
FINISH_S_MAX = MembershipLimits().drain_s_max


@dataclass(slots=True)
class Started:
    """A role that runs: what others may call, and how it stops."""

    calls: Calls
    stop: Callable[[], Awaitable[None]]
    info: dict[str, object] = field(default_factory=dict)
    #: The calls that are on a request's path, or race with one: others make them over a direct line.
    direct: frozenset[str] = frozenset()
    #: Of these, the calls that end with the line of their caller.
    heard_only: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class World:
    """What a role is given."""

    config: ClusterConfig
    role: str
    server: str
    peers: Peers
    sockets: Path
    edge_port: int
    #: Makes one payload of what several peers are to be sent.
    share: Share
    #: Has the owner of the cluster's processes do something: an order and its answer (``order_book``).
    order: Callable[[bytes], Awaitable[bytes]]
    #: How many calls to peers went which way.
    peer_statistics: Callable[[], dict[str, int]] = dict

    @property
    def metrics_port(self) -> int:
        """Where this server's metrics are read: its place in the row is that of its edge. 0: a free port."""
        config = self.config
        return config.metrics_port + self.edge_port - config.port if config.metrics_port and config.port else 0

    def host_sockets(self, cordon: str) -> list[Path]:
        """The sockets of this machine's hosts of a cordon."""
        return [self.socket(name) for name in self.config.host_names(cordon)]

    def socket(self, role: str) -> Path:
        """The socket of a role on this machine."""
        if len(role) > _SOCKET_ROLE_CHARS_MAX:
            role = f"host-{blake2b(role.encode(), digest_size=6).hexdigest()}"
        return self.sockets / f"{self.server}-{role}.sock"

    @property
    def code(self) -> Path:
        """This machine's compiled code."""
        return Home(Path(self.config.home)).code(self.server)


# ------------------------------------------------------------------------------------------------ how roles start


def _ids() -> Callable[[int], bytes]:
    """A source of ids: different everywhere, and not secret, so without a system call for each."""
    return random.Random(secrets.randbits(128)).randbytes


async def _start_control(world: World) -> Started:
    async def watch(address: str) -> None:
        await (await world.peers.get(address)).call(STAY)

    async def have_hosts(cordons: tuple[str, ...]) -> None:
        try:
            answer = json.loads(await world.order(json.dumps({"do": "cordons", "cordons": cordons}).encode()))
        except OrderRefused as nobody:
            raise NoHosts(f"cordon: no host processes were started for it. {nobody}") from nobody
        if "error" in answer:
            raise NoHosts(f"cordon: no host processes were started for it. {answer['error']}")

    control = ControlPlane(
        Home(Path(world.config.home)).control,
        peers=world.peers,
        now_ms=lambda: int(time.time() * 1000),
        watch=watch,
        have_hosts=have_hosts,
        preload=world.config.preload,
        share=world.share,
    )
    calls = dict(control.calls)
    if world.config.ray_address:
        authority = LocalAuthority.open(Home(Path(world.config.home)).authority)

        async def delegate(payload: bytes) -> bytes:
            return authority.delegate(payload)

        calls["delegate"] = delegate
    keeping = asyncio.create_task(control.keep())

    async def stop() -> None:
        keeping.cancel()
        await control.stop()

    return Started(calls, stop)


def _error_log() -> str:
    """Where this process's standard error goes; empty when it is no file."""
    try:
        target = os.readlink("/proc/self/fd/2")
    except OSError:
        return ""
    return target if os.path.isfile(target) else ""


async def _start_host(world: World) -> Started:
    name, line = f"{world.server}/{world.role}", ServerLine(world.socket("server"))
    reports = CrashReports(Home(Path(world.config.home)).crashes)
    running = world.socket(world.role).with_suffix(".running")
    quarantine = Quarantine(reports)
    table = await asyncio.to_thread(take_over, running, name, reports, time.time_ns() // 10**6, _error_log())
    await asyncio.to_thread(quarantine.look, time.time())
    host = IsolateHost(
        name,
        world.socket(world.role),
        world.code,
        server=world.server,
        tell_server=line.tell,
        egress_socket=world.socket("egress"),
        server_socket=world.socket("server"),
        residency_limits=ResidencyLimits(
            isolates_max=world.config.isolates_max, memory_bytes_max=world.config.memory_bytes_max
        ),
        table=table,
        quarantine=quarantine,
        cordon=cordon_of_role(world.role),
    )
    # A Server that missed no process before this one believes in the isolates that it had.
    await asyncio.to_thread(line.tell, Frame.NOTICE, f"began {host.start()}".encode())

    async def statistics(payload: bytes) -> bytes:
        return encode_plain(host.statistics())

    async def stop() -> None:
        host.stop()

    return Started({"statistics": statistics}, stop)


async def _start_server(world: World) -> Started:
    config = world.config
    exporter = OtlpExporter(config.otlp_url, headers=config.otlp_headers) if config.otlp_url else None
    server = Server(
        world.server,
        host_sockets=world.host_sockets,
        code_directory=world.code,
        links=Links(),
        peers=world.peers,
        memory_bytes=config.isolates_bytes_max,
        entropy=_ids(),
        exporter=exporter,
        sharding=config.sharding,
    )
    # An edge that is there already gets its routes from here, and must not hear that there are none.
    while True:
        try:
            await server.sync()
            break
        except (PeerLost, PeerFailed) as away:
            _log.info("%s waits for the ControlPlane: %s", world.server, away)
            await asyncio.sleep(_SYNC_AGAIN_S)
    world.socket("server").unlink(missing_ok=True)
    await server.start(world.socket("server"))

    def hosts() -> list[str]:
        return [role for cordon in server.cordons for role in config.host_names(cordon)]

    desk = MetricsDesk(
        world.server,
        own=lambda: statistics(b""),
        peers=world.peers,
        others=lambda: (*hosts(), "shard", "ingress"),
        exporter=OtlpMetrics(config.otlp_url, world.server, headers=config.otlp_headers)
        if config.otlp_url and config.otlp_metrics
        else None,
    )
    exporting = asyncio.create_task(desk.export())
    endpoint = MetricsEndpoint(desk.text)
    if config.metrics:
        try:
            await endpoint.start(config.metrics_listen, world.metrics_port)
        except OSError as taken:
            # Of one machine this was looked at before. On other nodes, requests are worth more than their counters.
            _log.error("metrics cannot be read at port %d: %s", world.metrics_port, taken.strerror or taken)
    egress = EgressServer(config.egress_policy(endpoint.address), nested=server.nested)
    world.socket("egress").unlink(missing_ok=True)
    await egress.start(world.socket("egress"))
    heartbeat = server.heartbeat(config.weight)

    async def begin(payload: bytes) -> bytes:
        return encode_plain(await heartbeat.join())

    async def statistics(payload: bytes) -> bytes:
        plain = decode_plain(await server.statistics())
        more = {
            "egress": egress.statistics(),
            "peers": world.peer_statistics(),
            "metrics": endpoint.address,
            "host_roles": hosts(),
        }
        return encode_plain({**plain, **more, "pid": os.getpid()})

    async def stop() -> None:
        await heartbeat.stop()
        exporting.cancel()
        await endpoint.stop()
        await desk.close()
        await server.stop()
        await egress.stop()

    return Started(
        {**server.calls, "begin": begin, "statistics": statistics},
        stop,
        direct=frozenset({"read_body", "prewarm", "report_spans", "more_budget", "spent", "report_stage"}),
    )


async def _start_shard(world: World) -> Started:
    shard = ShardServer(
        world.server,
        host_sockets=world.host_sockets,
        code_directory=world.code,
        links=Links(),
        peers=world.peers,
        limits=AdmissionLimits.within(world.config.memory_bytes_max, world.config.in_flight_max),
    )

    async def statistics(payload: bytes) -> bytes:
        return encode_plain({**decode_plain(await shard.statistics()), "pid": os.getpid()})

    async def stop() -> None:
        """Its requests end with their links."""

    return Started(
        {**shard.calls, "statistics": statistics},
        stop,
        direct=frozenset({"serve", "read_response", "abort"}),
        heard_only=frozenset({"serve", "read_response"}),
    )


async def _renew(delegate: Delegate, world: World) -> None:
    """Have the ControlPlane let this edge issue. ``PeerLost`` and ``PeerFailed`` when it does not."""
    control = await world.peers.get(CONTROL)
    delegate.accept(await control.call("delegate", delegate.request_pem))
    Home(Path(world.config.home)).trust_joined(delegate.certificate_pem)


async def _keep_renewed(delegate: Delegate, world: World) -> None:
    while True:
        await asyncio.sleep(_RENEW_EVERY_S)
        if time.time() >= delegate.renew_at_s:
            try:
                await _renew(delegate, world)
            except (PeerLost, PeerFailed) as away:
                _log.warning("the right to issue certificates is not renewed yet: %s", away)


async def _start_ingress(world: World) -> Started:
    config = world.config
    authority: Authority
    renewing: asyncio.Task[None] | None = None
    if config.ray_address:
        authority = delegate = Delegate()
        await _renew(delegate, world)
        renewing = asyncio.create_task(_keep_renewed(delegate, world))
    else:
        authority = LocalAuthority.open(Home(Path(config.home)).authority)
    ingress = Ingress(
        world.server,
        address=config.address,
        port=world.edge_port,
        server_socket=world.socket("server"),
        links=Links(),
        authority=authority,
        certificates=Path(config.certificates) if config.certificates else None,
        entropy=_ids(),
        traces=config.traces,
    )
    port = await ingress.start()

    async def statistics(payload: bytes) -> bytes:
        return encode_plain({**await ingress.statistics(), "pid": os.getpid()})

    async def configure(payload: bytes) -> bytes:
        ingress.traces = bool(decode_plain(payload)["traces"])
        return b""

    async def drain(payload: bytes) -> bytes:
        await ingress.drain(FINISH_S_MAX)
        return b""

    async def stop() -> None:
        if renewing is not None:
            renewing.cancel()
        await ingress.stop()

    return Started({"statistics": statistics, "configure": configure, "drain": drain}, stop, {"port": port})


@dataclass(frozen=True, slots=True)
class Role:
    """One line of the table of actors."""

    name: str
    start: Callable[[World], Awaitable[Started]]
    #: When a process that died or hangs is replaced (``supervisor``).
    restarts: SupervisionLimits = field(default_factory=SupervisionLimits)
    #: Ray's own restarts. None: it takes 3 to 7 s on a machine of two cores to notice a death and to start a process,
    #: restarts for ever without a pause, and starts the process alone, without its role.
    max_restarts: int = 0

    def named(self, name: str) -> "Role":
        """One more process of this role, under a name of its own that begins with the role's."""
        return replace(self, name=name)


async def _start_standby(world: World) -> Started:
    """It has no role yet."""

    async def stop() -> None:
        """Nothing runs."""

    return Started({}, stop)


#: What every machine runs, in the order in which it starts.
MACHINE_ROLES = (
    Role("server", _start_server),
    Role("host", _start_host),
    Role("shard", _start_shard),
    Role("ingress", _start_ingress),
)
CONTROL_ROLE = Role(CONTROL, _start_control)
#: A process that is ready to take the place of one that died.
STANDBY_ROLE = Role("standby", _start_standby)
ROLES = {role.name: role for role in (*MACHINE_ROLES, CONTROL_ROLE, STANDBY_ROLE)}


def machine_roles(config: ClusterConfig, cordons: Sequence[str] = (CORDON_DEFAULT,)) -> list[Role]:
    """What every machine runs with this configuration: as in the table, with as many hosts of each cordon as are
    wanted."""
    hosts = [ROLES["host"].named(name) for cordon in cordons for name in config.host_names(cordon)]
    return [*(role for role in MACHINE_ROLES if role.name != "host"), *hosts]
