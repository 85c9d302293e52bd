"""The state directory: what is where, and who may read it.

``EVERWARM_HOME`` moves it; the default is ``~/.everwarm``. It belongs to one user (0700): it holds the cluster's
secret, the local authority's key, Ray's token, and compiled code that is trusted when it is mapped.
"""

import hashlib
import json
import os
import secrets
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from actors.link import SOCKET_PATH_BYTES_MAX
from actors.process_stat import ProcessStat

#: The longest name of a socket below the run directory: ``/node-``, an IPv6 address, ``-ingress.sock``, with room.
_SOCKET_NAME_BYTES = 60


class HomeUnusable(Exception):
    """The state directory cannot be used; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Running:
    """A cluster that was started from this state directory: how to reach it."""

    pid: int
    ray_address: str
    servers: dict[str, int]  # server -> HTTPS port
    addresses: dict[str, str]  # server -> where it listens
    started_at_s: float
    otlp: str = ""
    #: Every process below it when it was ready, with its start time: what to end should it be killed itself.
    processes: tuple[tuple[int, str], ...] = ()
    #: Whether it runs on a Ray that others started, on all of its nodes.
    on_nodes: bool = False

    def encode(self) -> bytes:
        """As bytes, for a file or another process."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Running":
        """What ``encode`` made. ``ValueError`` for anything else."""
        try:
            plain = json.loads(data)
            plain["processes"] = tuple((pid, start) for pid, start in plain["processes"])
            return cls(**plain)
        except (TypeError, KeyError) as wrong:
            raise ValueError("not what a cluster says of itself") from wrong


@dataclass(frozen=True, slots=True)
class Joined:
    """A cluster that this machine is one of: how to reach it from here."""

    pid: int  # of this machine's Server
    ray_address: str
    environment: dict[str, str]  # what a driver needs in its own; no secret, but where one lies
    server: str = ""  # its name

    @classmethod
    def here(cls, ray_address: str, server: str) -> "Joined":
        """As this process sees it, which is that server's."""
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
        return cls(os.getpid(), ray_address, {name: os.environ[name] for name in names if name in os.environ}, server)


def is_alive(pid: int) -> bool:
    """Whether a process runs. One that ended and that nobody has waited for does not."""
    stat = ProcessStat.of(pid)
    return stat is not None and stat.is_alive


class Home:
    """The state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def open(cls) -> "Home":
        """The state directory of this user, made if it is not there. ``HomeUnusable`` says what is wrong with it."""
        directory = Path(os.environ.get("EVERWARM_HOME") or Path.home() / ".everwarm").expanduser().absolute()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            with tempfile.NamedTemporaryFile(dir=directory):
                pass
        except OSError as refused:
            raise HomeUnusable(
                f"The state directory {directory} is not writable ({refused.strerror}). Set EVERWARM_HOME to another."
            ) from refused
        return cls(directory)

    @property
    def authority(self) -> Path:
        """The local certificate authority."""
        return self.directory / "tls"

    @property
    def ca_certificate(self) -> Path:
        """What clients have to trust: on a machine that joined a cluster it is the cluster's authority."""
        return self.authority / "ca.pem" if self.joined() is None else self.joined_ca_certificate

    @property
    def joined_ca_certificate(self) -> Path:
        """The authority of the cluster that this machine is one of. This machine may have had its own before."""
        return self.directory / "joined-ca.pem"

    @property
    def control(self) -> Path:
        """Catalog, components and artifacts."""
        return self.directory / "control"

    @property
    def log(self) -> Path:
        """What a cluster in the background prints."""
        return self.directory / "up.log"

    @property
    def crashes(self) -> Path:
        """Reports of hosts that crashed."""
        return self.directory / "crashes"

    @property
    def builds(self) -> Path:
        """Built components, by content."""
        return self.directory / "builds"

    @property
    def toolchains(self) -> Path:
        """Guest toolchains that were installed for builds."""
        return self.directory / "toolchains"

    @property
    def viewer(self) -> Path:
        """The trace viewer's environment."""
        return self.directory / "viewer"

    def code(self, server: str) -> Path:
        """The artifacts of one server."""
        return self.directory / "servers" / server / "code"

    def sockets(self) -> Path:
        """Where this cluster's sockets are. A path too long for a socket gets a directory of its own in /tmp."""
        run = self.directory / "run"
        if len(os.fsencode(run)) + _SOCKET_NAME_BYTES > SOCKET_PATH_BYTES_MAX:
            name = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:12]
            run = Path(tempfile.gettempdir()) / f"everwarm-{os.getuid()}-{name}"
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = run.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise HomeUnusable(f"The directory {run} is not this user's alone. Remove it, or set EVERWARM_HOME.")
        return run

    def joined_environment(self) -> dict[str, str]:
        """What a driver needs in its environment for a Ray that others started, beyond what is there already.

        Ray itself looks for a token when it starts and not when a driver comes: without a mode the driver is refused,
        after 20 s of trying.
        """
        if "RAY_AUTH_MODE" in os.environ:
            return {}
        joined = self.joined()
        if joined is not None and joined.environment:
            return joined.environment
        tokens = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
        known = any(name in os.environ for name in tokens) or (Path.home() / ".ray" / "auth_token").exists()
        return {"RAY_AUTH_MODE": "token"} if known else {}

    def ray_environment(self) -> dict[str, str]:
        """What Ray needs in the environment of every process of a cluster with a Ray of its own, and of its drivers."""
        token = self.directory / "ray-token"
        if not token.exists():
            with tempfile.NamedTemporaryFile("w", dir=self.directory, delete=False) as part:
                part.write(secrets.token_hex(32))
            # A hard link fails if another process was first, and then its token counts.
            try:
                os.link(part.name, token)
            except FileExistsError:
                pass
            finally:
                os.unlink(part.name)
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray gives workers niceness 15 by default, which starves guests beside anything else.
            "RAY_worker_niceness": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
        }

    # ---------------------------------------------------------------------------------------- the viewer that runs

    @property
    def _viewing(self) -> Path:
        return self.directory / "viewer.json"

    def viewing(self) -> tuple[str, dict[str, str]] | None:
        """Where a viewer that runs from here takes traces: url and headers."""
        try:
            plain = json.loads(self._viewing.read_text())
            return (plain["url"], plain["headers"]) if is_alive(plain["pid"]) else None
        except (OSError, ValueError, KeyError):
            return None

    def set_viewing(self, url: str, headers: dict[str, str]) -> None:
        """This process runs a viewer."""
        self._viewing.write_text(json.dumps({"pid": os.getpid(), "url": url, "headers": headers}))

    def clear_viewing(self) -> None:
        """It runs no longer."""
        self._viewing.unlink(missing_ok=True)

    # --------------------------------------------------------------------------------------- the cluster that runs

    @property
    def _running(self) -> Path:
        return self.directory / "cluster.json"

    def running(self) -> Running | None:
        """The cluster that runs from here, if its process is alive."""
        running = self.last_running()
        return running if running is not None and is_alive(running.pid) else None

    def last_running(self) -> Running | None:
        """The cluster that runs from here, or ran and was killed before it could say that it ended."""
        try:
            return Running.decode(self._running.read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def set_running(self, running: Running) -> None:
        """Say that a cluster runs."""
        _replace(self._running, running.encode())

    def clear_running(self) -> None:
        """It runs no longer."""
        self._running.unlink(missing_ok=True)

    # ---------------------------------------------------------------------------- the cluster that this machine is in

    @property
    def _joined(self) -> Path:
        return self.directory / "joined.json"

    def joined(self) -> Joined | None:
        """The cluster that this machine is one of, if its Server is alive."""
        try:
            joined = Joined(**json.loads(self._joined.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return joined if is_alive(joined.pid) else None

    def set_joined(self, joined: Joined) -> None:
        """This process is the Server of this machine, in a cluster."""
        _replace(self._joined, json.dumps(asdict(joined)).encode())

    def clear_joined(self) -> None:
        """It is none any more. Another process may be by now: one that was started in its place."""
        joined = self.joined()
        if joined is None or joined.pid == os.getpid():
            self._joined.unlink(missing_ok=True)

    def trust_joined(self, ca_pem: bytes) -> None:
        """The cluster that this machine is one of has this authority."""
        _replace(self.joined_ca_certificate, ca_pem)


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
        part.write(data)
    os.replace(part.name, path)
